"""Where servers are known from: registries, the operator's file, and what comes with ToolScore: the servers that most
people mean by a name, which were tried, and a snapshot of public ones, as it is.

A registry is copied as a whole, once a day, and the copy is kept in the database. So nobody waits for a slow registry
after the first copy, and everything works without a network. Searching the copies is `catalog.py`'s work.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import structlog
from pydantic import Field

from toolscore.core.models import shown_url
from toolscore.core.rules import HttpUrl, Rules
from toolscore.discovery.catalog.registry import read_servers
from toolscore.discovery.catalog.server_json import PUBLISHER, WELL_KNOWN, Entry, entries_of
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError
from toolscore.upstreams.http_client import HttpClient

__all__ = ["CatalogRules", "SourceState", "Sources"]

log = structlog.get_logger(__name__)

FIRST_COPY_SECONDS = 3.0
"""How long a first search waits for a registry that was never copied: a person waits for the answer."""
RETRY_SECONDS = 300.0
"""A registry that could not be copied is asked again after so long."""
SNAPSHOT = "snapshot"


class CatalogRules(Rules):
    """Where servers are looked for."""

    registries: tuple[HttpUrl, ...] = Field(
        ("https://registry.modelcontextprotocol.io",),
        description="base addresses of registries that speak the MCP Registry API v0.1",
    )
    file: str | None = Field(None, description="a JSON file of your own: a list of server.json objects")
    snapshot: bool = Field(True, description="also search the servers that come with ToolScore")
    max_age_hours: Annotated[float, Field(gt=0)] = Field(24.0, description="then a registry is copied again")


class SourceState(msgspec.Struct):
    """The state of a source.

    Attributes:
        name: without the secrets in its address: it may be shown.
        url: of a registry, with its secrets.
        entries: number of servers.
        fetched_at_ms: when the copy was made, Unix time; `None`: there is no copy, or the source needs none.
        error: why the last copy failed.
        tried_at: when the last copy was begun, `time.monotonic()`.
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
        """Age of the copy; `None`: there is none, or the source needs none."""
        return round(time.time() - self.fetched_at_ms / 1000, 1) if self.fetched_at_ms is not None else None


class Sources:
    """Use as `async with Sources(…) as sources`.

    Attributes:
        generation: changes whenever the servers may have changed.
    """

    def __init__(self, database: Database, http: HttpClient, rules: CatalogRules) -> None:
        self._database = database
        self._http = http
        self._rules = rules
        self._entries: dict[str, dict[str, Entry]] = {}
        self._states: dict[str, SourceState] = {}
        self._copying: dict[str, asyncio.Task[None]] = {}
        self._loading = asyncio.Lock()
        self._loaded = False
        self.generation = 0
        self.writes = WriteBehind("catalogs")

    async def __aenter__(self) -> Sources:
        await self.writes.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        tasks = list(self._copying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.writes.__aexit__(*exc)

    def use(self, rules: CatalogRules) -> None:
        """Put other rules in force."""
        if rules != self._rules:
            self._rules = rules
            self._loaded = False

    def state(self, name: str) -> SourceState | None:
        """The state of a source; `None`: there is no such source."""
        return self._states.get(name)

    def states(self) -> list[SourceState]:
        """The states of all sources."""
        return list(self._states.values())

    def by_source(self) -> list[dict[str, Entry]]:
        """The servers of each source by their names; the source that counts first comes first."""
        return list(self._entries.values())

    def first_of_each(self) -> dict[str, Entry]:
        """The servers by their names, each from the first source that has it."""
        found: dict[str, Entry] = {}
        for entries in self._entries.values():
            for name, entry in entries.items():
                found.setdefault(name, entry)
        return found

    async def bring_up_to_date(self) -> None:
        """Load every source, and begin to copy the registries whose copy is too old.

        Waits for registries that were never copied, for at most three seconds.
        """
        async with self._loading:
            if not self._loaded:
                await self._load()
                self._loaded = True
        first = []
        for state in self._states.values():
            if state.kind != "registry" or state.name in self._copying:
                continue
            age = state.age_seconds
            tried = state.tried_at is not None and time.monotonic() - state.tried_at < RETRY_SECONDS
            if (age is None or age > self._rules.max_age_hours * 3600) and not tried:
                task = self._begin_copy(state.name)
                if age is None:
                    first.append(task)
        if first:
            await asyncio.wait(first, timeout=FIRST_COPY_SECONDS)

    async def copy_all(self) -> None:
        """Copy every registry now, and wait for it."""
        for state in list(self._states.values()):
            if state.kind == "registry":
                self._begin_copy(state.name)
        await asyncio.gather(*self._copying.values(), return_exceptions=True)

    # Loading

    async def _load(self) -> None:
        self._entries, self._states = {}, {}
        if self._rules.file is not None:
            await self._load_file(self._rules.file)
        for url in self._rules.registries:
            await self._load_copy(url)
        if self._rules.snapshot:
            known = json.loads((files("toolscore.discovery") / "data" / "well_known.json").read_bytes())
            state = self._states[WELL_KNOWN] = SourceState(WELL_KNOWN, "snapshot")
            self._put(state, entries_of({"servers": [_server_json(one) for one in known]}, WELL_KNOWN))
            raw = (files("toolscore.discovery") / "data" / "catalog.jsonl.gz").read_bytes()
            servers = [json.loads(line) for line in gzip.decompress(raw).splitlines()]
            state = self._states[SNAPSHOT] = SourceState(SNAPSHOT, "snapshot")
            self._put(state, entries_of({"servers": servers}, SNAPSHOT))
        self.generation += 1

    async def _load_file(self, path: str) -> None:
        state = self._states[path] = SourceState(path, "file")
        try:
            page = json.loads(await asyncio.to_thread(Path(path).read_text, "utf-8"))
            page = page if isinstance(page, dict) else {"servers": page}
            self._put(state, entries_of(page, path))
        except (OSError, ValueError) as exc:
            state.error = str(exc)
            log.error("the file of servers cannot be read", file=path, error=str(exc))

    async def _load_copy(self, url: str) -> None:
        """Load the last copy of a registry from the database."""
        registry = shown_url(url)
        state = self._states[registry] = SourceState(registry, "registry", url.rstrip("/"))
        self._entries[registry] = {}
        try:
            kept = await self._database.load_catalog(registry)
            if kept is not None:
                content, state.fetched_at_ms = kept
                entries = await asyncio.to_thread(lambda: _entries(json.loads(zlib.decompress(content)), registry))
                self._put(state, entries)
        except (StoreError, ValueError, zlib.error) as exc:
            log.warning("a registry's copy cannot be read", registry=registry, error=str(exc))

    def called(self, name: str) -> Entry | None:
        """The server that most people mean by a name, such as `github`."""
        known = self._entries.get(WELL_KNOWN, {})
        return next((entry for entry in known.values() if name.casefold() in entry.known_as), None)

    def is_own(self, entry: Entry) -> bool:
        """Whether a server stands in the operator's own file."""
        return entry.source == self._rules.file

    def _put(self, state: SourceState, entries: Iterable[Entry]) -> None:
        self._entries[state.name] = {entry.name: entry for entry in entries}
        state.entries = len(self._entries[state.name])
        state.error = None
        self.generation += 1

    # Copying

    def _begin_copy(self, registry: str) -> asyncio.Task[None]:
        task = self._copying.get(registry)
        if task is None:
            task = self._copying[registry] = asyncio.create_task(self._copy(registry))
            task.add_done_callback(lambda _: self._copying.pop(registry, None))
        return task

    async def _copy(self, registry: str) -> None:
        """Copy a registry. The last copy stays if that fails."""
        state = self._states[registry]
        state.tried_at = time.monotonic()
        try:
            servers = await read_servers(self._http, state.url, state.name)
        except Exception as exc:  # whatever a registry answers, the last copy stays, and the reason is shown
            state.error = str(exc) or type(exc).__name__
            log.warning("a registry cannot be copied; its last copy stays", registry=state.name, error=state.error)
            return
        if state is not self._states.get(registry):
            return  # the rules were changed, and the sources loaded again
        fetched = state.fetched_at_ms = int(time.time() * 1000)
        entries = await asyncio.to_thread(_entries, servers, registry)
        if state is not self._states.get(registry):
            return
        self._put(state, entries)
        content = await asyncio.to_thread(lambda: zlib.compress(msgspec.json.encode(servers)))
        self.writes.put(lambda: self._database.save_catalog(registry, content, fetched))
        log.info("a registry was copied", registry=state.name, servers=state.entries)


def _entries(servers: list[Any], registry: str) -> list[Entry]:
    """What a registry has; tens of thousands at most, which takes seconds."""
    return list(entries_of({"servers": servers}, registry, vouched=True))


def _server_json(known: dict[str, Any]) -> dict[str, Any]:
    """A server of `well_known.json` in the registry's format."""
    members = ("name", "title", "description", "packages", "remotes")
    server: dict[str, Any] = {key: known[key] for key in members if key in known}
    if known["repository"]:
        server["repository"] = {"url": known["repository"]}
    extra = {key: known[key] for key in ("known_as", "categories", "network", "description") if key in known}
    return {**server, "_meta": {PUBLISHER: extra}}
