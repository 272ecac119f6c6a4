"""Keeps each upstream alive: one task each that starts it, watches it, backs off, restarts it, or gives up.

The task that enters a connection also leaves it. What the tools are called and who may use them is not known here:
the pool tells the floors above through two callables.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Container, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

import aiohttp
import structlog
from msgspec import Raw

from toolscore.core.errors import Conflict, ServerNotFound, ToolScoreError, UpstreamUnavailable
from toolscore.core.jsonrpc import METHOD_NOT_FOUND, ConnectionLost, Params, RemoteError
from toolscore.core.models import ServerState, UpstreamSpec, shown_url, timestamp
from toolscore.upstreams.caller import CLIENT_FEATURES, EVERYBODY, Caller, ClientSide
from toolscore.upstreams.connection import (
    BROADCAST,
    CAPABILITY_OF,
    LISTS,
    Connection,
    PeerConnection,
    ServerInfo,
    ensure_log_level,
    read_list,
    session_params,
)
from toolscore.upstreams.http import HttpConnection, http_session, open_streamable_http
from toolscore.upstreams.inprocess import InProcessServer, open_inprocess
from toolscore.upstreams.lanes import Lanes, OnBehalf
from toolscore.upstreams.process.spawn import ChildProtocol, CommandNotFound, spawn, stop
from toolscore.upstreams.references import resolved
from toolscore.upstreams.stdio import StdioConnection, open_stdio
from toolscore.upstreams.websocket import open_endpoint, open_websocket

__all__ = ["Attempt", "Upstream", "UpstreamPool"]

log = structlog.get_logger(__name__)

FIRST_RESTART_SECONDS = 0.1
"""A server that was killed is back at once; the next failures wait twice as long each."""
MAX_BACKOFF_SECONDS = 30.0
HEALTHY_SECONDS = 10.0
"""Up for this long, a server has earned a fast restart again."""
DRAIN_SECONDS = 30.0
"""How long the calls under way may take when a server is detached or replaced."""
RETRY_ON_CALL_SECONDS = 1.0
"""A call to a server that is down ends the back-off, but no more often than this."""
REFRESH_REST_SECONDS = 1.0
REFRESH_SECONDS = 0.1
"""Changes of a server's list within this time are read once."""
SESSION_SECONDS = 5.0
"""How long a server that speaks without sessions may take to open one."""
WATCH_SECONDS = 10.0
FOLLOW_RETRY_SECONDS = 5.0
"""The rest before a stateless server is asked again to tell what changes."""
READ_AGAIN_SECONDS = 1.0
"""A server that does not tell when a list changes is asked for it no more often than this."""

FETCH_SECONDS = 10.0
MAX_FETCHED_BYTES = 1024 * 1024

OTHER_LISTS = ("prompts", "resources", "templates")
CHANGED = {
    "notifications/tools/list_changed": ("tools",),
    "notifications/prompts/list_changed": ("prompts",),
    "notifications/resources/list_changed": ("resources", "templates"),
}


def backoff_seconds(failures: int, jitter: float) -> float:
    """The wait before try number `failures` + 1; `jitter` in [0, 1) spreads servers that failed together."""
    return float(min(MAX_BACKOFF_SECONDS, FIRST_RESTART_SECONDS * 2.0**failures) * (0.75 + jitter / 2))


class Attempt:
    """Whether a request has been handed to a server: if so, it may have been carried out."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False


class Upstream:
    """One server: its connections (one; more where several instances dialled in), its state, its task."""

    def __init__(self, server_id: str, spec: UpstreamSpec, pool: UpstreamPool) -> None:
        self.server_id = server_id
        self.spec = spec
        self._pool = pool
        self.connections: list[Connection] = []
        self._listed: dict[int, list[dict[str, Any]]] = {}
        self.state: ServerState = "starting"
        self.last_error: str | None = None
        self.up_since: str | None = None
        self.restarts = 0
        self.stderr: deque[str] = deque()
        self.pid: int | None = None
        self.in_flight = 0
        self._last_call = self._started_at = time.monotonic()
        self._slept = False
        self._changed = asyncio.Event()
        self._called = asyncio.Event()
        self._restart = asyncio.Event()
        self._stop = asyncio.Event()
        self._refresh = asyncio.Event()
        self._stale: set[str] = set()
        self._announced: set[str] = set()
        self._reads: dict[str, tuple[float, asyncio.Task[None] | None]] = {}
        self._watched: Counter[str] = Counter()
        self._watching = asyncio.Lock()
        self._rewatch = asyncio.Event()
        self._followers: dict[int, asyncio.Task[None]] = {}
        self._probe = self._has_sessions = True
        self.asks = self._keeps_roots = False
        self.lanes = Lanes(self._open_lane)
        self.info: ServerInfo | None = None
        self.task: asyncio.Task[None] | None = None

    async def request(
        self,
        method: str,
        params: Params | None = None,
        *,
        caller: Caller | None = None,
        attempt: Attempt | None = None,
    ) -> Raw:
        """Ask the least busy connection, or the caller's own; wait for one while the server starts.

        Raises:
            UpstreamUnavailable: it is down or given up: the call did not happen.
            ConnectionLost: it went away while it was asked.
            RemoteError: it answered with an error.
        """
        self.in_flight += 1
        try:
            for trial in range(3):
                connection = self._pick(caller) or await self._wait_for_connection()
                connection.in_flight += 1
                try:
                    if not connection.info.stateless and params is not None and "requestState" in params:
                        session_params(params)  # refuses, before a connection is opened for it
                    lane = self._lane(connection, caller)
                    if lane is not None:
                        return await self._request_in_lane(method, params, lane, caller, attempt)
                    return await self._ask(connection, method, params, caller, attempt)
                except ConnectionLost as exc:
                    if attempt is not None:
                        attempt.asked = exc.sent
                    # Never sent: it certainly did not happen, so another connection may have it.
                    if exc.sent or trial == 2:
                        raise
                    await self._changed_within(FIRST_RESTART_SECONDS)
                finally:
                    connection.in_flight -= 1
            raise AssertionError("unreachable")
        finally:
            self.in_flight -= 1
            self._last_call = time.monotonic()

    def _lane(self, connection: Connection, caller: Caller | None) -> tuple[Hashable, ClientSide] | None:
        """The further connection that a caller's request goes over; `None`: the one that all share.

        A server of both eras is spoken to in its client's. One that asks while it works is shared by clients of the
        same capabilities, one at a time; one that asked for roots beforehand, and keeps them, serves each client that
        has some over a connection of its own.
        """
        if self.spec.dialin or not isinstance(connection, PeerConnection | HttpConnection):
            return None
        credentials = self._credentials(caller)
        lane = self._client_lane(connection, caller)
        if credentials is None:
            return lane
        key, side = lane if lane is not None else (None, EVERYBODY)
        return OnBehalf(credentials, key), replace(side, credentials=credentials)

    def _credentials(self, caller: Caller | None) -> str | None:
        """The pattern of the credentials that a caller's requests are made with."""
        if not self.spec.credentials or caller is None:
            return None
        name = caller.principal.name
        return next((pattern for pattern in self.spec.credentials if fnmatchcase(name, pattern)), None)

    def _client_lane(
        self, connection: PeerConnection | HttpConnection, caller: Caller | None
    ) -> tuple[Hashable, ClientSide] | None:
        info = connection.info
        offered: Container[str] = caller.capabilities if caller is not None else ()
        features = frozenset(name for name in self.spec.client_features if name in offered)
        if info.stateless and not (self._has_sessions and caller is not None and caller.live and features):
            return None
        if not info.stateless and not self.asks:
            return None
        if caller is None or not features:
            return features, ClientSide({})
        if not self._watches_alone(caller) and not (info.stateless and self.spec.url and "roots" in features):
            if not info.stateless and features.issuperset(self.spec.client_features):
                if connection.requests.free_for(caller):
                    return None
            elif not self.asks or self.lanes.free(features, caller):
                return features, ClientSide({name: CLIENT_FEATURES[name] for name in features})
        return caller.client, ClientSide(caller.capabilities, caller.home)

    def _own_lane(self, caller: Caller) -> tuple[Hashable, ClientSide]:
        """The connection that a client has to itself."""
        key, side = caller.client, ClientSide(caller.capabilities, caller.home)
        credentials = self._credentials(caller)
        if credentials is None:
            return key, side
        return OnBehalf(credentials, key), replace(side, credentials=credentials)

    async def _request_in_lane(
        self,
        method: str,
        params: Params | None,
        lane: tuple[Hashable, ClientSide],
        caller: Caller | None,
        attempt: Attempt | None = None,
    ) -> Raw:
        try:
            async with self.lanes.use(*lane) as connection:
                return await self._ask(connection, method, params, caller, attempt)
        except (CommandNotFound, ValueError) as exc:  # a header cannot have two lines, for one
            log.error("a server cannot be reached with a caller's credentials", server=self.server_id, error=str(exc))
            raise UpstreamUnavailable(
                f"server {self.server_id!r} cannot be reached for this client: the gateway's log says why"
            ) from exc

    async def _ask(
        self,
        connection: Connection,
        method: str,
        params: Params | None,
        caller: Caller | None,
        attempt: Attempt | None,
    ) -> Raw:
        if attempt is not None:
            attempt.asked = True
        if caller is not None and caller.log_level:
            await self._hear(connection, caller.log_level)
        return await connection.request(method, params, caller=caller)

    async def hear(self, level: str) -> None:
        """Have the server log from this level on, if it runs."""
        connection = self._pick()
        if connection is not None:
            await self._hear(connection, level)

    async def _hear(self, connection: Connection, level: str) -> None:
        if "logging" in connection.info.capabilities and not connection.info.stateless:
            await ensure_log_level(connection, level)

    async def watch(self, uri: str, caller: Caller) -> None:
        """Have the server tell of changes of a resource. Each call needs an `unwatch`.

        Raises:
            RemoteError, ConnectionLost, UpstreamUnavailable, UpstreamProtocolError: it does not.
        """
        try:
            async with asyncio.timeout(WATCH_SECONDS), self._watching:
                await self._watch(uri, caller)
        except TimeoutError:
            raise UpstreamUnavailable(f"{self.server_id} did not answer within {WATCH_SECONDS:g} s") from None

    async def _watch(self, uri: str, caller: Caller) -> None:
        connection = self._pick() or await self._wait_for_connection()
        if self._watches_alone(caller):
            await self._request_in_lane("resources/subscribe", {"uri": uri}, self._own_lane(caller), caller)
            return
        if not connection.info.stateless and not self._watched[uri]:
            await connection.request("resources/subscribe", {"uri": uri}, caller=caller)
        self._watched[uri] += 1
        self._rewatch.set()

    async def unwatch(self, uri: str, caller: Caller) -> None:
        """One who was told of a resource's changes is so no more. Never raises."""
        with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError, TimeoutError):
            async with asyncio.timeout(WATCH_SECONDS):
                await self._unwatch(uri, caller)

    async def _unwatch(self, uri: str, caller: Caller) -> None:
        if self._watches_alone(caller):
            lane = self._own_lane(caller)
            if lane[0] in self.lanes:
                await self._request_in_lane("resources/unsubscribe", {"uri": uri}, lane, caller)
            return
        self._watched[uri] -= 1
        if self._watched[uri] > 0:
            return
        del self._watched[uri]
        self._rewatch.set()
        connection = self._pick()
        if connection is not None and not connection.info.stateless:
            await connection.request("resources/unsubscribe", {"uri": uri}, caller=caller)

    def take_over(self, old: Upstream) -> None:
        """What was watched on the form of the server before this one is watched here."""
        self._watched = old._watched
        self._rewatch.set()
        for connection in self.connections:
            if not connection.info.stateless:
                task = asyncio.create_task(self._watch_again(connection))
                self._followers[id(task)] = task
                task.add_done_callback(lambda done: self._followers.pop(id(done), None))

    def _watches_alone(self, caller: Caller) -> bool:
        """Whether a client's session with the server is always its own."""
        if self.spec.dialin:
            return False
        return (self._keeps_roots and "roots" in caller.capabilities) or self._credentials(caller) is not None

    def _pick(self, caller: Caller | None = None) -> Connection | None:
        connections = self.connections
        if len(connections) == 1:
            return connections[0]
        if self.asks and caller is not None and caller.can_be_asked:  # an instance to itself, where there is one
            own = (PeerConnection, HttpConnection)
            free = [one for one in connections if isinstance(one, own) and one.requests.free_for(caller)]
            connections = [*free] or connections
        return min(connections, key=lambda connection: connection.in_flight) if connections else None

    async def _wait_for_connection(self) -> Connection:
        """A server that is starting is worth the caller's own time-out; one that is down gets a moment."""
        self._called.set()
        deadline = time.monotonic() + self._pool.reconnect_seconds
        while True:
            connection = self._pick()
            if connection is not None:
                return connection
            remaining = deadline - time.monotonic()
            if self.state in ("failed", "stopped") or (self.state == "down" and remaining <= 0):
                raise UpstreamUnavailable(
                    f"server {self.server_id!r} is {self.state}" + (f": {self.last_error}" if self.last_error else ""),
                    suggestion=f"GET /api/v1/servers/{self.server_id} shows its last lines; POST …/restart tries again",
                )
            waited = time.monotonic() - self._started_at
            if self.state == "down" and not self.spec.dialin and waited > RETRY_ON_CALL_SECONDS:
                self._restart.set()
            await self._changed_within(remaining if self.state == "down" else 3600)

    async def wait_up(self) -> None:
        """Wait until the server is up, starting it if it sleeps.

        Raises:
            UpstreamUnavailable: it does not come up.
        """
        await self._wait_for_connection()

    async def _changed_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _set_state(self, state: ServerState, error: str | None = None) -> None:
        self.state = state
        if error is not None:
            self.last_error = error
        elif state == "up":
            self.last_error = None
            self.up_since = timestamp()
        if state != "up":
            self.up_since = None
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # The supervising task

    async def run(self) -> None:
        """Supervise until told to stop."""
        try:
            if self.spec.dialin:
                await self._run_dialled_in()
            else:
                await self._run_started()
        finally:
            self._set_state("stopped")

    async def _run_started(self) -> None:
        failures = start_failures = 0
        was_ever_up = False
        spec = self.spec
        while not self._stop.is_set():
            asleep = self._slept or (spec.lazy and self._pool.has_tools(self.server_id))
            if asleep and not self._called.is_set():
                self._set_state("idle")
                await self._first_of(self._called, self._restart)
                if self._stop.is_set():
                    return
            self._set_state("starting")
            self._slept = False
            self._restart.clear()
            self._started_at = time.monotonic()
            was_up_at: float | None = None
            error: str | None = None
            permanent = False
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(spec.start_timeout_seconds or self._pool.start_timeout_seconds):
                        connection = await stack.enter_async_context(self._open())
                        tools = await self._read_tools(connection)
                    was_up_at = time.monotonic()
                    start_failures, was_ever_up = 0, True
                    self._came_up(connection, tools)
                    try:
                        error = await self._serve(connection)
                    finally:
                        self.connections.clear()
                        self._pool.server_down(self, "idle" if self._slept else error or "stopped on request")
            except CommandNotFound as exc:
                error, permanent = str(exc), True
            except TimeoutError:
                limit = spec.start_timeout_seconds or self._pool.start_timeout_seconds
                error = f"it did not answer within {limit:g} s of its start: check its command, or raise its " \
                        "`start_timeout_seconds`"  # fmt: skip
            except RemoteError as exc:
                error = f"it refused to start: {exc}"
            except (ConnectionLost, ToolScoreError) as exc:
                error = str(exc)
                # There are servers that leave when the first message is not `initialize`.
                may_leave = spec.command or (spec.url or "").startswith("ws")
                if was_up_at is None and self._probe and isinstance(exc, ConnectionLost) and exc.sent and may_leave:
                    self._probe = False
                    continue
            except Exception as exc:  # a task's outermost line: one broken server must not end the gateway
                log.exception("supervising a server failed", server=self.server_id)
                error = f"{type(exc).__name__}: {exc}"
            self.pid = None
            if self._stop.is_set():
                return
            if not self.connections:
                await self.lanes.end_all()
            if error is None:  # idle, or restarted on request
                self.restarts += not self._slept
                continue
            healthy = was_up_at is not None and time.monotonic() - was_up_at > HEALTHY_SECONDS
            failures = 0 if healthy else failures + 1
            start_failures += was_up_at is None
            if was_up_at is not None:
                self.restarts += 1
                self._pool.restarted(self)
            error += self._last_line()
            # What worked before, or stands elsewhere, may come back; a process of ours that never started is given up.
            hopeless = start_failures >= self._pool.max_start_failures and not was_ever_up and self.spec.command
            if permanent or hopeless:
                log.error("a server does not start", server=self.server_id, error=error)
                self._set_state("failed", error)
                self._pool.failed(self, error)
                await self._first_of(self._restart)
                failures = start_failures = 0
            else:
                log.warning("a server is down", server=self.server_id, error=error)
                self._set_state("down", error)
                wait = backoff_seconds(failures - 1 if failures else 0, random.random())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._first_of(self._restart)

    def _last_line(self) -> str:
        """What the process said last: most often the reason."""
        said = [line for line in self.stderr if not line.startswith((" ", "Traceback", "["))]
        return f"; its last line: {said[-1]}" if said else ""

    def _open(self, side: ClientSide = EVERYBODY) -> contextlib.AbstractAsyncContextManager[Any]:
        given, pool = self.spec, self._pool
        spec = resolved(given if side.credentials is None else given.on_behalf_of(side.credentials))
        notified = self._notified if side is EVERYBODY else partial(self._notified_in_lane, side)
        if spec.command:

            def keep(stderr: Any) -> None:
                if side is EVERYBODY:
                    self.stderr = stderr

            return open_stdio(
                spec,
                on_notification=notified,
                max_message_bytes=pool.max_message_bytes,
                stderr_into=keep,
                probe=self._probe and side.is_shared,
                side=side,
                on_asked=self.asked,
            )
        if spec.url and spec.url.startswith("ws"):
            return open_websocket(
                spec,
                on_notification=notified,
                max_message_bytes=pool.max_message_bytes,
                probe=self._probe and side.is_shared,
                side=side,
                on_asked=self.asked,
            )
        if spec.url:
            return open_streamable_http(
                spec,
                pool.http_of(spec),
                on_notification=notified,
                max_message_bytes=pool.max_message_bytes,
                probe=side.is_shared,
                side=side,
                on_asked=self.asked,
                shown=shown_url(given.url or ""),
            )
        if spec.endpoint:
            return open_endpoint(self.server_id, spec, max_message_bytes=pool.max_message_bytes)
        return open_inprocess(spec, on_notification=self._notified, ready=pool.inside)

    @asynccontextmanager
    async def _open_lane(self, side: ClientSide) -> AsyncIterator[Connection]:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self.spec.start_timeout_seconds or self._pool.start_timeout_seconds):
                connection = await self._enter_lane(stack, side)
                if isinstance(connection, HttpConnection):
                    connection.learn_tools(next(iter(self._listed.values()), []))
            yield connection

    async def _enter_lane(self, stack: AsyncExitStack, side: ClientSide) -> Connection:
        if self.info is None or not self.info.stateless or side.is_shared:
            return cast(Connection, await stack.enter_async_context(self._open(side)))
        try:
            async with asyncio.timeout(SESSION_SECONDS):
                return cast(Connection, await stack.enter_async_context(self._open(side)))
        except (RemoteError, ToolScoreError, ConnectionLost, TimeoutError) as exc:
            self._has_sessions = False  # it has the stateless era alone, which few servers say
            raise ConnectionLost(f"it opens no session: {exc or 'time-out'}", sent=False) from exc

    def _came_up(self, connection: Connection, tools: list[dict[str, Any]]) -> None:
        if isinstance(connection, StdioConnection):
            self.pid = connection.pid
        self.connections.append(connection)
        self._listed = {id(connection): tools}
        self._last_call = time.monotonic()
        self._pool.server_up(self, tools)
        self._adopt(connection)
        self._set_state("up")

    def _adopt(self, connection: Connection) -> None:
        """Note what a new connection's server offers, and listen to it."""
        self.info = connection.info
        self._probe = connection.info.stateless  # the next start need not ask again
        self._stale.update(OTHER_LISTS)
        self._refresh.set()
        self._pool.described(self, connection.info)
        follow = self._follow(connection) if connection.info.stateless else self._watch_again(connection)
        self._followers[id(connection)] = asyncio.create_task(follow)

    def _leave(self, connection: Connection) -> None:
        follower = self._followers.pop(id(connection), None)
        if follower is not None:
            follower.cancel()

    def asked(self, unasked: bool) -> None:
        """The server asks something of its clients. One without sessions asks in its results: nothing to tell apart."""
        if self.info is None or not self.info.stateless or len(self.lanes):
            self.asks = True
            self._keeps_roots |= unasked

    async def _watch_again(self, connection: Connection) -> None:
        """A new session knows nothing of what the last one was asked to tell."""
        for uri in list(self._watched):
            with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError):
                await connection.request("resources/subscribe", {"uri": uri})

    async def _follow(self, connection: Connection) -> None:
        """Have a stateless server tell what changes (`subscriptions/listen`), for as long as its connection lasts."""
        listening: asyncio.Future[Raw] | None = None
        try:
            while True:
                self._rewatch.clear()
                wanted: dict[str, Any] = {
                    f"{kind}ListChanged": True
                    for kind in ("tools", "prompts", "resources")
                    if _flag(connection.info.capabilities, kind, "listChanged")
                }
                if self._watched:
                    wanted["resourceSubscriptions"] = list(self._watched)
                before, listening = listening, None
                if wanted:
                    params = {"notifications": wanted}
                    listening = asyncio.ensure_future(connection.request("subscriptions/listen", params))
                if before is not None:
                    await asyncio.sleep(REFRESH_SECONDS)  # the new stream stands before the old one ends
                    before.cancel()
                rewatch = asyncio.create_task(self._rewatch.wait())
                try:
                    await asyncio.wait({rewatch, *([listening] if listening else [])}, return_when="FIRST_COMPLETED")
                finally:
                    rewatch.cancel()
                if listening is not None and listening.done():
                    try:
                        listening.result()
                    except RemoteError as exc:
                        if exc.code == METHOD_NOT_FOUND:
                            return
                    except (ConnectionLost, ToolScoreError):
                        pass
                    listening = None
                    await asyncio.sleep(FOLLOW_RETRY_SECONDS)
        finally:
            if listening is not None:
                listening.cancel()

    async def _serve(self, connection: Connection) -> str | None:
        """Wait until the connection ends (the reason), or it shall end (`None`)."""
        closed = asyncio.create_task(connection.wait_closed())
        stop = asyncio.create_task(self._stop.wait())
        restart = asyncio.create_task(self._restart.wait())
        refresh: asyncio.Task[Any] = asyncio.create_task(self._refresh.wait())
        try:
            while True:
                timeout = None
                if self.spec.idle_stop_seconds:
                    timeout = max(0.01, self.spec.idle_stop_seconds - (time.monotonic() - self._last_call))
                done, _ = await asyncio.wait(
                    {closed, stop, restart, refresh}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                if closed in done:
                    return closed.result()
                if stop in done or restart in done:
                    await self._drain(connection)
                    return None
                if refresh in done:
                    refresh = asyncio.create_task(self._read_again(connection))
                idle = time.monotonic() - self._last_call
                if self.spec.idle_stop_seconds and not self.in_flight and idle >= self.spec.idle_stop_seconds:
                    self._called.clear()
                    self._slept = True
                    self.connections.clear()
                    return None
        finally:
            for task in (closed, stop, restart, refresh):
                task.cancel()
            self._leave(connection)

    async def _read_again(self, connection: Connection) -> None:
        """Read the lists that changed, and wait for the next change. Changes that come close together count once."""
        if self._announced:
            await asyncio.sleep(REFRESH_SECONDS)
        self._refresh.clear()
        stale, self._stale = self._stale, set()
        announced, self._announced = self._announced, set()
        for kind in LISTS:
            if kind in stale:
                await self._read(connection, kind)
        for method in announced:
            self._pool.announced(self, method, None)
        if announced:
            await asyncio.sleep(REFRESH_REST_SECONDS)  # a server that changes all the time is not followed all the time
        await self._refresh.wait()

    async def _read(self, connection: Connection, kind: str) -> None:
        try:
            async with asyncio.timeout(self._pool.start_timeout_seconds):
                if kind == "tools":
                    self._listed[id(connection)] = await self._read_tools(connection)
                    self._pool.tools_changed(self, self._union())
                else:
                    self._pool.listed(self, kind, await read_list(connection, kind))
        except (RemoteError, ConnectionLost, ToolScoreError, TimeoutError) as exc:
            log.warning("cannot read a server's list", server=self.server_id, list=kind, error=str(exc))
        self._reads[kind] = (time.monotonic(), None)

    async def _read_tools(self, connection: Connection) -> list[dict[str, Any]]:
        tools = await read_list(connection, "tools")
        return connection.learn_tools(tools) if isinstance(connection, HttpConnection) else tools

    async def read_anew(self, kind: str) -> None:
        """Read a list again if the server is there and would not tell of its changes, or has not been read yet.

        Cancelling this lets the reading go on, for whoever asks next.
        """
        connection = self._pick()
        if connection is None or CAPABILITY_OF[kind] not in connection.info.capabilities:
            return
        read_at, reading = self._reads.get(kind, (0.0, None))
        tells = _flag(connection.info.capabilities, CAPABILITY_OF[kind], "listChanged")
        if read_at and (tells or time.monotonic() - read_at < READ_AGAIN_SECONDS) and reading is None:
            return
        if reading is None:
            reading = asyncio.create_task(self._read(connection, kind))
            self._reads[kind] = (read_at, reading)
        await asyncio.shield(reading)

    def _union(self) -> list[dict[str, Any]]:
        """The tools of all instances; where two have one of the same name, the first one's."""
        tools: dict[str, dict[str, Any]] = {}
        for connection in self.connections:
            for tool in self._listed.get(id(connection), []):
                tools.setdefault(tool["name"], tool)
        return list(tools.values())

    async def _drain(self, connection: Connection) -> None:
        """New calls wait for the next connection; those under way may end."""
        self.connections.clear()
        deadline = time.monotonic() + self._pool.drain_seconds
        while connection.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _notified(self, method: str, params: Raw | None) -> None:
        kinds = CHANGED.get(method)
        if kinds is None:
            self._pool.announced(self, method, params)
            return
        self._stale.update(kinds)
        self._announced.add(method)
        self._refresh.set()

    def _notified_in_lane(self, side: ClientSide, method: str, params: Raw | None) -> None:
        if method in CHANGED or (side.owner is None and method in BROADCAST):
            self._notified(method, params)
        elif side.owner is not None:
            side.owner.announce(self.server_id, method, params)

    async def _first_of(self, *events: asyncio.Event) -> None:
        tasks = [asyncio.create_task(event.wait()) for event in (*events, self._stop)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    # Servers that dial in

    async def _run_dialled_in(self) -> None:
        """Wait for instances; start one ourselves where a command is given."""
        if self.state != "up":
            self._set_state("down", "no instance has connected yet")
        if self.spec.command is None:
            await self._stop.wait()
        failures = 0
        while not self._stop.is_set():
            started = time.monotonic()
            error = await self._run_instance() + self._last_line()
            if self._stop.is_set():
                break
            failures = 0 if time.monotonic() - started > HEALTHY_SECONDS else failures + 1
            self.restarts += 1
            self._pool.restarted(self)
            if failures >= self._pool.max_start_failures:
                self._set_state("failed", error)
                self._pool.failed(self, error)
                await self._first_of(self._restart)
                self._restart.clear()
                failures = 0
            else:
                self.last_error = error
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff_seconds(failures, random.random())):
                        await self._first_of(self._restart)
        await self._drain_all()

    async def _run_instance(self) -> str:
        """One life of the process that dials in. Returns how it ended."""
        protocol = ChildProtocol()
        try:
            spec = resolved(self.spec)
            assert spec.command is not None
            await spawn(protocol, spec.command, spec.args, env=spec.env, cwd=spec.cwd, pipes=False)
            self.pid, self.stderr = protocol.pid, protocol.stderr
            self._restart.clear()
            exited = asyncio.ensure_future(asyncio.shield(protocol.exited))
            stopping = asyncio.create_task(self._first_of(self._restart))
            await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if self._stop.is_set():
                await self._drain_all()
            return protocol.exit_reason()
        except CommandNotFound as exc:
            return str(exc)
        finally:
            self.pid = None
            await asyncio.shield(asyncio.ensure_future(stop(protocol)))

    async def _drain_all(self) -> None:
        deadline = time.monotonic() + self._pool.drain_seconds
        while self.in_flight and self.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def instance(self, connection: Connection) -> AsyncIterator[None]:
        """Serve calls over an instance that dialled in, for as long as the body runs.

        Raises:
            RemoteError, ConnectionLost, ToolScoreError: it does not list its tools.
        """
        async with asyncio.timeout(self._pool.start_timeout_seconds):
            tools = await read_list(connection, "tools")
        if self._stop.is_set():
            raise UpstreamUnavailable(f"server {self.server_id!r} was detached meanwhile")
        self.connections.append(connection)
        self._listed[id(connection)] = tools
        if len(self.connections) == 1:
            self._pool.server_up(self, tools)
        else:
            self._pool.tools_changed(self, self._union())
        self._adopt(connection)
        self._set_state("up")
        refresher = asyncio.create_task(self._refresh_instance(connection))
        try:
            yield
        finally:
            refresher.cancel()
            self._leave(connection)
            self._listed.pop(id(connection), None)
            if connection in self.connections:
                self.connections.remove(connection)
            if self.connections:
                self._pool.tools_changed(self, self._union())
            elif self.state != "stopped":
                self._set_state("down", "the last instance disconnected")
                self._pool.server_down(self, "the last instance disconnected")

    async def _refresh_instance(self, connection: Connection) -> None:
        await self._refresh.wait()
        while True:
            await self._read_again(connection)

    def notified(self, method: str, params: Raw | None) -> None:
        """A notification of an instance that dialled in."""
        self._notified(method, params)

    async def negotiate(self, connection: PeerConnection) -> None:
        """Settle the protocol with an instance that dialled in.

        Raises:
            ConnectionLost, RemoteError, UpstreamProtocolError.
        """
        try:
            await connection.negotiate(probe=self._probe)
        except ConnectionLost as exc:
            self._probe &= not exc.sent  # there are servers that leave when the first message is not `initialize`
            raise

    @property
    def ending(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    async def wait_drained(self) -> None:
        """Wait until this upstream shall end and its calls have."""
        await self._stop.wait()
        await self._drain_all()

    def restart(self) -> None:
        """Start again, now, whatever the back-off says."""
        self._restart.set()

    async def stop(self) -> None:
        """End the task and everything the server started. Idempotent."""
        self._stop.set()
        if self.task is not None:
            if self.state == "starting":
                self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.lanes.close()


def _flag(capabilities: dict[str, Any], feature: str, flag: str) -> bool:
    declared = capabilities.get(feature)
    return isinstance(declared, dict) and declared.get(flag) is True


class UpstreamPool:
    """All upstreams. Use as `async with UpstreamPool(…) as pool`.

    Args:
        on_tools: `(server_id, spec, tools)`: what a server lists, now that it is up or has changed.
        on_info: `(server_id, info)`: what a server said of itself.
        on_list: `(server_id, kind, entries)`: the prompts, resources or templates that a server lists now.
        on_notification: `(server_id, method, params)`: what a server tells all who listen to it.
        on_state: `(server_id, state, reason)` for each change that callers notice.
        has_tools: whether the tools of a server are known already, so that a lazy one need not start to tell them.
    """

    def __init__(
        self,
        *,
        on_tools: Callable[[str, UpstreamSpec, list[dict[str, Any]]], None] = lambda *_: None,
        on_info: Callable[[str, ServerInfo], None] = lambda *_: None,
        on_list: Callable[[str, str, list[dict[str, Any]]], None] = lambda *_: None,
        on_notification: Callable[[str, str, Raw | None], None] = lambda *_: None,
        on_state: Callable[[str, ServerState, str | None], None] = lambda *_: None,
        on_restart: Callable[[str], None] = lambda _: None,
        has_tools: Callable[[str], bool] = lambda _: False,
        start_timeout_seconds: float = 60,
        max_start_failures: int = 5,
        max_message_bytes: int = 16 * 1024 * 1024,
        drain_seconds: float = DRAIN_SECONDS,
        reconnect_seconds: float = 3,
    ) -> None:
        self._on_tools = on_tools
        self._on_info = on_info
        self._on_list = on_list
        self._on_notification = on_notification
        self._on_state = on_state
        self._on_restart = on_restart
        self.has_tools = has_tools
        self.start_timeout_seconds = start_timeout_seconds
        self.max_start_failures = max_start_failures
        self.max_message_bytes = max_message_bytes
        self.drain_seconds = drain_seconds
        self.reconnect_seconds = reconnect_seconds
        self.forwarded: set[str] = set()
        """Headers of clients' requests that some server is to have, in lower case."""
        self.inside: dict[str, InProcessServer] = {}
        """Servers inside the gateway that stand already, by what `UpstreamSpec.inprocess` calls them."""
        self._upstreams: dict[str, Upstream] = {}
        self._replacements: dict[str, Upstream] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> UpstreamPool:
        self._stack = AsyncExitStack()
        self.http = await self._stack.enter_async_context(http_session())
        self.http_public = await self._stack.enter_async_context(http_session(public_only=True))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drain_seconds = min(self.drain_seconds, 5)
        await asyncio.gather(*(upstream.stop() for upstream in self._upstreams.values()))
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._stack.aclose()

    def http_of(self, spec: UpstreamSpec) -> aiohttp.ClientSession:
        """The client for a server: one that reaches public addresses alone where no other was approved."""
        return self.http_public if spec.public_only else self.http

    async def fetch_json(self, url: str) -> Any:
        """The JSON at an address that the operator named.

        Raises:
            OSError, TimeoutError: it cannot be fetched. ValueError: not JSON, or too much of it.
        """
        try:
            async with asyncio.timeout(FETCH_SECONDS), self.http.get(url, allow_redirects=False) as response:
                response.raise_for_status()
                body = await response.content.read(MAX_FETCHED_BYTES + 1)
        except aiohttp.ClientError as exc:
            raise OSError(str(exc)) from exc
        if len(body) > MAX_FETCHED_BYTES:
            raise ValueError(f"{url} answered more than {MAX_FETCHED_BYTES:,} bytes")
        return json.loads(body)

    def __iter__(self) -> Any:
        return iter(list(self._upstreams.values()))

    def find(self, server_id: str) -> Upstream | None:
        return self._upstreams.get(server_id)

    def get(self, server_id: str) -> Upstream:
        """The upstream of that id.

        Raises:
            ServerNotFound: with the ids there are.
        """
        upstream = self._upstreams.get(server_id)
        if upstream is None:
            known = ", ".join(sorted(self._upstreams)) or "none"
            raise ServerNotFound(f"no server {server_id!r}", suggestion=f"servers: {known}")
        return upstream

    async def request(
        self,
        server_id: str,
        method: str,
        params: Params | None = None,
        *,
        caller: Caller | None = None,
        attempt: Attempt | None = None,
    ) -> Raw:
        """Ask a server, whichever form of it runs at the moment. Raises as `Upstream.request`."""
        while True:
            upstream = self.get(server_id)
            try:
                return await upstream.request(method, params, caller=caller, attempt=attempt)
            except (UpstreamUnavailable, ConnectionLost) as exc:
                # Not sent, and replaced meanwhile: the new form takes the call.
                if getattr(exc, "sent", False) or self._upstreams.get(server_id) in (None, upstream):
                    raise

    def owner(self, tool_id: str) -> str | None:
        """The server whose id a tool's full name begins with, or is."""
        candidates = [
            server_id for server_id in self._upstreams if tool_id == server_id or tool_id.startswith(f"{server_id}__")
        ]
        return max(candidates, key=len, default=None)

    def dialled(self, server_id: str) -> Upstream | None:
        """The upstream that an instance of this id joins when it dials in; `None` where the id is free.

        Raises:
            Conflict: the id belongs to a server that does not dial in.
        """
        upstream = self._replacements.get(server_id) or self._upstreams.get(server_id)
        if upstream is not None and not upstream.spec.dialin:
            raise Conflict(f"server id {server_id!r} is taken by a {upstream.spec.kind} server: register under another")
        return upstream

    def add(self, server_id: str, spec: UpstreamSpec) -> Upstream:
        """Start supervising a server. Returns at once; `on_state` tells when it is up.

        Raises:
            Conflict: the id is taken.
        """
        if server_id in self._upstreams:
            raise Conflict(f"server id {server_id!r} is taken: choose another, or detach that server first")
        upstream = self._upstreams[server_id] = self._start(server_id, spec)
        return upstream

    async def remove(self, server_id: str, forget: Callable[[], None] = lambda: None) -> None:
        """Stop a server and forget it; calls under way may end. Its id is free only when all of it is gone.

        Args:
            forget: called once it has stopped, before the id is free.
        """
        upstream = self._upstreams.get(server_id)
        if upstream is None:
            return
        await upstream.stop()
        if self._upstreams.get(server_id) is upstream:
            self._on_state(server_id, "stopped", "detached")
            forget()
            del self._upstreams[server_id]

    @asynccontextmanager
    async def trial(
        self, spec: UpstreamSpec, stderr_into: Callable[[Any], None] = lambda lines: None
    ) -> AsyncIterator[tuple[Connection, list[dict[str, Any]]]]:
        """Start a server on the side, for nobody to call, and read its tools.

        Args:
            stderr_into: gets the (live) deque of its last stderr lines.

        Raises:
            CommandNotFound, UpstreamProtocolError, ConnectionLost, RemoteError, TimeoutError, ReferenceError.
        """
        given = resolved(spec)
        seconds = spec.start_timeout_seconds or self.start_timeout_seconds
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(seconds):
                opened: contextlib.AbstractAsyncContextManager[Any]
                if spec.command:
                    opened = open_stdio(
                        given,
                        on_notification=lambda *_: None,
                        max_message_bytes=self.max_message_bytes,
                        stderr_into=stderr_into,
                    )
                else:
                    opened = open_streamable_http(
                        given,
                        self.http_of(spec),
                        on_notification=lambda *_: None,
                        max_message_bytes=self.max_message_bytes,
                        shown=shown_url(spec.url or ""),
                    )
                connection: Connection = await stack.enter_async_context(opened)
                tools = await read_list(connection, "tools")
                if isinstance(connection, HttpConnection):
                    tools = connection.learn_tools(tools)
            yield connection, tools

    async def replace(self, server_id: str, spec: UpstreamSpec) -> None:
        """Swap a server for another form of itself without losing a call: start the new, swap, drain the old.

        Raises:
            UpstreamUnavailable: the new one does not come up; the old one goes on.
        """
        old = self.get(server_id)
        if old.spec.dialin and spec.dialin and not (old.spec.command or spec.command):
            old.spec = spec  # nothing of ours runs: whoever is connected stays
            if old.connections:
                self.tools_changed(old, old._union())
            return
        new = self._replacements[server_id] = self._start(server_id, spec)
        deadline = time.monotonic() + (spec.start_timeout_seconds or self.start_timeout_seconds)
        try:
            while new.state not in ("up", "idle"):
                gave_up = new.state == "failed" or (new.state == "down" and not spec.dialin)
                if gave_up or time.monotonic() > deadline:
                    raise UpstreamUnavailable(f"server {server_id!r} does not start as configured: {new.last_error}")
                await new._changed_within(deadline - time.monotonic())
        except BaseException:
            del self._replacements[server_id]
            await new.stop()
            raise
        del self._replacements[server_id]
        self._upstreams[server_id] = new
        new.take_over(old)
        task = asyncio.create_task(old.stop())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _start(self, server_id: str, spec: UpstreamSpec) -> Upstream:
        self.forwarded.update(name.lower() for name in spec.forward_headers)
        upstream = Upstream(server_id, spec, self)
        upstream.task = asyncio.create_task(upstream.run(), name=f"upstream {server_id}")
        return upstream

    # What an upstream reports

    def _is_current(self, upstream: Upstream) -> bool:
        """Whether it speaks for its id: neither replaced nor detached."""
        server_id = upstream.server_id
        return (self._replacements.get(server_id) or self._upstreams.get(server_id)) is upstream

    def server_up(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None:
        if not self._is_current(upstream):
            return
        self._on_tools(upstream.server_id, upstream.spec, tools)
        self._on_state(upstream.server_id, "up", None)

    def tools_changed(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None:
        if self._is_current(upstream):
            self._on_tools(upstream.server_id, upstream.spec, tools)

    def described(self, upstream: Upstream, info: ServerInfo) -> None:
        if self._is_current(upstream):
            self._on_info(upstream.server_id, info)

    def listed(self, upstream: Upstream, kind: str, entries: list[dict[str, Any]]) -> None:
        if self._is_current(upstream):
            self._on_list(upstream.server_id, kind, entries)

    def announced(self, upstream: Upstream, method: str, params: Raw | None) -> None:
        if self._is_current(upstream):
            self._on_notification(upstream.server_id, method, params)

    def client_gone(self, client: object) -> None:
        """A client has left: what was kept for it alone ends."""
        for upstream in (*self._upstreams.values(), *self._replacements.values()):
            upstream.lanes.drop(client)

    def roots_changed(self, client: object) -> None:
        """A client has other roots now: those servers hear of it that are its own."""
        for upstream in self._upstreams.values():
            upstream.lanes.tell(client, "notifications/roots/list_changed")

    def server_down(self, upstream: Upstream, reason: str) -> None:
        if self._upstreams.get(upstream.server_id) is upstream and not upstream.ending:
            self._on_state(upstream.server_id, "idle" if reason == "idle" else "down", reason)

    def failed(self, upstream: Upstream, reason: str) -> None:
        if self._upstreams.get(upstream.server_id) is upstream:
            self._on_state(upstream.server_id, "failed", reason)

    def restarted(self, upstream: Upstream) -> None:
        self._on_restart(upstream.server_id)
