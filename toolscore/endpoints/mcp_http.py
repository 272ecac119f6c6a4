"""MCP over streamable HTTP at `/mcp` and `/servers/{server_id}/mcp`, both eras on the same address.

The session era (2024-11-05 … 2025-11-25) is known by its `initialize` and its `Mcp-Session-Id`; the stateless one
(2026-07-28) by the `MCP-Protocol-Version` header of every request. Raw ASGI: this is a hot route.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import structlog
from msgspec import Raw

from toolscore.endpoints.asgi import ClientWatch, Receive, Scope, Send, header, new_request_id, read_body, send_json
from toolscore.endpoints.mcp_server import LISTEN_TYPES, McpServer, Members, progress_frame, progress_token, read_params
from toolscore.errors import InternalError, InvalidRequest, Overloaded, ToolScoreError
from toolscore.gateway import Gateway
from toolscore.jsonrpc import Frame, decode, decode_frame, encode, error_frame, result_frame
from toolscore.upstreams.connection import LATEST_STATELESS_VERSION, SESSION_VERSIONS

__all__ = ["McpHttpEndpoint"]

log = structlog.get_logger(__name__)

HEADER_MISMATCH = -32020
UNSUPPORTED_PROTOCOL_VERSION = -32022
INVALID_PARAMS = -32602

STATUS_OF = {
    -32700: 400,
    -32600: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    -32021: 400,
    UNSUPPORTED_PROTOCOL_VERSION: 400,
    -32601: 404,
}
"""HTTP status of a JSON-RPC error in the stateless era (2026-07-28, streamable HTTP)."""

SSE_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
SWEEP_SECONDS = 60
SSE_COMMENT_SECONDS = 15
"""Proxies cut silent streams; a comment now and then keeps them open."""

NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
ROUTING = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})
ENVELOPE = ("io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities")


class _Session:
    """One client of the session era."""

    def __init__(self, server_id: str | None) -> None:
        self.server_id = server_id
        self.used = time.monotonic()
        self.calls: dict[Any, asyncio.Task[Any]] = {}
        self.streams = 0


class McpHttpEndpoint:
    """The ASGI application of both addresses."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._all = McpServer(gateway)
        self._single: dict[str, McpServer] = {}
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._swept = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send, server_id: str | None = None) -> None:
        """Serve one request.

        Args:
            server_id: of `/servers/{server_id}/mcp`; `None` for `/mcp`.

        Raises:
            ToolScoreError: what is not JSON-RPC's to say (an unknown server, a body over the bound).
        """
        server = self._server(server_id)
        if scope["method"] == "POST":
            await self._post(server, server_id, scope, receive, send)
        elif scope["method"] == "GET":
            await self._get(server_id, scope, receive, send)
        elif scope["method"] == "DELETE":
            session_id = header(scope, b"mcp-session-id")
            known = session_id is not None and self._session(session_id, server_id) is not None
            if known and session_id is not None:
                del self._sessions[session_id]
            await send_json(send, 200 if known else 404, b"{}")
        else:
            await send_json(send, 405, _refusal(-32600, "use POST, GET or DELETE"), [(b"allow", b"POST, GET, DELETE")])

    def _server(self, server_id: str | None) -> McpServer:
        if server_id is None:
            return self._all
        server = self._single.get(server_id)
        if server is None or self._gateway.upstreams.find(server_id) is None:
            if not self._gateway.library.of_server(server_id):
                self._gateway.upstreams.get(server_id)  # raises ServerNotFound with the ids there are
            server = self._single[server_id] = McpServer(self._gateway, server_id)
        return server

    async def _post(self, server: McpServer, server_id: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._gateway.settings.current.limits.max_body_bytes)
        try:
            frame = decode_frame(body)
        except InvalidRequest as exc:
            code = (exc.data or {}).get("rpc_code", exc.rpc_code)
            await send_json(send, 400, _refusal(code, exc.message))
            return
        version = header(scope, b"mcp-protocol-version")
        stateless = version is not None and version not in SESSION_VERSIONS
        if not isinstance(frame.method, str):
            known = isinstance(frame.id, int | str) and not stateless
            await send_json(send, *((202, b"") if known else (400, _refusal(-32600, "expected a request"))))
            return
        if frame.id is None:
            await send_json(send, 400, _refusal(-32600, "a request's id must be a string or a number, not null"))
            return
        if not isinstance(frame.id, int | str):
            self._notified(scope, server_id, frame)
            await send_json(send, 202, b"")
            return
        try:
            params = read_params(frame.params or None)
        except InvalidRequest as exc:
            refusal = {"code": INVALID_PARAMS, "message": f"params and params._meta must be objects: {exc}"}
            await send_json(send, 400, error_frame(frame.id, refusal))
            return
        if stateless:
            envelope_error = _check_envelope(scope, frame.method, params, version)
            if envelope_error is not None:
                await send_json(send, STATUS_OF[envelope_error["code"]], error_frame(frame.id, envelope_error))
                return
            if frame.method == "subscriptions/listen":
                await self._listen(frame.id, frame.params or None, receive, send)
                return
            await self._answer(server, frame, params, None, True, scope, receive, send)
            return
        if frame.method == "initialize":
            await self._initialize(server, server_id, frame, send)
            return
        session = None
        session_id = header(scope, b"mcp-session-id")
        if session_id is not None:
            session = self._session(session_id, server_id)
            if session is None:
                await send_json(send, 404, error_frame(frame.id, {"code": -32600, "message": "Session not found"}))
                return
        await self._answer(server, frame, params, session, False, scope, receive, send)

    async def _answer(
        self,
        server: McpServer,
        frame: Frame,
        params: Members,
        session: _Session | None,
        stateless: bool,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        assert isinstance(frame.method, str)
        assert isinstance(frame.id, int | str)
        request_id = new_request_id(header(scope, b"x-request-id"))
        stream = _ProgressStream(send, progress_token(params), header(scope, b"accept"))
        if session is not None and (task := asyncio.current_task()) is not None:
            session.calls[frame.id] = task
        status = 200
        try:
            with ClientWatch(receive) as watch:
                work = server.handle(
                    frame.method,
                    params,
                    request_id=request_id,
                    stateless=stateless,
                    on_progress=stream.progress if stream.wanted else None,
                )
                result = await (stream.during(work) if stream.wanted else work)
            message = result_frame(frame.id, result)
        except ToolScoreError as exc:
            error = exc.rpc_error()
            if stateless:
                status = STATUS_OF.get(error.get("code", 0), 200)
            message = error_frame(frame.id, error)
        except asyncio.CancelledError:
            if watch.gone:
                return  # nobody is there to hear the answer
            if session is None or (task := asyncio.current_task()) is None or session.calls.get(frame.id) is not task:
                raise
            task.uncancel()  # `notifications/cancelled`: the request gets no answer, its response ends
            await stream.end(None)
            return
        except Exception:  # a request's outermost line
            log.exception("serving an MCP request failed", method=frame.method, request_id=request_id)
            message = error_frame(frame.id, InternalError(f"{frame.method} failed inside the gateway").rpc_error())
        finally:
            if session is not None:
                session.calls.pop(frame.id, None)
        if stream.started:
            await stream.end(message)
        else:
            await send_json(send, status, message)

    async def _initialize(self, server: McpServer, server_id: str | None, frame: Frame, send: Send) -> None:
        assert isinstance(frame.id, int | str)
        limits = self._gateway.settings.current.limits
        try:
            result = server.initialize(frame.params if isinstance(frame.params, Raw) else None)
            self._make_room(limits.max_sessions, limits.session_idle_seconds)
        except (ToolScoreError, AttributeError) as exc:
            error = exc if isinstance(exc, ToolScoreError) else InvalidRequest("initialize needs `params`, an object")
            await send_json(send, error.status, error_frame(frame.id, error.rpc_error()))
            return
        session_id = secrets.token_urlsafe(24)
        self._sessions[session_id] = _Session(server_id)
        await send_json(send, 200, result_frame(frame.id, result), [(b"mcp-session-id", session_id.encode())])

    def _make_room(self, bound: int, idle_seconds: float) -> None:
        oldest_use = time.monotonic() - idle_seconds
        if len(self._sessions) >= bound or time.monotonic() > self._swept + SWEEP_SECONDS:
            self._swept = time.monotonic()
            quiet = [key for key, session in self._sessions.items() if not (session.streams or session.calls)]
            for key in quiet:
                if self._sessions[key].used < oldest_use:
                    del self._sessions[key]
            if len(self._sessions) >= bound and quiet and quiet[0] in self._sessions:
                del self._sessions[quiet[0]]  # the idlest makes room; its client opens another
        if len(self._sessions) >= bound:
            raise Overloaded(f"{bound} sessions are open: end one with DELETE, or wait", retry_after_seconds=60)

    def _session(self, session_id: str, server_id: str | None) -> _Session | None:
        session = self._sessions.get(session_id)
        if session is None or session.server_id != server_id:
            return None
        session.used = time.monotonic()
        self._sessions.move_to_end(session_id)
        return session

    def _notified(self, scope: Scope, server_id: str | None, frame: Frame) -> None:
        """Take a notification. Only a session's own calls can be cancelled; the stateless era closes the response."""
        session_id = header(scope, b"mcp-session-id")
        session = self._session(session_id, server_id) if session_id else None
        if session is None or frame.method != "notifications/cancelled" or not isinstance(frame.params, Raw):
            return
        target = decode(frame.params)
        task = session.calls.get(target.get("requestId")) if isinstance(target, dict) else None
        if task is not None:
            task.cancel()

    async def _get(self, server_id: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream on which a session hears that the list has changed."""
        session_id = header(scope, b"mcp-session-id")
        session = self._session(session_id, server_id) if session_id else None
        if session is None:
            known = (
                (404, "Session not found") if session_id else (400, "GET opens a session's stream: initialize first")
            )
            await send_json(send, known[0], _refusal(-32600, known[1]))
            return
        session.streams += 1
        try:
            await _stream(self._changes(None), receive, send)
        finally:
            session.streams -= 1
            session.used = time.monotonic()

    async def _listen(self, request_id: int | str, params: Raw | None, receive: Receive, send: Send) -> None:
        """`subscriptions/listen`: the response is the stream (2026-07-28, subscriptions)."""
        wanted = decode(params).get("notifications") if params is not None else None
        honored = {"toolsListChanged": True} if isinstance(wanted, dict) and wanted.get("toolsListChanged") else {}
        meta = {"io.modelcontextprotocol/subscriptionId": request_id}

        async def messages() -> AsyncIterator[bytes | None]:
            acknowledged = {"notifications": honored, "_meta": meta}
            yield _notification("notifications/subscriptions/acknowledged", acknowledged)
            if honored:
                async for message in self._changes(meta):
                    yield message
            else:
                while True:
                    await asyncio.sleep(SSE_COMMENT_SECONDS)
                    yield None

        await _stream(messages(), receive, send, result_frame(request_id, {"resultType": "complete", "_meta": meta}))

    async def _changes(self, meta: dict[str, Any] | None) -> AsyncIterator[bytes | None]:
        params = {"_meta": meta} if meta else None
        changed = _notification("notifications/tools/list_changed", params)
        async with self._gateway.events.subscribe({*LISTEN_TYPES, "lagged"}) as events:
            reading = asyncio.ensure_future(anext(events, None))
            try:
                while True:
                    done, _ = await asyncio.wait({reading}, timeout=SSE_COMMENT_SECONDS)
                    if not done:
                        yield None
                        continue
                    if reading.result() is None:
                        return
                    yield changed
                    reading = asyncio.ensure_future(anext(events, None))
            finally:
                reading.cancel()


class _ProgressStream:
    """Turns the answer into an event stream at the first progress of a call whose client asked for it."""

    def __init__(self, send: Send, token: Raw | None, accept: str | None) -> None:
        self._send = send
        self._token = token
        self.wanted = token is not None and "text/event-stream" in (accept or "")
        self.started = False
        if self.wanted:
            self._queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1000)

    def progress(self, params: Raw) -> None:
        if self._token is not None and not self._queue.full():  # progress may be dropped, answers never
            self._queue.put_nowait(progress_frame(self._token, params))

    async def during(self, work: Any) -> Any:
        """Await the work, sending what progress there is meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done() or not self._queue.empty():
                getting = asyncio.ensure_future(self._queue.get())
                await asyncio.wait({task, getting}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    continue
                if not self.started:
                    self.started = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
                await self._send({"type": "http.response.body", "body": sse(getting.result()), "more_body": True})
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def end(self, message: bytes | None) -> None:
        """Close the stream, with the answer as its last event."""
        if not self.started:
            await self._send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await self._send({"type": "http.response.body", "body": sse(message) if message else b""})


def sse(message: bytes) -> bytes:
    """One event of a stream."""
    return b"event: message\ndata: " + message.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n\n"


async def _stream(
    messages: AsyncIterator[bytes | None], receive: Receive, send: Send, farewell: bytes | None = None
) -> None:
    """Send events until the client goes or they end; `None` becomes a comment that keeps the connection open."""

    async def write() -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
        async for message in messages:
            body = sse(message) if message is not None else b": still here\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": sse(farewell) if farewell else b""})

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = {asyncio.create_task(write()), asyncio.create_task(gone())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _notification(method: str, params: dict[str, Any] | None) -> bytes:
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return encode(message)


def _refusal(code: int, message: str) -> bytes:
    return error_frame(None, {"code": code, "message": message})


def _check_envelope(scope: Scope, method: str, params: Members, version: str | None) -> dict[str, Any] | None:
    """The stateless era's rules for one request: envelope, headers, revision, in this order. The error, or `None`."""
    routing: dict[bytes, bytes] = {}
    for key, value in scope["headers"]:
        if key in ROUTING:
            if key in routing:
                return {"code": HEADER_MISMATCH, "message": f"the {key.decode()} header appears more than once"}
            routing[key] = value
    meta = params.get("_meta") or {}
    missing = [key for key in ENVELOPE if key not in meta]
    if missing:
        return {"code": INVALID_PARAMS, "message": f"params._meta needs {' and '.join(missing)}"}
    if decode(meta[ENVELOPE[0]]) != version:
        return {
            "code": HEADER_MISMATCH,
            "message": f"MCP-Protocol-Version does not match params._meta[{ENVELOPE[0]!r}]",
        }
    if routing.get(b"mcp-method", b"").decode("latin-1") != method:
        return {"code": HEADER_MISMATCH, "message": "the Mcp-Method header does not match the body's method"}
    named = NAMED.get(method)
    if named is not None and named in params:
        value = decode(params[named])
        if isinstance(value, str) and _header_text(routing.get(b"mcp-name")) != value:
            return {"code": HEADER_MISMATCH, "message": f"the Mcp-Name header does not match the body's {named!r}"}
    if version != LATEST_STATELESS_VERSION:
        return {
            "code": UNSUPPORTED_PROTOCOL_VERSION,
            "message": "Unsupported protocol version",
            "data": {"supported": [LATEST_STATELESS_VERSION, *reversed(SESSION_VERSIONS)], "requested": version},
        }
    return None


def _header_text(value: bytes | None) -> str | None:
    """What a header says, undoing the base64 sentinel; `None` where it cannot be undone."""
    text = value.decode("latin-1") if value is not None else None
    if text is None or not (text.startswith("=?base64?") and text.endswith("?=")):
        return text
    try:
        return base64.b64decode(text[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
