"""Servers on a WebSocket: those that dialled in (in both dialects of docs/wire.md) and those whose endpoint we dial.

`toolscore.v1` is typed frames; it is translated here, so that behind this module everything is MCP.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from msgspec import Raw

from toolscore.core.channels import dial
from toolscore.core.errors import InvalidRequest, UpstreamProtocolError
from toolscore.core.jsonrpc import METHOD_NOT_FOUND, ConnectionLost, NotSent, Params, RemoteError, decode, encode
from toolscore.core.models import UpstreamSpec
from toolscore.core.peer import Peer
from toolscore.upstreams.caller import EVERYBODY, Caller, ClientSide, OnAsked
from toolscore.upstreams.connection import Hearing, OnNotification, PeerConnection
from toolscore.upstreams.http_client import tls_for
from toolscore.upstreams.protocol import LATEST_SESSION_VERSION, ServerInfo

__all__ = ["TypedConnection", "open_endpoint", "open_websocket", "tool_from_capability"]


def tool_from_capability(capability: dict[str, Any]) -> dict[str, Any]:
    """An MCP tool of a `CAP` (docs/wire.md), whose `parameters` is a JSON Schema or the flat map of older servers.

    Raises:
        InvalidRequest: what is wrong with it.
    """
    name = capability.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"a capability needs a `name`, found {capability!r:.200}")
    parameters = capability.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"`parameters` of capability {name!r} must be an object, found {parameters!r:.200}")
    tool: dict[str, Any] = {
        "name": name,
        "description": str(capability.get("description") or ""),
        "inputSchema": _schema(name, parameters),
    }
    extra = {key: capability[key] for key in ("examples", "category") if capability.get(key)}
    if extra:
        tool["_meta"] = {f"toolscore/{key}": value for key, value in extra.items()}
    return tool


def _schema(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    if parameters.get("type") == "object" or "$schema" in parameters or "$ref" in parameters:
        return {"type": "object", **parameters}
    properties: dict[str, Any] = {}
    required = []
    for parameter, described in parameters.items():
        if not isinstance(described, dict):
            raise InvalidRequest(f"parameter {parameter!r} of capability {name!r} must be an object")
        properties[parameter] = {key: value for key, value in described.items() if key != "required"}
        if described.get("required") is True:
            required.append(parameter)
    return {"type": "object", "properties": properties, "required": required}


class TypedConnection:
    """A server that speaks `toolscore.v1`, seen as an MCP server.

    Args:
        send: writes one frame.
        tool_id: the id it registered under.
        tools: its capabilities as MCP tools.
    """

    elsewhere = False

    def __init__(self, send: Callable[[bytes], Awaitable[None]], tool_id: str, tools: list[dict[str, Any]]) -> None:
        self._send = send
        self._tool_id = tool_id
        self._tools = tools
        self._ids = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Raw]] = {}
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.info = ServerInfo(
            protocol_version=LATEST_SESSION_VERSION, implementation={"name": tool_id}, capabilities={"tools": {}}
        )
        self.in_flight = 0
        self.log_level: str | None = None
        self.hearing = Hearing()

    async def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Raw:
        if method == "tools/list":
            return Raw(encode({"tools": self._tools}))
        if method != "tools/call":
            raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"method not found: {method}"})
        if self._closed.done():
            raise ConnectionLost(self._closed.result(), sent=False)
        params = params or {}
        request_id = f"ts-{next(self._ids)}"
        frame = {
            "type": "execute_tool_action",
            "request_id": request_id,
            "tool_id": self._tool_id,
            "action": params["name"],
            "parameters": params.get("arguments") or {},
        }
        answer: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            await self._send(encode(frame))
            return await answer
        except OSError as exc:  # what breaks while it is written may have arrived
            raise ConnectionLost(str(exc), sent=not isinstance(exc, NotSent)) from exc
        finally:
            self._waiting.pop(request_id, None)

    def receive(self, message: bytes) -> None:
        """Take one message; of those of this dialect only answers count here."""
        try:
            frame = decode(message)
        except InvalidRequest:
            return
        if isinstance(frame, dict) and frame.get("type") == "execute_tool_action_response":
            self.answered(frame)

    def answered(self, frame: dict[str, Any]) -> None:
        """Take an `execute_tool_action_response`. One that nobody waits for is dropped."""
        answer = self._waiting.get(str(frame.get("request_id")))
        if answer is None or answer.done():
            return
        result = frame.get("result")
        if not isinstance(result, dict) or not isinstance(result.get("success"), bool):
            answer.set_exception(
                UpstreamProtocolError("execute_tool_action_response needs `result: {success, data, …}`")
            )
            return
        answer.set_result(Raw(encode(_call_result(result))))

    async def notify(self, method: str, params: Params | None = None) -> None:
        """This dialect has no notifications."""

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def closed(self, reason: str) -> None:
        """The socket ended: whoever waits learns it now. Idempotent."""
        if not self._closed.done():
            self._closed.set_result(reason)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost(reason, sent=True))


def _call_result(result: dict[str, Any]) -> dict[str, Any]:
    """MCP's `CallToolResult` of `{success, data, error, error_type}`."""
    data = result.get("data")
    if not result["success"]:
        kind = result.get("error_type")
        text = f"{kind}: {result.get('error')}" if kind else str(result.get("error"))
        return {"content": [{"type": "text", "text": text}], "isError": True}
    if isinstance(data, dict) and isinstance(data.get("content"), list):
        return data  # it speaks MCP's shape inside its own
    text = data if isinstance(data, str) else encode(data).decode()
    answer: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
    if isinstance(data, dict):
        answer["structuredContent"] = data
    return answer


@asynccontextmanager
async def open_websocket(
    spec: UpstreamSpec,
    *,
    on_notification: OnNotification,
    max_message_bytes: int,
    probe: bool = True,
    side: ClientSide = EVERYBODY,
    on_asked: OnAsked = lambda unasked: None,
) -> AsyncIterator[PeerConnection]:
    """Dial a server that speaks MCP over a WebSocket, as the official SDK 1.x offers it, and negotiate with it.

    Args:
        probe: ask for the stateless era first.
        side: for whom the connection is made.
        on_asked: told when the server asks something of its clients.

    Raises:
        ConnectionLost: nobody there, or it left. RemoteError, UpstreamProtocolError.
    """
    assert spec.url is not None
    try:
        async with dial(
            spec.url, subprotocol="mcp", max_frame_bytes=max_message_bytes, headers=spec.headers, tls=tls_for(spec)
        ) as channel:
            make_peer = partial(Peer, channel.send, on_junk=lambda _: None, lenient=True)
            connection = PeerConnection(make_peer, on_notification, spec.client_features, side, on_asked)
            reader = asyncio.create_task(channel.feed(connection.peer.receive, connection.closed))
            try:
                await connection.negotiate(probe=probe)
                yield connection
            finally:
                reader.cancel()
                connection.closed("the server was detached")
    except ConnectionError as exc:
        raise ConnectionLost(str(exc), sent=False) from exc


@asynccontextmanager
async def open_endpoint(
    server_id: str, spec: UpstreamSpec, *, max_message_bytes: int
) -> AsyncIterator[TypedConnection]:
    """Dial the `endpoint` that a server registered and keep one connection to it.

    Raises:
        ConnectionLost: nobody there.
    """
    assert spec.endpoint is not None
    tools = [tool_from_capability(capability) for capability in spec.capabilities]
    try:
        async with dial(spec.endpoint, subprotocol=None, max_frame_bytes=max_message_bytes) as channel:
            connection = TypedConnection(channel.send, server_id, tools)
            reader = asyncio.create_task(channel.feed(connection.receive, connection.closed))
            try:
                yield connection
            finally:
                reader.cancel()
                connection.closed("the server was detached")
    except ConnectionError as exc:
        raise ConnectionLost(str(exc), sent=False) from exc
