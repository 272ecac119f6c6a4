"""What a change of a tool's definition means: compatible, breaking or suspicious. Pure: nothing is remembered here.

What a tool says of itself goes into a model's context. A suspicious definition talks to the model, hides characters,
mentions secrets or names other servers' tools.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from operator import gt, lt
from typing import Any, Literal

from toolscore.core.models import Change
from toolscore.tools.pointers import at_pointer

__all__ = ["HIDDEN", "classify", "find_renamed", "first_sight", "in_reasons", "readable_diff"]

MAX_DIFF_LINES = 2000
DIFF_WIDTH = 120
"""Longer lines are broken, so that no change hides behind the end of one."""
MAX_COMPARED_LINES = 3000
MAX_REASONS = 8
MAX_REASON = 300
MAX_DEPTH = 100
MAX_COMPARED_TEXT = 500
MAX_GONE = 1000

HIDDEN = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2800\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
"""Characters that a reader does not see, or that turn the order of what he sees."""

INSTRUCTIONS = re.compile(
    r"""
    \b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:previous|prior|above|earlier|all|any|other|system|user)\b
    | \b(?:do\s+not|don't|never|without)\s+(?:\w+\s+){0,3}?
      (?:tell|telling|mention|mentioning|inform|informing|notify|notifying|reveal|revealing|ask|asking|show|showing)\b
      [^.\n]{0,30}\b(?:user|human|them|anyone|operator|this)\b
    | </?\s*(?:important|system|instructions?|secret|assistant|user|admin|hidden|critical)\s*>
    | \[/?(?:INST|SYSTEM|IMPORTANT)\] | <\|[a-z_]+\|>
    | \bsystem\s+prompt\b | \byou\s+are\s+(?:now\s+)?(?:an?|the)\b
    | \bas\s+an?\s+(?:ai|llm|language\s+model|assistant)\b
    | (?<!if\ )(?<!when\ )\b(?:you|the\s+(?:model|assistant|agent|llm|ai))\s+(?:must|should|shall|need\s+to|have\s+to)\b
    | \b(?:before|after|whenever|every\s+time)\b[^.\n]{0,40}\b(?:tool|tools|call|calling|function)\b[^.\n]{0,60}
      \b(?:read|call|use|invoke|send|run|execute|pass|include)\b
    | \balways\s+(?:call|use|invoke|prefer|send|include|pass|read|run)\b
    | \b(?:secretly|covertly)\b
    | \bsend\b[^.\n]{0,60}(?:https?://|\b[\w.+-]{1,64}@[\w-]{1,64}\.\w)
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Words that talk to the model instead of describing the tool."""

SECRETS = re.compile(
    r"(?:~|/root|/home/\w+)?/?\.(?:ssh|aws|gnupg|kube|netrc|npmrc|pypirc|docker/config)\b|\bid_(?:rsa|ed25519|ecdsa)\b"
    r"|/etc/(?:passwd|shadow)|(?<![\w/])\.env\b|\bmcp(?:_servers)?\.json\b"
    r"|\b(?:private|api|access|secret|ssh)[ _-]?(?:key|token)s?\b|\bpasswords?\b|\bcredentials?\b|\bpassphrases?\b"
    r"|\benv(?:ironment)?\s+variables?\b|\bcookies?\b|\bseed\s+phrase\b|/proc/self/environ"
    r"|\b[A-Z0-9_]*_(?:SECRET|TOKEN|KEY|PASSWORD|CREDENTIALS)(?:_[A-Z0-9_]*)?\b|\brun\s+`?env\b",
    re.IGNORECASE,
)


def classify(old: Mapping[str, Any], new: Mapping[str, Any], others: Collection[str] = ()) -> Change | None:
    """What kind of change it is; `None`: there is none.

    Args:
        old, new: definitions of a tool (MCP `Tool`).
        others: names of other servers' tools.
    """
    if old == new:
        return None
    suspicious = _suspicious(old, new, others)
    breaking = _breaking(old, new)
    kind: Literal["compatible", "breaking", "suspicious"] = (
        "suspicious" if suspicious else "breaking" if breaking else "compatible"
    )
    reasons = in_reasons([*suspicious, *breaking])
    changed = tuple(sorted(str(key) for key in {*old, *new} if old.get(key) != new.get(key)))
    return Change(kind=kind, reasons=reasons, changed=changed, diff=readable_diff(old, new))


def first_sight(definition: Mapping[str, Any], others: Collection[str] = (), *, joins: bool = False) -> Change | None:
    """What is suspicious about a tool that was not there before; `None`: nothing.

    Args:
        joins: its server has been here for a while: then it is held to more.
    """
    reasons = _suspicious({}, definition, others, secrets=joins)
    if not reasons:
        return None
    diff = readable_diff({}, definition)
    return Change(kind="suspicious", reasons=in_reasons(reasons), changed=(), diff=diff)


def in_reasons(reasons: list[str]) -> tuple[str, ...]:
    """Reasons for people: not too many, not too long, with nothing hidden in them."""
    return tuple(_shown(reason)[:MAX_REASON] for reason in reasons[:MAX_REASONS])


def readable_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A unified diff of two JSON objects, with what a reader would not see written out (`\\u202e`)."""
    before, after = _lines(old), _lines(new)
    if len(before) + len(after) > MAX_COMPARED_LINES:
        before, after = _differing_middle(before, after)
    kept = list(difflib.unified_diff(before, after, "pinned", "now", lineterm="", n=2))
    if len(kept) > MAX_DIFF_LINES:
        kept[MAX_DIFF_LINES:] = [f"… and {len(kept) - MAX_DIFF_LINES} more lines: do not approve what you cannot read"]
    return "\n".join(kept)


def _differing_middle(before: list[str], after: list[str]) -> tuple[list[str], list[str]]:
    """What is left without the lines that both begin and end with: comparing all with all would take too long."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    middle = before[start : len(before) - end], after[start : len(after) - end]
    return middle[0][:MAX_COMPARED_LINES], middle[1][:MAX_COMPARED_LINES]


def _lines(value: Mapping[str, Any]) -> list[str]:
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    lines = [_shown(line) for line in text.splitlines()] if value else []
    return [line[at : at + DIFF_WIDTH] for line in lines for at in range(0, max(1, len(line)), DIFF_WIDTH)]


def _shown(text: str) -> str:
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """All text of a definition that a model may read, keys too."""
    if isinstance(value, str):
        yield value
    elif depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            for key, member in value.items():
                yield str(key)
                yield from _texts(member, depth + 1)
        elif isinstance(value, list | tuple):
            for member in value:
                yield from _texts(member, depth + 1)


def _suspicious(
    old: Mapping[str, Any], new: Mapping[str, Any], others: Collection[str], *, secrets: bool = True
) -> list[str]:
    """What the new definition says and the old one did not."""
    known = set(_texts(old))
    before = "\n".join(known)
    fresh = [text for text in dict.fromkeys(_texts(new)) if text not in known]
    reasons: list[str] = []
    hidden = {found for text in fresh for found in HIDDEN.findall(text)} - set(HIDDEN.findall(before))
    if hidden:
        shown = ", ".join(sorted(f"U+{ord(character):04X}" for character in hidden)[:5])
        reasons.append(f"hidden or bidirectional characters: {shown}")
    said_before = {sentence for text in known for sentence in _sentences(text)}
    said = [one for text in fresh for one in _sentences(text) if one not in said_before]
    for what, pattern in (("talks to the model", INSTRUCTIONS), ("mentions secrets", SECRETS)):
        found = next((match[0] for one in said if (match := pattern.search(one))), None)
        if found is not None and (secrets or pattern is not SECRETS):
            reasons.append(f"{what} ({_quoted(found)})")
    mixed = next((word for one in said if (word := _mixed_word(one))), None)
    if mixed is not None:
        reasons.append(f"letters of several alphabets in one word ({_quoted(mixed)})")
    words = {word.strip(".-") for one in said for word in re.findall(r"[\w.-]+", one)}
    named = sorted(word for word in words.intersection(others) if len(word) > 5 and not word.isalpha())
    if named:
        reasons.append(f"names a tool of another server: {', '.join(named[:3])}")
    return reasons


def _sentences(text: str) -> list[str]:
    """A text's sentences as a model reads them: without markup and what cannot be seen, each on one line."""
    plain = HIDDEN.sub("", unicodedata.normalize("NFKC", text))
    return [" ".join(_MARKUP.sub(" ", one).split()) for one in _SENTENCE.split(plain) if one.strip()]


_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_MARKUP = re.compile(r"[*`|\\]+|(?<!\w)_+|(?<!_)_++(?!\w)")
_WORD = re.compile(r"\w+")
_LATIN, _ALIKE = re.compile("[A-Za-z]"), re.compile("[\u0370-\u03ff\u0400-\u052f]")
"""Greek and Cyrillic letters pass for Latin ones."""


def _mixed_word(text: str) -> str | None:
    """A word with letters of several alphabets."""
    return next((word for word in _WORD.findall(text) if _ALIKE.search(word) and _LATIN.search(word)), None)


def _quoted(text: str) -> str:
    flat = " ".join(text.split())
    return f"“{flat[:80]}…”" if len(flat) > 80 else f"“{flat}”"


def _breaking(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    reasons = _Narrowing(old.get("inputSchema"), new.get("inputSchema"), "argument").reasons()
    reasons += _poorer(old.get("outputSchema"), new.get("outputSchema"))
    before, after = _object(old.get("annotations")), _object(new.get("annotations"))
    for hint, safe in (("readOnlyHint", True), ("idempotentHint", True), ("destructiveHint", False)):
        if before.get(hint) is safe and after.get(hint) is not safe:
            reasons.append(f"no longer says {hint}: {str(safe).lower()}")
        elif after.get(hint) is safe and before.get(hint) is not safe:  # rules, retries and the cache go by it
            reasons.append(f"says {hint}: {str(safe).lower()} now, and is treated as safer")
    return reasons


class _Narrowing:
    """Where a schema takes less than it did; what its references lead to is a part of it."""

    def __init__(self, old: Any, new: Any, what: str) -> None:
        self._old, self._new = _object(old), _object(new)
        self._what = what
        self._followed: set[tuple[str | None, str | None]] = set()

    def reasons(self) -> list[str]:
        return [] if self._old == self._new else self._between(self._old, self._new, "", 0)

    def _between(self, old: Any, new: Any, path: str, depth: int) -> list[str]:
        before, after = _object(old), _object(new)
        references = (_reference(before), _reference(after))
        if depth > MAX_DEPTH or references in self._followed:
            return []
        if references != (None, None):
            self._followed.add(references)
        before, after, what = _followed(before, self._old), _followed(after, self._new), self._what
        reasons = []
        properties, now = _object(before.get("properties")), _object(after.get("properties"))
        for name in properties:
            if name not in now:
                reasons.append(f"{what} {path}{name} is gone")
            else:
                reasons += self._between(properties[name], now[name], f"{path}{name}.", depth + 1)
        for name in _names(after.get("required")) - _names(before.get("required")):
            reasons.append(f"{what} {path}{name} is required now")
        here = path.rstrip(".") or "object"
        reasons += [f"{what} {here} {reason}" for reason in _narrower(before, after, is_whole=not path)]
        further = after.get("additionalProperties")
        if isinstance(further, Mapping) and further:
            reasons += self._between(before.get("additionalProperties"), further, f"{path}*.", depth + 1)
        if isinstance(before.get("items"), Mapping) or isinstance(after.get("items"), Mapping):
            reasons += self._between(before.get("items"), after.get("items"), f"{path}[].", depth + 1)
        return reasons


def _reference(schema: Mapping[str, Any]) -> str | None:
    reference = schema.get("$ref")
    return reference if isinstance(reference, str) else None


def _followed(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with what its reference leads to, within the same definition."""
    for _ in range(MAX_DEPTH):
        reference = _reference(schema)
        target = at_pointer(root, reference[1:]) if reference is not None and reference.startswith("#/") else None
        if not isinstance(target, Mapping):
            break
        schema = {**target, **{name: member for name, member in schema.items() if name != "$ref"}}
    return schema


def _narrower(before: Mapping[str, Any], after: Mapping[str, Any], *, is_whole: bool) -> list[str]:
    """In which ways a part of a schema takes less, its own parts apart.

    Args:
        is_whole: it is the schema of all arguments: that these are an object needs no saying.
    """
    reasons = []
    lost = _types(before) - _types(after)
    if lost and _types(after):
        reasons.append(f"is no longer {' or '.join(sorted(lost))}")
    if not is_whole and not SHAPED.intersection(before) and _types(after):
        reasons.append(f"has to be {' or '.join(sorted(_types(after)))} now")
    if isinstance(after.get("enum"), list) and (
        not isinstance(before.get("enum"), list) or any(value not in after["enum"] for value in before["enum"])
    ):
        reasons.append("takes fewer values")
    for bound, stricter in STRICTER.items():
        was, is_ = before.get(bound), after.get(bound)
        if isinstance(is_, int | float) and (not isinstance(was, int | float) or stricter(is_, was)):
            reasons.append(f"has a stricter {bound}")
    if after.get("pattern") not in (None, before.get("pattern")):
        reasons.append("has another pattern")
    if after.get("additionalProperties") is False and before.get("additionalProperties") is not False:
        reasons.append("takes no further members")
    if any(before.get(key) != after.get(key) for key in ("anyOf", "oneOf", "allOf", "not", "if", "$ref", "const")):
        reasons.append("has another form")
    return reasons


SHAPED = frozenset({"type", "properties", "items", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})
"""Any of these says what a value is."""
STRICTER: dict[str, Callable[[float, float], bool]] = {
    "minimum": gt, "exclusiveMinimum": gt, "minLength": gt, "minItems": gt,
    "maximum": lt, "exclusiveMaximum": lt, "maxLength": lt, "maxItems": lt,
}  # fmt: skip


def _poorer(old: Any, new: Any) -> list[str]:
    """Where a result has less than it had."""
    if not isinstance(old, Mapping) or old == new:
        return []
    if not isinstance(new, Mapping):
        return ["its results have no schema any more"]
    whole, fresh = old, new
    old, new = _followed(old, whole), _followed(new, fresh)
    before = {name: _followed(_object(one), whole) for name, one in _object(old.get("properties")).items()}
    after = {name: _followed(_object(one), fresh) for name, one in _object(new.get("properties")).items()}
    reasons = [f"result {name} is gone" for name in before if name not in after]
    reasons += [
        f"result {name} is another type"
        for name in before.keys() & after.keys()
        if _types(before[name]) != _types(after[name])
    ]
    reasons += [
        f"result {name} may be missing"
        for name in _names(old.get("required")) - _names(new.get("required"))
        if name in after
    ]
    return reasons


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(value: Any) -> set[str]:
    return {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()


def _types(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else _names(kind)
    return found | {"integer"} if "number" in found else found  # a number takes integers, too


def find_renamed(new: Mapping[str, Any], gone: Sequence[Mapping[str, Any]]) -> int | None:
    """Which of the definitions that went says much the same but for its name, and enough for that to mean something.

    Returns its place among the first thousand.
    """
    text = new.get("description")
    if not isinstance(text, str):
        return None
    texts: dict[int, str] = {}
    for place, old in enumerate(gone[:MAX_GONE]):
        before = old.get("description")
        if isinstance(before, str) and len(before) >= 20:
            if text.startswith(before[:MAX_COMPARED_TEXT]):
                return place
            texts[place] = before[:MAX_COMPARED_TEXT]
    if not texts:
        return None
    from rapidfuzz import fuzz, process

    found = process.extractOne(text[:MAX_COMPARED_TEXT], texts, scorer=fuzz.ratio, score_cutoff=85)
    return int(found[2]) if found is not None else None
