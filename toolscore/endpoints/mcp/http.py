"""MCP over streamable HTTP at `/mcp` and `/servers/{server_id}/mcp`, both eras on the same address.

The session era (2024-11-05 … 2025-11-25) is known by its `initialize` and its `Mcp-Session-Id`; the stateless one
(2026-07-28) by the `MCP-Protocol-Version` header of every request. Raw ASGI: this is a hot route. An answer is plain
JSON until something has to be said before it; then it becomes a stream of events.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import structlog
from msgspec import Raw

from toolscore.app.gateway import Gateway
from toolscore.core.errors import InternalError, InvalidRequest, MethodNotFound, Overloaded, ToolScoreError
from toolscore.core.jsonrpc import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Frame,
    RemoteError,
    decode,
    decode_frame,
    error_frame,
    notification_frame,
    remote_error,
    request_frame,
    result_frame,
)
from toolscore.core.models import Principal
from toolscore.endpoints.asgi import (
    ClientWatch,
    Receive,
    Scope,
    Send,
    forwarded_headers,
    header,
    new_request_id,
    principal_of,
    read_body,
    send_json,
)
from toolscore.endpoints.mcp.callers import (
    ENVELOPE,
    SessionCaller,
    StatelessCaller,
    StatelessCalls,
    envelope_error,
    log_level_of,
    may_wait,
)
from toolscore.endpoints.mcp.server import (
    MISSING_CLIENT_CAPABILITY,
    WATCHING,
    Listener,
    McpServer,
    Members,
    open_listener,
    read_params,
    watch_resource,
)
from toolscore.upstreams import Caller
from toolscore.upstreams.headers import NAMED_METHODS, PARAM_PREFIX, header_text, param_mismatch
from toolscore.upstreams.protocol import META, SESSION_VERSIONS, UNSUPPORTED_PROTOCOL_VERSION

__all__ = ["McpHttpEndpoint"]

log = structlog.get_logger(__name__)

HEADER_MISMATCH = -32020

STATUS_OF = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    MISSING_CLIENT_CAPABILITY: 400,
    UNSUPPORTED_PROTOCOL_VERSION: 400,
    METHOD_NOT_FOUND: 404,
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

RESUMABLE_SINCE = "2025-11-25"
"""From this revision on a stream begins with an event that has an id and no data: it can be resumed (SEP-1699)."""

RETRY_MS = 1000
RESUME_SECONDS = 30.0
"""How long a call goes on whose client's stream broke off, waiting for it to resume."""
RESUME_POLL_SECONDS = 0.25
REACH_SECONDS = 10.0
"""How long a question outside of any request waits for a stream to its client."""
MAX_EVENTS = 1000
MAX_EVENT_BYTES = 1024 * 1024
"""What a stream keeps, for a client that reads slowly or comes back; the oldest goes first, the newest always stays."""
KEPT_STREAMS = 16
KEPT_BYTES = 1024 * 1024
"""What a session keeps of streams that have ended; larger answers cannot be fetched again once they were sent."""

ROUTING = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})


class _Stream:
    """The events of one response, kept for as long as its client may come back for them.

    `read` is the newest event that was sent, `readers` counts the responses that send it just now.
    """

    def __init__(self, number: int, resumable: bool) -> None:
        self.number = number
        self.resumable = resumable
        self.readers = 0
        self.read = 0
        self.ended = False
        self._events: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._count = 0
        self._arrived = asyncio.Event()
        self._reader: object = None

    def put(self, message: bytes) -> None:
        """Add a message. Never waits."""
        self._count += 1
        self._events.append((self._count, message))
        self._bytes += len(message)
        while len(self._events) > 1 and (len(self._events) > MAX_EVENTS or self._bytes > MAX_EVENT_BYTES):
            self._bytes -= len(self._events.popleft()[1])
        self._arrived.set()

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._bytes

    def put_once(self, message: bytes) -> None:
        """Add a message unless it waits to be read already."""
        if all(waiting != message for number, waiting in self._events if number > self.read):
            self.put(message)

    def end(self) -> None:
        self.ended = True
        self._arrived.set()

    async def chunks(self, after: int = 0) -> AsyncGenerator[bytes]:
        """Bytes to send, from the event behind `after` on, until the stream ends, or another reader takes it over."""
        self.readers += 1
        self._reader = reader = object()
        self._arrived.set()  # whoever read so far stops: no message goes out twice
        try:
            if self.resumable:
                yield b"id: %d-%d\nretry: %d\ndata: \n\n" % (self.number, after, RETRY_MS)
            else:
                yield b": open\n\n"
            while self._reader is reader:
                self._arrived.clear()
                for number, message in [event for event in self._events if event[0] > after]:
                    if self._reader is not reader:
                        return
                    after = self.read = number
                    event_id = b"id: %d-%d\n" % (self.number, number) if self.resumable else b""
                    yield event_id + sse(message)
                if self.ended:
                    return
                if self._arrived.is_set():
                    continue
                try:
                    async with asyncio.timeout(SSE_COMMENT_SECONDS):
                        await self._arrived.wait()
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.readers -= 1
            self._arrived.set()  # whoever waits for a reader looks again


class _Session(Caller):
    """One client of the session era; as a `Caller`, what reaches it outside of its requests."""

    live = True

    def __init__(
        self,
        gateway: Gateway,
        server: McpServer,
        server_id: str | None,
        params: Members,
        version: str,
        principal: Principal,
    ) -> None:
        declared = decode(params["capabilities"]) if "capabilities" in params else None
        super().__init__(principal, capabilities=declared if isinstance(declared, dict) else {})
        self.server = server
        self.server_id = server_id
        self.resumable = version >= RESUMABLE_SINCE
        self.used = time.monotonic()
        self.calls: dict[Any, asyncio.Task[Any]] = {}
        self.asked: dict[str, asyncio.Future[Raw]] = {}
        self.own = _Stream(0, self.resumable)
        self.streams: OrderedDict[int, _Stream] = OrderedDict({0: self.own})
        self.listener = Listener(gateway, server, self, self._tell, self.own.end)
        self._input_seconds = gateway.settings.current.limits.input_seconds
        self._numbers = itertools.count(1)
        self._questions = itertools.count(1)

    @property
    def busy(self) -> bool:
        return bool(self.calls) or self.own.readers > 0

    def open_stream(self) -> _Stream:
        """A stream for one response."""
        stream = _Stream(next(self._numbers), self.resumable)
        self.streams[stream.number] = stream
        self.tidy()
        return stream

    def tidy(self) -> None:
        """Keep few of the streams that have ended, for clients that come back to them, and none for others."""
        ended = [stream for stream in self.streams.values() if stream.ended and not stream.readers]
        size = sum(stream.size for stream in ended)
        while ended and (len(ended) > KEPT_STREAMS or size > KEPT_BYTES or not self.resumable):
            oldest = ended.pop(0)
            size -= oldest.size
            del self.streams[oldest.number]

    def _tell(self, method: str, params: Any) -> None:
        message = notification_frame(method, params)
        if params is None or method == "notifications/resources/updated":
            self.own.put_once(message)
        else:
            self.own.put(message)

    def notify(self, method: str, params: Raw | None) -> None:
        if method == "notifications/message" and not (self.log_level and self.hears(log_level_of(params))):
            return  # what belongs to no request is for those who asked for it
        self.own.put(notification_frame(method, params))

    def announce(self, server_id: str, method: str, params: Raw | None) -> None:
        if method == "notifications/resources/updated":
            self.listener.resource_updated(server_id, params)
        else:
            self.notify(method, params)

    async def ask(self, method: str, params: Raw | None) -> Any:
        """Over the session's own stream, or the response of a request that is under way."""
        deadline = time.monotonic() + REACH_SECONDS
        while True:
            if self.own.readers:
                return await self.question(self.own, method, params)
            for stream in self.streams.values():
                if stream.readers and not stream.ended:
                    return await self.question(stream, method, params)
            if time.monotonic() > deadline:
                raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"the client keeps no stream open: {method}"})
            await asyncio.sleep(0.05)

    async def question(self, stream: _Stream, method: str, params: Raw | None) -> Any:
        """Put a request to the client on one of its streams, and wait for its answer."""
        number = f"toolscore-{next(self._questions)}"
        answer = self.asked[number] = asyncio.get_running_loop().create_future()
        stream.put(request_frame(number, method, params))
        try:
            async with asyncio.timeout(self._input_seconds):
                return await answer
        except TimeoutError:
            cancelled = {"requestId": number, "reason": "it took too long"}
            stream.put(notification_frame("notifications/cancelled", cancelled))
            raise RemoteError({"code": -32603, "message": f"the client did not answer {method} in time"}) from None
        except asyncio.CancelledError:
            stream.put(notification_frame("notifications/cancelled", {"requestId": number}))
            raise
        finally:
            self.asked.pop(number, None)

    def answered(self, frame: Frame) -> None:
        """Take the client's answer to a question. One that nobody waits for is dropped."""
        answer = self.asked.get(str(frame.id))
        if answer is None or answer.done():
            return
        if isinstance(frame.error, Raw):
            answer.set_exception(remote_error(frame.error))
        elif isinstance(frame.result, Raw):
            answer.set_result(frame.result)


class _Response:
    """One POST's response: JSON, or a stream of events once something is to be said before the answer."""

    def __init__(self, scope: Scope, send: Send, session: _Session | None) -> None:
        self._send = send
        self._session = session
        self._may_stream = "text/event-stream" in (header(scope, b"accept") or "")
        self._writer: asyncio.Task[None] | None = None
        self.stream: _Stream | None = None

    def open(self) -> _Stream | None:
        """Become a stream, if the client reads such."""
        if self.stream is None and self._may_stream:
            self.stream = self._session.open_stream() if self._session is not None else _Stream(0, False)
            self._writer = asyncio.create_task(self._write(self.stream))
        return self.stream

    def tell(self, method: str, params: Any) -> None:
        """Say something before the answer; a client that takes no stream misses it."""
        stream = self.open()
        if stream is not None:
            stream.put(notification_frame(method, params))

    async def ask(self, method: str, params: Raw | None) -> Any:
        assert self._session is not None
        stream = self.open()
        if stream is None:
            return await self._session.ask(method, params)
        return await self._session.question(stream, method, params)

    def slow(self) -> None:
        """The answer takes its time: a stream can be resumed where a plain response would be lost."""
        self.open()

    async def gone(self) -> None:
        """The client hung up: wait for it to come back to the stream, until it has been away for too long."""
        if self.stream is None or self._writer is None:
            return
        self._writer.cancel()
        away_since = time.monotonic()
        while time.monotonic() < away_since + RESUME_SECONDS:
            await asyncio.sleep(RESUME_POLL_SECONDS)
            if self.stream.readers:
                away_since = time.monotonic()

    def abort(self) -> None:
        """The client is gone for good."""
        if self.stream is not None:
            self.stream.end()
        if self._writer is not None:
            self._writer.cancel()

    async def end(self, status: int, message: bytes | None, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Give the answer; `None` for a request that gets none. A stream has sent its headers before."""
        if self.stream is None and message is None:
            self._may_stream = True  # an empty stream is how a request ends without an answer
            self.open()
        if self.stream is None:
            await send_json(self._send, status, message or b"", headers)
            return
        if message is not None:
            self.stream.put(message)
        self.stream.end()
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._session is not None:
            self._session.tidy()

    async def _write(self, stream: _Stream) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        async with contextlib.aclosing(stream.chunks()) as chunks:
            async for chunk in chunks:
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})


class McpHttpEndpoint:
    """The ASGI application of both addresses."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._all = McpServer(gateway)
        self._single: dict[str, McpServer] = {}
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._suspended: StatelessCalls | None = None
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
            session = self._session(session_id, server_id, scope) if session_id is not None else None
            if session is not None and session_id is not None:
                self._end_session(session_id)
            await send_json(send, 200 if session is not None else 404, b"{}")
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
        session: _Session | None = None
        session_id = None if stateless else header(scope, b"mcp-session-id")
        if session_id is not None and frame.method != "initialize":
            session = self._session(session_id, server_id, scope)
            if session is None:
                gone = {"code": -32600, "message": "Session not found"}
                await send_json(send, 404, error_frame(frame.id if isinstance(frame.id, int | str) else None, gone))
                return
        if not isinstance(frame.method, str):
            if session is not None:
                session.answered(frame)
            known = isinstance(frame.id, int | str) and not stateless
            await send_json(send, *((202, b"") if known else (400, _refusal(-32600, "expected a request"))))
            return
        if frame.id is None:
            await send_json(send, 400, _refusal(-32600, "a request's id must be a string or a number, not null"))
            return
        if not isinstance(frame.id, int | str):
            if session is not None:
                self._notified(session, frame)
            await send_json(send, 202, b"")
            return
        try:
            params = read_params(frame.params or None)
        except InvalidRequest as exc:
            refusal = {"code": INVALID_PARAMS, "message": f"params and params._meta must be objects: {exc}"}
            await send_json(send, 400, error_frame(frame.id, refusal))
            return
        if stateless:
            refused = _check_envelope(scope, frame.method, params, version)
            if refused is None and frame.method == "tools/call":
                refused = self._check_params(scope, server_id, params)
            if refused is not None:
                await send_json(send, STATUS_OF[refused["code"]], error_frame(frame.id, refused))
            elif frame.method == "subscriptions/listen":
                await self._listen(server, frame.id, params, scope, receive, send)
            else:
                await self._answer(server, frame, params, None, True, scope, receive, send)
            return
        if frame.method == "initialize":
            await self._initialize(server, server_id, frame, params, scope, send)
        elif session is not None and frame.method in WATCHING:
            await self._watch(session, frame, params, send)
        else:
            await self._answer(server, frame, params, session, False, scope, receive, send)

    def _check_params(self, scope: Scope, server_id: str | None, params: Members) -> dict[str, Any] | None:
        """The rule for headers that repeat arguments of a tool. The error, or `None`."""
        library = self._gateway.library
        try:
            tool = library.resolve(decode(params["name"]), None, server_id)
            mirrored = library.mirrored(tool)
            arguments = decode(params.get("arguments", Raw(b"{}"))) if mirrored else None
        except (ToolScoreError, KeyError, TypeError):
            return None  # said better by the call itself
        if not mirrored:
            return None
        given: dict[str, list[str]] = {}
        for key, value in scope["headers"]:
            if key.startswith(PARAM_PREFIX.lower().encode()):
                given.setdefault(key.decode("latin-1"), []).append(value.decode("latin-1").strip())
        wrong = param_mismatch(mirrored, arguments, given)
        return {"code": HEADER_MISMATCH, "message": wrong} if wrong else None

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
        response = _Response(scope, send, session)
        caller: Caller
        if stateless:
            caller = StatelessCaller(params, response.tell, principal_of(scope))
        elif session is not None:
            token = (params.get("_meta") or {}).get("progressToken")
            caller = SessionCaller(session, response.tell, response.ask, token)
            if (task := asyncio.current_task()) is not None:
                session.calls[frame.id] = task
        else:
            caller = Caller(principal_of(scope))
        caller.headers = forwarded_headers(self._gateway.upstreams.forwarded, scope)
        status = 200
        message: bytes | None
        try:
            with ClientWatch(receive, response if session is not None and session.resumable else None) as watch:
                if isinstance(caller, StatelessCaller) and may_wait(frame.method, params, caller):
                    result = await self._carry_out(server, frame.method, params, caller, request_id)
                else:
                    result = await server.handle(frame.method, params, caller, request_id=request_id)
            message = result_frame(frame.id, result)
        except ToolScoreError as exc:
            error = exc.rpc_error()
            if stateless:
                status = STATUS_OF.get(error.get("code", 0), 200)
            message = error_frame(frame.id, error)
        except asyncio.CancelledError:
            if watch.gone:
                response.abort()
                return  # nobody is there to hear the answer
            if session is None or (task := asyncio.current_task()) is None or session.calls.get(frame.id) is not task:
                raise
            task.uncancel()  # `notifications/cancelled`: the request gets no answer, its response ends
            message = None
        except Exception:  # a request's outermost line
            log.exception("serving an MCP request failed", method=frame.method, request_id=request_id)
            message = error_frame(frame.id, InternalError(f"{frame.method} failed inside the gateway").rpc_error())
        finally:
            if session is not None:
                session.calls.pop(frame.id, None)
        calls = frame.method == "tools/call"
        await response.end(status, message, self._gateway.pipeline.rates.headers(principal_of(scope)) if calls else ())

    async def _carry_out(
        self, server: McpServer, method: str, params: Members, caller: StatelessCaller, request_id: str
    ) -> Any:
        if self._suspended is None:
            self._suspended = StatelessCalls(self._gateway.settings.current.limits.input_seconds)
            self._gateway.changes.listen(lambda *_: None, self._suspended.close)
        return await self._suspended.carry_out(
            caller, method, params, lambda opened: server.handle(method, opened, caller, request_id=request_id)
        )

    async def _initialize(
        self, server: McpServer, server_id: str | None, frame: Frame, params: Members, scope: Scope, send: Send
    ) -> None:
        assert isinstance(frame.id, int | str)
        limits = self._gateway.settings.current.limits
        try:
            result = await server.initialize(params)
            self._make_room(limits.max_sessions, limits.session_idle_seconds)
        except ToolScoreError as exc:
            await send_json(send, exc.status, error_frame(frame.id, exc.rpc_error()))
            return
        session_id = secrets.token_urlsafe(24)
        self._sessions[session_id] = _Session(
            self._gateway, server, server_id, params, result["protocolVersion"], principal_of(scope)
        )
        await send_json(send, 200, result_frame(frame.id, result), [(b"mcp-session-id", session_id.encode())])

    def _make_room(self, bound: int, idle_seconds: float) -> None:
        oldest_use = time.monotonic() - idle_seconds
        if len(self._sessions) >= bound or time.monotonic() > self._swept + SWEEP_SECONDS:
            self._swept = time.monotonic()
            quiet = [key for key, session in self._sessions.items() if not session.busy]
            for key in quiet:
                if self._sessions[key].used < oldest_use:
                    self._end_session(key)
            if len(self._sessions) >= bound and quiet and quiet[0] in self._sessions:
                self._end_session(quiet[0])  # the idlest makes room; its client opens another
        if len(self._sessions) >= bound:
            raise Overloaded(f"{bound} sessions are open: end one with DELETE, or wait", retry_after_seconds=60)

    def _end_session(self, session_id: str) -> None:
        session = self._sessions.pop(session_id)
        for task in session.calls.values():
            task.cancel()
        for stream in session.streams.values():
            stream.end()
        for answer in session.asked.values():
            if not answer.done():
                answer.set_exception(RemoteError({"code": -32600, "message": "the client has ended its session"}))
        session.listener.close()
        self._gateway.upstreams.client_gone(session)

    def _session(self, session_id: str, server_id: str | None, scope: Scope) -> _Session | None:
        """The session, if it is this caller's."""
        session = self._sessions.get(session_id)
        if session is None or session.server_id != server_id or session.principal.name != principal_of(scope).name:
            return None
        session.used = time.monotonic()
        self._sessions.move_to_end(session_id)
        return session

    def _notified(self, session: _Session, frame: Frame) -> None:
        """Take a notification of a session's client. The stateless era has none: there a response is closed instead."""
        if frame.method == "notifications/roots/list_changed":
            self._gateway.upstreams.roots_changed(session)
        if frame.method != "notifications/cancelled" or not isinstance(frame.params, Raw):
            return
        target = decode(frame.params)
        given = target.get("requestId") if isinstance(target, dict) else None
        task = session.calls.get(given) if isinstance(given, int | str) else None
        if task is not None:
            task.cancel()

    async def _watch(self, session: _Session, frame: Frame, params: Members, send: Send) -> None:
        assert isinstance(frame.id, int | str)
        try:
            if "resources" not in session.server.capabilities:
                raise MethodNotFound(f"method not found: {frame.method}: no server here has resources")
            await watch_resource(session.listener, str(frame.method), params)
            message = result_frame(frame.id, {})
        except ToolScoreError as exc:
            message = error_frame(frame.id, exc.rpc_error())
        await send_json(send, 200, message)

    async def _get(self, server_id: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream on which a session hears what belongs to no request; or one that broke off, from there on."""
        session_id = header(scope, b"mcp-session-id")
        session = self._session(session_id, server_id, scope) if session_id else None
        if session is None:
            known = (
                (404, "Session not found") if session_id else (400, "GET opens a session's stream: initialize first")
            )
            await send_json(send, known[0], _refusal(-32600, known[1]))
            return
        stream, after = session.own, session.own.read
        last = header(scope, b"last-event-id") or ""
        number, _, seen = last.partition("-")
        if last.isascii() and number.isdigit() and seen.isdigit():
            found = session.streams.get(int(number[:9]))
            if found is None:
                await send_json(send, 404, _refusal(-32600, f"the stream of event {last[:40]!r} is not kept any more"))
                return
            stream, after = found, int(seen[:9])
        try:
            await _stream(stream.chunks(after), receive, send)
        finally:
            session.used = time.monotonic()

    async def _listen(
        self, server: McpServer, request_id: int | str, params: Members, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """`subscriptions/listen`: the response is the stream (2026-07-28, subscriptions)."""
        stream = _Stream(0, False)
        meta = {f"{META}subscriptionId": request_id}

        def tell(method: str, told: dict[str, Any]) -> None:
            stream.put_once(notification_frame(method, told))

        def farewell() -> None:
            stream.put(result_frame(request_id, {"resultType": "complete", "_meta": meta}))
            stream.end()

        listener = await open_listener(self._gateway, server, params, meta, tell, farewell, principal_of(scope))
        try:
            await _stream(stream.chunks(), receive, send)
        finally:
            listener.close()


def sse(message: bytes) -> bytes:
    """One event of a stream."""
    return b"event: message\ndata: " + message.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n\n"


async def _stream(chunks: AsyncGenerator[bytes], receive: Receive, send: Send) -> None:
    """Send a stream until the client goes or it ends."""

    async def write() -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

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


def _refusal(code: int, message: str) -> bytes:
    return error_frame(None, {"code": code, "message": message})


def _check_envelope(scope: Scope, method: str, params: Members, version: str | None) -> dict[str, Any] | None:
    """The stateless era's rules for one request: envelope, headers, revision, in this order. The error, or `None`."""
    routing: dict[bytes, bytes] = {}
    for key, value in scope["headers"]:
        if key in ROUTING:
            if key in routing:
                return {"code": HEADER_MISMATCH, "message": f"the {key.decode()} header appears more than once"}
            routing[key] = value.strip()  # RFC 9110 5.5
    wrong = envelope_error(params)
    if wrong is not None and wrong["code"] == INVALID_PARAMS:
        return wrong
    meta = params["_meta"]
    if decode(meta[ENVELOPE[0]]) != version:
        return {
            "code": HEADER_MISMATCH,
            "message": f"MCP-Protocol-Version does not match params._meta[{ENVELOPE[0]!r}]",
        }
    if routing.get(b"mcp-method", b"").decode("latin-1") != method:
        return {"code": HEADER_MISMATCH, "message": "the Mcp-Method header does not match the body's method"}
    named = NAMED_METHODS.get(method)
    if named is not None and named in params:
        value = decode(params[named])
        if isinstance(value, str) and header_text(_latin(routing.get(b"mcp-name"))) != value:
            return {"code": HEADER_MISMATCH, "message": f"the Mcp-Name header does not match the body's {named!r}"}
    return wrong


def _latin(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value is not None else None
