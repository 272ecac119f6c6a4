"""Why a verdict is what it is, in words, and what of a tool's arguments a task does not give.

What cannot be told for sure is not said: of an argument that is any text, nobody knows whether a task gives it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from toolscore.core.models import Tool
from toolscore.core.words import raw_words, stem
from toolscore.discovery.gaps.evidence import FILLERS, Background, Verdict, stems_of
from toolscore.discovery.search.search import doc_of_tool
from toolscore.embedding import is_foreign

__all__ = ["needs_of", "reason_for"]

SHOWN_WORDS = 4

WORDS_FOR_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety dozen half quarter
    third hundred thousand million first second twice double triple once couple single both pair some few
    several""".split()
WORDS_FOR_DATES = """now today tonight tomorrow yesterday morning noon evening night midnight day week weekend month
    year hour minute monday tuesday wednesday thursday friday saturday sunday january february march april may june july
    august september october november december spring summer autumn fall winter next last latest current recent ago
    soon later christmas easter""".split()

ADDRESS = re.compile(r"(?i)https?:|www\.|[\w-]\.(?:[a-z]{2,})(?:\b|/)")
PATH = re.compile(r"[/\\~]|\w\.\w|[\"'`«“]|\b(?:files?|folder|directory|read|open|show) [A-Z]\w+|\w [A-Z]\w+")
DIGIT = re.compile(r"\d")

GIVES: Mapping[str, tuple[re.Pattern[str], frozenset[str]]] = {
    "address": (ADDRESS, frozenset()),
    "mail": (re.compile("@"), frozenset()),
    "path": (PATH, frozenset()),
    "number": (DIGIT, frozenset(WORDS_FOR_NUMBERS)),
    "date": (DIGIT, frozenset(WORDS_FOR_DATES)),
}
"""What a task has that gives a value of a kind: a pattern, or one of the words."""
NAMES = {
    "address": re.compile(r"(?i)^(?:.*[_-])?ur[li]$"),
    "mail": re.compile(r"(?i)^(?:.*[_-])?e-?mail(?:_?address)?$"),
    "path": re.compile(r"(?i)^(?:.*[_-])?(?:file_?)?path$|^file_?name$"),
    "date": re.compile(r"(?i)^(?:.*[_-])?date$"),
}
FORMATS = {"uri": "address", "url": "address", "email": "mail", "date": "date", "date-time": "date"}


def needs_of(task: str, tool: Tool) -> list[str]:
    """List the arguments that a tool must have and a task does not give, as far as that can be told.

    Returns:
        Names of required addresses, mail addresses, paths, dates and numbers of which the task has none at all.
    """
    schema = tool.input_schema if isinstance(tool.input_schema, dict) else {}
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return []
    if is_foreign(task):
        return []
    words = set(raw_words(task))
    found = []
    for name in required:
        kind = _kind_of(name, properties.get(name)) if isinstance(name, str) else None
        if kind is not None and not GIVES[kind][0].search(task) and words.isdisjoint(GIVES[kind][1]):
            found.append(name)
    return found


def _kind_of(name: str, about: Any) -> str | None:
    """Which kind of value an argument is; `None`: any other, or one that needs not be given."""
    if not isinstance(about, dict) or "default" in about or "enum" in about or "const" in about:
        return None
    if about.get("type") in ("number", "integer"):
        return "number"
    if about.get("type") != "string":
        return None
    if (kind := FORMATS.get(str(about.get("format")))) is not None:
        return kind
    return next((kind for kind, pattern in NAMES.items() if pattern.fullmatch(name)), None)


def reason_for(task: str, verdict: Verdict, nearest: Tool | None, background: Background) -> str:
    """Say in words what a verdict rests on.

    Args:
        nearest: the best tool; `None`: there is none at all.
    """
    if nearest is None:
        return "there is no tool"
    has = stems_of(doc_of_tool(nearest))
    words = [word for word in dict.fromkeys(raw_words(task)) if word not in FILLERS and word.isalpha() and word[1:]]
    words.sort(key=lambda word: -background.rarity(stem(word)))
    known = [word for word in words if stem(word) in has][:SHOWN_WORDS]
    other = [word for word in words if stem(word) not in has][:SHOWN_WORDS]
    if verdict == "sufficient":
        return f"{nearest.tool_id} does it" + (f": it speaks of {_listed(known)}" if known else " in other words")
    lacking = f" of {_listed(other)}" if other else ""
    shared = f"it speaks of {_listed(known)}{f', not{lacking}' if other else ''}" if known else f"no word{lacking}"
    if verdict == "unsure":
        return f"perhaps {nearest.tool_id}: {shared}"
    return f"{nearest.tool_id} comes nearest: {shared}"


def _listed(words: list[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
