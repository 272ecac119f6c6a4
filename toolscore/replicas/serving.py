"""The far end of a hop: what other gateways ask of servers that this one has."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from msgspec import Raw

from toolscore.core.errors import ToolScoreError, UpstreamUnavailable
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode, encode
from toolscore.core.tasks import TaskSet
from toolscore.replicas.hop import Hops, Link, is_late
from toolscore.replicas.owners import Owners
from toolscore.replicas.watches import Watches
from toolscore.replicas.wire import (
    Answer,
    OfServer,
    UpstreamRequest,
    Who,
    failure_of,
    given,
)
from toolscore.upstreams import Caller, Upstream, UpstreamPool
from toolscore.upstreams.caller import OTHER_GATEWAY, CodeReply, client_named

__all__ = ["Listen", "Place", "Serving"]

Listen = Callable[[Callable[[str, str, Raw | None], None], Callable[[], None]], Callable[[], None]]
Place = Callable[[Upstream, Caller], AbstractAsyncContextManager[None]]

SUBSCRIBE, UNSUBSCRIBE = "resources/subscribe", "resources/unsubscribe"


class _FarHome(Caller):
    """A client of another gateway, outside of its requests."""

    live = True

    def __init__(self, link: Link, who: Who) -> None:
        super().__init__(who.principal, client=client_named(who.client), capabilities=who.capabilities)
        self.link = link
        self._name = who.client

    def notify(self, method: str, params: Raw | None) -> None:
        self.link.tell("client/told", {"client": self._name, "method": method, "params": params})

    def announce(self, server_id: str, method: str, params: Raw | None) -> None:
        told = {"client": self._name, "method": method, "params": params, "server_id": server_id}
        self.link.tell("client/told", told)

    async def ask(self, method: str, params: Raw | None) -> Any:
        return await self.link.ask("client/ask", {"client": self._name, "method": method, "params": params})


class _FarCode:
    """Code that was sent here to run, and whose calls are made where it came from."""

    def __init__(self, link: Link, call: int, who: Who) -> None:
        assert who.code is not None
        self.token, self.at_once = who.code
        self._link = link
        self._call = call
        self.on_output = self._wrote if who.hears_output else None

    def _wrote(self, text: str) -> None:
        self._link.tell("call/output", {"call": self._call, "text": text})

    async def ask(self, call: bytes, seconds: float) -> CodeReply:
        asked = {"call": self._call, "body": call.decode("utf-8", "surrogatepass"), "seconds": seconds}
        reply = decode(await self._link.ask("call/code", asked))
        return CodeReply(reply["body"].encode(), reply["asked_seconds"], reply["over"])


class _FarCaller(Caller):
    """One request that came over a hop."""

    hopped = True

    def __init__(self, link: Link, call: int, who: Who, home: Caller) -> None:
        super().__init__(who.principal, client=home.client, capabilities=who.capabilities, headers=who.headers)
        self.live, self.stateless, self.wants_progress = who.live, who.stateless, who.wants_progress
        self.log_level = who.log_level
        self.code = _FarCode(link, call, who) if who.code is not None else None
        self.refused = lambda required: link.tell("call/needed", {"call": call, "required": required})
        self._link = link
        self._call = call
        self._home = home

    @property
    def home(self) -> Caller:
        return self._home if self.live else self

    def notify(self, method: str, params: Raw | None) -> None:
        self._link.tell("call/told", {"call": self._call, "method": method, "params": params})

    async def ask(self, method: str, params: Raw | None) -> Any:
        return await self._link.ask("call/ask", {"call": self._call, "method": method, "params": params})


class Serving:
    """Serves other gateways, from when it is made.

    Args:
        listen: has it called with all that servers tell all. Returns what ends that.
        place: holds a place at a server while a call is made; each gateway bounds what it has itself.
    """

    def __init__(self, hops: Hops, owners: Owners, upstreams: UpstreamPool, listen: Listen, place: Place) -> None:
        self._upstreams = upstreams
        self._owners = owners
        self._busy = 0
        self._place = place
        self._links: dict[str, set[Link]] = defaultdict(set)
        self._watches = Watches(upstreams)
        self._homes: WeakValueDictionary[str, _FarHome] = WeakValueDictionary()
        self._tasks = TaskSet()
        hops.served |= {
            "server/open": (OfServer, self._open),
            "upstream/request": (UpstreamRequest, self._request),
        }
        hops.heard["server/close"] = (OfServer, self._close)
        hops.heard["server/restart"] = (OfServer, self._restart)
        hops.on_end(self._ended)
        owners.on_let_go = self._let_go
        owners.members.on("announced", self._announced)
        owners.members.on("start/again", self._start_again)
        listen(self._server_told, lambda: None)

    @property
    def busy(self) -> int:
        """Requests of other gateways that are under way."""
        return self._busy

    def _let_go(self, server_id: str) -> None:
        """This gateway has a server no more: those who use it look for who has."""
        for link in self._links.pop(server_id, ()):
            link.tell("server/moved", {"server_id": server_id})

    def _has(self, server_id: str) -> Upstream:
        """A server that this gateway has itself.

        Raises:
            ConnectionLost: it does not, or not any more.
        """
        upstream = self._upstreams.find(server_id)
        if upstream is None or not self._owners.has(upstream):
            raise ConnectionLost(f"the gateway that was asked has no server {server_id!r}", sent=False)
        return upstream

    async def _open(self, link: Link, asked: OfServer) -> Answer:
        try:
            upstream = self._has(asked.server_id)
            await upstream.wait_own()
            assert upstream.info is not None
        except (ToolScoreError, ConnectionLost) as exc:
            return failure_of(exc)
        self._links[asked.server_id].add(link)
        return Answer(result=Raw(encode(upstream.info)), pid=upstream.pid)

    def _restart(self, _: Link, asked: OfServer) -> None:
        upstream = self._upstreams.find(asked.server_id)
        if upstream is not None and self._owners.has(upstream):
            upstream.orders.restart.set()

    def _start_again(self, told: dict[str, Any]) -> None:
        upstream = self._upstreams.find(str(told["server_id"]))
        if upstream is not None and self._owners.starts(upstream.server_id):
            upstream.orders.restart.set()

    def _close(self, link: Link, closed: OfServer) -> None:
        self._links[closed.server_id].discard(link)
        self._watches.forget(link, closed.server_id)

    def _ended(self, link: Link) -> None:
        for links in self._links.values():
            links.discard(link)
        self._watches.forget(link)

    def _announced(self, told: dict[str, Any]) -> None:
        """Another gateway heard this of a server whose session this one has, too."""
        upstream = self._upstreams.find(str(told["server_id"]))
        if upstream is not None and upstream.spec.kind == "streamable_http":
            params = Raw(str(told["params"]).encode()) if told["params"] is not None else None
            upstream.notified(str(told["method"]), params, pass_on=False)

    def _server_told(self, server_id: str, method: str, params: Raw | None) -> None:
        for link in self._links.get(server_id, ()):
            link.tell("server/told", {"server_id": server_id, "method": method, "params": params})

    async def _request(self, link: Link, asked: UpstreamRequest) -> Answer:
        try:
            if is_late(asked.deadline):
                raise ConnectionLost("the request came too late to begin with", sent=False)
            upstream = self._has(asked.server_id)
            self._busy += 1
            try:
                return Answer(result=await self._carry_out(link, upstream, asked))
            except UpstreamUnavailable as exc:
                if upstream.orders.stop.is_set():  # it did not happen: whoever has the server now is asked
                    raise ConnectionLost(exc.message, sent=False) from exc
                raise
            finally:
                self._busy -= 1
        except (ToolScoreError, RemoteError, ConnectionLost) as exc:
            return failure_of(exc)

    async def _carry_out(self, link: Link, upstream: Upstream, asked: UpstreamRequest) -> Raw:
        if asked.method == "tools/list":
            await upstream.wait_own()
            return Raw(encode({"tools": upstream.lists.tools}))
        raw = given(asked.params)
        params: dict[str, Any] | None = msgspec.json.decode(raw, type=dict[str, Raw]) if raw is not None else None
        for member in ("name", "_meta") if params is not None else ():
            if params is not None and member in params:
                params[member] = decode(params[member])  # as the doors and the pipeline have them
        caller = self._caller(link, asked.call, asked.who) if asked.who is not None else OTHER_GATEWAY
        if params is not None and asked.method in (SUBSCRIBE, UNSUBSCRIBE) and caller.code is None:
            change = self._watches.add if asked.method == SUBSCRIBE else self._watches.remove
            client = asked.who.client if asked.who is not None else ""
            await change(link, upstream, decode(params["uri"]), caller, client)
            return Raw(b"{}")
        if params is not None and asked.method == "logging/setLevel":
            await upstream.hear(decode(params["level"]))  # who wants less does not take from who wants more
            return Raw(b"{}")
        placed = self._place(upstream, caller) if asked.method == "tools/call" else contextlib.nullcontext()
        async with placed:
            return await self._upstreams.request(asked.server_id, asked.method, params, caller=caller)

    def _caller(self, link: Link, call: int, who: Who) -> Caller:
        home = self._homes.get(who.client)
        if home is None:
            home = self._homes[who.client] = _FarHome(link, who)
        home.link = link  # the way that its client was heard on last
        return _FarCaller(link, call, who, home)
