"""Credentials of a server by caller: shown to it, and nowhere else. No other header of a client reaches a server."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from support import Fickle, GatewayProcess, bearer, running_gateway, with_config

from toolscore.core.models import UpstreamSpec


class Mirror(BaseHTTPRequestHandler):
    """An MCP server of the stateless era whose tool returns the headers that it was called with."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if message["method"] == "server/discover":
            result: dict[str, Any] = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
        elif message["method"] == "tools/list":
            safe = {"readOnlyHint": True, "idempotentHint": True}
            result = {"tools": [{"name": "headers", "inputSchema": {"type": "object"}, "annotations": safe}]}
        else:
            text = json.dumps({name.lower(): value for name, value in self.headers.items()})
            result = {"content": [{"type": "text", "text": text}]}
        body = {"jsonrpc": "2.0", "id": message["id"], "result": {**result, "resultType": "complete"}}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


SECRETS = {"ada": "the-secret-of-ada", "bob": "the-secret-of-bob"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("secrets")
    for name, secret in SECRETS.items():
        (folder / name).write_text(f"{secret}\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    servers = {
        "mirror": {
            "url": f"http://127.0.0.1:{server.server_port}/mcp",
            "headers": {"X-Base": "everybody"},
            "credentials": {
                name: {"headers": {"Authorization": f"Bearer ${{file:{folder / name}}}"}} for name in SECRETS
            },
            "forward_headers": ["X-Tenant"],
        },
        "city": {
            **Fickle(folder / "fickle").entry,
            "credentials": {name: {"env": {"WHO": f"${{file:{folder / name}}}"}} for name in SECRETS},
        },
    }
    settings = "access: {local_without_key: false}\nrates: {per_minute: 0}\ncache: {shared: ['*']}\n"
    with running_gateway(servers, settings=settings) as process:
        process.fickle = Fickle(folder / "fickle")  # type: ignore[attr-defined]
        names = {"root": ["--scope", "admin"], "ada": [], "bob": []}
        process.keys = {name: with_config(process, "keys", "create", name, *scopes)  # type: ignore[attr-defined]
                        for name, scopes in names.items()}  # fmt: skip
        process.http.headers["authorization"] = f"Bearer {process.keys['root']}"  # type: ignore[attr-defined]
        for server_id in servers:
            process.wait_for_state(server_id, "up")
        yield process
    server.shutdown()


def call(gateway: GatewayProcess, who: str, tool: str, **headers: str) -> dict[str, Any]:
    key = gateway.keys[who]  # type: ignore[attr-defined]
    body = {"tool_id": tool, "parameters": {}}
    answer = httpx.post(f"{gateway.url}/execute_tool", json=body, headers={**bearer(key), **headers}).json()
    assert answer["success"], answer
    return dict(answer["data"])


def sent_to(gateway: GatewayProcess, who: str, **headers: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(call(gateway, who, "mirror__headers", **headers)["content"][0]["text"])
    return found


def test_each_caller_shows_its_own(gateway: GatewayProcess) -> None:
    for who in ("ada", "bob", "ada"):
        sent = sent_to(gateway, who)
        assert sent["authorization"] == f"Bearer {SECRETS[who]}"
        assert sent["x-base"] == "everybody"
    assert "authorization" not in sent_to(gateway, "root")


def test_a_process_for_each_that_has_some(gateway: GatewayProcess) -> None:
    for who in ("ada", "bob", "root"):
        call(gateway, who, "city__write")
    fickle: Fickle = gateway.fickle  # type: ignore[attr-defined]
    assert [made["env"] for made in fickle.calls()] == [SECRETS["ada"], SECRETS["bob"], None]


def test_only_the_headers_that_are_named_reach_a_server(gateway: GatewayProcess) -> None:
    given = {"X-Tenant": "blue", "X-Other": "of the client", "Cookie": "of=the client", "Traceparent": "00-1-2-3"}
    sent = sent_to(gateway, "ada", **given)
    assert sent["x-tenant"] == "blue"
    assert "of the client" not in json.dumps(sent)
    assert "toolscore" not in sent["authorization"]
    assert sent_to(gateway, "ada", **{"X-Tenant": "green"})["x-tenant"] == "green"  # not from the cache
    assert "x-tenant" not in sent_to(gateway, "bob")
    key = gateway.keys["ada"]  # type: ignore[attr-defined]
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    said = httpx.post(
        f"{gateway.url}/mcp",
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "mirror__headers", "_meta": meta}},
        headers={**bearer(key), "accept": "application/json, text/event-stream", "mcp-protocol-version": "2026-07-28",
                 "mcp-method": "tools/call", "mcp-name": "mirror__headers", "x-tenant": "red"},
    ).json()  # fmt: skip
    assert json.loads(said["result"]["content"][0]["text"])["x-tenant"] == "red"


def test_secrets_are_seen_nowhere(gateway: GatewayProcess) -> None:
    for who in SECRETS:
        call(gateway, who, "city__write")
    shown = [
        gateway.http.get(path).text
        for path in ("/api/v1/servers", "/api/v1/servers/mirror", "/api/v1/servers/city", "/health", "/metrics",
                     "/api/v1/stats", "/list_tools")
    ]  # fmt: skip
    shown += [gateway.output(), json.dumps(gateway.commands())]
    with sqlite3.connect(gateway.folder / "data" / "toolscore.db") as database:
        tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            if table != "cached":  # what the mirror's own tool gave back
                shown += [str(row) for row in database.execute(f"select * from {table}")]
    for secret in SECRETS.values():
        assert secret not in "\n".join(shown)
    assert gateway.get("/api/v1/servers/mirror")["credentials_of"] == ["ada", "bob"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"url": "http://x/mcp", "credentials": {"a": {"headers": {"Authorization": "Bearer 12"}}}}, "by reference"),
        ({"url": "http://x/mcp", "credentials": {"a": {"env": {"A": "${env:B}"}}}}, "only a server with a `command`"),
        ({"command": "x", "credentials": {"a": {"headers": {"A": "${env:B}"}}}}, "only a server with a `url`"),
        ({"url": "http://x/mcp", "forward_headers": ["Authorization"]}, "the gateway's own"),
        ({"command": "x", "forward_headers": ["X-A"]}, "HTTP `url`"),
    ],
)
def test_mistakes_are_named(entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        UpstreamSpec.model_validate(entry)


@pytest.mark.long
def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    entry = {"command": "python3", "args": ["-c", "pass"], "env": {"KEY": f"${{file:{tmp_path}/none}}"}}
    with running_gateway({"broken": entry}) as process:
        found = process.wait_for_state("broken", "failed", "down")
        assert f"{tmp_path}/none" in found["last_error"]
