"""An index that ranks short texts for a query: BM25F over their fields, added to cosines of their vectors.

    score = v z(BM25F) + w z(cosine)

where z is the standard score over all entries, and v is below 1 for a query in a language that the entries are not in.
A query with several clauses adds the score of the clause that fits an entry best, and what stands out for one of them
is not drowned by the others. BM25F: Robertson, Zaragoza, Taylor (2004). The weights were tuned on one half of the
development sets and checked on the other (`toolscore bench search`). The index knows nothing of tools.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog

from toolscore.core.words import STOP, WORD, stem, terms
from toolscore.embedding import EmbeddingError

__all__ = [
    "FEW",
    "Doc",
    "ExactVectors",
    "Index",
    "Ranking",
    "VectorIndex",
    "Vectors",
    "clauses",
    "relevance_of",
    "vector_text",
    "without_runs",
]

log = structlog.get_logger(__name__)

Vectors = Any
"""`numpy.ndarray` of float32, one row for each text."""

FIELDS = ("name", "text", "arguments", "server")
WEIGHT = {"name": 2.5, "text": 1.0, "arguments": 0.6, "server": 2.0}
LENGTH = {"name": 0.3, "text": 0.5, "arguments": 0.5, "server": 0.3}
"""How much less a term counts in a long field (BM25's b)."""
SATURATION = 1.0
"""How soon repetitions of a term stop counting (BM25's k1)."""
RARITY = 1.3
"""Exponent of a term's inverse document frequency."""
CLAUSE_WEIGHT = 0.3
STANDS_OUT, PLACES = 2.0, 3
"""An entry that is so far before all others for one part of a query is among the first three for the whole."""
FAR = 0.25
"""A text with a smaller cosine than this is unrelated to the query."""
FEW = 20
"""An index of at most so many entries is too small for a meaningful mean: entries below the mean are found, too."""
MAX_CLAUSES = 6
MAX_QUERY = 4000
"""Characters of a query that are read."""
MAX_TEXT = 2000
"""Characters of a field that are read."""

_CLAUSE = re.compile(
    r"[.?!;\n]+\s|,\s+(?:and|then|also)\s+|\s+(?:and then|then|and also)\s+|\band\b|\balso\b|,", re.IGNORECASE
)


class Doc(msgspec.Struct, frozen=True):
    """The texts of one entry, by fields that count differently. `key` identifies the entry."""

    key: str
    name: str
    text: str = ""
    arguments: str = ""
    server: str = ""


def clauses(query: str) -> list[str]:
    """Split a query that asks for several things; a query that asks for one thing has no clauses."""
    parts = [part.strip() for part in _CLAUSE.split(without_runs(query)) if len(part.split()) >= 3]
    return parts if 1 < len(parts) <= MAX_CLAUSES else []


def without_runs(text: str) -> str:
    """A text with one blank, or one line break, for each run of white space: patterns try every place in a run."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text)


def vector_text(doc: Doc) -> str:
    """Return the text whose vector represents an entry."""
    server, name, arguments = (" ".join(WORD.findall(part)) for part in (doc.server, doc.name, doc.arguments[:1000]))
    return f"{server[:100]} {name}: {doc.text[:300]} {arguments[:200]}".strip()


def relevance_of(score: float) -> float:
    """Map a score to a number between 0 and 1."""
    return round(1 - math.exp(-score / 6), 4) if score > 0.06 else 0.01


class Ranking(NamedTuple):
    """How well each entry fits a query.

    Attributes:
        scores: one for each entry; larger is better; comparable within one query only.
        touched: one for each entry; above 0 if it is related to the query at all, by a word or by meaning.
        vector: the query's; `None`: there are no vectors.
    """

    scores: Vectors
    touched: Vectors
    vector: Vectors


class VectorIndex(Protocol):
    """The vectors of the entries, which are identified by their places."""

    @property
    def nbytes(self) -> int:
        """Bytes of our memory."""
        ...

    def cosines(self, queries: Vectors) -> Vectors:
        """Compare queries with all entries.

        Args:
            queries: float32, one row of unit length for each query.

        Returns:
            One row for each query, one column for each entry. An index that finds only the nearest entries gives
            the others a bound on their cosines.

        Raises:
            EmbeddingError: the index cannot be asked now.
        """
        ...


class ExactVectors:
    """A `VectorIndex` that compares one by one: exact, and fast enough for some 30,000 entries."""

    def __init__(self, rows: Vectors) -> None:
        self._rows = rows

    @property
    def nbytes(self) -> int:
        return int(self._rows.nbytes)

    def cosines(self, queries: Vectors) -> Vectors:
        return queries @ self._rows.T


class Index:
    """Ranks entries for a query.

    Args:
        vectors: of the entries' `vector_text`; `None`: rank by words only.
        weight: of cosines beside words.
        words: says how much the words of a query count, from 0 to 1.
        width: numbers of a vector; `None`: not known.
    """

    def __init__(
        self, docs: Sequence[Doc], vectors: VectorIndex | None, weight: float = 1.0,
        words: Callable[[str], float] = lambda query: 1.0, width: int | None = None,
    ) -> None:  # fmt: skip
        self.docs = list(docs)
        self.width = width
        self.expected_width: int | None = None
        """Of the queries' vectors, where that is another one: the entries have to be embedded again."""
        self.places = {doc.key: number for number, doc in enumerate(self.docs)}
        self.built_at = time.monotonic()
        self.vectors = vectors
        self._weight = weight
        self._words = words
        self._postings = _postings(self.docs)

    def __len__(self) -> int:
        return len(self.docs)

    @property
    def nbytes(self) -> int:
        """Bytes of our memory."""
        words = sum(int(places.nbytes + weights.nbytes) for places, weights in self._postings.values())
        return words + (self.vectors.nbytes if self.vectors is not None else 0)

    def rank(self, query: str, embed: Callable[[list[str]], Vectors]) -> Ranking:
        """Rank all entries for a query; by words only, if the query cannot be embedded now.

        Args:
            embed: makes one row for each text; may raise `EmbeddingError`.
        """
        import numpy

        query = query[:MAX_QUERY]
        texts = [query, *clauses(query)]
        cosines = vector = None
        if self.vectors is not None:
            try:
                asked = embed(texts)
                if self.width not in (None, asked.shape[1]):
                    self.expected_width = int(asked.shape[1])
                    raise EmbeddingError("queries are embedded in another size than the entries were")
                cosines, vector = self.vectors.cosines(asked), asked[0]
            except EmbeddingError as exc:
                log.warning("a query is ranked by its words alone", reason=str(exc))
        words = [self._lexical(text) for text in texts]
        scores = [_standard(found) for found in words]
        share = self._words(query)
        if cosines is not None:
            scores = [share * score + self._weight * _standard(row) for score, row in zip(scores, cosines, strict=True)]
        total = scores[0] if len(texts) == 1 else _of_all_parts(scores)
        far = FAR * (0.2 + 0.8 * share)  # in another language a vector has the meaning alone, and is nearer to nothing
        near = numpy.maximum(cosines[0] - far, 0) if cosines is not None else 0.0
        return Ranking(total, words[0] + near, vector)

    def _lexical(self, query: str) -> Vectors:
        """The BM25F score of each entry: 0 if it has no word of the query."""
        import numpy

        scores = numpy.zeros(len(self.docs), numpy.float32)
        for term, times in Counter(terms(query)).items():
            posting = self._postings.get(term)
            if posting is not None and term not in STOP:
                places, weights = posting
                scores[places] += weights * min(times, 2)
        return scores


class _Numbers(dict[str, int]):
    """Numbers of words; words with the same stem have the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        found = self[word] = self.terms.setdefault(stem(word.lower()), len(self.terms))
        return found


def _postings(docs: Sequence[Doc]) -> dict[str, tuple[Vectors, Vectors]]:
    """For each term the places of its entries, and its weight in each: summed over fields, saturated, times rarity."""
    import numpy

    numbers = _Numbers()
    keys, weights = [], []
    for field in FIELDS:
        found = [[numbers[word] for word in WORD.findall(getattr(doc, field)[:MAX_TEXT])] for doc in docs]
        lengths = numpy.array([len(one) for one in found], numpy.int64)
        if not lengths.sum():
            continue
        flat = numpy.fromiter((number for one in found for number in one), numpy.int64, int(lengths.sum()))
        place = numpy.repeat(numpy.arange(len(docs), dtype=numpy.int64), lengths)
        both, times = numpy.unique(flat << 32 | place, return_counts=True)
        norm = 1 - LENGTH[field] + LENGTH[field] * lengths / lengths.mean()
        keys.append(both)
        weights.append(WEIGHT[field] * times / norm[both & 0xFFFFFFFF])
    if not keys:
        return {}
    every, inverse = numpy.unique(numpy.concatenate(keys), return_inverse=True)
    total = numpy.bincount(inverse, numpy.concatenate(weights)).astype(numpy.float32)
    saturated = total / (total + SATURATION)
    of_term, places = every >> 32, (every & 0xFFFFFFFF).astype(numpy.int32)
    counts = numpy.bincount(of_term, minlength=len(numbers.terms))
    rarity = (numpy.log(1 + (len(docs) - counts + 0.5) / (counts + 0.5)) ** RARITY).astype(numpy.float32)
    values = saturated * rarity[of_term]
    ends = numpy.cumsum(counts)
    return {
        term: (
            places[ends[number] - counts[number] : ends[number]],
            values[ends[number] - counts[number] : ends[number]],
        )
        for term, number in numbers.terms.items()
    }


def _of_all_parts(scores: list[Vectors]) -> Vectors:
    """The scores of a query with several parts.

    Args:
        scores: of the whole query, and then of each part.
    """
    import numpy

    total = scores[0] + CLAUSE_WEIGHT * numpy.max(scores[1:], axis=0)
    if len(total) > PLACES:
        least = numpy.partition(total, -PLACES)[-PLACES] + 1e-3
        for part in scores[1:]:
            second, first = numpy.partition(part, -2)[-2:]
            if first - second > STANDS_OUT:
                best = int(part.argmax())
                total[best] = max(total[best], least)
    return total


def _standard(scores: Vectors) -> Vectors:
    """Scale to mean 0 and deviation 1, so that two kinds of scores can be added."""
    deviation = float(scores.std()) if len(scores) else 0.0
    return (scores - scores.mean()) / (deviation if deviation > 1e-6 else 1.0) if len(scores) else scores
