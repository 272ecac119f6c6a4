"""Whose a server's message is, and what goes with it: on pipes and over HTTP, nothing reaches another client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Raw

from toolscore.core.jsonrpc import RemoteError, decode, encode
from toolscore.core.models import Principal, UpstreamSpec
from toolscore.core.peer import Peer
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import declared, required_capability
from toolscore.upstreams.http import HttpConnection, open_streamable_http
from toolscore.upstreams.http_client import http_session
from toolscore.upstreams.in_flight import InFlight

pytestmark = pytest.mark.anyio


class Client(Caller):
    """A client that notes what it is told and answers what it is asked."""

    live = True
    wants_progress = True

    def __init__(self, name: str, **more: Any) -> None:
        super().__init__(Principal(name), client=object(), **more)
        self.told: list[tuple[str, Any]] = []

    def notify(self, method: str, params: Raw | None) -> None:
        self.told.append((method.rpartition("/")[2], decode(params) if params is not None else None))

    async def ask(self, method: str, params: Raw | None) -> Any:
        return {"action": "accept", "content": {}}


class Http:
    """A server with sessions over HTTP, written out, so that it can do what the official SDK's does not."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.resumed: list[str] = []
        self._changes: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._cut = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self._serve(first.split()[0], headers, json.loads(body) if body else {}, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve(self, verb: str, headers: dict[str, str], asked: dict[str, Any], writer: Any) -> None:
        method = asked.get("method", "")
        self.seen.append((f"{verb} {method}".strip(), headers.get("x-user")))
        if verb == "DELETE" or (verb == "POST" and "id" not in asked):
            self._say(writer, "202 Accepted")
        elif verb == "GET":
            self._stream(writer)
            if "last-event-id" not in headers:
                self._changes.set_result(writer)
            elif len(self.resumed) < 2:
                self.resumed.append(headers["last-event-id"])
                self._event(writer, {"method": "notifications/message", "params": {}}, f"cut-{len(self.resumed)}")
                await writer.drain()
                writer.transport.abort()
            else:
                self._event(writer, {"id": self._cut, "result": {"content": []}})
        elif not method:
            self._answer.set_result(asked)
            self._say(writer, "202 Accepted")
        elif method == "initialize":
            info = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "w", "version": "1"}}
            self._say(writer, "200 OK", {"id": asked["id"], "result": info}, "Mcp-Session-Id: s\r\n")
        elif method == "tools/call":
            await getattr(self, asked["params"]["name"])(asked, writer)
        else:
            self._say(writer, "200 OK", {"id": asked["id"], "error": {"code": -32601, "message": "no"}})

    async def progress(self, asked: dict[str, Any], writer: Any) -> None:
        """Tell of progress on the stream that all share, also of what nobody has asked for."""
        changes = await self._changes
        for token in (asked["params"]["_meta"]["progressToken"], 999):
            self._event(
                changes, {"method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}
            )
        await changes.drain()
        await asyncio.sleep(0.2)
        self._say(writer, "200 OK", {"id": asked["id"], "result": {"content": []}})

    async def ask(self, asked: dict[str, Any], writer: Any) -> None:
        self._stream(writer)
        self._event(writer, {"id": "q", "method": "elicitation/create", "params": {"message": "?"}})
        await writer.drain()
        await self._answer
        self._event(writer, {"id": asked["id"], "result": {"content": []}})

    async def cut(self, asked: dict[str, Any], writer: Any) -> None:
        self._cut = asked["id"]
        self._stream(writer)
        self._event(writer, {"method": "notifications/message", "params": {}}, "cut-0")
        await writer.drain()
        writer.transport.abort()

    def _say(self, writer: Any, status: str, body: Any = None, more: str = "") -> None:
        data = b"" if body is None else json.dumps({"jsonrpc": "2.0", **body}).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{more}\r\n"
        writer.write(head.encode() + data)

    def _stream(self, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    def _event(self, writer: Any, message: dict[str, Any], name: str = "") -> None:
        lines = f"id: {name}\nretry: 10\n" if name else ""
        data = f"{lines}data: {json.dumps({'jsonrpc': '2.0', **message})}\n\n".encode()
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Http, HttpConnection]]:
    server = Http()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    spec = UpstreamSpec(url=f"http://127.0.0.1:{port}/mcp", forward_headers=("x-user",))
    try:
        async with (
            http_session() as session,
            open_streamable_http(
                spec, session, on_notification=lambda *_: None, max_message_bytes=100_000, probe=False
            ) as connection,
        ):
            yield server, connection
    finally:
        listening.close()


async def test_progress_on_the_stream_of_all_is_whose_token_it_has() -> None:
    async with served() as (_, connection):
        ada, bob = Client("ada"), Client("bob")
        call = {"name": "progress", "arguments": {}}
        async with asyncio.timeout(30):
            while not connection.hears:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(connection.request("tools/call", dict(call), caller=one) for one in (ada, bob)))
        tokens = [[params["progressToken"] for _, params in one.told] for one in (ada, bob)]
        assert len(tokens[0]) == len(tokens[1]) == 1
        assert tokens[0] != tokens[1]


async def test_an_answer_of_the_client_goes_with_its_own_headers() -> None:
    async with served() as (server, connection):
        ada = Client("ada", headers={"x-user": "u1"}, capabilities={"elicitation": {}})
        async with asyncio.timeout(30):
            await connection.request("tools/call", {"name": "ask", "arguments": {}}, caller=ada)
        assert ("POST", "u1") in server.seen


async def test_a_stream_that_breaks_again_is_resumed_again() -> None:
    async with served() as (server, connection), asyncio.timeout(30):
        assert decode(await connection.request("tools/call", {"name": "cut", "arguments": {}}, caller=Client("ada")))
        assert server.resumed == ["cut-0", "cut-1"]


async def test_progress_of_a_request_that_is_over_is_nobodys() -> None:
    heard: list[str] = []

    async def send(_: bytes) -> None: ...

    peer = Peer(send, on_notification=lambda method, params: heard.append(method))
    mine: list[Any] = []
    asking = asyncio.ensure_future(peer.request("tools/call", on_progress=lambda params: mine.append(decode(params))))
    await asyncio.sleep(0)
    for token in (1, 2, "1"):
        told = {"method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}
        peer.receive(encode({"jsonrpc": "2.0", **told}))
    peer.receive(encode({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}))
    asking.cancel()
    assert [params["progressToken"] for params in mine] == [1, "1"]
    assert heard == ["notifications/message"]


async def test_who_was_sent_to_an_address_hears_that_it_is_done_with() -> None:
    flight = InFlight(("elicitation",))
    ada, bob = Client("ada"), Client("bob", capabilities={"elicitation": {"url": {}}})
    done = "notifications/elicitation/complete"
    with flight.hold(bob):
        refusal = {"code": -32042, "message": "visit", "data": {"elicitations": [{"elicitationId": "E1"}]}}
        with pytest.raises(RemoteError), flight.hold(ada):
            raise RemoteError(refusal)
        asked = Raw(encode({"mode": "url", "elicitationId": "E2", "url": "https://a/", "message": "go"}))
        await flight.answer("elicitation/create", asked, bob)
        for name in ("E1", "E2"):
            assert flight.tell(done, Raw(encode({"elicitationId": name})))
        assert not flight.tell(done, Raw(encode({"elicitationId": "E3"}))), (
            "of whom nothing is known, for whoever listens"
        )
    assert [one.told for one in (ada, bob)] == [
        [("complete", {"elicitationId": "E1"})], [("complete", {"elicitationId": "E2"})]
    ]  # fmt: skip


async def test_who_cannot_use_tools_is_not_asked_to() -> None:
    with_tools = required_capability("sampling/createMessage", Raw(encode({"messages": [], "toolChoice": {}})))
    assert not declared({"sampling": {}}, with_tools)
    assert declared({"sampling": {"tools": {}}}, with_tools)
    assert declared({"sampling": {}}, required_capability("sampling/createMessage", Raw(b'{"messages": []}')))
