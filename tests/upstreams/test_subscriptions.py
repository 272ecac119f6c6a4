"""What servers are asked to tell of: lists of servers that cannot tell, and resources that come and go."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from support import eventually
from support.processes import SCRIPTS

from toolscore.core.jsonrpc import ConnectionLost, RemoteError
from toolscore.core.models import Principal, UpstreamSpec
from toolscore.core.rules import ServerRules
from toolscore.upstreams import Caller, Upstream, UpstreamPool
from toolscore.upstreams.connection import Hearing
from toolscore.upstreams.protocol import LATEST_SESSION_VERSION, ServerInfo
from toolscore.upstreams.subscriptions import Subscriptions

pytestmark = pytest.mark.anyio

ADA = Caller(Principal("ada"), client=object())


class Orders:
    """What the stateless server is told to do, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = UpstreamSpec(command=sys.executable, args=(str(SCRIPTS / "stateless.py"), str(folder)))

    def give(self, listen: str, *tools: str) -> None:
        new = self.folder / "new"
        new.write_text(json.dumps({"listen": listen, "tools": tools}))
        new.rename(self.folder / "orders.json")

    def asked(self, method: str) -> int:
        return (self.folder / "asked").read_text().splitlines().count(method)


@asynccontextmanager
async def served(orders: Orders, relist_seconds: float) -> AsyncIterator[tuple[Upstream, dict[str, list[str]]]]:
    """The server, once it is up, and the names of the tools that it lists, by its id."""
    tools: dict[str, list[str]] = {}

    def on_tools(server_id: str, _: Any, listed: list[dict[str, Any]]) -> None:
        tools[server_id] = [tool["name"] for tool in listed]

    async with UpstreamPool(on_tools=on_tools, rules=ServerRules(relist_seconds=relist_seconds)) as pool:
        upstream = pool.add("s", orders.spec)
        await upstream.wait_up()
        yield upstream, tools


async def test_lists_of_a_server_that_says_it_tells_and_takes_no_stream_are_read_again(tmp_path: Path) -> None:
    orders = Orders(tmp_path)
    orders.give("refuse", "one")
    async with served(orders, relist_seconds=0.2) as (_, tools):
        assert tools == {"s": ["one"]}
        orders.give("refuse", "one", "two")
        await eventually(lambda: tools == {"s": ["one", "two"]})


async def test_what_changed_while_no_stream_stood_is_read_when_the_next_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolscore.upstreams.subscriptions.FOLLOW_RETRY_SECONDS", 0.5)
    orders = Orders(tmp_path)
    orders.give("hold", "one")
    async with served(orders, relist_seconds=3) as (upstream, tools):
        (connection,) = upstream.connections
        await eventually(lambda: connection.hearing.features == {"tools"})
        await eventually(lambda: orders.asked("tools/list") == 2)
        (tmp_path / "cut").touch()
        await eventually(lambda: not connection.hearing.features)
        orders.give("hold", "one", "two")
        await eventually(lambda: tools == {"s": ["one", "two"]})
        assert orders.asked("subscriptions/listen") == 2


async def test_what_changed_before_a_new_stream_stands_is_read_once_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolscore.upstreams.subscriptions.STANDS_SECONDS", 0.2)
    orders = Orders(tmp_path)
    orders.give("hold", "one")
    async with served(orders, relist_seconds=3) as (upstream, tools):
        (connection,) = upstream.connections
        await eventually(lambda: connection.hearing.features == {"tools"})
        (tmp_path / "late").touch()
        await upstream.watch("a://b", ADA)  # for which another stream is opened
        await eventually(lambda: orders.asked("subscriptions/listen") == 2)
        await eventually(lambda: not connection.hearing.features)
        orders.give("hold", "one", "two")
        (tmp_path / "late").unlink()
        await eventually(lambda: tools == {"s": ["one", "two"]})


class Session:
    """A session that notes what it is asked of resources, and answers when it is let."""

    elsewhere = False

    def __init__(self, *, refuses: bool = False) -> None:
        self.info = ServerInfo(protocol_version=LATEST_SESSION_VERSION, capabilities={"resources": {"subscribe": True}})
        self.hearing = Hearing()
        self.asked: list[str] = []
        self.let = asyncio.Event()
        self.let.set()
        self.refuses = refuses

    async def request(self, method: str, params: Any = None, *, caller: Any = None) -> Raw:
        await asyncio.sleep(0)
        await self.let.wait()
        if self.refuses:
            raise RemoteError({"code": -32602, "message": "no such resource"})
        self.asked.append(method.partition("/")[2])
        return Raw(b"{}")


def following(*sessions: Any) -> Subscriptions:
    subscriptions = Subscriptions()
    for session in sessions:
        subscriptions.follow(session)
    return subscriptions


async def test_a_resource_is_asked_for_once_and_given_up_with_the_last_who_watches() -> None:
    session: Any = Session()
    subscriptions = following(session)
    async with asyncio.timeout(30):
        await asyncio.gather(*(subscriptions.add("a://b", session, ADA) for _ in range(5)))
        assert session.asked == ["subscribe"]
        for _ in range(4):
            await subscriptions.remove("a://b", ADA)
        assert session.asked == ["subscribe"]
        await subscriptions.remove("a://b", ADA)
        assert session.asked == ["subscribe", "unsubscribe"]


async def test_who_comes_while_the_last_one_leaves_is_told() -> None:
    session: Any = Session()
    subscriptions = following(session)
    async with asyncio.timeout(30):
        await subscriptions.add("a://b", session, ADA)
        session.let.clear()
        leaving = asyncio.ensure_future(subscriptions.remove("a://b", ADA))
        await asyncio.sleep(0.01)
        coming = asyncio.ensure_future(subscriptions.add("a://b", session, ADA))
        await asyncio.sleep(0.01)
        session.let.set()
        await asyncio.gather(leaving, coming)
        assert session.asked == ["subscribe", "unsubscribe", "subscribe"], "the server tells in the end"


async def test_what_a_session_told_that_leaves_another_is_asked_for() -> None:
    first: Any = Session()
    second: Any = Session()
    subscriptions = following(first, second)
    async with asyncio.timeout(30):
        await subscriptions.add("a://b", first, ADA)
        await asyncio.sleep(0)
        assert (first.asked, second.asked) == (["subscribe"], [])
        subscriptions.leave(first)
        await eventually(lambda: second.asked == ["subscribe"])
        second.refuses = True
        await subscriptions.remove("a://b", ADA)
        assert not subscriptions.watched


async def test_a_subscription_that_may_have_been_heard_is_taken_back() -> None:
    session: Any = Session()
    subscriptions = following(session)
    session.let.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await subscriptions.add("a://b", session, ADA)
    assert not subscriptions.watched
    session.let.set()
    await eventually(lambda: session.asked == ["unsubscribe"])


async def test_what_was_watched_on_another_server_of_this_id_counts_for_nothing(tmp_path: Path) -> None:
    orders = Orders(tmp_path)
    orders.give("hold")
    async with UpstreamPool(on_tools=lambda *_: None) as pool:
        await pool.add("s", orders.spec).wait_up()
        counted = await pool.get("s").watch("a://b", ADA)
        await pool.remove("s")
        upstream = pool.add("s", orders.spec)
        await upstream.watch("a://b", ADA)
        await upstream.unwatch("a://b", ADA, counted)
        assert upstream.subscriptions.watched == {"a://b": 1}


async def test_one_that_is_refused_is_not_watched_and_a_new_session_is_asked_again() -> None:
    deaf: Any = Session(refuses=True)
    subscriptions = following(deaf)
    async with asyncio.timeout(30):
        with pytest.raises(RemoteError):
            await subscriptions.add("a://b", deaf, ADA)
        session: Any = Session()
        subscriptions.follow(session)
        await subscriptions.add("c://d", session, ADA)
        assert session.asked == ["subscribe"]
        subscriptions.leave(session)
        with pytest.raises(ConnectionLost):
            await subscriptions.add("e://f", session, ADA)
        again: Any = Session()
        subscriptions.follow(again)
        await eventually(lambda: again.asked == ["subscribe"])
