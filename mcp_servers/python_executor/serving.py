"""The executor on the official SDK: over stdio, over HTTP, or dialling a router (TCP or Unix socket)."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import mcp_types as types
import uvicorn
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from mcp_servers.python_executor.server import PythonExecutorServer

__all__ = ["sdk_server", "serve_dialling", "serve_http", "serve_stdio"]

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 10.0
MAX_FRAME_BYTES = 16 * 1024 * 1024


class Refused(Exception):
    """The router does not take us: trying again at once will not help."""


def sdk_server(server: PythonExecutorServer) -> Server[Any]:
    """The official SDK's server around ours."""

    async def list_tools(
        _ctx: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult.model_validate({"tools": server.list_tools()})

    async def call_tool(_ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            result = await server.call_tool(params.name, params.arguments or {})
        except KeyError:
            raise types_error(f"unknown tool: {params.name}") from None
        return types.CallToolResult.model_validate(result)

    return Server(server.name, version=server.version, on_list_tools=list_tools, on_call_tool=call_tool)


def types_error(message: str) -> Exception:
    from mcp.shared.exceptions import MCPError

    return MCPError(code=types.INVALID_PARAMS, message=message)


async def serve_stdio(server: PythonExecutorServer) -> None:
    """Serve until stdin closes."""
    sdk = sdk_server(server)
    async with stdio_server() as (read, write):
        await sdk.run(read, write, sdk.create_initialization_options())


async def serve_http(server: PythonExecutorServer, host: str, port: int) -> None:
    """Serve streamable HTTP at `/mcp`."""
    app = sdk_server(server).streamable_http_app(host=host)
    await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).serve()


async def serve_dialling(server: PythonExecutorServer, url: str, server_id: str) -> None:
    """Dial the router, register, serve; dial again with back-off and jitter for as long as this runs."""
    failures = 0
    while True:
        try:
            async with _dial(url) as socket:
                await _register(socket, server_id)
                failures = 0
                print(f"registered as {server_id} at {url}", file=sys.stderr, flush=True)
                await _serve(server, socket)
                reason = "the router closed the connection"
        except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError, Refused) as exc:
            reason = str(exc) or type(exc).__name__
        wait = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**failures) * random.uniform(0.75, 1.25)
        failures += 1
        print(f"not connected to {url}: {reason}; again in {wait:.1f} s", file=sys.stderr, flush=True)
        await asyncio.sleep(wait)


@asynccontextmanager
async def _dial(url: str) -> AsyncIterator[ClientConnection]:
    options: dict[str, Any] = {
        "subprotocols": [Subprotocol("mcp")],
        "max_size": MAX_FRAME_BYTES,
        "compression": None,
        "open_timeout": 5,
        "close_timeout": 2,
    }
    if url.startswith("ws+unix://"):
        path, _, resource = unquote(urlsplit(url).path).partition(":")
        async with unix_connect(path, f"ws://localhost{resource or '/'}", **options) as socket:
            yield socket
    else:
        async with connect(url, **options) as socket:
            yield socket


async def _register(socket: ClientConnection, server_id: str) -> None:
    request = {"jsonrpc": "2.0", "id": 0, "method": "toolscore/register", "params": {"server_id": server_id}}
    await socket.send(json.dumps(request))
    async with asyncio.timeout(10):
        answer = json.loads(await socket.recv())
    if "error" in answer:
        raise Refused(answer["error"].get("message", "the router refused us"))


async def _serve(server: PythonExecutorServer, socket: ClientConnection) -> None:
    """Run the SDK's server over the socket until it closes."""
    sdk = sdk_server(server)
    incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)

    async def receive() -> None:
        async with incoming:
            try:
                async for message in socket:
                    try:
                        parsed = types.jsonrpc_message_adapter.validate_json(message)
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
        await sdk.run(read, write, sdk.create_initialization_options())
        tasks.cancel_scope.cancel()
