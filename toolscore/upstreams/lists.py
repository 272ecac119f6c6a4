"""What one server lists (tools, prompts, resources, templates), and reading again what has changed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from msgspec import Raw

from toolscore.core.errors import ToolScoreError, UpstreamProtocolError
from toolscore.core.jsonrpc import ConnectionLost, Params, RemoteError, encode
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.http import HttpConnection
from toolscore.upstreams.protocol import CAPABILITY_OF, CHANGED_LISTS, LISTS, read_object

__all__ = ["READ_AGAIN_SECONDS", "REFRESH_SECONDS", "Lists", "read_list", "read_tools"]

log = structlog.get_logger(__name__)

Entries = list[dict[str, Any]]

MAX_PAGES = 200
MAX_ENTRIES = 20_000
MAX_LIST_BYTES = 32 * 1024 * 1024
"""Of all pages of one list."""
MAX_LIST_PARTS = 500_000
"""Of one page, by its commas: a million empty objects take a thousand times the memory of their text."""
MAX_TOLD = 5
"""Bounds on what one server may list: a broken paginator ends instead of filling the memory."""

REFRESH_SECONDS = 0.1
"""Changes of a server's list within this time are read once."""
AGAIN_SECONDS, MAX_AGAIN_SECONDS = 2.0, 60.0
REFRESH_REST_SECONDS = 1.0
"""A server that changes all the time is read no more often than this."""
READ_AGAIN_SECONDS = 1.0
"""A server that does not tell when a list changes is asked for it no more often than this."""

OTHER_LISTS = ("prompts", "resources", "templates")


class Lists:
    """The lists of one server, over all its connections.

    Args:
        seconds: says how long reading one list may take.
        relist_seconds: says how often a list is read again whose server does not tell of its changes.
        on_tools: gets the tools of all connections, when they were read again.
        on_list: gets the kind (a key of `LISTS`) and the entries of another list that was read.
        on_change: gets the method of a `list_changed`, once the list has been read again.
    """

    def __init__(
        self,
        server_id: str,
        *,
        seconds: Callable[[], float],
        relist_seconds: Callable[[], float],
        on_tools: Callable[[Entries], None],
        before_tools: Callable[[Entries], Awaitable[None]],
        on_list: Callable[[str, Entries], None],
        on_change: Callable[[str], None],
    ) -> None:
        self._server_id = server_id
        self._seconds = seconds
        self._relist_seconds = relist_seconds
        self._on_tools = on_tools
        self._before_tools = before_tools
        self._on_list = on_list
        self._on_change = on_change
        self._tools: dict[Connection, Entries] = {}
        self._stale: set[str] = set()
        self._announced: set[str] = set()
        self._reads: dict[str, tuple[float, asyncio.Task[bool] | None]] = {}
        self._missed_at = -math.inf
        self._missed = False
        self._wake = asyncio.Event()

    @property
    def tools(self) -> Entries:
        """The tools of all connections; where two have one of the same name, that of the older connection."""
        tools: dict[str, dict[str, Any]] = {}
        for listed in self._tools.values():
            for tool in listed:
                tools.setdefault(tool["name"], tool)
        return list(tools.values())

    def put(self, connection: Connection, tools: Entries) -> None:
        """Take the tools of a new connection, and have its other lists read."""
        self._tools[connection] = tools
        self._reads["tools"] = (time.monotonic(), None)
        self._stale.update(OTHER_LISTS)
        self._wake.set()

    def drop(self, connection: Connection) -> None:
        """Forget what a connection listed. Idempotent."""
        self._tools.pop(connection, None)

    def read_all(self) -> None:
        """Have all lists read again."""
        self._stale.update(LISTS)
        self._wake.set()

    def missed(self) -> None:
        """The server tells of changes from now on, and did not until now: read all again. Where that happens all the
        time, as with streams that break off, its lists are read as those of a server that tells nothing.
        """
        now = time.monotonic()
        if now - self._missed_at >= self._relist_seconds():
            self._missed_at = now
            self.read_all()
        else:
            self._missed = True

    def changed(self, method: str) -> None:
        """Take a `list_changed` of the server: the list is read again, and then those who listen are told."""
        self._stale.update(CHANGED_LISTS[method])
        self._announced.add(method)
        self._wake.set()

    async def keep_fresh(self, connection: Connection) -> None:
        """Read whatever changes, until cancelled. Changes that come close together count once; what a server is too
        busy to list is asked for again.
        """
        pause, looked_at = AGAIN_SECONDS, time.monotonic()
        while True:
            left = looked_at + self._relist_seconds() - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, left)):
                    await self._wake.wait()
            if time.monotonic() - looked_at >= self._relist_seconds():
                looked_at = time.monotonic()
                self._stale.update(kind for kind in LISTS if not self._tells(connection, kind))
                self._missed = False
            announced = bool(self._announced)
            if announced:
                await asyncio.sleep(REFRESH_SECONDS)
            self._wake.clear()
            unread: set[str] = set()
            try:
                unread = await self._catch_up(connection)
            except Exception:  # a task's outermost line: what is stale once must not be stale for ever
                log.exception("reading a server's lists failed", server=self._server_id)
            if unread:
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_AGAIN_SECONDS)
                self._stale |= unread
                self._wake.set()
                continue
            pause = AGAIN_SECONDS
            if announced:
                await asyncio.sleep(REFRESH_REST_SECONDS)

    async def _catch_up(self, connection: Connection) -> set[str]:
        """Returns the lists that could not be read just now."""
        stale, self._stale = self._stale, set()
        announced, self._announced = self._announced, set()
        unread = set()
        for kind in LISTS:
            if kind in stale:
                # Who has several connections does not say which of them lists something else.
                for one in list(self._tools) if kind == "tools" and connection in self._tools else [connection]:
                    if not await self._read(one, kind):
                        unread.add(kind)
        for method in announced:
            self._on_change(method)
        return unread

    def is_due(self, connection: Connection, kind: str) -> bool:
        """Whether a list may have changed without a word, and was not read just now."""
        read_at, reading = self._reads.get(kind, (0.0, None))
        if reading is not None or self._tells(connection, kind):
            return False
        return time.monotonic() - read_at >= READ_AGAIN_SECONDS

    async def read_anew(self, connection: Connection, kind: str) -> None:
        """Read a list again if the server would not tell of its changes, or if it has not been read yet.

        Cancelling this lets the reading go on, for whoever asks next.
        """
        if CAPABILITY_OF[kind] not in connection.info.capabilities:
            return
        read_at, reading = self._reads.get(kind, (0.0, None))
        if (
            read_at
            and (self._tells(connection, kind) or time.monotonic() - read_at < READ_AGAIN_SECONDS)
            and reading is None
        ):
            return
        if reading is None:
            reading = asyncio.create_task(self._read(connection, kind))
            self._reads[kind] = (read_at, reading)
        await asyncio.shield(reading)

    def _tells(self, connection: Connection, kind: str) -> bool:
        """Whether nothing of a list can have changed without a word. Who keeps no stream open says none, whatever it
        declares.
        """
        feature = CAPABILITY_OF[kind]
        told = feature in connection.hearing.features and connection.info.declares(feature, "listChanged")
        return told and not self._missed

    async def _read(self, connection: Connection, kind: str) -> bool:
        """Returns whether it was read, or refused: not if another try may help."""
        settled = True
        try:
            async with asyncio.timeout(self._seconds()):
                if kind == "tools":
                    tools = await read_tools(connection)
                    await self._before_tools(tools)
                    if connection in self._tools:  # it may have left meanwhile
                        self._tools[connection] = tools
                        self._on_tools(self.tools)
                else:
                    self._on_list(kind, await read_list(connection, kind))
        except (RemoteError, ConnectionLost, ToolScoreError, TimeoutError) as exc:
            log.warning("cannot read a server's list", server=self._server_id, list=kind, error=str(exc))
            settled = not isinstance(exc, ConnectionLost | TimeoutError)
        self._reads[kind] = (time.monotonic(), None)
        return settled


async def _page(connection: Connection, method: str, params: Params, *, first: bool) -> Raw | None:
    """One page; a later one that fails is asked for once more, and then the list ends before it (`None`)."""
    if first:
        return await connection.request(method, params)
    for _ in range(2):
        try:
            return await connection.request(method, params)
        except RemoteError as exc:
            refusal = exc
    log.warning("a list ends early: its next page is refused", method=method, error=str(refusal))
    return None


async def read_tools(connection: Connection) -> Entries:
    """The tools of a server that may be used. Raises as `read_list`."""
    tools = await read_list(connection, "tools")
    return connection.learn_tools(tools) if isinstance(connection, HttpConnection) else tools


async def read_list(connection: Connection, kind: str) -> list[dict[str, Any]]:
    """All entries of one list of a server, page after page. Entries without a name are left out, with a log line.

    Args:
        kind: a key of `LISTS`.

    Raises:
        RemoteError, ConnectionLost.
        UpstreamProtocolError: the answer is not such a list.
    """
    if CAPABILITY_OF[kind] not in connection.info.capabilities:
        return []
    method, member, name = LISTS[kind]
    found: dict[str, dict[str, Any]] = {}
    params: Params = {}
    left, left_out = MAX_LIST_BYTES, 0
    seen: set[Any] = set()
    for number in range(MAX_PAGES):
        answer = await _page(connection, method, params, first=number == 0)
        if answer is None:
            break
        left -= memoryview(answer).nbytes
        if left < 0 or bytes(answer).count(b",") > MAX_LIST_PARTS:
            raise UpstreamProtocolError(
                f"the answers to {method} are over the bound: {MAX_LIST_BYTES // 2**20} MiB, {MAX_LIST_PARTS:,} parts"
            )
        body = read_object(answer, method)
        page = body.get(member)
        if page is None:  # as some languages write an empty list
            page = []
        if not isinstance(page, list):
            raise UpstreamProtocolError(f"the answer to {method} has no list of {member}")
        for entry in page:
            if not (isinstance(entry, dict) and isinstance(entry.get(name), str) and entry[name]):
                left_out += 1
                if left_out <= MAX_TOLD:
                    shown = encode(entry)[:200].decode(errors="replace")
                    log.warning("an entry was left out of a list", method=method, without=name, entry=shown)
            elif len(found) < MAX_ENTRIES:
                found.setdefault(entry[name], entry)
        cursor = body.get("nextCursor")
        if isinstance(cursor, bool) or not isinstance(cursor, str | int) or cursor == "" or cursor in seen:
            break  # an empty cursor, or one that leads in circles, is the end
        if len(found) >= MAX_ENTRIES:
            break
        seen.add(cursor)
        params = {"cursor": cursor}
    if left_out > MAX_TOLD:
        log.warning("and more entries were left out", method=method, without=name, entries=left_out - MAX_TOLD)
    return list(found.values())
