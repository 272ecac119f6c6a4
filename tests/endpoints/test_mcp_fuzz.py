"""Any bytes into the JSON-RPC doors: always a well-formed answer or a clean close, never a stuck request, never another
caller's data."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import GatewayProcess, odd, running_gateway
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

pytestmark = pytest.mark.long

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES == 150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SECONDS = 60
META = "io.modelcontextprotocol/"
CLEAN_CLOSES = {1000, 1002, 1003, 1007, 1008, 1009}

METHODS = [
    "initialize", "ping", "tools/list", "tools/call", "resources/list", "resources/templates/list", "resources/read",
    "resources/subscribe", "resources/unsubscribe", "prompts/list", "prompts/get", "completion/complete",
    "logging/setLevel", "server/discover", "notifications/initialized", "notifications/cancelled",
    "notifications/progress", "notifications/roots/list_changed", "tasks/get", "rpc.discover", "", "\u0000", "🦀",
]  # fmt: skip

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        f"{META}protocolVersion": st.sampled_from(["2026-07-28", "2025-11-25", "1999-01-01", 5, None]),
        f"{META}clientCapabilities": st.sampled_from([{}, {"elicitation": {}}, [], None]) | anything,
        f"{META}logLevel": anything,
        "progressToken": anything,
    },
)
params = st.fixed_dictionaries(
    {},
    optional={
        "_meta": envelopes | anything,
        "name": st.sampled_from(["echo__echo", "echo__nothing", "", 5]) | anything,
        "arguments": st.sampled_from([{"text": "x"}, {}, []]) | anything,
        "uri": anything,
        "ref": anything,
        "argument": anything,
        "level": anything,
        "cursor": anything,
        "protocolVersion": anything,
        "capabilities": anything,
        "requestId": anything,
        "requestState": st.sampled_from(["toolscore.x", "", "toolscore."]) | anything,
        "inputResponses": anything,
        "notifications": anything,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | anything,
        "id": st.integers() | st.text(max_size=8) | anything,
        "method": st.sampled_from(METHODS) | anything,
        "params": params | anything,
        "result": anything,
        "error": anything,
    },
)
bodies = (
    st.binary(max_size=200)
    | messages.map(lambda message: json.dumps(message).encode())
    | st.lists(messages, max_size=3).map(lambda batch: json.dumps(batch).encode())
    | anything.map(lambda value: json.dumps(value).encode())
    | messages.map(lambda message: json.dumps(message).encode()[:-1])
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with running_gateway({"echo": odd("good")}) as process:
        process.wait_for_state("echo", "up")
        yield process
        process.get("/health")  # it is still there
        assert "failed inside the gateway" not in process.output()
        assert "Traceback" not in process.output()


def well_formed(message: Any) -> None:
    """Assert that it is one JSON-RPC message, and if it is an answer, a result or an error."""
    assert isinstance(message, dict), message
    assert message["jsonrpc"] == "2.0"
    if "method" in message:
        assert isinstance(message["method"], str)
        return
    assert ("result" in message) != ("error" in message), message
    if "error" in message:
        assert isinstance(message["error"]["code"], int)
        assert isinstance(message["error"]["message"], str)


def check_answer(response: httpx.Response) -> None:
    assert response.status_code in (200, 202, 400, 404, 405, 413, 422), response.text
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        for line in response.text.splitlines():
            if line.startswith("data: ") and line != "data: ":
                well_formed(json.loads(line[6:]))
    elif response.content and response.content != b"{}":
        well_formed(response.json())


@FUZZ
@given(body=bodies, version=st.sampled_from([None, "2025-11-25", "2026-07-28", "1999-01-01", "x"]), data=st.data())
def test_any_bytes_over_http(gateway: GatewayProcess, body: bytes, version: str | None, data: st.DataObject) -> None:
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if version is not None:
        headers["mcp-protocol-version"] = version
        headers["mcp-method"] = data.draw(st.sampled_from(METHODS[:13]))
    response = gateway.http.post("/mcp", content=body, headers=headers, timeout=SECONDS)
    check_answer(response)


@FUZZ
@given(message=messages, name=st.sampled_from(["echo__echo", "nobody", "=?base64?ZWNobw==?=", "=?base64?*?="]))
def test_any_request_of_the_stateless_era(gateway: GatewayProcess, message: dict[str, Any], name: str) -> None:
    method = message.get("method")
    if not isinstance(method, str) or not method.isascii() or not method.isprintable() or method != method.strip():
        return  # no header can say it
    given_params = message.get("params")
    members = dict(given_params) if isinstance(given_params, dict) else {}
    members["_meta"] = {f"{META}protocolVersion": "2026-07-28", f"{META}clientCapabilities": {"elicitation": {}}}
    message = {**message, "jsonrpc": "2.0", "id": 1, "params": members}
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": method,
        "mcp-name": name,
    }
    response = gateway.http.post("/mcp", content=json.dumps(message), headers=headers, timeout=SECONDS)
    check_answer(response)
    if response.status_code == 200 and "application/json" in response.headers["content-type"]:
        assert response.json()["id"] == 1


def router(gateway: GatewayProcess) -> ClientConnection:
    return connect(gateway.router_url, subprotocols=[Subprotocol("mcp")], open_timeout=SECONDS)


@FUZZ
@given(frames=st.lists(bodies, min_size=1, max_size=4), as_text=st.booleans())
def test_any_frames_on_the_router(gateway: GatewayProcess, frames: list[bytes], as_text: bool) -> None:
    with router(gateway) as socket:
        try:
            for frame in frames:
                socket.send(frame.decode("utf-8", "replace") if as_text else frame)
            probe = {"jsonrpc": "2.0", "id": "the probe", "method": "no/such/method", "params": {}}
            socket.send(json.dumps(probe))
            while True:  # whatever came before, this one is answered
                answer = json.loads(socket.recv(timeout=SECONDS))
                well_formed(answer)
                if answer.get("id") == "the probe":
                    break
        except ConnectionClosed:
            assert socket.close_code in CLEAN_CLOSES


def test_callers_get_their_own_answers_while_rubbish_comes_in(gateway: GatewayProcess) -> None:
    async def caller(http: httpx.AsyncClient, name: str) -> None:
        for number in range(60):
            token = f"{name}-{number}"
            call = {"name": "echo__echo", "arguments": {"text": token}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}  # everybody's id is the same
            answer = (await http.post("/mcp", json=body)).json()
            assert answer["result"]["content"][0]["text"] == token

    async def rubbish(http: httpx.AsyncClient) -> None:
        for number in range(120):
            junk = [b"{", b"[]", b'{"jsonrpc":"2.0","id":1}', b'{"jsonrpc":"2.0","id":1,"result":{}}', b"\xff" * 99]
            await http.post("/mcp", content=junk[number % len(junk)])

    async def run() -> None:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=SECONDS) as http:
            await asyncio.gather(*(caller(http, f"caller {n}") for n in range(8)), rubbish(http), rubbish(http))

    asyncio.run(run())
