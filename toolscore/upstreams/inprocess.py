"""A server inside the gateway's own process: no hop, no bytes copied. Also the double that tests use.

A factory, named in the configuration as `module:function`, makes an `InProcessServer`. This is the one bridge between
the gateway and our own MCP servers, which it never imports by name.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from msgspec import Raw

from toolscore.errors import InternalError
from toolscore.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, ConnectionLost, Params, RemoteError, decode, encode
from toolscore.models import UpstreamSpec
from toolscore.upstreams.connection import LATEST_SESSION_VERSION, OnNotification, ServerInfo
from toolscore.upstreams.process import CommandNotFound

__all__ = ["InProcessServer", "open_inprocess"]


class InProcessServer(Protocol):
    """What a factory returns: tools and a way to call them, in MCP's own shapes.

    If it is an async context manager too, it is entered before the first call and left at the end.
    """

    name: str
    version: str

    def list_tools(self) -> list[dict[str, Any]]:
        """MCP `Tool` objects."""
        ...

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """An MCP `CallToolResult`. Cancelling it ends the work.

        Raises:
            KeyError: no such tool.
        """
        ...


class InProcessConnection:
    """MCP's methods over plain function calls."""

    def __init__(self, server: InProcessServer) -> None:
        self._server = server
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._open = True
        self.info = ServerInfo(
            protocol_version=LATEST_SESSION_VERSION,
            name=server.name,
            version=server.version,
            capabilities={"tools": {}},
        )
        self.in_flight = 0

    async def request(
        self, method: str, params: Params | None = None, *, on_progress: Callable[[Raw], None] | None = None
    ) -> Raw:
        if not self._open:
            raise ConnectionLost("the server was stopped", sent=False)
        params = params or {}
        if method == "tools/call":
            arguments = params.get("arguments") or {}
            if isinstance(arguments, Raw):
                arguments = decode(arguments)
            try:
                result = await self._server.call_tool(params["name"], arguments)
            except KeyError as exc:
                raise RemoteError({"code": INVALID_PARAMS, "message": f"unknown tool: {exc.args[0]}"}) from exc
            except RuntimeError as exc:
                raise InternalError(f"{self._server.name} failed: {exc}") from exc
            return Raw(encode(result))
        if method == "tools/list":
            return Raw(encode({"tools": self._server.list_tools()}))
        if method == "ping":
            return Raw(b"{}")
        raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"method not found: {method}"})

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def close(self) -> None:
        self._open = False
        if not self._closed.done():
            self._closed.set_result("the server was stopped")


@asynccontextmanager
async def open_inprocess(spec: UpstreamSpec, *, on_notification: OnNotification) -> AsyncIterator[InProcessConnection]:
    """Make the server that `spec.inprocess` names and open it.

    Raises:
        CommandNotFound: the module or the factory does not exist, or does not take these options.
    """
    assert spec.inprocess is not None
    module, _, factory = spec.inprocess.partition(":")
    try:
        server = getattr(importlib.import_module(module), factory)(**spec.options)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        raise CommandNotFound(f"cannot make the in-process server {spec.inprocess!r}: {exc}") from exc
    connection = InProcessConnection(server)
    try:
        if isinstance(server, AbstractAsyncContextManager):
            async with server:
                yield connection
        else:
            yield connection
    finally:
        connection.close()
