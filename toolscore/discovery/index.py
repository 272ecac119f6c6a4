"""A ranked index of short texts: BM25F over their fields and vectors of their words, added up. Knows nothing of tools.

    score = z(BM25F) + z(cosines), of the whole query; and for a query of several clauses, of the best one for each text

BM25F: Robertson, Zaragoza, Taylor (2004). Weights were tuned on one half of the development sets and checked on the
other (`toolscore bench search`).
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from toolscore.embedding import EmbeddingError

if TYPE_CHECKING:
    import numpy

__all__ = [
    "FEW",
    "STOP",
    "Doc",
    "Index",
    "Ranking",
    "Vectors",
    "clauses",
    "raw_words",
    "relevance_of",
    "stem",
    "terms",
    "vector_texts",
]

log = structlog.get_logger(__name__)

Vectors = Any
"""`numpy.ndarray` of float32, a row a text."""

FIELDS = ("name", "text", "arguments", "server")
WEIGHT = {"name": 2.5, "text": 1.0, "arguments": 0.6, "server": 2.0}
LENGTH = {"name": 0.3, "text": 0.5, "arguments": 0.5, "server": 0.3}
"""How much a long field counts less (BM25's b)."""
SATURATION = 1.0
RARITY = 1.3
"""Exponent of a term's rarity (idf)."""
COSINE_WEIGHTS = (0.5, 0.4)
"""Of the text with its arguments, and without."""
CLAUSE_WEIGHT = 0.3
FAR = 0.25
"""Cosine up to which a text has nothing to do with a query."""
FEW = 20
"""Among so few entries the mean is no measure: what has a word or a meaning in common is found, however it compares."""
MAX_CLAUSES = 6
MAX_QUERY = 4000
MAX_TEXT = 2000

_WORD = re.compile(r"[A-Za-z]+|\d+|[^\W\d_A-Za-z]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CLAUSE = re.compile(
    r"[.?!;\n]+\s|,\s+(?:and|then|also)\s+|\s+(?:and then|then|and also)\s+|\band\b|\balso\b|,", re.IGNORECASE
)
STOP = frozenset(
    """a about an and any are as at be by can could do does for from get have has help how i if in into is it like me my
    need of on or our please some that the this to want we what when where which who will with would you your""".split()
)


class Doc(msgspec.Struct, frozen=True):
    """What is known of one entry. `key` says which it is."""

    key: str
    name: str
    text: str = ""
    arguments: str = ""
    server: str = ""


def clauses(query: str) -> list[str]:
    """The parts of a query that asks for several things; none where it asks for one."""
    parts = [part.strip() for part in _CLAUSE.split(query) if len(part.split()) >= 3]
    return parts if 1 < len(parts) <= MAX_CLAUSES else []


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    return str(_stemmer().stemWord(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


def terms(text: str) -> list[str]:
    """The words of a text, in lower case and stemmed; `camelCase` and `snake_case` are several."""
    return [stem(word) for word in raw_words(text)]


def raw_words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(_CAMEL.sub(" ", text))]


def vector_texts(doc: Doc) -> tuple[str, str]:
    """The two texts whose vectors stand for an entry: with its arguments, and without."""
    name = " ".join(_WORD.findall(_CAMEL.sub(" ", doc.name)))
    return f"{name}: {doc.text[:300]} {doc.arguments[:200]}", f"{name}: {doc.text[:400]}"


def relevance_of(score: float) -> float:
    """A score as a number between 0 and 1, for this query."""
    return round(1 - math.exp(-score / 6), 4) if score > 0.06 else 0.01


class Ranking(NamedTuple):
    """What a query is to each entry, in their order.

    Attributes:
        scores: larger is better; comparable within one query only.
        touched: above 0 where the entry has anything to do with the query at all.
        vector: the query's; `None` where there are no vectors.
    """

    scores: Vectors
    touched: Vectors
    vector: Vectors


class Index:
    """Entries that can be ranked for a query.

    Args:
        vectors: one array for each of `vector_texts`, a row an entry; empty: they are not to be had, words must do.
    """

    def __init__(self, docs: Sequence[Doc], vectors: Sequence[Vectors]) -> None:
        import numpy

        self.docs = list(docs)
        self.built_at = time.monotonic()
        self.vectors = vectors
        counts = [{field: Counter(terms(getattr(doc, field)[:MAX_TEXT])) for field in FIELDS} for doc in self.docs]
        average = {
            field: max(sum(count[field].total() for count in counts) / max(1, len(counts)), 1e-9) for field in FIELDS
        }
        postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, count in enumerate(counts):
            for term, weight in _weights(count, average).items():
                postings[term].append((number, weight))
        self._postings: dict[str, tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]] = {}
        for term, found in postings.items():
            rarity = math.log(1 + (len(docs) - len(found) + 0.5) / (len(found) + 0.5)) ** RARITY
            weights = numpy.array([weight for _, weight in found], numpy.float32)
            places = numpy.array([number for number, _ in found], numpy.int32)
            self._postings[term] = (places, rarity * weights / (weights + SATURATION))

    def __len__(self) -> int:
        return len(self.docs)

    @property
    def postings_bytes(self) -> int:
        """What the words take."""
        return sum(places.nbytes + weights.nbytes for places, weights in self._postings.values())

    def rank(self, query: str, embed: Callable[[list[str]], Vectors]) -> Ranking:
        """Hold a query against each entry."""
        import numpy

        query = query[:MAX_QUERY]
        parts = clauses(query)
        try:
            vectors = embed([query, *parts])
        except EmbeddingError as exc:
            log.warning("a query is ranked by its words alone", reason=str(exc))
            vectors = None
        cosines = [vectors @ texts.T for texts in self.vectors] if vectors is not None else []
        words = [self._lexical(text) for text in (query, *parts)]
        scores = [self._score(words[number], [of_form[number] for of_form in cosines]) for number in range(len(words))]
        total = scores[0] + CLAUSE_WEIGHT * numpy.max(scores[1:], axis=0) if parts else scores[0]
        nearest = numpy.max([of_form[0] for of_form in cosines], axis=0) if cosines else 0.0
        vector = vectors[0] if vectors is not None else None
        return Ranking(total, words[0] + numpy.maximum(nearest - FAR, 0), vector)

    def _lexical(self, query: str) -> Vectors:
        """BM25F alone: 0 where no word of the query stands in an entry."""
        import numpy

        scores = numpy.zeros(len(self.docs), numpy.float32)
        for term, times in Counter(terms(query)).items():
            posting = self._postings.get(term)
            if posting is not None and term not in STOP:
                places, weights = posting
                scores[places] += weights * min(times, 2)
        return scores

    def _score(self, words: Vectors, cosines: Sequence[Vectors]) -> Vectors:
        scores = _standard(words)
        for weight, of_form in zip(COSINE_WEIGHTS, cosines, strict=False):
            scores = scores + weight * _standard(of_form)
        return scores


def _weights(count: Mapping[str, Counter[str]], average: Mapping[str, float]) -> dict[str, float]:
    """A text's terms with their weights over all fields."""
    weights: dict[str, float] = defaultdict(float)
    for field in FIELDS:
        norm = 1 - LENGTH[field] + LENGTH[field] * count[field].total() / average[field]
        for term, times in count[field].items():
            weights[term] += WEIGHT[field] * times / norm
    return weights


def _standard(scores: Vectors) -> Vectors:
    """Mean 0 and deviation 1: so that two kinds of score can be added."""
    deviation = float(scores.std()) if len(scores) else 0.0
    return (scores - scores.mean()) / (deviation if deviation > 1e-6 else 1.0) if len(scores) else scores
