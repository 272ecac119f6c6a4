"""One server as the rest of the gateway sees it: its state, its connections, and requests to it.

What keeps it alive is `life`; what it lists is `lists`; which connection a request goes over is `lanes`.

One module: a request must see state, connections and lanes at one moment; what could be told apart went out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol

import structlog
from msgspec import Raw

from toolscore.core.clock import timestamp
from toolscore.core.errors import ToolScoreError, UpstreamUnavailable
from toolscore.core.jsonrpc import ConnectionLost, Params, RemoteError
from toolscore.core.models import ServerState, UpstreamSpec
from toolscore.core.rules import ServerRules
from toolscore.core.tasks import TaskSet
from toolscore.upstreams.caller import EVERYBODY, OTHER_GATEWAY, Caller, ClientSide
from toolscore.upstreams.connection import Connection, PeerConnection, SharedSession, ensure_log_level
from toolscore.upstreams.http import HttpConnection
from toolscore.upstreams.lanes import Habits, Lane, Lanes, has_own_lane, lane_for, own_lane, sticky_value
from toolscore.upstreams.lists import Lists, read_list
from toolscore.upstreams.opening import Dialer
from toolscore.upstreams.process.spawn import CommandNotFound
from toolscore.upstreams.protocol import BROADCAST, CHANGED_LISTS, ServerInfo, session_params
from toolscore.upstreams.stdio import StdioConnection
from toolscore.upstreams.subscriptions import Subscriptions

__all__ = ["Attempt", "Host", "Orders", "Ownership", "Upstream"]

log = structlog.get_logger(__name__)

GONE_AFTER = 2
"""So many starts in a row that failed make a server that is gone: its callers are answered at once."""
RETRY_SECONDS, RETRY_GONE_SECONDS = 1.0, 10.0
"""A call to a server that is down, or gone, ends the back-off, but no more often than this."""
ANOTHER_TRY_SECONDS = 0.1
"""How long a request that was never sent waits for another connection."""
MAX_TRIALS = 3
SESSION_SECONDS = 5.0
"""How long a server that speaks without sessions may take to open one."""
WATCH_SECONDS = 10.0
DRAIN_POLL_SECONDS = 0.01
MAY_BE_OWN = (PeerConnection, HttpConnection)
"""Connections of which a client may have one of its own."""


class Attempt:
    """What became of a request.

    Attributes:
        asked: it has been handed to a server: it may have been carried out.
        over: the server went away with it: it does no more from now on.
        of_caller: it failed because of who asked, who was in a hurry or had credentials that are not good: that says
            nothing of the server.

    Args:
        check: called just before the request is handed over; what it raises keeps it from being.
    """

    __slots__ = ("_check", "asked", "of_caller", "over")

    def __init__(self, check: Callable[[], None] | None = None) -> None:
        self._check = check
        self.asked = False
        self.of_caller = False
        self.over = False

    def hand_over(self) -> None:
        """The request goes to a server now."""
        if self._check is not None:
            self._check()
        self.asked = True


class _HomeGone(ConnectionLost):
    """The gateway that a call belongs to does not take it."""


class Ownership(Protocol):
    """Which gateway has a server, where several share their servers (`replicas.owners`)."""

    async def elsewhere(self, upstream: Upstream, let_go: Callable[[], None]) -> str | None: ...
    async def is_elsewhere(self, server_id: str) -> bool: ...
    async def let_go(self, server_id: str) -> None: ...
    def over(self, upstream: Upstream, other: str) -> contextlib.AbstractAsyncContextManager[Connection]: ...
    async def home(self, server_id: str, name: str) -> str | None: ...
    async def instance_of(
        self, server_id: str, name: str, chosen: str, there: set[str]
    ) -> tuple[str | None, str | None]: ...
    async def request(
        self, link: str, server_id: str, method: str, params: Params | None, caller: Caller | None
    ) -> Raw: ...
    async def instances_came(self, server_id: str, names: set[str]) -> None: ...
    async def instances_went(self, server_id: str) -> None: ...
    async def who_has_instances(self, server_id: str) -> str | None: ...
    async def wait_to_start(self, server_id: str, lost: Callable[[], None]) -> None: ...
    async def news(self, seconds: float) -> None: ...
    def restart(self, server_id: str) -> bool: ...
    def session(self, key: str, fresh: bool) -> SharedSession: ...
    def pass_on(self, server_id: str, method: str, params: Raw | None) -> None: ...


class Host(Protocol):
    """What an upstream needs of the pool that it stands in, and what it tells it."""

    rules: ServerRules
    identity: str | None
    owners: Ownership | None
    reconnect_seconds: float
    opened: asyncio.Event

    def turn_to_start(self) -> contextlib.AbstractAsyncContextManager[None]: ...

    def has_tools(self, server_id: str) -> bool: ...
    async def tools_come(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None: ...
    def server_up(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None: ...
    def server_down(self, upstream: Upstream, reason: str) -> None: ...
    def server_idle(self, upstream: Upstream) -> None: ...
    def failed(self, upstream: Upstream, reason: str) -> None: ...
    def restarted(self, upstream: Upstream) -> None: ...
    def described(self, upstream: Upstream, info: ServerInfo) -> None: ...
    def tools_changed(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None: ...
    def listed(self, upstream: Upstream, kind: str, entries: list[dict[str, Any]]) -> None: ...
    def announced(self, upstream: Upstream, method: str, params: Raw | None) -> None: ...


class Orders:
    """What a server's supervising task is told: that somebody calls, to restart, to stop."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.restart = asyncio.Event()
        self.stop = asyncio.Event()

    async def first_of(self, *events: asyncio.Event) -> None:
        """Wait for one of these events, or for the order to stop."""
        tasks = [asyncio.create_task(event.wait()) for event in (*events, self.stop)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


class Upstream:
    """One server. It has one connection; more where several instances of it dialled in, or clients need their own.

    Attributes:
        connections: those that any client may use.
        stderr: the last lines of its process, live.
        in_flight: requests under way.
    """

    def __init__(self, server_id: str, spec: UpstreamSpec, host: Host, dialer: Dialer) -> None:
        self.server_id = server_id
        self.spec = spec
        self.orders = Orders()
        self.connections: list[Connection] = []
        self.state: ServerState = "starting"
        self.last_error: str | None = None
        self.up_since: str | None = None
        self.restarts = 0
        self.runs = spec
        """What is started: the entry, or that with an older SDK beside it."""
        self.failed_starts = 0
        """In a row."""
        self.next_try_at: float | None = None
        """When it is started again (Unix seconds), while it is down."""
        self.stderr: deque[str] = deque()
        self.pid: int | None = None
        self.in_flight = 0
        self.info: ServerInfo | None = None
        self.habits = Habits()
        self.last_call = self.started_at = time.monotonic()
        self.probe = True
        """Whether to ask for the stateless era at the next start."""
        self.lanes = Lanes(self._open_lane)
        self.subscriptions = Subscriptions()
        self.lists = Lists(
            server_id,
            seconds=lambda: host.rules.start_timeout_seconds,
            relist_seconds=lambda: host.rules.relist_seconds,
            on_tools=partial(host.tools_changed, self),
            before_tools=self.tools_come,
            on_list=partial(host.listed, self),
            on_change=lambda method: host.announced(self, method, None),
        )
        self._host = host
        self._dialer = dialer
        self._changed = asyncio.Event()
        self._own_changed = asyncio.Event()
        self._fresh = False
        self._log_level: str | None = None
        self._tasks = TaskSet()

    @property
    def start_seconds(self) -> float:
        """How long it may take to start."""
        return self.spec.start_timeout_seconds or self._host.rules.start_timeout_seconds

    # Requests

    async def request(
        self,
        method: str,
        params: Params | None = None,
        *,
        caller: Caller | None = None,
        attempt: Attempt | None = None,
    ) -> Raw:
        """Ask the least busy connection, or the caller's own; wait for one while the server starts.

        Args:
            caller: on whose behalf; `None`: the gateway's own.
            attempt: notes whether the request was handed over.

        Raises:
            UpstreamUnavailable: it is down or given up: the call did not happen.
            ConnectionLost: it went away while it was asked.
            RemoteError: it answered with an error.
        """
        self.in_flight += 1
        try:
            stuck: str | None = None
            if self.spec.sticky_argument is not None and method == "tools/call":
                value = sticky_value(self.spec.sticky_argument, params)
                if value is not None:
                    home, stuck = await self._home(value, caller)
                    if home is not None:
                        with contextlib.suppress(_HomeGone):
                            return await self._request_at(home, method, params, caller, attempt)
                        home, stuck = await self._home(value, caller)  # it was not sent: whoever has it now
                        if home is not None:
                            return await self._request_at(home, method, params, caller, attempt)
            for trial in range(1, MAX_TRIALS + 1):
                connection = self._pick(caller, stuck) or await self._wait_for_connection(caller)
                connection.in_flight += 1
                try:
                    if not connection.info.stateless and params is not None and "requestState" in params:
                        session_params(params)  # refuses, before a connection is opened for it
                    lane = self._lane(connection, caller)
                    if lane is not None:
                        return await self._request_in(lane, method, params, caller, attempt)
                    answer = await self._ask(connection, method, params, caller, attempt)
                    if self.last_error is not None and self.state == "up":
                        self.last_error = None
                    return answer
                except ConnectionLost as exc:
                    if attempt is not None:
                        attempt.asked = exc.sent
                    # Never sent: it certainly did not happen, so another connection may have it.
                    if exc.sent or exc.refused or trial == MAX_TRIALS:
                        if exc.refused and not exc.busy:
                            self.last_error = exc.reason
                        raise
                    await self.changed_within(ANOTHER_TRY_SECONDS)
                finally:
                    connection.in_flight -= 1
            raise AssertionError("unreachable")
        finally:
            self.in_flight -= 1
            self.last_call = time.monotonic()

    async def _home(self, value: str, caller: Caller | None) -> tuple[str | None, str | None]:
        """Where calls with this value of the sticky argument go: the other gateway, or the instance."""
        name = f"{caller.principal.name if caller is not None else ''}:{value}"
        instances = {one.instance for one in self.connections if isinstance(one, PeerConnection) and one.instance}
        owners = self._host.owners
        hopped = caller is not None and caller.hopped
        if instances:
            chosen = max(instances, key=lambda one: blake2b(f"{one}:{name}".encode(), digest_size=8).digest())
            if owners is None:
                return None, chosen
            home, instance = await owners.instance_of(self.server_id, name, chosen, instances)
            return (None if hopped else home), instance
        # What runs once is where it runs, and an instance that dialled in is where it is connected.
        if owners is None or hopped or self.spec.dialin or self.spec.instances_here == "one":
            return None, None
        return await owners.home(self.server_id, name), None

    async def _request_at(
        self, home: str, method: str, params: Params | None, caller: Caller | None, attempt: Attempt | None
    ) -> Raw:
        assert self._host.owners is not None
        try:
            if attempt is not None:
                attempt.hand_over()
            return await self._host.owners.request(home, self.server_id, method, params, caller)
        except ConnectionLost as exc:
            if attempt is not None:
                attempt.asked = exc.sent
            if not exc.sent:
                raise _HomeGone(exc.reason, sent=False) from exc
            raise

    def _lane(self, connection: Connection, caller: Caller | None) -> Lane | None:
        if self.spec.dialin or not isinstance(connection, MAY_BE_OWN):
            return None
        return lane_for(
            self.spec, connection.info, self.habits, caller,
            shared_is_free=connection.requests.free_for, lane_is_free=self.lanes.is_free,
        )  # fmt: skip

    async def _request_in(
        self, lane: Lane, method: str, params: Params | None, caller: Caller | None, attempt: Attempt | None = None
    ) -> Raw:
        try:
            async with self.lanes.use(lane) as connection:
                return await self._ask(connection, method, params, caller, attempt)
        except (CommandNotFound, ValueError) as exc:  # a header cannot have two lines, for one
            log.error("a server cannot be reached with a caller's credentials", server=self.server_id, error=str(exc))
            raise UpstreamUnavailable(
                f"server {self.server_id!r} cannot be reached for this client: the gateway's log says why"
            ) from exc

    def _ask(
        self,
        connection: Connection,
        method: str,
        params: Params | None,
        caller: Caller | None,
        attempt: Attempt | None,
    ) -> Awaitable[Raw]:
        if attempt is not None:
            attempt.hand_over()
        if caller is not None and caller.log_level:
            return self._ask_heard(connection, method, params, caller, caller.log_level)
        return connection.request(method, params, caller=caller)

    async def _ask_heard(
        self, connection: Connection, method: str, params: Params | None, caller: Caller, level: str
    ) -> Raw:
        await self._hear(connection, level)
        return await connection.request(method, params, caller=caller)

    async def hear(self, level: str) -> None:
        """Have the server log from this level on, if it runs."""
        self._log_level = level
        connection = self._pick()
        if connection is not None:
            await self._hear(connection, level)

    async def _hear(self, connection: Connection, level: str) -> None:
        if "logging" in connection.info.capabilities and not connection.info.stateless:
            await ensure_log_level(connection, level)

    async def read_anew(self, kind: str) -> None:
        """Read a list (a key of `LISTS`) again, if the server is there and would not tell of its changes."""
        connection = self._pick()
        if connection is not None:
            await self.lists.read_anew(connection, kind)

    def look_again(self) -> None:
        """Somebody lists tools: have them read again, for the next one who does, if the server tells no changes."""
        connection = self._pick()
        if connection is not None and not self.spec.inprocess and self.lists.is_due(connection, "tools"):
            self._tasks.start(self.lists.read_anew(connection, "tools"))

    # What clients watch

    async def watch(self, uri: str, caller: Caller) -> object | None:
        """Have the server tell of changes of a resource. Each call that succeeds needs an `unwatch`.

        Returns:
            Where it is counted, for `unwatch`; `None`: the session that tells is the client's own.

        Raises:
            RemoteError, ConnectionLost, UpstreamUnavailable, UpstreamProtocolError: it does not.
        """
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                connection = self._pick() or await self._wait_for_connection()
                if has_own_lane(self.spec, self.habits, caller):
                    lane = own_lane(self.spec, caller)
                    await self._request_in(lane, "resources/subscribe", {"uri": uri}, caller)
                    return None
                await self.subscriptions.add(uri, connection, caller)
                return self.subscriptions.watched
        except TimeoutError:
            raise UpstreamUnavailable(f"{self.server_id} did not answer within {WATCH_SECONDS:g} s") from None

    async def unwatch(self, uri: str, caller: Caller, counted: object | None) -> None:
        """One who was told of a resource's changes is so no more. Never raises.

        Args:
            counted: what `watch` returned; that of another server which had this id before means nothing here.
        """
        with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError, TimeoutError):
            async with asyncio.timeout(WATCH_SECONDS):
                if counted is self.subscriptions.watched:
                    await self.subscriptions.remove(uri, caller)
                elif counted is None and (lane := own_lane(self.spec, caller)).key in self.lanes:
                    await self._request_in(lane, "resources/unsubscribe", {"uri": uri}, caller)

    def take_over(self, old: Upstream) -> None:
        """What was watched on the form of the server before this one is watched here."""
        self.subscriptions.take_over(old.subscriptions, self.connections)

    # Connections

    def _pick(self, caller: Caller | None = None, instance: str | None = None) -> Connection | None:
        connections = self.connections
        if instance is not None:
            connections = [
                one for one in connections if isinstance(one, PeerConnection) and one.instance == instance
            ] or connections
        if caller is not None and caller.hopped:  # one hop, and no more
            connections = [one for one in connections if not one.elsewhere]
        if len(connections) == 1:
            return connections[0]
        if self.habits.asks and caller is not None and caller.can_be_asked:  # an instance to itself, if there is one
            free = [one for one in connections if isinstance(one, MAY_BE_OWN) and one.requests.free_for(caller)]
            connections = [*free] or connections
        return min(connections, key=lambda connection: connection.in_flight) if connections else None

    async def wait_own(self) -> None:
        """Wait until the server is up on this gateway itself, starting it if it sleeps.

        Raises:
            UpstreamUnavailable: it does not come up.
        """
        await self._wait_for_connection(OTHER_GATEWAY)

    async def _wait_for_connection(self, caller: Caller | None = None) -> Connection:
        """A server that is starting is worth the caller's own time-out; one that is down gets a moment, and one that
        did not start again and again gets none.
        """
        self.orders.called.set()
        deadline = time.monotonic() + self._host.reconnect_seconds
        while True:
            connection = self._pick(caller)
            if connection is not None:
                return connection
            if self.connections:  # those of another gateway alone, and the request comes from one
                raise ConnectionLost("the server is on another gateway by now", sent=False)
            remaining = deadline - time.monotonic()
            is_gone = self.failed_starts >= GONE_AFTER
            tries_again = self.state == "down" and not self.spec.dialin
            if tries_again and time.monotonic() - self.started_at > (RETRY_GONE_SECONDS if is_gone else RETRY_SECONDS):
                self.orders.restart.set()
            over = self.state == "down" and (is_gone or remaining <= 0)
            if self.state in ("failed", "stopped") or over or (is_gone and remaining <= 0):
                raise UpstreamUnavailable(
                    f"server {self.server_id!r} is {self.state}" + (f": {self.last_error}" if self.last_error else ""),
                    suggestion=f"GET /api/v1/servers/{self.server_id} shows its last lines; POST …/restart tries again",
                    retry_after_seconds=self._next_try(),
                )
            await self.changed_within(remaining if self.state == "down" or is_gone else 3600)

    def _next_try(self) -> float | None:
        """Seconds until the server is tried again, where that is known."""
        return round(max(0.1, self.next_try_at - time.time()), 1) if self.next_try_at is not None else None

    async def wait_up(self) -> None:
        """Wait until the server is up, starting it if it sleeps.

        Raises:
            UpstreamUnavailable: it does not come up.
        """
        await self._wait_for_connection()

    def open(self, side: ClientSide = EVERYBODY) -> contextlib.AbstractAsyncContextManager[Any]:
        """A connection to the server, for a client's side. Raises as `Dialer.open`."""

        def keep(stderr: Any) -> None:
            if side is EVERYBODY:
                self.stderr = stderr

        return self._dialer.open(
            self.server_id,
            self.runs,
            side=side,
            probe=self.probe,
            on_notification=self.notified if side is EVERYBODY else partial(self._notified_in_lane, side),
            on_asked=self.asked,
            stderr_into=keep,
            shared=self._shared_session(side),
        )

    def _shared_session(self, side: ClientSide) -> SharedSession | None:
        """The session that other gateways have with the server on behalf of the same clients."""
        owners = self._host.owners
        if owners is None or self.spec.kind != "streamable_http" or self.spec.instances_here == "one":
            return None
        if self.habits.asks and side.owner is None:
            return None  # a question does not say on whose behalf it is put: each gateway asks its own clients
        whose: object = "all" if side.is_shared else sorted(side.offered)
        if side.owner is not None:
            whose = getattr(side.owner.client, "shared_name", None)
            if whose is None:
                return None  # a client of this gateway alone
        fresh, self._fresh = self._fresh, False
        return owners.session(f"{self.server_id}:{self.spec.digest}:{side.credentials}:{whose}", fresh)

    @asynccontextmanager
    async def _open_lane(self, side: ClientSide) -> AsyncIterator[Connection]:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self.start_seconds):
                connection = await self._enter_lane(stack, side)
                if isinstance(connection, HttpConnection):
                    connection.learn_tools(self.lists.tools)
            yield connection

    async def _enter_lane(self, stack: AsyncExitStack, side: ClientSide) -> Connection:
        opened: Connection
        if self.info is None or not self.info.stateless or side.is_shared:
            opened = await stack.enter_async_context(self.open(side))
            return opened
        try:
            async with asyncio.timeout(SESSION_SECONDS):
                opened = await stack.enter_async_context(self.open(side))
                return opened
        except (RemoteError, ToolScoreError, ConnectionLost, TimeoutError) as exc:
            self.habits.has_sessions = False  # it has the stateless era alone, which few servers say
            raise ConnectionLost(f"it opens no session: {exc or 'time-out'}", sent=False) from exc

    # What its life, and instances that dial in, tell it

    def set_state(self, state: ServerState, error: str | None = None) -> None:
        """Put it into another state, and wake whoever waits for one."""
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

    async def changed_within(self, seconds: float) -> None:
        """Wait for another state, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def tools_come(self, tools: list[dict[str, Any]]) -> None:
        """Let whoever judges tools do so before they are taken."""
        await self._host.tools_come(self, tools)

    def came_up(self, connection: Connection, tools: list[dict[str, Any]]) -> None:
        """Use a connection from now on."""
        if isinstance(connection, StdioConnection):
            self.pid = connection.pid
        if isinstance(connection, HttpConnection):
            connection.on_renewed = partial(self._session_renewed, connection)
        connection.hearing.on_more = self.lists.missed
        self.connections.append(connection)
        self.last_call = time.monotonic()
        self.failed_starts = 0
        self.info = connection.info
        self.probe = connection.info.stateless  # the next start need not ask again
        self.lists.put(connection, tools)
        if len(self.connections) == 1:
            self._host.server_up(self, tools)
        else:
            self._host.tools_changed(self, self.lists.tools)
        self._host.described(self, connection.info)
        self.subscriptions.follow(connection)
        self.set_state("up")

    def _session_renewed(self, connection: Connection) -> None:
        """The server has forgotten all that it was told and may be another: ask anew, and have it tell again."""
        self.info = connection.info
        self._host.described(self, connection.info)
        self.lists.read_all()
        self.subscriptions.leave(connection)
        self.subscriptions.follow(connection)
        if self._log_level is not None:
            self._tasks.start(self._hear(connection, self._log_level))

    def leave(self, connection: Connection) -> None:
        """Use a connection no more. Idempotent."""
        self.subscriptions.leave(connection)
        self.lists.drop(connection)
        if connection in self.connections:
            self.connections.remove(connection)

    def asked(self, unasked: bool) -> None:
        """The server asks something of its clients. One without sessions asks in its results: nothing to tell apart.

        Args:
            unasked: while no client waited for it.
        """
        if self.info is None or not self.info.stateless or len(self.lanes):
            self.habits.asks = True
            self.habits.keeps_roots |= unasked

    def notified(self, method: str, params: Raw | None, *, pass_on: bool = True) -> None:
        """The server tells something that belongs to no request.

        Args:
            pass_on: other gateways that have the same session hear it too, as the server tells one of them.
        """
        owners = self._host.owners
        in_session = self.spec.kind == "streamable_http" and self.info is not None and not self.info.stateless
        if pass_on and in_session and owners is not None and method in BROADCAST:
            owners.pass_on(self.server_id, method, params)
        if method in CHANGED_LISTS:
            self.lists.changed(method)
        else:
            self._host.announced(self, method, params)

    def _notified_in_lane(self, side: ClientSide, method: str, params: Raw | None) -> None:
        if method in CHANGED_LISTS or (side.owner is None and method in BROADCAST):
            self.notified(method, params)
        elif side.owner is not None:
            side.owner.announce(self.server_id, method, params)

    # Instances that dial in

    async def negotiate(self, connection: PeerConnection) -> None:
        """Settle the protocol with an instance that dialled in.

        Raises:
            ConnectionLost, RemoteError, UpstreamProtocolError.
        """
        try:
            await connection.negotiate(probe=self.probe)
        except ConnectionLost as exc:
            self.probe &= not exc.sent  # there are servers that leave when the first message is not `initialize`
            raise

    @asynccontextmanager
    async def instance(self, connection: Connection) -> AsyncIterator[None]:
        """Serve calls over an instance that dialled in, for as long as the body runs.

        Raises:
            RemoteError, ConnectionLost, ToolScoreError: it does not list its tools.
        """
        async with asyncio.timeout(self._host.rules.start_timeout_seconds):
            tools = await read_list(connection, "tools")
        await self.tools_come(tools)
        if self.orders.stop.is_set():
            raise UpstreamUnavailable(f"server {self.server_id!r} was detached meanwhile")
        self.came_up(connection, tools)
        await self._own_instances_changed()
        refresher = asyncio.create_task(self.lists.keep_fresh(connection))
        try:
            yield
        finally:
            refresher.cancel()
            self.leave(connection)
            await self._own_instances_changed()
            if self.connections:
                self._host.tools_changed(self, self.lists.tools)
            elif self.state != "stopped":
                self.set_state("down", "the last instance disconnected")
                self._host.server_down(self, "the last instance disconnected")

    async def _own_instances_changed(self) -> None:
        if self._host.owners is None:
            return
        own = [one for one in self.connections if not one.elsewhere]
        if own:
            names = {one.instance for one in own if isinstance(one, PeerConnection) and one.instance is not None}
            await self._host.owners.instances_came(self.server_id, names)
        else:
            await self._host.owners.instances_went(self.server_id)
        self._own_changed.set()

    async def has_own(self) -> None:
        """Wait until an instance is connected to this gateway itself."""
        while all(one.elsewhere for one in self.connections):
            self._own_changed.clear()
            await self._own_changed.wait()

    # Ending

    def restart(self) -> None:
        """Start again, now, whatever the back-off says; where it runs."""
        owners = self._host.owners
        if owners is None or not owners.restart(self.server_id):
            self._fresh = True
            self.orders.restart.set()

    async def drain(self) -> None:
        """Wait until the requests under way have ended; bounded."""
        deadline = time.monotonic() + self._host.rules.drain_seconds
        while self.in_flight and self.connections and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def drain_connection(self, connection: Connection) -> None:
        """Have new calls wait for the next connection, and those under way on this one end; bounded."""
        self.connections.clear()
        deadline = time.monotonic() + self._host.rules.drain_seconds
        while connection.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def wait_drained(self) -> None:
        """Wait until this upstream shall end and its calls have."""
        await self.orders.stop.wait()
        await self.drain()
