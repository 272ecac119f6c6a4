"""What gateways share, in a real Redis and in the memory of one process of theirs: both do the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.coroutines import running
from support.patience import patient_stores

from toolscore.access.limits import RateLimits, RateRules
from toolscore.core.errors import Overloaded, RateLimited
from toolscore.core.models import Principal, Tool
from toolscore.endpoints.mcp import mirror
from toolscore.endpoints.mcp.mirror import Mirrors
from toolscore.replicas import members
from toolscore.stores.host import serve_memory
from toolscore.stores.memory import Memory
from toolscore.stores.redis import SharedStore, open_shared

ENGINES = ("redis", "host")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "redis":
        return request.getfixturevalue("redis").url
    return tmp_path / "shared"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient_stores(monkeypatch)


@asynccontextmanager
async def stores(engine: str | Path, count: int = 1) -> AsyncIterator[list[SharedStore]]:
    """Some that share it, as processes would."""
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(engine, Path):
            await stack.enter_async_context(serve_memory(engine))
        found = []
        for _ in range(count):
            host = engine if isinstance(engine, Path) else None
            store = await stack.enter_async_context(open_shared(None if host else str(engine), host))
            assert store is not None
            assert store.up, store.error
            found.append(store)
        yield found


@running
@pytest.mark.long
async def test_keys_have_an_end(engine: Any) -> None:
    async with stores(engine, 2) as (one, other):
        assert await one.put("k:a", b"\x00\xff1", 30)
        assert await other.get("k:a") == b"\x00\xff1"
        assert await one.put_new("k:a", b"2", 30) is False
        assert await one.put_new("k:b", b"2", 0.15) is True
        assert await other.get_many(["k:a", "k:b", "k:none"]) == [b"\x00\xff1", b"2", None]
        while await other.get("k:b") is not None:
            await asyncio.sleep(0.02)
        assert await one.put_new("k:b", b"3", 30) is True
        await one.drop_if(["k:a", "k:b"], b"3")
        assert await other.get_many(["k:a", "k:b"]) == [b"\x00\xff1", None]
        await one.drop(["k:a"])
        assert await other.get("k:a") is None


@running
@pytest.mark.long
async def test_scripts_make_the_same_of_keys(engine: Any) -> None:
    async with stores(engine) as (store,):
        claim = lambda who, instead="": store.run(members.CLAIM, ["s:x"], [who, 30_000, instead])  # noqa: E731
        assert [await claim("a"), await claim("b"), await claim("b", "a")] == [b"a", b"a", b"b"]
        assert await store.run(members.RENEW, ["s:x", "s:y"], ["a", 30_000]) == [1]
        assert await store.get("s:y") == b"a"
        keys = ["s:replica:a", "s:replicas"]
        assert await store.run(members.PRESENT, keys, ["a", "1.2.3.4:5", 30_000, "s:replica:"]) == [b"a", b"1.2.3.4:5"]
        assert await store.run(members.KNOWN, ["s:none"], []) == b""
        first, second = b'["one", null]', b'["two", {"x": 1}]'
        assert await store.run(members.OFFER, ["s:session"], [first, "", 30_000]) == first
        assert await store.run(members.OFFER, ["s:session"], [second, "", 30_000]) == first
        assert await store.run(members.OFFER, ["s:session"], [second, "one", 30_000]) == second
        assert await store.run("return {1, 'two', false, 3}", [], []) == [1, b"two", None, 3]
        assert await store.run("return redis.call('hgetall', KEYS[1])", ["s:none"], []) == []
        assert await store.run("return 3.7", [], []) == 3
        await store.drop(["s:x", "s:y", "s:session", *keys])


@running
async def test_a_mistake_in_a_script_is_none(engine: Any) -> None:
    async with stores(engine) as (store,):
        assert await store.run("return nothing.there", [], []) is None
        assert not store.up  # it is asked again in a moment


@running
async def test_all_who_listen_are_told(engine: Any) -> None:
    async with stores(engine, 2) as (one, other):
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        ready = asyncio.Event()
        task = asyncio.create_task(other.listen("a channel", heard.put_nowait, ready.set))
        async with asyncio.timeout(60):
            await ready.wait()
            for number in range(100):
                assert await one.publish("a channel", b"%d" % number)
            assert [int(await heard.get()) for _ in range(100)] == list(range(100))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@running
async def test_a_stream_keeps_about_so_many_entries(engine: Any) -> None:
    async with stores(engine) as (store,):
        assert await store.append("t:s", [{b"n": b"%d" % number} for number in range(500)], 100, 30)
        kept = await store.entries("t:s", b"", 1000)
        assert 100 <= len(kept) <= 300
        assert kept[-1][1] == {b"n": b"499"}
        assert [entry for _, entry in await store.entries("t:s", kept[-3][0], 1000)] == [{b"n": b"498"}, {b"n": b"499"}]
        assert len(await store.entries("t:s", b"", 7)) == 7
        await store.drop(["t:s"])


@running
async def test_a_budget_is_of_all_together(engine: Any) -> None:
    async with stores(engine, 2) as (one, other):
        who = Principal(f"somebody {id(engine)}")
        tool = Tool(
            tool_id="a__b", server_id="a", name="b", definition={"name": "b"}, definition_hash="b", first_seen="2026"
        )
        limits = [RateLimits(RateRules(per_minute=60, burst=10), store) for store in (one, other)]
        taken = 0
        with contextlib.suppress(RateLimited):
            for number in range(30):
                await limits[number % 2].take(who, tool)
                taken += 1
        assert 10 <= taken <= 11


# The memory alone


@running
async def test_a_host_that_went_is_noticed_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    async with open_shared(None, path) as store:
        assert store is not None
        assert not store.up
        ended = asyncio.Event()
        async with serve_memory(path):
            async with asyncio.timeout(10):
                while not store.up:
                    await asyncio.sleep(0.02)
            assert await store.put("a", b"1", 30)
            ready = asyncio.Event()
            listening = asyncio.create_task(store.listen("c", lambda _: None, ready.set))
            listening.add_done_callback(lambda _: ended.set())
            await ready.wait()
        async with asyncio.timeout(10):
            await ended.wait()  # at once, not at the next silence
        assert await store.get("a") is None
        assert not store.up


def test_the_oldest_goes_first_where_there_is_too_much() -> None:
    memory = Memory(max_bytes=20_000)
    memory.set(b"lease", b"mine", 60_000)
    for number in range(100):
        memory.set(b"%d" % number, bytes(1000), 60_000)
        memory.set(b"lease", b"mine", 60_000)
    assert memory.get(b"lease") == b"mine"
    assert memory.get(b"99")
    assert memory.get(b"0") is None


def test_what_has_ended_is_forgotten_though_nobody_asks() -> None:
    memory = Memory()
    for number in range(1000):
        memory.set(b"%d" % number, b"x", 0.0 if number % 2 else 60_000)
    memory.sweep()
    memory.sweep()
    assert len(memory._kept) == 500


@running
async def test_strange_bytes_end_the_connection_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    async with serve_memory(path) as memory, open_shared(None, path) as store:
        assert store is not None
        assert store.up
        for junk in (b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\5\x93\1\xa1x"):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(junk)
            with contextlib.suppress(ConnectionError):
                writer.write_eof()
                assert await reader.read() == b""
            writer.close()
        memory.set(b"a", b"1")
        assert await store.get("a") == b"1"


@running
async def test_who_is_known_to_be_there_hears_what_is_told(engine: Any) -> None:
    async with stores(engine, 2) as (one, other), members.Members(one, "s") as teller:
        await teller.begin("1.2.3.4:5")
        for _ in range(20):
            async with members.Members(other, "s") as comer:
                heard = asyncio.Event()
                comer.on("news", lambda _, heard=heard: heard.set())  # type: ignore[misc]
                coming = asyncio.create_task(comer.begin("1.2.3.4:6"))
                while comer.id not in teller.others:
                    await teller._tick()
                teller.tell("news")
                await heard.wait()
                await coming


@running
async def test_whoever_is_cancelled_while_it_asks_ends_at_any_moment(engine: Any) -> None:
    async with stores(engine) as (store,):
        await store.ask(store.client.ping())
        for turns in range(40):
            ended = []

            async def asks(ended: list[str] = ended) -> None:
                await store.ask(store.client.ping(), 30)
                ended.append("asked")
                await asyncio.sleep(30)

            task = asyncio.create_task(asks())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=10)
            assert task.cancelled(), (turns, ended)


@running
async def test_a_stream_is_found_though_the_store_had_no_answer_at_its_begin(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_there(_: str) -> bool:
        return True

    replicas: Any = SimpleNamespace(members=SimpleNamespace(id="one", is_there=is_there))
    async with stores(engine, 2) as (one, other):
        written, read = Mirrors(one, replicas, "identity"), Mirrors(other, replicas, "identity")
        one.fail("no answer in time")
        other.fail("no answer in time")
        stream = written.write("session", 7, 1)
        chunks = await read.read("session", 7, 0)
        assert chunks is not None
        stream.put(1, b"{}")
        stream.end()
        assert [b"{}" in chunk async for chunk in chunks] == [False, True]

        monkeypatch.setattr(mirror, "HEAD_SECONDS", 0.2)
        assert await read.read("session", 9, 0) is None
    async with open_shared(None, tmp_path / "nobody") as gone:
        assert gone is not None
        with pytest.raises(Overloaded, match="cannot be said"):
            await Mirrors(gone, replicas, "identity").read("session", 7, 0)
