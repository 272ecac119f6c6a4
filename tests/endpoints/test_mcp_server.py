"""`McpServer` by itself, over a gateway in memory: names, eras, and what a caller may not see."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import Raw
from support import Double, MemoryGateway, in_memory_gateway

from toolscore.core.errors import MethodNotFound, ToolNotFound
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Principal
from toolscore.endpoints.mcp.server import McpServer
from toolscore.upstreams import Caller

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def double() -> Double:
    return Double().tool("echo", lambda given: given["text"], schema=TEXT)


def run(check: Callable[[MemoryGateway], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with in_memory_gateway({"town": double(), "village": double()}, **settings) as gateway:
            await check(gateway)

    asyncio.run(main())


async def ask(server: McpServer, method: str, who: str = "ada", **params: Any) -> Any:
    members = {name: Raw(encode(value)) for name, value in params.items()}
    answer = await server.handle(method, members, Caller(Principal(who)), request_id="test")
    return decode(encode(answer))


def test_one_address_shows_all_servers_and_each_its_own() -> None:
    async def check(gateway: MemoryGateway) -> None:
        everything, town = McpServer(gateway.rooms), McpServer(gateway.rooms, "town")
        names = [tool["name"] for tool in (await ask(everything, "tools/list"))["tools"]]
        assert {"town__echo", "village__echo"} <= set(names)
        assert [tool["name"] for tool in (await ask(town, "tools/list"))["tools"]] == ["echo"]
        for server, name in ((everything, "village__echo"), (town, "echo")):
            result = await ask(server, "tools/call", name=name, arguments={"text": "hi"})
            assert result["content"] == [{"type": "text", "text": "hi"}]
        assert (everything.covers("village"), town.covers("village")) == (True, False)

    run(check)


def test_a_session_is_opened_in_a_revision_that_both_speak() -> None:
    async def check(gateway: MemoryGateway) -> None:
        server = McpServer(gateway.rooms)
        for wanted, given in (("2025-03-26", "2025-03-26"), ("1999-01-01", "2025-11-25")):
            opened = await server.initialize({"protocolVersion": Raw(encode(wanted))})
            assert opened["protocolVersion"] == given
        with pytest.raises(MethodNotFound):
            await ask(server, "server/discover")  # of the stateless era
        with pytest.raises(MethodNotFound):
            await ask(server, "no/such")

    run(check)


@pytest.mark.long
def test_a_hidden_tool_is_missing() -> None:
    policy = {"rules": [{"principals": ["eve"], "tools": ["village__*"], "effect": "deny"}]}

    async def refusal(server: McpServer) -> str:
        with pytest.raises(ToolNotFound) as refused:
            await ask(server, "tools/call", "eve", name="village__echo", arguments={"text": "hi"})
        return refused.value.message

    async def check(gateway: MemoryGateway) -> None:
        server = McpServer(gateway.rooms)
        names = [tool["name"] for tool in (await ask(server, "tools/list", "eve"))["tools"]]
        assert "town__echo" in names
        assert "village__echo" not in names
        async with in_memory_gateway({"town": double()}) as other:
            said = [await refusal(server), await refusal(McpServer(other.rooms))]
        assert said == ["no tool 'village__echo'; nearest: town__echo"] * 2
        assert (await ask(server, "tools/call", name="village__echo", arguments={"text": "hi"}))["content"]

    run(check, policy=policy)
