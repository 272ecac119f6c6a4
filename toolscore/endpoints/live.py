"""Events as they happen: over a WebSocket, with commands (docs/wire.md), and as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import FastAPI, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from msgspec import Raw

from toolscore.access.auth import ADMIN
from toolscore.app.compose import Gateway
from toolscore.calls import Call
from toolscore.core.clock import timestamp
from toolscore.core.errors import InvalidArguments, InvalidRequest, MethodNotFound, PayloadTooLarge, ToolScoreError
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Event, Principal, Tool
from toolscore.core.tasks import TaskSet
from toolscore.endpoints.asgi import (
    SSE_COMMENT_SECONDS,
    new_request_id,
    one_line,
    principal_of,
    read_as,
    sse_event,
    whole,
)
from toolscore.endpoints.views import found_tools, kept_fields, result_fields, stats_fields, tool_fields
from toolscore.endpoints.wanted import MAX_SEQ, event_types, seq_of
from toolscore.upstreams import Caller

__all__ = ["COMMANDS", "add_live", "command", "concerns"]

log = structlog.get_logger(__name__)

TOOL_EVENTS = frozenset({
    "tool_installed", "tool_updated", "tool_removed", "tool_quarantined", "tool_released", "tool_disabled",
    "tool_enabled",
})  # fmt: skip
PRIVATE_EVENTS = frozenset({"call_finished", "gap_detected", "approval_needed", "approval_ended"})
STATS_SECONDS = 1.0
EVENTS_PROTOCOL = "toolscore.events"
"""What a client that offers subprotocols may offer: one of them has to be chosen."""
MAX_COMMANDS = 64
"""Commands of one socket under way at a time."""

Command = Callable[[Gateway, dict[str, Any], Principal], Awaitable[Any]]
COMMANDS: dict[str, Command] = {}


def command(function: Command) -> Command:
    """Make a function callable over the events socket under its own name."""
    COMMANDS[function.__name__] = function
    return function


@command
async def get_stats(gateway: Gateway, params: dict[str, Any], principal: Principal) -> Any:
    await gateway.figures.refresh()
    return stats_fields(gateway, principal)


class _ListParams(msgspec.Struct):
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    cursor: str | None = None
    server_id: str | None = None
    q: str | None = None


class _ToolParams(msgspec.Struct):
    tool_id: str
    action: str | None = None


class _ExecuteParams(_ToolParams):
    parameters: dict[str, Any] | None = None
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    cache: bool = True


@command
async def list_tools(gateway: Gateway, params: dict[str, Any], principal: Principal) -> Any:
    wanted = read_as(params, _ListParams)
    gateway.upstreams.tools_are_listed()
    sees = gateway.permissions.sees(principal)
    tools, after = gateway.library.page(
        cursor=wanted.cursor, limit=wanted.limit, server_id=wanted.server_id, text=wanted.q, sees=sees
    )
    return {
        "tools": [tool_fields(gateway, tool) for tool in tools],
        "total_count": gateway.library.count(sees),
        "next_cursor": after,
    }


@command
async def search_tools(gateway: Gateway, params: dict[str, Any], principal: Principal) -> Any:
    return await found_tools(gateway, whole(params), principal)


@command
async def get_tool(gateway: Gateway, params: dict[str, Any], principal: Principal) -> Any:
    wanted = read_as(params, _ToolParams)
    tool = gateway.library.resolve(wanted.tool_id, wanted.action, sees=gateway.permissions.sees(principal))
    return tool_fields(gateway, tool, full=True)


@command
async def execute_tool(gateway: Gateway, params: dict[str, Any], principal: Principal) -> Any:
    wanted = read_as(params, _ExecuteParams)
    call = Call(
        wanted.tool_id,
        Raw(encode(wanted.parameters or {})),
        caller=Caller(principal),
        request_id=new_request_id(),
        action=wanted.action,
        timeout_seconds=wanted.timeout_seconds,
        use_cache=wanted.cache,
    )
    result = await gateway.calls.call(call)
    return {**result_fields(result), "cached": kept_fields(result)}


def add_live(app: FastAPI, gateway: Gateway) -> None:
    """Add the events socket and the SSE stream to an application."""
    stats_teller = _StatsTeller(gateway)

    @app.websocket("/api/v1/events/tools")
    async def events_socket(socket: WebSocket) -> None:
        await socket.accept(EVENTS_PROTOCOL if EVENTS_PROTOCOL in socket.scope["subprotocols"] else None)
        await _EventsSocket(gateway, socket, stats_teller).run()

    @app.get("/api/v1/events/stream", summary="Events as server-sent events", tags=["events"])
    async def events_stream(
        request: Request, events: str | None = None, since: Annotated[int, Query(ge=0, le=MAX_SEQ)] | None = None
    ) -> StreamingResponse:
        """`Last-Event-ID` (or `since`) resumes; `events` is a comma-separated choice of types."""
        last = seq_of(request.headers.get("last-event-id"), "Last-Event-ID")
        since = last if last is not None else since
        types = event_types(events.split(",")) if events else None
        return StreamingResponse(
            _sse(gateway, types, since, stats_teller, principal_of(request.scope)),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )


def concerns(gateway: Gateway, event: Event, principal: Principal) -> bool:
    """Whether an event is for this principal's eyes: the calls of others and tools that it may not call are not."""
    if event.type in PRIVATE_EVENTS:
        return event.data.get("principal") == principal.name or ADMIN in principal.scopes
    policy, tool_id = gateway.permissions.policy, str(event.data.get("tool_id"))
    if event.type in TOOL_EVENTS and event.type != "tool_disabled" and tool_id in gateway.permissions.off:
        return ADMIN in principal.scopes
    if policy.is_open:
        return True
    if event.type not in TOOL_EVENTS:
        server_id = event.data.get("server_id")
        return not isinstance(server_id, str) or gateway.shows_server(principal, server_id)
    # One that went long ago cannot be judged any more: its name may be known only to who saw it.
    tool = gateway.library.last_known(tool_id)
    return policy.sees(principal, tool).allowed if tool is not None else ADMIN in principal.scopes


async def _sse(
    gateway: Gateway, types: set[str] | None, since: int | None, stats_teller: _StatsTeller, principal: Principal
) -> AsyncIterator[bytes]:
    yield b": welcome\n\n"
    async with gateway.events.subscribe(types, since=since) as events, stats_teller.wanted(types):
        reading = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=SSE_COMMENT_SECONDS)
                if not done:
                    yield b": still here\n\n"
                    continue
                event = reading.result()
                if event is None:
                    return
                if not concerns(gateway, event, principal):
                    reading = asyncio.ensure_future(anext(events, None))
                    continue
                event_id = str(event.seq) if event.seq is not None else ""
                yield sse_event(one_line(encode(event.body())), event=event.type, event_id=event_id)
                reading = asyncio.ensure_future(anext(events, None))
        finally:
            reading.cancel()


class _StatsTeller:
    """Tells `stats_update` each second while anybody asks for it, and does nothing otherwise."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def wanted(self, types: set[str] | None) -> AsyncIterator[None]:
        """Tell while inside, if `types` has `stats_update`."""
        if types is None or "stats_update" not in types:
            yield
            return
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        while True:
            await self._gateway.figures.refresh()
            self._gateway.events.tell("stats_update", payload=stats_fields(self._gateway, None))
            await asyncio.sleep(STATS_SECONDS)


class _EventsSocket:
    """One subscriber: pumps events out, takes messages in. Its slowness is its own."""

    def __init__(self, gateway: Gateway, socket: WebSocket, stats_teller: _StatsTeller) -> None:
        self._gateway = gateway
        self._socket = socket
        self._principal = principal_of(socket.scope)
        self._stats_teller = stats_teller
        self._pump: asyncio.Task[None] | None = None
        self._commands = TaskSet()

    async def run(self) -> None:
        try:
            await self._welcome()
            while True:
                try:
                    await self._take(await self._receive())
                except PayloadTooLarge as exc:
                    await self._send({"type": "error", "error": exc.body()})
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: Starlette's word for a socket already closed
            pass
        finally:
            if self._pump is not None:
                self._pump.cancel()
                await asyncio.gather(self._pump, return_exceptions=True)
            await self._commands.close()

    async def _welcome(self) -> None:
        """Greet, and begin to tell what the address asks for."""
        query = self._socket.query_params
        refused, types, since = None, None, None
        try:
            types = event_types(query["events"].split(",")) if query.get("events") else None
            since = seq_of(query.get("since"), "since")
        except InvalidRequest as exc:
            refused = exc
        subscribed, welcomed = asyncio.Event(), asyncio.Event()
        self._pump = asyncio.create_task(self._send_events(types, since, subscribed, welcomed))
        await subscribed.wait()
        tools = self._tools() if query.get("tools") != "false" else {"timestamp": timestamp()}
        await self._send({"type": "welcome", "seq": self._gateway.events.last_seq, **tools})
        if refused is not None:
            await self._send({"type": "error", "error": refused.body()})
        welcomed.set()

    async def _receive(self) -> bytes:
        """One message, text or bytes.

        Raises:
            WebSocketDisconnect; PayloadTooLarge.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        frame = message.get("bytes") or (message.get("text") or "").encode("utf-8", "replace")
        bound = self._gateway.settings.current.limits.max_frame_bytes
        if len(frame) > bound:
            raise PayloadTooLarge(f"a frame of {len(frame):,} bytes is over the bound of {bound:,}")
        return frame

    def _tools(self) -> dict[str, Any]:
        library = self._gateway.library

        def shown(tool: Tool) -> dict[str, Any]:
            return {
                "tool_id": tool.tool_id,
                "name": tool.name,
                "capabilities": [{"name": tool.name, "description": tool.description, "parameters": tool.input_schema}],
                "type": "mcp_server",
                "enabled": library.available(tool),
            }

        sees = self._gateway.permissions.sees(self._principal)
        seen = [shown(tool) for tool in library if sees is None or sees(tool)]
        return {"tools": seen, "total_count": len(seen), "timestamp": timestamp()}

    async def _take(self, message: bytes) -> None:
        try:
            frame = decode(message)
            if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
                raise InvalidRequest('expected an object with a `type`, such as {"type": "ping"}')
            await self._dispatch(frame)
        except ToolScoreError as exc:
            await self._send({"type": "error", "error": exc.body()})

    async def _dispatch(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "ping":
                await self._send({"type": "pong", "timestamp": timestamp()})
            case "get_tools":
                await self._send({"type": "tools_list", **self._tools()})
            case "subscribe":
                wanted, since = frame.get("events"), frame.get("since")
                if wanted is not None and not isinstance(wanted, list):
                    raise InvalidRequest("`events` must be a list of event types")
                if since is not None and (type(since) is not int or not 0 <= since <= MAX_SEQ):
                    raise InvalidRequest("`since` must be the `seq` of an event")
                types = event_types(wanted) if wanted is not None else None
                if self._pump is not None:
                    self._pump.cancel()
                    await asyncio.gather(self._pump, return_exceptions=True)
                subscribed = asyncio.Event()
                self._pump = asyncio.create_task(self._send_events(types, since, subscribed))
                await subscribed.wait()
            case "call":
                if len(self._commands) >= MAX_COMMANDS:
                    raise InvalidRequest(f"{MAX_COMMANDS} commands are under way on this socket: wait for one to end")
                self._commands.start(self._call(frame))
            case other:
                raise InvalidRequest(f"unknown type {other!r:.80}: expected subscribe, ping, get_tools or call")

    async def _call(self, frame: dict[str, Any]) -> None:
        call_id, method, params = frame.get("id"), frame.get("method"), frame.get("params", {})
        try:
            if not isinstance(params, dict):
                raise InvalidArguments("`params` must be an object")
            function = COMMANDS.get(method) if isinstance(method, str) else None
            if function is None:
                raise MethodNotFound(f"no method {method!r:.80}: there are {', '.join(COMMANDS)}")
            result = await function(self._gateway, params, self._principal)
            reply = {"type": "result", "id": call_id, "result": result}
        except ToolScoreError as exc:
            reply = {"type": "error", "id": call_id, "error": exc.body()}
        except Exception:  # a request's outermost line
            log.exception("a command failed inside the gateway", method=method)
            error = {"code": "internal_error", "message": f"{method} failed inside the gateway", "retryable": False}
            reply = {"type": "error", "id": call_id, "error": error}
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._send(reply)

    async def _send_events(
        self, types: set[str] | None, since: int | None, subscribed: asyncio.Event, go: asyncio.Event | None = None
    ) -> None:
        async with self._gateway.events.subscribe(types, since=since) as events, self._stats_teller.wanted(types):
            subscribed.set()
            if go is not None:
                await go.wait()
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                async for event in events:
                    if concerns(self._gateway, event, self._principal):
                        await self._send(event.body())
                await self._socket.close(1001)  # the gateway shuts down

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(encode(message).decode())
