"""REST: the envelope on every answer, the paths of the wire document, and what users get wrong."""

from __future__ import annotations

import sys

import pytest
from support import GatewayProcess, odd, running_gateway, wait_for


def test_a_call_answers_in_the_envelope(gateway: GatewayProcess) -> None:
    response = gateway.http.post("/execute_tool", json={"tool_id": "alpha__echo", "parameters": {"text": "hi"}})
    answer = response.json()
    assert response.status_code == 200
    assert answer["success"] is True
    assert answer["data"]["content"] == [{"type": "text", "text": "hi"}]
    assert answer["data"]["is_error"] is False
    assert answer["data"]["tool_id"] == "alpha__echo"
    assert answer["data"]["structured_content"] is None
    assert answer["performance"]["duration_ms"] > 0
    assert answer["request_id"] == response.headers["x-request-id"]
    assert gateway.http.get(f"/api/v1/calls/{answer['data']['call_id']}").json()["data"]["tool_id"] == "alpha__echo"
    assert answer["timestamp"].endswith("Z")


def test_the_long_path_is_the_same(gateway: GatewayProcess) -> None:
    body = {"tool_id": "alpha__echo", "parameters": {"text": "hi"}}
    assert gateway.http.post("/api/v1/tools/execute", json=body).json()["data"]["content"][0]["text"] == "hi"


def test_a_request_id_of_the_caller_comes_back(gateway: GatewayProcess) -> None:
    for path, method in (("/execute_tool", "POST"), ("/health", "GET"), ("/nowhere", "GET")):
        response = gateway.http.request(method, path, headers={"x-request-id": "mine-1"})
        assert response.json()["request_id"] == "mine-1"
        assert response.headers["x-request-id"] == "mine-1"


def test_a_tool_is_found_by_its_server_and_action(gateway: GatewayProcess) -> None:
    assert gateway.text("beta", {"text": "hi"}, action="echo") == "hi"


def test_half_a_surrogate_pair_is_told_as_what_it_is(gateway: GatewayProcess) -> None:
    for body in ('{"tool_id": "alpha__echo\\ud800"}', '{"tool_id": "alpha__echo", "parameters": {"text": "\\ud800"}}'):
        response = gateway.http.post("/execute_tool", content=body)
        assert response.status_code == 400
        assert "half a surrogate pair" in response.json()["error"]["suggestion"]
    body = '{"tool_id": "alpha__echo", "parameters": {"text": "\\ud83d\\ude00"}}'
    assert gateway.http.post("/execute_tool", content=body).json()["data"]["content"][0]["text"] == "😀"


def test_a_server_with_one_tool_needs_no_action(gateway: GatewayProcess) -> None:
    entry = {"server_id": "single", "command": sys.executable, "args": ["-m", "toolscore.bench.echo", "stdio", "0"]}
    assert gateway.http.post("/api/v1/servers", json=entry).json()["success"]
    gateway.wait_for_state("single", "up")
    assert gateway.text("single", {"text": "alone"}) == "alone"
    gateway.http.delete("/api/v1/servers/single")


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"tool_id": "alpha__ecko"}, 404, "tool_not_found", "alpha__echo"),
        ({"tool_id": "alpha", "action": "ecko"}, 404, "tool_not_found", "echo"),
        ({"tool_id": "alpha"}, 404, "tool_not_found", "action"),
        ({"tool_id": "alpha__echo", "action": "safe"}, 404, "tool_not_found", "leave `action` out"),
        ({"tool_id": "alpha__echo", "parameters": {}}, 422, "invalid_arguments", '"text" is a required property'),
        ({"tool_id": "alpha__echo", "parameters": {"text": 5}}, 422, "invalid_arguments", "text: 5 is not of type"),
        ({"tool_id": "alpha__echo", "parameters": {"text": "", "times": 0}}, 422, "invalid_arguments", "times: 0"),
        ({"tool_id": "alpha__echo", "parameters": [1]}, 422, "invalid_arguments", "must be an object"),
        ({"tool_id": "alpha__echo", "parameters": 5}, 422, "invalid_arguments", "must be an object"),
        ({"tool_id": 5}, 422, "invalid_arguments", "$.tool_id"),
        ({"parameters": {}}, 422, "invalid_arguments", "tool_id"),
        ({"tool_id": "alpha__echo", "paramters": {}}, 422, "invalid_arguments", "paramters"),
        ({"tool_id": "alpha__echo", "timeout_seconds": -1}, 422, "invalid_arguments", "timeout_seconds"),
    ],
)
def test_wrong_calls_say_what_is_wrong(
    gateway: GatewayProcess, body: dict[str, object], status: int, code: str, said: str
) -> None:
    response = gateway.http.post("/execute_tool", json=body)
    answer = response.json()
    assert response.status_code == status
    assert answer["success"] is False
    assert answer["data"] is None
    assert answer["error"]["code"] == code
    assert said in f"{answer['error']['message']} {answer['error']['suggestion']}"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"nonsense", b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused_clearly(gateway: GatewayProcess, body: bytes) -> None:
    response = gateway.http.post("/execute_tool", content=body)
    assert response.status_code in (400, 422)
    assert response.json()["success"] is False


def test_a_body_over_the_bound_is_refused_on_every_path(gateway: GatewayProcess) -> None:
    for path in ("/execute_tool", "/mcp", "/api/v1/servers"):
        announced = gateway.http.post(path, content=b"x" * 5_000_000, headers={"content-type": "application/json"})
        assert announced.status_code == 413, path
        assert announced.json()["error"]["code"] == "payload_too_large"

        def pieces() -> object:
            for _ in range(50):
                yield b"x" * 100_000

        streamed = gateway.http.post(path, content=pieces(), headers={"content-type": "application/json"})  # type: ignore[arg-type]
        assert streamed.status_code == 413, path


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("PUT", "/execute_tool", 405),
        ("GET", "/api/v1/tools?limit=0", 422),
        ("GET", "/api/v1/tools?limit=nine", 422),
        ("GET", "/api/v1/tools/none__such", 404),
        ("GET", "/api/v1/servers/none", 404),
        ("DELETE", "/api/v1/servers/none", 404),
        ("POST", "/api/v1/servers", 422),
        ("POST", "/servers/none/mcp", 404),
    ],
)
def test_every_failure_has_the_envelope(gateway: GatewayProcess, method: str, path: str, status: int) -> None:
    response = gateway.http.request(method, path)
    answer = response.json()
    assert response.status_code == status
    assert answer["success"] is False
    assert answer["error"]["message"]
    assert answer["request_id"]


def test_listing_pages_in_a_stable_order(gateway: GatewayProcess) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 150, "server_id": "many", **({"cursor": cursor} if cursor else {})}
        page = gateway.get("/api/v1/tools", **params)
        seen += [tool["tool_id"] for tool in page["tools"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == 500
    assert seen == sorted(seen)


def test_listing_filters_by_text(gateway: GatewayProcess) -> None:
    page = gateway.get("/list_tools", q="TOOL_04")
    assert [tool["name"] for tool in page["tools"]] == [f"tool_04{digit}" for digit in range(10)]


def test_two_servers_with_the_same_tool_names_keep_them_apart(gateway: GatewayProcess) -> None:
    ids = {tool["tool_id"] for tool in gateway.get("/api/v1/tools", q="echo")["tools"]}
    assert {"alpha__echo", "beta__echo"} <= ids


def test_one_tool_shows_its_schema_and_server(gateway: GatewayProcess) -> None:
    tool = gateway.get("/api/v1/tools/alpha__safe")
    assert tool["input_schema"]["required"] == ["text"]
    assert tool["annotations"] == {"readOnlyHint": True}
    assert tool["available"] is True
    assert len(tool["definition_hash"]) == 64


@pytest.mark.long
def test_attach_inspect_restart_detach() -> None:
    with running_gateway() as process:
        spec = odd("echo", env={"TOKEN": "s3cret"})
        response = process.http.post("/api/v1/servers", json={"server_id": "new", **spec})
        assert response.status_code == 201
        process.wait_for_state("new", "up")
        assert process.text("new__echo", {"text": "hi"}) == "hi"
        taken = process.http.post("/api/v1/servers", json={"server_id": "new", **spec})
        assert (taken.status_code, taken.json()["error"]["code"]) == (409, "conflict")
        shown = process.http.get("/api/v1/servers/new").text
        assert "s3cret" not in shown
        assert '"env_keys":["TOKEN"]' in shown
        first = process.server("new")
        assert first["memory_bytes"] > 1_000_000
        assert process.http.post("/api/v1/servers/new/restart").status_code == 200
        wait_for(lambda: process.server("new")["pid"] not in (None, first["pid"]), message="for the restart")
        process.stop()
        process.start()
        process.wait_for_state("new", "up")
        assert process.http.delete("/api/v1/servers/new").status_code == 200
        assert process.http.get("/api/v1/tools/new__echo").status_code == 404
        process.stop()
        process.start()
        assert process.http.get("/api/v1/servers/new").status_code == 404


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "exactly one of `command`"),
        ({"command": "uvx", "url": "http://127.0.0.1:1/mcp"}, "exactly one"),
        ({"url": "ftp://somewhere"}, "url"),
        ({"comand": "uvx"}, "comand: there is no such member: did you mean 'command'?"),
        ({"command": "uvx", "args": "not-a-list"}, "args: Input should be a list"),
        ({"inprocess": "os:system"}, "configuration"),
        ({"command": "no-such-program"}, "was not found on PATH"),
        ({"command": "uvx mcp-server-time"}, "`args`"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_key(gateway: GatewayProcess, spec: dict[str, object], said: str) -> None:
    response = gateway.http.post("/api/v1/servers", json={"server_id": "wrong", **spec})
    assert response.status_code in (400, 422)
    assert said in response.json()["error"]["message"]
    assert gateway.http.get("/api/v1/servers/wrong").status_code == 404


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b'{"server_id": "x",}', "application/json", "the body: it is not JSON: "),
        (b'{"server_id": "x", "command": "y"}', "", "body: Input should be a valid dictionary"),
    ],
)
def test_a_body_that_is_no_object_is_told_how_one_is_sent(
    gateway: GatewayProcess, body: bytes, content_type: str, said: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    error = gateway.http.post("/api/v1/servers", content=body, headers=headers).json()["error"]
    assert said in error["message"]
    assert error["suggestion"] == "send a JSON object with content-type application/json"


@pytest.mark.long
def test_the_gateway_does_not_take_itself_for_a_server() -> None:
    with running_gateway() as process:
        ourselves = {"url": f"{process.url}/mcp"}
        refused = process.http.post("/api/v1/servers", json={"server_id": "me", **ourselves})
        assert refused.status_code == 400
        process.servers({"me": ourselves, "alpha": odd("echo")})
        process.wait_for_state("alpha", "up")
        server = process.wait_for_state("me", "failed")
        assert "itself" in server["last_error"]


@pytest.mark.long
def test_a_tool_of_a_server_that_is_still_starting_is_waited_for() -> None:
    with running_gateway({"alpha": odd("echo"), "crashes": odd("crashes"), "silent": odd("silent")}) as process:
        assert process.text("alpha__echo", {"text": "at once"}) == "at once"
        process.wait_for_state("crashes", "failed")
        failed = process.execute("crashes__anything")
        assert failed["error"]["code"] == "upstream_unavailable"
        assert "frobnicator" in failed["error"]["message"]
        waited = process.execute("silent__anything", timeout_seconds=0.3)
        assert "still starting" in waited["error"]["message"]


def test_a_configured_server_is_not_detached_behind_the_files_back(gateway: GatewayProcess) -> None:
    response = gateway.http.delete("/api/v1/servers/alpha")
    assert response.status_code == 409
    assert "mcp_servers.json" in response.json()["error"]["message"]


def test_a_foreign_web_page_gets_nothing(gateway: GatewayProcess) -> None:
    body = {"tool_id": "alpha__echo", "parameters": {"text": "hi"}}
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        for path in ("/execute_tool", "/mcp", "/api/v1/tools/execute"):
            assert gateway.http.post(path, json=body, headers=headers).status_code == 403
        assert gateway.http.get("/health", headers=headers).status_code == 403
    mine = gateway.http.post("/execute_tool", json=body, headers={"origin": "http://localhost:3000"})
    assert mine.status_code == 200


def test_health_stats_and_metrics(gateway: GatewayProcess) -> None:
    gateway.text("alpha__echo", {"text": "hi"})
    health = gateway.get("/health")
    assert health["status"] == "healthy"
    rooms = {"events", "library", "pins", "journal", "cache", "scores", "firewall", "search"}
    assert set(health["checks"]) == {"database", "settings", "servers", *rooms}
    stats = gateway.get("/api/v1/stats")
    assert stats["calls_total"] >= 1
    assert stats["outcomes"]["ok"] >= 1
    assert stats["windows"]["1m"]["p50_ms"] > 0
    assert gateway.http.get("/livez").status_code == gateway.http.get("/readyz").status_code == 200
    metrics = gateway.http.get("/metrics").text
    assert 'toolscore_calls_total{outcome="ok",server="alpha"}' in metrics
    assert 'toolscore_server_up{server="many"} 1.0' in metrics


def test_openapi_describes_the_hot_route_with_examples(gateway: GatewayProcess) -> None:
    document = gateway.http.get("/openapi.json").json()
    body = document["paths"]["/execute_tool"]["post"]["requestBody"]["content"]["application/json"]
    shape = document["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    assert shape["required"] == ["tool_id"]
    example = body["examples"]["python"]["value"]
    assert gateway.http.post("/execute_tool", json=example).json()["data"]["content"][0]["text"] == "45"
    assert "/api/v1/servers/{server_id}/restart" in document["paths"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/api/v1/servers", "GET, POST"),
        ("PUT", "/api/v1/servers/alpha", "DELETE, GET"),
        ("GET", "/execute_tool", "POST"),
        ("DELETE", "/health", "GET"),
        ("PUT", "/mcp", "POST, GET, DELETE"),
    ],
)
def test_allow_names_all_methods_of_an_address(gateway: GatewayProcess, method: str, path: str, allowed: str) -> None:
    answer = gateway.http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
