"""Who may come in, at every door, and that what is one caller's is no other's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support import (
    PYTHON,
    GatewayProcess,
    bearer,
    fixture,
    in_memory_gateway,
    odd,
    running_gateway,
    toolscore,
    wait_for,
    with_config,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from runtimes.client import RealTimeToolClient, ToolScoreClient
from toolscore.access.auth import AccessRules, Authenticator
from toolscore.access.tokens import TokenRules
from toolscore.core.errors import Unauthenticated
from toolscore.stores.database import open_database

ISSUER, AUDIENCE = "https://login.example", "toolscore"
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CALL = {"tool_id": "echo__echo", "parameters": {"text": "hello"}}


class Jwks(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE.public_key()))
        body = json.dumps({"keys": [{**key, "kid": "one", "use": "sig", "alg": "RS256"}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Jwks)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    jwks = f"http://127.0.0.1:{server.server_port}/"
    tokens = f"{{issuer: {ISSUER}, audience: {AUDIENCE}, jwks_url: '{jwks}', admins: [root]}}"
    settings = f"access: {{local_without_key: false, tokens: {tokens}}}\n"
    servers = {
        "echo": odd("good"),
        "both": fixture("stdio"),
        "sessions": fixture("stdio", "--session-only"),
    }
    with running_gateway(servers, settings=settings, python=True) as process:
        process.admin = with_config(process, "keys", "create", "root", "--scope", "admin")  # type: ignore[attr-defined]
        process.ada = with_config(process, "keys", "create", "ada")  # type: ignore[attr-defined]
        process.bob = with_config(process, "keys", "create", "bob")  # type: ignore[attr-defined]
        process.http.headers["authorization"] = f"Bearer {process.admin}"  # type: ignore[attr-defined]
        process.wait_for_state("echo", "up")
        yield process
    server.shutdown()


def token(key: Any = PRIVATE, algorithm: str = "RS256", kid: str = "one", **claims: Any) -> str:
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "carol", "exp": time.time() + 60, **claims}
    return jwt.encode(
        {name: value for name, value in payload.items() if value is not None}, key, algorithm, {"kid": kid}
    )


DOORS = [
    ("POST", "/execute_tool", CALL),
    ("POST", "/api/v1/tools/execute", CALL),
    ("GET", "/list_tools", None),
    ("GET", "/api/v1/servers", None),
    ("POST", "/api/v1/servers", {"server_id": "x", "command": "true"}),
    ("GET", "/api/v1/stats", None),
    ("GET", "/health", None),
    ("GET", "/metrics", None),
    ("GET", "/api/v1/events/stream", None),
    ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
    ("POST", "/servers/echo/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
    ("GET", "/mcp", None),
]


@pytest.mark.parametrize(("method", "path", "body"), DOORS)
def test_no_door_opens_without_a_key(gateway: GatewayProcess, method: str, path: str, body: Any) -> None:
    for headers in (
        {},
        bearer("ts_000000000000_" + "A" * 43),
        bearer(gateway.ada[:-1] + ("A" if gateway.ada[-1] != "A" else "B")),  # type: ignore[attr-defined]
        {"authorization": "Basic YTpi"},
        {"authorization": "Bearer"},
        {"x-api-key": "nonsense"},
    ):
        with httpx.Client(base_url=gateway.url) as stranger:
            answer = stranger.request(method, path, json=body, headers=headers)
        assert answer.status_code == 401, (path, headers)
        assert answer.json()["error"]["code"] == "unauthenticated"
        assert "oauth-protected-resource" in answer.headers["www-authenticate"]


def test_signs_of_life_need_no_key(gateway: GatewayProcess) -> None:
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert httpx.get(f"{gateway.url}{path}").status_code == 200, path


def test_the_router_asks_too(gateway: GatewayProcess) -> None:
    async def run() -> None:
        for subprotocols in ([Subprotocol("mcp")], None):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(gateway.router_url, subprotocols=subprotocols):
                    pass
            assert refused.value.response.status_code == 401
            headers = bearer(gateway.ada)  # type: ignore[attr-defined]
            async with connect(gateway.router_url, subprotocols=subprotocols, additional_headers=headers) as socket:
                await socket.ping()
        with pytest.raises(InvalidStatus) as forbidden:
            async with connect(
                gateway.register_url,
                subprotocols=[Subprotocol("mcp")],
                additional_headers=bearer(gateway.ada),  # type: ignore[attr-defined]
            ):
                pass
        assert forbidden.value.response.status_code == 403, "to bring a server takes the scope admin"
        with pytest.raises((InvalidStatus, ConnectionClosed)):
            async with connect(gateway.events_url) as socket:
                await socket.recv()

    asyncio.run(run())


def test_a_key_opens_every_door(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with ToolScoreClient(gateway.url, api_key=gateway.ada) as client:  # type: ignore[attr-defined]
            assert (await client.execute("echo__echo", {"text": "hello"})).text == "hello"
        async with RealTimeToolClient(gateway.events_url, api_key=gateway.ada) as events:  # type: ignore[attr-defined]
            async with asyncio.timeout(10):
                await events.connected()
            assert "echo__echo" in events.tools

    asyncio.run(run())
    answer = httpx.post(f"{gateway.url}/execute_tool", json=CALL, headers={"x-api-key": gateway.ada})  # type: ignore[attr-defined]
    assert answer.json()["success"]


def test_what_changes_the_gateway_takes_a_scope(gateway: GatewayProcess) -> None:
    ada = bearer(gateway.ada)  # type: ignore[attr-defined]
    for method, path in (
        ("POST", "/api/v1/servers"),
        ("DELETE", "/api/v1/servers/echo"),
        ("POST", "/api/v1/servers/echo/restart"),
    ):
        body = {"server_id": "more", **odd("good")} if path.endswith("servers") else None
        answer = httpx.request(method, f"{gateway.url}{path}", json=body, headers=ada)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), path
        assert "admin" in answer.json()["error"]["message"]


@pytest.mark.long
def test_a_revoked_or_expired_key_opens_nothing(gateway: GatewayProcess) -> None:
    short = with_config(gateway, "keys", "create", "guest", "--days", "0.01")
    assert httpx.get(f"{gateway.url}/list_tools", headers=bearer(short)).status_code == 200
    key_id = short[3:15]
    shown = json.loads(with_config(gateway, "keys", "list", "--json"))
    assert next(key for key in shown if key["key_id"] == key_id)["expires_at"]
    assert short not in json.dumps(shown)
    assert not any("hash" in key for key in shown)
    with_config(gateway, "keys", "revoke", key_id)
    refused = wait_for(lambda: is_refused(gateway, short), 60)
    assert "revoked" in refused["error"]["message"]
    database = (gateway.folder / "data" / "toolscore.db").read_bytes()
    assert short[16:].encode() not in database, "a key itself is not kept"


def is_refused(gateway: GatewayProcess, key: str) -> Any:
    answer = httpx.get(f"{gateway.url}/list_tools", headers=bearer(key))
    return answer.json() if answer.status_code == 401 else None


def test_a_token_of_the_authorization_server_is_as_good(gateway: GatewayProcess) -> None:
    answer = httpx.get(f"{gateway.url}/list_tools", headers=bearer(token()))
    assert answer.status_code == 200, answer.text
    attach = httpx.post(f"{gateway.url}/api/v1/servers/echo/restart", headers=bearer(token(scope="admin")))
    assert attach.status_code == 403, "a stranger's server does not make administrators of ours"
    admin = httpx.get(f"{gateway.url}/api/v1/servers", headers=bearer(token(sub="root")))
    assert admin.status_code == 200


def test_a_token_that_is_not_good_is_refused(gateway: GatewayProcess) -> None:
    public = PRIVATE.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    header = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"one"}')
    payload = jwt.utils.base64url_encode(
        json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 60}).encode()
    )
    signature = jwt.utils.base64url_encode(hmac.new(public, header + b"." + payload, hashlib.sha256).digest())
    confused = (header + b"." + payload + b"." + signature).decode()
    other_kind = jwt.utils.base64url_encode(b'{"alg":"ES256","kid":"one"}')
    of_another_kind = (other_kind + b"." + payload + b"." + signature).decode()
    unsigned = jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 60}, None, "none", {"kid": "one"}
    )
    for wrong in (
        token(aud="another"),
        token(iss="https://evil.example"),
        token(exp=time.time() - 120),
        token(exp=None),
        token(sub=None),
        token(nbf=time.time() + 600),
        token(OTHER),
        token(kid="two"),
        unsigned,
        confused,
        of_another_kind,
        "a.b.c",
    ):
        answer = httpx.get(f"{gateway.url}/list_tools", headers=bearer(wrong))
        assert answer.status_code == 401, wrong


def test_where_a_client_gets_a_token(gateway: GatewayProcess) -> None:
    for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"):
        found = httpx.get(f"{gateway.url}{path}").json()
        assert found["authorization_servers"] == [ISSUER]
        assert found["resource"] == f"{gateway.url}/mcp"


# What is one caller's is no other's


def test_a_session_belongs_to_who_opened_it(gateway: GatewayProcess) -> None:
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
    opened = httpx.post(f"{gateway.url}/mcp", json=hello, headers=bearer(gateway.ada))  # type: ignore[attr-defined]
    session = {"mcp-session-id": opened.headers["mcp-session-id"]}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    for key, status in ((gateway.ada, 200), (gateway.bob, 404), (gateway.admin, 404)):  # type: ignore[attr-defined]
        answer = httpx.post(f"{gateway.url}/mcp", json=ping, headers={**bearer(key), **session})
        assert answer.status_code == status
    assert httpx.delete(f"{gateway.url}/mcp", headers={**bearer(gateway.bob), **session}).status_code == 404  # type: ignore[attr-defined]
    assert httpx.post(f"{gateway.url}/mcp", json=ping, headers={**bearer(gateway.ada), **session}).status_code == 200  # type: ignore[attr-defined]


def test_a_request_state_belongs_to_who_got_it(gateway: GatewayProcess) -> None:
    meta = "io.modelcontextprotocol/"
    envelope = {f"{meta}protocolVersion": "2026-07-28", f"{meta}clientCapabilities": {"elicitation": {}}}

    def call(key: str, server_id: str, **more: Any) -> Any:
        tool = "test_input_required_result_request_state"
        params = {"name": tool, "arguments": {}, "_meta": envelope, **more}
        routing = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": tool}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        address = f"{gateway.url}/servers/{server_id}/mcp"
        return httpx.post(address, json=body, headers={**bearer(key), **routing}, timeout=120).json()

    for server_id in ("both", "sessions"):
        gateway.wait_for_state(server_id, "up")
        first = call(gateway.ada, server_id)["result"]  # type: ignore[attr-defined]
        answers = {key: {"action": "accept", "content": {"ok": True}} for key in first["inputRequests"]}
        retry = {"inputResponses": answers, "requestState": first["requestState"]}
        assert call(gateway.bob, server_id, **retry)["error"]["code"] == -32602, server_id  # type: ignore[attr-defined]
        tampered = {**retry, "requestState": f"{first['requestState']}-TAMPERED"}
        assert call(gateway.ada, server_id, **tampered)["error"]["code"] == -32602  # type: ignore[attr-defined]
        answered = call(gateway.ada, server_id, **retry)["result"]  # type: ignore[attr-defined]
        assert "state-ok" in answered["content"][0]["text"]


def test_a_python_session_belongs_to_who_opened_it(gateway: GatewayProcess) -> None:
    def run(key: str, code: str) -> str:
        body = {"tool_id": PYTHON, "parameters": {"code": code, "session_id": "mine"}}
        return httpx.post(f"{gateway.url}/execute_tool", json=body, headers=bearer(key), timeout=120).text

    assert "42" in run(gateway.ada, "secret = 42; secret")  # type: ignore[attr-defined]
    assert "NameError" in run(gateway.bob, "secret")  # type: ignore[attr-defined]
    assert "42" in run(gateway.ada, "secret")  # type: ignore[attr-defined]


@pytest.mark.long
def test_the_calls_of_others_are_not_told(gateway: GatewayProcess) -> None:
    async def heard(key: str) -> list[str]:
        async with RealTimeToolClient(gateway.events_url, events=["call_finished"], api_key=key) as client:
            await client.connected()
            for caller in (gateway.ada, gateway.bob, gateway.ada):  # type: ignore[attr-defined]
                async with ToolScoreClient(gateway.url, api_key=caller) as calling:
                    await calling.execute("echo__echo", {"text": "x"})
            found: list[str] = []
            async for event in client.events():  # in one order: what was told between the two of hers is there by then
                found.append(event["principal"])
                if found.count("ada") == 2:
                    break
            return found

    assert set(asyncio.run(heard(gateway.ada))) == {"ada"}  # type: ignore[attr-defined]
    assert set(asyncio.run(heard(gateway.admin))) == {"ada", "bob"}  # type: ignore[attr-defined]


@pytest.mark.long
def test_it_does_not_listen_to_others_without_a_key() -> None:
    with running_gateway({}, start=False, python=True) as process:
        (process.config / "ports_config.yaml").write_text(
            "core_services: {toolscore_http: {host: 0.0.0.0, port: 0}, toolscore_mcp: {port: 0}}\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "toolscore", "serve", "--config", str(process.config)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 73
        assert "toolscore keys create" in done.stderr


@pytest.mark.long
def test_the_executor_comes_back_with_a_key_of_its_own() -> None:
    settings = "access: {local_without_key: false}\n"
    with running_gateway({}, settings=settings, ports="use_inprocess_python_executor: false", python=True) as process:
        key = with_config(process, "keys", "create", "ada", "--scope", "admin")
        process.http.headers["authorization"] = f"Bearer {key}"
        process.wait_for_state("python-executor-mcp-server", "up")
        assert process.text(PYTHON, {"code": "6 * 7"})
        shown = json.dumps(process.server("python-executor-mcp-server"))
        assert "ts_000000000000" not in shown


def revoked(gateway: GatewayProcess, key: str) -> None:
    done = toolscore("keys", "revoke", key[3:15], "--config", str(gateway.config), env=dict(os.environ))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["key", "token"])
@pytest.mark.long
def test_sockets_and_streams_end_with_the_key_that_opened_them(gateway: GatewayProcess, how: str) -> None:
    stays = bearer(gateway.ada)  # type: ignore[attr-defined]
    opened = 0

    async def socket_ends(url: str, headers: dict[str, str], *subprotocols: str) -> int:
        nonlocal opened
        protocols = [Subprotocol(one) for one in subprotocols] or None
        async with connect(url, subprotocols=protocols, additional_headers=headers, max_size=None) as socket:
            opened += 1
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()
            return int(socket.close_code or 0)

    async def stream_ends(path: str, headers: dict[str, str]) -> int:
        nonlocal opened
        more = {"accept": "application/json, text/event-stream", **headers}
        async with httpx.AsyncClient(base_url=gateway.url, timeout=120) as http:
            if path == "/mcp":
                client = {"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
                hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize",
                         "params": {"protocolVersion": "2025-06-18", **client}}  # fmt: skip
                more["mcp-session-id"] = (await http.post("/mcp", headers=more, json=hello)).headers["mcp-session-id"]
                more["accept"] = "text/event-stream"
            async with http.stream("GET", path, headers=more) as stream:
                stream.raise_for_status()
                opened += 1
                with contextlib.suppress(httpx.RemoteProtocolError):
                    async for _ in stream.aiter_raw():
                        pass
            return 1008

    async def ends(shown: str) -> list[int | BaseException]:
        """How each door ended that what is shown opens."""
        nonlocal opened
        opened = 0
        headers = bearer(shown)
        doors = [
            asyncio.create_task(work)
            for work in (
                socket_ends(gateway.events_url, headers),
                socket_ends(gateway.events_url, {}, "toolscore.events", f"toolscore.bearer.{shown}"),
                socket_ends(gateway.router_url, headers, "mcp"),
                socket_ends(gateway.router_url, headers),
                stream_ends("/api/v1/events/stream", headers),
                stream_ends("/mcp", headers),
            )
        ]
        if how == "key":
            async with asyncio.timeout(60):
                while opened < len(doors):
                    await asyncio.sleep(0.01)
            assert not any(door.done() for door in doors)
            await asyncio.to_thread(revoked, gateway, shown)
        async with asyncio.timeout(100):
            return await asyncio.gather(*doors, return_exceptions=True)

    async def run() -> None:
        async with connect(gateway.events_url, additional_headers=stays, max_size=None) as other:
            for seconds in (2, 10, 60):  # as long as all doors take to be opened, on a busy machine
                late = time.time() - 30 + seconds  # there are thirty seconds of leeway
                ended = await ends(with_config(gateway, "keys", "create", "eve") if how == "key" else token(exp=late))
                if opened == len(ended):
                    break
            assert ended == [1008] * 6
            await other.send('{"type": "ping"}')
            while '"pong"' not in str(await other.recv()):
                pass

    asyncio.run(run())


@pytest.mark.parametrize("scope", [5, None, [1, "a"], {"a": 1}, True])
def test_an_odd_scope_grants_nothing_and_breaks_nothing(gateway: GatewayProcess, scope: Any) -> None:
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "carol", "exp": time.time() + 60, "scope": scope}
    odd_token = jwt.encode(payload, PRIVATE, "RS256", {"kid": "one"})
    assert httpx.get(f"{gateway.url}/health", headers=bearer(odd_token)).status_code == 200
    assert httpx.post(f"{gateway.url}/api/v1/servers", json={}, headers=bearer(odd_token)).status_code == 403


@pytest.mark.long
def test_a_key_that_the_gateway_does_not_know_is_told_so(gateway: GatewayProcess, tmp_path: Path) -> None:
    """As made in another folder than the gateway's, whose data lies there."""
    settings = ["--config", str(gateway.config)]
    known = toolscore("keys", "create", "here", *settings, cwd=gateway.folder)
    assert "keys in " in known.stderr
    assert "BUT" not in known.stderr
    unknown = toolscore(
        "keys", "create", "elsewhere", *settings, variables={"TOOLSCORE_STORAGE__DATA_DIR": str(tmp_path)}
    )
    assert f"keys in {tmp_path / 'toolscore.db'}" in unknown.stderr
    assert f"BUT the gateway at {gateway.url} does not know it" in unknown.stderr


def test_known_keys_answer_while_the_list_of_keys_is_slow() -> None:
    async def run() -> None:
        asked, answers = 0, asyncio.Event()
        listed: Any = {"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE.public_key())) | {"kid": "one"}]}

        async def fetch(url: str) -> Any:
            nonlocal asked
            asked += 1
            if asked > 1:
                await answers.wait()
            return listed

        rules = AccessRules(tokens=TokenRules(issuer=ISSUER, audience=AUDIENCE, jwks_url="http://127.0.0.1/"))
        async with open_database("sqlite+aiosqlite://") as database:
            auth = Authenticator(database, rules, fetch=fetch)
            assert auth._tokens is not None

            async def who(kid: str) -> str:
                return (await auth.authenticate(f"Bearer {token(kid=kid)}", None, local=False)).name

            assert (await who("one")).endswith("#carol")
            auth._tokens._jwks_at -= 100  # it may be asked again
            strangers = [asyncio.create_task(who("two")) for _ in range(20)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(1):
                assert (await who("one")).endswith("#carol")
            answers.set()
            refused = await asyncio.gather(*strangers, return_exceptions=True)
            assert all(isinstance(one, Unauthenticated) for one in refused)
            assert asked == 2
            with pytest.raises(Unauthenticated):
                await who("three")  # it was asked just now
            assert asked == 2
            for odd_list in ([], 5, {"keys": 5}, {"keys": [{}]}, None):
                listed = odd_list
                auth._tokens._jwks_at -= 100_000
                with pytest.raises(Unauthenticated):
                    await who("two")
                assert (await who("one")).endswith("#carol")

    asyncio.run(run())


@pytest.mark.long
def test_keys_are_made_listed_and_revoked_over_rest() -> None:
    with running_gateway(settings="access: {local_without_key: false}\n") as process:
        made = toolscore("keys", "create", "root", "--scope", "admin", "--config", str(process.config))
        with httpx.Client(base_url=process.url, headers=bearer(made.stdout.strip())) as root:
            wait_for(lambda: root.get("/api/v1/keys").status_code == 200)
            answer = root.post("/api/v1/keys", json={"name": "ada", "scopes": ["reports"], "days": 1})
            assert answer.status_code == 201, answer.text
            key = answer.json()["data"]
            listed = root.get("/api/v1/keys").json()["data"]["keys"]
            assert [one["name"] for one in listed] == ["root", "ada"]
            assert listed[1]["scopes"] == ["reports"]
            assert key["key"] not in root.get("/api/v1/keys").text, "it is shown once"
            assert "hash" not in listed[1]
            with httpx.Client(base_url=process.url, headers=bearer(key["key"])) as ada:
                wait_for(lambda: ada.get("/api/v1/tools").status_code == 200)
                for method, path in (("GET", "/api/v1/keys"), ("DELETE", f"/api/v1/keys/{key['key_id']}")):
                    assert ada.request(method, path).status_code == 403
                assert ada.post("/api/v1/keys", json={"name": "eve", "scopes": ["admin"]}).status_code == 403
                assert root.delete(f"/api/v1/keys/{key['key_id']}").status_code == 200
                wait_for(lambda: ada.get("/api/v1/tools").status_code == 401)
            assert root.delete(f"/api/v1/keys/{key['key_id']}").status_code == 404
            for wrong in ({"name": "local"}, {"name": "a b"}, {"name": "x", "scopes": ["a b"]}):
                assert root.post("/api/v1/keys", json=wrong).status_code == 409, wrong
            for wrong in ({}, {"name": "x", "days": 0}, {"name": "x", "more": 1}, {"name": 5}):
                assert root.post("/api/v1/keys", json=wrong).status_code == 422, wrong


def test_what_is_shown_beside_a_key_does_not_keep_its_streams_open() -> None:
    key = "ts_0123456789ab_" + "A" * 43

    async def main() -> None:
        async with in_memory_gateway() as gateway:
            auth = gateway.rooms.auth
            assert auth.credential(f"Bearer {key}", "junk") == auth.credential(f"Bearer {key}", None) is not None
            assert auth.credential("Basic YTpi", key) is None

    asyncio.run(main())
