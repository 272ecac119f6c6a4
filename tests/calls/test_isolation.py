"""What is one caller's is no other's: results, past calls and what was learned, tried at every door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support import Fickle, GatewayProcess, answer_of, bearer, running_gateway, wait_for, with_config
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def fickle(tmp_path_factory: pytest.TempPathFactory) -> Fickle:
    return Fickle(tmp_path_factory.mktemp("fickle"))


@pytest.fixture(scope="module")
def gateway(fickle: Fickle) -> Iterator[GatewayProcess]:
    settings = (
        "access: {local_without_key: false}\nrates: {per_minute: 0}\n"
        "cache: {tools: {'city__look': 60, 'city__write': 60}}\n"
    )
    with running_gateway({"city": fickle.entry}, settings=settings, journal=True) as process:
        names = {"root": ["--scope", "admin"], "ada": [], "bob": []}
        process.keys = {name: with_config(process, "keys", "create", name, *scopes)  # type: ignore[attr-defined]
                        for name, scopes in names.items()}  # fmt: skip
        process.http.headers["authorization"] = f"Bearer {process.keys['root']}"  # type: ignore[attr-defined]
        process.wait_for_state("city", "up")
        yield process


def rpc(method: str, params: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def over_rest(gateway: GatewayProcess, key: str, city: str) -> str:
    body = {"tool_id": "city__look", "parameters": {"city": city}}
    answer = httpx.post(f"{gateway.url}/execute_tool", json=body, headers=bearer(key)).json()
    return str(answer["data"]["content"][0]["text"])


def over_mcp(path: str, tool: str) -> Callable[[GatewayProcess, str, str], str]:
    def call(gateway: GatewayProcess, key: str, city: str) -> str:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        headers = {**bearer(key), **ACCEPT, "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call",
                   "mcp-name": tool}  # fmt: skip
        body = rpc("tools/call", {"name": tool, "arguments": {"city": city}, "_meta": meta})
        answer = httpx.post(f"{gateway.url}{path}", json=body, headers=headers).json()
        return str(answer["result"]["content"][0]["text"])

    return call


def over_a_session(gateway: GatewayProcess, key: str, city: str) -> str:
    with httpx.Client(base_url=gateway.url, headers={**bearer(key), **ACCEPT}) as client:
        opened = client.post("/mcp", json=rpc("initialize", HELLO))
        headers = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        body = rpc("tools/call", {"name": "city__look", "arguments": {"city": city}})
        return str(answer_of(client.post("/mcp", json=body, headers=headers))["result"]["content"][0]["text"])


def over_a_socket(
    url: Callable[[GatewayProcess], str], protocol: str | None, *frames: dict[str, Any]
) -> Callable[[GatewayProcess, str, str], str]:
    def call(gateway: GatewayProcess, key: str, city: str) -> str:
        async def run() -> str:
            protocols = [Subprotocol(protocol)] if protocol else None
            async with connect(url(gateway), subprotocols=protocols, additional_headers=bearer(key)) as socket:
                for frame in frames:
                    await socket.send(json.dumps(frame).replace("CITY", city))
                while True:
                    said = await asyncio.wait_for(socket.recv(), 60)
                    if f"{city} #" in str(said):
                        return f"{city} #" + str(said).partition(f"{city} #")[2].partition('"')[0]

        return asyncio.run(run())

    return call


CALL = {"name": "city__look", "arguments": {"city": "CITY"}}
COMMAND = {"tool_id": "city__look", "parameters": {"city": "CITY"}}
DOORS: dict[str, Callable[[GatewayProcess, str, str], str]] = {
    "REST": over_rest,
    "MCP, stateless": over_mcp("/mcp", "city__look"),
    "MCP, one server": over_mcp("/servers/city/mcp", "look"),
    "MCP, session": over_a_session,
    "router, MCP": over_a_socket(
        lambda gateway: gateway.router_url, "mcp", rpc("initialize", HELLO), rpc("tools/call", CALL, 2)
    ),
    "router, typed": over_a_socket(
        lambda gateway: gateway.router_url, None, {"type": "execute_tool", "request_id": "1", **COMMAND}
    ),
    "events": over_a_socket(
        lambda gateway: gateway.events_url, None,
        {"type": "call", "id": 1, "method": "execute_tool", "params": COMMAND},
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_kept_result_is_its_callers_alone(gateway: GatewayProcess, fickle: Fickle, door: str) -> None:
    city = f"of {door}"
    keys = gateway.keys  # type: ignore[attr-defined]
    ours = over_rest(gateway, keys["ada"], city)
    theirs = DOORS[door](gateway, keys["bob"], city)
    assert ours != theirs
    assert DOORS[door](gateway, keys["ada"], city) == ours, "one's own is the same at each door"
    assert DOORS[door](gateway, keys["bob"], city) == theirs
    assert sum(call["arguments"]["city"] == city for call in fickle.calls()) == 2


def test_what_the_operator_shares_is_everybodys(gateway: GatewayProcess, fickle: Fickle) -> None:
    settings = gateway.config / "toolscore.yaml"
    before = settings.read_text()
    settings.write_text(before.replace("cache: {", "cache: {shared: ['city__look'], "))
    wait_for(lambda: gateway.event_seen("settings_applied"))
    keys = gateway.keys  # type: ignore[attr-defined]
    assert over_rest(gateway, keys["ada"], "Shared") == over_rest(gateway, keys["bob"], "Shared")


def test_the_past_calls_of_others_are_not_there(gateway: GatewayProcess) -> None:
    keys = gateway.keys  # type: ignore[attr-defined]
    body = {"tool_id": "city__write", "parameters": {"city": "secret of ada"}}
    with httpx.Client(base_url=gateway.url, headers=bearer(keys["ada"])) as ada:
        call_id = ada.post("/execute_tool", json=body).json()["data"]["call_id"]
        assert ada.get(f"/api/v1/calls/{call_id}").json()["data"]["arguments"] == {"city": "secret of ada"}
        assert {call["principal"] for call in ada.get("/api/v1/calls").json()["data"]["calls"]} == {"ada"}
    with httpx.Client(base_url=gateway.url, headers=bearer(keys["bob"])) as bob:
        assert bob.get(f"/api/v1/calls/{call_id}").json()["error"]["code"] == "tool_not_found"
        assert bob.post(f"/api/v1/calls/{call_id}/replay", json={"confirm": True}).status_code == 404
        for path in ("/api/v1/calls", "/api/v1/calls/export?server_id=city"):
            assert "secret of ada" not in bob.get(path).text
            assert call_id not in bob.get(path).text
        assert bob.get("/api/v1/calls", params={"principal": "ada"}).json()["error"]["code"] == "forbidden"
        made = bob.post("/api/v1/calls/replay", json={"tool_id": "city__write", "confirm": True}).json()["data"]
        assert "secret of ada" not in json.dumps(made)
        assert bob.post("/api/v1/calls/replay", json={"principal": "ada"}).status_code == 403
    with httpx.Client(base_url=gateway.url, headers=bearer(keys["root"])) as root:
        assert root.get(f"/api/v1/calls/{call_id}").json()["success"] is True


def test_what_only_an_admin_may(gateway: GatewayProcess) -> None:
    keys = gateway.keys  # type: ignore[attr-defined]
    with httpx.Client(base_url=gateway.url, headers=bearer(keys["bob"])) as bob:
        for method, path, body in (
            ("POST", "/api/v1/pins/city__look/approve", {"definition_hash": "0" * 12}),
            ("GET", "/api/v1/errors", None),
            ("POST", "/api/v1/errors/fixes", {"message": "x", "text": "y"}),
            ("DELETE", "/api/v1/errors/fixes/x", None),
            ("DELETE", "/api/v1/cache", None),
        ):
            assert bob.request(method, path, json=body).json()["error"]["code"] == "forbidden", path


def test_values_of_calls_are_not_suggested(gateway: GatewayProcess) -> None:
    keys = gateway.keys  # type: ignore[attr-defined]

    def call(who: str, city: str) -> dict[str, Any]:
        body = {"tool_id": "city__look", "parameters": {"city": city}}
        answer = httpx.post(f"{gateway.url}/execute_tool", json=body, headers=bearer(keys[who])).json()
        return dict(answer["data"])

    for number in range(4):
        for city in ("Nowhere", "Nowhere", f"Private-place-{number}"):
            call("ada", city)
    for who in ("bob", "ada"):
        assert call(who, "Nowhere")["suggestion"] == "give another `city` (worked 4 of 4 times)"
