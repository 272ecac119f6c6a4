"""What other gateways watch here, over links that end and are used again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support import eventually

from toolscore.core.models import Principal
from toolscore.replicas.watches import Watches
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import OTHER_GATEWAY

pytestmark = pytest.mark.anyio

ADA, BOB = Caller(Principal("ada"), client=object()), Caller(Principal("bob"), client=object())


class Server:
    """Counts who watches in the session that all share; those of `alone` have their own."""

    server_id = "s"

    def __init__(self, *alone: Caller) -> None:
        self.shared: Counter[str] = Counter()
        self.own: list[tuple[str, str]] = []
        self._alone = alone

    async def watch(self, uri: str, caller: Caller) -> object | None:
        await asyncio.sleep(0)
        if caller in self._alone:
            self.own.append(("watch", caller.principal.name))
            return None
        self.shared[uri] += 1
        return self.shared

    async def unwatch(self, uri: str, caller: Caller, counted: object | None) -> None:
        if counted is None:
            self.own.append(("unwatch", caller.principal.name))
        elif counted is self.shared:
            self.shared[uri] -= 1


class Pool:
    """Has one server."""

    def __init__(self, server: Server) -> None:
        self.find = {"s": server}.get


class Link:
    """A conversation with another gateway."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()


async def test_each_watch_is_given_up_where_it_was_made() -> None:
    server: Any = Server(ADA)
    pool: Any = Pool(server)
    link: Any = Link()
    watches = Watches(pool)
    await watches.add(link, server, "a://b", ADA, "c1")
    await watches.add(link, server, "a://b", BOB, "c2")
    await watches.remove(link, server, "a://b", ADA, "c1")
    assert server.own == [("watch", "ada"), ("unwatch", "ada")]
    assert server.shared == {"a://b": 1}
    await watches.remove(link, server, "a://b", BOB, "another of those who share it")
    assert server.shared == {"a://b": 0}
    await watches.remove(link, server, "a://b", BOB, "c2")
    assert server.shared == {"a://b": 0}


async def test_what_is_asked_for_again_counts_once_and_ends_with_the_use_of_its_server() -> None:
    server: Any = Server()
    pool: Any = Pool(server)
    link: Any = Link()
    watches = Watches(pool)
    for _ in range(3):
        await watches.add(link, server, "a://b", OTHER_GATEWAY, "")
    assert server.shared == {"a://b": 1}
    watches.forget(link, "another")
    watches.forget(link, "s")
    await eventually(lambda: server.shared == {"a://b": 0})
    await watches.add(link, server, "a://b", BOB, "c2")
    assert server.shared == {"a://b": 1}
    watches.forget(link)
    await eventually(lambda: server.shared == {"a://b": 0})


async def test_a_link_that_ends_while_its_watch_is_made_leaves_none() -> None:
    server: Any = Server()
    pool: Any = Pool(server)
    link: Any = Link()
    watches = Watches(pool)
    adding = asyncio.ensure_future(watches.add(link, server, "a://b", BOB, "c2"))
    await asyncio.sleep(0)
    link.ended.set_result("gone")
    watches.forget(link)
    await adding
    assert server.shared == {"a://b": 0}
