"""Does any of our tools fit a task? A small model says so, with a confidence that was measured.

The first evidence is how near the nearest tool is, compared with unrelated tools (a sample of real ones, the
*background*): a tool that fits stands out from them. Two more are added: the words of the task that the tool covers,
and the words of the tool's name that the task covers. A logistic regression turns all of it into a probability.
`toolscore bench gaps` measures the model and can fit one. How long a task is, how many parts it has and how many
arguments a tool wants were evidence once: they tell the sources of labelled tasks apart, and short tasks looked as if
nothing fitted.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from toolscore.core.memo import Memo
from toolscore.core.words import STOP, raw_words, stem, terms
from toolscore.discovery.search.index import Doc, Index, Vectors, clauses, vector_text
from toolscore.embedding import Embedder

if TYPE_CHECKING:
    import numpy

__all__ = [
    "FEATURES",
    "FILLERS",
    "Background",
    "GapModel",
    "Missing",
    "Verdict",
    "asked_for",
    "evidence_for",
    "keywords",
    "load_model",
    "make_background",
    "says_something",
    "stems_of",
    "verdict_of",
]

Verdict = Literal["sufficient", "unsure", "gap"]

FEATURES = (
    "nearest",  # cosine of the nearest tool
    "outranked",  # logarithm of how many background tools are nearer
    "weakest_part",  # how far the nearest tool stands out from the background, for the worst part of the task
    "words_covered",  # share of the task's words that one tool has, weighed by their rarity
    "name_covered",  # the least likely word of a tool's name, in the task
    "fit",  # nearest, words and name together, of the best tool
    "tools",  # logarithm of the number of tools
    "margin",  # of the nearest tool over the second
)

WORDS_KEPT = 50_000
"""Words whose vectors are remembered: 50 MB."""
CANDIDATES = 10
"""The nearest tools that are looked at for the whole task."""
CANDIDATES_A_PART = 3
NEIGHBOURS = 20
MAX_WORDS = 120
MAX_TOOL_WORDS = 80
FILLERS = STOP | frozenset(
    """again all also always another anything best currently each every everything here into just kind know let lot make
    many more most much new next now one right show so something sure task tell there today tomorrow tonight use using
    very way while yesterday yet""".split()
)
"""Words that do not tell which tool is meant."""


class GapModel(msgspec.Struct, frozen=True):
    """Logistic regression over `FEATURES`, for one embedding model.

    Attributes:
        model: the embedding model's name.
        weights, mean, scale: one number for each feature.
        gap_below: a tool that fits with a smaller probability is none. Below it lies one in twenty of the development
            tasks that a tool does.
        sufficient_above: a tool that fits with a larger one does. Above it lies one in twenty of those that none does.
    """

    model: str
    weights: list[float]
    mean: list[float]
    scale: list[float]
    bias: float
    gap_below: float
    sufficient_above: float

    def probability(self, features: Sequence[float]) -> float:
        """Estimate that a tool fits, if half of all tasks have a fitting tool."""
        total = self.bias + sum(
            weight * (value - mean) / scale
            for weight, value, mean, scale in zip(self.weights, features, self.mean, self.scale, strict=True)
        )
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


class Missing(msgspec.Struct, frozen=True):
    """What no tool does: in words, and as keywords to search a catalog with."""

    capability: str
    keywords: list[str]


class _Background(msgspec.Struct):
    count: int
    terms: dict[str, int]
    tools: list[tuple[str, str]]


class Background:
    """What real tools say: how rare each word is, and a sample of unrelated tools to compare ours with.

    Args:
        embed: makes the vectors of tools.
        words: the light embedder, which knows single words.
    """

    def __init__(self, embed: Embedder, words: Embedder) -> None:
        raw = gzip.decompress((files("toolscore.discovery") / "data" / "background.json.gz").read_bytes())
        known = msgspec.json.decode(raw, type=_Background)
        self._count, self._terms = known.count, known.terms
        self._words = words
        self._word_vectors: Memo[str, Vectors] = Memo(WORDS_KEPT)
        self.vectors = embed.embed([vector_text(Doc("", name, text)) for name, text in known.tools])

    def rarity(self, term: str) -> float:
        """Inverse document frequency of a stemmed word among real tools."""
        found = self._terms.get(term, 0)
        return math.log(1 + (self._count - found + 0.5) / (found + 0.5))

    def common(self, term: str) -> bool:
        """Whether several tools in the world use the word."""
        return self._terms.get(term, 0) >= 2

    def of_words(self, words: Sequence[str]) -> Vectors:
        """Make one vector for each word, by the light model.

        Returns:
            float32, one row for each word, in their order.
        """
        import numpy

        known = {word: self._word_vectors.get(word) for word in words}
        missing = [word for word, vector in known.items() if vector is None]
        if missing:
            for word, vector in zip(missing, self._words.embed(missing), strict=True):
                known[word] = self._word_vectors[word] = vector
        if not words:
            return numpy.zeros((0, 1), numpy.float32)
        return numpy.array([known[word] for word in words])


def says_something(task: str) -> bool:
    """Whether a text has a word that can tell which tool is meant."""
    return any(word not in FILLERS for word in raw_words(task))


class Evidence(NamedTuple):
    """The values of `FEATURES`, and the best tools, the best first, as places in the index."""

    features: list[float]
    best: list[int]


def evidence_for(
    task: str,
    index: Index,
    background: Background,
    embed: Embedder,
    places: numpy.ndarray[Any, Any] | None = None,
    asked: Vectors | None = None,
) -> Evidence:
    """Compare a task with tools.

    Args:
        places: the places in the index to consider, at least one; `None`: all.
        asked: what `asked_for` made of the task, where it is compared with several indices.
    """
    import numpy

    parts = clauses(task)
    if asked is None:
        asked = asked_for(task, embed)
    assert index.vectors is not None
    cosines = index.vectors.cosines(asked)
    if places is not None:
        cosines = cosines[:, places]
    cohort = asked @ background.vectors.T
    nearest = cosines.max(axis=1)
    stands_out = nearest - numpy.sort(cohort, axis=1)[:, -NEIGHBOURS:].mean(axis=1)
    order = numpy.argsort(-cosines[0], kind="stable")
    candidates = list(order[:CANDIDATES])
    for part in range(1, len(parts) + 1):
        candidates += [one for one in numpy.argsort(-cosines[part])[:CANDIDATES_A_PART] if one not in candidates]

    words = [word for word in dict.fromkeys(raw_words(task)) if word not in STOP][:MAX_WORDS]
    stems = {stem(word) for word in words}
    weights = numpy.array([background.rarity(stem(word)) for word in words])
    of_task = background.of_words(words)
    total = max(sum(background.rarity(term) for term in stems), 1e-6)
    covered = named = 0.0
    fits = []
    for one in candidates:
        doc = index.docs[one if places is None else int(places[one])]
        has = stems_of(doc)
        covered = max(covered, sum(background.rarity(term) for term in stems & has) / total)
        soft = soft_name = 0.0
        if words:
            own = _own_words(doc)
            if own:
                soft = float((weights * (of_task @ background.of_words(own).T).max(axis=1)).sum() / weights.sum())
            name = [word for word in raw_words(doc.name) if word not in STOP]
            if name:
                found = (of_task @ background.of_words(name).T).max(axis=0)
                rarities = numpy.array([background.rarity(stem(word)) for word in name])
                soft_name = float((rarities * found).sum() / rarities.sum())
                named = max(named, float(found.min()))
        fits.append((float(cosines[0][one]) + 0.5 * soft + 0.5 * soft_name, int(one)))
    fits.sort(key=lambda fit: (-fit[0], fit[1]))
    best = [one if places is None else int(places[one]) for _, one in fits]
    count = cosines.shape[1]
    features = [
        float(nearest[0]),
        math.log(1 + int((cohort[0] > nearest[0]).sum())),
        float(stands_out[1:].min() if parts else stands_out[0]),
        covered,
        named,
        fits[0][0],
        math.log(count),
        float(cosines[0][order[0]] - cosines[0][order[1]]) if count > 1 else 0.0,
    ]
    return Evidence(features, best)


def asked_for(task: str, embed: Embedder) -> Vectors:
    """The vectors of a task and of each of its clauses.

    Raises:
        EmbeddingError.
    """
    return embed.embed([task, *clauses(task)])


@lru_cache(maxsize=20_000)
def stems_of(doc: Doc) -> frozenset[str]:
    """The words that a tool has, stemmed."""
    return frozenset(terms(f"{doc.name} {doc.text[:2000]} {doc.arguments} {doc.server}"))


@lru_cache(maxsize=20_000)
def _own_words(doc: Doc) -> list[str]:
    text = f"{doc.name} {doc.text[:400]} {doc.arguments[:300]}"
    return [word for word in dict.fromkeys(raw_words(text)) if word not in STOP][:MAX_TOOL_WORDS]


def verdict_of(model: GapModel, features: Sequence[float]) -> tuple[Verdict, float]:
    """Decide whether a tool fits.

    Returns:
        The verdict, and how likely it is right, 0 to 1; of `unsure`: how likely the likelier of the others would be.
    """
    probability = model.probability(features)
    if probability < model.gap_below:
        return "gap", 1 - probability
    if probability > model.sufficient_above:
        return "sufficient", probability
    return "unsure", max(probability, 1 - probability)


def keywords(step: str, background: Background, limit: int = 5) -> list[str]:
    """Choose the words of a step to search a catalog with: the rarest, but not names of people and places.

    Returns:
        At most `limit` words, in the order of the step.
    """
    words = [
        word for word in dict.fromkeys(raw_words(step)) if word not in FILLERS and len(word) > 1 and not word.isdigit()
    ]
    known = [word for word in words if background.common(stem(word)) or word in step] or words
    chosen = set(sorted(known, key=lambda word: -background.rarity(stem(word)))[:limit])
    return [word for word in words if word in chosen]


@lru_cache(maxsize=1)
def _models() -> Mapping[str, GapModel]:
    raw = (files("toolscore.discovery") / "data" / "gap_models.json").read_bytes()
    return {model.model: model for model in msgspec.json.decode(raw, type=list[GapModel])}


def load_model(name: str) -> GapModel:
    """Load the model that was fitted for an embedder; the light embedder's, where none was."""
    models = _models()
    return models.get(name) or models["light"]


def make_background(tools: Sequence[Mapping[str, Any]], size: int = 500) -> bytes:
    """Make the background file: the words of all given tools, and the texts of a sample.

    Args:
        tools: real ones: `name`, `description`, `args`.
        size: of the sample.
    """
    import random
    from collections import Counter

    chosen = list(tools)
    random.Random(1).shuffle(chosen)
    seen: Counter[str] = Counter()
    for tool in chosen:
        arguments = " ".join(map(str, tool.get("args") or []))
        seen.update(set(terms(f"{tool['name']} {tool.get('description') or ''} {arguments}")))
    known = {
        "count": len(chosen),
        "terms": {term: count for term, count in sorted(seen.items()) if count > 1 and len(term) < 30},
        "tools": [(tool["name"], (tool.get("description") or "")[:400]) for tool in chosen[:size]],
    }
    return gzip.compress(json.dumps(known, ensure_ascii=False, separators=(",", ":")).encode(), mtime=0)
