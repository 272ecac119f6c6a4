"""The OpenAPI document: it describes every address field by field, and real answers are as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from support import EXECUTOR, Fickle, GatewayProcess, running_gateway, wait_for

NOT_JSON = {"/", "/metrics", "/api/v1/events/stream", "/docs", "/openapi.json"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    fickle = Fickle(tmp_path_factory.mktemp("city"))
    servers = {"city": fickle.entry, "off": {**fickle.entry, "disabled": True}}
    settings = "pins: {suspicious: quarantine, breaking: quarantine}\n"
    with running_gateway(servers, settings=settings, journal=True, python=True) as process:
        for server_id in ("city", EXECUTOR):
            process.wait_for_state(server_id, "up")
        process.fickle = fickle  # type: ignore[attr-defined]
        yield process


@pytest.fixture(scope="module")
def document(gateway: GatewayProcess) -> dict[str, Any]:
    return dict(gateway.http.get("/openapi.json").json())


def test_every_address_says_what_it_takes_and_answers(document: dict[str, Any]) -> None:
    missing = []
    for path, operations in document["paths"].items():
        if path in NOT_JSON or path.startswith(("/v0.1", "/.well-known")):
            continue
        for method, operation in operations.items():
            good = next(value for code, value in operation["responses"].items() if code.startswith("2"))
            schema = good.get("content", {}).get("application/json", {}).get("schema", {})
            if "data" not in schema.get("properties", {}):
                missing.append(f"{method} {path}: its answer")
            body = operation.get("requestBody")
            shape = body["content"]["application/json"]["schema"] if body is not None else None
            if shape is not None and "$ref" not in shape:
                missing.append(f"{method} {path}: its body")
    assert not missing
    assert set(document["components"]["securitySchemes"]) == {"key", "bearer"}
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert {"key": []} in document["paths"]["/api/v1/tools"]["get"]["security"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for part in text.split('"$ref": "')[1:]:
        name = part.split('"', 1)[0].rpartition("/")[2]
        assert name in schemas, name


@pytest.mark.long
def test_real_answers_are_as_it_says(gateway: GatewayProcess, document: dict[str, Any]) -> None:
    def check(method: str, path: str, template: str = "", **more: Any) -> Any:
        response = gateway.http.request(method, path, timeout=180, **more)
        answer = response.json()
        assert answer["success"], answer
        operation = document["paths"][template or path.split("?")[0]][method]
        schema = operation["responses"][str(response.status_code)]["content"]["application/json"]["schema"]
        whole = {**schema, "components": document["components"]}
        problems = [str(error) for error in jsonschema_rs.validator_for(whole).iter_errors(answer)]
        assert not problems, (path, problems)
        return answer["data"]

    look = {"tool_id": "city__look", "parameters": {"city": "Oslo"}}
    check("post", "/execute_tool", json=look)
    check("post", "/api/v1/tools/execute", json={"tool_id": "city__look", "parameters": {"city": "Nowhere"}})
    run = check("post", "/api/v1/code/run", json={"code": "tools.city.look(city='Oslo')"})
    check("get", "/api/v1/tools?limit=2")
    check("get", "/list_tools")
    check("post", "/api/v1/tools/search", json={"query": "look a city up"})
    check("get", "/api/v1/tools/city__look", "/api/v1/tools/{tool_id}")
    check(
        "post", "/api/v1/tools/analyze-gap", json={"task_description": "what time is it in Tokyo? and post it to Slack"}
    )
    check("post", "/api/v1/tools/request-capability", json={"task_description": "turn the lamp on"})
    waiting = check("get", "/api/v1/catalog/approvals")["approvals"]
    for one in waiting:
        check("delete", f"/api/v1/catalog/approvals/{one['approval_id']}", "/api/v1/catalog/approvals/{approval_id}")
    check("get", "/api/v1/whoami")
    check("get", "/api/v1/stats/recent")
    assert check("get", "/api/v1/events?limit=5")["events"]
    for action in ("disable", "enable"):
        check("post", f"/api/v1/tools/city__look/{action}", f"/api/v1/tools/{{tool_id}}/{action}")
    check("get", "/api/v1/tools?disabled=true")
    check("get", "/api/v1/servers")
    check("get", "/api/v1/servers?memory=true")
    for server_id in ("city", "off", EXECUTOR):
        check("get", f"/api/v1/servers/{server_id}", "/api/v1/servers/{server_id}")
    check("post", "/api/v1/servers", json={"server_id": "late", **gateway.fickle.entry})  # type: ignore[attr-defined]
    gateway.wait_for_state("late", "up")
    for action in ("restart", "disable", "enable"):
        check("post", f"/api/v1/servers/late/{action}", f"/api/v1/servers/{{server_id}}/{action}")
    check("delete", "/api/v1/servers/late", "/api/v1/servers/{server_id}")
    check("get", "/api/v1/catalog/search?q=git")
    check("get", "/api/v1/catalog/installed")
    found = wait_for(lambda: [one for one in gateway.get("/api/v1/calls")["calls"] if one["tool_id"] == "city__look"])
    check("get", "/api/v1/calls?limit=5")
    check("get", f"/api/v1/calls/{found[-1]['call_id']}", "/api/v1/calls/{call_id}")
    assert check("get", f"/api/v1/calls/{run['call_id']}", "/api/v1/calls/{call_id}")["calls"]
    check("post", f"/api/v1/calls/{found[-1]['call_id']}/replay", "/api/v1/calls/{call_id}/replay", json={})
    check("post", "/api/v1/calls/replay", json={"tool_id": "city__look"})
    check("get", "/api/v1/calls/export?server_id=city")
    check("post", "/api/v1/errors/match", json={"message": "no such table: users"})
    fix = check("post", "/api/v1/errors/fixes", json={"message": "no such city: 'X'", "text": "ask for another"})
    check("get", "/api/v1/errors")
    for action in ("disable", "enable"):
        check("post", f"/api/v1/errors/fixes/{fix['fix_id']}/{action}", f"/api/v1/errors/fixes/{{fix_id}}/{action}")
    check("delete", f"/api/v1/errors/fixes/{fix['fix_id']}", "/api/v1/errors/fixes/{fix_id}")
    check("delete", "/api/v1/cache")
    check("get", "/api/v1/policy/explain?principal=ada&tool_id=city__look")
    check("get", "/api/v1/settings")
    key = check("post", "/api/v1/keys", json={"name": "ada", "days": 1})
    check("get", "/api/v1/keys")
    check("delete", f"/api/v1/keys/{key['key_id']}", "/api/v1/keys/{key_id}")
    for path in ("/api/v1/stats", "/health", "/livez", "/readyz"):
        check("get", path)
    check("get", "/api/v1/pins")
    gateway.fickle.order(tools={"look": {"inputSchema": {"type": "object", "required": ["city"]}}})  # type: ignore[attr-defined]
    gateway.http.post("/api/v1/servers/city/restart")
    pin = wait_for(lambda: check("get", "/api/v1/pins?quarantined=true")["pins"], 120)[0]
    check("get", f"/api/v1/pins/{pin['tool_id']}", "/api/v1/pins/{tool_id}")
    check("get", f"/api/v1/tools/{pin['tool_id']}", "/api/v1/tools/{tool_id}")
    approval = {"definition_hash": pin["held_hash"]}
    check("post", f"/api/v1/pins/{pin['tool_id']}/approve", "/api/v1/pins/{tool_id}/approve", json=approval)


def test_a_wrong_shape_would_be_seen(document: dict[str, Any]) -> None:
    """The check above can fail: a member more or less is no answer."""
    schema = document["paths"]["/livez"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    validator = jsonschema_rs.validator_for({**schema, "components": document["components"]})
    head = {"success": True, "message": "", "timestamp": "x", "request_id": "1",
            "performance": {"duration_ms": 1, "cache_hit": False}}  # fmt: skip
    assert validator.is_valid({**head, "data": {"status": "ready"}})
    assert not validator.is_valid({**head, "data": {"status": "ready", "more": 1}})
    assert not validator.is_valid({**head, "data": {}})


def test_the_page_has_its_authorize_button(gateway: GatewayProcess) -> None:
    assert "swagger" in gateway.http.get("/docs").text.lower()
