"""MCP over streamable HTTP at `/mcp` and `/servers/{server_id}/mcp`, both eras on the same address.

The session era (2024-11-05 … 2025-11-25) is known by its `initialize` and its `Mcp-Session-Id`; the stateless one
(2026-07-28) by the `MCP-Protocol-Version` header of every request. Raw ASGI: this is a hot route. An answer is plain
JSON until something has to be said before it; then it becomes a stream of events.

One module: a POST of either era is told apart only after its body was read, and both answer through one response.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

import structlog
from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.core.errors import InternalError, InvalidRequest, ToolScoreError
from toolscore.core.jsonrpc import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Frame,
    RequestId,
    decode,
    decode_frame,
    decode_frames,
    error_frame,
    notification_frame,
    result_frame,
)
from toolscore.core.models import Principal
from toolscore.endpoints.asgi import (
    Message,
    Receive,
    Scope,
    Send,
    forwarded_headers,
    header,
    headers_of,
    principal_of,
    read_body,
    request_id_of,
    send_json,
    send_stream,
)
from toolscore.endpoints.exchange import BY_NAME
from toolscore.endpoints.mcp.across import Across
from toolscore.endpoints.mcp.callers import Envelope, SessionCaller, StatelessCaller, envelope_of, may_wait
from toolscore.endpoints.mcp.envelope import HEADER_MISMATCH, check_envelope, check_params
from toolscore.endpoints.mcp.listener import open_listener, watch_resource
from toolscore.endpoints.mcp.params import Members, read_params, text_of
from toolscore.endpoints.mcp.server import MISSING_CLIENT_CAPABILITY, WATCHING, McpServer
from toolscore.endpoints.mcp.session import Session
from toolscore.endpoints.mcp.sessions import Sessions
from toolscore.endpoints.mcp.sse import Stream
from toolscore.endpoints.mcp.suspended import StatelessCalls
from toolscore.endpoints.watch import ClientWatch
from toolscore.upstreams import Caller
from toolscore.upstreams.protocol import META, SESSION_VERSIONS, UNSUPPORTED_PROTOCOL_VERSION

__all__ = ["McpHttpEndpoint"]

log = structlog.get_logger(__name__)

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

BATCH_VERSION = "2025-03-26"
MAX_BATCH = 100
RESUME_SECONDS = 30.0
"""How long a call goes on whose client's stream broke off, waiting for it to resume."""
RESUME_POLL_SECONDS = 0.25


class _Response:
    """One POST's response: JSON, or a stream of events once something is to be said before the answer."""

    def __init__(self, scope: Scope, send: Send, session: Session | None, request_id: int | str) -> None:
        self._send = send
        self._request_id = request_id
        self._session = session
        self._may_stream = b"text/event-stream" in headers_of(scope).get(b"accept", b"")
        self._writer: asyncio.Task[None] | None = None
        self.stream: Stream | None = None
        self._is_over = False

    def open(self) -> Stream | None:
        """Become a stream, if the client reads such and has no answer yet."""
        if self.stream is None and self._may_stream and not self._is_over:
            self.stream = self._session.open_stream(self._request_id) if self._session is not None else Stream(0, False)
            self._writer = asyncio.create_task(send_stream(self._send, self.stream.chunks()))
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
            if self.stream.readers or (
                self._session is not None and await self._session.is_read_elsewhere(self.stream.number)
            ):
                away_since = time.monotonic()

    def abort(self) -> None:
        """The client is gone for good."""
        self._is_over = True
        if self.stream is not None:
            self.stream.end()
        if self._writer is not None:
            self._writer.cancel()

    async def end(self, status: int, message: bytes | None, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Give the answer; `None` for a request that gets none. A stream has sent its headers before."""
        if self.stream is None and message is None:
            self._may_stream = True  # an empty stream is how a request ends without an answer
            self.open()
        self._is_over = True
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


class McpHttpEndpoint:
    """The ASGI application of both addresses."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._all = McpServer(gateway)
        self._single: dict[str, McpServer] = {}
        self._sessions = Sessions(gateway)
        self._suspended: StatelessCalls | None = None
        replicas = gateway.replicas
        self._across = Across(replicas, self._sessions, self._resume) if replicas is not None else None

    def __call__(
        self, scope: Scope, receive: Receive, send: Send, server_id: str | None = None
    ) -> Coroutine[Any, Any, None]:
        """Serve one request, when it is awaited.

        Args:
            server_id: of `/servers/{server_id}/mcp`; `None` for `/mcp`.

        Raises:
            ToolScoreError: what is not JSON-RPC's to say (an unknown server, a body over the bound).
        """
        server = self._server(server_id, principal_of(scope))
        take = self._post if scope["method"] == "POST" else self._take_other
        return take(server, server_id, scope, receive, send)

    async def _take_other(
        self, server: McpServer, server_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve what is no POST."""
        if scope["method"] == "GET":
            await self._get(server, server_id, scope, receive, send)
        elif scope["method"] == "DELETE":
            session = await self._session(server, server_id, scope)
            if session is not None:
                await self._sessions.end(header(scope, b"mcp-session-id") or "")
            await send_json(send, 200 if session is not None else 404, b"{}")
        else:
            await send_json(send, 405, _refusal(-32600, "use POST, GET or DELETE"), [(b"allow", b"POST, GET, DELETE")])

    async def _session(self, server: McpServer, server_id: str | None, scope: Scope) -> Session | None:
        """The session that a request names."""
        session_id = header(scope, b"mcp-session-id")
        if session_id is None:
            return None
        return await self._sessions.find(session_id, server, server_id, principal_of(scope))

    def _server(self, server_id: str | None, principal: Principal) -> McpServer:
        if server_id is None:
            return self._all
        if not self._gateway.shows_server(principal, server_id):
            self._gateway.find_server(principal, server_id)  # raises ServerNotFound, as for one that never was
        server = self._single.get(server_id)
        if server is None or self._gateway.upstreams.find(server_id) is None:
            if not self._gateway.library.of_server(server_id):
                self._gateway.find_server(principal, server_id)  # raises ServerNotFound with the ids there are
            server = self._single[server_id] = McpServer(self._gateway, server_id)
        return server

    async def _post(self, server: McpServer, server_id: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._gateway.settings.current.limits.max_body_bytes)
        if body.lstrip()[:1] == b"[" and await self._has_batches(server, scope, server_id):
            await self._post_batch(body, server, server_id, scope, receive, send)
            return
        try:
            frame = decode_frame(body)
        except InvalidRequest as exc:
            code = (exc.data or {}).get("rpc_code", exc.rpc_code)
            await send_json(send, 400, _refusal(code, exc.message))
            return
        await self._take(frame, server, server_id, scope, receive, send)

    async def _has_batches(self, server: McpServer, scope: Scope, server_id: str | None) -> bool:
        """Whether a request's session is of the only revision that has batches."""
        session = await self._session(server, server_id, scope)
        return session is not None and session.version == BATCH_VERSION

    async def _post_batch(
        self, body: bytes, server: McpServer, server_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve the messages of a batch one after the other, and give all answers in one array."""
        try:
            frames = decode_frames(body)
            if len(frames) > MAX_BATCH:
                raise InvalidRequest(f"a batch has at most {MAX_BATCH} messages here, found {len(frames):,}")
        except InvalidRequest as exc:
            await send_json(send, 400, _refusal((exc.data or {}).get("rpc_code", exc.rpc_code), exc.message))
            return
        plain = {**scope, "headers": [*scope["headers"], (b"accept", b"application/json")]}
        plain.pop(BY_NAME, None)
        answers: list[bytes] = []
        for frame in frames:
            parts: list[bytes] = []
            empty: list[bool] = []

            async def collect(message: Message, parts: list[bytes] = parts, empty: list[bool] = empty) -> None:
                if message["type"] == "http.response.start":
                    # A stream here is how a request that was cancelled ends: without an answer.
                    empty.append(any(value == b"text/event-stream" for _, value in message["headers"]))
                elif not empty[0]:
                    parts.append(message.get("body", b""))

            await self._take(frame, server, server_id, plain, receive, collect)
            if not empty:
                return  # nobody is there any more
            if answer := b"".join(parts):
                answers.append(answer)
        await send_json(send, 200 if answers else 202, b"[" + b",".join(answers) + b"]" if answers else b"")

    async def _take(
        self, frame: Frame, server: McpServer, server_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one message."""
        version = header(scope, b"mcp-protocol-version")
        stateless = version is not None and version not in SESSION_VERSIONS
        session: Session | None = None
        session_id = None if stateless else header(scope, b"mcp-session-id")
        if session_id is not None and frame.method != "initialize":
            session = await self._sessions.find(session_id, server, server_id, principal_of(scope))
            if session is None:
                gone = {"code": -32600, "message": "Session not found"}
                await send_json(send, 404, error_frame(frame.id if isinstance(frame.id, RequestId) else None, gone))
                return
        if not isinstance(frame.method, str):
            if session is not None:
                await self._answered(session, frame)
            known = isinstance(frame.id, RequestId) and not stateless
            await send_json(send, *((202, b"") if known else (400, _refusal(-32600, "expected a request"))))
            return
        if frame.id is None and not frame.method.startswith("notifications/"):
            await send_json(send, 400, _refusal(-32600, "a request's id must be a string or a number, not null"))
            return
        if not isinstance(frame.id, RequestId):
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
            envelope = envelope_of(params)
            refused = check_envelope(scope, frame.method, params, envelope, version)
            if refused is None and frame.method == "tools/call":
                sees = self._gateway.permissions.sees(principal_of(scope))
                refused = check_params(scope, self._gateway.library, server_id, params, sees)
            if refused is not None:
                await send_json(send, STATUS_OF[refused["code"]], error_frame(frame.id, refused))
            elif frame.method == "subscriptions/listen":
                await self._listen(server, frame.id, params, scope, receive, send)
            else:
                await self._answer(server, frame.method, frame.id, params, None, envelope, scope, receive, send)
            return
        if frame.method == "initialize":
            await self._initialize(server, server_id, frame, params, scope, send)
        elif session is not None and frame.method in WATCHING:
            await self._watch(session, frame, params, send)
        else:
            await self._answer(server, frame.method, frame.id, params, session, None, scope, receive, send)

    async def _answer(
        self,
        server: McpServer,
        method: str,
        frame_id: RequestId,
        params: Members,
        session: Session | None,
        envelope: Envelope | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        request_id = request_id_of(scope)
        response = _Response(scope, send, session, frame_id)
        headers = forwarded_headers(self._gateway.upstreams.forwarded, scope)
        caller: Caller
        if envelope is not None:
            caller = StatelessCaller(params, envelope, response.tell, principal_of(scope), headers)
        elif session is not None:
            token = (params.get("_meta") or {}).get("progressToken")
            caller = SessionCaller(session, response.tell, response.ask, token, headers, principal_of(scope))
            if (task := asyncio.current_task()) is not None:
                session.calls[frame_id] = task
        else:
            caller = Caller(principal_of(scope), headers=headers)
        status = 200
        message: bytes | None
        try:
            with ClientWatch(receive, response if session is not None and session.resumable else None) as watch:
                if isinstance(caller, StatelessCaller) and may_wait(method, params, caller):
                    result = await self._carry_out(server, method, params, caller, request_id)
                else:
                    result = await server.handle(method, params, caller, request_id=request_id)
            if session is not None and method == "logging/setLevel":
                await session.keep_level()
            message = result_frame(frame_id, result)
        except ToolScoreError as exc:
            error = exc.rpc_error()
            if caller.stateless:
                status = STATUS_OF.get(error.get("code", 0), 200)
            message = error_frame(frame_id, error)
        except asyncio.CancelledError:
            if watch.gone:
                response.abort()
                return  # nobody is there to hear the answer
            if session is None or (task := asyncio.current_task()) is None or session.calls.get(frame_id) is not task:
                raise
            task.uncancel()  # `notifications/cancelled`: the request gets no answer, its response ends
            message = None
        except Exception:  # a request's outermost line
            log.exception("serving an MCP request failed", method=method, request_id=request_id)
            message = error_frame(frame_id, InternalError(f"{method} failed inside the gateway").rpc_error())
        finally:
            if session is not None:
                session.calls.pop(frame_id, None)
        calls = method == "tools/call"
        await response.end(status, message, self._gateway.rates.headers(principal_of(scope)) if calls else ())

    async def _carry_out(
        self, server: McpServer, method: str, params: Members, caller: StatelessCaller, request_id: str
    ) -> Any:
        return await self._waiting().carry_out(
            caller, method, params, lambda opened: server.handle(method, opened, caller, request_id=request_id)
        )

    def _waiting(self) -> StatelessCalls:
        """The calls that wait for their clients."""
        if self._suspended is None:
            gateway, across = self._gateway, self._across
            self._suspended = StatelessCalls(
                gateway.settings.current.limits.input_seconds,
                gateway.ring,
                gateway.identity,
                gateway.replicas.members.id if gateway.replicas is not None else "",
                across.resume if across is not None else None,
            )
            gateway.changes.listen(lambda *_: None, self._suspended.close)
        return self._suspended

    async def _resume(self, caller: StatelessCaller, method: str, params: dict[str, Any]) -> Any:
        return await self._waiting().resume(caller, method, params)

    async def _initialize(
        self, server: McpServer, server_id: str | None, frame: Frame, params: Members, scope: Scope, send: Send
    ) -> None:
        assert isinstance(frame.id, RequestId)
        try:
            result = await server.initialize(params)
            version = result["protocolVersion"]
            session_id = await self._sessions.open(server, server_id, params, version, principal_of(scope))
        except ToolScoreError as exc:
            await send_json(send, exc.status, error_frame(frame.id, exc.rpc_error()))
            return
        await send_json(send, 200, result_frame(frame.id, result), [(b"mcp-session-id", session_id.encode())])

    def _notified(self, session: Session, frame: Frame) -> None:
        """Take a notification of a session's client. The stateless era has none: there a response is closed instead."""
        if frame.method == "notifications/roots/list_changed":
            self._gateway.upstreams.roots_changed(session.client)
            self._sessions.tell("session/roots", name=session.name)
        elif frame.method == "notifications/cancelled":
            session.cancel(decode(frame.params) if frame.params else None)

    async def _answered(self, session: Session, frame: Frame) -> None:
        """Take a client's answer to a question, which another gateway may have put."""
        if not session.answered(frame) and self._across is not None:
            await self._across.answer(session.name, frame)

    async def _watch(self, session: Session, frame: Frame, params: Members, send: Send) -> None:
        assert isinstance(frame.id, RequestId)
        try:
            await watch_resource(session.server, session.listener, str(frame.method), params)
            watched = frame.method == "resources/subscribe"
            await session.keep_watching(text_of(params, "uri", str(frame.method)), watched)
            message = result_frame(frame.id, {})
        except ToolScoreError as exc:
            message = error_frame(frame.id, exc.rpc_error())
        await send_json(send, 200, message)

    async def _get(self, server: McpServer, server_id: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream on which a session hears what belongs to no request; or one that broke off, from there on."""
        session_id = header(scope, b"mcp-session-id")
        session = await self._session(server, server_id, scope)
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
            found = session.streams.get(int(number[:15]))
            if found is not None:
                stream, after = found, int(seen[:9])
            elif int(number[:15]) % 2:  # of a response; a session's own stream goes on here
                elsewhere = await session.read_elsewhere(int(number[:15]), int(seen[:9]))
                if elsewhere is not None:
                    await _stream(elsewhere, receive, send)
                    return
                await send_json(send, 404, _refusal(-32600, f"the stream of event {last[:40]!r} is not kept any more"))
                return
        try:
            await _stream(stream.chunks(after), receive, send)
        finally:
            session.used = time.monotonic()

    async def _listen(
        self, server: McpServer, request_id: int | str, params: Members, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """`subscriptions/listen`: the response is the stream (2026-07-28, subscriptions)."""
        stream = Stream(0, False)
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


async def _stream(chunks: AsyncGenerator[bytes], receive: Receive, send: Send) -> None:
    """Send a stream until the client goes or it ends."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = {asyncio.create_task(send_stream(send, chunks)), asyncio.create_task(gone())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _refusal(code: int, message: str) -> bytes:
    return error_frame(None, {"code": code, "message": message})
