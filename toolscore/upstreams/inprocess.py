"""A server inside the gateway's own process: no hop, no bytes copied. Also the double that tests use.

A factory, named in the configuration as `module:function`, makes an `InProcessServer`. This is the one bridge between
the gateway and our own MCP servers, which it never imports by name.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from msgspec import Raw

from toolscore.core.errors import InternalError, UpstreamUnavailable
from toolscore.core.jsonrpc import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    ConnectionLost,
    Params,
    RemoteError,
    decode,
    encode,
    meta_of,
)
from toolscore.core.models import UpstreamSpec
from toolscore.upstreams.caller import Caller
from toolscore.upstreams.connection import Hearing, OnNotification
from toolscore.upstreams.process.spawn import CommandNotFound
from toolscore.upstreams.protocol import LATEST_SESSION_VERSION, STATS_METHOD, ServerInfo

__all__ = ["InProcessServer", "open_inprocess"]


class InProcessServer(Protocol):
    """What a factory returns: tools and a way to call them, in MCP's own shapes.

    If it is an async context manager too, it is entered before the first call and left at the end. If it has a method
    `async stats() -> dict`, its figures are shown beside the gateway's own.
    """

    name: str
    version: str

    def list_tools(self) -> list[dict[str, Any]]:
        """MCP `Tool` objects."""
        ...

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        meta: dict[str, Any] | None = None,
        progress: Callable[[float, float | None, str], None] | None = None,
    ) -> dict[str, Any] | Raw:
        """An MCP `CallToolResult`. Cancelling it ends the work.

        One that runs code (`runs_code = True`) also takes `asker`, a `Code`; one that is a part of the gateway
        (`takes_callers = True`) also takes `caller`.

        Args:
            meta: the request's `_meta`.
            progress: takes progress, total and a message.

        Raises:
            KeyError: no such tool.
            Exception: with a JSON-RPC error object in its attribute `error`, if the call itself fails.
        """
        ...


class InProcessConnection:
    """MCP's methods over plain function calls."""

    elsewhere = False

    def __init__(self, server: InProcessServer) -> None:
        self._server = server
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._open = True
        self.info = ServerInfo(
            protocol_version=LATEST_SESSION_VERSION,
            implementation={"name": server.name, "version": server.version},
            capabilities={"tools": {}, "experimental": {STATS_METHOD: {}} if hasattr(server, "stats") else {}},
        )
        self.in_flight = 0
        self.log_level: str | None = None
        self.hearing = Hearing()

    async def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Raw:
        if not self._open:
            raise ConnectionLost("the server was stopped", sent=False)
        params = params or {}
        if method == "tools/call":
            arguments = params.get("arguments") or {}
            if isinstance(arguments, Raw):
                arguments = decode(arguments) or {}
            meta = meta_of(params)
            progress = _teller(caller) if caller is not None and caller.wants_progress else None
            more: dict[str, Any] = {}
            if caller is not None and caller.code is not None and getattr(self._server, "runs_code", False):
                more["asker"] = caller.code
            if getattr(self._server, "takes_callers", False):
                more["caller"] = caller
            try:
                result = await self._server.call_tool(params["name"], arguments, meta=meta, progress=progress, **more)
            except KeyError as exc:
                raise RemoteError({"code": INVALID_PARAMS, "message": f"unknown tool: {exc.args[0]}"}) from exc
            except Exception as exc:
                error = getattr(exc, "error", None)
                if isinstance(error, dict):
                    raise RemoteError(error) from exc
                raise InternalError(f"{self._server.name} failed: {type(exc).__name__}: {exc}") from exc
            return result if isinstance(result, Raw) else Raw(encode(result))
        if method == "tools/list":
            return Raw(encode({"tools": self._server.list_tools()}))
        if method == "ping":
            return Raw(b"{}")
        if method == STATS_METHOD and hasattr(self._server, "stats"):
            return Raw(encode(await self._server.stats()))
        raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"method not found: {method}"})

    async def notify(self, method: str, params: Params | None = None) -> None:
        """Such a server listens to nothing but calls."""

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def close(self) -> None:
        self._open = False
        if not self._closed.done():
            self._closed.set_result("the server was stopped")


def _teller(caller: Caller) -> Callable[[float, float | None, str], None]:
    def tell(progress: float, total: float | None, message: str) -> None:
        update = {"progress": progress, "total": total, "message": message}
        caller.notify("notifications/progress", Raw(encode(update)))

    return tell


@asynccontextmanager
async def open_inprocess(
    spec: UpstreamSpec, *, on_notification: OnNotification, ready: Mapping[str, InProcessServer]
) -> AsyncIterator[InProcessConnection]:
    """Make the server that `spec.inprocess` names and open it.

    Args:
        ready: servers that stand already, under such names.

    Raises:
        CommandNotFound: the module or the factory does not exist, or does not take these options.
        UpstreamUnavailable: the server does not start.
    """
    assert spec.inprocess is not None
    module, _, factory = spec.inprocess.partition(":")
    try:
        server = ready.get(spec.inprocess)
        if server is None:  # others are served meanwhile: a module that was never compiled takes its time
            server = getattr(await asyncio.to_thread(importlib.import_module, module), factory)(**spec.options)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        raise CommandNotFound(f"cannot make the in-process server {spec.inprocess!r}: {exc}") from exc
    connection = InProcessConnection(server)
    try:
        async with AsyncExitStack() as stack:
            if isinstance(server, AbstractAsyncContextManager):
                try:
                    await stack.enter_async_context(server)
                except Exception as exc:
                    raise UpstreamUnavailable(str(exc)) from exc
            stack.callback(connection.close)
            yield connection
    finally:
        connection.close()
