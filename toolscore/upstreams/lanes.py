"""Further connections to a server that asks its clients, for clients that cannot share the first.

On a pipe a server's question does not say on whose behalf it is put; some servers keep what a client answered (its
roots) for all later calls; some offer other tools to clients of other capabilities. So once a server has asked, its
clients are told apart, as MCP's sessions are meant to. Servers that never ask, which is most, are shared by all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Container, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from msgspec import Raw

from toolscore.core.errors import InvalidRequest, Overloaded
from toolscore.core.jsonrpc import ConnectionLost, Params, decode
from toolscore.core.models import UpstreamSpec
from toolscore.core.tasks import TaskSet
from toolscore.upstreams.caller import CLIENT_FEATURES, EVERYBODY, Caller, ClientSide
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.protocol import ServerInfo

__all__ = ["Habits", "Lane", "Lanes", "OnBehalf", "has_own_lane", "lane_for", "own_lane", "sticky_value"]

MAX_LANES = 32


@dataclass
class Habits:
    """How a server was seen to deal with its clients.

    Attributes:
        asks: it has asked a client something.
        keeps_roots: it has asked while no client waited for it, as servers do that keep the roots of a client.
        has_sessions: it opens sessions; known to be false of a server that has the stateless era alone.
    """

    asks: bool = False
    keeps_roots: bool = False
    has_sessions: bool = True


class OnBehalf(NamedTuple):
    """The key of a connection that shows somebody's credentials.

    Attributes:
        credentials: the pattern under which they stand.
        key: of the connection without them; `None`: the one that all share.
    """

    credentials: str
    key: Hashable


class Lane(NamedTuple):
    """Which connection a request goes over.

    Attributes:
        key: equal for requests that may share it.
        side: for whom it is opened, if it is not open.
    """

    key: Hashable
    side: ClientSide


def lane_for(
    spec: UpstreamSpec,
    info: ServerInfo,
    habits: Habits,
    caller: Caller | None,
    *,
    shared_is_free: Callable[[Caller], bool],
    lane_is_free: Callable[[Hashable, Caller], bool],
) -> Lane | None:
    """Choose the connection for a request; `None`: the one that all clients share. Pure.

    A server of both eras is spoken to in its client's era. One that asks while it works is shared by clients of the
    same capabilities, one at a time. One that keeps a client's roots serves each client that has some over a
    connection of its own.

    Args:
        info: of the shared connection.
        shared_is_free: says whether nobody else's request is under way on the shared connection.
        lane_is_free: says the same of the connection of a key.
    """
    credentials = _credentials(spec, caller)
    lane = _client_lane(spec, info, habits, caller, shared_is_free, lane_is_free)
    if credentials is None:
        return lane
    return _on_behalf(lane or Lane(None, EVERYBODY), credentials)


def own_lane(spec: UpstreamSpec, caller: Caller) -> Lane:
    """The connection that a client has to itself."""
    lane = Lane(caller.client, ClientSide(caller.capabilities, caller.home))
    credentials = _credentials(spec, caller)
    return lane if credentials is None else _on_behalf(lane, credentials)


def has_own_lane(spec: UpstreamSpec, habits: Habits, caller: Caller) -> bool:
    """Whether a client's session with the server is always its own."""
    if spec.dialin:
        return False
    return (habits.keeps_roots and "roots" in caller.capabilities) or _credentials(spec, caller) is not None


def _on_behalf(lane: Lane, credentials: str) -> Lane:
    return Lane(OnBehalf(credentials, lane.key), replace(lane.side, credentials=credentials))


def _credentials(spec: UpstreamSpec, caller: Caller | None) -> str | None:
    """The pattern of the credentials that a caller's requests are made with."""
    if not spec.credentials or caller is None:
        return None
    name = caller.principal.name
    return next((pattern for pattern in spec.credentials if fnmatchcase(name, pattern)), None)


def _client_lane(
    spec: UpstreamSpec,
    info: ServerInfo,
    habits: Habits,
    caller: Caller | None,
    shared_is_free: Callable[[Caller], bool],
    lane_is_free: Callable[[Hashable, Caller], bool],
) -> Lane | None:
    if info.stateless:
        if caller is None or not (habits.has_sessions and caller.live):
            return None
    elif not habits.asks:
        return None
    offered: Container[str] = caller.capabilities if caller is not None else ()
    features = frozenset(name for name in spec.client_features if name in offered)
    if info.stateless and not features:
        return None
    if caller is None or not features:
        return Lane(features, ClientSide({}))
    if not has_own_lane(spec, habits, caller) and not (info.stateless and spec.url and "roots" in features):
        if not info.stateless and features.issuperset(spec.client_features):
            if shared_is_free(caller):
                return None
        elif not habits.asks or lane_is_free(features, caller):
            return Lane(features, ClientSide({name: CLIENT_FEATURES[name] for name in features}))
    return Lane(caller.client, ClientSide(caller.capabilities, caller.home))


def sticky_value(argument: str, params: Params | None) -> str | None:
    """The value of an argument of a `tools/call`, where it is a text."""
    arguments = (params or {}).get("arguments")
    if isinstance(arguments, Raw):
        if argument.encode() not in bytes(arguments):
            return None
        try:
            arguments = decode(arguments)
        except InvalidRequest:
            return None
    value = arguments.get(argument) if isinstance(arguments, dict) else None
    return value if isinstance(value, str) else None


class _Open:
    """One connection of `Lanes`: being opened, or open."""

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
        self._lanes: dict[Hashable, _Open] = {}
        self._ending: set[_Open] = set()
        self._tasks = TaskSet()
        self._closed = False

    def __len__(self) -> int:
        return len(self._lanes)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._lanes

    def is_free(self, key: Hashable, caller: Caller) -> bool:
        """Whether a caller would have that connection to itself."""
        lane = self._lanes.get(key)
        if lane is None or not lane.ready.done() or lane.ready.exception() is not None:
            return lane is None
        connection: Any = lane.ready.result()
        return bool(connection.requests.free_for(caller))

    @asynccontextmanager
    async def use(self, wanted: Lane) -> AsyncIterator[Connection]:
        """The connection of a lane, opened at its first use. That of a stateless client ends with its call.

        Raises:
            Overloaded: all are in use.
            ConnectionLost, RemoteError, ToolScoreError, CommandNotFound: it cannot be opened.
        """
        if self._closed:
            raise ConnectionLost("the server was stopped", sent=False)
        side = wanted.side
        lane = self._lanes.get(wanted.key) or self._start(wanted)
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
                self._tasks.start(lane.ready.result().notify(method))

    def _of(self, client: object) -> list[_Open]:
        """A client's own connections."""
        own = self._lanes.get(client)
        others = [lane for key, lane in self._lanes.items() if isinstance(key, OnBehalf) and key.key is client]
        return [*([own] if own is not None else []), *others]

    async def end_all(self) -> None:
        """End all of them; whoever calls next opens others."""
        for lane in list(self._lanes.values()):
            self._end(lane)
        await self._tasks.wait()

    async def close(self) -> None:
        """End all of them, for good."""
        self._closed = True
        await self.end_all()

    def _start(self, wanted: Lane) -> _Open:
        if len(self._ending) >= MAX_LANES:  # a process may take seconds to leave
            raise Overloaded(f"{MAX_LANES} connections to this server are just ending", retry_after_seconds=5)
        if len(self._lanes) >= MAX_LANES:
            # One that serves nobody just now; else one whose client went off without an answer.
            idle = [lane for lane in self._lanes.values() if not lane.users or lane.waits_for_its_client]
            if not idle:
                raise Overloaded(f"{MAX_LANES} clients have a connection of their own to this server",
                                 retry_after_seconds=5)  # fmt: skip
            self._end(min(idle, key=lambda lane: lane.used))
        lane = self._lanes[wanted.key] = _Open(*wanted)
        lane.task = self._tasks.start(self._run(lane))
        return lane

    def _end(self, lane: _Open) -> None:
        lane.stop.set()
        if not lane.ready.done() and lane.task is not None:
            lane.task.cancel()  # it is still being opened
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
            if lane.task is not None and not lane.task.done():
                self._ending.add(lane)

    async def _run(self, lane: _Open) -> None:
        """One connection's life, in one task."""
        try:
            async with self._open(lane.side) as connection:
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
            self._ending.discard(lane)
            if not lane.ready.done():
                lane.ready.set_exception(ConnectionLost("the server was stopped", sent=False))
                lane.ready.exception()
