"""Which of our tools fit a task: ranked by relevance and measured score, and better with use.

When a caller searches, calls one of the tools that were found, and the call succeeds, the task is remembered for that
tool and that caller. Similar tasks then find the tool sooner. Nobody sees the tasks of another caller.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog

from toolscore.core.errors import InvalidArguments
from toolscore.core.memo import Memo
from toolscore.core.models import Sees, Tool
from toolscore.discovery.search.index import FEW, Doc, Index, Vectors, relevance_of, vector_text
from toolscore.discovery.search.neighbours import vector_index
from toolscore.discovery.search.vectors import VectorCache, digest
from toolscore.embedding import Embedder, EmbeddingError, EmbeddingRules, is_foreign
from toolscore.history.scores import Scores
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database
from toolscore.tools.library import UnifiedToolLibrary

__all__ = ["LEARNED", "SEARCHED", "Found", "ToolSearch", "argument_words", "build_index", "doc_of_tool", "vector_texts"]

log = structlog.get_logger(__name__)

MAX_LIMIT = 100
MAX_QUERY = 4000
RECENT_SEARCHES = 20
"""Searches remembered for each caller, until a call follows."""
FOLLOWED_SECONDS = 900.0
"""A call within 15 minutes of a search may be its outcome."""
USES_PER_TOOL = 8
USES_PER_CALLER = 2000
USE_VECTORS_KEPT = 4 * USES_PER_CALLER
MAX_CALLERS = 1000
MAX_TASK = 500
SEARCHED, LEARNED = "searched", "learned"
"""What gateways tell one another."""
"""Characters of a task that are remembered."""
USE_WEIGHT = 12.0
"""Measured on MetaTool with four past tasks for half of the tools: nDCG@10 of these tools rises from 0.660 to 0.724, of
the others it falls from 0.681 to 0.670."""
USE_NEAR = 0.3
"""A past task counts if its cosine to the new task is larger than this."""
USE_HALF_LIFE_SECONDS = 30 * 86400.0
SCORE_EXPONENT = 0.25
"""Relevance counts more than the score: a tool that always fails loses half its rank, a new tool loses little."""
FOREIGN_HINT = (
    "tools are found by English words here: ask in English (or have the operator install the extra `multilingual`, "
    "for 16 languages)"
)
SOON = 500
"""New texts that a search waits for. More of them are embedded while words alone rank."""
AGAIN_SECONDS = 60.0
"""Texts that could not be embedded are tried again after so long."""
CANDIDATES = 50
"""This many tools more than the limit are considered: a good score may move one of them up."""


class Found(msgspec.Struct, frozen=True):
    """A tool that fits.

    Attributes:
        relevance: for this query, between 0 and 1.
        score: measured, between 0 and 1.
        rank: relevance times a power of the score.
    """

    tool: Tool
    relevance: float
    score: float
    rank: float


class _Use(msgspec.Struct):
    """A task that a tool did. `at`: Unix time of the last time."""

    tool_id: str
    task: str
    at: float


def doc_of_tool(tool: Tool) -> Doc:
    """Make the document of a tool that searches find it by."""
    words: list[str] = []
    argument_words(tool.input_schema, words)
    title = tool.definition.get("title")
    name = f"{tool.name} {title}" if isinstance(title, str) else tool.name
    return Doc(tool.tool_id, name, tool.description, " ".join(words), " ".join((tool.server_id, *tool.tags)))


def argument_words(schema: Any, words: list[str], depth: int = 0) -> None:
    """Add the names, descriptions and values of a schema's arguments to `words`."""
    if not isinstance(schema, dict) or depth > 3 or len(words) > 500:
        return
    properties = schema.get("properties")
    for name, described in properties.items() if isinstance(properties, dict) else ():
        words.append(str(name))
        if isinstance(described, dict):
            text, values = described.get("description"), described.get("enum")
            if isinstance(text, str):
                words.append(text)
            if isinstance(values, list):
                words += [str(value) for value in values[:50]]
            argument_words(described, words, depth + 1)
            argument_words(described.get("items"), words, depth + 1)


async def vector_texts(docs: list[Doc]) -> list[str]:
    """The texts whose vectors represent documents, made in a thread: many take a quarter of a second."""
    return await asyncio.to_thread(lambda: [vector_text(doc) for doc in docs])


async def build_index(
    docs: list[Doc], texts: list[str], vectors: VectorCache, rules: EmbeddingRules, collection: str
) -> Index:
    """Build an index in a thread; without vectors if texts cannot be embedded now.

    Args:
        texts: `vector_texts` of the documents.
        collection: the name of these documents in Milvus.
    """
    try:
        rows = await vectors.of(texts)
        keys = [digest(text) for text in texts]
        known = await asyncio.to_thread(vector_index, rows, keys, rules, f"toolscore_{collection}_{vectors.model}")
    except EmbeddingError as exc:
        log.error("texts cannot be compared by meaning: words alone must do for now", reason=str(exc))
        return await asyncio.to_thread(Index, docs, None)
    width = rows.shape[1] if len(rows) else None
    return await asyncio.to_thread(Index, docs, known, vectors.weight, vectors.words, width)


class ToolSearch:
    """Use as `async with ToolSearch(…) as search`. The index is built at the first search after the library changed.

    Args:
        hidden: servers whose tools are never found.
        embeddings: these cannot change while it is open.
        tell: tells other gateways what was searched for and learned, as `hear` takes it.
    """

    def __init__(
        self,
        library: UnifiedToolLibrary,
        scores: Scores,
        database: Database,
        embedder: Embedder,
        hidden: frozenset[str] = frozenset(),
        embeddings: EmbeddingRules | None = None,
        tell: Callable[..., None] = lambda kind, **members: None,
    ) -> None:
        self._library = library
        self._scores = scores
        self._database = database
        self._embedder = embedder
        self._hidden = hidden
        self._embeddings = embeddings or EmbeddingRules()
        self._tell = tell
        self._index: Index | None = None
        self._generation = -1
        self._building = asyncio.Lock()
        self._filling: asyncio.Task[None] | None = None
        self._searches: OrderedDict[str, deque[tuple[float, str, frozenset[str]]]] = OrderedDict()
        self._uses: dict[str, list[_Use]] = {}
        self._use_vectors: Memo[str, Vectors] = Memo(USE_VECTORS_KEPT)
        self.writes = WriteBehind("past tasks")
        self._vectors = VectorCache(database, embedder, self.writes)

    async def __aenter__(self) -> ToolSearch:
        for row in await self._database.load_uses():
            use = _Use(row["tool_id"], row["task"], row["at"])
            self._uses.setdefault(row["principal"], []).append(use)
        await self.writes.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        await self.writes.__aexit__(*exc)

    async def search(
        self, query: str, *, principal: str, sees: Sees | None = None, limit: int = 10, remember: bool = True
    ) -> list[Found]:
        """Find the tools that fit a task.

        Args:
            query: a task in words, of 1 to 4000 characters.
            sees: which tools exist for the caller; `None`: all.
            limit: 1 to 100.
            remember: whether a call that follows may teach that its tool fits this task.

        Returns:
            The best first; equal ones in the order of their names.

        Raises:
            InvalidArguments: no query, or a limit out of bounds.
        """
        if not query.strip() or len(query) > MAX_QUERY:
            raise InvalidArguments(f"`query` must be a task in words, of 1 to {MAX_QUERY} characters")
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidArguments(f"`limit` must be from 1 to {MAX_LIMIT}, found {limit}")
        index = await self.index()
        if not len(index):
            return []
        uses = self._uses.get(principal, [])
        total, touched = await asyncio.to_thread(self._rank, index, query, list(uses))
        found: list[Found] = []
        for number in (-total).argsort(kind="stable").tolist():
            if (total[number] <= 0 and len(index) > FEW) or len(found) >= CANDIDATES + limit:
                break
            tool = self._library.find(index.docs[number].key, sees) if touched[number] > 0 else None
            if tool is not None:
                found.append(self.scored(tool, relevance_of(float(total[number]))))
        found.sort(key=lambda one: (-one.rank, one.tool.tool_id))
        found = found[:limit]
        if remember:
            tool_ids = [one.tool.tool_id for one in found]
            self._remember_search(principal, query[:MAX_TASK], tool_ids)
            self._tell(SEARCHED, principal=principal, task=query[:MAX_TASK], tool_ids=tool_ids)
        return found

    def scored(self, tool: Tool, relevance: float) -> Found:
        """A tool of that relevance, with its score and the rank that both give it."""
        score = self._scores.of(tool).value
        return Found(tool, relevance, score, round(relevance * score**SCORE_EXPONENT, 4))

    def hint(self, query: str) -> str | None:
        """What would find more; `None`: nothing that is known of."""
        if self._embedder.english and is_foreign(query):
            return FOREIGN_HINT
        return None

    def hear(self, told: dict[str, Any]) -> None:
        """Take what another gateway was searched for, or has learned: a call that follows may come in anywhere."""
        principal, task = str(told["principal"]), str(told["task"])
        if told["kind"] == SEARCHED:
            self._remember_search(principal, task, told["tool_ids"])
            return
        searches = self._searches.get(principal, deque())
        for search in [one for one in searches if one[1] == task]:
            searches.remove(search)
        self._note(principal, str(told["tool_id"]), task)

    def succeeded(self, principal: str, tool_id: str) -> None:
        """Learn from a call that succeeded: the tool fits the task by which its caller found it last."""
        searches = self._searches.get(principal)
        if not searches:
            return
        now = time.monotonic()
        while searches and now - searches[0][0] > FOLLOWED_SECONDS:
            searches.popleft()
        found = next((one for one in reversed(searches) if tool_id in one[2]), None)
        if found is not None:
            searches.remove(found)
            self._learn(principal, tool_id, found[1])
            self._tell(LEARNED, principal=principal, task=found[1], tool_id=tool_id)

    def forget(self, tool_ids: Iterable[str]) -> None:
        """Forget the past tasks of tools that are gone for good."""
        gone = set(tool_ids)
        for principal, uses in self._uses.items():
            self._uses[principal] = [use for use in uses if use.tool_id not in gone]
        ids = sorted(gone)
        if ids:
            self.writes.put(lambda: self._database.delete_uses(ids))

    # Learning

    def _remember_search(self, principal: str, task: str, tool_ids: Iterable[str]) -> None:
        if len(self._searches) >= MAX_CALLERS and principal not in self._searches:
            self._searches.popitem(last=False)
        searches = self._searches.setdefault(principal, deque(maxlen=RECENT_SEARCHES))
        searches.append((time.monotonic(), task, frozenset(tool_ids)))
        self._searches.move_to_end(principal)

    def _learn(self, principal: str, tool_id: str, task: str) -> None:
        if self._note(principal, tool_id, task):
            row = {"principal": principal, "tool_id": tool_id, "task": task, "at": time.time()}
            self.writes.put(lambda: self._database.save_use({**row, "use_id": digest(principal, tool_id, task)}))

    def _note(self, principal: str, tool_id: str, task: str) -> bool:
        """Remember that a tool did a task. Returns whether there is room for its caller."""
        if principal not in self._uses and len(self._uses) >= MAX_CALLERS:
            return False
        uses = self._uses.setdefault(principal, [])
        known = next((use for use in uses if use.tool_id == tool_id and use.task == task), None)
        if known is not None:
            known.at = time.time()
        else:
            own = [use for use in uses if use.tool_id == tool_id]
            if len(own) >= USES_PER_TOOL:
                self._drop(principal, min(own, key=lambda use: use.at))
            elif len(uses) >= USES_PER_CALLER:
                self._drop(principal, min(uses, key=lambda use: use.at))
            uses.append(_Use(tool_id, task, time.time()))
        return True

    def _drop(self, principal: str, use: _Use) -> None:
        self._uses[principal].remove(use)
        use_id = digest(principal, use.tool_id, use.task)
        self.writes.put(lambda: self._database.delete_use(use_id))

    # Ranking; in a thread

    def _rank(self, index: Index, query: str, uses: list[_Use]) -> tuple[Vectors, Vectors]:
        """Rank all tools: scores, and `touched` as in `Ranking`, both with what past tasks add."""
        ranking = index.rank(query, self._embedder.embed)
        if not uses or ranking.vector is None:
            return ranking.scores, ranking.touched
        bonus = self._bonus(index, ranking.vector, uses)
        return ranking.scores + USE_WEIGHT * bonus, ranking.touched + bonus

    def _bonus(self, index: Index, vector: Vectors, uses: list[_Use]) -> Vectors:
        """What past tasks add for each tool: the nearest task counts, and fades with its age."""
        import numpy

        vectors = {use.task: self._use_vectors.get(use.task) for use in uses}
        missing = [task for task, vector in vectors.items() if vector is None]
        if missing:
            try:
                embedded = self._embedder.embed(missing)
            except EmbeddingError as exc:
                log.warning("a query is ranked without past tasks", reason=str(exc))
                return numpy.zeros(len(index), numpy.float32)
            for task, one in zip(missing, embedded, strict=True):
                vectors[task] = self._use_vectors[task] = one
        bonus = numpy.zeros(len(index), numpy.float32)
        now = time.time()
        for use in uses:
            place = index.places.get(use.tool_id)
            if place is not None:
                near = (float(vectors[use.task] @ vector) - USE_NEAR) / (1 - USE_NEAR)
                age = 0.5 ** ((now - use.at) / USE_HALF_LIFE_SECONDS)
                bonus[place] = max(bonus[place], near * age)
        return bonus

    # Building

    async def index(self, *, whole: bool = False) -> Index:
        """Return the index of all tools as they are now; build it if the library has changed.

        Args:
            whole: wait for the vectors where many are new; else words alone rank until they are there.
        """
        if not self._is_current():
            async with self._building:
                if not self._is_current():
                    await self._build()
        while whole and self._filling is not None:
            await asyncio.wait({self._filling})
        assert self._index is not None
        return self._index

    async def _build(self) -> None:
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
            self._filling = None
        if self._index is not None and self._index.expected_width is not None:
            self._vectors.expect(self._index.expected_width)
            self._use_vectors.clear()
        generation = self._library.texts_generation
        docs = [doc_of_tool(tool) for tool in self._library if tool.server_id not in self._hidden]
        texts = await vector_texts(docs)
        new = await self._vectors.new(texts)
        if new > SOON:
            self._index = await asyncio.to_thread(Index, docs, None)
            self._filling = asyncio.create_task(self._fill(docs, texts, new))
        else:
            self._index = await build_index(docs, texts, self._vectors, self._embeddings, "tools")
        self._generation = generation

    async def _fill(self, docs: list[Doc], texts: list[str], new: int) -> None:
        """Put an index with vectors in the place of the one without."""
        log.info("tools are read: until that is done they are found by their words", texts=new)
        started = time.monotonic()
        try:
            self._index = await build_index(docs, texts, self._vectors, self._embeddings, "tools")
            log.info("tools are read", texts=new, seconds=round(time.monotonic() - started, 1))
        finally:
            self._filling = None

    def _is_current(self) -> bool:
        if self._index is None or self._generation != self._library.texts_generation:
            return False
        if self._index.expected_width is not None and self._filling is None:
            return False
        lacks_vectors = len(self._index) and self._index.vectors is None and self._filling is None
        return not lacks_vectors or time.monotonic() - self._index.built_at < AGAIN_SECONDS
