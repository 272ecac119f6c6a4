"""The bridge between the eras, with the conformance fixture behind it: as a server of both, and of sessions alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import mcp_types as types
import pytest
from mcp import Client
from support import GatewayProcess, fixture, running_gateway, wait_for
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")

STATELESS = "2026-07-28"
META = "io.modelcontextprotocol/"
EVERYTHING = {"sampling": {}, "elicitation": {}, "roots": {}}


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    servers = {"both": fixture("stdio"), "sessions": fixture("stdio", "--session-only")}
    with running_gateway({"both": servers["both"]}, settings="limits: {input_seconds: 5}\n") as process:
        wait_for(lambda: listed(process, "resources/list", "resources"))  # the first to have a URI keeps it
        process.servers(servers)
        wait_for(lambda: len(listed(process, "resources/list", "resources")) == 8, 120)
        process.wait_for_state("sessions", "up")
        yield process


def enveloped(params: dict[str, Any], capabilities: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    envelope = {
        f"{META}protocolVersion": STATELESS,
        f"{META}clientCapabilities": EVERYTHING if capabilities is None else capabilities,
        **meta,
    }
    return {**params, "_meta": envelope}


def post(gateway: GatewayProcess, server_id: str, method: str, params: dict[str, Any], **meta: Any) -> httpx.Response:
    """One request of the stateless era."""
    headers = {"mcp-protocol-version": STATELESS, "mcp-method": method, "accept": "application/json, text/event-stream"}
    if "name" in params:
        headers["mcp-name"] = params["name"]
    if "uri" in params:
        headers["mcp-name"] = params["uri"]
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": enveloped(params, **meta)}
    return gateway.http.post(f"/servers/{server_id}/mcp" if server_id else "/mcp", json=body, headers=headers)


def call(gateway: GatewayProcess, server_id: str, tool: str, **more: Any) -> dict[str, Any]:
    """The body of the answer to a stateless `tools/call`."""
    arguments = more.pop("arguments", {})
    params = {"name": tool, "arguments": arguments, **more}
    return dict(post(gateway, server_id, "tools/call", params).json())


ACCEPTED = {"action": "accept", "content": {"name": "Ada", "ok": True, "username": "ada", "email": "a@example.com"}}


def answers(result: dict[str, Any]) -> dict[str, Any]:
    """What a client with a user answers."""
    by_method = {
        "elicitation/create": ACCEPTED,
        "sampling/createMessage": {
            "role": "assistant",
            "model": "test",
            "content": {"type": "text", "text": "Paris"},
        },
        "roots/list": {"roots": [{"uri": "file:///ada"}]},
    }
    return {key: by_method[request["method"]] for key, request in result["inputRequests"].items()}


# A stateless client in front of a server of sessions


def test_a_call_is_suspended_and_resumed(gateway: GatewayProcess) -> None:
    tool = "test_input_required_result_multiple_inputs"
    first = call(gateway, "sessions", tool)["result"]
    assert first["resultType"] == "input_required"
    methods = {request["method"] for request in first["inputRequests"].values()}
    assert methods == {"elicitation/create", "sampling/createMessage", "roots/list"}, "put together in one answer"
    last = call(gateway, "sessions", tool, inputResponses=answers(first), requestState=first["requestState"])["result"]
    assert last["resultType"] == "complete"
    for part in ("Ada", "Paris", "file:///ada"):
        assert part in last["content"][0]["text"]


def test_a_request_state_is_good_for_its_request_and_once(gateway: GatewayProcess) -> None:
    def start() -> dict[str, Any]:
        return dict(call(gateway, "sessions", "test_elicitation", arguments={"message": "who?"})["result"])

    def resume(state: str, first: dict[str, Any], tool: str = "test_elicitation", message: str = "who?") -> Any:
        return call(
            gateway, "sessions", tool, arguments={"message": message}, inputResponses=answers(first), requestState=state
        )

    first = start()
    state = first["requestState"]
    for wrong in (state[:-8] + "AAAAAAA=", f"{state}-TAMPERED", "toolscore.", "toolscore.nonsense", "somebody else's"):
        assert resume(wrong, first)["error"]["code"] == -32602, wrong
    assert resume(state, first, message="another question")["error"]["code"] == -32602
    assert resume(state, first, tool="test_sampling")["error"]["code"] == -32602
    assert "ada" in json.dumps(resume(state, first)["result"]), "the wrong tries did it no harm"
    assert resume(state, first)["error"]["code"] == -32602, "used up"

    missing = start()
    again = call(
        gateway,
        "sessions",
        "test_elicitation",
        arguments={"message": "who?"},
        inputResponses={"something_else": ACCEPTED},
        requestState=missing["requestState"],
    )["result"]
    assert again["resultType"] == "input_required", "what was not answered is asked again"
    assert "ada" in json.dumps(resume(again["requestState"], again)["result"])


@pytest.mark.long
def test_a_client_that_stays_away_is_waited_for_no_longer_than_set(gateway: GatewayProcess) -> None:
    first = call(gateway, "sessions", "test_elicitation", arguments={"message": "who?"})["result"]
    wait_for(lambda: gateway.server("sessions")["calls_in_flight"] == 0, 60)
    late = call(
        gateway,
        "sessions",
        "test_elicitation",
        arguments={"message": "who?"},
        inputResponses=answers(first),
        requestState=first["requestState"],
    )
    assert late["error"]["code"] == -32602
    assert "expired" in late["error"]["message"] or "ended" in late["error"]["message"]


def test_a_server_that_needs_what_the_client_did_not_declare(gateway: GatewayProcess) -> None:
    for server_id in ("both", "sessions"):
        params = {"name": "test_sampling", "arguments": {"prompt": "x"}}
        response = post(gateway, server_id, "tools/call", params, capabilities={"roots": {}})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == -32021
        assert error["data"]["requiredCapabilities"] == {"sampling": {}}


def test_prompts_are_suspended_too(gateway: GatewayProcess) -> None:
    params: dict[str, Any] = {"name": "test_input_required_result_prompt"}
    first = post(gateway, "sessions", "prompts/get", params).json()["result"]
    assert first["resultType"] == "input_required"
    params |= {"inputResponses": answers(first), "requestState": first["requestState"]}
    assert "Ada" in json.dumps(post(gateway, "sessions", "prompts/get", params).json()["result"]["messages"])


@pytest.mark.long
def test_log_messages_come_when_they_are_asked_for(gateway: GatewayProcess) -> None:
    for server_id in ("both", "sessions"):
        params = {"name": "test_tool_with_logging", "arguments": {}}
        assert post(gateway, server_id, "tools/call", params).headers["content-type"] == "application/json"
        for level, heard in (("info", 3), ("error", 0)):
            told = post(gateway, server_id, "tools/call", params, **{f"{META}logLevel": level}).text
            assert told.count("notifications/message") == heard, (server_id, level)


# Clients of both eras, servers of both


class Heard:
    """What a client of the session era is told."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    async def __call__(self, message: Any) -> None:
        self.methods.append(getattr(message, "method", ""))


CHANGES = {
    "test_trigger_tool_change": "notifications/tools/list_changed",
    "test_trigger_prompt_change": "notifications/prompts/list_changed",
}


@pytest.mark.parametrize("server_id", ["both", "sessions"])
@pytest.mark.parametrize("address", ["/mcp", "/servers/{}/mcp"])
@pytest.mark.long
def test_changes_reach_a_client_of_the_session_era(gateway: GatewayProcess, server_id: str, address: str) -> None:
    prefix = f"{server_id}__" if address == "/mcp" else ""

    async def run() -> None:
        heard = Heard()
        url = gateway.url + address.format(server_id)
        async with Client(url, mode="legacy", message_handler=heard) as client:
            shared = address == "/mcp" and server_id == "sessions"  # whose URI the other server has too
            uri = f"{'toolscore+sessions+' if shared else ''}test://watched-resource"
            await client.session.subscribe_resource(uri)
            await asyncio.sleep(0.3)
            for tool, method in CHANGES.items():
                await client.call_tool(prefix + tool, {})
                await until(lambda method=method: method in heard.methods)
            await client.call_tool(f"{prefix}touch_resource", {"uri": "test://watched-resource"})
            await until(lambda: "notifications/resources/updated" in heard.methods)
            await client.session.unsubscribe_resource(uri)

    asyncio.run(run())


@pytest.mark.parametrize("server_id", ["both", "sessions"])
@pytest.mark.long
def test_changes_reach_a_client_of_the_stateless_era(gateway: GatewayProcess, server_id: str) -> None:
    async def run() -> None:
        async with Client(f"{gateway.url}/servers/{server_id}/mcp", mode=STATELESS) as client:
            async with client.listen(
                tools_list_changed=True, prompts_list_changed=True, resource_subscriptions=["test://watched-resource"]
            ) as changes:
                seen: list[str] = []

                async def read() -> None:
                    async for change in changes:
                        seen.append(type(change).__name__)

                reading = asyncio.create_task(read())
                await asyncio.sleep(0.5)
                for tool, kind in (("test_trigger_tool_change", "Tools"), ("test_trigger_prompt_change", "Prompts")):
                    await client.call_tool(tool, {})
                    await until(lambda kind=kind: any(name.startswith(kind) for name in seen))
                await client.call_tool("touch_resource", {"uri": "test://watched-resource"})
                await until(lambda: any(name.startswith("ResourceUpdated") for name in seen))
                reading.cancel()

    asyncio.run(run())


async def until(there: Any, seconds: float = 8) -> None:
    async with asyncio.timeout(seconds):
        while not there():
            await asyncio.sleep(0.02)


def test_resources_of_the_same_uri_are_told_apart(gateway: GatewayProcess) -> None:
    async def run() -> None:
        for mode in ("legacy", STATELESS):
            async with Client(f"{gateway.url}/mcp", mode=mode) as client:  # type: ignore[arg-type]
                shown = [str(resource.uri) for resource in (await client.list_resources()).resources]
                ours = [uri for uri in shown if uri.endswith("test://static-text")]
                assert sorted(ours) == ["test://static-text", "toolscore+sessions+test://static-text"]
                for uri in ours:
                    read = await client.read_resource(uri)
                    assert str(read.contents[0].uri) == uri
                    assert "static text resource" in read.contents[0].text
                    linked = await client.call_tool("sessions__test_embedded_resource", {})
                    assert str(linked.content[0].resource.uri) == "test://embedded-resource"

    asyncio.run(run())


def test_a_resource_that_nobody_has_is_said_so(gateway: GatewayProcess) -> None:
    error = post(gateway, "", "resources/read", {"uri": "nobody://has/this"}).json()["error"]
    assert (error["code"], error["data"]["uri"]) == (-32602, "nobody://has/this")


def test_a_session_hears_the_levels_that_it_asked_for(gateway: GatewayProcess) -> None:
    async def run() -> None:
        for server_id in ("both", "sessions"):
            heard = Heard()
            url = f"{gateway.url}/servers/{server_id}/mcp"
            async with Client(url, mode="legacy", message_handler=heard) as client:
                await client.session.set_logging_level("error")
                await client.call_tool("test_tool_with_logging", {})
                assert "notifications/message" not in heard.methods
                await client.session.set_logging_level("debug")
                await client.call_tool("test_tool_with_logging", {})
                await until(lambda heard=heard: heard.methods.count("notifications/message") == 3)

    asyncio.run(run())


@pytest.mark.long
def test_lists_are_whole_while_a_server_is_away() -> None:
    with running_gateway({"one": fixture("stdio"), "two": fixture("stdio")}) as process:
        for server_id in ("one", "two"):
            process.wait_for_state(server_id, "up")
        wait_for(lambda: len(listed(process, "prompts/list", "prompts")) == 10)
        process.stop()
        process.servers({"one": fixture("stdio"), "two": {"command": "no-such-program"}})
        process.start()
        process.wait_for_state("one", "up")
        process.wait_for_state("two", "failed")
        for method, member, count in (("prompts/list", "prompts", 10), ("resources/list", "resources", 8)):
            entries = listed(process, method, member)
            away = [entry for entry in entries if (entry.get("_meta") or {}).get("toolscore/available") is False]
            assert (len(entries), len(away)) == (count, count // 2)


def listed(gateway: GatewayProcess, method: str, member: str) -> list[Any]:
    return list(post(gateway, "", method, {}).json().get("result", {}).get(member, ()))


def test_a_server_that_hangs_does_not_hold_up_a_list(gateway: GatewayProcess) -> None:
    frozen = gateway.server("sessions")["pid"]
    family = [process for process in gateway.family() if process.pid == frozen] or gateway.family()
    child = next(process for process in family if process.pid == frozen)
    child.suspend()
    try:
        began = time.monotonic()
        assert len(listed(gateway, "resources/list", "resources")) == 8
        assert time.monotonic() - began < 5
    finally:
        child.resume()


# Streams that break off


def test_a_session_comes_back_for_an_answer(gateway: GatewayProcess) -> None:
    accept = {"accept": "application/json, text/event-stream"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    opened = gateway.http.post(
        "/servers/both/mcp", json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}, headers=accept
    )
    headers = {**accept, "mcp-session-id": opened.headers["mcp-session-id"]}
    request = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "test_reconnection"}}
    with gateway.http.stream("POST", "/servers/both/mcp", json=request, headers=headers) as broken:
        assert broken.headers["content-type"] == "text/event-stream"
        lines = broken.iter_lines()
        primed = next(line for line in lines if line.startswith("id: "))
    with gateway.http.stream("GET", "/servers/both/mcp", headers={**headers, "last-event-id": primed[4:]}) as resumed:
        data = [line[6:] for line in resumed.iter_lines() if line.startswith("data: {")]
    answer = json.loads(data[-1])
    assert answer["id"] == 5
    assert "successfully" in answer["result"]["content"][0]["text"]
    other = gateway.http.get("/servers/both/mcp", headers={**headers, "last-event-id": "999-1"})
    assert other.status_code == 404


# The router


@contextlib.asynccontextmanager
async def dialled(gateway: GatewayProcess, path: str = "/websocket") -> Any:
    url = f"ws://127.0.0.1:{gateway.router_port}{path}"
    async with connect(url, subprotocols=[Subprotocol("mcp")]) as socket:
        yield socket


async def ask(socket: Any, message: dict[str, Any]) -> dict[str, Any]:
    await socket.send(json.dumps({"jsonrpc": "2.0", **message}))
    async with asyncio.timeout(10):
        while True:
            received = json.loads(await socket.recv())
            if "id" in received:
                return dict(received)


@pytest.mark.parametrize("server_id", ["both", "sessions"])
def test_a_session_on_the_router_is_asked_live(gateway: GatewayProcess, server_id: str) -> None:
    async def run() -> None:
        async with dialled(gateway, f"/servers/{server_id}/mcp") as socket:
            hello = {"protocolVersion": "2025-11-25", "capabilities": EVERYTHING}
            opened = await ask(socket, {"id": 0, "method": "initialize", "params": hello})
            assert opened["result"]["serverInfo"]["name"] == "fixture"
            await socket.send(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            called = {"name": "test_elicitation", "arguments": {"message": "who?"}}
            question = await ask(socket, {"id": 1, "method": "tools/call", "params": called})
            assert question["method"] == "elicitation/create"
            assert question["params"]["message"] == "who?"
            answer = await ask(socket, {"id": question["id"], "result": ACCEPTED})
            assert answer["id"] == 1
            assert "ada" in answer["result"]["content"][0]["text"]

    asyncio.run(run())


@pytest.mark.parametrize("server_id", ["both", "sessions"])
def test_a_stateless_client_on_the_router(gateway: GatewayProcess, server_id: str) -> None:
    async def run() -> None:
        async with dialled(gateway) as socket:
            params = {"name": f"{server_id}__test_elicitation", "arguments": {"message": "who?"}}
            first = await ask(socket, {"id": 1, "method": "tools/call", "params": enveloped(params)})
            assert first["result"]["resultType"] == "input_required"
            params |= {"inputResponses": answers(first["result"])}
            if "requestState" in first["result"]:
                params["requestState"] = first["result"]["requestState"]
            last = await ask(socket, {"id": 2, "method": "tools/call", "params": enveloped(params)})
            assert "ada" in last["result"]["content"][0]["text"]
            wrong = await ask(socket, {"id": 3, "method": "tools/list", "params": {"_meta": {}}})
            assert wrong["error"]["code"] == -32602

    asyncio.run(run())


@pytest.mark.long
def test_a_question_that_is_taken_back_is_so_for_the_client(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with dialled(gateway, "/servers/sessions/mcp") as socket:
            hello = {"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}}}
            await ask(socket, {"id": 0, "method": "initialize", "params": hello})
            called = {"name": "ask_and_give_up", "arguments": {}}
            question = await ask(socket, {"id": 1, "method": "tools/call", "params": called})
            assert question["method"] == "elicitation/create"
            came = [json.loads(await asyncio.wait_for(socket.recv(), 60)) for _ in range(2)]
            told = next(message for message in came if message.get("method") == "notifications/cancelled")
            assert told["params"]["requestId"] == question["id"]
            answer = next(message for message in came if message.get("id") == 1)
            assert answer["result"]["content"][0]["text"] == "gave up"

    asyncio.run(run())


def test_an_unknown_server_on_the_router_is_named(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with dialled(gateway, "/servers/nobody/mcp") as socket:
            await socket.wait_closed()
            assert "nobody" in socket.close_reason

    asyncio.run(run())


@pytest.mark.long
def test_nothing_is_left_of_clients_that_went(gateway: GatewayProcess) -> None:
    async def run() -> None:
        for _ in range(3):
            async with Client(
                f"{gateway.url}/servers/sessions/mcp", mode="legacy", elicitation_callback=accept
            ) as client:
                await client.call_tool("test_elicitation", {"message": "who?"})

    async def accept(_context: Any, _params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content=ACCEPTED["content"])

    asyncio.run(run())
    before = len(gateway.family())
    asyncio.run(run())
    assert len(gateway.family()) <= before
