"""The gateway's own tools, and lists that fit into a small context."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Double, GatewayProcess, bearer, in_memory_gateway, odd, running_gateway, wait_for

from toolscore.core.errors import ToolNotFound
from toolscore.core.models import Principal, Tool
from toolscore.discovery.own_tools import OwnTools
from toolscore.discovery.search.fitting import fitted
from toolscore.embedding import LightEmbedder

ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "agent", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def mcp(process: GatewayProcess, method: str, params: dict[str, Any] | None = None, key: str | None = None) -> Any:
    """A request of the stateless era."""
    headers = {
        "accept": "application/json, text/event-stream", "mcp-protocol-version": "2026-07-28", "mcp-method": method,
        **({"mcp-name": params["name"]} if params and "name" in params else {}), **(bearer(key) if key else {}),
    }  # fmt: skip
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**(params or {}), "_meta": ENVELOPE}}
    return process.http.post("/mcp", json=body, headers=headers).json()


def listed(process: GatewayProcess, key: str | None = None) -> list[str]:
    return [tool["name"] for tool in mcp(process, "tools/list", key=key)["result"]["tools"]]


def call(process: GatewayProcess, name: str, arguments: dict[str, Any], key: str | None = None) -> Any:
    return mcp(process, "tools/call", {"name": name, "arguments": arguments}, key)


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    settings = """
discovery: {list_tokens: 2000, always_listed: [alpha__safe], catalog: {registries: []}}
policy: {rules: [{effect: deny, principals: [guest], tools: ["toolscore__call_tool", "alpha__*"]}]}
"""
    servers = {"alpha": odd("echo"), "many": odd("many")}
    with running_gateway(servers, settings=settings, journal=True) as gateway:
        gateway.wait_for_state("alpha", "up")
        gateway.wait_for_state("many", "up")
        yield gateway


@pytest.mark.long
def test_a_list_fits_its_budget_and_the_rest_is_found_and_called(process: GatewayProcess) -> None:
    names = listed(process)
    assert names == sorted(names)
    assert {"toolscore__search_tools", "toolscore__call_tool", "alpha__safe"} <= set(names)
    costs = {tool["tool_id"]: tool["tokens_estimate"] for tool in process.get("/api/v1/tools", limit=1000)["tools"]}
    assert len(names) < len(costs) / 4
    assert 1000 < sum(costs[name] for name in names) <= 2000
    missing = next(name for name in costs if name.startswith("many__") and name not in names)
    found = call(process, "toolscore__search_tools", {"query": missing.removeprefix("many__"), "limit": 3})
    assert missing in [tool["tool_id"] for tool in found["result"]["structuredContent"]["tools"]]
    assert "input_schema" in found["result"]["structuredContent"]["tools"][0]
    arguments = {"tool_id": "alpha__echo", "parameters": {"text": "hello"}}
    assert call(process, "toolscore__call_tool", arguments)["result"]["content"][0]["text"] == "hello"
    wait_for(lambda: [one["tool_id"] for one in process.get("/api/v1/calls", limit=1)["calls"]] == ["alpha__echo"])


@pytest.mark.long
def test_the_list_stays_as_it_was(process: GatewayProcess) -> None:
    before = listed(process)
    for _ in range(5):
        process.text("alpha__echo", {"text": "x"})
    process.http.post("/api/v1/servers", json={"server_id": "extra", **odd("echo")})
    process.wait_for_state("extra", "up")
    wait_for(lambda: process.http.get("/api/v1/tools/extra__echo").status_code == 200)
    assert listed(process) == before, "what is listed stays listed"
    process.http.delete("/api/v1/servers/extra")
    assert listed(process) == before


def test_one_server_alone_is_shown_whole(process: GatewayProcess) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}}
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2026-07-28",
               "mcp-method": "tools/list"}  # fmt: skip
    answer = process.http.post("/servers/many/mcp", json=body, headers=headers).json()
    assert len(answer["result"]["tools"]) == 500


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "tool_id"),
        ({"tool_id": 1}, "tool_id"),
        ({"tool_id": "alpha__echo", "parameters": []}, "parameters"),
        ({"tool_id": "alpha__echo", "more": 1}, "more"),
        ({"tool_id": "toolscore__call_tool", "parameters": {"tool_id": "alpha__echo"}}, "calls other tools"),
        ({"tool_id": "alpha__echo", "parameters": {"txt": 1}}, "text"),
    ],
)
def test_what_does_not_fit_is_said_for_the_model_to_mend(
    process: GatewayProcess, arguments: dict[str, Any], expected: str
) -> None:
    result = call(process, "toolscore__call_tool", arguments)["result"]
    assert result["isError"]
    assert expected in json.dumps(result["content"])


def test_a_tool_that_is_not_there_has_its_nearest_names(process: GatewayProcess) -> None:
    answer = call(process, "toolscore__call_tool", {"tool_id": "alpha__ecko"})
    assert "alpha__echo" in json.dumps(answer)


def test_policy_holds_behind_every_door(process: GatewayProcess, new_key: Callable[[GatewayProcess, str], str]) -> None:
    guest = new_key(process, "guest")
    assert not {"toolscore__call_tool", "alpha__safe"} & set(listed(process, guest))
    assert "error" in call(process, "toolscore__call_tool", {"tool_id": "many__tool_001"}, guest)
    found = call(process, "toolscore__search_tools", {"query": "echo a text"}, guest)["result"]["structuredContent"]
    assert not [tool for tool in found["tools"] if tool["tool_id"].startswith("alpha__")]
    ada = new_key(process, "ada")
    assert call(process, "toolscore__call_tool", {"tool_id": "alpha__echo", "parameters": {"text": "hi"}}, ada)[
        "result"
    ]
    inner = process.execute("toolscore__call_tool", {"tool_id": "alpha__echo", "parameters": {"text": "rest"}})
    assert inner["data"]["content"][0]["text"] == "rest"
    denied = process.http.post(
        "/execute_tool", headers=bearer(guest),
        json={"tool_id": "toolscore__call_tool", "parameters": {"tool_id": "alpha__echo", "parameters": {"text": "x"}}},
    )  # fmt: skip
    assert denied.status_code == 404, "a forbidden tool does not exist"


@pytest.mark.long
def test_they_can_be_switched_off(process: GatewayProcess) -> None:
    file = process.config / "toolscore.yaml"
    settings = file.read_text()
    file.write_text(settings.replace("discovery: {", "discovery: {mcp_tools: false, "))
    wait_for(lambda: process.http.get("/api/v1/servers/toolscore").status_code == 404, 60)
    assert not [name for name in listed(process) if name.startswith("toolscore__")]
    assert "error" in call(process, "toolscore__search_tools", {"query": "echo a text"})
    file.write_text(settings)
    process.wait_for_state("toolscore", "up")
    wait_for(lambda: "toolscore__search_tools" in listed(process))


@pytest.mark.long
def test_they_ask_for_the_caller_and_say_what_goes_wrong(open_rooms: Any) -> None:
    """Without a gateway: who calls is asked what exists, and a call goes to whoever makes calls."""
    called: list[tuple[str, dict[str, Any], str]] = []

    async def call(tool_id: str, arguments: dict[str, Any], who: Principal) -> dict[str, Any]:
        called.append((tool_id, arguments, who.name))
        if tool_id == "gone":
            raise ToolNotFound("no tool 'gone'", suggestion="nearest: here")
        return {"content": [{"type": "text", "text": "done"}]}

    def sees(who: Principal) -> Any:
        return (lambda tool: tool.name != "secret") if who.name == "guest" else None

    async def run() -> None:
        nothing: Any = None
        async with open_rooms(LightEmbedder()) as rooms:
            rooms.list_tools("safe", secret="Opens the safe.", visit="Visits the safe.")
            own = OwnTools(rooms.search, nothing, nothing, sees=sees, call=call, code=nothing, run=nothing)
            assert [one["name"] for one in own.list_tools()][:2] == ["search_tools", "call_tool"]

            async def asked(name: str, arguments: dict[str, Any], who: str | None) -> dict[str, Any]:
                meta = {"toolscore/principal": who, "toolscore/scopes": []} if who else {}
                return await own.call_tool(name, arguments, meta=meta)

            for who, expected in (("ada", {"safe__secret", "safe__visit"}), ("guest", {"safe__visit"})):
                found = (await asked("search_tools", {"query": "the safe"}, who))["structuredContent"]
                assert {one["tool_id"] for one in found["tools"]} == expected
            done = await asked("call_tool", {"tool_id": "here", "parameters": {"a": 1}}, "ada")
            assert done["content"][0]["text"] == "done"
            assert called == [("here", {"a": 1}, "ada")]
            gone = await asked("call_tool", {"tool_id": "gone"}, "ada")
            assert (gone["isError"], gone["content"][0]["text"]) == (True, "no tool 'gone'. nearest: here")
            for refused in (
                await asked("call_tool", {"tool_id": "toolscore__call_tool"}, "ada"),
                await asked("search_tools", {"query": "the safe"}, None),
            ):
                assert refused["isError"]
            assert len(called) == 2

    asyncio.run(run())


def tool(name: str) -> Tool:
    return Tool(tool_id=name, server_id="s", name=name, definition={}, definition_hash=name, first_seen="")


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=30
    ),
    st.integers(0, 400),
    st.sets(st.text("abc", min_size=1, max_size=3)),
)
@pytest.mark.long
def test_what_is_fitted(known: dict[str, tuple[int, float]], budget: int, before: set[str]) -> None:
    """Within the budget but for what is always listed; sorted; the same again once it was listed."""
    tools = [tool(name) for name in known]

    def chosen(last: Any) -> list[str]:
        found = fitted(tools, budget, tokens=lambda one: known[one.tool_id][0], score=lambda one: known[one.tool_id][1],
                       always=["a*"], before=last)  # fmt: skip
        return [one.tool_id for one in found]

    names = chosen(before)
    assert names == sorted(names)
    always = [name for name in known if name.startswith("a")]
    assert set(always) <= set(names)
    spent = sum(known[name][0] for name in names)
    assert spent <= budget or set(names) == set(always)
    assert chosen(set(names)) == names


def test_a_description_keeps_to_its_budget() -> None:
    many = Double()
    for number in range(300):
        many.tool(f"tool_{number:03}", lambda _: "x")

    async def run() -> None:
        async with in_memory_gateway({"many": many}) as gateway:
            rooms = gateway.rooms
            before = rooms.library.texts_generation, rooms.library.generation
            rooms.library.set_state("many", "idle")
            assert rooms.library.texts_generation == before[0], "what is found does not depend on who is awake"
            assert rooms.library.generation == before[1] + 1
            for form in ("python", "json"):
                asked = {"names": ["many__*"], "format": form, "max_tokens": 200}
                said = await gateway.execute("toolscore__describe_tools", asked)
                assert len(said["data"]["content"][0]["text"]) < 4000
                left = said["data"]["structured_content"]["left_out"]
                assert len(left) == 21
                assert left[-1].startswith("and ")

    asyncio.run(run())
