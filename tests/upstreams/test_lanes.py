"""Which connection a request goes over: a pure choice; and the connections themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import eventually

from toolscore.core.errors import Overloaded
from toolscore.core.jsonrpc import ConnectionLost
from toolscore.core.models import Principal, UpstreamSpec
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import EVERYBODY, ClientSide
from toolscore.upstreams.lanes import MAX_LANES, Habits, Lane, Lanes, OnBehalf, has_own_lane, lane_for, own_lane
from toolscore.upstreams.protocol import LATEST_SESSION_VERSION, LATEST_STATELESS_VERSION, ServerInfo

PIPE = UpstreamSpec(command="server")
SESSION = ServerInfo(protocol_version=LATEST_SESSION_VERSION)
STATELESS = ServerInfo(protocol_version=LATEST_STATELESS_VERSION)
EVERYTHING = {"elicitation": {}, "sampling": {}, "roots": {}}
QUIET, ASKS = Habits(), Habits(asks=True)


class Live(Caller):
    live = True


def chosen(
    caller: Caller | None, *, spec: UpstreamSpec = PIPE, info: ServerInfo = SESSION, habits: Habits = QUIET,
    shared_is_free: bool = True, lane_is_free: bool = True,
) -> Lane | None:  # fmt: skip
    return lane_for(
        spec, info, habits, caller, shared_is_free=lambda _: shared_is_free, lane_is_free=lambda *_: lane_is_free
    )


def test_a_server_that_never_asks_is_shared_by_all() -> None:
    for caller in (None, Caller(), Live(capabilities=EVERYTHING)):
        assert chosen(caller) is None


def test_a_server_that_asks_is_shared_by_clients_of_all_capabilities_one_at_a_time() -> None:
    caller = Live(capabilities=EVERYTHING)
    assert chosen(caller, habits=ASKS) is None
    alone = chosen(caller, habits=ASKS, shared_is_free=False)
    assert alone is not None
    assert alone.key is caller.client
    assert alone.side.owner is caller


def test_a_server_that_asks_is_told_what_its_clients_can() -> None:
    nothing = chosen(Caller(), habits=ASKS)
    assert nothing is not None
    assert nothing.side == ClientSide({})
    assert chosen(None, habits=ASKS) == nothing
    some = Live(capabilities={"elicitation": {}})
    shared = chosen(some, habits=ASKS)
    assert shared is not None
    assert shared.key == frozenset({"elicitation"})
    assert list(shared.side.offered) == ["elicitation"]
    busy = chosen(some, habits=ASKS, lane_is_free=False)
    assert busy is not None
    assert busy.key is some.client


def test_a_server_that_keeps_roots_serves_each_client_that_has_some_alone() -> None:
    keeps = Habits(asks=True, keeps_roots=True)
    caller = Live(capabilities=EVERYTHING)
    own = chosen(caller, habits=keeps)
    assert own is not None
    assert own.key is caller.client
    assert has_own_lane(PIPE, keeps, caller)
    assert not has_own_lane(PIPE, keeps, Live(capabilities={"sampling": {}}))
    assert not has_own_lane(UpstreamSpec(dialin=True), keeps, caller)


def test_a_server_of_both_eras_is_spoken_to_in_its_clients_era() -> None:
    caller = Live(capabilities={"elicitation": {}})
    session = chosen(caller, info=STATELESS)
    assert session is not None
    assert list(session.side.offered) == ["elicitation"]
    assert chosen(caller, info=STATELESS, habits=Habits(has_sessions=False)) is None
    assert chosen(Caller(), info=STATELESS) is None
    assert chosen(Live(), info=STATELESS) is None, "nobody can be asked anything there"


def test_whoever_has_credentials_has_a_connection_that_shows_them() -> None:
    spec = UpstreamSpec.model_validate(
        {"command": "server", "credentials": {"ad*": {"env": {"KEY": "${env:ADA}"}}, "*": {"env": {"KEY": "${env:X}"}}}}
    )
    ada, bob = Caller(Principal("ada")), Caller(Principal("bob"))
    shown = chosen(ada, spec=spec)
    assert shown == Lane(OnBehalf("ad*", None), ClientSide(EVERYBODY.offered, credentials="ad*"))
    assert chosen(bob, spec=spec) == Lane(OnBehalf("*", None), ClientSide(EVERYBODY.offered, credentials="*"))
    assert chosen(None, spec=spec) is None
    assert own_lane(spec, ada).key == OnBehalf("ad*", ada.client)
    assert own_lane(PIPE, ada).key is ada.client


class Line:
    """A connection that a test ends."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait_closed(self) -> str:
        return await asyncio.shield(self.ended)


class Board:
    """Opens lines, and counts those that are open."""

    def __init__(self) -> None:
        self.opened: list[ClientSide] = []
        self.open = 0
        self.fails: Exception | None = None

    @asynccontextmanager
    async def line(self, side: ClientSide) -> AsyncIterator[Any]:
        if self.fails is not None:
            raise self.fails
        self.opened.append(side)
        self.open += 1
        try:
            yield Line()
        finally:
            self.open -= 1


def lane(key: Hashable) -> Lane:
    return Lane(key, ClientSide({}))


def test_a_connection_is_opened_once_for_its_key_and_ends_with_the_others() -> None:
    async def main() -> None:
        board = Board()
        lanes = Lanes(board.line)
        async with lanes.use(lane("a")) as first, lanes.use(lane("a")) as second, lanes.use(lane("b")) as third:
            assert first is second
            assert third is not first
        assert len(board.opened) == board.open == len(lanes) == 2
        await lanes.close()
        assert (board.open, len(lanes)) == (0, 0)
        with pytest.raises(ConnectionLost):
            async with lanes.use(lane("a")):
                pass

    asyncio.run(main())


def test_a_connection_that_breaks_off_is_opened_again_and_one_that_cannot_be_opened_says_so() -> None:
    async def main() -> None:
        board = Board()
        lanes = Lanes(board.line)
        async with lanes.use(lane("a")) as line:
            line.ended.set_result("broke off")  # type: ignore[attr-defined]
        await eventually(lambda: "a" not in lanes)
        async with lanes.use(lane("a")):
            assert len(board.opened) == 2
        await lanes.end_all()
        board.fails = ConnectionLost("nobody there", sent=False)
        with pytest.raises(ConnectionLost, match="nobody there"):
            async with lanes.use(lane("a")):
                pass
        assert len(lanes) == 0

    asyncio.run(main())


def test_the_idlest_connection_makes_room_and_none_that_is_used() -> None:
    async def main() -> None:
        board = Board()
        lanes = Lanes(board.line)
        for number in range(MAX_LANES):
            async with lanes.use(lane(number)):
                pass
        async with lanes.use(lane("another")):
            assert 0 not in lanes
            assert len(lanes) == MAX_LANES
        uses = [lanes.use(lane(f"busy {number}")) for number in range(MAX_LANES)]
        for use in uses:
            await use.__aenter__()
        with pytest.raises(Overloaded):
            async with lanes.use(lane("one too many")):
                pass
        for use in uses:
            await use.__aexit__(None, None, None)
        await lanes.close()

    asyncio.run(main())


def test_the_connection_of_a_stateless_client_ends_with_its_call() -> None:
    class Stateless(Caller):
        stateless = True

    async def main() -> None:
        board = Board()
        lanes = Lanes(board.line)
        caller = Stateless()
        async with lanes.use(Lane(caller.client, ClientSide({}, caller))):
            assert board.open == 1
        await eventually(lambda: board.open == 0)

    asyncio.run(main())
