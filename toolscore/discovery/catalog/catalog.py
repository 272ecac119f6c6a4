"""MCPSearchTool: which server in the world would do. One search over catalogs in the official format (server.json).

Sources: registries that speak the MCP Registry API v0.1, a file of the operator's, and a snapshot that comes with us.
A registry is copied whole, once a day, and its copy is kept in the database: a search never waits for a network that is
slow, and works without one.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
import zlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
import structlog

from toolscore.core.errors import InvalidArguments, ServerNotFound, UpstreamUnavailable
from toolscore.core.models import shown_url
from toolscore.core.names import nearest
from toolscore.discovery.search.index import FEW, STOP, Doc, Index, raw_words, stem, terms
from toolscore.discovery.search.neighbours import IndexRules
from toolscore.discovery.search.search import indexed
from toolscore.discovery.search.vectors import VectorCache
from toolscore.embedding import Embedder
from toolscore.stores import Database, WriteBehind
from toolscore.stores.database import StoreError

__all__ = ["Candidate", "CatalogRules", "Entry", "MCPSearchTool", "SourceState", "doc_of"]

log = structlog.get_logger(__name__)

OFFICIAL = "io.modelcontextprotocol.registry/official"
PUBLISHER = "io.modelcontextprotocol.registry/publisher-provided"
NAME = re.compile(r"^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$")

MAX_QUERY = 1000
MAX_LIMIT = 100
PAGE = 100
MAX_ENTRIES = 50_000
MAX_PAGE_BYTES = 8 * 1024 * 1024
MAX_ENTRY_BYTES = 64 * 1024
MAX_COPY_BYTES = 64 * 1024 * 1024
PAGE_SECONDS = 20.0
COPY_SECONDS = 900.0
VERSIONS_SECONDS = 300.0
"""How long the versions of a server are taken as they were told."""
MAX_VERSIONS = 500
FIRST_COPY_SECONDS = 3.0
"""How long the first search of all waits for a registry that was never copied."""
RETRY_SECONDS = 300.0
CURSOR_BYTES = 500


class CatalogRules(msgspec.Struct, frozen=True):
    """Which catalogs there are.

    Attributes:
        registries: base addresses of registries that speak the MCP Registry API v0.1.
        file: a JSON file of the operator's: a list of server.json objects, or a page as registries serve it.
        snapshot: whether to search what comes with ToolScore.
        max_age_seconds: after it a registry's copy is made anew, in the background.
    """

    registries: tuple[str, ...] = ()
    file: str | None = None
    snapshot: bool = True
    max_age_seconds: float = 86400.0


class Entry(msgspec.Struct, frozen=True):
    """A server in a catalog.

    Attributes:
        server: a server.json object, as its source gave it.
        meta: what the registry says of it.
        vouched: whether the source checks that the name belongs to its publisher.
    """

    server: dict[str, Any]
    meta: dict[str, Any]
    source: str
    vouched: bool = False

    @property
    def name(self) -> str:
        return str(self.server["name"])

    @property
    def version(self) -> str:
        return str(self.server.get("version") or "")

    @property
    def publisher(self) -> str:
        """The namespace, such as `io.github.somebody`."""
        return self.name.partition("/")[0]

    @property
    def packages(self) -> list[dict[str, Any]]:
        return _dicts(self.server.get("packages"))

    @property
    def remotes(self) -> list[dict[str, Any]]:
        return _dicts(self.server.get("remotes"))

    @property
    def extra(self) -> dict[str, Any]:
        """What the publisher adds: a longer description, tags, tools, a licence."""
        meta = self.server.get("_meta")
        given = meta.get(PUBLISHER) if isinstance(meta, dict) else None
        return given if isinstance(given, dict) else {}

    @property
    def description(self) -> str:
        return str(self.extra.get("description") or self.server.get("description") or "")

    @property
    def tools(self) -> list[dict[str, Any]]:
        return _dicts(self.extra.get("tools"))

    def official(self) -> dict[str, Any]:
        found = self.meta.get(OFFICIAL)
        return found if isinstance(found, dict) else {}

    def needs(self, package: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """The environment variables and headers that somebody must set: `name`, `secret`, `description`.

        Args:
            package: of it; `None`: its first, or its first remote.
        """
        if package is None and self.packages:
            package = self.packages[0]
        inputs: list[Any] = package.get("environmentVariables") or [] if package is not None else []
        for remote in self.remotes[:1] if package is None else []:
            inputs = remote.get("headers") or []
        return [
            {"name": one["name"], "secret": bool(one.get("isSecret")), "description": one.get("description")}
            for one in inputs
            if isinstance(one, dict)
            and one.get("isRequired")
            and "name" in one
            and one.get("value") is None
            and one.get("default") is None
        ]


class Candidate(msgspec.Struct, frozen=True):
    """A server that may do, and why it came up."""

    entry: Entry
    relevance: float
    matched: list[str]
    nearest_tool: str | None


class SourceState(msgspec.Struct):
    """How a source stands.

    Attributes:
        name: as it may be shown: without what is secret in an address.
        url: of a registry, whole.
        age_seconds: of its copy; `None`: there is none, or it needs none.
    """

    name: str
    kind: Literal["registry", "file", "snapshot"]
    url: str = ""
    entries: int = 0
    fetched_at_ms: int | None = None
    error: str | None = None
    tried_at: float | None = None

    @property
    def age_seconds(self) -> float | None:
        return round(time.time() - self.fetched_at_ms / 1000, 1) if self.fetched_at_ms is not None else None


def doc_of(entry: Entry) -> Doc:
    """What there is to find a server by."""
    extra = entry.extra
    tools = " ".join(f"{tool['name']} {tool.get('description') or ''}" for tool in entry.tools)
    packages = " ".join(str(package.get("identifier") or "") for package in entry.packages)
    labels = [str(label) for key in ("categories", "tags") for label in extra.get(key) or []]
    name = f"{entry.name.partition('/')[2]} {entry.server.get('title') or ''}"
    return Doc(f"{entry.source}\0{entry.name}", name, entry.description, f"{tools} {packages}", " ".join(labels))


class MCPSearchTool:
    """Use as `async with MCPSearchTool(…) as catalog`."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        http: aiohttp.ClientSession,
        rules: CatalogRules,
        index_rules: IndexRules | None = None,
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._http = http
        self._rules = rules
        self._index_rules = index_rules or IndexRules()
        self._entries: dict[str, dict[str, Entry]] = {}
        self._states: dict[str, SourceState] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        self._index: Index | None = None
        self._by_key: dict[str, Entry] = {}
        self._generation = 0
        self._indexed_at = -1
        self._told: dict[str, tuple[float, list[Entry]]] = {}
        self._building = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._loaded = False
        self.writes = WriteBehind("catalogs")
        self._vectors = VectorCache(database, embedder, self.writes)

    async def __aenter__(self) -> MCPSearchTool:
        await self.writes.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        tasks = list(self._refreshing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.writes.__aexit__(*exc)

    def use(self, rules: CatalogRules) -> None:
        """Search other catalogs from now on."""
        if rules != self._rules:
            self._rules = rules
            self._loaded = False

    async def search(self, query: str, *, limit: int = 10) -> list[Candidate]:
        """The servers that may do, the best first; one entry a name.

        Raises:
            InvalidArguments: no query, or a limit out of bounds.
        """
        if not query.strip() or len(query) > MAX_QUERY:
            raise InvalidArguments(f"`q` must be a task or keywords, of 1 to {MAX_QUERY} characters")
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidArguments(f"`limit` must be from 1 to {MAX_LIMIT}, found {limit}")
        await self._current()
        index, by_key = await self._ranked()
        if not len(index):
            return []
        ranking = await asyncio.to_thread(index.rank, query, self._embedder.embed)
        found: list[Candidate] = []
        seen: set[str] = set()
        asked = {stem(word): word for word in raw_words(query) if word not in STOP}
        for number in (-ranking.scores).argsort(kind="stable").tolist():
            if len(found) == limit or (ranking.scores[number] <= 0 and len(index) > FEW):
                break
            entry = by_key[index.docs[number].key]
            if ranking.touched[number] <= 0 or entry.name in seen:
                continue
            seen.add(entry.name)
            found.append(_candidate(entry, index.docs[number], float(ranking.scores[number]), asked))
        return found

    async def get(self, name: str, version: str | None = None) -> Entry:
        """A server by its name (or by the part after the slash, where that is one server's), in this version.

        Raises:
            ServerNotFound: with the nearest names. UpstreamUnavailable: its registry has to be asked and cannot be.
        """
        await self._current()
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
        known = ", ".join(one.version for one in found[:10]) or entry.version
        raise ServerNotFound(f"{entry.name} has no version {version!r}", suggestion=f"versions: {known}")

    def _find(self, name: str) -> Entry:
        everywhere = list(self._entries.values())
        for entries in everywhere:
            if name in entries:
                return entries[name]
        short = {
            entry.name: entry
            for entries in reversed(everywhere)
            for entry in entries.values()
            if entry.name.partition("/")[2].casefold() == name.casefold()
            or any(package.get("identifier") == name for package in entry.packages)
        }
        if len(short) == 1:
            return next(iter(short.values()))
        if short:
            raise ServerNotFound(f"{name!r} is the name of several servers", suggestion=", ".join(sorted(short)[:10]))
        names = nearest(name, {key: None for entries in everywhere for key in entries})
        suggestion = f"nearest: {', '.join(names)}" if names else "search for it: toolscore catalog search WORDS"
        raise ServerNotFound(f"no catalog has a server {name!r}", suggestion=suggestion)

    async def versions(self, name: str) -> list[Entry]:
        """The versions of a server, the newest first.

        Raises:
            ServerNotFound.
        """
        await self._current()
        return await self._versions_of(self._find(name))

    async def _versions_of(self, entry: Entry) -> list[Entry]:
        state = self._states.get(entry.source)
        if state is None or state.kind != "registry":
            return [entry]
        told = self._told.get(entry.name)
        if told is not None and time.monotonic() - told[0] < VERSIONS_SECONDS:
            return told[1]
        try:
            page = await self._page(f"{state.url}/v0.1/servers/{quote(entry.name, safe='')}/versions")
        except (OSError, TimeoutError, ValueError) as exc:
            raise UpstreamUnavailable(f"the registry {state.name} cannot be asked for versions: {exc}") from exc
        found = list(_entries(page, entry.source, vouched=entry.vouched, every_version=True)) or [entry]
        if len(self._told) >= MAX_VERSIONS:
            self._told.clear()
        self._told[entry.name] = (time.monotonic(), found)
        return found

    async def known(self, name: str) -> Entry:
        """A server by its whole name, as it stands in the last copy: nobody is asked.

        Raises:
            ServerNotFound.
        """
        await self._current()
        entry = self._find(name)
        if entry.name != name:
            raise ServerNotFound(f"no catalog has a server {name!r:.200}")
        return entry

    async def page(
        self, *, cursor: str | None = None, limit: int = 30, search: str | None = None,
        updated_since: str | None = None, version: str | None = None,
    ) -> tuple[list[Entry], str | None]:  # fmt: skip
        """A page of all catalogs, by name, as the Registry API has it; and the cursor of the next."""
        await self._current()
        everything: dict[str, Entry] = {}
        for entries in reversed(list(self._entries.values())):
            everything |= entries
        found: list[Entry] = []
        for name in sorted(everything):
            entry = everything[name]
            if cursor is not None and name <= cursor:
                continue
            if search and search.casefold() not in name.casefold():
                continue
            if version not in (None, "", "latest", entry.version):
                continue
            if updated_since and str(entry.official().get("updatedAt") or "") < updated_since:
                continue
            if len(found) == limit:
                return found, found[-1].name
            found.append(entry)
        return found, None

    async def states(self) -> list[SourceState]:
        """How the sources stand."""
        await self._current()
        return list(self._states.values())

    async def refresh(self) -> list[SourceState]:
        """Copy every registry now, and wait for it."""
        await self._current()
        for source in [state.name for state in self._states.values() if state.kind == "registry"]:
            self._refresh(source)
        await asyncio.gather(*self._refreshing.values(), return_exceptions=True)
        return list(self._states.values())

    # Sources

    async def _current(self) -> None:
        """Have every source: registries from their last copy, and a new one on its way where it is old."""
        async with self._loading:
            if not self._loaded:
                await self._load()
                self._loaded = True
        first = []
        for state in self._states.values():
            if state.kind != "registry" or state.name in self._refreshing:
                continue
            age = state.age_seconds
            tried = state.tried_at is not None and time.monotonic() - state.tried_at < RETRY_SECONDS
            if (age is None or age > self._rules.max_age_seconds) and not tried:
                task = self._refresh(state.name)
                if age is None:
                    first.append(task)
        if first:
            await asyncio.wait(first, timeout=FIRST_COPY_SECONDS)

    async def _load(self) -> None:
        self._entries, self._states = {}, {}
        if self._rules.file is not None:
            state = self._states[self._rules.file] = SourceState(self._rules.file, "file")
            try:
                page = json.loads(await asyncio.to_thread(Path(self._rules.file).read_text, "utf-8"))
                page = page if isinstance(page, dict) else {"servers": page}
                self._put(state, _entries(page, self._rules.file))
            except (OSError, ValueError) as exc:
                state.error = str(exc)
                log.error("the file of servers cannot be read", file=self._rules.file, error=str(exc))
        for url in self._rules.registries:
            registry = shown_url(url)
            state = self._states[registry] = SourceState(registry, "registry", url.rstrip("/"))
            self._entries[registry] = {}
            try:
                kept = await self._database.load_catalog(registry)
                if kept is not None:
                    pages = json.loads(zlib.decompress(kept[0]))
                    state.fetched_at_ms = kept[1]
                    self._put(state, _entries({"servers": pages}, registry, vouched=True))
            except (StoreError, ValueError, zlib.error) as exc:
                log.warning("a registry's copy cannot be read", registry=registry, error=str(exc))
        if self._rules.snapshot:
            state = self._states["snapshot"] = SourceState("snapshot", "snapshot")
            raw = (files("toolscore.discovery") / "data" / "catalog.jsonl.gz").read_bytes()
            servers = [json.loads(line) for line in gzip.decompress(raw).splitlines()]
            self._put(state, _entries({"servers": servers}, "snapshot"))
        self._generation += 1

    def _put(self, state: SourceState, entries: Iterable[Entry]) -> None:
        self._entries[state.name] = {entry.name: entry for entry in entries}
        state.entries = len(self._entries[state.name])
        state.error = None
        self._generation += 1

    def _refresh(self, registry: str) -> asyncio.Task[None]:
        task = self._refreshing.get(registry)
        if task is None:
            task = self._refreshing[registry] = asyncio.create_task(self._copy(registry))
            task.add_done_callback(lambda _: self._refreshing.pop(registry, None))
        return task

    async def _copy(self, registry: str) -> None:
        """Copy a registry whole. At any failure the last copy stays."""
        state = self._states[registry]
        state.tried_at = time.monotonic()
        servers: list[dict[str, Any]] = []
        seen: set[str | None] = set()
        cursor: str | None = None
        size = 0
        try:
            async with asyncio.timeout(COPY_SECONDS):
                while cursor not in seen and len(servers) < MAX_ENTRIES:
                    seen.add(cursor)
                    asked = {"limit": str(PAGE), "version": "latest", **({"cursor": cursor} if cursor else {})}
                    page = await self._page(f"{state.url}/v0.1/servers?{urlencode(asked)}")
                    for entry in _entries(page, state.name, vouched=True):
                        servers.append({"server": entry.server, "_meta": entry.meta})
                        size += len(msgspec.json.encode(servers[-1]))
                    if size > MAX_COPY_BYTES:
                        raise ValueError(f"it has more than {MAX_COPY_BYTES:,} bytes of servers")
                    metadata = page.get("metadata")
                    cursor = metadata.get("nextCursor") if isinstance(metadata, dict) else None
                    if not cursor:
                        break
                    if not isinstance(cursor, str) or len(cursor) > CURSOR_BYTES:
                        raise ValueError("it gave a cursor that is no text")
        except Exception as exc:  # whatever a registry says, the last copy stays, and the reason is told
            state.error = str(exc) or type(exc).__name__
            log.warning("a registry cannot be copied; its last copy stays", registry=state.name, error=state.error)
            return
        if state is not self._states.get(registry):
            return  # other catalogs are asked for by now
        state.fetched_at_ms = int(time.time() * 1000)
        self._put(state, _entries({"servers": servers}, registry, vouched=True))
        content = await asyncio.to_thread(lambda: zlib.compress(msgspec.json.encode(servers)))
        fetched = state.fetched_at_ms
        self.writes.put(lambda: self._database.save_catalog(registry, content, fetched))
        log.info("a registry was copied", registry=state.name, servers=state.entries)

    async def _page(self, url: str) -> dict[str, Any]:
        """A page of a registry.

        Raises:
            OSError, TimeoutError, ValueError.
        """
        try:
            async with asyncio.timeout(PAGE_SECONDS), self._http.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise OSError(f"it answered {response.status} {response.reason or ''}".rstrip())
                body = bytearray()
                async for chunk in response.content.iter_chunked(65536):
                    body += chunk
                    if len(body) > MAX_PAGE_BYTES:
                        raise ValueError(f"it answered more than {MAX_PAGE_BYTES:,} bytes")
        except aiohttp.ClientError as exc:
            raise OSError(str(exc)) from exc
        page = json.loads(bytes(body))
        if not isinstance(page, dict):
            raise ValueError("its answer is no page of servers")
        return page

    async def _ranked(self) -> tuple[Index, dict[str, Entry]]:
        """The index over all sources as they are now, and the entries that its keys mean."""
        if self._index is not None and self._indexed_at == self._generation:
            return self._index, self._by_key
        async with self._building:
            if self._index is None or self._indexed_at != self._generation:
                generation = self._generation
                by_key: dict[str, Entry] = {}
                names: set[str] = set()
                for entries in self._entries.values():
                    for entry in entries.values():
                        if entry.name not in names:
                            names.add(entry.name)
                            by_key[f"{entry.source}\0{entry.name}"] = entry
                docs = [doc_of(entry) for entry in by_key.values()]
                self._index = await indexed(docs, self._vectors, self._index_rules, "servers")
                self._by_key, self._indexed_at = by_key, generation
            return self._index, self._by_key


def _entries(
    page: Mapping[str, Any], source: str, *, vouched: bool = False, every_version: bool = False
) -> Iterable[Entry]:
    """The servers of a page that can be used, one version of each or all; what is not as it should be is left out."""
    found: dict[str, Entry] = {}
    listed = page.get("servers")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict):
            continue
        inner, about = one.get("server"), one.get("_meta")
        server: dict[str, Any] = inner if isinstance(inner, dict) else one
        name = server.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > 200:
            continue
        try:  # what JSON itself would not carry on: lone surrogates, depth; NaN becomes null
            packed = msgspec.json.encode(server)
            about = msgspec.json.decode(msgspec.json.encode(about))
        except (ValueError, RecursionError):
            continue
        if len(packed) > MAX_ENTRY_BYTES or len(str(about)) > MAX_ENTRY_BYTES:
            continue
        entry = Entry(
            _cleaned(msgspec.json.decode(packed)),
            about if server is inner and isinstance(about, dict) else {},
            source,
            vouched,
        )
        if entry.official().get("status") == "deleted":
            continue
        key = f"{name}\0{entry.version}" if every_version else name
        if key not in found or entry.official().get("isLatest"):
            found[key] = entry
    return found.values()


def _cleaned(server: dict[str, Any]) -> dict[str, Any]:
    """A server.json object whose members, where they are there, are what they should be: any registry may lie."""
    cleaned = {key: value for key, value in server.items() if key not in ("packages", "remotes", "_meta", "repository")}
    for key in ("description", "title", "version", "websiteUrl"):
        if key in cleaned and not isinstance(cleaned[key], str):
            del cleaned[key]
    cleaned.setdefault("description", str(server["name"]).partition("/")[2])
    cleaned.setdefault("version", "0.0.0")
    cleaned["packages"] = [
        {
            **package,
            "transport": package["transport"] if isinstance(package.get("transport"), dict) else {"type": "stdio"},
            **{key: _named(package.get(key)) for key in ("runtimeArguments", "packageArguments") if key in package},
            **{key: _named(package.get(key), "name") for key in ("environmentVariables",) if key in package},
        }
        for package in _dicts(server.get("packages"))
        if isinstance(package.get("registryType"), str)
        and isinstance(package.get("identifier"), str)
        and isinstance(package.get("version", ""), str)
    ]
    cleaned["remotes"] = [
        {**remote, **({"headers": _named(remote["headers"], "name")} if "headers" in remote else {})}
        for remote in _dicts(server.get("remotes"))
        if isinstance(remote.get("type"), str) and isinstance(remote.get("url"), str)
    ]
    if isinstance(server.get("repository"), dict):
        cleaned["repository"] = server["repository"]
    meta = server.get("_meta")
    given = meta.get(PUBLISHER) if isinstance(meta, dict) else None
    if isinstance(meta, dict):
        cleaned["_meta"] = {key: value for key, value in meta.items() if key != PUBLISHER}
    if isinstance(given, dict):
        extra = dict(given)
        for key in ("categories", "tags"):
            found = extra.get(key)
            extra[key] = [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
        extra["tools"] = [
            {**tool, "description": str(tool.get("description") or "")}
            for tool in _dicts(extra.get("tools"))
            if isinstance(tool.get("name"), str)
        ]
        cleaned["_meta"][PUBLISHER] = extra
    return cleaned


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _named(found: Any, name: str | None = None) -> list[dict[str, Any]]:
    """A list of inputs; what is no object, or lacks its name, is shown as one that nobody accepts."""
    listed = found if isinstance(found, list) else [found]
    return [
        one if isinstance(one, dict) and (name is None or isinstance(one.get(name), str)) else {name or "value": "?"}
        for one in listed
    ]


def _candidate(entry: Entry, doc: Doc, score: float, asked: Mapping[str, str]) -> Candidate:
    has = set(terms(f"{doc.name} {doc.text} {doc.arguments} {doc.server}"))
    matched = [word for term, word in asked.items() if term in has]
    tools = [
        (len(asked.keys() & set(terms(f"{t['name']} {t.get('description') or ''}"))), t["name"]) for t in entry.tools
    ]
    best = max(tools, key=lambda one: one[0], default=(0, None))
    return Candidate(entry, round(score / (score + 6), 4), matched, best[1] if best[0] else None)
