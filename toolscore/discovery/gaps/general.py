"""Tools that do many things: a Python sandbox, a shell, a browser. Their own words say little of what they are good
for, so what such tools do is written down, ability by ability, and a task is compared with that as with tools.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import msgspec

from toolscore.core.models import Tool
from toolscore.discovery.gaps.evidence import Background, GapModel, asked_for, evidence_for
from toolscore.discovery.search.index import Doc, ExactVectors, Index, Vectors, vector_text
from toolscore.embedding import Embedder

__all__ = ["Covered", "GeneralTools", "kind_of"]

COVERS_ABOVE = 0.8
"""Above it lie four of five tasks that such a tool does (`tests/data/general_tasks`), and 1 to 3 % of others."""


class _Kind(NamedTuple):
    """How the tools of a kind are known: by their names, by an argument that they must have, and by what they say."""

    name: re.Pattern[str]
    argument: re.Pattern[str]
    says: re.Pattern[str]


KINDS = {
    "python": _Kind(
        re.compile(
            r"(?:exec(?:ute)?|run|eval(?:uate)?)_?(?:python|code)(?:_code)?|"
            r"(?:python|code)_?(?:exec(?:ute)?|run|eval(?:uate)?|interpreter|repl)(?:_code)?|python"
        ),
        re.compile(r"(?i).*(?:code|script|source|program|expression).*"),
        re.compile(r"(?i)\bpython"),
    ),
    "shell": _Kind(
        re.compile(
            r"(?:exec(?:ute)?|run)_?(?:shell|bash|terminal|cmd|command)(?:_command)?|"
            r"(?:shell|bash|terminal)(?:_?(?:exec(?:ute)?|run|command))?|start_process"
        ),
        re.compile(r"(?i).*(?:command|cmd|script).*"),
        re.compile(r"(?i)\b(?:shell|bash|terminal|command[- ]line|zsh)\b"),
    ),
    "browser": _Kind(
        re.compile(r"(?:browser|puppeteer|playwright|page)_?navigate(?:_page)?|navigate(?:_page)?"),
        re.compile(r"(?i).*(?:url|address|uri).*"),
        re.compile(r"(?i)\b(?:browser|web ?page|web ?site|page|url)\b"),
    ),
}
"""General tools. The name alone is not enough: Redis has a `run_command`, and robots navigate, too."""


class Covered(NamedTuple):
    """A task that a general tool does.

    Attributes:
        ability: what of all that it can.
        confidence: how likely it does, as the gap model says.
    """

    tool: Tool
    ability: str
    confidence: float


def kind_of(tool: Tool) -> str | None:
    """Which kind of general tool one is; `None`: none of them."""
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", tool.name).lower().replace("-", "_")
    schema = tool.input_schema if isinstance(tool.input_schema, dict) else {}
    arguments = [str(one) for one in schema["properties"]] if isinstance(schema.get("properties"), dict) else []
    text = f"{name} {tool.description} {tool.server_id}".replace("_", " ").replace("-", " ")
    for kind, known in KINDS.items():
        if known.name.fullmatch(name) and known.says.search(text) and any(map(known.argument.fullmatch, arguments)):
            return kind
    return None


class GeneralTools:
    """What general tools do, for one embedder."""

    def __init__(self, embedder: Embedder, background: Background, model: GapModel) -> None:
        self._embedder = embedder
        self._background = background
        self._model = model
        self._indices: dict[str, Index] = {}

    def covering(self, task: str, tools: Sequence[Tool], asked: Vectors | None = None) -> Covered | None:
        """Find the general tool that surely does a task; `None`: none does, or none is there.

        Args:
            tools: those that exist for the caller.
            asked: what `asked_for` made of the task, if it was made.

        Raises:
            EmbeddingError.
        """
        found: list[Covered] = []
        there = {kind: tool for tool in reversed(tools) if (kind := kind_of(tool)) is not None}
        for kind, tool in there.items():
            index = self._index(kind)
            asked = asked_for(task, self._embedder) if asked is None else asked
            seen = evidence_for(task, index, self._background, self._embedder, asked=asked)
            confidence = self._model.probability(seen.features)
            if confidence > COVERS_ABOVE:
                found.append(Covered(tool, index.docs[seen.best[0]].name.replace("_", " "), confidence))
        return max(found, key=lambda one: one.confidence, default=None)

    def _index(self, kind: str) -> Index:
        index = self._indices.get(kind)
        if index is None:
            docs = [Doc(name, name, text, "", kind) for name, text in _abilities()[kind]]
            vectors = ExactVectors(self._embedder.embed([vector_text(doc) for doc in docs]))
            index = self._indices[kind] = Index(docs, vectors)
        return index


@lru_cache(maxsize=1)
def _abilities() -> dict[str, list[tuple[str, str]]]:
    raw = (files("toolscore.discovery") / "data" / "general_tools.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, list[tuple[str, str]]])
