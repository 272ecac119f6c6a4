"""Vectors of texts: each is made once, and kept in memory while it is used, and in the database by its text's hash."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from toolscore.embedding import Embedder, EmbeddingError
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError

if TYPE_CHECKING:
    import numpy

__all__ = ["VectorCache", "digest"]

log = structlog.get_logger(__name__)

BATCH = 500
"""Texts embedded at a time; what was embedded is stored before the next batch."""


class VectorCache:
    """The vectors of one collection of texts, of which few change at a time."""

    def __init__(self, database: Database, embedder: Embedder, writes: WriteBehind) -> None:
        self._database = database
        self._embedder = embedder
        self._writes = writes
        self._vectors: dict[str, numpy.ndarray[Any, Any]] = {}
        self.width: int | None = None
        """How many numbers a vector must have; `None`: whatever the first has."""

    @property
    def model(self) -> str:
        """The embedding model's name, with letters, digits and `_` only."""
        return re.sub(r"\W+", "_", self._embedder.model)[:100]

    @property
    def weight(self) -> float:
        """How much cosines of these vectors count beside words."""
        return self._embedder.weight

    def words(self, query: str) -> float:
        """How much the words of a query count beside these vectors."""
        return self._embedder.words(query)

    async def new(self, texts: Sequence[str]) -> int:
        """How many of these texts have no vector yet, in memory or in the database."""
        missing = [key for key in dict.fromkeys(digest(text) for text in texts) if key not in self._vectors]
        if missing:
            await self._load(missing)
        return sum(key not in self._vectors for key in missing)

    async def of(self, texts: Sequence[str]) -> numpy.ndarray[Any, Any]:
        """Get the vectors of all texts of the collection: from memory, from the database, or made now.

        Texts that are not given are forgotten in memory, and stay in the database.

        Returns:
            float32, one row for each text, in their order.

        Raises:
            EmbeddingError: texts cannot be embedded now.
        """
        import numpy

        for _ in range(2):
            rows = await self._rows(texts)
            if len({len(row) for row in rows}) <= 1:
                return numpy.array(rows, numpy.float32)
            log.warning("texts are embedded in another size now: all are made again", model=self._embedder.model)
            self.expect(len((await asyncio.to_thread(self._embedder.embed, [texts[0]]))[0]))
        raise EmbeddingError("the model gives vectors of several sizes")

    async def _rows(self, texts: Sequence[str]) -> list[numpy.ndarray[Any, Any]]:
        import numpy

        digests = [digest(text) for text in texts]
        wanted = dict(zip(digests, texts, strict=True))
        self._vectors = {key: vector for key, vector in self._vectors.items() if key in wanted}
        missing = [key for key in wanted if key not in self._vectors]
        if missing:
            await self._load(missing)
        new = [key for key in missing if key not in self._vectors]
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            vectors = await asyncio.to_thread(self._embedder.embed, [wanted[key] for key in batch])
            packed = vectors.astype(numpy.float16)
            self._vectors.update(zip(batch, packed.astype(numpy.float32), strict=True))
            rows = [
                {"hash": key, "model": self._embedder.model, "vector": row.tobytes()}
                for key, row in zip(batch, packed, strict=True)
            ]
            self._writes.put(_saving(self._database, rows))
        return [self._vectors[key] for key in digests]

    def expect(self, width: int) -> None:
        """Take no vector any more that has not so many numbers: the model behind the name is another one."""
        self.width = width
        self._vectors = {key: vector for key, vector in self._vectors.items() if len(vector) == width}

    async def _load(self, missing: list[str]) -> None:
        import numpy

        try:
            kept: Mapping[str, bytes] = await self._database.load_vectors(self._embedder.model, missing)
        except StoreError as exc:
            log.warning("vectors cannot be read from the database, and are made again", error=str(exc))
            return
        for key, packed in kept.items():
            vector = numpy.frombuffer(packed, numpy.float16).astype(numpy.float32)
            if self.width in (None, len(vector)):  # else of another model by the same name
                self._vectors[key] = vector


def _saving(database: Database, rows: list[dict[str, Any]]) -> Callable[[], Any]:
    return lambda: database.save_vectors(rows)


def digest(*parts: str) -> str:
    """Hash one or more texts, as a key of 32 hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
