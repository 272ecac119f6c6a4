"""The WebSocket router: both dialects, over TCP and a Unix socket; servers that dial in."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import SERVERS, GatewayProcess, odd, running_gateway
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.asyncio.server import serve as serve_ws
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

MCP = [Subprotocol("mcp")]
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


@asynccontextmanager
async def dialled(
    gateway: GatewayProcess, way: str, dialect: str, path: str = "/websocket"
) -> AsyncIterator[ClientConnection]:
    protocols = MCP if dialect == "mcp" else None
    if way == "unix":
        async with unix_connect(str(gateway.unix_socket), f"ws://localhost{path}", subprotocols=protocols) as socket:
            yield socket
    else:
        async with connect(f"ws://127.0.0.1:{gateway.router_port}{path}", subprotocols=protocols) as socket:
            yield socket


async def ask(socket: ClientConnection, message: Any) -> Any:
    """Send a message, and wait for the next that is no notification: lists may change at any time."""
    await socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
    async with asyncio.timeout(10):
        while True:
            answer = json.loads(await socket.recv())
            if not (isinstance(answer, dict) and str(answer.get("method", "")).startswith("notifications/")):
                return answer


def call(request_id: int, name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments},
    }


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_a_session_client_lists_and_calls(gateway: GatewayProcess, way: str) -> None:
    async def run() -> None:
        async with dialled(gateway, way, "mcp") as socket:
            assert (await ask(socket, HELLO))["result"]["protocolVersion"] == "2025-06-18"
            await socket.send(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            listed = await ask(socket, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
            assert "alpha__echo" in {tool["name"] for tool in listed["result"]["tools"]}
            answer = await ask(socket, call(2, "alpha__echo", text="hi"))
            assert answer == {"jsonrpc": "2.0", "id": 2, "result": {"content": [{"type": "text", "text": "hi"}]}}

    asyncio.run(run())


def test_a_stateless_client_needs_no_session(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with dialled(gateway, "tcp", "mcp") as socket:
            request = call("a", "alpha__echo", text="hi")  # type: ignore[arg-type]
            request["params"]["_meta"] = META
            result = (await ask(socket, request))["result"]
            assert result["resultType"] == "complete"
            assert result["content"][0]["text"] == "hi"

    asyncio.run(run())


def test_bad_messages_are_refused_and_the_socket_stays_open(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with dialled(gateway, "tcp", "mcp") as socket:
            for message, code in (
                ("{", -32700),
                ("[]", -32600),
                ('[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
            ):
                answer = await ask(socket, message)
                assert (answer["error"]["code"], answer["id"]) == (code, None)
            assert (await ask(socket, {"jsonrpc": "2.0", "id": 1, "method": "no/such"}))["error"]["code"] == -32601
            assert (await ask(socket, HELLO))["id"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("dialect", ["mcp", "toolscore.v1"])
@pytest.mark.long
def test_answers_come_out_of_order_and_a_full_connection_says_so(dialect: str) -> None:
    async def run(process: GatewayProcess) -> None:
        async with dialled(process, "tcp", dialect) as socket:
            if dialect == "mcp":
                await ask(socket, HELLO)

            def request(number: int, text: str) -> str:
                if dialect == "mcp":
                    return json.dumps(call(number, "echo__echo", text=text))
                body = {
                    "type": "execute_tool",
                    "request_id": number,
                    "tool_id": "echo__echo",
                    "parameters": {"text": text},
                }
                return json.dumps(body)

            def number_of(answer: dict[str, Any]) -> int:
                return int(answer["id"] if dialect == "mcp" else answer["request_id"])

            await socket.send(request(1, "slow"))
            assert number_of(await ask(socket, request(2, "quick"))) == 2
            for number in (3, 4, 5):
                await socket.send(request(number, "slow"))
            full = await ask(socket, request(6, "quick"))
            assert number_of(full) == 6
            assert "in flight" in json.dumps(full)
            code = full["error"]["code"] if dialect == "mcp" else full["error_type"]
            assert code == (-32008 if dialect == "mcp" else "overloaded")

    with running_gateway({"echo": odd("echo")}, settings="limits: {calls_per_connection: 4}") as process:
        process.wait_for_state("echo", "up")
        asyncio.run(run(process))


@pytest.mark.long
def test_a_client_of_the_session_era_hears_of_changes() -> None:
    async def run(process: GatewayProcess) -> None:
        async with dialled(process, "tcp", "mcp") as socket:
            await ask(socket, HELLO)
            await socket.send(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            assert (await ask(socket, {"jsonrpc": "2.0", "id": 1, "method": "ping"}))["result"] == {}
            await socket.send(json.dumps(call(2, "changing__echo", text="fresh")))
            methods = set()
            async with asyncio.timeout(10):
                while "notifications/tools/list_changed" not in methods:
                    methods.add(json.loads(await socket.recv()).get("method"))

    with running_gateway({"changing": odd("changing")}) as process:
        process.wait_for_state("changing", "up")
        asyncio.run(run(process))


def test_unknown_paths_and_foreign_pages_are_refused(gateway: GatewayProcess) -> None:
    async def run() -> None:
        for path, headers in (("/elsewhere", {}), ("/websocket", {"Origin": "https://evil.example"})):
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{gateway.router_port}{path}", additional_headers=headers)
            assert refused.value.response.status_code in (403, 404)

    asyncio.run(run())


def test_a_frame_over_the_bound_is_refused_and_one_far_over_closes_the_connection(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with dialled(gateway, "tcp", "mcp") as socket:
            refused = await ask(socket, "x" * 5_000_000)
            assert (refused["id"], refused["error"]["data"]["code"]) == (None, "payload_too_large")
            assert (await ask(socket, HELLO))["id"] == 0
        # Not in `async with`: closing what the other side has closed fails inside asyncio now and then.
        far_over = await connect(gateway.router_url, subprotocols=MCP)
        with pytest.raises(ConnectionClosed) as closed:
            await ask(far_over, "x" * 17_000_000)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009

    asyncio.run(run())


@pytest.mark.long
def test_the_sdks_websocket_client_of_version_1_lists_and_calls(gateway: GatewayProcess) -> None:
    program = """
import asyncio, sys
from mcp import ClientSession
from mcp.client.websocket import websocket_client

async def main():
    async with websocket_client(sys.argv[1]) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        names = [tool.name for tool in (await session.list_tools()).tools]
        result = await session.call_tool("alpha__echo", {"text": "from version 1"})
        print("alpha__echo" in names, result.content[0].text)

asyncio.run(main())
"""
    python = SERVERS / "sdk1" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", program, gateway.router_url], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.stdout == "True from version 1\n", done.stderr


# The typed dialect

CALCULATOR = {
    "tool_id": "calc",
    "name": "Calculator",
    "description": "Adds",
    "tool_type": "mcp_server",
    "capabilities": [
        {
            "name": "add",
            "description": "Add two numbers",
            "parameters": {"a": {"type": "number", "description": "one", "required": True}, "b": {"type": "number"}},
        }
    ],
}


async def serve_calls(socket: Any, instance: str = "one") -> None:
    """Answer as a tool server of the typed dialect does."""
    async for message in socket:
        frame = json.loads(message)
        if frame["type"] == "execute_tool_action":
            parameters = frame["parameters"]
            if parameters.get("b") == 0:
                result: dict[str, Any] = {"success": False, "error": "b is zero", "error_type": "ValueError"}
            else:
                result = {"success": True, "data": {"sum": parameters["a"] + parameters.get("b", 1), "by": instance}}
            reply = {"type": "execute_tool_action_response", "request_id": frame["request_id"],
                     "tool_id": frame["tool_id"], "action": frame["action"], "result": result}  # fmt: skip
            await socket.send(json.dumps(reply))


@pytest.mark.long
def test_a_typed_server_registers_serves_and_leaves() -> None:
    async def run(process: GatewayProcess) -> None:
        async with dialled(process, "tcp", "v1") as client:
            async with dialled(process, "unix", "v1") as server:
                answer = await ask(server, {"type": "register_tool", "request_id": "r", "tool_spec": CALCULATOR})
                assert answer["type"] == "register_tool_response"
                assert (answer["success"], answer["request_id"]) == (True, "r")
                serving = asyncio.create_task(serve_calls(server))
                listed = await ask(client, {"type": "list_tools", "request_id": 1})
                calc = next(tool for tool in listed["tools"] if tool["tool_id"] == "calc")
                assert listed["total_count"] == len(listed["tools"])
                schema = calc["capabilities"][0]["parameters"]
                assert schema["required"] == ["a"]
                assert schema["properties"]["a"] == {"type": "number", "description": "one"}
                execute = {"type": "execute_tool", "request_id": 2, "tool_id": "calc", "action": "add"}
                done = await ask(client, {**execute, "parameters": {"a": 2, "b": 3}})
                assert done["success"] is True
                assert done["result"]["structured_content"] == {"sum": 5, "by": "one"}
                failed = await ask(client, {**execute, "parameters": {"a": 2, "b": 0}})
                assert (failed["success"], failed["error_type"]) == (False, "tool_error")
                assert failed["result"]["content"][0]["text"] == "ValueError: b is zero"
                wrong = await ask(client, {**execute, "parameters": {"b": 3}})
                assert wrong["error_type"] == "invalid_arguments"
                serving.cancel()
            await asyncio.to_thread(process.wait_for_state, "calc", "down")
            gone = await ask(client, {**execute, "parameters": {"a": 1}})
            assert gone["error_type"] == "upstream_unavailable"
            async with dialled(process, "tcp", "v1") as again:
                await ask(again, {"type": "register_tool", "request_id": "r", "tool_spec": CALCULATOR})
                serving = asyncio.create_task(serve_calls(again))
                assert (await ask(client, {**execute, "parameters": {"a": 1}}))["success"] is True
                serving.cancel()

    with running_gateway() as process:
        asyncio.run(run(process))
        kinds = [event["type"] for event in process.events() if event.get("server_id") == "calc"]
        assert kinds == ["tool_installed", "server_up", "server_down", "server_up", "server_down"]


@pytest.mark.long
def test_several_instances_share_the_calls_and_one_may_go() -> None:
    async def run(process: GatewayProcess) -> None:
        async with dialled(process, "tcp", "v1") as one, dialled(process, "tcp", "v1") as two:
            for socket in (one, two):
                await ask(socket, {"type": "register_tool", "request_id": "r", "tool_spec": CALCULATOR})
            serving = [asyncio.create_task(serve_calls(one, "one")), asyncio.create_task(serve_calls(two, "two"))]
            calls = [asyncio.to_thread(process.execute, "calc__add", {"a": number}) for number in range(30)]
            by = {answer["data"]["structured_content"]["by"] for answer in await asyncio.gather(*calls)}
            assert by == {"one", "two"}
            assert process.server("calc")["instances"] == 2
            await one.close()
            answer = await asyncio.to_thread(process.execute, "calc__add", {"a": 1})
            assert answer["data"]["structured_content"]["by"] == "two"
            for task in serving:
                task.cancel()

    with running_gateway() as process:
        asyncio.run(run(process))


@pytest.mark.long
def test_a_registered_endpoint_is_dialled_and_kept(tmp_path: Any) -> None:
    async def run(process: GatewayProcess) -> None:
        async with serve_ws(serve_calls, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with dialled(process, "tcp", "v1") as socket:
                spec = {**CALCULATOR, "endpoint": f"ws://127.0.0.1:{port}"}
                assert (await ask(socket, {"type": "register_tool", "request_id": 1, "tool_spec": spec}))["success"]
                await asyncio.to_thread(process.wait_for_state, "calc", "up")
            answer = await asyncio.to_thread(process.execute, "calc__add", {"a": 2, "b": 2})
            assert answer["data"]["structured_content"]["sum"] == 4
            async with dialled(process, "tcp", "v1") as socket:
                refused = await ask(socket, {"type": "unregister_tool", "request_id": 2, "tool_id": "calc"})
                assert refused["success"] is False

    with running_gateway() as process:
        asyncio.run(run(process))


@pytest.mark.long
def test_unregister_takes_the_tools_away() -> None:
    async def run(process: GatewayProcess) -> None:
        async with dialled(process, "tcp", "v1") as socket:
            await ask(socket, {"type": "register_tool", "request_id": 1, "tool_spec": CALCULATOR})
            again = await ask(socket, {"type": "register_tool", "request_id": 2, "tool_spec": CALCULATOR})
            assert again["success"] is False
            done = await ask(socket, {"type": "unregister_tool", "request_id": 3, "tool_id": "calc"})
            assert (done["type"], done["success"]) == ("unregister_tool_response", True)
        assert process.http.get("/api/v1/tools/calc__add").status_code == 404

    with running_gateway() as process:
        asyncio.run(run(process))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("{", "not a frame"),
        ("[]", "not a frame"),
        ('{"type": 7}', "not a frame"),
        ('{"request_id": 1}', "type"),
        ('{"type": "dance", "request_id": 1}', "unknown type 'dance'"),
    ],
)
def test_frames_that_are_none_get_an_error(gateway: GatewayProcess, frame: str, said: str) -> None:
    async def run() -> None:
        async with dialled(gateway, "tcp", "v1") as socket:
            answer = await ask(socket, frame)
            assert (answer["type"], answer["error_type"]) == ("error", "invalid_request")
            assert said in answer["message"]
            assert (await ask(socket, {"type": "ping", "request_id": 9}))["type"] == "pong"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "tool_id"),
        ({"tool_id": "x", "capabilities": []}, "empty"),
        ({"tool_id": "x", "capabilities": [{}]}, "name"),
        ({"tool_id": "x", "capabilities": [{"name": "a", "parameters": {"p": 1}}]}, "'p'"),
        ({"tool_id": "alpha", "capabilities": [{"name": "a"}]}, "taken"),
        ({"tool_id": "x", "capabilities": [{"name": "a"}], "endpoint": "http://no"}, "ws://"),
    ],
)
def test_a_registration_that_does_not_fit_is_refused(gateway: GatewayProcess, spec: dict[str, Any], said: str) -> None:
    async def run() -> None:
        async with dialled(gateway, "tcp", "v1") as socket:
            answer = await ask(socket, {"type": "register_tool", "request_id": 1, "tool_spec": spec})
            assert answer["success"] is False
            assert said in answer["message"]

    asyncio.run(run())


# Servers that dial in and speak MCP


async def register(socket: ClientConnection, server_id: str = "dialler", **more: Any) -> Any:
    request = {"jsonrpc": "2.0", "id": 0, "method": "toolscore/register", "params": {"server_id": server_id, **more}}
    return await ask(socket, request)


async def serve_mcp(socket: ClientConnection) -> None:
    """Be an MCP server of the session era."""
    async for message in socket:
        request = json.loads(message)
        result: dict[str, Any] = {}
        if request["method"] == "initialize":
            result = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "d", "version": "1"},
            }
        elif request["method"] == "tools/list":
            result = {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]}
        elif request["method"] == "tools/call":
            result = {"content": [{"type": "text", "text": "hello back"}]}
        if "id" in request:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))


@pytest.mark.parametrize("way", ["tcp", "unix"])
@pytest.mark.long
def test_an_mcp_server_dials_in(way: str) -> None:
    async def run(process: GatewayProcess) -> None:
        async with dialled(process, way, "mcp", "/register") as socket:
            answer = await register(socket, tags=["greetings"])
            assert answer["result"] == {"server_id": "dialler", "heartbeat_seconds": 20.0}
            serving = asyncio.create_task(serve_mcp(socket))
            await asyncio.to_thread(process.wait_for_state, "dialler", "up")
            assert await asyncio.to_thread(process.text, "dialler__hello") == "hello back"
            assert [tool["tags"] for tool in process.get("/api/v1/tools", tag="greetings")["tools"]] == [["greetings"]]
            serving.cancel()

    with running_gateway() as process:
        asyncio.run(run(process))


def test_a_registration_over_mcp_that_does_not_fit_is_refused(gateway: GatewayProcess) -> None:
    async def run() -> None:
        request = {"jsonrpc": "2.0", "id": 0, "method": "toolscore/register"}
        for message, code in (
            ("{", -32700),
            (json.dumps({**request, "method": "tools/list"}), -32600),
            (json.dumps({**request, "params": {}}), -32602),
            (json.dumps({**request, "params": {"server_id": "alpha"}}), -32602),
        ):
            async with dialled(gateway, "tcp", "mcp", "/register") as socket:
                assert (await ask(socket, message))["error"]["code"] == code
                with pytest.raises(ConnectionClosed):
                    await socket.recv()

    asyncio.run(run())
