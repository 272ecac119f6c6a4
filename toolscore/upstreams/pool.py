"""All upstreams: added, replaced, removed, and found by their ids.

What the tools are called and who may use them is not known here: the pool tells the floors above through callables.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from msgspec import Raw

from toolscore.core.errors import Conflict, ServerNotFound, UpstreamUnavailable
from toolscore.core.jsonrpc import ConnectionLost, Params
from toolscore.core.models import AVAILABLE, ServerState, UpstreamSpec
from toolscore.core.rules import LimitRules, ServerRules
from toolscore.core.tasks import TaskSet
from toolscore.upstreams.caller import Caller
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.http_client import fetch_json
from toolscore.upstreams.inprocess import InProcessServer
from toolscore.upstreams.life import Life
from toolscore.upstreams.lists import READ_AGAIN_SECONDS, read_tools
from toolscore.upstreams.opening import Dialer
from toolscore.upstreams.protocol import ServerInfo
from toolscore.upstreams.upstream import Attempt, Ownership, Upstream

__all__ = ["UpstreamPool"]

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 5.0
"""How long calls under way may take when the gateway ends."""


STARTS_AT_ONCE = 2 + 2 * (os.cpu_count() or 1)
"""Processes that start at a time: more take the time of those who call already."""
PLACE_SECONDS = 5.0


class UpstreamPool:
    """All upstreams. Use as `async with UpstreamPool(…) as pool`.

    Args:
        on_tools: `(server_id, spec, tools)`: what a server lists, now that it is up or has changed.
        before_tools: `(server_id, tools)`, awaited before.
        on_info: `(server_id, info)`: what a server said of itself.
        on_list: `(server_id, kind, entries)`: the prompts, resources or templates that a server lists now.
        on_notification: `(server_id, method, params)`: what a server tells all who listen to it.
        on_state: `(server_id, state, reason)` for each change that callers notice.
        on_restart: `(server_id)` for each restart.
        has_tools: whether the tools of a server are known already, so that a lazy one need not start to tell them.
        rules, limits: how servers are started and let go; what they may send.
        own_ports: where the gateway listens; confined servers are kept off them.
        identity: of this gateway: a server that says the same is a way back to itself.
        owners: says which gateway has a server, where several share them.
        reconnect_seconds: how long a call waits for a server that is down.
        hold: start no server until `opened` is set.
    """

    def __init__(
        self,
        *,
        on_tools: Callable[[str, UpstreamSpec, list[dict[str, Any]]], None] = lambda *_: None,
        before_tools: Callable[[str, list[dict[str, Any]]], Awaitable[None]] | None = None,
        on_info: Callable[[str, ServerInfo], None] = lambda *_: None,
        on_list: Callable[[str, str, list[dict[str, Any]]], None] = lambda *_: None,
        on_notification: Callable[[str, str, Raw | None], None] = lambda *_: None,
        on_state: Callable[[str, ServerState, str | None], None] = lambda *_: None,
        on_restart: Callable[[str], None] = lambda _: None,
        has_tools: Callable[[str], bool] = lambda _: False,
        rules: ServerRules | None = None,
        limits: LimitRules | None = None,
        own_ports: Collection[int] = (),
        identity: str | None = None,
        owners: Ownership | None = None,
        reconnect_seconds: float = 3,
        hold: bool = False,
    ) -> None:
        self._on_tools = on_tools
        self._before_tools = before_tools
        self._on_info = on_info
        self._on_list = on_list
        self._on_notification = on_notification
        self._on_state = on_state
        self._on_restart = on_restart
        self._has_tools = has_tools
        self.identity = identity
        self.owners = owners
        self.rules = rules or ServerRules()
        self.reconnect_seconds = reconnect_seconds
        self.forwarded: set[str] = set()
        """Headers of clients' requests that some server is to have, in lower case."""
        self._dialer = Dialer(own_ports, limits)
        self._lives: dict[str, Life] = {}
        self._told: dict[str, ServerState] = {}
        self._replacements: dict[str, Life] = {}
        self._leaving: set[Life] = set()
        self.opened = asyncio.Event()
        """Set once servers may be started: the doors open first."""
        if not hold:
            self.opened.set()
        self._starting = asyncio.Semaphore(STARTS_AT_ONCE)
        self._retiring = TaskSet()
        self._listed_at = 0.0

    async def __aenter__(self) -> UpstreamPool:
        await self._dialer.__aenter__()
        self.http, self.http_public = self._dialer.http, self._dialer.http_public
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.rules = self.rules.model_copy(update={"drain_seconds": min(self.rules.drain_seconds, CLOSE_SECONDS)})
        await asyncio.gather(*(life.stop() for life in self._lives.values()))
        await self._retiring.wait()
        await self._dialer.__aexit__(*exc)

    def use(self, rules: ServerRules, limits: LimitRules) -> None:
        """Start and let go servers by other rules from now on."""
        self.rules = rules
        self._dialer.use(limits)

    def provide(self, factory: str, server: InProcessServer) -> None:
        """Use this server wherever an entry's `inprocess` names `factory`, instead of making one."""
        self._dialer.provide(factory, server)

    def has_tools(self, server_id: str) -> bool:
        """Whether the tools of a server are known already."""
        return self._has_tools(server_id)

    async def fetch_json(self, url: str) -> Any:
        """The JSON at an address that the operator named. Raises as `http_client.fetch_json`."""
        return await fetch_json(self.http, url)

    @asynccontextmanager
    async def turn_to_start(self) -> AsyncIterator[None]:
        """Hold one of a few places while a process starts: not for long, as one may never come up."""
        await self._starting.acquire()
        release = _once(self._starting.release)
        let_go = asyncio.get_running_loop().call_later(PLACE_SECONDS, release)
        try:
            yield
        finally:
            let_go.cancel()
            release()

    def tools_are_listed(self) -> None:
        """Somebody lists tools: servers that tell no changes are asked again, once for all who list at a time."""
        now = time.monotonic()
        if now - self._listed_at >= READ_AGAIN_SECONDS:
            self._listed_at = now
            for life in self._lives.values():
                life.upstream.look_again()

    def __iter__(self) -> Iterator[Upstream]:
        return iter([life.upstream for life in self._lives.values()])

    def find(self, server_id: str) -> Upstream | None:
        """The upstream of that id."""
        life = self._lives.get(server_id)
        return life.upstream if life is not None else None

    def get(self, server_id: str) -> Upstream:
        """The upstream of that id.

        Raises:
            ServerNotFound: with the ids there are.
        """
        upstream = self.find(server_id)
        if upstream is None:
            known = ", ".join(sorted(self._lives)) or "none"
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
                if getattr(exc, "sent", False) or self.find(server_id) in (None, upstream):
                    raise

    def owner(self, tool_id: str) -> str | None:
        """The server whose id a tool's full name begins with, or is."""
        candidates = [
            server_id for server_id in self._lives if tool_id == server_id or tool_id.startswith(f"{server_id}__")
        ]
        return max(candidates, key=len, default=None)

    def dialled(self, server_id: str) -> Upstream | None:
        """The upstream that an instance of this id joins when it dials in; `None` where the id is free.

        Raises:
            Conflict: the id belongs to a server that does not dial in.
        """
        life = self._replacements.get(server_id) or self._lives.get(server_id)
        upstream = life.upstream if life is not None else None
        if upstream is not None and not upstream.spec.dialin:
            raise Conflict(f"server id {server_id!r} is taken by a {upstream.spec.kind} server: register under another")
        return upstream

    def add(self, server_id: str, spec: UpstreamSpec) -> Upstream:
        """Start supervising a server. Returns at once; `on_state` tells when it is up.

        Raises:
            Conflict: the id is taken.
        """
        if server_id in self._lives:
            raise Conflict(f"server id {server_id!r} is taken: choose another, or detach that server first")
        life = self._lives[server_id] = self._start(server_id, spec)
        return life.upstream

    async def remove(self, server_id: str, forget: Callable[[], None] = lambda: None) -> None:
        """Stop a server and forget it; calls under way may end. Its id is free only when all of it is gone.

        Args:
            forget: called once it has stopped, before the id is free.
        """
        life = self._lives.get(server_id)
        if life is None:
            return
        self._leaving.add(life)
        try:
            await life.stop()
            if self._lives.get(server_id) is life:
                self._tell_state(server_id, "stopped", "detached")
                del self._told[server_id]
                forget()
                del self._lives[server_id]
        finally:
            self._leaving.discard(life)

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
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(spec.start_timeout_seconds or self.rules.start_timeout_seconds):
                opened = self._dialer.open("trial", spec, stderr_into=stderr_into)
                connection: Connection = await stack.enter_async_context(opened)
                tools = await read_tools(connection)
            yield connection, tools

    async def replace(self, server_id: str, spec: UpstreamSpec) -> None:
        """Swap a server for another form of itself without losing a call: start the new, swap, drain the old. One that
        is removed meanwhile stays so.

        Raises:
            UpstreamUnavailable: the new one does not come up; the old one goes on.
        """
        old = self.get(server_id)
        if old.spec.dialin and spec.dialin and not (old.spec.command or spec.command):
            old.spec = spec  # nothing of ours runs: whoever is connected stays
            if old.connections:
                self.tools_changed(old, old.lists.tools)
            return
        old_life = self._lives[server_id]
        life = self._replacements[server_id] = self._start(server_id, spec)
        life.lets_go = False  # what other gateways leave to this one is the old one's yet
        new = life.upstream
        deadline = time.monotonic() + new.start_seconds
        try:
            while new.state not in AVAILABLE:
                gave_up = new.state == "failed" or (new.state == "down" and not spec.dialin)
                if gave_up or time.monotonic() > deadline:
                    raise UpstreamUnavailable(f"server {server_id!r} does not start as configured: {new.last_error}")
                await new.changed_within(deadline - time.monotonic())
        except BaseException:
            del self._replacements[server_id]
            await life.stop()
            raise
        del self._replacements[server_id]
        if old_life in self._leaving or self._lives.get(server_id) is not old_life:
            await life.stop()
            return
        self._lives[server_id] = life
        life.lets_go, old_life.lets_go = True, False
        new.take_over(old)
        if new.state == "idle":
            self.server_idle(new)
        self._retiring.start(old_life.stop())

    def _start(self, server_id: str, spec: UpstreamSpec) -> Life:
        self.forwarded.update(name.lower() for name in spec.forward_headers)
        life = Life(Upstream(server_id, spec, self, self._dialer), self)
        life.start()
        return life

    # What an upstream reports

    def _is_current(self, upstream: Upstream) -> bool:
        """Whether it speaks for its id: neither replaced nor detached."""
        life = self._replacements.get(upstream.server_id)
        if life is None or not life.upstream.connections:  # until another is there, the one before it serves
            life = self._lives.get(upstream.server_id)
        return life is not None and life.upstream is upstream and upstream.server_id in self._lives

    async def tools_come(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None:
        if self._before_tools is not None:
            await self._before_tools(upstream.server_id, _offered(upstream, tools))

    def server_up(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None:
        if not self._is_current(upstream):
            return
        self._on_tools(upstream.server_id, upstream.spec, _offered(upstream, tools))
        self._tell_state(upstream.server_id, "up")

    def tools_changed(self, upstream: Upstream, tools: list[dict[str, Any]]) -> None:
        if self._is_current(upstream):
            self._on_tools(upstream.server_id, upstream.spec, _offered(upstream, tools))

    def judge_again(self, server_id: str) -> None:
        """Have what a server lists looked at again: what its tools are held to has changed."""
        upstream = self.find(server_id)
        if upstream is not None and upstream.connections:
            self.tools_changed(upstream, upstream.lists.tools)

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
        for life in (*self._lives.values(), *self._replacements.values()):
            life.upstream.lanes.drop(client)

    def roots_changed(self, client: object) -> None:
        """A client has other roots now: those servers hear of it that are its own."""
        for upstream in self:
            upstream.lanes.tell(client, "notifications/roots/list_changed")

    def _tell_state(self, server_id: str, state: ServerState, reason: str | None = None) -> None:
        """Tell the floors above; that a server is down once, and not at each try to start it again."""
        if state != "down" or self._told.get(server_id) != state:
            self._told[server_id] = state
            self._on_state(server_id, state, reason)

    def server_down(self, upstream: Upstream, reason: str) -> None:
        if self.find(upstream.server_id) is upstream and not upstream.orders.stop.is_set():
            self._tell_state(upstream.server_id, "down", reason)

    def server_idle(self, upstream: Upstream) -> None:
        if self.find(upstream.server_id) is upstream and not upstream.orders.stop.is_set():
            self._tell_state(upstream.server_id, "idle")

    def failed(self, upstream: Upstream, reason: str) -> None:
        if self.find(upstream.server_id) is upstream:
            self._tell_state(upstream.server_id, "failed", reason)

    def restarted(self, upstream: Upstream) -> None:
        self._on_restart(upstream.server_id)


def _offered(upstream: Upstream, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a server's tools that its entry has exist here."""
    spec = upstream.spec
    if spec.include_tools == ("*",) and not spec.exclude_tools:
        return tools
    return [tool for tool in tools if spec.offers(tool["name"])]


def _once(work: Callable[[], None]) -> Callable[[], None]:
    """What does the work the first time that it is called."""
    left = [work]
    return lambda: left.pop()() if left else None
