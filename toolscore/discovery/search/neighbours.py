"""Vectors of more entries than can be compared one by one: a graph in memory (HNSW), or a Milvus that runs anyway.

Both know the nearest alone; the others get, as a bound on their cosine, that of the farthest that was found. The
ranking adds words to it, so an entry that words bring up is not lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import structlog

from toolscore.discovery.search.index import ExactVectors, VectorIndex, Vectors
from toolscore.embedding import EmbeddingError

if TYPE_CHECKING:
    import numpy

__all__ = ["HnswVectors", "IndexRules", "MilvusVectors", "vector_index"]

log = structlog.get_logger(__name__)

EXACT_UP_TO = 30_000
NEAREST = 300
"""So many are looked for a query."""
CONNECTIVITY = 16
EF_CONSTRUCTION = 200
EF_SEARCH = 300
ROWS_A_REQUEST = 1000


class IndexRules:
    """Which index is used.

    Args:
        kind: `auto`: exact up to 30,000 entries, HNSW above.
        milvus_uri: a file (milvus-lite), or an address.
    """

    def __init__(
        self, kind: Literal["auto", "exact", "hnsw", "milvus"] = "auto", milvus_uri: str | None = None
    ) -> None:
        self.kind = kind
        self.milvus_uri = milvus_uri


def vector_index(rows: Vectors, keys: Sequence[str], rules: IndexRules, collection: str) -> VectorIndex:
    """The index for these vectors.

    Args:
        keys: of the rows, one each; what Milvus knows them by.
        collection: in Milvus.
    """
    kind = rules.kind
    if kind == "auto":
        kind = "hnsw" if len(rows) > EXACT_UP_TO else "exact"
    try:
        if kind == "hnsw" and len(rows):
            return HnswVectors(rows)
        if kind == "milvus" and len(rows) and rules.milvus_uri is not None:
            return MilvusVectors(rows, keys, rules.milvus_uri, collection)
    except ImportError as exc:
        log.warning("vectors are compared one by one", reason=f"{exc.name} is not installed: toolscore[{kind}]")
    return ExactVectors(rows)


def _spread(found: Sequence[Sequence[int]], cosines: Sequence[Sequence[float]], size: int) -> Vectors:
    """A row a query: the cosines that were found, and everywhere else the smallest of them."""
    import numpy

    rows = numpy.empty((len(found), size), numpy.float32)
    for number, (places, values) in enumerate(zip(found, cosines, strict=True)):
        rows[number] = min(values, default=0.0)
        rows[number, numpy.asarray(places, numpy.int64)] = values
    return rows


class HnswVectors:
    """A navigable small-world graph (Malkov, Yashunin 2016), by `usearch`."""

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
    """A collection in Milvus. Rows that it has already are not sent again, and those that are gone are deleted."""

    def __init__(self, rows: Vectors, keys: Sequence[str], uri: str, collection: str) -> None:
        from pymilvus import DataType, MilvusClient
        from pymilvus.exceptions import MilvusException

        self._failures: Any = MilvusException
        self._collection = collection
        self._places: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            self._places.setdefault(key, []).append(place)
        self._size = len(keys)
        try:
            self._client = MilvusClient(uri)
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
