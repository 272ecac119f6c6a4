"""What is kept of a server is never what was before a change: by default nothing is, and a write ends what is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import Double, MemoryGateway, eventually, in_memory_gateway, text

from toolscore.core.errors import OutcomeUnknown
from toolscore.core.jsonrpc import decode

READS = {"readOnlyHint": True, "idempotentHint": True}
KEPT = {"tools": {"memory__read*": 60}}


class Memory(Double):
    """A server that remembers entries; `read` says which, `create` adds one and ends as it is told to."""

    def __init__(self, **result: Any) -> None:
        super().__init__()
        self.entries: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.tool("read", self._read, annotations=READS).tool("create", self._create)
        self._more = result

    async def _read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        before = " ".join(self.entries)
        await self.go.wait()
        return text(before, **self._more)

    async def _create(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.entries.append(arguments["entry"])
        if arguments.get("wait"):
            await asyncio.sleep(60)
        return text("done", isError=bool(arguments.get("fail")))


async def read(gateway: MemoryGateway, **arguments: Any) -> tuple[str, str | None]:
    result = await gateway.call("memory__read", **arguments)
    return decode(result.content)[0]["text"], result.cache_level


def test_by_default_each_read_is_asked_anew() -> None:
    async def run() -> None:
        async with in_memory_gateway({"memory": Memory()}) as gateway:
            assert await read(gateway) == ("", None)
            await gateway.call("memory__create", entry="tea")
            assert await read(gateway) == ("tea", None)
            assert await read(gateway) == ("tea", None)

    asyncio.run(run())


@pytest.mark.parametrize("more", [{}, {"fail": True}])
@pytest.mark.long
def test_a_write_ends_what_is_kept_however_it_ended(more: dict[str, Any]) -> None:
    async def run() -> None:
        async with in_memory_gateway({"memory": Memory(), "other": Memory()}, cache=KEPT) as gateway:
            assert [await read(gateway) for _ in range(2)] == [("", None), ("", "l1")]
            await gateway.call("other__create", entry="not here")
            assert await read(gateway) == ("", "l1")
            await gateway.call("memory__create", entry="tea", **more)
            assert [await read(gateway) for _ in range(2)] == [("tea", None), ("tea", "l1")]

    asyncio.run(run())


def test_a_write_whose_end_is_not_known_may_still_do_its_work() -> None:
    async def run() -> None:
        async with in_memory_gateway({"memory": Memory()}, cache=KEPT) as gateway:
            await read(gateway)
            call = gateway.make_call("memory__create", entry="tea", wait=True)
            call.timeout_seconds = 0.3
            with pytest.raises(OutcomeUnknown):
                await gateway.rooms.calls.call(call)
            assert [await read(gateway) for _ in range(2)] == [("tea", None), ("tea", None)]
            async with asyncio.timeout(10):
                while await read(gateway) != ("tea", "l1"):  # kept again once its time has passed
                    await asyncio.sleep(0.05)

    asyncio.run(run())


def test_who_reads_after_a_write_does_not_join_who_read_before_it() -> None:
    async def run() -> None:
        memory = Memory()
        async with in_memory_gateway({"memory": memory}, cache=KEPT) as gateway:
            memory.go.clear()
            early = asyncio.create_task(read(gateway))
            await eventually(lambda: len(memory.calls) == 1)
            joined = asyncio.create_task(read(gateway))
            await asyncio.sleep(0)
            await gateway.call("memory__create", entry="tea")
            late = asyncio.create_task(read(gateway))
            await eventually(lambda: [name for name, _ in memory.calls].count("read") == 2)
            memory.go.set()
            assert [await early, await joined, await late] == [("", None), ("", None), ("tea", None)]
            assert await read(gateway) == ("tea", "l1"), "what came in late did not take the place of what is newer"

    asyncio.run(run())


def test_equal_reads_at_once_are_one_without_being_kept() -> None:
    async def run() -> None:
        memory = Memory()
        async with in_memory_gateway({"memory": memory}) as gateway:
            memory.go.clear()
            reads = [asyncio.create_task(read(gateway, n=1)) for _ in range(20)]
            await eventually(lambda: memory.calls)
            memory.go.set()
            assert set(await asyncio.gather(*reads)) == {("", None)}
            assert len(memory.calls) == 1
            writes = [asyncio.create_task(gateway.call("memory__create", entry="tea")) for _ in range(5)]
            await asyncio.gather(*writes)
            assert memory.entries == ["tea"] * 5, "writes are never one"

    asyncio.run(run())


@pytest.mark.long
def test_a_server_may_say_for_how_long_its_result_is_good() -> None:
    async def run() -> None:
        async with in_memory_gateway({"memory": Memory(ttlMs=60_000)}) as gateway:
            assert [await read(gateway) for _ in range(2)] == [("", None), ("", "l1")]
            await gateway.call("memory__create", entry="tea")
            assert [await read(gateway) for _ in range(2)] == [("tea", None), ("tea", "l1")]
        for odd in (0, -5, "60000", True, None, 1e400):
            async with in_memory_gateway({"memory": Memory(ttlMs=odd)}) as gateway:
                assert [await read(gateway) for _ in range(2)] == [("", None), ("", None)]
        never = {"tools": {"memory__*": 0}}
        for settings in (never, {"max_server_ttl_seconds": 0}, {"enabled": False}):
            async with in_memory_gateway({"memory": Memory(ttlMs=60_000)}, cache=settings) as gateway:
                assert [await read(gateway) for _ in range(2)] == [("", None), ("", None)]

    asyncio.run(run())


def test_a_kept_result_says_so_and_a_fresh_one_may_be_asked_for() -> None:
    async def run() -> None:
        memory = Memory()
        async with in_memory_gateway({"memory": memory}, cache=KEPT) as gateway:
            first = await gateway.execute("memory__read")
            assert first["performance"].keys() == {"duration_ms", "cache_hit"}
            kept = (await gateway.execute("memory__read"))["performance"]
            assert (kept["cache_hit"], kept["cache_level"], kept["stale"]) == (True, "l1", False)
            assert kept["age_seconds"] >= 0
            result = await gateway.call("memory__read")
            assert decode(result.raw)["_meta"]["toolscore/cache"]["level"] == "l1"
            assert (await gateway.execute("memory__read", cache=False))["performance"]["cache_hit"] is False
            assert len(memory.calls) == 2
            for wish, level in ((b"false", None), (b"true", "l1")):
                params = b'{"name": "memory__read", "arguments": {}, "_meta": {"toolscore/cache": %s}}' % wish
                answer = await gateway.http.post(
                    "/mcp",
                    content=b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": %s}'
                    % params.replace(
                        b'"_meta": {',
                        b'"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28",'
                        b' "io.modelcontextprotocol/clientCapabilities": {}, ',
                    ),
                    headers={"content-type": "application/json", "accept": "application/json, text/event-stream",
                             "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call",
                             "mcp-name": "memory__read"},
                )  # fmt: skip
                meta = answer.json()["result"].get("_meta", {})
                assert meta.get("toolscore/cache", {}).get("level") == level

    asyncio.run(run())


def test_a_tool_that_failed_is_named_in_the_message() -> None:
    async def run() -> None:
        broken = Double().tool("open", lambda _: text("no such door:\n 'green'", isError=True))
        broken.tool("shut", lambda _: {"content": [], "isError": True})
        async with in_memory_gateway({"house": broken}) as gateway:
            answer = await gateway.execute("house__open")
            assert (answer["success"], answer["data"]["is_error"]) == (True, True)
            assert answer["message"] == "the tool reported an error: no such door: 'green'"
            assert (await gateway.execute("house__shut"))["message"] == "the tool reported an error"

    asyncio.run(run())


def test_arguments_choose_the_result() -> None:
    async def run() -> None:
        async with in_memory_gateway({"memory": Memory()}, cache=KEPT) as gateway:
            assert [await read(gateway, n=n) for n in (1, 2, 1, 2)] == [
                ("", None), ("", None), ("", "l1"), ("", "l1"),
            ]  # fmt: skip

    asyncio.run(run())


def test_reads_that_tell_their_server_something_else_are_not_one() -> None:
    async def run() -> None:
        memory = Memory()
        async with in_memory_gateway({"memory": memory}, cache=KEPT) as gateway:
            for locale in ("de", "fr", "de"):
                call = gateway.make_call("memory__read")
                call.extra = {"_meta": {"acme/locale": locale, "progressToken": 1}}
                assert (await gateway.rooms.calls.call(call)).cache_level is None
            assert len(memory.calls) == 3
            for number in range(2):
                call = gateway.make_call("memory__read")
                call.extra = {"_meta": {"progressToken": number}}
                kept = (await gateway.rooms.calls.call(call)).cache_level
            assert (len(memory.calls), kept) == (4, "l1")

    asyncio.run(run())
