"""The WebSocket MCP router (WIRE.md 3): clients that call, and servers that dial in, over TCP or a Unix socket.

The sub-protocol chooses the dialect: `mcp` is JSON-RPC; none or `toolscore.v1` is typed frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import os
import socket as socketlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType
from pydantic import ValidationError
from websockets.asyncio.server import ServerConnection, serve, unix_serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from toolscore.access.auth import ADMIN, check_origin, is_loopback, need_scope
from toolscore.app.gateway import Gateway
from toolscore.core.channels import WebSocketChannel
from toolscore.core.errors import (
    Conflict,
    Forbidden,
    InvalidArguments,
    InvalidRequest,
    MethodNotFound,
    Overloaded,
    PayloadTooLarge,
    ServerNotFound,
    ToolScoreError,
    Unauthenticated,
)
from toolscore.core.jsonrpc import (
    ConnectionLost,
    Peer,
    RemoteError,
    RequestId,
    decode,
    decode_frame,
    decode_object,
    encode,
    error_frame,
    result_frame,
)
from toolscore.core.models import Principal, Tool, ToolCall, UpstreamSpec, timestamp
from toolscore.endpoints.asgi import new_request_id
from toolscore.endpoints.mcp.callers import (
    SessionCaller,
    StatelessCaller,
    StatelessCalls,
    envelope_error,
    log_level_of,
    may_wait,
)
from toolscore.endpoints.mcp.server import (
    WATCHING,
    Listener,
    McpServer,
    Members,
    open_listener,
    read_params,
    watch_resource,
)
from toolscore.upstreams import Caller
from toolscore.upstreams.connection import PeerConnection
from toolscore.upstreams.protocol import META
from toolscore.upstreams.websocket import TypedConnection, tool_from_capability

__all__ = ["serve_router"]

log = structlog.get_logger(__name__)

REGISTER_PATH = "/register"
REGISTER_SECONDS = 10
"""How long a server that dialled in may take to say who it is."""

MCP = Subprotocol("mcp")
TYPED = Subprotocol("toolscore.v1")


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


_typed_frames = msgspec.json.Decoder(TypedFrame)
_tool_specs = msgspec.json.Decoder(ToolSpec)


@asynccontextmanager
async def serve_router(gateway: Gateway, sockets: list[socketlib.socket]) -> AsyncIterator[None]:
    """Serve the router on TCP sockets that are bound already, and on the Unix socket of the settings.

    Leaving tells those inside (1001), waits for them, bounded, and removes the Unix socket.
    """
    settings = gateway.settings.current
    service = settings.core_services.toolscore_mcp
    router = _Router(gateway, service.endpoint)
    options: dict[str, Any] = {
        "subprotocols": [MCP, TYPED],
        "select_subprotocol": _choose,
        "process_request": router.check,
        # Servers that dialled in may answer as much as others; a client's frame is held to its own bound below.
        "max_size": max(settings.limits.max_frame_bytes, settings.limits.max_result_bytes),
        "compression": None,
        "ping_interval": settings.servers.heartbeat_seconds,
        "ping_timeout": max(1.0, settings.servers.dead_after_seconds - settings.servers.heartbeat_seconds),
        "close_timeout": 2,
        "server_header": None,
    }
    async with AsyncExitStack() as stack:
        for listening in sockets:
            await stack.enter_async_context(serve(router.serve, sock=listening, **options))
        if service.unix_socket:
            path = Path(service.unix_socket)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_socket():
                path.unlink()  # left by a gateway that was killed
            umask = os.umask(0o177)
            try:
                await stack.enter_async_context(unix_serve(router.serve, str(path), **options))
            finally:
                os.umask(umask)
            stack.callback(path.unlink, missing_ok=True)
        yield


def _choose(_connection: ServerConnection, offered: Any) -> Subprotocol | None:
    return MCP if MCP in offered else TYPED if TYPED in offered else None


def _single_server(path: str) -> str | None:
    """The server of `/servers/{server_id}/mcp`."""
    if path.startswith("/servers/") and path.endswith("/mcp"):
        return path[len("/servers/") : -len("/mcp")] or None
    return None


class _Router:
    """Hands each connection to its dialect."""

    def __init__(self, gateway: Gateway, endpoint: str) -> None:
        self._gateway = gateway
        self._endpoint = endpoint
        self._principals: WeakKeyDictionary[ServerConnection, Principal] = WeakKeyDictionary()

    async def check(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse foreign web pages, unknown paths and unknown callers before the handshake."""
        path = request.path.partition("?")[0]
        if path not in (self._endpoint, REGISTER_PATH) and _single_server(path) is None:
            return connection.respond(
                http.HTTPStatus.NOT_FOUND,
                f"nothing at {path}: clients connect to {self._endpoint} or /servers/{{server_id}}/mcp, "
                f"servers that dial in to {REGISTER_PATH}\n",
            )
        try:
            check_origin(
                request.headers.get("Host"),
                request.headers.get("Origin"),
                self._gateway.settings.current.access.allowed_hosts,
            )
            authorization, api_key = request.headers.get("Authorization"), request.headers.get("X-API-Key")
            principal = await self._gateway.auth.authenticate(authorization, api_key, local=self._local(connection))
            if path == REGISTER_PATH:
                need_scope(principal, ADMIN)
        except Forbidden as exc:
            return connection.respond(http.HTTPStatus.FORBIDDEN, f"{exc.message}\n")
        except Unauthenticated as exc:
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, f"{exc.message}\n")
        self._principals[connection] = principal
        return None

    def _local(self, connection: ServerConnection) -> bool:
        """Whether a caller is on this machine: over the Unix socket, or a port that is open to loopback only."""
        settings = self._gateway.settings.current
        over_unix = isinstance(connection.local_address, str | bytes | None)
        host = settings.core_services.toolscore_mcp.host
        return over_unix or settings.access.allow_unauthenticated or is_loopback(host)

    async def serve(self, socket: ServerConnection) -> None:
        channel = WebSocketChannel(socket)
        path = socket.request.path.partition("?")[0] if socket.request else self._endpoint
        principal = self._principals[socket]
        try:
            if socket.subprotocol != MCP:
                await _TypedClient(self._gateway, channel, principal).run()
            elif path == REGISTER_PATH:
                await _serve_registered(self._gateway, channel)
            else:
                server_id = _single_server(path)
                if server_id is not None:
                    self._gateway.upstreams.get(server_id)
                await _McpClient(self._gateway, channel, server_id, principal).run()
        except ServerNotFound as exc:
            await channel.close(1008, f"{exc.message}; {exc.suggestion}"[:120])
        except Exception:  # a connection's outermost line
            log.exception("serving a WebSocket failed", path=path)
            await channel.close(1011, "the gateway failed")


class _McpClient(Caller):
    """A client of the `mcp` dialect; its first request fixes the era. As a `Caller`, itself between requests."""

    live = True

    def __init__(
        self, gateway: Gateway, channel: WebSocketChannel, server_id: str | None, principal: Principal
    ) -> None:
        super().__init__(principal)
        self._gateway = gateway
        self._channel = channel
        self._server = McpServer(gateway, server_id)
        self._stateless_era: bool | None = None
        self._side: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None
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
                    await _try_send(self._channel, error_frame(None, large.rpc_error()))
                    continue
                self._peer.receive(message)
        finally:
            self._peer.close(self._channel.closed_reason)
            for task in self._side:
                task.cancel()
            if self._suspended is not None:
                self._suspended.close()
            if self._listener is not None:
                self._listener.close()
            self._gateway.upstreams.client_gone(self)

    async def _request(self, method: str, params: Raw | None, request_id: RequestId) -> Any:
        members = read_params(params)
        if self._stateless_era is None:
            self._stateless_era = method != "initialize" and f"{META}protocolVersion" in (members.get("_meta") or {})
        if method == "initialize" and not self._stateless_era:
            return await self._initialize(members)
        if method == "subscriptions/listen" and self._stateless_era:
            return await self._listen(members, request_id)
        ours = new_request_id(None)
        if self._stateless_era:
            return await self._answer_stateless(method, members, ours)
        if method in WATCHING:
            return await self._watch(method, members)
        token = (members.get("_meta") or {}).get("progressToken")
        return await self._server.handle(
            method, members, SessionCaller(self, self._tell, self.ask, token), request_id=ours
        )

    async def _initialize(self, members: Members) -> Any:
        declared = decode(members["capabilities"]) if "capabilities" in members else None
        self.capabilities = declared if isinstance(declared, dict) else {}
        return await self._server.initialize(members)

    async def _answer_stateless(self, method: str, members: Members, request_id: str) -> Any:
        wrong = envelope_error(members)
        if wrong is not None:
            raise RemoteError(wrong)
        caller = StatelessCaller(members, self._tell, self.principal)
        if not may_wait(method, members, caller):
            return await self._server.handle(method, members, caller, request_id=request_id)
        if self._suspended is None:
            self._suspended = StatelessCalls(self._input_seconds)
        return await self._suspended.carry_out(
            caller,
            method,
            members,
            lambda opened: self._server.handle(method, opened, caller, request_id=request_id),
        )

    async def _watch(self, method: str, members: Members) -> Any:
        if self._listener is None or "resources" not in self._server.capabilities:
            raise MethodNotFound(f"method not found: {method}: no server here has resources")
        await watch_resource(self._listener, method, members)
        return {}

    def _notified(self, method: str, _params: Raw | None) -> None:
        if method == "notifications/initialized" and self._listener is None:
            self._listener = Listener(self._gateway, self._server, self, self._tell, lambda: None)
        elif method == "notifications/roots/list_changed":
            self._gateway.upstreams.roots_changed(self)

    def notify(self, method: str, params: Raw | None) -> None:
        if method == "notifications/message" and not (self.log_level and self.hears(log_level_of(params))):
            return
        self._tell(method, params)

    def announce(self, server_id: str, method: str, params: Raw | None) -> None:
        if method == "notifications/resources/updated" and self._listener is not None:
            self._listener.resource_updated(server_id, params)
        else:
            self.notify(method, params)

    async def ask(self, method: str, params: Raw | None) -> Any:
        try:
            async with asyncio.timeout(self._input_seconds):
                return await self._peer.request(method, decode_object(params) if params is not None else None)
        except TimeoutError:
            raise RemoteError({"code": -32603, "message": f"the client did not answer {method} in time"}) from None
        except ConnectionLost as exc:
            raise RemoteError({"code": -32603, "message": f"the client has gone: {exc.reason}"}) from exc

    async def _listen(self, members: Members, request_id: RequestId) -> Any:
        wrong = envelope_error(members)
        if wrong is not None:
            raise RemoteError(wrong)
        meta = {f"{META}subscriptionId": request_id}
        ending = asyncio.Event()
        listener = await open_listener(
            self._gateway, self._server, members, meta, self._tell, ending.set, self.principal
        )
        try:
            await ending.wait()
        finally:
            listener.close()
        return {"resultType": "complete", "_meta": meta}

    def _tell(self, method: str, params: Any) -> None:
        if len(self._side) < MAX_UNSENT:  # notifications may be dropped, answers never
            task = asyncio.create_task(self._peer.notify(method, params))
            self._side.add(task)
            task.add_done_callback(self._side.discard)


MAX_UNSENT = 1000


async def _serve_registered(gateway: Gateway, channel: WebSocketChannel) -> None:
    """A server that dialled in and speaks MCP: after its registration the roles turn round."""
    messages = channel.messages()
    try:
        async with asyncio.timeout(REGISTER_SECONDS):
            first = await anext(messages, None)
    except TimeoutError:
        await channel.close(1008, "expected toolscore/register")
        return
    if first is None:
        return
    request_id: Any = None
    try:
        frame = decode_frame(first)
        request_id = frame.id if isinstance(frame.id, int | str) else None
        if frame.method != "toolscore/register" or request_id is None:
            raise InvalidRequest("the first frame must be the request toolscore/register {server_id}")
        params = decode(frame.params) if isinstance(frame.params, Raw) else {}
        server_id = params.get("server_id") if isinstance(params, dict) else None
        tags = params.get("tags") or [] if isinstance(params, dict) else []
        if not isinstance(server_id, str) or not isinstance(tags, list):
            raise InvalidArguments("toolscore/register needs `server_id`, a string, and may have `tags`, a list")
        upstream = gateway.upstreams.dialled(server_id)
        if upstream is None:
            await gateway.attach(server_id, UpstreamSpec(dialin=True, tags=tuple(str(tag) for tag in tags)))
            upstream = gateway.upstreams.get(server_id)
        if len(upstream.connections) >= MAX_INSTANCES:
            raise Overloaded(f"{MAX_INSTANCES} instances of {server_id!r} are connected", retry_after_seconds=30)
    except ToolScoreError as exc:
        code = (exc.data or {}).get("rpc_code", exc.rpc_code)
        await _try_send(channel, error_frame(request_id, {**exc.rpc_error(), "code": code}))
        await channel.close(1008, "not registered")
        return
    heartbeat = gateway.settings.current.servers.heartbeat_seconds
    await _try_send(channel, result_frame(request_id, {"server_id": server_id, "heartbeat_seconds": heartbeat}))
    connection = PeerConnection(
        partial(Peer, channel.send, on_junk=lambda _: None),
        upstream.notified,
        upstream.spec.client_features,
        on_asked=upstream.asked,
    )

    async def read() -> None:
        async for message in messages:
            connection.peer.receive(message)
        connection.closed(channel.closed_reason)

    reader = asyncio.create_task(read())
    stopping = asyncio.create_task(upstream.wait_drained())
    try:
        async with asyncio.timeout(gateway.upstreams.rules.start_timeout_seconds):
            await upstream.negotiate(connection)
        async with upstream.instance(connection):
            await asyncio.wait({reader, stopping}, return_when=asyncio.FIRST_COMPLETED)
    except (RemoteError, ConnectionLost, ToolScoreError, TimeoutError) as exc:
        log.warning("a server that dialled in was refused", server=server_id, error=str(exc) or "time-out")
        await channel.close(1008, f"{exc}"[:100] or "it did not answer in time")
    finally:
        reader.cancel()
        stopping.cancel()
        connection.closed(channel.closed_reason)
        await channel.close()


MAX_INSTANCES = 1000


async def _try_send(channel: WebSocketChannel, message: bytes) -> None:
    with contextlib.suppress(ConnectionResetError):
        await channel.send(message)


class _TypedClient:
    """A peer of the typed dialect: it may call, register tools, and be called, all over one socket."""

    def __init__(self, gateway: Gateway, channel: WebSocketChannel, principal: Principal) -> None:
        self._gateway = gateway
        self._channel = channel
        self._principal = principal
        self._bound = gateway.settings.current.limits.calls_per_connection
        self._max_frame_bytes = gateway.settings.current.limits.max_frame_bytes
        self._calls: set[asyncio.Task[None]] = set()
        self._registered: dict[str, tuple[TypedConnection | None, asyncio.Task[None] | None]] = {}

    async def run(self) -> None:
        try:
            async for message in self._channel.messages():
                await self._take(message)
        finally:
            for task in self._calls:
                task.cancel()
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
                task = asyncio.create_task(self._execute(frame))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
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
            result = await self._gateway.pipeline.call(
                ToolCall(
                    tool_id=frame.tool_id,
                    action=frame.action,
                    arguments=frame.parameters,
                    timeout_seconds=frame.timeout_seconds,
                    request_id=new_request_id(None),
                ),
                self._principal,
            )
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
                "error": "the tool reported an error" if result.is_error else None,
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
                "error": f"{exc.message}; {exc.suggestion}" if exc.suggestion else exc.message,
                "error_type": exc.code,
            }
        )

    def _list(self) -> list[dict[str, Any]]:
        """The servers with their tools as capabilities: what this dialect calls a tool."""
        servers: dict[str, list[Tool]] = {}
        sees = self._gateway.pipeline.sees(self._principal)
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
            text = f"{exc.message}; {exc.suggestion}" if exc.suggestion else exc.message
            await self._send({**reply, "success": False, "message": text, "error_type": exc.code})

    async def _error(self, request_id: Any, message: str) -> None:
        await self._send(
            {"type": "error", "request_id": request_id, "message": message, "error_type": "invalid_request"}
        )

    async def _send(self, frame: dict[str, Any]) -> None:
        await _try_send(self._channel, encode(frame))
