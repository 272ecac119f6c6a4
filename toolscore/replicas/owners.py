"""Servers that one gateway has for all: who has it, and a connection to it over the one that does.

A server on this machine (stdio) that was not set to run at `each` gateway is started by one. The others reach it over
one hop, and the next takes over when its owner goes. Servers that dialled in are reached where they are connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import msgspec
from msgspec import Raw

from toolscore.core.jsonrpc import INVALID_PARAMS, ConnectionLost, Params, RemoteError
from toolscore.core.tasks import TaskSet
from toolscore.replicas.hop import Hops, Link
from toolscore.replicas.hop_connection import HopConnection
from toolscore.replicas.members import Members
from toolscore.replicas.remote_sessions import Together
from toolscore.replicas.wire import (
    Answer,
    ClientSays,
    CodeAsks,
    Needed,
    OfCall,
    OfServer,
    Output,
    ServerSays,
    Who,
    answer_of,
    given,
)
from toolscore.upstreams import Caller, Upstream
from toolscore.upstreams.protocol import ServerInfo

__all__ = ["Owners"]

BEGIN_SECONDS = 30.0
"""After so long a request that was on its way need not be begun any more."""
START_SECONDS, MISSING_SECONDS = 0.5, 2.0
HOME_SECONDS = 3600.0
"""For how long a session of Python is looked for where it was."""
INSTANCES = "instances of "
START = "start of "


class Owners:
    """Who has which server, and the near end of what is asked of theirs.

    Args:
        one_address: servers that dial in reach all these gateways at one address, as the workers of one machine.

    Attributes:
        on_let_go: told of a server that this gateway has no more.
        leaving: nothing is taken any more.
    """

    def __init__(self, members: Members, hops: Hops, one_address: bool = False) -> None:
        self.members = members
        self.hops = hops
        self._one_address = one_address
        self.on_let_go: Callable[[str], None] = lambda server_id: None
        self.leaving = False
        self._numbers = itertools.count(1)
        self._calls: dict[int, Caller] = {}
        self._names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._homes: WeakValueDictionary[str, Caller] = WeakValueDictionary()
        self._open: dict[tuple[str, str], tuple[HopConnection, Callable[[str, Raw | None], None]]] = {}
        hops.heard |= {
            "call/told": (OfCall, self._told),
            "call/needed": (Needed, self._needed),
            "call/output": (Output, self._output),
            "client/told": (ClientSays, self._client_told),
            "server/told": (ServerSays, self._server_told),
            "server/moved": (OfServer, self._moved),
        }
        hops.served |= {
            "call/ask": (OfCall, self._ask),
            "call/code": (CodeAsks, self._code),
            "client/ask": (ClientSays, self._ask_client),
        }
        members.on("holds", self._something_moved)
        members.on("released", self._something_moved)
        self._moved_on = asyncio.Event()
        self._present: set[str] = set()
        self._tasks = TaskSet()

    # Who has it

    async def elsewhere(self, upstream: Upstream, let_go: Callable[[], None]) -> str | None:
        """Which other gateway has a server; `None`: this one has it from now on.

        Args:
            let_go: called if it turns out later that another has it.
        """
        server_id = upstream.server_id

        def lost() -> None:
            self.on_let_go(server_id)
            let_go()

        if self.leaving:
            raise ConnectionLost("this gateway is about to end", sent=False)
        owner = await self.members.claim(server_id, lost)
        return None if owner == self.members.id else owner

    async def is_elsewhere(self, server_id: str) -> bool:
        """Whether another gateway has a server by now."""
        return await self.members.owner_of(server_id) not in (None, self.members.id)

    def has(self, upstream: Upstream) -> bool:
        """Whether this gateway is asked for a server."""
        if self.leaving or upstream.orders.stop.is_set():
            return False
        if upstream.spec.dialin:
            return upstream.server_id in self._present
        return upstream.spec.instances_here == "each" or self.members.holds(upstream.server_id)

    async def let_go(self, server_id: str) -> None:
        """Let another gateway have a server. Idempotent."""
        await self.members.release(START + server_id)
        if self.members.holds(server_id):
            self.on_let_go(server_id)
            await self.members.release(server_id)

    def session(self, key: str, fresh: bool) -> Together:
        """The session that gateways have with a remote server, as one.

        Args:
            key: equal for what may share it.
            fresh: another is opened, whatever there is.
        """
        return Together(self.members, key, fresh)

    def pass_on(self, server_id: str, method: str, params: Raw | None) -> None:
        """Tell the others what a remote server tells all: it says so to one of those that share a session."""
        told = None if params is None else bytes(params).decode("utf-8", "replace")
        self.members.tell("announced", server_id=server_id, method=method, params=told)

    def restart(self, server_id: str) -> bool:
        """Have the gateway that has a server start it again. Returns whether another has it."""
        if self.starts(server_id):
            return False
        links = [connection.link for (_, key), (connection, _) in self._open.items() if key == server_id]
        for link in links:
            link.tell("server/restart", {"server_id": server_id})
        if self._one_address:
            self.members.tell("start/again", server_id=server_id)
        return bool(links)

    async def leave(self) -> None:
        """Let others have everything: they begin before what is under way here has ended."""
        self.leaving = True
        for server_id in self.members.held():
            self.on_let_go(server_id)
        await self.members.release(*self.members.held())

    # A server that dialled in: one of those that have an instance is asked by those that have none

    async def wait_to_start(self, server_id: str, lost: Callable[[], None]) -> None:
        """Wait until it is for this gateway to start the process of a server that dials in: one does it for all where
        they have one address.

        Args:
            lost: called if it turns out later that another does it.
        """
        what = START + server_id
        missing_since: float | None = None
        while self._one_address:
            owner = await self.members.owner_of(what)
            now = time.monotonic()
            missing_since = None if owner is not None else missing_since if missing_since is not None else now
            # One that has it may have to say so again, to a host that has just come back with nothing.
            missing = missing_since is not None and now - missing_since > MISSING_SECONDS
            mine = owner == self.members.id or not self.members.others or missing
            if mine and await self.members.claim(what, lost) == self.members.id:
                return
            await self.news(START_SECONDS)

    def starts(self, server_id: str) -> bool:
        """Whether this gateway starts the process of a server that dials in for all of them."""
        return self.members.holds(START + server_id)

    async def instances_came(self, server_id: str, names: set[str]) -> None:
        """An instance has connected here.

        Args:
            names: of all that are connected here, as far as they gave one.
        """
        await self.members.connected(server_id, names)
        if server_id not in self._present:
            self._present.add(server_id)
            if await self._claim_instances(server_id):
                self.members.tell("holds", server_id=server_id)

    async def _claim_instances(self, server_id: str) -> bool:
        what = INSTANCES + server_id
        if self.leaving:
            return False
        held = self.members.holds(what) or await self.members.claim(what, lambda: None) == self.members.id
        if held and server_id not in self._present:  # the last one went meanwhile
            await self.members.release(what)
            return False
        return held

    async def instances_went(self, server_id: str) -> None:
        """No instance is connected here any more."""
        await self.members.connected(server_id, set())
        if server_id in self._present:
            self._present.discard(server_id)
            self.on_let_go(server_id)
            await self.members.release(INSTANCES + server_id)

    async def who_has_instances(self, server_id: str) -> str | None:
        """Another gateway to which an instance is connected."""
        owner = await self.members.owner_of(INSTANCES + server_id)
        return owner if owner != self.members.id else None

    def _something_moved(self, _: dict[str, Any]) -> None:
        for server_id in list(self._present):
            self._tasks.start(self._claim_instances(server_id))
        known, self._moved_on = self._moved_on, asyncio.Event()
        known.set()

    async def news(self, seconds: float) -> None:
        """Wait until a gateway says that it has something now, or not any more; for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved_on.wait()
        for server_id in list(self._present):
            await self._claim_instances(server_id)

    # The way to it

    @asynccontextmanager
    async def over(self, upstream: Upstream, other: str) -> AsyncIterator[HopConnection]:
        """A connection to a server that another gateway has.

        Raises:
            ConnectionLost, RemoteError, ToolScoreError: the other cannot be reached, or has it not.
        """
        link = await self.hops.to(other)
        answer = msgspec.json.decode(await link.ask("server/open", {"server_id": upstream.server_id}), type=Answer)
        info = msgspec.json.decode(answer_of(answer), type=ServerInfo)
        connection = HopConnection(link, upstream.server_id, self, info)
        if self._one_address and not upstream.spec.dialin:
            upstream.pid = answer.pid
        key = (other, upstream.server_id)
        self._open[key] = connection, upstream.notified
        try:
            yield connection
        finally:
            connection.close("it is used no more")
            if self._open.get(key, (None,))[0] is connection:
                del self._open[key]
                link.tell("server/close", {"server_id": upstream.server_id})

    async def home(self, server_id: str, name: str) -> str | None:
        """Which other gateway has what sticks together under a name; `None`: this one."""
        home = await self.members.home_of(f"{server_id}:{name}", HOME_SECONDS)
        return None if home in (None, self.members.id) else home

    async def instance_of(
        self, server_id: str, name: str, chosen: str, there: set[str]
    ) -> tuple[str | None, str | None]:
        """Which instance that dialled in has what sticks together under a name.

        Args:
            chosen: the one for a name that none has.
            there: those that are connected here.

        Returns:
            The other gateway to which it is connected, if it is not here; else the instance.
        """
        place, gateway = await self.members.place_of(server_id, name, chosen, there, HOME_SECONDS)
        return (gateway, None) if gateway is not None else (None, place)

    async def request(
        self, link: Link | str, server_id: str, method: str, params: Params | None, caller: Caller | None
    ) -> Raw:
        """Put a request to a server over the gateway that has it. Raises as `Connection.request`."""
        if isinstance(link, str):
            link = await self.hops.to(link)
        number = next(self._numbers)
        asked: dict[str, Any] = {"server_id": server_id, "method": method, "call": number}
        if params is not None:
            asked["params"] = params
        if caller is not None:
            self._calls[number] = caller
            asked["who"] = self._who(caller)
        try:
            answer = await link.ask("upstream/request", {**asked, "deadline": time.time() + BEGIN_SECONDS})
        finally:
            self._calls.pop(number, None)
        return answer_of(msgspec.json.decode(answer, type=Answer))

    def _who(self, caller: Caller) -> Who:
        name = self._name(caller.client)
        if caller.live:
            self._homes[name] = caller.home
        code = caller.code
        return Who(
            caller.principal,
            name,
            dict(caller.capabilities),
            dict(caller.headers),
            caller.live,
            caller.stateless,
            caller.wants_progress,
            caller.log_level,
            (code.token, code.at_once) if code is not None else None,
            code is not None and code.on_output is not None,
        )

    def _name(self, client: Any) -> str:
        """One name for all requests of a client, which no other has."""
        given = getattr(client, "shared_name", None)
        if given is not None:
            return str(given)
        name = self._names.get(client)
        if name is None:
            name = self._names[client] = f"{self.members.id}:{next(self._numbers)}"
        return name

    # What comes back before the answer

    def _told(self, _: Link, told: OfCall) -> None:
        caller = self._calls.get(told.call)
        if caller is not None:
            caller.notify(told.method, given(told.params))

    def _needed(self, _: Link, needed: Needed) -> None:
        caller = self._calls.get(needed.call)
        if caller is not None:
            caller.refused(needed.required)

    def _output(self, _: Link, output: Output) -> None:
        caller = self._calls.get(output.call)
        tell = caller.code.on_output if caller is not None and caller.code is not None else None
        if tell is not None:
            tell(output.text)

    async def _ask(self, _: Link, asked: OfCall) -> Any:
        caller = self._calls.get(asked.call)
        if caller is None:
            raise RemoteError({"code": INVALID_PARAMS, "message": "the call that it belongs to has ended"})
        with caller.pause():
            return await caller.ask(asked.method, given(asked.params))

    async def _code(self, _: Link, asks: CodeAsks) -> dict[str, Any]:
        caller = self._calls.get(asks.call)
        if caller is None or caller.code is None:
            raise RemoteError({"code": INVALID_PARAMS, "message": "the code that asks has ended"})
        reply = await caller.code.ask(asks.body.encode("utf-8", "surrogatepass"), asks.seconds)
        return {"body": reply.body.decode(), "asked_seconds": reply.asked_seconds, "over": reply.over}

    def _client_told(self, _: Link, told: ClientSays) -> None:
        home = self._homes.get(told.client)
        if home is None:
            return
        if told.server_id is None:
            home.notify(told.method, given(told.params))
        else:
            home.announce(told.server_id, told.method, given(told.params))

    async def _ask_client(self, _: Link, asked: ClientSays) -> Any:
        home = self._homes.get(asked.client)
        if home is None:
            raise RemoteError({"code": INVALID_PARAMS, "message": "the client has gone"})
        return await home.ask(asked.method, given(asked.params))

    def _server_told(self, link: Link, said: ServerSays) -> None:
        found = self._open.get((link.other, said.server_id))
        if found is not None:
            found[1](said.method, given(said.params))

    def _moved(self, link: Link, moved: OfServer) -> None:
        found = self._open.get((link.other, moved.server_id))
        if found is not None:
            found[0].close("the gateway that had it has let it go")
