"""A server that says something else of all its tools at once keeps nobody waiting."""

from __future__ import annotations

import asyncio

from support import Double, eventually, in_memory_gateway

WORDS = "lists reads writes moves deletes merges finds counts orders items users files rows notes".split()
SECONDS = 0.25
"""CPU time that the loop's thread may take at a stretch: elapsed time would be the machine's, too."""


def described(number: int) -> str:
    return f"{' '.join(WORDS[(number * step) % len(WORDS)] for step in range(1, 40))} number {number}"


def server(prefix: str, tools: int, said: str = "") -> Double:
    double = Double()
    for number in range(tools):
        double.tool(f"{prefix}{number}", lambda _: "done", description=described(number) + said)
    return double


def test_two_thousand_tools_are_renamed() -> None:
    async def run() -> None:
        async with in_memory_gateway() as gateway:
            double = await gateway.add("town", server("old", 2000))
            before = gateway.rooms.watchdog.busiest_seconds
            double._tools = server("new", 2000)._tools
            gateway.rooms.upstreams.get("town").lists.changed("notifications/tools/list_changed")
            async with asyncio.timeout(60):
                while not gateway.rooms.library.of_server("town")[0].name.startswith("new"):
                    await asyncio.sleep(0.01)
            await eventually(lambda: gateway.rooms.pins.find("town", "new7") is not None)
            pin = gateway.rooms.pins.find("town", "new7")
            assert pin is not None
            assert pin.held is not None
            assert "'old7' under another name" in pin.held.change.reasons[0]
            assert max(before, gateway.rooms.watchdog.busiest_seconds) < SECONDS

    asyncio.run(run())


def test_a_long_name_is_not_compared_whole() -> None:
    async def run() -> None:
        async with in_memory_gateway({"town": server("tool", 3000)}) as gateway:
            answer = await gateway.execute("town__tool" * 400_000)
            assert answer["error"]["code"] == "tool_not_found"
            assert len(answer["error"]["message"]) < 300
            assert (await gateway.execute("town__tol17"))["error"]["suggestion"].startswith("nearest: town__tool17")
            assert gateway.rooms.watchdog.busiest_seconds < SECONDS

    asyncio.run(run())
