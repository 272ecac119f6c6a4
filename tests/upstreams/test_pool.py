"""The pool of upstreams, with servers in its own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Raw
from support import Double, eventually

from toolscore.core.errors import Conflict, ServerNotFound, UpstreamUnavailable
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, encode
from toolscore.core.models import UpstreamSpec
from toolscore.core.rules import ServerRules
from toolscore.upstreams import UpstreamPool
from toolscore.upstreams.connection import Hearing
from toolscore.upstreams.life import MAX_BACKOFF_SECONDS, backoff_seconds
from toolscore.upstreams.lists import Lists
from toolscore.upstreams.protocol import LATEST_SESSION_VERSION, LISTED, LISTS, ServerInfo

QUICK = ServerRules(start_timeout_seconds=5, max_start_failures=2, drain_seconds=1)


class Told:
    """What a pool tells the floors above."""

    def __init__(self) -> None:
        self.tools: dict[str, list[str]] = {}
        self.states: list[tuple[str, str]] = []
        self.restarts: list[str] = []

    def on_tools(self, server_id: str, _spec: UpstreamSpec, tools: list[dict[str, Any]]) -> None:
        self.tools[server_id] = [tool["name"] for tool in tools]

    def on_state(self, server_id: str, state: str, _reason: str | None) -> None:
        self.states.append((server_id, state))


@asynccontextmanager
async def pool_of(told: Told, **more: Any) -> AsyncIterator[UpstreamPool]:
    async with UpstreamPool(
        on_tools=told.on_tools, on_state=told.on_state, on_restart=told.restarts.append, rules=QUICK,
        reconnect_seconds=0.2, **more,
    ) as pool:  # fmt: skip
        yield pool


def double(*names: str) -> Double:
    server = Double()
    for name in names:
        server.tool(name, lambda given: "done")
    return server


def spec(pool: UpstreamPool, name: str, server: Double, **more: Any) -> UpstreamSpec:
    pool.provide(f"double:{name}", server)
    return UpstreamSpec(inprocess=f"double:{name}", **more)


def test_a_server_comes_up_is_asked_and_is_forgotten_before_its_id_is_free() -> None:
    async def main() -> None:
        told = Told()
        async with pool_of(told) as pool:
            upstream = pool.add("one", spec(pool, "one", double("a", "b")))
            await upstream.wait_up()
            assert told.tools == {"one": ["a", "b"]}
            assert b"done" in bytes(await pool.request("one", "tools/call", {"name": "a"}))
            with pytest.raises(RemoteError):
                await pool.request("one", "prompts/list")
            with pytest.raises(Conflict):
                pool.add("one", upstream.spec)
            order: list[str] = []
            await pool.remove("one", lambda: order.append("taken" if pool.find("one") else "free"))
            assert order == ["taken"]
            assert told.states == [("one", "up"), ("one", "stopped")]
            with pytest.raises(ServerNotFound, match="one"):
                pool.get("one")

    asyncio.run(main())


def test_a_server_that_does_not_start_is_tried_again_with_growing_pauses_then_given_up_or_mended() -> None:
    class Moody(Double):
        broken = True

        async def __aenter__(self) -> Double:
            if self.broken:
                raise RuntimeError("no licence")
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    async def main() -> None:
        told, server = Told(), Moody().tool("a", lambda given: "done")
        async with pool_of(told) as pool:
            upstream = pool.add("moody", spec(pool, "moody", server))
            await eventually(lambda: upstream.state == "down")
            assert "no licence" in str(upstream.last_error)
            with pytest.raises(UpstreamUnavailable, match="no licence"):
                await pool.request("moody", "tools/call", {"name": "a"})
            server.broken = False
            upstream.restart()
            await eventually(lambda: upstream.state == "up")
            assert upstream.last_error is None

    asyncio.run(main())


def test_a_factory_that_does_not_exist_is_hopeless() -> None:
    async def main() -> None:
        told = Told()
        async with pool_of(told) as pool:
            upstream = pool.add("none", UpstreamSpec(inprocess="no.such.module:thing"))
            await eventually(lambda: upstream.state == "failed")
            assert ("none", "failed") in told.states
            with pytest.raises(UpstreamUnavailable, match="failed"):
                await upstream.wait_up()

    asyncio.run(main())


def test_the_pauses_grow_and_are_bounded() -> None:
    pauses = [backoff_seconds(failures, 0.5) for failures in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.1)
    assert pauses[-1] == MAX_BACKOFF_SECONDS
    assert backoff_seconds(3, 0.0) < backoff_seconds(3, 0.99)


def test_another_form_takes_over_without_losing_a_call_and_one_that_fails_does_not() -> None:
    release = asyncio.Event

    async def main() -> None:
        told, go, begun = Told(), release(), release()

        async def slow(_: dict[str, Any]) -> str:
            begun.set()
            await go.wait()
            return "the old one"

        old = Double().tool("work", slow)
        new = Double().tool("work", lambda given: "the new one")
        async with pool_of(told) as pool:
            await pool.add("one", spec(pool, "old", old)).wait_up()
            under_way = asyncio.create_task(pool.request("one", "tools/call", {"name": "work"}))
            await begun.wait()
            with pytest.raises(UpstreamUnavailable, match="does not start as configured"):
                await pool.replace("one", UpstreamSpec(inprocess="no.such.module:thing"))
            await pool.replace("one", spec(pool, "new", new))
            assert b"the new one" in bytes(await pool.request("one", "tools/call", {"name": "work"}))
            go.set()
            assert b"the old one" in bytes(await under_way)
            assert ("one", "down") not in told.states

    asyncio.run(main())


def test_a_lazy_server_whose_tools_are_known_starts_at_its_first_call_and_sleeps_again() -> None:
    async def main() -> None:
        told, server = Told(), double("a")
        async with pool_of(told, has_tools=lambda server_id: True) as pool:
            upstream = pool.add("lazy", spec(pool, "lazy", server, lazy=True, idle_stop_seconds=0.05))
            await eventually(lambda: upstream.state == "idle")
            await pool.request("lazy", "tools/call", {"name": "a"})
            await eventually(lambda: upstream.state == "idle")
            assert told.states == [("lazy", "idle"), ("lazy", "up"), ("lazy", "idle")]
            assert upstream.restarts == 0
            await pool.replace("lazy", spec(pool, "lazy", server, lazy=True, idle_stop_seconds=0.06))
            assert told.states[3:] == [("lazy", "idle")]

    asyncio.run(main())


def test_a_server_that_does_not_come_up_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever watches has it as starting for ever, or hears of each try."""
    monkeypatch.setattr("toolscore.upstreams.life.FIRST_RESTART_SECONDS", 0.01)
    monkeypatch.setattr("toolscore.upstreams.life.MAX_BACKOFF_SECONDS", 0.01)

    class Broken(Double):
        async def __aenter__(self) -> Double:
            starts.append(len(starts))
            if len(starts) == 4 or len(starts) > 5:
                return self
            raise ConnectionLost("it broke", sent=False)

        async def __aexit__(self, *_: object) -> None:
            pass

    starts: list[int] = []

    async def main() -> None:
        told, server = Told(), Broken()
        server.tool("a", lambda given: "done")
        async with pool_of(told) as pool:
            upstream = pool.add("one", spec(pool, "one", server))
            await eventually(lambda: upstream.state == "up")
            assert told.states == [("one", "down"), ("one", "up")]
            assert len(starts) == 4
            upstream.orders.restart.set()
            await eventually(lambda: len(starts) == 6 and upstream.state == "up")
            assert told.states[2:] == [("one", "down"), ("one", "up")]

    asyncio.run(main())


def test_what_takes_the_place_of_a_server_that_is_removed_is_not_told_of() -> None:
    class Slow(Double):
        async def __aenter__(self) -> Double:
            begun.set()
            await go.wait()
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    begun, go = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        told = Told()
        async with pool_of(told) as pool:
            upstream = pool.add("one", spec(pool, "one", double("a")))
            await upstream.wait_up()
            replacing = asyncio.create_task(pool.replace("one", spec(pool, "other", Slow())))
            await begun.wait()
            await pool.remove("one")
            go.set()
            await replacing
            assert told.states == [("one", "up"), ("one", "stopped")]
            assert pool.find("one") is None

    asyncio.run(main())


def test_a_trial_is_nobodys_server() -> None:
    async def main() -> None:
        told = Told()
        async with pool_of(told) as pool:
            async with pool.trial(spec(pool, "trial", double("a"))) as (connection, tools):
                assert [tool["name"] for tool in tools] == ["a"]
                assert b"done" in bytes(await connection.request("tools/call", {"name": "a"}))
                assert list(pool) == []
            assert told.states == []

    asyncio.run(main())


def test_lists_that_are_not_declared_are_empty() -> None:
    async def main() -> None:
        told = Told()
        async with pool_of(told) as pool:
            upstream = pool.add("one", spec(pool, "one", double("a")))
            await upstream.wait_up()
            for kind in LISTS:
                await upstream.read_anew(kind)
            assert told.tools == {"one": ["a"]}

    asyncio.run(main())


def test_a_server_that_comes_up_while_another_is_to_take_its_place_serves_until_then() -> None:
    class Slow(Double):
        def __init__(self) -> None:
            super().__init__()
            self.go = asyncio.Event()

        async def __aenter__(self) -> Double:
            await self.go.wait()
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    async def main() -> None:
        told, old, new = Told(), Slow(), Slow()
        old.tool("a", lambda given: "old")
        new.tool("b", lambda given: "new")
        async with pool_of(told) as pool:
            upstream = pool.add("one", spec(pool, "old", old))
            replacing = asyncio.create_task(pool.replace("one", spec(pool, "new", new)))
            await asyncio.sleep(0)
            old.go.set()
            await upstream.wait_up()
            assert told.tools == {"one": ["a"]}
            assert b"old" in bytes(await pool.request("one", "tools/call", {"name": "a"}))
            new.go.set()
            await replacing
            assert told.tools == {"one": ["b"]}
            assert b"new" in bytes(await pool.request("one", "tools/call", {"name": "b"}))

    asyncio.run(main())


def test_a_server_that_is_removed_while_it_is_replaced_stays_removed() -> None:
    class Slow(Double):
        async def __aenter__(self) -> Slow:
            began.set()
            await go.wait()
            return self

        async def __aexit__(self, *_: object) -> None: ...

    began, go = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        told = Told()
        async with pool_of(told) as pool:
            await pool.add("one", spec(pool, "one", double("a"))).wait_up()
            replacing = asyncio.create_task(pool.replace("one", spec(pool, "two", Slow().tool("b", lambda _: "done"))))
            await began.wait()
            removing = asyncio.create_task(pool.remove("one"))
            await asyncio.sleep(0)
            go.set()
            await asyncio.gather(replacing, removing)
            assert pool.find("one") is None
            assert told.states[-1] == ("one", "stopped")

    asyncio.run(main())


class Listing:
    """A connection that lists tools, and is too busy to at times."""

    elsewhere = False

    def __init__(self, *tools: str) -> None:
        self.tools, self.busy, self.asked = tools, 0, 0
        self.hearing = Hearing(LISTED)
        self.info = ServerInfo(protocol_version=LATEST_SESSION_VERSION, capabilities={"tools": {"listChanged": True}})

    async def request(self, *_: object, **__: object) -> Raw:
        self.asked += 1
        if self.busy:
            self.busy -= 1
            raise ConnectionLost("it is busy (HTTP 429)", sent=False, refused=True, busy=True)
        return Raw(encode({"tools": [{"name": name} for name in self.tools]}))


def lists_of(relist_seconds: float) -> Lists:
    async def nothing(_: object) -> None: ...

    return Lists(
        "s", seconds=lambda: 5, relist_seconds=lambda: relist_seconds, on_tools=lambda _: None, before_tools=nothing,
        on_list=lambda *_: None, on_change=lambda _: None,
    )  # fmt: skip


def test_a_list_that_could_not_be_read_is_read_again_and_that_of_each_connection() -> None:
    async def main() -> None:
        lists = lists_of(relist_seconds=60)
        one, other = Listing("x"), Listing("y")
        connections: list[Any] = [one, other]
        for connection in connections:
            lists.put(connection, [{"name": name} for name in connection.tools])
        following = [asyncio.create_task(lists.keep_fresh(connection)) for connection in connections]
        other.tools, other.busy = ("y", "z"), 1
        lists.changed("notifications/tools/list_changed")
        await eventually(lambda: [tool["name"] for tool in lists.tools] == ["x", "y", "z"])
        assert other.asked >= 2
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    asyncio.run(main())


def test_lists_that_are_not_told_are_read_again_however_busy_another_list_is() -> None:
    async def main() -> None:
        lists, server = lists_of(relist_seconds=0.3), Listing("x")
        server.hearing.end()
        connection: Any = server
        lists.put(connection, [])
        following = asyncio.create_task(lists.keep_fresh(connection))
        async with asyncio.timeout(60):
            while server.asked < 3:
                lists.changed("notifications/prompts/list_changed")
                await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(main())


def test_after_a_gap_all_is_read_at_once_and_after_gaps_all_the_time_when_somebody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toolscore.upstreams.lists.READ_AGAIN_SECONDS", 0.0)

    async def main() -> None:
        lists, server = lists_of(relist_seconds=600), Listing("x")
        connection: Any = server
        lists.put(connection, [{"name": "x"}])
        following = asyncio.create_task(lists.keep_fresh(connection))
        assert not lists.is_due(connection, "tools")
        server.tools = ("x", "y")
        lists.missed()
        await eventually(lambda: [tool["name"] for tool in lists.tools] == ["x", "y"])
        assert not lists.is_due(connection, "tools")
        server.tools = ("z",)
        lists.missed()
        assert lists.is_due(connection, "tools"), "it was read for a gap just now: who asks has it read again"
        await lists.read_anew(connection, "tools")
        assert [tool["name"] for tool in lists.tools] == ["z"]
        assert server.asked == 2
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(main())
