"""`McpServer` by itself, over a gateway in memory: names, eras, and what a caller may not see."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import Raw
from support import Double, MemoryGateway, in_memory_gateway

from toolscore.core.errors import InvalidArguments, MethodNotFound, ToolNotFound
from toolscore.core.jsonrpc import INVALID_PARAMS, decode, encode
from toolscore.core.models import LOCAL, Event, Principal
from toolscore.endpoints.live import concerns
from toolscore.endpoints.mcp.callers import SessionCaller, StatelessCaller, envelope_of
from toolscore.endpoints.mcp.links import link_shown
from toolscore.endpoints.mcp.server import McpServer
from toolscore.endpoints.mcp.sessions import Sessions
from toolscore.endpoints.mcp.task_ids import TaskIds
from toolscore.endpoints.views import stats_fields
from toolscore.upstreams import Caller
from toolscore.upstreams.protocol import META, UNSUPPORTED_PROTOCOL_VERSION

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


def test_a_session_goes_by_the_key_that_is_shown() -> None:
    async def check(gateway: MemoryGateway) -> None:
        server, sessions = McpServer(gateway.rooms), Sessions(gateway.rooms)
        once, now = Principal("bob", ("wipe",)), Principal("bob")
        session_id = await sessions.open(server, None, {}, "2025-06-18", once)
        session = await sessions.find(session_id, server, None, now)
        assert session is not None
        assert session.principal == now, "another key of the same name, without the scope"
        caller = SessionCaller(session, lambda *_: None, session.ask, None, principal=once)
        assert caller.principal == once, "each request goes by its own"
        assert await sessions.find(session_id, server, None, Principal("eve", ("wipe",))) is None

    run(check)


def test_what_names_a_task_by_its_servers_own_id_is_not_passed_on() -> None:
    said: list[tuple[str, Any]] = []
    params = {"_meta": {"progressToken": Raw(b"1")}}
    caller = StatelessCaller(params, envelope_of(params), lambda *told: said.append(told), Principal("bob"))
    caller.notify("notifications/tasks/status", Raw(b'{"taskId":"7","status":"working"}'))
    caller.notify("notifications/progress", Raw(b'{"progressToken":9,"progress":1}'))
    assert said == [("notifications/progress", {"progressToken": Raw(b"1"), "progress": Raw(b"1")})]


def test_an_envelope_is_read_as_it_is_written_each_time() -> None:
    def read(version: str, offered: str, level: str | None = None) -> tuple[Any, Any, Any, Any]:
        said = {"protocolVersion": version, "clientCapabilities": offered, "logLevel": level}
        meta = {f"{META}{name}": Raw(text.encode()) for name, text in said.items() if text is not None}
        found = envelope_of({"_meta": meta})
        return found.version, found.capabilities, found.log_level, (found.error or {}).get("code")

    for _ in range(2):  # the second time it is known
        assert read('"2026-07-28"', "{}") == ("2026-07-28", {}, None, None)
        assert read('"2026-07-28"', '{"roots":{}}', '"info"') == ("2026-07-28", {"roots": {}}, "info", None)
        assert read('"2026-07-28"', "[]", "7") == ("2026-07-28", {}, None, None)
        assert read('"2024-01-01"', "{}") == ("2024-01-01", {}, None, UNSUPPORTED_PROTOCOL_VERSION)
        assert read("null", "{}") == (None, {}, None, INVALID_PARAMS)
        assert read("1" * 5000, "{}") == (None, {}, None, INVALID_PARAMS), "more digits than anybody reads"
        assert read('"2026-07-28"', f'{{"a":{"1" * 5000}}}') == (None, {}, None, INVALID_PARAMS)
        large = f'{{"experimental":{{"a":"{"x" * 5000}"}}}}'
        assert len(read('"2026-07-28"', large)[1]["experimental"]["a"]) == 5000
    assert (envelope_of({}).error or {})["message"].count("and") == 1, "both are missing"


def test_a_cursor_that_is_none_of_ours_is_not_kept() -> None:
    async def check(gateway: MemoryGateway) -> None:
        server = McpServer(gateway.rooms)
        with pytest.raises(InvalidArguments):
            await ask(server, "tools/list", cursor="x" * 2000)
        before = gateway.rooms.library.page
        asked = []
        gateway.rooms.library.page = lambda **given: asked.append(given) or before(**given)  # type: ignore[method-assign,func-returns-value]
        for _ in range(3):
            await ask(server, "tools/list")
            await ask(server, "tools/list", cursor="made up")
        assert [given["cursor"] for given in asked] == [None, "made up", "made up", "made up"]

    run(check)


def test_what_the_policy_hides_is_told_by_no_figures_and_a_removal_to_who_saw_the_tool() -> None:
    async def check(gateway: MemoryGateway) -> None:
        rooms = gateway.rooms
        rooms.figures.latest = {"town": {"calls": 1}, "village": {"calls": 2}}
        assert set(stats_fields(rooms, Principal("ada"))["server_stats"]) == {"village"}
        rooms.library.forget("town")
        rooms.library.forget("village")
        gone = {name: Event(type="tool_removed", data={"tool_id": f"{name}__echo", "server_id": name}, timestamp="")
                for name in ("town", "village", "elsewhere")}  # fmt: skip
        heard = {name for name, event in gone.items() if concerns(rooms, event, Principal("ada"))}
        assert heard == {"village"}
        assert all(
            concerns(rooms, event, Principal("root", ("admin",))) for event in (gone["village"], gone["elsewhere"])
        )

    run(check, policy={"rules": [{"effect": "deny", "principals": ["ada"], "servers": ["town"]}]})


def test_a_task_is_whose_call_began_it() -> None:
    begun = {"content": [], "taskId": "t/1", "resultType": "task"}

    def slow() -> Double:
        return Double().tool("slow", lambda given: begun)

    async def main() -> None:
        async with in_memory_gateway({"town": slow(), "village": slow()}) as gateway:
            rooms = gateway.rooms
            for server, name, server_id in (
                (McpServer(rooms), "town__slow", ""),
                (McpServer(rooms, "town"), "slow", "town"),
            ):
                shown = (await ask(server, "tools/call", name=name, arguments={}))["taskId"]
                assert "t/1" not in shown, "the server's own id is good for everybody"
                ids = TaskIds(rooms.ring, server_id or None)
                assert ids.meant(shown, Principal("ada")) == ("town", "t/1")
                for other in (Principal("eve"), Principal("ada2")):
                    with pytest.raises(InvalidArguments, match="began no task"):
                        ids.meant(shown, other)
                with pytest.raises(InvalidArguments, match="began no task"):
                    ids.meant("town/t/1", Principal("ada"))
            here = TaskIds(rooms.ring, None)
            assert decode(here.shown("town", LOCAL, Raw(encode(begun))))["taskId"] == "town/t/1", "no keys here"
            assert here.meant("town/t/1", LOCAL) == ("town", "t/1")
            for_session = Raw(encode({"task": {"taskId": "1", "status": "working"}}))
            assert decode(here.shown("town", LOCAL, for_session))["task"] == {"taskId": "town/1", "status": "working"}
            with pytest.raises(MethodNotFound, match="tasks of all callers"):
                await ask(McpServer(rooms, "town"), "tasks/list")

    asyncio.run(main())


def test_what_is_no_object_is_structured_for_the_stateless_alone() -> None:
    listed = {"outputSchema": {"type": "array"}}
    server = Double().tool("list", lambda _: {"content": [], "structuredContent": [1, 2]}, **listed)

    async def ask_as(address: McpServer, stateless: bool, method: str, **params: Any) -> Any:
        caller = Caller(Principal("ada"))
        caller.stateless = stateless
        members = {name: Raw(encode(value)) for name, value in params.items()}
        return decode(encode(await address.handle(method, members, caller, request_id="test")))

    async def main() -> None:
        async with in_memory_gateway({"town": server}) as gateway:
            for address, name in ((McpServer(gateway.rooms), "town__list"), (McpServer(gateway.rooms, "town"), "list")):
                for stateless in (True, False):
                    tools = (await ask_as(address, stateless, "tools/list"))["tools"]
                    (tool,) = [tool for tool in tools if tool["name"] == name]
                    assert ("outputSchema" in tool) is stateless
                    result = await ask_as(address, stateless, "tools/call", name=name, arguments={})
                    assert ("structuredContent" in result) is stateless
                    if not stateless:
                        assert result["content"] == [{"type": "text", "text": "[1,2]"}]

    asyncio.run(main())


def test_a_resource_that_a_prompt_names_can_be_read() -> None:
    blocks: list[Any] = [
        {"type": "resource_link", "uri": "y://unlisted", "name": "y"},
        {"type": "resource", "resource": {"uri": "y://unlisted", "text": "x"}},
        {"type": "text", "text": "x"},
        "odd",
    ]

    async def check(gateway: MemoryGateway) -> None:
        features = gateway.rooms.features
        assert not [block for block in blocks if link_shown(features, "town", block)]
        assert [link_shown(features, "village", block) for block in blocks] == [True, True, False, False]
        assert blocks[0]["uri"] == blocks[1]["resource"]["uri"] == "toolscore+village+y://unlisted"

    run(check)
