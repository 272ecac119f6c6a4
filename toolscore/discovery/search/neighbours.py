"""Which entries are near a query, among too many to compare one by one: a graph in memory (HNSW), or Milvus.

Both find only the nearest entries. Every other entry gets a bound on its cosine: that of the farthest entry found. The
ranking adds scores of words to the cosines, so an entry that matches by its words is still found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import structlog

from toolscore.discovery.search.index import ExactVectors, VectorIndex, Vectors
from toolscore.embedding import EmbeddingError, EmbeddingRules

if TYPE_CHECKING:
    import numpy

__all__ = ["HnswVectors", "MilvusVectors", "kind_of_index", "vector_index"]

log = structlog.get_logger(__name__)

EXACT_UP_TO = 30_000
"""Entries; comparing a query with so many vectors takes some milliseconds."""
NEAREST = 300
"""Entries that are searched for each query."""
CONNECTIVITY = 16
"""Neighbours of each entry in the graph: the usual compromise of memory and recall (HNSW's M)."""
EF_CONSTRUCTION = 200
"""Candidates considered when an entry is added (HNSW's efConstruction)."""
EF_SEARCH = 300
"""Candidates considered in a search: at least `NEAREST` (HNSW's ef)."""
ROWS_A_REQUEST = 1000
"""Rows in one request to Milvus."""
CONNECT_SECONDS = 10.0
"""For a Milvus on the network; a search waits for it, and goes on without vectors after it."""


def kind_of_index(rules: EmbeddingRules, entries: int) -> Literal["exact", "hnsw", "milvus"]:
    """Choose the kind of index for a number of entries."""
    if rules.index == "auto":
        return "hnsw" if entries > EXACT_UP_TO else "exact"
    return rules.index


def vector_index(rows: Vectors, keys: Sequence[str], rules: EmbeddingRules, collection: str) -> VectorIndex:
    """Build the index of vectors that the rules ask for; the exact one where its package is not installed.

    Args:
        rows: float32, one row of unit length for each entry.
        keys: one for each row: its name in Milvus.
        collection: the name in Milvus.

    Raises:
        EmbeddingError: Milvus failed.
    """
    kind = kind_of_index(rules, len(rows))
    try:
        if kind == "hnsw" and len(rows):
            return HnswVectors(rows)
        if kind == "milvus" and len(rows) and rules.milvus_uri is not None:
            return MilvusVectors(rows, keys, rules.milvus_uri, collection)
    except ImportError as exc:
        log.warning("vectors are compared one by one", reason=f"{exc.name} is not installed: toolscore[{kind}]")
    return ExactVectors(rows)


def _spread(found: Sequence[Sequence[int]], cosines: Sequence[Sequence[float]], size: int) -> Vectors:
    """Make one row for each query: the cosines that were found, and the smallest of them for every other entry."""
    import numpy

    rows = numpy.empty((len(found), size), numpy.float32)
    for number, (places, values) in enumerate(zip(found, cosines, strict=True)):
        rows[number] = min(values, default=0.0)
        rows[number, numpy.asarray(places, numpy.int64)] = values
    return rows


class HnswVectors:
    """A `VectorIndex` that is a navigable small-world graph (Malkov, Yashunin 2016), by `usearch`."""

    def __init__(self, rows: Vectors) -> None:
        import numpy
        from usearch.index import Index

        self._size = len(rows)
        self._graph = Index(
            ndim=rows.shape[1], metric="ip", dtype="f16", connectivity=CONNECTIVITY, expansion_add=EF_CONSTRUCTION,
            expansion_search=EF_SEARCH,
        )  # fmt: skip
        self._graph.add(numpy.arange(len(rows)), rows)

    @property
    def nbytes(self) -> int:
        return int(self._graph.memory_usage)

    def cosines(self, queries: Vectors) -> Vectors:
        count = min(NEAREST, self._size)
        found, cosines = [], []
        for query in queries:
            matches = self._graph.search(query, count)
            found.append(matches.keys.tolist())
            cosines.append((1 - matches.distances).tolist())
        return _spread(found, cosines, self._size)


class MilvusVectors:
    """A `VectorIndex` that is a collection in Milvus. Only new rows are sent, and rows that are gone are deleted.

    Raises:
        EmbeddingError: Milvus failed.
    """

    def __init__(
        self, rows: Vectors, keys: Sequence[str], uri: str, collection: str, connect_seconds: float = CONNECT_SECONDS
    ) -> None:
        from pymilvus import DataType, MilvusClient
        from pymilvus.exceptions import MilvusException

        self._failures: Any = MilvusException
        self._collection = collection
        self._places: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            self._places.setdefault(key, []).append(place)
        self._size = len(keys)
        try:
            self._client = MilvusClient(uri, timeout=connect_seconds)
            if not self._client.has_collection(collection):
                schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=int(rows.shape[1]))
                index = self._client.prepare_index_params()
                local = "://" not in uri
                index.add_index(
                    "vector", index_type="FLAT" if local else "HNSW", metric_type="IP",
                    params={} if local else {"M": CONNECTIVITY, "efConstruction": EF_CONSTRUCTION},
                )  # fmt: skip
                self._client.create_collection(collection, schema=schema, index_params=index)
            self._client.load_collection(collection)
            self._bring_up_to_date(rows)
        except MilvusException as exc:
            raise EmbeddingError(f"Milvus at {uri} failed: {exc}") from exc

    def _bring_up_to_date(self, rows: Vectors) -> None:
        known: set[str] = set()
        pages = self._client.query_iterator(self._collection, output_fields=["key"], batch_size=ROWS_A_REQUEST)
        while page := pages.next():
            known |= {row["key"] for row in page}
        pages.close()
        new = [(key, places[0]) for key, places in self._places.items() if key not in known]
        for start in range(0, len(new), ROWS_A_REQUEST):
            batch = [{"key": key, "vector": rows[place].tolist()} for key, place in new[start : start + ROWS_A_REQUEST]]
            self._client.upsert(self._collection, batch)
        gone = sorted(known - self._places.keys())
        for start in range(0, len(gone), ROWS_A_REQUEST):
            self._client.delete(self._collection, ids=gone[start : start + ROWS_A_REQUEST])

    @property
    def nbytes(self) -> int:
        """The vectors are in Milvus, and take none of our memory."""
        return 0

    def cosines(self, queries: numpy.ndarray[Any, Any]) -> Vectors:
        """As `VectorIndex`.

        Raises:
            EmbeddingError: Milvus does not answer.
        """
        try:
            answers = self._client.search(
                self._collection, data=queries.tolist(), limit=min(NEAREST, max(1, len(self._places))),
                search_params={"params": {"ef": EF_SEARCH}}, output_fields=["key"],
            )  # fmt: skip
        except self._failures as exc:
            raise EmbeddingError(f"Milvus does not answer: {exc}") from exc
        found: list[list[int]] = []
        cosines: list[list[float]] = []
        for answer in answers:
            hits = [(place, float(hit["distance"])) for hit in answer for place in self._places.get(hit["key"], [])]
            found.append([place for place, _ in hits])
            cosines.append([cosine for _, cosine in hits])
        return _spread(found, cosines, self._size)
