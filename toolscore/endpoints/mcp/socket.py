"""MCP over one WebSocket, in either era: a client of the router's dialect `mcp`, or of `/mcp` at the HTTP port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.core.channels import Channel
from toolscore.core.errors import InvalidRequest, PayloadTooLarge
from toolscore.core.jsonrpc import (
    ConnectionLost,
    RemoteError,
    RequestId,
    decode,
    decode_frame,
    decode_object,
    error_frame,
)
from toolscore.core.models import Principal
from toolscore.core.peer import Peer
from toolscore.core.tasks import TaskSet
from toolscore.endpoints.asgi import Receive, Send, new_request_id
from toolscore.endpoints.mcp.callers import SessionCaller, StatelessCaller, envelope_of, may_wait
from toolscore.endpoints.mcp.conversation import Conversation
from toolscore.endpoints.mcp.listener import Listener, open_listener, watch_resource
from toolscore.endpoints.mcp.params import Members, read_params
from toolscore.endpoints.mcp.server import WATCHING, McpServer
from toolscore.endpoints.mcp.suspended import StatelessCalls
from toolscore.upstreams.protocol import META

__all__ = ["AsgiChannel", "McpSocketClient"]

MAX_UNSENT = 1000
"""Notifications that wait to be written; the next are dropped, answers never are."""


class McpSocketClient(Conversation):
    """One client of the `mcp` dialect; its first request fixes the era."""

    def __init__(self, gateway: Gateway, channel: Channel, server_id: str | None, principal: Principal) -> None:
        super().__init__(principal)
        self._gateway = gateway
        self._channel = channel
        self._server = McpServer(gateway, server_id)
        self._stateless_era: bool | None = None
        self._side = TaskSet()
        limits = gateway.settings.current.limits
        self._input_seconds = limits.input_seconds
        self._suspended: StatelessCalls | None = None
        self._peer = Peer(
            channel.send,
            on_request=self._request,
            on_notification=self._notified,
            max_in_flight=limits.calls_per_connection,
        )

    async def run(self) -> None:
        try:
            bound = self._gateway.settings.current.limits.max_frame_bytes
            async for message in self._channel.messages():
                if len(message) > bound:
                    large = PayloadTooLarge(f"a frame of {len(message):,} bytes is over the bound of {bound:,}")
                    await self._channel.try_send(error_frame(_id_of(message), large.rpc_error()))
                    continue
                self._peer.receive(message)
        finally:
            self._peer.close(self._channel.closed_reason)
            self._side.cancel()
            if self._suspended is not None:
                self._suspended.close()
            if self.listener is not None:
                self.listener.close()
            self._gateway.upstreams.client_gone(self)

    async def _request(self, method: str, params: Raw | None, request_id: RequestId) -> Any:
        members = read_params(params)
        if self._stateless_era is None:
            self._stateless_era = method != "initialize" and f"{META}protocolVersion" in (members.get("_meta") or {})
        if method == "initialize" and not self._stateless_era:
            return await self._initialize(members)
        if method == "subscriptions/listen" and self._stateless_era:
            return await self._listen(members, request_id)
        ours = new_request_id()
        if self._stateless_era:
            return await self._answer_stateless(method, members, ours)
        if method in WATCHING:
            return await self._watch(method, members)
        token = (members.get("_meta") or {}).get("progressToken")
        return await self._server.handle(
            method, members, SessionCaller(self, self.tell, self.ask, token), request_id=ours
        )

    async def _initialize(self, members: Members) -> Any:
        declared = decode(members["capabilities"]) if "capabilities" in members else None
        self.capabilities = declared if isinstance(declared, dict) else {}
        return await self._server.initialize(members)

    async def _answer_stateless(self, method: str, members: Members, request_id: str) -> Any:
        envelope = envelope_of(members)
        if envelope.error is not None:
            raise RemoteError(envelope.error)
        caller = StatelessCaller(members, envelope, self.tell, self.principal)
        if not may_wait(method, members, caller):
            return await self._server.handle(method, members, caller, request_id=request_id)
        if self._suspended is None:
            self._suspended = StatelessCalls(self._input_seconds, self._gateway.ring, self._gateway.identity)
        return await self._suspended.carry_out(
            caller,
            method,
            members,
            lambda opened: self._server.handle(method, opened, caller, request_id=request_id),
        )

    async def _watch(self, method: str, members: Members) -> Any:
        await watch_resource(self._server, self.listener, method, members)
        return {}

    def _notified(self, method: str, _params: Raw | None) -> None:
        if method == "notifications/initialized" and self.listener is None:
            self.listener = Listener(self._gateway, self._server, self, self.tell, lambda: None)
        elif method == "notifications/roots/list_changed":
            self._gateway.upstreams.roots_changed(self)

    async def ask(self, method: str, params: Raw | None) -> Any:
        try:
            async with asyncio.timeout(self._input_seconds):
                return await self._peer.request(method, decode_object(params) if params is not None else None)
        except TimeoutError:
            raise RemoteError({"code": -32603, "message": f"the client did not answer {method} in time"}) from None
        except ConnectionLost as exc:
            raise RemoteError({"code": -32603, "message": f"the client has gone: {exc.reason}"}) from exc

    async def _listen(self, members: Members, request_id: RequestId) -> Any:
        wrong = envelope_of(members).error
        if wrong is not None:
            raise RemoteError(wrong)
        meta = {f"{META}subscriptionId": request_id}
        ending = asyncio.Event()
        listener = await open_listener(
            self._gateway, self._server, members, meta, self.tell, ending.set, self.principal
        )
        try:
            await ending.wait()
        finally:
            listener.close()
        return {"resultType": "complete", "_meta": meta}

    def tell(self, method: str, params: Any) -> None:
        if len(self._side) < MAX_UNSENT:  # notifications may be dropped, answers never
            self._side.start(self._peer.notify(method, params))


class AsgiChannel:
    """A WebSocket of the HTTP port, accepted."""

    closed_reason = "the WebSocket closed"

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def send(self, message: bytes) -> None:
        """Write one message. Waits while the other side does not read.

        Raises:
            ConnectionResetError: the socket is closed.
        """
        try:
            await self._send({"type": "websocket.send", "text": message.decode("utf-8", "replace")})
        except (OSError, RuntimeError) as exc:  # RuntimeError: uvicorn's word for a socket that is closed
            raise ConnectionResetError(self.closed_reason) from exc

    async def try_send(self, message: bytes) -> None:
        """Write one message, unless the socket is closed."""
        with contextlib.suppress(ConnectionResetError):
            await self.send(message)

    async def messages(self) -> AsyncIterator[bytes]:
        """What arrives, until the socket closes; `closed_reason` then says why."""
        while (message := await self._receive())["type"] == "websocket.receive":
            yield message.get("bytes") or (message.get("text") or "").encode("utf-8", "replace")
        self.closed_reason = f"the WebSocket closed ({message.get('code', 1005)})"


def _id_of(message: bytes) -> RequestId | None:
    with contextlib.suppress(InvalidRequest):
        found = decode_frame(message).id
        return found if isinstance(found, int | str) else None
    return None
