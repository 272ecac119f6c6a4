"""Further connections to a server that asks its clients, for clients that cannot share the first.

On a pipe a server's question does not say on whose behalf it is put; some servers keep what a client answered (its
roots) for all later calls; some offer other tools to clients of other capabilities. So once a server has asked, its
clients are told apart, as MCP's sessions are meant to. Servers that never ask, which is most, are shared by all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from toolscore.core.errors import Overloaded
from toolscore.core.jsonrpc import ConnectionLost
from toolscore.upstreams.caller import Caller, ClientSide
from toolscore.upstreams.connection import Connection

__all__ = ["Lanes", "OnBehalf"]

MAX_LANES = 32


class OnBehalf(NamedTuple):
    """The key of a connection that shows somebody's credentials.

    Attributes:
        credentials: the pattern under which they stand.
        key: of the connection without them; `None`: the one that all share.
    """

    credentials: str
    key: Hashable


class _Lane:
    def __init__(self, key: Hashable, side: ClientSide) -> None:
        self.key = key
        self.side = side
        self.ready: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self.stop = asyncio.Event()
        self.users = 0
        self.used = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    @property
    def waits_for_its_client(self) -> bool:
        return self.side.owner is not None and self.side.owner.suspended


class Lanes:
    """The further connections of one server.

    Args:
        open_connection: opens one; entered and left in one task.
    """

    def __init__(self, open_connection: Callable[[ClientSide], AbstractAsyncContextManager[Connection]]) -> None:
        self._open = open_connection
        self._lanes: dict[Hashable, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._lanes)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._lanes

    def free(self, key: Hashable, caller: Caller | None) -> bool:
        """Whether a caller would have that connection to itself."""
        lane = self._lanes.get(key)
        if lane is None or not lane.ready.done() or lane.ready.exception() is not None:
            return lane is None
        connection: Any = lane.ready.result()
        return caller is None or bool(connection.requests.free_for(caller))

    @asynccontextmanager
    async def use(self, key: Hashable, side: ClientSide) -> AsyncIterator[Connection]:
        """The connection of that key, opened at its first use. That of a stateless client ends with its call.

        Raises:
            Overloaded: all are in use.
            ConnectionLost, RemoteError, ToolScoreError, CommandNotFound: it cannot be opened.
        """
        if self._closed:
            raise ConnectionLost("the server was stopped", sent=False)
        lane = self._lanes.get(key) or self._start(key, side)
        lane.users += 1
        try:
            yield await asyncio.shield(lane.ready)
        finally:
            lane.users -= 1
            lane.used = time.monotonic()
            if side.owner is not None and side.owner.stateless and not lane.users:
                self._end(lane)

    def drop(self, client: object) -> None:
        """A client has gone."""
        for lane in self._of(client):
            self._end(lane)

    def tell(self, client: object, method: str) -> None:
        """Pass a client's notification on to its own connection, if it has one."""
        for lane in self._of(client):
            if lane.ready.done() and lane.ready.exception() is None:
                task = asyncio.create_task(lane.ready.result().notify(method))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _of(self, client: object) -> list[_Lane]:
        """A client's own connections."""
        own = self._lanes.get(client)
        others = [lane for key, lane in self._lanes.items() if isinstance(key, OnBehalf) and key.key is client]
        return [*([own] if own is not None else []), *others]

    async def end_all(self) -> None:
        """End all of them; whoever calls next opens others."""
        for lane in list(self._lanes.values()):
            self._end(lane)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """End all of them, for good."""
        self._closed = True
        await self.end_all()

    def _start(self, key: Hashable, side: ClientSide) -> _Lane:
        if len(self._lanes) >= MAX_LANES:
            # One that serves nobody just now; else one whose client went off without an answer.
            idle = [lane for lane in self._lanes.values() if not lane.users or lane.waits_for_its_client]
            if not idle:
                raise Overloaded(f"{MAX_LANES} clients have a connection of their own to this server",
                                 retry_after_seconds=5)  # fmt: skip
            self._end(min(idle, key=lambda lane: lane.used))
        lane = self._lanes[key] = _Lane(key, side)
        lane.task = asyncio.create_task(self._run(lane, side))
        self._tasks.add(lane.task)
        lane.task.add_done_callback(self._tasks.discard)
        return lane

    def _end(self, lane: _Lane) -> None:
        lane.stop.set()
        if not lane.ready.done() and lane.task is not None:
            lane.task.cancel()  # it is still being opened
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    async def _run(self, lane: _Lane, side: ClientSide) -> None:
        """One connection's life, in one task."""
        try:
            async with self._open(side) as connection:
                lane.ready.set_result(connection)
                ends = {asyncio.create_task(lane.stop.wait()), asyncio.ensure_future(connection.wait_closed())}
                try:
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for end in ends:
                        end.cancel()
        except Exception as exc:  # whoever waits for the connection is told
            if not lane.ready.done():
                lane.ready.set_exception(exc)
                lane.ready.exception()  # seen, whether or not anybody waits
        finally:
            self._end(lane)
            if not lane.ready.done():
                lane.ready.set_exception(ConnectionLost("the server was stopped", sent=False))
                lane.ready.exception()
