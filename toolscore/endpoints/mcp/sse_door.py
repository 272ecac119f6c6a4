"""The door for clients of 2024-11-05: `GET /sse` opens a stream that says where to POST, and brings the answers.

What is said on it is the conversation that a WebSocket carries (`socket.py`); here are only the two halves of the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import msgspec
from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.core.errors import Forbidden, InvalidRequest, Overloaded, ToolNotFound, ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost
from toolscore.core.models import Principal
from toolscore.endpoints.asgi import (
    SSE_COMMENT_SECONDS,
    SSE_HEADERS,
    Receive,
    Scope,
    Send,
    principal_of,
    read_body,
    send_json,
    sse_event,
)
from toolscore.endpoints.mcp.socket import McpSocketClient
from toolscore.replicas.hop import Link
from toolscore.replicas.wire import Answer, answer_of, failure_of

__all__ = ["MESSAGES_PATH", "SSE_PATH", "SseDoor"]

SSE_PATH, MESSAGES_PATH = "/sse", "/messages"
MAX_STREAMS = 1000
MAX_WAITING = 64
"""Messages of one client that were not taken yet."""
MAX_UNSENT = 256
"""Messages for one client that were not written yet; then whoever sends waits."""


class _Channel:
    """Whole messages over a stream and POSTs, as `core.channels.WebSocketChannel` has them over a WebSocket."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.closed_reason = "the stream was closed"
        self.outgoing: asyncio.Queue[bytes] = asyncio.Queue(MAX_UNSENT)
        self._incoming: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)

    def take(self, message: bytes) -> None:
        """Take a message that was POSTed.

        Raises:
            Overloaded: too many wait.
        """
        try:
            self._incoming.put_nowait(message)
        except asyncio.QueueFull:
            raise Overloaded(f"{MAX_WAITING} messages wait on this stream", retry_after_seconds=1) from None

    async def send(self, message: bytes) -> None:
        await self.outgoing.put(message)

    async def try_send(self, message: bytes) -> None:
        await self.outgoing.put(message)

    async def messages(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._incoming.get()


class _Posted(msgspec.Struct):
    """A message that was POSTed to another gateway. `name`: of its stream."""

    name: str
    principal: Principal
    body: str


class SseDoor:
    """Streams of clients, by the id that their POSTs name."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._channels: dict[str, _Channel] = {}
        if gateway.replicas is not None:
            gateway.replicas.hops.served["sse/message"] = (_Posted, self._posted)

    async def open(self, scope: Scope, receive: Receive, send: Send, server_id: str | None = None) -> None:
        """Serve a stream to its end.

        Args:
            server_id: the only server that is shown; `None`: all.

        Raises:
            ServerNotFound, Overloaded.
        """
        principal = principal_of(scope)
        if server_id is not None:
            self._gateway.find_server(principal, server_id)
        if len(self._channels) >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} streams are open", retry_after_seconds=5)
        replicas = self._gateway.replicas
        name = (f"{replicas.members.id}." if replicas is not None else "") + secrets.token_urlsafe(24)
        channel = _Channel(principal)
        self._channels[name] = channel
        client = asyncio.ensure_future(McpSocketClient(self._gateway, channel, server_id, principal).run())
        gone = asyncio.ensure_future(_gone(receive))
        prefix = urlsplit(self._gateway.settings.current.access.public_url or "").path.rstrip("/")
        place = f"{prefix}{MESSAGES_PATH}?session_id={name}".encode()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
            await _write(send, sse_event(place, event="endpoint"))
            while not gone.done() and not client.done():
                next_one = asyncio.ensure_future(channel.outgoing.get())
                await asyncio.wait(
                    {next_one, gone, client}, timeout=SSE_COMMENT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if next_one.done():
                    await _write(send, sse_event(next_one.result()))
                else:
                    next_one.cancel()
                    await _write(send, b": still here\n\n")
            await send({"type": "http.response.body", "body": b""})
        finally:
            del self._channels[name]
            for task in (client, gone):
                task.cancel()
            await asyncio.gather(client, gone, return_exceptions=True)

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a message for a stream.

        Raises:
            InvalidRequest, ToolNotFound, Forbidden, Overloaded, PayloadTooLarge.
        """
        if scope["method"] != "POST":
            await send_json(send, 405, b"", [(b"allow", b"POST")])
            return
        given = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        name = (given.get("session_id") or given.get("sessionId") or [""])[0]
        if not name:
            raise InvalidRequest("`session_id` is missing: open a stream first (GET /sse), which names where to POST")
        principal = principal_of(scope)
        body = await read_body(scope, receive, self._gateway.settings.current.limits.max_body_bytes)
        if name in self._channels or not await self._pass_on(name, principal, body):
            self._take(name, principal, body)
        await send_json(send, 202, b"")

    def _take(self, name: str, principal: Principal, body: bytes) -> None:
        channel = self._channels.get(name)
        if channel is None:
            raise ToolNotFound("there is no such stream: open another (GET /sse)")
        if channel.principal != principal:
            raise Forbidden("the stream is somebody else's")
        channel.take(body)

    async def _pass_on(self, name: str, principal: Principal, body: bytes) -> bool:
        """Give a message to the gateway that has its stream. Returns whether there is one.

        Raises:
            ToolScoreError: it does not take it.
        """
        replicas, instance = self._gateway.replicas, name.partition(".")[0]
        if replicas is None or instance == name or not await replicas.members.is_there(instance):
            return False
        posted = {"name": name, "principal": principal, "body": body.decode("utf-8", "surrogateescape")}
        try:
            link = await replicas.hops.to(instance)
            answer_of(msgspec.json.decode(await link.ask("sse/message", posted), type=Answer))
        except ConnectionLost:
            return False
        return True

    async def _posted(self, _: Link, posted: _Posted) -> Answer:
        try:
            self._take(posted.name, posted.principal, posted.body.encode("utf-8", "surrogateescape"))
        except ToolScoreError as exc:
            return failure_of(exc)
        return Answer(result=Raw(b"{}"))


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _gone(receive: Receive) -> None:
    """Return when the client has hung up."""
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
