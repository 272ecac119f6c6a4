"""MCPSearchTool: which server in the world can do a task. One search over all sources of `sources.py`."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter
from typing import Any

import msgspec

from toolscore.core.errors import InvalidArguments, ServerNotFound, UpstreamUnavailable
from toolscore.core.memo import Memo
from toolscore.core.names import nearest
from toolscore.core.words import STOP, raw_words, stem, terms
from toolscore.discovery.catalog.registry import read_versions
from toolscore.discovery.catalog.server_json import Entry, entries_of
from toolscore.discovery.catalog.sources import CatalogRules, Sources, SourceState
from toolscore.discovery.search.index import FEW, Doc, Index
from toolscore.discovery.search.search import build_index, vector_texts
from toolscore.discovery.search.vectors import VectorCache
from toolscore.embedding import Embedder, EmbeddingRules
from toolscore.stores.database import Database
from toolscore.upstreams.http_client import HttpClient

__all__ = ["Candidate", "MCPSearchTool", "doc_of_entry"]

MAX_QUERY = 1000
MAX_LIMIT = 100
NAMED = 3
"""A query of so few words that has the name of a well-known server means that one."""
VERSIONS_SECONDS = 300.0
"""How long the versions of a server are remembered."""
VERSIONS_KEPT = 500
"""Servers whose versions are remembered."""


class Candidate(msgspec.Struct, frozen=True):
    """A server that may do the task.

    Attributes:
        relevance: between 0 and 1.
        matched: words of the query that it has.
        nearest_tool: its tool with the most words of the query; `None`: no tool has any.
    """

    entry: Entry
    relevance: float
    matched: list[str]
    nearest_tool: str | None


def doc_of_entry(entry: Entry) -> Doc:
    """Make the document of a server that searches find it by."""
    extra = entry.extra
    tools = " ".join(f"{tool['name']} {tool.get('description') or ''}" for tool in entry.tools)
    packages = " ".join(str(package.get("identifier") or "") for package in entry.packages)
    labels = [str(label) for key in ("categories", "tags") for label in extra.get(key) or []]
    name = f"{entry.name.partition('/')[2]} {entry.server.get('title') or ''}"
    return Doc(_key_of(entry), name, entry.description, f"{tools} {packages}", " ".join(labels))


def _key_of(entry: Entry) -> str:
    return f"{entry.source}\0{entry.name}"


class MCPSearchTool:
    """Use as `async with MCPSearchTool(…) as catalog`.

    Args:
        http: for registries.
    """

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        http: HttpClient,
        rules: CatalogRules | None = None,
        embeddings: EmbeddingRules | None = None,
    ) -> None:
        self._embedder = embedder
        self._http = http
        self._sources = Sources(database, http, rules or CatalogRules())
        self._embeddings = embeddings or EmbeddingRules()
        self._index: Index | None = None
        self._by_key: dict[str, Entry] = {}
        self._indexed_generation = -1
        self._listed: tuple[int, list[tuple[str, Entry]]] = (-1, [])
        self._building = asyncio.Lock()
        self._known_versions: Memo[str, tuple[float, list[Entry]]] = Memo(VERSIONS_KEPT)
        self._vectors = VectorCache(database, embedder, self._sources.writes)

    async def __aenter__(self) -> MCPSearchTool:
        await self._sources.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._sources.__aexit__(*exc)

    def use(self, rules: CatalogRules) -> None:
        """Put other rules in force."""
        self._sources.use(rules)

    # Searching

    async def search(self, query: str, *, limit: int = 10) -> list[Candidate]:
        """Find the servers that may do a task.

        Args:
            query: a task or keywords, of 1 to 1000 characters.
            limit: 1 to 100.

        Returns:
            The best first, one for each name.

        Raises:
            InvalidArguments: no query, or a limit out of bounds.
        """
        if not query.strip() or len(query) > MAX_QUERY:
            raise InvalidArguments(f"`q` must be a task or keywords, of 1 to {MAX_QUERY} characters")
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidArguments(f"`limit` must be from 1 to {MAX_LIMIT}, found {limit}")
        await self._sources.bring_up_to_date()
        index, by_key = await self._current_index()
        if not len(index):
            return []
        ranking = await asyncio.to_thread(index.rank, query, self._embedder.embed)
        found: list[Candidate] = []
        words = raw_words(query)
        asked = {stem(word): word for word in words if word not in STOP}
        meant = {entry.name for word in words if len(words) <= NAMED and (entry := self._sources.called(word))}
        order = (-ranking.scores).argsort(kind="stable").tolist()
        if meant:
            order.sort(key=lambda one: by_key[index.docs[one].key].name not in meant)
        for number in order:
            if len(found) == limit or (ranking.scores[number] <= 0 and len(index) > FEW):
                break
            if ranking.touched[number] > 0:
                doc = index.docs[number]
                found.append(_candidate(by_key[doc.key], doc, float(ranking.scores[number]), asked))
        return found

    async def _current_index(self) -> tuple[Index, dict[str, Entry]]:
        """The index over all sources as they are now, and the entries by its keys."""
        if self._index is not None and self._indexed_generation == self._sources.generation:
            return self._index, self._by_key
        async with self._building:
            if self._index is None or self._indexed_generation != self._sources.generation:
                generation = self._sources.generation
                by_key = {_key_of(entry): entry for entry in self._sources.first_of_each().values()}
                docs = [doc_of_entry(entry) for entry in by_key.values()]
                self._index = await build_index(
                    docs, await vector_texts(docs), self._vectors, self._embeddings, "servers"
                )
                self._by_key, self._indexed_generation = by_key, generation
            return self._index, self._by_key

    # Looking up

    async def get(self, name: str, version: str | None = None) -> Entry:
        """Look up a server.

        Args:
            name: its name; or what most people call it; or the part after the slash, or a package's name, where only
                one server has it.
            version: exact; `None`: the latest.

        Raises:
            ServerNotFound: with the nearest names. UpstreamUnavailable: its registry must be asked and cannot be.
        """
        await self._sources.bring_up_to_date()
        entry = self._find(name)
        if version is None or version in ("latest", entry.version):
            return entry
        found = await self._versions_of(entry)
        for one in found:
            if one.version == version:
                return one
        if any("version" not in package for package in entry.packages):  # the catalog leaves the version open
            packages = [{**package, "version": version} for package in entry.packages]
            return msgspec.structs.replace(entry, server={**entry.server, "version": version, "packages": packages})
        known = ", ".join(one.version for one in found[:10]) or entry.version or "none is known"
        raise ServerNotFound(f"{entry.name} has no version {version!r}", suggestion=f"versions: {known}")

    async def known(self, name: str) -> Entry:
        """Look up a server in the last copies, by its whole name: no registry is asked for its versions.

        Raises:
            ServerNotFound: no catalog has it.
        """
        await self._sources.bring_up_to_date()
        entry = self._find(name)
        if entry.name != name:
            raise ServerNotFound(f"no catalog has a server {name!r:.200}")
        return entry

    async def versions(self, name: str) -> list[Entry]:
        """List the versions of a server, the newest first.

        Raises:
            ServerNotFound: with the nearest names. UpstreamUnavailable: its registry cannot be asked.
        """
        await self._sources.bring_up_to_date()
        return await self._versions_of(self._find(name))

    async def page(
        self, *, cursor: str | None = None, limit: int = 30, search: str | None = None,
        updated_since: str | None = None, version: str | None = None,
    ) -> tuple[list[Entry], str | None]:  # fmt: skip
        """List a page of all servers by their names, as the MCP Registry API v0.1 does.

        Args:
            cursor: of the page; `None`: the first.
            search: part of the name.
            updated_since: RFC 3339.
            version: exact, or `latest`.

        Returns:
            The page, and the cursor of the next; `None`: this is the last.

        Raises:
            InvalidArguments: `updated_since` is no time.
        """
        await self._sources.bring_up_to_date()
        since = _moment(updated_since) if updated_since else None
        if self._listed[0] != self._sources.generation:
            self._listed = (self._sources.generation, sorted(self._sources.first_of_each().items()))
        listed = self._listed[1]
        found: list[Entry] = []
        start = bisect_right(listed, cursor, key=itemgetter(0)) if cursor is not None else 0
        for name, entry in islice(listed, start, None):
            if search and search.casefold() not in name.casefold():
                continue
            if version not in (None, "", "latest", entry.server["version"]):
                continue
            if since is not None and not _is_since(entry.official().get("updatedAt"), since):
                continue
            if len(found) == limit:
                return found, found[-1].name
            found.append(entry)
        return found, None

    def _find(self, name: str) -> Entry:
        everywhere = self._sources.by_source()
        for entries in everywhere:
            if name in entries:
                return entries[name]
        meant = self._sources.called(name)
        short = {
            entry.name: entry
            for entries in reversed(everywhere)
            for entry in entries.values()
            if entry.name.partition("/")[2].casefold() == name.casefold()
            or any(package.get("identifier") == name for package in entry.packages)
        }
        own = [entry for entry in short.values() if self._sources.is_own(entry)]
        if meant is not None and not own:
            return meant
        if len(own) == 1:
            return own[0]
        if len(short) == 1:
            return next(iter(short.values()))
        if short:
            raise ServerNotFound(f"{name!r} is the name of several servers", suggestion=", ".join(sorted(short)[:10]))
        names = nearest(name, {key: None for entries in everywhere for key in entries})
        suggestion = f"nearest: {', '.join(names)}" if names else "search for it: toolscore catalog search WORDS"
        raise ServerNotFound(f"no catalog has a server {name!r}", suggestion=suggestion)

    async def _versions_of(self, entry: Entry) -> list[Entry]:
        state = self._sources.state(entry.source)
        if state is None or state.kind != "registry":
            return [entry]
        known = self._known_versions.get(entry.name)
        if known is not None and time.monotonic() - known[0] < VERSIONS_SECONDS:
            return known[1]
        try:
            page = await read_versions(self._http, state.url, entry.name)
        except (OSError, TimeoutError, ValueError) as exc:
            raise UpstreamUnavailable(f"the registry {state.name} cannot be asked for versions: {exc}") from exc
        found = list(entries_of(page, entry.source, vouched=entry.vouched, every_version=True)) or [entry]
        self._known_versions[entry.name] = (time.monotonic(), found)
        return found

    # Sources

    async def states(self) -> list[SourceState]:
        """List the states of the sources."""
        await self._sources.bring_up_to_date()
        return self._sources.states()

    async def refresh(self) -> list[SourceState]:
        """Copy every registry now, and wait for it; return the states of the sources."""
        await self._sources.bring_up_to_date()
        await self._sources.copy_all()
        return self._sources.states()


def _candidate(entry: Entry, doc: Doc, score: float, asked: Mapping[str, str]) -> Candidate:
    has = set(terms(f"{doc.name} {doc.text} {doc.arguments} {doc.server}"))
    matched = [word for term, word in asked.items() if term in has]
    tools = [
        (len(asked.keys() & set(terms(f"{t['name']} {t.get('description') or ''}"))), t["name"]) for t in entry.tools
    ]
    best = max(tools, key=lambda one: one[0], default=(0, None))
    return Candidate(entry, round(score / (score + 6), 4), matched, best[1] if best[0] else None)


def _moment(text: str) -> datetime:
    """A time of RFC 3339.

    Raises:
        InvalidArguments: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArguments(f"{text!r:.60} is no time such as 2026-07-01T12:00:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _is_since(updated_at: Any, moment: datetime) -> bool:
    """Whether a registry says that something was updated then or later."""
    try:
        return _moment(str(updated_at)) >= moment
    except InvalidArguments:
        return False
