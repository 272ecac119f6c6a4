"""Does any of our tools fit a task? A small model says so, with a confidence that was measured.

The evidence is how near the nearest tool is, held against tools of no concern (a sample of real ones, the
*background*): a tool that fits stands out from these. To it come the words of the task that the tool covers, the words
of its name that the task covers, and whether the task says enough to fill its arguments. A logistic regression turns
them into a probability (`toolscore bench gaps` measures it, and fits it anew).
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

from toolscore.discovery.search.index import STOP, Doc, Index, Vectors, clauses, raw_words, stem, terms, vector_text
from toolscore.embedding import Embedder

if TYPE_CHECKING:
    import numpy

__all__ = [
    "FEATURES",
    "Background",
    "GapModel",
    "Missing",
    "Verdict",
    "evidence",
    "judge",
    "keywords",
    "load_model",
    "says_something",
]

Verdict = Literal["sufficient", "unsure", "gap"]

FEATURES = (
    "nearest",  # cosine of the nearest tool
    "outranked",  # logarithm of how many background tools are nearer
    "weakest_part",  # the worst part of the task: how far its nearest tool stands out from the background
    "parts",
    "words_covered",  # share of the task's words, by rarity, that one tool has
    "name_covered",  # the least likely word of a tool's name, in the task
    "fit",  # nearest, words and name together, of the best tool
    "required",  # arguments that it must have
    "tools",  # logarithm
    "length",  # logarithm of the task's words
    "margin",  # of the nearest tool over the second
)

CANDIDATES = 10
CANDIDATES_A_PART = 3
NEIGHBOURS = 20
MAX_WORDS = 120
MAX_TOOL_WORDS = 80
MAX_REQUIRED = 6
FILLERS = STOP | frozenset(
    """again all also always another anything best currently each every everything here into just kind know let lot make
    many more most much new next now one right show so something sure task tell there today tomorrow tonight use using
    very way while yesterday yet""".split()
)
"""Words that say nothing of which tool is meant."""


class GapModel(msgspec.Struct, frozen=True):
    """Logistic regression over `FEATURES`, for one embedding model.

    Attributes:
        unsure: probabilities of being right below this are not trusted: the surest 70 % of the answers lie above.
    """

    model: str
    weights: list[float]
    mean: list[float]
    scale: list[float]
    bias: float
    unsure: float

    def probability(self, features: Sequence[float]) -> float:
        """That a tool fits, where half of all tasks have one."""
        total = self.bias + sum(
            weight * (value - mean) / scale
            for weight, value, mean, scale in zip(self.weights, features, self.mean, self.scale, strict=True)
        )
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


class Missing(msgspec.Struct, frozen=True):
    """What no tool does: in words, and as keywords for a catalog."""

    capability: str
    keywords: list[str]


class _Background(msgspec.Struct):
    count: int
    terms: dict[str, int]
    tools: list[tuple[str, str]]


class Background:
    """What tools in general say: how rare a word is, and tools of no concern to hold ours against."""

    def __init__(self, embed: Embedder, words: Embedder) -> None:
        raw = gzip.decompress((files("toolscore.discovery") / "data" / "background.json.gz").read_bytes())
        known = msgspec.json.decode(raw, type=_Background)
        self._count, self._terms = known.count, known.terms
        self._words = words
        self._word_vectors: dict[str, Vectors] = {}
        self.vectors = embed.embed([vector_text(Doc("", name, text)) for name, text in known.tools])

    def rarity(self, term: str) -> float:
        """Inverse document frequency of a stemmed word among real tools."""
        found = self._terms.get(term, 0)
        return math.log(1 + (self._count - found + 0.5) / (found + 0.5))

    def common(self, term: str) -> bool:
        """Whether several tools in the world use the word."""
        return self._terms.get(term, 0) >= 2

    def of_words(self, words: Sequence[str]) -> Vectors:
        """A row a word; always by the light model, which knows single words."""
        import numpy

        missing = [word for word in dict.fromkeys(words) if word not in self._word_vectors]
        if missing:
            if len(self._word_vectors) > 50_000:
                self._word_vectors.clear()
                missing = list(dict.fromkeys(words))
            self._word_vectors.update(zip(missing, self._words.embed(missing), strict=True))
        if not words:
            return numpy.zeros((0, 1), numpy.float32)
        return numpy.array([self._word_vectors[word] for word in words])


def says_something(task: str) -> bool:
    """Whether a text has a word by which a tool could be meant."""
    return any(word not in FILLERS for word in raw_words(task))


class Evidence(NamedTuple):
    """`FEATURES`, and the tools that the best of them came from, the best first (places in the index)."""

    features: list[float]
    best: list[int]


def evidence(
    task: str, index: Index, background: Background, embed: Embedder, required: Sequence[int],
    places: numpy.ndarray[Any, Any] | None = None,
) -> Evidence:  # fmt: skip
    """Hold a task against tools.

    Args:
        required: number of required arguments of each entry of the index.
        places: consider only these; `None`: all. Not empty.
    """
    import numpy

    parts = clauses(task)
    asked = embed.embed([task, *parts])
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
        has = _stems(doc)
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
        float(len(parts)),
        covered,
        named,
        fits[0][0],
        float(min(required[best[0]], MAX_REQUIRED)),
        math.log(count),
        math.log(1 + len(words)),
        float(cosines[0][order[0]] - cosines[0][order[1]]) if count > 1 else 0.0,
    ]
    return Evidence(features, best)


@lru_cache(maxsize=20_000)
def _stems(doc: Doc) -> frozenset[str]:
    return frozenset(terms(f"{doc.name} {doc.text[:2000]} {doc.arguments} {doc.server}"))


@lru_cache(maxsize=20_000)
def _own_words(doc: Doc) -> list[str]:
    text = f"{doc.name} {doc.text[:400]} {doc.arguments[:300]}"
    return [word for word in dict.fromkeys(raw_words(text)) if word not in STOP][:MAX_TOOL_WORDS]


def judge(model: GapModel, features: Sequence[float]) -> tuple[Verdict, float]:
    """The verdict, and how likely it is right."""
    probability = model.probability(features)
    confidence = max(probability, 1 - probability)
    if confidence < model.unsure:
        return "unsure", confidence
    return ("sufficient" if probability > 0.5 else "gap"), confidence


def keywords(step: str, background: Background, limit: int = 5) -> list[str]:
    """The words of a step to search a catalog with, the rarest, in the step's order; names of people and places not."""
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
    """The fitted model for an embedder; that of the light one for embedders it was never fitted for."""
    models = _models()
    return models.get(name) or models["light"]


def make_background(tools: Sequence[Mapping[str, Any]], size: int = 500) -> bytes:
    """The background file, from real tools (`name`, `description`, `args`): the words of all, the texts of a sample."""
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
