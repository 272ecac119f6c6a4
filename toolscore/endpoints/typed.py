"""The typed dialect of the router (docs/wire.md): JSON frames with a `type`, to call tools and to offer them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType
from pydantic import ValidationError

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.calls import Call
from toolscore.core.channels import WebSocketChannel
from toolscore.core.clock import timestamp
from toolscore.core.errors import (
    Conflict,
    InvalidArguments,
    InvalidRequest,
    Overloaded,
    ServerNotFound,
    ToolScoreError,
)
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Principal, Tool, UpstreamSpec
from toolscore.core.tasks import TaskSet
from toolscore.endpoints.asgi import new_request_id
from toolscore.endpoints.views import failure_text, kept_fields
from toolscore.upstreams import Caller
from toolscore.upstreams.websocket import TypedConnection, tool_from_capability

__all__ = ["TypedClient"]

log = structlog.get_logger(__name__)


class ToolSpec(msgspec.Struct):
    """`tool_spec` of `register_tool`."""

    tool_id: str
    capabilities: list[dict[str, Any]]
    name: str = ""
    description: str = ""
    tool_type: str = "mcp_server"
    endpoint: str | None = None
    connection_params: dict[str, Any] | None = None


class TypedFrame(msgspec.Struct):
    """Any frame that a peer sends in the typed dialect."""

    type: str
    request_id: Any = None
    tool_id: str | None = None
    tool_spec: Raw | UnsetType = UNSET
    action: str | None = None
    parameters: Raw = Raw(b"{}")
    timeout_seconds: float | None = None
    cache: bool = True


_typed_frames = msgspec.json.Decoder(TypedFrame)
_tool_specs = msgspec.json.Decoder(ToolSpec)


class TypedClient:
    """A peer of the typed dialect: it may call, register tools, and be called, all over one socket."""

    def __init__(self, gateway: Gateway, channel: WebSocketChannel, principal: Principal) -> None:
        self._gateway = gateway
        self._channel = channel
        self._principal = principal
        self._bound = gateway.settings.current.limits.calls_per_connection
        self._max_frame_bytes = gateway.settings.current.limits.max_frame_bytes
        self._calls = TaskSet()
        self._registered: dict[str, tuple[TypedConnection | None, asyncio.Task[None] | None]] = {}

    async def run(self) -> None:
        try:
            async for message in self._channel.messages():
                await self._take(message)
        finally:
            self._calls.cancel()
            for connection, holder in self._registered.values():
                if connection is not None:
                    connection.closed(self._channel.closed_reason)
                if holder is not None:
                    await asyncio.gather(holder, return_exceptions=True)

    async def _take(self, message: bytes) -> None:
        if len(message) > self._max_frame_bytes:
            await self._error(None, f"a frame of {len(message):,} bytes is over the bound of {self._max_frame_bytes:,}")
            return
        try:
            if not message.isascii():
                message.decode()  # the parameters stay raw, so they are looked at here
            frame = _typed_frames.decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            await self._error(None, f"not a frame: {exc}")
            return
        match frame.type:
            case "execute_tool":
                if len(self._calls) >= self._bound:
                    full = Overloaded(f"{self._bound} calls are in flight on this socket: wait for one to end")
                    await self._reply_failed(frame, full)
                    return
                self._calls.start(self._execute(frame))
            case "execute_tool_action_response":
                connection, _ = self._registered.get(frame.tool_id or "", (None, None))
                if connection is not None:
                    answer = decode(message)
                    connection.answered(answer)
            case "register_tool":
                await self._answer(frame, "register_tool_response", self._register(frame))
            case "unregister_tool":
                await self._answer(frame, "unregister_tool_response", self._unregister(frame))
            case "list_tools":
                self._gateway.upstreams.tools_are_listed()
                tools = self._list()
                await self._send(
                    {
                        "type": "list_tools_response",
                        "request_id": frame.request_id,
                        "success": True,
                        "tools": tools,
                        "total_count": len(tools),
                    }
                )
            case "ping":
                await self._send({"type": "pong", "request_id": frame.request_id, "timestamp": timestamp()})
            case _:
                await self._error(
                    frame.request_id,
                    f"unknown type {frame.type!r:.80}: expected execute_tool, list_tools, register_tool, "
                    "unregister_tool or ping",
                )

    # Calling

    async def _execute(self, frame: TypedFrame) -> None:
        try:
            if frame.tool_id is None:
                raise InvalidRequest("execute_tool needs `tool_id`")
            if frame.timeout_seconds is not None and frame.timeout_seconds <= 0:
                raise InvalidArguments("`timeout_seconds` must be above 0")
            call = Call(
                frame.tool_id,
                frame.parameters,
                caller=Caller(self._principal),
                request_id=new_request_id(),
                action=frame.action,
                timeout_seconds=frame.timeout_seconds,
                use_cache=frame.cache,
            )
            result = await self._gateway.calls.call(call)
        except ToolScoreError as exc:
            await self._reply_failed(frame, exc)
            return
        except Exception:  # a request's outermost line
            log.exception("a call failed inside the gateway", tool=frame.tool_id)
            await self._reply_failed(frame, ToolScoreError("the gateway failed; its log has the details"))
            return
        await self._send(
            {
                "type": "execute_tool_response",
                "request_id": frame.request_id,
                "tool_id": frame.tool_id,
                "action": frame.action,
                "success": not result.is_error,
                "result": {
                    "content": result.content,
                    "structured_content": result.structured_content,
                    "is_error": result.is_error,
                },
                "cached": kept_fields(result),
                "error": failure_text(result) if result.is_error else None,
                "error_type": "tool_error" if result.is_error else None,
            }
        )

    async def _reply_failed(self, frame: TypedFrame, exc: ToolScoreError) -> None:
        await self._send(
            {
                "type": "execute_tool_response",
                "request_id": frame.request_id,
                "tool_id": frame.tool_id,
                "action": frame.action,
                "success": False,
                "result": None,
                "error": exc.text,
                "error_type": exc.code,
            }
        )

    def _list(self) -> list[dict[str, Any]]:
        """The servers with their tools as capabilities: what this dialect calls a tool."""
        servers: dict[str, list[Tool]] = {}
        sees = self._gateway.permissions.sees(self._principal)
        for tool in self._gateway.library:
            if sees is not None and not sees(tool):
                continue
            servers.setdefault(tool.server_id, []).append(tool)
        listed = []
        for server_id, tools in servers.items():
            upstream = self._gateway.upstreams.find(server_id)
            listed.append(
                {
                    "tool_id": server_id,
                    "name": server_id,
                    "description": upstream.spec.description if upstream is not None else "",
                    "tool_type": "mcp_server",
                    "enabled": self._gateway.library.available(tools[0]),
                    "capabilities": [
                        {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
                        for tool in tools
                    ],
                }
            )
        return listed

    # Registering

    async def _register(self, frame: TypedFrame) -> str:
        need_scope(self._principal, ADMIN)
        if not isinstance(frame.tool_spec, Raw):
            raise InvalidRequest("register_tool needs `tool_spec`, an object")
        try:
            spec = _tool_specs.decode(frame.tool_spec)
        except msgspec.MsgspecError as exc:
            raise InvalidRequest(f"`tool_spec` does not fit: {exc}") from exc
        tools = [tool_from_capability(capability) for capability in spec.capabilities]
        if not tools:
            raise InvalidRequest("`capabilities` is empty: name at least one")
        if spec.tool_id in self._registered:
            raise Conflict(f"{spec.tool_id!r} is registered on this socket already: unregister it first")
        if spec.endpoint is not None:
            try:
                upstream_spec = UpstreamSpec(
                    endpoint=spec.endpoint, capabilities=tuple(spec.capabilities), description=spec.description
                )
            except ValidationError as exc:
                raise InvalidRequest(
                    f"`endpoint` must be a ws:// or ws+unix:// address, found {spec.endpoint!r}"
                ) from exc
            await self._gateway.attach(spec.tool_id, upstream_spec)
            self._registered[spec.tool_id] = (None, None)
            return f"{spec.tool_id!r} is registered: the gateway connects to {spec.endpoint}"
        upstream = self._gateway.upstreams.dialled(spec.tool_id)
        if upstream is None:
            await self._gateway.attach(spec.tool_id, UpstreamSpec(dialin=True, description=spec.description))
            upstream = self._gateway.upstreams.get(spec.tool_id)
        connection = TypedConnection(self._channel.send, spec.tool_id, tools)
        ready = asyncio.Event()

        async def hold() -> None:
            async with upstream.instance(connection):
                ready.set()
                await connection.wait_closed()

        holder = asyncio.create_task(hold())
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({holder, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if holder.done():
            holder.result()
        self._registered[spec.tool_id] = (connection, holder)
        return f"{spec.tool_id!r} is registered with {len(tools)} tool{'s' if len(tools) != 1 else ''}"

    async def _unregister(self, frame: TypedFrame) -> str:
        if frame.tool_id is None:
            raise InvalidRequest("unregister_tool needs `tool_id`")
        if frame.tool_id not in self._registered:
            raise ServerNotFound(f"{frame.tool_id!r} was not registered on this socket")
        connection, holder = self._registered.pop(frame.tool_id)
        if connection is not None and holder is not None:
            connection.closed("it was unregistered")
            await asyncio.gather(holder, return_exceptions=True)
        upstream = self._gateway.upstreams.find(frame.tool_id)
        if (upstream is not None and not upstream.connections) or connection is None:
            with contextlib.suppress(ServerNotFound, Conflict):
                await self._gateway.detach(frame.tool_id)
        return f"{frame.tool_id!r} is gone"

    # Writing

    async def _answer(self, frame: TypedFrame, kind: str, work: Any) -> None:
        reply: dict[str, Any] = {"type": kind, "request_id": frame.request_id}
        try:
            await self._send({**reply, "success": True, "message": await work})
        except ToolScoreError as exc:
            await self._send({**reply, "success": False, "message": exc.text, "error_type": exc.code})

    async def _error(self, request_id: Any, message: str) -> None:
        await self._send(
            {"type": "error", "request_id": request_id, "message": message, "error_type": "invalid_request"}
        )

    async def _send(self, frame: dict[str, Any]) -> None:
        await self._channel.try_send(encode(frame))
