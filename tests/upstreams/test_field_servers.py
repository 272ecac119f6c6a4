"""Servers over HTTP as they are in the field: redeployed, behind proxies, refusing, and not quite MCP."""

from __future__ import annotations

import gzip
import json
import queue
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support import GatewayProcess, running_gateway, wait_for
from support.field import Asked, field_server

DONE = {"content": [{"type": "text", "text": "done"}]}


def done(asked: Asked, **more: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": asked.id, "result": DONE, **more})


ODD = {
    "named": lambda asked: asked.stream(f"event: ping\ndata: ping\n\ndata: {done(asked)}\n\n"),
    "marked": lambda asked: asked.stream(f"\ufeffdata: {done(asked)}\n\n"),
    "returns": lambda asked: asked.stream(f": hi\rdata: {done(asked)}\r\r"),
    "chatty": lambda asked: asked.stream(f"data: [DONE]\n\ndata: {done(asked)}\n\n"),
    "shouting": lambda asked: asked.reply(200, f"data: {done(asked)}\n\n", "TEXT/EVENT-STREAM"),
    "batch": lambda asked: asked.reply(200, f"[{done(asked)}]"),
    "batch_in_stream": lambda asked: asked.stream(f"data: [{done(asked)}]\n\n"),
    "nulls": lambda asked: asked.reply(200, done(asked, method=None, params=None, error=None)),
    "text_id": lambda asked: asked.reply(200, done(asked).replace(f'"id": {asked.id}', f'"id": "{asked.id}"')),
    "gzip": lambda asked: asked.reply(200, gzip.compress(done(asked).encode()), Content_Encoding="gzip"),
    "deflate": lambda asked: asked.reply(200, zlib.compress(done(asked).encode()), Content_Encoding="deflate"),
    "bare": lambda asked: asked.reply(200, zlib.compress(done(asked).encode())[2:-4], Content_Encoding="deflate"),
    "packed_stream": lambda asked: asked.reply(
        200, gzip.compress(f"data: {done(asked)}\n\n".encode()), "text/event-stream", Content_Encoding="gzip"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with running_gateway() as process:
        yield process


@contextmanager
def attached(gateway: GatewayProcess, **entry: Any) -> Iterator[GatewayProcess]:
    """A server `web` behind the gateway, while the block runs."""
    assert gateway.http.post("/api/v1/servers", json={"server_id": "web", **entry}).status_code == 201
    try:
        gateway.wait_for_state("web", "up")
        yield gateway
    finally:
        gateway.http.delete("/api/v1/servers/web")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.long
def test_what_is_not_quite_as_it_should_be_is_understood(gateway: GatewayProcess, kind: str) -> None:
    with field_server(tools__call=ODD[kind]) as server, attached(gateway, url=server.url):
        assert gateway.text("web__go") == "done"


@pytest.mark.parametrize(
    ("status", "said", "plain"),
    [
        (404, "Session not found", True),
        (400, "Bad Request: No valid session ID provided", False),
        (400, "Bad Request: Server not initialized", False),
        (400, "Unknown session", True),
    ],
)
def test_a_lost_session_is_opened_anew_and_all_is_asked_again(
    gateway: GatewayProcess, status: int, said: str, plain: bool
) -> None:
    known: set[str] = set()

    def opening(asked: Asked) -> None:
        server.answer(asked)
        known.add(f"s{server.count('initialize')}")

    def guarded(asked: Asked) -> None:
        if asked.headers["Mcp-Session-Id"] in known:
            server.answer(asked)
        elif plain:
            asked.reply(status, said, "text/plain")
        else:
            asked.error(-32000, said, status, id=None)

    with field_server(initialize=opening, tools__call=guarded, tools__list=guarded, ping=guarded) as server:
        with attached(gateway, url=server.url) as process:
            known.clear()
            server.tools = ["go", "new"]
            assert process.text("web__go") == "done"
            assert server.count("initialize") == 2
            wait_for(lambda: process.execute("web__new")["success"], 60, "for the tools of the new session")


def test_a_refusal_of_the_call_itself_opens_no_session(gateway: GatewayProcess) -> None:
    with field_server(tools__call=lambda asked: asked.error(-32602, "bad argument", 400)) as server:
        with attached(gateway, url=server.url) as process:
            assert process.execute("web__go")["error"]["code"] == "invalid_arguments"
            assert server.count("initialize") == 1


@pytest.mark.parametrize("refusal", [401, 403, 429, 500, 503, None])
@pytest.mark.long
def test_whatever_becomes_of_the_question_for_the_newer_era_a_session_is_opened(
    gateway: GatewayProcess, refusal: int | None
) -> None:
    hang = threading.Event()

    def probed(asked: Asked) -> None:
        if refusal is None:
            hang.wait(20)
        asked.reply(refusal or 500, "no", "text/plain", Mcp_Session_Id="stray")

    with field_server(server__discover=probed) as server, attached(gateway, url=server.url) as process:
        assert process.text("web__go") == "done"
        hang.set()
        if refusal is not None:
            gone = [one for one in server.seen if one.verb == "DELETE"]
            assert [one.headers["Mcp-Session-Id"] for one in gone] == ["stray"], "probing leaves no session behind"


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_a_server_that_refuses_is_asked_once(gateway: GatewayProcess, status: int) -> None:
    more = {"Retry_After": "30"} if status in (429, 503) else {}
    with field_server(tools__call=lambda asked: asked.reply(status, "no", "text/plain", **more)) as server:
        with attached(gateway, url=server.url) as process:
            error = process.execute("web__go")["error"]
            assert server.count("tools/call") == 1
            assert error["retryable"] is (status in (429, 503))
            assert error["retry_after_seconds"] == (30 if more else None)
            if not more:
                assert str(status) in process.server("web")["last_error"]


@pytest.mark.long
def test_a_server_that_says_when_is_asked_again_then(gateway: GatewayProcess) -> None:
    def busy(asked: Asked) -> None:
        if server.count("tools/call") == 1:
            asked.reply(429, "slow down", "text/plain", Retry_After="1")
        else:
            server.answer(asked)

    with field_server(tools__call=busy) as server, attached(gateway, url=server.url) as process:
        assert process.text("web__go") == "done"
        assert server.count("tools/call") == 2


def test_credentials_that_are_refused_are_read_anew(gateway: GatewayProcess, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    good = {"Bearer old"}

    def guarded(asked: Asked) -> None:
        if asked.headers["Authorization"] in good:
            server.answer(asked)
        else:
            asked.reply(401, "expired", "text/plain")

    names = ("tools__call", "tools__list", "initialize", "ping")
    with field_server(**dict.fromkeys(names, guarded)) as server:
        entry = {"url": server.url, "headers": {"Authorization": f"Bearer ${{file:{token}}}"}}
        with attached(gateway, **entry) as process:
            good.clear()
            good.add("Bearer new")
            token.write_text("new")
            assert process.text("web__go") == "done"
            good.clear()
            assert "401" in process.execute("web__go")["error"]["message"]


def test_cookies_of_a_balancer_come_back_and_we_say_who_asks(gateway: GatewayProcess) -> None:
    def opening(asked: Asked) -> None:
        asked.handler.send_response_only(200)
        body = json.dumps({"jsonrpc": "2.0", "id": asked.id, "result": {
            "protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "f", "version": "1"},
        }}).encode()  # fmt: skip
        for name, value in (("Set-Cookie", "node=7; Path=/; HttpOnly"), ("Set-Cookie", "gone=1; Max-Age=0"),
                            ("Content-Type", "application/json"), ("Content-Length", str(len(body)))):  # fmt: skip
            asked.handler.send_header(name, value)
        asked.handler.end_headers()
        asked.handler.wfile.write(body)

    with field_server(initialize=opening) as server, attached(gateway, url=server.url) as process:
        assert process.text("web__go") == "done"
        (call,) = [one for one in server.seen if one.method == "tools/call"]
        assert call.headers["Cookie"] == "node=7"
        assert call.headers["User-Agent"].startswith("toolscore/")


@pytest.mark.long
def test_lists_of_servers_that_announce_nothing_do_not_age(gateway: GatewayProcess) -> None:
    with field_server() as server, attached(gateway, url=server.url) as process:
        server.tools = ["go", "new"]

        def listed() -> bool:
            return any(tool["name"] == "new" for tool in process.get("/api/v1/tools")["tools"])

        wait_for(listed, 60, "for the new tool")


def paged(pages: dict[Any, Any]) -> Any:
    def answer(asked: Asked) -> None:
        cursor = asked.params.get("cursor")
        asked.result({"tools": [{"name": f"t_{cursor}", "inputSchema": {}}], "nextCursor": pages.get(cursor)})

    return answer


@pytest.mark.parametrize(
    ("pages", "count"), [({None: ""}, 1), ({None: "a", "a": "b", "b": "a"}, 3), ({None: 2, 2: 3}, 3), ({None: None}, 1)]
)
def test_odd_pages_end(gateway: GatewayProcess, pages: dict[Any, Any], count: int) -> None:
    with field_server(tools__list=paged(pages)) as server, attached(gateway, url=server.url) as process:
        assert len(process.get("/list_tools", server_id="web")["tools"]) == count
        assert server.count("tools/list") == count


@pytest.mark.parametrize("entry", [{"type": "sse"}, {"transport": "sse"}, {}])
def test_the_transport_of_2024_is_spoken_and_found_by_itself(gateway: GatewayProcess, entry: dict[str, str]) -> None:
    over = threading.Event()
    answers: queue.Queue[str] = queue.Queue()

    def listen(asked: Asked) -> None:
        asked.handler.send_response(200)
        asked.handler.send_header("Content-Type", "text/event-stream")
        asked.handler.end_headers()
        asked.handler.wfile.write(b"event: endpoint\ndata: /messages?session=1\n\n")
        with suppress(OSError):
            while not over.is_set():
                with suppress(queue.Empty):
                    asked.handler.wfile.write(f"event: message\ndata: {answers.get(timeout=0.1)}\n\n".encode())

    def old(asked: Asked) -> None:
        if not asked.path.startswith("/messages"):
            asked.reply(405, "no", "text/plain")
            return
        results: dict[str, Any] = {
            "initialize": {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {}},
            "tools/list": {"tools": [{"name": "go", "inputSchema": {}}]}, "tools/call": DONE, "ping": {},
        }  # fmt: skip
        if asked.method in results:
            answers.put(json.dumps({"jsonrpc": "2.0", "id": asked.id, "result": results[asked.method]}))
        asked.reply(202, "Accepted", "text/plain")

    with field_server(GET=listen) as server:
        server.answer = old  # type: ignore[method-assign]
        with attached(gateway, url=server.url, **entry):
            assert gateway.server("web")["kind"] == "sse"
            assert gateway.text("web__go") == "done"
        over.set()


def test_a_server_that_is_gone_answers_at_once_and_says_when_it_is_tried_again(gateway: GatewayProcess) -> None:
    with field_server() as server, attached(gateway, url=server.url):
        assert gateway.text("web__go") == "done"
        server.stop()

        def refused() -> dict[str, Any] | None:
            error: dict[str, Any] = gateway.execute("web__go")["error"]
            return error if error["retry_after_seconds"] is not None else None

        error = wait_for(refused, 120, "for the server to be given up for a while")
        assert error["code"] == "upstream_unavailable"
        assert 0 < error["retry_after_seconds"] <= 40
        assert wait_for(lambda: gateway.server("web")["next_try_at"], 60)
