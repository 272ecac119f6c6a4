"""The HTTP door for browsers, behind proxies and for old clients."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support import GatewayProcess, odd, running_gateway

PAGE = "http://localhost:6274"
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
ASKING = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,mcp-session-id",
}
SETTINGS = """
access:
  local_without_key: false
  allowed_hosts: [tools.example.com]
  trusted_proxies: [127.0.0.1]
  tokens: {issuer: "https://login.example.com", audience: tools, jwks_url: "http://127.0.0.1:9/jwks"}
"""
WELL_KNOWN = "/.well-known/oauth-protected-resource/mcp"


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with running_gateway({"echo": odd("echo")}) as process:
        process.wait_for_state("echo", "up")
        yield process


@pytest.fixture(scope="module")
def guarded() -> Iterator[GatewayProcess]:
    with running_gateway(settings=SETTINGS) as process:
        yield process


@pytest.mark.parametrize("path", ["/mcp", "/execute_tool", "/api/v1/tools", "/servers/echo/mcp"])
@pytest.mark.parametrize("door", ["gateway", "guarded"])
def test_a_page_that_is_let_in_may_ask_and_read(request: pytest.FixtureRequest, door: str, path: str) -> None:
    http: httpx.Client = request.getfixturevalue(door).http
    may = http.options(path, headers=ASKING)
    assert may.status_code == 204
    assert may.headers["access-control-allow-origin"] == PAGE
    assert "mcp-session-id" in may.headers["access-control-allow-headers"]
    assert "DELETE" in may.headers["access-control-allow-methods"]
    answer = http.post(path, json=PING, headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE, "refusals may be read, too"
    assert "mcp-session-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
def test_a_foreign_page_is_told_nothing(gateway: GatewayProcess, origin: str) -> None:
    for answer in (
        gateway.http.options("/mcp", headers={**ASKING, "Origin": origin}),
        gateway.http.post("/mcp", json=PING, headers={"Origin": origin}),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_slash_at_the_end_changes_nothing(gateway: GatewayProcess) -> None:
    for path in ("/mcp/", "/servers/echo/mcp/"):
        assert gateway.http.post(path, json=PING).json()["result"] == {}


def test_signs_of_life_under_any_name(gateway: GatewayProcess) -> None:
    for path, status in (("/livez", 200), ("/readyz", 200), ("/health", 403), ("/mcp", 403)):
        assert gateway.http.get(path, headers={"Host": "10.0.0.5:8082"}).status_code == status


@pytest.mark.parametrize(
    "doubled", ["Host: evil.com\r\n", "Origin: http://evil.com\r\nOrigin: http://localhost\r\n", None]
)
def test_two_of_a_header_that_decides_are_refused_and_none_is(gateway: GatewayProcess, doubled: str | None) -> None:
    host = "" if doubled is None else f"Host: localhost:{gateway.http_port}\r\n{doubled}"
    with socket.create_connection(("127.0.0.1", gateway.http_port), 5) as connection:
        connection.sendall(f"GET /api/v1/tools HTTP/1.1\r\n{host}\r\n".encode())
        assert connection.recv(20).startswith(b"HTTP/1.1 400 ")


@pytest.mark.long
def test_no_login_is_named_that_there_is_not() -> None:
    with running_gateway(settings="access: {local_without_key: false}") as process:
        refused = process.http.post("/mcp", json=PING)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == 'Bearer realm="toolscore"'


def test_a_trusted_proxy_says_where_we_are(guarded: GatewayProcess) -> None:
    proxied = {"Host": "tools.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/tools"}
    said = guarded.http.get(WELL_KNOWN, headers=proxied).json()
    assert said["resource"] == "https://tools.example.com/tools/mcp"
    challenge = guarded.http.post("/mcp", json=PING, headers=proxied).headers["www-authenticate"]
    assert f'"https://tools.example.com/tools{WELL_KNOWN}"' in challenge


@pytest.mark.long
def test_a_stranger_says_nothing_of_where_we_are() -> None:
    settings = SETTINGS.replace("trusted_proxies: [127.0.0.1]", "public_url: https://tools.example.com/a")
    forged = {"Host": "tools.example.com", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    with running_gateway(settings=settings) as process:
        assert process.http.get(WELL_KNOWN, headers=forged).json()["resource"] == "https://tools.example.com/a/mcp"
    with running_gateway(settings=SETTINGS.replace("  trusted_proxies: [127.0.0.1]\n", "")) as process:
        assert process.http.get(WELL_KNOWN, headers=forged).json()["resource"] == "http://tools.example.com/mcp"


def session(gateway: GatewayProcess, version: str) -> dict[str, str]:
    hello = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    opened = gateway.http.post("/mcp", json={**PING, "method": "initialize", "params": hello})
    return {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Accept": "application/json, text/event-stream"}


def test_a_batch_where_the_revision_has_them(gateway: GatewayProcess) -> None:
    note = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
    call = {"name": "echo__echo", "arguments": {"text": "hi"}}
    batch = [
        PING,
        note,
        {**PING, "id": "two", "method": "tools/call", "params": call},
        {**PING, "id": 3, "method": "x"},
    ]
    old = session(gateway, "2025-03-26")
    answers = {one["id"]: one for one in gateway.http.post("/mcp", json=batch, headers=old).json()}
    assert set(answers) == {1, "two", 3}
    assert "error" in answers[3]
    assert answers["two"]["result"]["content"][0]["text"] == "hi"
    assert gateway.http.post("/mcp", json=[note, note], headers=old).status_code == 202
    assert gateway.http.post("/mcp", json=[], headers=old).status_code == 400
    refused = gateway.http.post("/mcp", json=batch, headers=session(gateway, "2025-06-18"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32600)


def test_a_client_of_2024_finds_its_door(gateway: GatewayProcess) -> None:
    hello = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    call = {"name": "echo__echo", "arguments": {"text": "hi"}}
    with gateway.http.stream("GET", "/sse") as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        place = next(lines)[6:]

        def ask(message: dict[str, object]) -> dict[str, Any]:
            assert gateway.http.post(place, json=message).status_code == 202
            found: dict[str, Any] = json.loads(next(lines)[6:])
            return found

        assert ask({**PING, "method": "initialize", "params": hello})["result"]["protocolVersion"] == "2024-11-05"
        gateway.http.post(place, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert ask({**PING, "id": "x", "method": "tools/call", "params": call})["result"]["content"][0]["text"] == "hi"
        assert ask({**PING, "id": 3, "method": "nothing"})["error"]["code"] == -32601
    assert gateway.http.post("/messages?session_id=none", json=PING).status_code == 404
    assert gateway.http.post("/messages", json=PING).status_code == 400
    assert gateway.http.get("/servers/none/sse").status_code == 404


def test_null_arguments_are_none(gateway: GatewayProcess) -> None:
    call = {**PING, "method": "tools/call", "params": {"name": "toolscore__search_tools", "arguments": None}}
    assert "is a required property" in json.dumps(gateway.http.post("/mcp", json=call).json())
    assert gateway.http.post("/mcp", json={**PING, "params": None}).json()["result"] == {}
