"""MCP over streamable HTTP in both eras: with the official SDK's client, and byte by byte where it would not tell."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from mcp import Client
from support import (
    EXECUTOR,
    Double,
    GatewayProcess,
    bearer,
    in_memory_gateway,
    odd,
    running_gateway,
    wait_for,
    with_config,
)

META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
ERAS = ["legacy", "auto"]


def stateless(method: str, params: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
    params = {**(params or {}), "_meta": META}
    named = {"mcp-name": params["name"]} if method == "tools/call" else {}
    return {
        "json": {"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
        "headers": {"mcp-protocol-version": "2026-07-28", "mcp-method": method, **named, **headers},
    }


@pytest.mark.parametrize("mode", ERAS)
def test_the_sdks_client_lists_and_calls(gateway: GatewayProcess, mode: str) -> None:
    async def run() -> None:
        async with Client(f"{gateway.url}/mcp", mode=mode) as client:
            listed = {tool.name for tool in (await client.list_tools()).tools}
            assert {"alpha__echo", "beta__echo", "many__tool_499"} <= listed
            result = await client.call_tool("alpha__echo", {"text": "hi"})
            assert result.content[0].text == "hi"
            assert not result.is_error
            assert client.server_info.name == "toolscore"

    asyncio.run(run())


@pytest.mark.parametrize("mode", ERAS)
def test_one_server_passes_through_unprefixed(gateway: GatewayProcess, mode: str) -> None:
    async def run() -> None:
        async with Client(f"{gateway.url}/servers/alpha/mcp", mode=mode) as client:
            listed = [tool.name for tool in (await client.list_tools()).tools]
            assert sorted(listed) == ["echo", "env", "log", "safe"]
            assert (await client.call_tool("echo", {"text": "hi"})).content[0].text == "hi"

    asyncio.run(run())


@pytest.mark.parametrize("mode", ERAS)
def test_wrong_arguments_are_a_result_that_a_model_can_read(gateway: GatewayProcess, mode: str) -> None:
    async def run() -> None:
        async with Client(f"{gateway.url}/mcp", mode=mode) as client:
            result = await client.call_tool("alpha__echo", {"text": 5})
            assert result.is_error
            assert "text: 5 is not of type" in result.content[0].text
            assert "Expected {text: string" in result.content[0].text

    asyncio.run(run())


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.long
def test_progress_reaches_the_client_that_asked(mode: str) -> None:
    async def run(url: str) -> list[tuple[float, float | None, str | None]]:
        seen = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append((done, total, message))

        async with Client(f"{url}/mcp", mode=mode) as client:
            result = await client.call_tool("slow__echo", {"text": "progress"}, progress_callback=progress)
            assert result.content[0].text == "done"
        return seen

    with running_gateway({"slow": odd("slow")}, python=True) as process:
        process.wait_for_state("slow", "up")
        seen = asyncio.run(run(process.url))
    assert seen == [(0, 200, "step 0"), (1, 200, "step 1"), (2, 200, "step 2")]


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.long
def test_a_changed_list_is_told(mode: str) -> None:
    async def run(process: GatewayProcess) -> None:
        told = asyncio.Event()

        async def handler(message: Any) -> None:
            if getattr(message, "method", "") == "notifications/tools/list_changed":
                told.set()

        async with Client(f"{process.url}/mcp", mode=mode, message_handler=handler) as client:
            if mode == "legacy":
                await asyncio.sleep(0)
                await client.call_tool("changing__echo", {"text": "fresh"})
                async with asyncio.timeout(10):
                    await told.wait()
            else:
                async with client.listen(tools_list_changed=True) as changes:
                    await client.call_tool("changing__echo", {"text": "fresh"})
                    async with asyncio.timeout(10):
                        await anext(aiter(changes))
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert "changing__fresh" in names

    with running_gateway({"changing": odd("changing")}, python=True) as process:
        for server_id in ("changing", EXECUTOR):  # one that comes up late changes the list, too
            process.wait_for_state(server_id, "up")
        asyncio.run(run(process))


def test_initialize_settles_the_clients_revision_or_offers_ours(gateway: GatewayProcess) -> None:
    for asked, settled in (("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("1999-01-01", "2025-11-25")):
        request = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": asked}}
        response = gateway.http.post("/mcp", json=request)
        assert response.json()["result"]["protocolVersion"] == settled
        assert response.headers["mcp-session-id"]


def test_a_session_ends_and_is_unknown_afterwards(gateway: GatewayProcess) -> None:
    request = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
    headers = {"mcp-session-id": gateway.http.post("/mcp", json=request).headers["mcp-session-id"]}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert gateway.http.post("/mcp", json=ping, headers=headers).json()["result"] == {}
    assert gateway.http.post("/servers/alpha/mcp", json=ping, headers=headers).status_code == 404
    assert gateway.http.delete("/mcp", headers=headers).status_code == 200
    assert gateway.http.post("/mcp", json=ping, headers=headers).status_code == 404
    assert gateway.http.get("/mcp", headers=headers).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, -32700),
        (b"[]", 400, -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', 400, -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"no/such"}', 200, -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"no__such"}}', 200, -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}', 200, -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}', 200, -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}', 400, -32602),
    ],
)
def test_wrong_messages_get_json_rpc_errors(gateway: GatewayProcess, body: bytes, status: int, code: int) -> None:
    response = gateway.http.post("/mcp", content=body)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


def test_the_stateless_era_checks_its_envelope(gateway: GatewayProcess) -> None:
    def code(**request: Any) -> tuple[int, int]:
        response = gateway.http.post("/mcp", **request)
        return response.status_code, response.json()["error"]["code"]

    call = {"name": "alpha__echo", "arguments": {"text": "hi"}}
    assert gateway.http.post("/mcp", **stateless("tools/call", call)).json()["result"]["resultType"] == "complete"
    assert code(**stateless("tools/list", **{"mcp-method": "ping"})) == (400, -32020)
    assert code(**stateless("tools/call", call, **{"mcp-name": "beta__echo"})) == (400, -32020)
    assert code(**stateless("no/such")) == (404, -32601)
    bare = stateless("tools/list")
    bare["json"]["params"] = {}
    assert code(**bare) == (400, -32602)
    newer = stateless("tools/list", **{"mcp-protocol-version": "2031-01-01"})
    newer["json"]["params"]["_meta"] = {**META, "io.modelcontextprotocol/protocolVersion": "2031-01-01"}
    response = gateway.http.post("/mcp", **newer)
    assert response.json()["error"]["code"] == -32022
    assert "2026-07-28" in response.json()["error"]["data"]["supported"]


@pytest.mark.long
def test_a_refusal_of_the_server_passes_unchanged() -> None:
    with running_gateway({"refuses": odd("refuses")}, python=True) as process:
        process.wait_for_state("refuses", "up")
        request = stateless("tools/call", {"name": "refuses__echo", "arguments": {"text": "x"}})
        error = process.http.post("/mcp", **request).json()["error"]
        assert error == {"code": -32099, "message": "not today", "data": {"why": "tired"}}


@pytest.mark.long
def test_a_cancelled_request_of_a_session_cancels_the_work(tmp_path: Any) -> None:
    with running_gateway({"slow": odd("slow", tmp_path / "notes")}, python=True) as process:
        process.wait_for_state("slow", "up")

        async def run() -> None:
            async with httpx.AsyncClient(base_url=process.url, timeout=120) as http:
                hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
                headers = {"mcp-session-id": (await http.post("/mcp", json=hello)).headers["mcp-session-id"]}
                call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call",
                        "params": {"name": "slow__echo", "arguments": {"text": "x"}}}  # fmt: skip
                calling = asyncio.create_task(http.post("/mcp", json=call, headers=headers))
                while not (await http.get("/api/v1/stats")).json()["data"]["calls_in_flight"]:
                    await asyncio.sleep(0.02)
                cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
                assert (await http.post("/mcp", json=cancel)).status_code == 202, "without a session it is not heard"
                assert not calling.done()
                assert (await http.post("/mcp", json=cancel, headers=headers)).status_code == 202
                response = await calling
                assert response.status_code == 200
                assert b"result" not in response.content

        asyncio.run(run())
        wait_for(lambda: (tmp_path / "notes").exists(), message="for the cancellation at the server")


@pytest.mark.long
def test_a_tool_whose_server_is_away_stays_listed_and_marked() -> None:
    with running_gateway({"alpha": odd("echo")}, python=True) as process:
        process.wait_for_state("alpha", "up")
        process.stop()
        process.servers({"alpha": odd("silent")})
        process.start()
        listed = process.http.post("/mcp", **stateless("tools/list")).json()["result"]["tools"]
        away = next(tool for tool in listed if tool["name"] == "alpha__echo")
        assert away["_meta"]["toolscore/available"] is False
        assert process.get("/api/v1/tools/alpha__echo")["available"] is False


@pytest.mark.long
def test_an_http_server_of_each_era_serves_a_client_of_each(tmp_path: Any) -> None:
    import subprocess
    import sys

    from support import free_port

    ports = {"session": free_port(), "both": free_port()}
    script = __file__.replace("endpoints/test_mcp_http.py", "servers/sdk_http.py")
    running = [subprocess.Popen([sys.executable, script, era, str(port)]) for era, port in ports.items()]
    try:
        servers = {era: {"url": f"http://127.0.0.1:{port}/mcp"} for era, port in ports.items()}
        with running_gateway(servers, python=True) as process:
            for era in servers:
                process.wait_for_state(era, "up")
            assert process.server("session")["protocol_version"] == "2025-11-25"
            assert process.server("both")["protocol_version"] == "2026-07-28"

            async def run(mode: str) -> None:
                async with Client(f"{process.url}/mcp", mode=mode) as client:
                    for era in servers:
                        result = await client.call_tool(f"{era}__add", {"a": 2, "b": 3})
                        assert result.content[0].text == "5"

            for mode in ERAS:
                asyncio.run(run(mode))
            # the session is lost when the server is restarted: the gateway opens another, and the caller sees nothing
            running[0].kill()
            running[0].wait()
            answer = process.execute("session__add", {"a": 1, "b": 1}, timeout_seconds=5)
            assert answer["error"]["code"] in ("upstream_unavailable", "outcome_unknown")
            running[0] = subprocess.Popen([sys.executable, script, "session", str(ports["session"])])
            wait_for(lambda: process.execute("session__add", {"a": 1, "b": 1})["success"], 60)
    finally:
        for child in running:
            child.kill()
            child.wait()


def test_any_bytes_are_answered(gateway: GatewayProcess) -> None:
    for body in (b"\x00", b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":7}}', b'"x"', b"null"):
        response = gateway.http.post("/mcp", content=body)
        assert "error" in json.loads(response.content)


@pytest.mark.long
def test_one_caller_cannot_take_the_sessions_of_others() -> None:
    settings = "access: {local_without_key: false}\nlimits: {max_sessions_per_principal: 5}\n"
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize",
             "params": {"protocolVersion": "2025-06-18", "capabilities": {},
                        "clientInfo": {"name": "test", "version": "1"}}}  # fmt: skip
    with running_gateway(settings=settings) as process:
        keys = {name: with_config(process, "keys", "create", name) for name in ("ada", "bob")}

        def opened(who: str) -> str:
            headers = {**bearer(keys[who]), "accept": "application/json, text/event-stream"}
            return str(httpx.post(f"{process.url}/mcp", json=hello, headers=headers).headers["mcp-session-id"])

        def alive(who: str, session: str) -> bool:
            ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
            headers = {**bearer(keys[who]), "accept": "application/json, text/event-stream", "mcp-session-id": session}
            return httpx.post(f"{process.url}/mcp", json=ping, headers=headers).status_code == 200

        mine = opened("ada")
        theirs = [opened("bob") for _ in range(12)]
        assert alive("ada", mine)
        assert all(alive("bob", session) for session in theirs), "one that made room is made of its id again"
        assert alive("ada", mine)


def test_a_call_that_is_cancelled_in_a_batch_leaves_the_other_answers() -> None:
    began = asyncio.Event()

    async def slow(_: dict[str, Any]) -> str:
        began.set()
        await asyncio.sleep(60)
        return "late"

    async def main() -> None:
        async with in_memory_gateway({"town": Double().tool("slow", slow)}) as gateway:
            headers = {"accept": "application/json, text/event-stream"}
            hello = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
            opening = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            opened = await gateway.http.post("/mcp", headers=headers, json=opening)
            headers["mcp-session-id"] = opened.headers["mcp-session-id"]
            call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "town__slow"}}
            batch = [{"jsonrpc": "2.0", "id": 5, "method": "ping"}, call]
            answering = asyncio.create_task(gateway.http.post("/mcp", headers=headers, json=batch))
            await began.wait()
            stop = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
            await gateway.http.post("/mcp", headers=headers, json=stop)
            assert (await answering).json() == [{"jsonrpc": "2.0", "id": 5, "result": {}}]

    asyncio.run(main())
