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
from toolscore.discovery.gaps.evidence import Background, GapModel, evidence_for
from toolscore.discovery.search.index import Doc, ExactVectors, Index, vector_text
from toolscore.embedding import Embedder

__all__ = ["Covered", "GeneralTools", "kind_of"]

COVERS_ABOVE = 0.8
"""Above it lie four of five tasks that such a tool does (`tests/data/general_tasks`), and 1 to 3 % of others."""
KINDS = {
    "python": re.compile(
        r"(?:exec(?:ute)?|run|eval(?:uate)?)_?(?:python|code)|(?:python|code)_?(?:exec(?:ute)?|run|eval(?:uate)?|"
        r"interpreter|repl)(?:_code)?|python|execute_python_code|run_python_code"
    ),
    "shell": re.compile(
        r"(?:exec(?:ute)?|run)_?(?:shell|bash|terminal|cmd|command)(?:_command)?|(?:shell|bash|terminal)"
        r"(?:_?(?:exec(?:ute)?|run|command))?|start_process"
    ),
    "browser": re.compile(r"(?:browser|puppeteer|playwright|page)_?navigate(?:_page)?|navigate(?:_page)?"),
}
"""Names of the tools that do the work of their kind."""


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
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(name)), None)


class GeneralTools:
    """What general tools do, for one embedder."""

    def __init__(self, embedder: Embedder, background: Background, model: GapModel) -> None:
        self._embedder = embedder
        self._background = background
        self._model = model
        self._indices: dict[str, Index] = {}

    def covering(self, task: str, tools: Sequence[Tool]) -> Covered | None:
        """Find the general tool that surely does a task; `None`: none does, or none is there.

        Args:
            tools: those that exist for the caller.

        Raises:
            EmbeddingError.
        """
        found: list[Covered] = []
        there = {kind: tool for tool in reversed(tools) if (kind := kind_of(tool)) is not None}
        for kind, tool in there.items():
            index = self._index(kind)
            seen = evidence_for(task, index, self._background, self._embedder)
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
