"""What keeps one server alive: one task that starts it, watches it, backs off, starts it again, or gives up.

The task that enters a connection also leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

import structlog

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError
from toolscore.core.models import UpstreamSpec
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.lists import read_tools
from toolscore.upstreams.process.last_words import cause_of, hint_for
from toolscore.upstreams.process.old_sdk import needs_old_sdk, with_old_sdk
from toolscore.upstreams.process.spawn import ChildProtocol, CommandNotFound, spawn, stop
from toolscore.upstreams.protocol import OURSELVES
from toolscore.upstreams.references import hidden, resolved
from toolscore.upstreams.upstream import Host, Upstream

__all__ = ["Life", "backoff_seconds"]

log = structlog.get_logger(__name__)

FIRST_RESTART_SECONDS = 0.1
"""A server that was killed is back at once; the next failures wait twice as long each."""
MAX_BACKOFF_SECONDS = 30.0
NEWS_SECONDS = 1.0
ELSEWHERE_SECONDS = 2.0
"""How often it is asked whether another gateway could start what this one could not."""
MOVE_SECONDS = 0.05
MAX_MOVES = 40
"""So often a server is looked for at another gateway before it counts as down."""
HEALTHY_SECONDS = 10.0
"""Up for this long, a server has earned a fast restart again."""


def backoff_seconds(failures: int, jitter: float) -> float:
    """The wait before try number `failures` + 1; `jitter` in [0, 1) spreads servers that failed together."""
    return float(min(MAX_BACKOFF_SECONDS, FIRST_RESTART_SECONDS * 2.0 ** min(failures, 20)) * (0.75 + jitter / 2))


@dataclass(frozen=True)
class _End:
    """How one life of a server ended that was not meant to.

    Attributes:
        reason: in words.
        hopeless: trying again will not help.
        moved: another gateway has it, or had it until now.
        lost_sent: the connection broke off after something had been sent.
    """

    reason: str
    hopeless: bool = False
    lost_sent: bool = False
    moved: bool = False


class Life:
    """Supervises one upstream, from `start` to `stop`."""

    def __init__(self, upstream: Upstream, host: Host) -> None:
        self.upstream = upstream
        self._host = host
        self._orders = upstream.orders
        self._sleeps = False
        self._up_at: float | None = None
        self.lets_go = True
        """Whether other gateways may have the server when this life ends: not while another one of it is here."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to supervise; returns at once."""
        self._task = asyncio.create_task(self._run(), name=f"upstream {self.upstream.server_id}")

    async def stop(self) -> None:
        """End the task and everything that the server started. Idempotent."""
        self._orders.stop.set()
        if self._task is not None:
            if self.upstream.state == "starting":
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.upstream.lanes.close()

    async def _run(self) -> None:
        try:
            await self._host.opened.wait()
            if self.upstream.spec.dialin:
                await self._supervise_dialled_in()
            else:
                await self._supervise()
        finally:
            if self._host.owners is not None and self.lets_go:
                await self._host.owners.let_go(self.upstream.server_id)
            self.upstream.set_state("stopped")

    # A server that we start or connect to

    async def _supervise(self) -> None:
        upstream, orders = self.upstream, self._orders
        failures = start_failures = moves = 0
        was_ever_up = False
        while not orders.stop.is_set():
            asleep = self._sleeps or (upstream.spec.lazy and self._host.has_tools(upstream.server_id))
            if asleep and not orders.called.is_set():
                upstream.set_state("idle")
                self._host.server_idle(upstream)
                await orders.first_of(orders.called, orders.restart)
                if orders.stop.is_set():
                    return
            ended = await self._live_once()
            upstream.pid = None
            if orders.stop.is_set():
                return
            if not upstream.connections:
                await upstream.lanes.end_all()
            was_ever_up |= self._up_at is not None
            if self._up_at is not None:
                start_failures = 0
            if ended is None:  # idle, or restarted on request
                upstream.restarts += not self._sleeps
                continue
            if ended.moved and (self._up_at is not None or moves < MAX_MOVES):
                moves = moves + 1 if self._up_at is None else 0
                await asyncio.sleep(MOVE_SECONDS * random.uniform(0.5, 1.5) * (moves + 1))
                continue
            moves = 0
            if self._left_when_asked(ended):
                upstream.probe = False
                continue
            if self._can_have_the_old_sdk():
                continue
            upstream.failed_starts += self._up_at is None
            healthy = self._up_at is not None and time.monotonic() - self._up_at > HEALTHY_SECONDS
            failures = 0 if healthy else failures + 1
            start_failures += self._up_at is None
            if self._up_at is not None:
                upstream.restarts += 1
                self._host.restarted(upstream)
            error = hidden(ended.reason + self._last_words(), upstream.spec)
            # What worked before, or stands elsewhere, may come back; a process of ours that never started is given up.
            never_started = start_failures >= self._host.rules.max_start_failures and not was_ever_up
            if ended.hopeless or (never_started and upstream.spec.command):
                log.error("a server does not start", server=upstream.server_id, error=error)
                await self._give_up(error)
                failures = start_failures = 0
            else:
                log.warning("a server is down", server=upstream.server_id, error=error)
                upstream.set_state("down", error)
                if self._host.owners is None:  # else another gateway may have it up
                    self._host.server_down(upstream, error)
                await self._back_off(failures - 1 if failures else 0)

    async def _live_once(self) -> _End | None:
        """Start the server and serve over it to its end. `None`: it was meant to end."""
        upstream, orders = self.upstream, self._orders
        upstream.set_state("starting")
        self._sleeps = False
        orders.restart.clear()
        upstream.started_at = time.monotonic()
        self._up_at = None
        other: str | None = None
        try:
            async with AsyncExitStack() as stack:
                other = await self._elsewhere()
                starts = upstream.spec.command and other is None
                turn = self._host.turn_to_start() if starts else contextlib.nullcontext()
                async with turn, asyncio.timeout(upstream.start_seconds):
                    way = upstream.open() if other is None else self._over(other)
                    connection: Connection = await stack.enter_async_context(way)
                    if connection.info.gateway is not None and connection.info.gateway == self._host.identity:
                        return _End(OURSELVES, hopeless=True)
                    tools = await read_tools(connection)
                await upstream.tools_come(tools)
                self._up_at = time.monotonic()
                upstream.came_up(connection, tools)
                reason: str | None = None
                try:
                    reason = await self._serve(connection)
                finally:
                    upstream.connections.clear()
                    upstream.leave(connection)
                    told = hidden(reason, upstream.spec) if reason else "stopped on request"
                    if other is None and not self._sleeps:
                        self._host.server_down(upstream, told)
            return _End(reason, moved=other is not None) if reason is not None else None
        except CommandNotFound as exc:
            return _End(str(exc), hopeless=True)
        except TimeoutError:
            return _End(
                f"it did not answer within {upstream.start_seconds:g} s of its start: check its command, or raise its "
                "`start_timeout_seconds`"
            )
        except RemoteError as exc:
            return _End(f"it refused to start: {exc}")
        except (ConnectionLost, ToolScoreError) as exc:
            lost_sent = isinstance(exc, ConnectionLost) and exc.sent and other is None
            return _End(str(exc), lost_sent=lost_sent, moved=other is not None)
        except Exception as exc:  # a task's outermost line: one broken server must not end the gateway
            log.exception("supervising a server failed", server=upstream.server_id)
            return _End(f"{type(exc).__name__}: {exc}")

    async def _elsewhere(self) -> str | None:
        """The other gateway that has the server; `None`: this one, from now on."""
        owners = self._host.owners
        if owners is None or self.upstream.spec.instances_here == "each":
            return None
        return await owners.elsewhere(self.upstream, self._orders.restart.set)

    def _over(self, other: str) -> AbstractAsyncContextManager[Connection]:
        assert self._host.owners is not None
        return self._host.owners.over(self.upstream, other)

    def _left_when_asked(self, ended: _End) -> bool:
        """Whether it may have left since it was asked for the stateless era: there are servers that leave when the
        first message is not `initialize`.
        """
        spec = self.upstream.spec
        may_leave = bool(spec.command) or (spec.url or "").startswith("ws")
        return self._up_at is None and self.upstream.probe and may_leave and ended.lost_sent

    def _can_have_the_old_sdk(self) -> bool:
        """Whether it did not start because of its SDK; the next start then has the one that it was written for."""
        upstream = self.upstream
        older = with_old_sdk(upstream.runs) if self._up_at is None else None
        if older is None or not needs_old_sdk(upstream.stderr):
            return False
        log.warning("a server was written for an older SDK: it is started with mcp<2", server=upstream.server_id)
        upstream.runs = older
        return True

    async def _serve(self, connection: Connection) -> str | None:
        """Wait until the connection ends (the reason), or it shall end (`None`)."""
        upstream, orders = self.upstream, self._orders
        closed = asyncio.create_task(connection.wait_closed())
        ordered = {asyncio.create_task(orders.stop.wait()), asyncio.create_task(orders.restart.wait())}
        refresher = asyncio.create_task(upstream.lists.keep_fresh(connection))
        idle_stop = upstream.spec.idle_stop_seconds
        try:
            while True:
                idle = time.monotonic() - upstream.last_call
                timeout = max(0.01, idle_stop - idle) if idle_stop else None
                done, _ = await asyncio.wait({closed, *ordered}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if closed in done:
                    return closed.result()
                if done:
                    await upstream.drain_connection(connection)
                    return None
                idle = time.monotonic() - upstream.last_call
                if idle_stop and not upstream.in_flight and idle >= idle_stop:
                    orders.called.clear()
                    self._sleeps = True
                    upstream.connections.clear()
                    return None
        finally:
            for task in (closed, *ordered, refresher):
                task.cancel()

    # A server that dials in

    async def _supervise_dialled_in(self) -> None:
        """Wait for instances; start one ourselves where a command is given."""
        upstream = self.upstream
        if upstream.state != "up":
            upstream.set_state("down", "no instance has connected yet")
        borrowing = asyncio.create_task(self._borrow_instances())
        try:
            await self._run_instances()
        finally:
            borrowing.cancel()
            await asyncio.gather(borrowing, return_exceptions=True)

    async def _borrow_instances(self) -> None:
        """While no instance is connected here, use those of another gateway that has some."""
        upstream, owners = self.upstream, self._host.owners
        while owners is not None:
            other = await owners.who_has_instances(upstream.server_id) if not upstream.connections else None
            if other is None:
                await owners.news(NEWS_SECONDS)
                continue
            try:
                async with owners.over(upstream, other) as connection, upstream.instance(connection):
                    ends = {asyncio.create_task(connection.wait_closed()), asyncio.create_task(upstream.has_own())}
                    try:
                        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for end in ends:
                            end.cancel()
            except (ConnectionLost, RemoteError, ToolScoreError, TimeoutError) as exc:
                log.debug("instances of another gateway cannot be used", server=upstream.server_id, error=str(exc))
                await asyncio.sleep(NEWS_SECONDS)
            except Exception:  # a task's outermost line: without it no instance would be borrowed any more
                log.exception("instances of another gateway cannot be used", server=upstream.server_id)
                await asyncio.sleep(NEWS_SECONDS)

    async def _run_instances(self) -> None:
        upstream, orders = self.upstream, self._orders
        if upstream.spec.command is None:
            await orders.stop.wait()
        failures = 0
        while not orders.stop.is_set():
            if not await self._is_to_start():
                break
            started = time.monotonic()
            error = hidden(await self._run_instance(upstream.spec) + self._last_words(), upstream.spec)
            if orders.stop.is_set():
                break
            failures = 0 if time.monotonic() - started > HEALTHY_SECONDS else failures + 1
            upstream.restarts += 1
            self._host.restarted(upstream)
            if failures >= self._host.rules.max_start_failures:
                await self._give_up(error)
                orders.restart.clear()
                failures = 0
            else:
                upstream.last_error = error
                await self._back_off(failures)
        await upstream.drain()

    async def _is_to_start(self) -> bool:
        """Wait until it is for this gateway to start the process. `False`: the server shall stop before."""
        owners, orders = self._host.owners, self._orders
        if owners is None:
            return True
        turn = asyncio.ensure_future(owners.wait_to_start(self.upstream.server_id, orders.restart.set))
        stopping = asyncio.create_task(orders.stop.wait())
        try:
            await asyncio.wait({turn, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return not orders.stop.is_set()
        finally:
            for task in (turn, stopping):
                task.cancel()

    async def _run_instance(self, given: UpstreamSpec) -> str:
        """One life of the process that dials in. Returns how it ended."""
        upstream, orders = self.upstream, self._orders
        protocol = ChildProtocol()
        try:
            spec = resolved(given)
            assert spec.command is not None
            await spawn(protocol, spec.command, spec.args, env=spec.env, cwd=spec.cwd, pipes=False)
            upstream.pid, upstream.stderr = protocol.pid, protocol.stderr
            orders.restart.clear()
            exited = asyncio.ensure_future(asyncio.shield(protocol.exited))
            stopping = asyncio.create_task(orders.first_of(orders.restart))
            await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if orders.stop.is_set():
                await upstream.drain()
            return protocol.exit_reason()
        except CommandNotFound as exc:
            return str(exc)
        finally:
            upstream.pid = None
            await asyncio.shield(asyncio.ensure_future(stop(protocol)))

    # Both

    async def _give_up(self, error: str) -> None:
        """Leave the server alone until somebody asks for a restart."""
        self.upstream.set_state("failed", error)
        self._host.failed(self.upstream, error)
        owners = self._host.owners
        if owners is None or self.upstream.spec.instances_here == "each":
            await self._orders.first_of(self._orders.restart)
            return
        if self.lets_go:
            await owners.let_go(self.upstream.server_id)  # another gateway may be able to start it
        while not (self._orders.restart.is_set() or self._orders.stop.is_set()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ELSEWHERE_SECONDS):
                    await self._orders.first_of(self._orders.restart)
            if await owners.is_elsewhere(self.upstream.server_id):
                return

    async def _back_off(self, failures: int) -> None:
        seconds = backoff_seconds(failures, random.random())
        self.upstream.next_try_at = time.time() + seconds
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._orders.first_of(self._orders.restart)
        finally:
            self.upstream.next_try_at = None

    def _last_words(self) -> str:
        """What the process said of the reason, and what mends it."""
        cause = cause_of(self.upstream.stderr)
        hint = hint_for(cause)
        return (f"; it said: {cause}" if cause else "") + (f" ({hint})" if hint else "")
