"""A server that says something else of all its tools at once keeps nobody waiting."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from support import Double, eventually, in_memory_gateway
from support.stalls import stall_seconds

pytestmark = pytest.mark.long

WORDS = "lists reads writes moves deletes merges finds counts orders items users files rows notes".split()


@pytest.fixture(autouse=True)
def _own_heap() -> Iterator[None]:
    """What other tests left in this process is not the gateway's to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def described(number: int) -> str:
    return f"{' '.join(WORDS[(number * step) % len(WORDS)] for step in range(1, 40))} number {number}"


def server(prefix: str, tools: int, said: str = "") -> Double:
    double = Double()
    for number in range(tools):
        double.tool(f"{prefix}{number}", lambda _: "done", description=described(number) + said)
    return double


@pytest.mark.no_cover  # counting lines takes CPU time, too
def test_two_thousand_tools_are_renamed() -> None:
    double, renamed = server("old", 2000), server("new", 2000)

    async def run() -> None:
        async with in_memory_gateway() as gateway:
            await gateway.add("town", double)
            await asyncio.sleep(0.1)
            gateway.rooms.watchdog.busiest_seconds = 0.0
            double._tools = renamed._tools
            gateway.rooms.upstreams.get("town").lists.changed("notifications/tools/list_changed")
            async with asyncio.timeout(300):  # the work of ten seconds, where nobody else works
                while not gateway.rooms.library.of_server("town")[0].name.startswith("new"):
                    await asyncio.sleep(0.01)
            await eventually(lambda: gateway.rooms.pins.find("town", "new7") is not None)
            pin = gateway.rooms.pins.find("town", "new7")
            assert pin is not None
            assert pin.held is not None
            assert "'old7' under another name" in pin.held.change.reasons[0]
            assert gateway.rooms.watchdog.busiest_seconds < stall_seconds()

    asyncio.run(run())


@pytest.mark.no_cover
def test_a_long_name_is_not_compared_whole() -> None:
    double = server("tool", 3000)

    async def run() -> None:
        async with in_memory_gateway({"town": double}) as gateway:
            await asyncio.sleep(0.1)
            gateway.rooms.watchdog.busiest_seconds = 0.0
            answer = await gateway.execute("town__tool" * 400_000)
            assert answer["error"]["code"] == "tool_not_found"
            assert len(answer["error"]["message"]) < 300
            assert (await gateway.execute("town__tol17"))["error"]["suggestion"].startswith("nearest: town__tool17")
            await asyncio.sleep(0.1)
            assert gateway.rooms.watchdog.busiest_seconds > 0
            assert gateway.rooms.watchdog.busiest_seconds < stall_seconds()

    asyncio.run(run())
