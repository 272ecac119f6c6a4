"""The WebSocket router (docs/wire.md): who may connect, over TCP or a Unix socket, and in which dialect.

The sub-protocol chooses the dialect: `mcp` is JSON-RPC; none or `toolscore.v1` is typed frames. At `/register` servers
dial in.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import os
import socket as socketlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import structlog
from msgspec import Raw
from websockets.asyncio.server import ServerConnection, serve, unix_serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from toolscore.access.auth import ADMIN, Credential, check_origin, need_scope
from toolscore.app.compose import Gateway
from toolscore.core.channels import WebSocketChannel
from toolscore.core.errors import (
    Forbidden,
    InvalidArguments,
    InvalidRequest,
    Overloaded,
    ServerNotFound,
    ToolScoreError,
    Unauthenticated,
)
from toolscore.core.hosts import is_loopback
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode, decode_frame, error_frame, result_frame
from toolscore.core.models import Principal, UpstreamSpec
from toolscore.core.peer import Peer
from toolscore.endpoints.guard import possible_connections
from toolscore.endpoints.leases import Leases
from toolscore.endpoints.mcp.socket import McpSocketClient
from toolscore.endpoints.typed import TypedClient
from toolscore.endpoints.uses import Uses
from toolscore.upstreams.connection import PeerConnection

__all__ = ["serve_router"]

log = structlog.get_logger(__name__)

REGISTER_PATH = "/register"
REGISTER_SECONDS = 10
"""How long a server that dialled in may take to say who it is."""

LEAVING = "notifications/toolscore/leaving"
"""What a server says that dialled in, takes no more calls, and closes when it has answered those that it has."""
MAX_INSTANCE_NAME = 64
MAX_INSTANCES = 1000
"""Of one server that dials in."""

MAX_QUEUED = 2
"""Frames of one connection that wait to be read."""

MCP = Subprotocol("mcp")
TYPED = Subprotocol("toolscore.v1")


@asynccontextmanager
async def serve_router(
    gateway: Gateway, leases: Leases, uses: Uses, sockets: list[socketlib.socket], *, own_path: bool = True
) -> AsyncIterator[None]:
    """Serve the router on TCP sockets that are bound already, and (`own_path`) on the Unix socket of the settings.

    Leaving tells those inside (1001), waits for them, bounded, and removes the Unix socket.
    """
    settings = gateway.settings.current
    service = settings.core_services.toolscore_mcp
    router = _Router(gateway, leases, uses, service.endpoint)
    possible = max(1, possible_connections() // 2)
    options: dict[str, Any] = {
        "subprotocols": [MCP, TYPED],
        "select_subprotocol": _choose,
        "process_request": router.check,
        # Servers that dialled in may answer as much as others; a client's frame is held to its own bound below.
        "max_size": max(settings.limits.max_frame_bytes, settings.limits.max_result_bytes),
        "max_queue": MAX_QUEUED,
        "create_connection": _counted(lambda: min(gateway.settings.current.limits.max_connections, possible)),
        "compression": None,
        "ping_interval": settings.servers.heartbeat_seconds,
        "ping_timeout": max(1.0, settings.servers.dead_after_seconds - settings.servers.heartbeat_seconds),
        "close_timeout": 2,
        "server_header": None,
    }
    async with AsyncExitStack() as stack:
        for listening in sockets:
            await stack.enter_async_context(serve(router.serve, sock=listening, **options))
        if service.unix_socket and own_path:
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


def _counted(most: Callable[[], int]) -> type[ServerConnection]:
    """Connections that are cut where there are too many, before anything is read of them."""
    there: set[ServerConnection] = set()

    class Counted(ServerConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            if len(there) >= most():
                self.transport.abort()
            else:
                there.add(self)

        def connection_lost(self, exc: Exception | None) -> None:
            there.discard(self)
            super().connection_lost(exc)

    return Counted


def _choose(_connection: ServerConnection, offered: Any) -> Subprotocol | None:
    return MCP if MCP in offered else TYPED if TYPED in offered else None


def _single_server(path: str) -> str | None:
    """The server of `/servers/{server_id}/mcp`."""
    if path.startswith("/servers/") and path.endswith("/mcp"):
        return path[len("/servers/") : -len("/mcp")] or None
    return None


class _Router:
    """Hands each connection to its dialect."""

    def __init__(self, gateway: Gateway, leases: Leases, uses: Uses, endpoint: str) -> None:
        self._uses = uses
        self._gateway = gateway
        self._leases = leases
        self._endpoint = endpoint
        self._callers: WeakKeyDictionary[ServerConnection, tuple[Principal, Credential | None]] = WeakKeyDictionary()

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
        except Overloaded as exc:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{exc.message}\n")
        self._callers[connection] = principal, self._gateway.auth.credential(authorization, api_key)
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
        principal, credential = self._callers[socket]

        async def end(reason: str) -> None:
            await channel.close(1008, reason[:120])

        used = self._uses if path != REGISTER_PATH else contextlib.nullcontext()
        with self._leases.hold(credential, end), used:
            await self._serve(socket, channel, path, principal)

    async def _serve(
        self, socket: ServerConnection, channel: WebSocketChannel, path: str, principal: Principal
    ) -> None:
        try:
            if socket.subprotocol != MCP:
                await TypedClient(self._gateway, channel, principal).run()
            elif path == REGISTER_PATH:
                await _serve_registered(self._gateway, channel)
            else:
                server_id = _single_server(path)
                if server_id is not None:
                    self._gateway.find_server(principal, server_id)
                await McpSocketClient(self._gateway, channel, server_id, principal).run()
        except ServerNotFound as exc:
            await channel.close(1008, f"{exc.message}; {exc.suggestion}"[:120])
        except Exception:  # a connection's outermost line
            log.exception("serving a WebSocket failed", path=path)
            await channel.close(1011, "the gateway failed")


async def _serve_registered(gateway: Gateway, channel: WebSocketChannel) -> None:
    """A server that dialled in and speaks MCP: after its registration the roles turn round."""
    try:
        async with asyncio.timeout(REGISTER_SECONDS):
            first = await anext(channel.messages(), None)
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
        instance = params.get("instance") if isinstance(params, dict) else None
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
        await channel.try_send(error_frame(request_id, {**exc.rpc_error(), "code": code}))
        await channel.close(1008, "not registered")
        return
    heartbeat = gateway.settings.current.servers.heartbeat_seconds
    await channel.try_send(result_frame(request_id, {"server_id": server_id, "heartbeat_seconds": heartbeat}))
    leaving = asyncio.Event()

    def notified(method: str, params: Raw | None) -> None:
        if method == LEAVING:
            leaving.set()
        else:
            upstream.notified(method, params)

    connection = PeerConnection(
        partial(Peer, channel.send, on_junk=lambda _: None, lenient=True),
        notified,
        upstream.spec.client_features,
        on_asked=upstream.asked,
    )
    connection.instance = instance[:MAX_INSTANCE_NAME] if isinstance(instance, str) else None
    reader = asyncio.create_task(channel.feed(connection.peer.receive, connection.closed))
    stopping = asyncio.create_task(upstream.wait_drained())
    left = asyncio.create_task(leaving.wait())
    try:
        async with asyncio.timeout(gateway.upstreams.rules.start_timeout_seconds):
            await upstream.negotiate(connection)
        async with upstream.instance(connection):
            await asyncio.wait({reader, stopping, left}, return_when=asyncio.FIRST_COMPLETED)
        if left.done():  # it gets no more calls, and answers those that it has
            await asyncio.wait({reader, stopping}, return_when=asyncio.FIRST_COMPLETED)
    except (RemoteError, ConnectionLost, ToolScoreError, TimeoutError) as exc:
        log.warning("a server that dialled in was refused", server=server_id, error=str(exc) or "time-out")
        await channel.close(1008, f"{exc}"[:100] or "it did not answer in time")
    finally:
        reader.cancel()
        stopping.cancel()
        left.cancel()
        connection.closed(channel.closed_reason)
        await channel.close()
