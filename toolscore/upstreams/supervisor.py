"""Keeps each upstream alive: one task each that starts it, watches it, backs off, restarts it, or gives up.

The task that enters a connection also leaves it. What the tools are called and who may use them is not known here:
the pool tells the floors above through two callables.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from msgspec import Raw

from toolscore.errors import Conflict, ServerNotFound, ToolScoreError, UpstreamUnavailable
from toolscore.jsonrpc import ConnectionLost, Params, RemoteError
from toolscore.models import ServerState, UpstreamSpec, timestamp
from toolscore.upstreams.connection import Connection, list_tools
from toolscore.upstreams.inprocess import open_inprocess
from toolscore.upstreams.process import ChildProtocol, CommandNotFound, spawn, stop
from toolscore.upstreams.references import resolved
from toolscore.upstreams.stdio import StdioConnection, open_stdio
from toolscore.upstreams.streamable_http import http_session, open_streamable_http
from toolscore.upstreams.websocket import open_endpoint

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
        self.task: asyncio.Task[None] | None = None

    async def request(
        self,
        method: str,
        params: Params | None = None,
        *,
        on_progress: Callable[[Raw], None] | None = None,
        attempt: Attempt | None = None,
    ) -> Raw:
        """Ask the least busy connection; wait for one while the server starts.

        Raises:
            UpstreamUnavailable: it is down or given up: the call did not happen.
            ConnectionLost: it went away while it was asked.
            RemoteError: it answered with an error.
        """
        self.in_flight += 1
        try:
            for trial in range(3):
                connection = self._pick() or await self._wait_for_connection()
                connection.in_flight += 1
                try:
                    if attempt is not None:
                        attempt.asked = True
                    return await connection.request(method, params, on_progress=on_progress)
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

    def _pick(self) -> Connection | None:
        connections = self.connections
        if len(connections) == 1:
            return connections[0]
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
                        tools = await list_tools(connection)
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
            except Exception as exc:  # a task's outermost line: one broken server must not end the gateway
                log.exception("supervising a server failed", server=self.server_id)
                error = f"{type(exc).__name__}: {exc}"
            self.pid = None
            if self._stop.is_set():
                return
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

    def _open(self) -> contextlib.AbstractAsyncContextManager[Any]:
        spec, pool = resolved(self.spec), self._pool
        if spec.command:

            def keep(stderr: Any) -> None:
                self.stderr = stderr

            return open_stdio(
                spec, on_notification=self._notified, max_message_bytes=pool.max_message_bytes, stderr_into=keep
            )
        if spec.url:
            return open_streamable_http(
                spec, pool.http, on_notification=self._notified, max_message_bytes=pool.max_message_bytes
            )
        if spec.endpoint:
            return open_endpoint(self.server_id, spec, max_message_bytes=pool.max_message_bytes)
        return open_inprocess(spec, on_notification=self._notified)

    def _came_up(self, connection: Connection, tools: list[dict[str, Any]]) -> None:
        if isinstance(connection, StdioConnection):
            self.pid = connection.pid
        self.connections.append(connection)
        self._listed = {id(connection): tools}
        self._last_call = time.monotonic()
        self._pool.server_up(self, tools)
        self._set_state("up")

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
                    refresh = asyncio.create_task(self._read_tools_again(connection))
                idle = time.monotonic() - self._last_call
                if self.spec.idle_stop_seconds and not self.in_flight and idle >= self.spec.idle_stop_seconds:
                    self._called.clear()
                    self._slept = True
                    self.connections.clear()
                    return None
        finally:
            for task in (closed, stop, restart, refresh):
                task.cancel()

    async def _read_tools_again(self, connection: Connection) -> None:
        """Read the list once more, and wait for the next change. Those that come close together count once."""
        await asyncio.sleep(REFRESH_SECONDS)
        self._refresh.clear()
        await self._read_tools(connection)
        await asyncio.sleep(REFRESH_REST_SECONDS)  # a server that changes all the time is not followed all the time
        await self._refresh.wait()

    async def _read_tools(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._pool.start_timeout_seconds):
                self._listed[id(connection)] = await list_tools(connection)
            self._pool.tools_changed(self, self._union())
        except (RemoteError, ConnectionLost, ToolScoreError, TimeoutError) as exc:
            log.warning("cannot read a server's tools again", server=self.server_id, error=str(exc))

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

    def _notified(self, method: str, _params: Raw | None) -> None:
        if method == "notifications/tools/list_changed":
            self._refresh.set()

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
            tools = await list_tools(connection)
        if self._stop.is_set():
            raise UpstreamUnavailable(f"server {self.server_id!r} was detached meanwhile")
        self.connections.append(connection)
        self._listed[id(connection)] = tools
        if len(self.connections) == 1:
            self._pool.server_up(self, tools)
        else:
            self._pool.tools_changed(self, self._union())
        self._set_state("up")
        refresher = asyncio.create_task(self._refresh_instance(connection))
        try:
            yield
        finally:
            refresher.cancel()
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
            await self._read_tools_again(connection)

    def notified(self, method: str, params: Raw | None) -> None:
        """A notification of an instance that dialled in."""
        self._notified(method, params)

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


class UpstreamPool:
    """All upstreams. Use as `async with UpstreamPool(…) as pool`.

    Args:
        on_tools: `(server_id, spec, tools)`: what a server lists, now that it is up or has changed.
        on_state: `(server_id, state, reason)` for each change that callers notice.
        has_tools: whether the tools of a server are known already, so that a lazy one need not start to tell them.
    """

    def __init__(
        self,
        *,
        on_tools: Callable[[str, UpstreamSpec, list[dict[str, Any]]], None] = lambda *_: None,
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
        self._on_state = on_state
        self._on_restart = on_restart
        self.has_tools = has_tools
        self.start_timeout_seconds = start_timeout_seconds
        self.max_start_failures = max_start_failures
        self.max_message_bytes = max_message_bytes
        self.drain_seconds = drain_seconds
        self.reconnect_seconds = reconnect_seconds
        self._upstreams: dict[str, Upstream] = {}
        self._replacements: dict[str, Upstream] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> UpstreamPool:
        self._stack = AsyncExitStack()
        self.http = await self._stack.enter_async_context(http_session())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drain_seconds = min(self.drain_seconds, 5)
        await asyncio.gather(*(upstream.stop() for upstream in self._upstreams.values()))
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._stack.aclose()

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
        on_progress: Callable[[Raw], None] | None = None,
        attempt: Attempt | None = None,
    ) -> Raw:
        """Ask a server, whichever form of it runs at the moment. Raises as `Upstream.request`."""
        while True:
            upstream = self.get(server_id)
            try:
                return await upstream.request(method, params, on_progress=on_progress, attempt=attempt)
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
        task = asyncio.create_task(old.stop())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _start(self, server_id: str, spec: UpstreamSpec) -> Upstream:
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

    def server_down(self, upstream: Upstream, reason: str) -> None:
        if self._upstreams.get(upstream.server_id) is upstream and not upstream.ending:
            self._on_state(upstream.server_id, "idle" if reason == "idle" else "down", reason)

    def failed(self, upstream: Upstream, reason: str) -> None:
        if self._upstreams.get(upstream.server_id) is upstream:
            self._on_state(upstream.server_id, "failed", reason)

    def restarted(self, upstream: Upstream) -> None:
        self._on_restart(upstream.server_id)
