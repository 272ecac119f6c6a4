"""The executor on the official SDK: over stdio, over HTTP, or dialling a router (TCP or Unix socket)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import ipaddress
import json
import os
import random
import secrets
import socket as socketlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import anyio
import mcp_types as types
import uvicorn
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import ConfigDict
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from mcp_servers.python_executor.gateway import RUN_META, Gateway
from mcp_servers.python_executor.server import CallRefused, PythonExecutorServer

__all__ = ["Dialling", "sdk_server", "serve_http", "serve_stdio"]

RESOLVE_SECONDS = 2.0
"""How often the gateways behind a name are looked for."""
LAST_CALL_SECONDS = 0.3
LEAVING = "notifications/toolscore/leaving"
FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A call may bring 10 MB of code and 16 MB of files."""
STATS_METHOD = "toolscore/stats"


class Refused(Exception):
    """The router does not take us: trying again at once will not help."""


class Stats(types.Result):
    """Figures, as an open map."""

    model_config = ConfigDict(extra="allow")


def sdk_server(server: PythonExecutorServer, *, gateway: Gateway | None) -> Server[Any]:
    """The official SDK's server around ours.

    Args:
        gateway: who calls, and answers the tools that code calls; it may say on whose behalf it calls (`_meta`), which
            a stranger (`None`) may not.
    """
    trusted = gateway is not None

    async def list_tools(
        _ctx: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult.model_validate({"tools": server.list_tools()})

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        meta: dict[str, Any] = dict(params.meta or {})
        telling: set[asyncio.Task[None]] = set()

        def progress(done: float, total: float | None, message: str) -> None:
            task = asyncio.create_task(ctx.session.report_progress(done, total, message))
            telling.add(task)
            task.add_done_callback(telling.discard)

        asker = gateway.asker(meta.get(RUN_META)) if gateway is not None else None
        server.calls += 1
        try:
            result = await server.call_tool(
                params.name, params.arguments or {}, meta=meta if trusted else {}, progress=progress, asker=asker
            )
        except KeyError:
            raise MCPError(code=types.INVALID_PARAMS, message=f"unknown tool: {params.name}") from None
        except CallRefused as exc:
            raise MCPError(code=exc.code, message=str(exc), data=exc.data) from None
        finally:
            server.calls -= 1
        return types.CallToolResult.model_validate(result)

    async def stats(_ctx: ServerRequestContext[Any], _params: types.RequestParams) -> Stats:
        return Stats.model_validate(await server.stats())

    sdk = Server(server.name, version=server.version, on_list_tools=list_tools, on_call_tool=call_tool)
    sdk.add_request_handler(STATS_METHOD, types.RequestParams, stats)
    return sdk


def _options(sdk: Server[Any]) -> Any:
    return sdk.create_initialization_options(experimental_capabilities={STATS_METHOD: {}})


async def serve_stdio(server: PythonExecutorServer) -> None:
    """Serve until stdin closes."""
    out = _Lines(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # nothing but MCP on stdout, whoever prints
    gateway = Gateway(out.line)
    sdk = sdk_server(server, gateway=gateway)
    streams = stdio_server(
        stdin=cast("anyio.AsyncFile[str]", _lines(gateway)), stdout=cast("anyio.AsyncFile[str]", out)
    )
    async with streams as (read, write):
        await sdk.run(read, write, _options(sdk))
    gateway.close()


class _Lines:
    """Whole lines on a stream, whoever writes them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._turn = asyncio.Lock()

    async def line(self, message: str) -> None:
        await self.write(message + "\n")

    async def write(self, text: str) -> None:
        async with self._turn:
            await asyncio.to_thread(self._put, text.encode("utf-8", "replace"))

    async def flush(self) -> None:
        """Every line is on its way already."""

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()


async def _lines(gateway: Gateway) -> AsyncIterator[str]:
    async with anyio.wrap_file(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")) as stdin:
        async for line in stdin:
            if not gateway.takes(line):
                yield _without_surrogates(line)


def _without_surrogates(message: str) -> str:
    """Lone surrogates become U+FFFD: JSON can name them, but the SDK would drop the message, and nobody be answered."""
    if "\\ud" not in message and "\\uD" not in message:
        return message
    try:
        text = json.dumps(json.loads(message), ensure_ascii=False)
    except ValueError:
        return message
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


async def serve_http(server: PythonExecutorServer, host: str, port: int, secret: str) -> None:
    """Serve streamable HTTP at `/mcp`, for those who show the secret.

    Args:
        secret: callers send it as `Authorization: Bearer …`.
    """
    names = [host, "127.0.0.1", "localhost", "[::1]"] if host in LOOPBACK else [host]
    security = TransportSecuritySettings(
        allowed_hosts=[f"{name}:{port}" for name in names], allowed_origins=[f"http://{name}:{port}" for name in names]
    )
    inner = sdk_server(server, gateway=None).streamable_http_app(host=host, transport_security=security)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(shown, b"Bearer " + secret.encode()):
                body = b"show the executor's secret: Authorization: Bearer ...\n"
                headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode()),
                           (b"www-authenticate", b"Bearer")]  # fmt: skip
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await inner(scope, receive, send)

    await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).serve()


class Dialling:
    """Serves each gateway behind a router's address: all that its name stands for, as they come and go.

    Args:
        url: of the router, such as `ws://toolscore-headless:8081/register`.
        leave: set when this executor is to end: it takes no more calls, and finishes those under way.
        grace_seconds: how long they may take.
    """

    def __init__(
        self, server: PythonExecutorServer, url: str, server_id: str, leave: asyncio.Event, grace_seconds: float
    ) -> None:
        self._server = server
        self._url = url
        self._server_id = server_id
        self._leave = leave
        self._grace_seconds = grace_seconds
        self._instance = secrets.token_hex(6)
        self._wanted: set[str | None] = set()
        self._dialling: dict[str | None, asyncio.Task[None]] = {}
        self._sockets: set[ClientConnection] = set()

    async def run(self) -> None:
        """Dial for as long as this runs; returns when it has left."""
        try:
            while not self._leave.is_set():
                self._wanted = await _addresses(self._url) or self._wanted
                for address in self._wanted:
                    task = self._dialling.get(address)
                    if task is None or task.done():
                        self._dialling[address] = asyncio.create_task(self._keep_dialling(address))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RESOLVE_SECONDS):
                        await self._leave.wait()
            await self._finish()
        finally:
            for task in self._dialling.values():
                task.cancel()
            await asyncio.gather(*self._dialling.values(), return_exceptions=True)

    async def _finish(self) -> None:
        await asyncio.gather(*map(_say_farewell, list(self._sockets)))
        deadline = time.monotonic() + self._grace_seconds
        await asyncio.sleep(LAST_CALL_SECONDS if self._sockets else 0)  # for calls that were sent before they heard it
        while self._server.calls and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1 if self._sockets else 0)  # the last answer is on its way

    async def _keep_dialling(self, address: str | None) -> None:
        """Dial one gateway, register, serve; dial again with back-off and jitter while the name stands for it."""
        failures = 0
        shown = f"{self._url} ({address})" if address is not None else self._url
        while address in self._wanted and not self._leave.is_set():
            try:
                async with _dial(self._url, address) as socket:
                    await _register(socket, self._server_id, self._instance)
                    failures = 0
                    print(f"registered as {self._server_id} at {shown}", file=sys.stderr, flush=True)
                    self._sockets.add(socket)
                    try:
                        await _serve(self._server, socket)
                    finally:
                        self._sockets.discard(socket)
                    reason = "the router closed the connection"
            except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError, Refused) as exc:
                reason = str(exc) or type(exc).__name__
            wait = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures, 20)) * random.uniform(0.75, 1.25)
            failures += 1
            print(f"not connected to {shown}: {reason}; again in {wait:.1f} s", file=sys.stderr, flush=True)
            await asyncio.sleep(wait)


async def _say_farewell(socket: ClientConnection) -> None:
    with contextlib.suppress(OSError, ConnectionClosed, TimeoutError):
        async with asyncio.timeout(LAST_CALL_SECONDS):
            await socket.send(json.dumps({"jsonrpc": "2.0", "method": LEAVING}))


async def _addresses(url: str) -> set[str | None]:
    """The addresses that a URL's name stands for; one that is no name is dialled as it is (`None`)."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return {None}
    if url.startswith("ws+unix://") or host == "localhost":
        return {None}
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await loop.getaddrinfo(host, parts.port or 80, type=socketlib.SOCK_STREAM)
    except (OSError, TimeoutError) as exc:
        print(f"{host} stands for no address: {exc}", file=sys.stderr, flush=True)
        return set()
    return {str(address[4][0]) for address in found}


@asynccontextmanager
async def _dial(url: str, address: str | None) -> AsyncIterator[ClientConnection]:
    options: dict[str, Any] = {
        "subprotocols": [Subprotocol("mcp")],
        "max_size": MAX_FRAME_BYTES,
        "compression": None,
        "open_timeout": 5,
        "close_timeout": 2,
    }
    if key := os.environ.get("TOOLSCORE_API_KEY"):
        options["additional_headers"] = {"Authorization": f"Bearer {key}"}
    if url.startswith("ws+unix://"):
        path, _, resource = unquote(urlsplit(url).path).partition(":")
        async with unix_connect(path, f"ws://localhost{resource or '/'}", **options) as socket:
            yield socket
    else:
        if address is not None:  # the name stays what the gateway is told it was called by
            options["host"] = address
        async with connect(url, **options) as socket:
            yield socket


async def _register(socket: ClientConnection, server_id: str, instance: str) -> None:
    params = {"server_id": server_id, "instance": instance}
    request = {"jsonrpc": "2.0", "id": 0, "method": "toolscore/register", "params": params}
    await socket.send(json.dumps(request))
    async with asyncio.timeout(10):
        answer = json.loads(await socket.recv())
    if "error" in answer:
        raise Refused(answer["error"].get("message", "the router refused us"))


async def _serve(server: PythonExecutorServer, socket: ClientConnection) -> None:
    """Run the SDK's server over the socket until it closes."""
    gateway = Gateway(socket.send)
    sdk = sdk_server(server, gateway=gateway)
    incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)

    async def receive() -> None:
        async with incoming:
            try:
                async for message in socket:
                    if gateway.takes(str(message)):
                        continue
                    try:
                        parsed = types.jsonrpc_message_adapter.validate_json(_without_surrogates(str(message)))
                    except ValueError as exc:
                        await incoming.send(exc)
                    else:
                        await incoming.send(SessionMessage(parsed))
            except ConnectionClosed:
                return

    async def send() -> None:
        async with outgoing:
            async for message in outgoing:
                try:
                    await socket.send(message.message.model_dump_json(by_alias=True, exclude_unset=True))
                except ConnectionClosed:
                    return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        tasks.start_soon(send)
        await sdk.run(read, write, _options(sdk))
        gateway.close()
        tasks.cancel_scope.cancel()
