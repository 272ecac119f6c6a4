"""`POST /api/v1/code/run`: code that calls tools, as plain ASGI: it ends when its client hangs up.

Who accepts `application/x-ndjson` gets what happens as it happens, a line each: `{"event": "stdout", "text"}`,
`{"event": "progress", "message"}`, and at last `{"event": "end", …the envelope}`. Others get the envelope alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog
from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.calls import Call
from toolscore.calls.code import RUN_META
from toolscore.calls.code_run import RUN_CODE
from toolscore.core.errors import (
    Conflict,
    InternalError,
    InvalidArguments,
    InvalidRequest,
    ToolNotFound,
    ToolScoreError,
)
from toolscore.core.jsonrpc import decode, decode_object, encode, meta_of
from toolscore.core.models import Principal
from toolscore.endpoints.asgi import (
    Receive,
    Scope,
    Send,
    envelope,
    failure,
    forwarded_headers,
    header,
    one_line,
    principal_of,
    read_body,
    request_id_of,
    send_json,
)
from toolscore.endpoints.views import failure_text, result_fields
from toolscore.endpoints.watch import ClientWatch
from toolscore.upstreams import Caller

__all__ = ["CodeEndpoint"]

log = structlog.get_logger(__name__)

NDJSON = "application/x-ndjson"
MAX_UNHEARD = 1000
"""A client that does not keep up misses progress; what the code prints is bounded elsewhere, and not missed."""
UNBUFFERED = ((b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))


class _Listener(Caller):
    """Who runs code over REST and hears of it meanwhile."""

    wants_progress = True

    def __init__(self, principal: Principal, headers: Mapping[str, str]) -> None:
        super().__init__(principal, headers=headers)
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.tell_output = self._wrote

    def _wrote(self, text: str) -> None:
        self.heard.put_nowait({"event": "stdout", "text": text})

    def notify(self, method: str, params: Raw | None) -> None:
        if method == "notifications/progress" and params is not None and self.heard.qsize() < MAX_UNHEARD:
            self.heard.put_nowait({"event": "progress", "message": str(decode(params).get("message", ""))})


class CodeEndpoint:
    """Runs code."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._live: set[tuple[str, str]] = set()
        """Runs under way whose callers gave them an id: principal and id."""

    @contextlib.contextmanager
    def _once(self, scope: Scope, request_id: str) -> Iterator[Callable[[], None]]:
        """Keep a run from being started twice: a caller whose connection broke may ask again while it goes on.

        Yields:
            To be called once it is over: whoever reads its end may use its id again.

        Raises:
            Conflict: it is under way.
        """
        run = (principal_of(scope).name, request_id)
        if header(scope, b"x-request-id") is None:
            yield lambda: None
            return
        if run in self._live:
            raise Conflict(f"the run {request_id!r:.140} is under way: its result will stand in the journal")
        self._live.add(run)
        left = [run]

        def over() -> None:
            if left:
                self._live.discard(left.pop())

        try:
            yield over
        finally:
            over()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = request_id_of(scope)
        headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
        streams = NDJSON in (header(scope, b"accept") or "")
        status = 200
        try:
            body = await read_body(scope, receive, self._gateway.settings.current.limits.max_body_bytes)
            with self._once(scope, request_id) as over, ClientWatch(receive) as watch:
                who = forwarded_headers(self._gateway.upstreams.forwarded, scope)
                listener = _Listener(principal_of(scope), who) if streams else None
                call = Call(
                    RUN_CODE,
                    _arguments(body),
                    caller=listener or Caller(principal_of(scope), headers=who),
                    request_id=request_id,
                )
                if listener is not None:
                    await self._stream(call, listener, request_id, started, headers, send, over)
                    return
                answer = await self._run(call, request_id, started)
        except ToolScoreError as exc:
            status = exc.status
            answer, headers = failure(exc, request_id=request_id, started=started)
        except asyncio.CancelledError:
            if watch.gone:
                return
            raise
        except Exception:  # a request's outermost line
            log.exception("a run failed inside the gateway", request_id=request_id)
            error = InternalError(f"the gateway failed; its log has the details under request {request_id}")
            status = error.status
            answer, headers = failure(error, request_id=request_id, started=started)
        await send_json(send, status, answer, headers)

    async def _run(self, call: Call, request_id: str, started: float) -> bytes:
        try:
            result = await self._gateway.calls.call(call)
        except ToolNotFound as exc:
            if self._gateway.settings.current.discovery.mcp_tools:
                raise
            raise ToolNotFound(
                "code cannot be run here", suggestion="the operator has switched off `discovery.mcp_tools`"
            ) from exc
        members = decode_object(result.raw)
        meta = meta_of({"_meta": members["_meta"]}) if "_meta" in members else {}
        fields = {**result_fields(result), "run": meta.get(RUN_META)}
        message = failure_text(result) if result.is_error else ""
        return encode(envelope(fields, request_id=request_id, started=started, message=message))

    async def _stream(
        self,
        call: Call,
        listener: _Listener,
        request_id: str,
        started: float,
        headers: list[tuple[bytes, bytes]],
        send: Send,
        over: Callable[[], None],
    ) -> None:
        async def run() -> bytes:
            try:
                return await self._run(call, request_id, started)
            except ToolScoreError as exc:
                return failure(exc, request_id=request_id, started=started)[0]

        running = asyncio.ensure_future(run())
        try:
            head = [*headers, (b"content-type", NDJSON.encode()), *UNBUFFERED]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            while not running.done() or not listener.heard.empty():
                hearing = asyncio.ensure_future(listener.heard.get())
                await asyncio.wait({running, hearing}, return_when=asyncio.FIRST_COMPLETED)
                if not hearing.done():
                    hearing.cancel()
                    continue
                await send({"type": "http.response.body", "body": _line(hearing.result()), "more_body": True})
            over()
            end = _line({"event": "end", **decode_object(running.result())})
            await send({"type": "http.response.body", "body": end})
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _line(event: dict[str, Any]) -> bytes:
    return one_line(encode(event)) + b"\n"


def _arguments(body: bytes) -> Raw:
    try:
        if not isinstance(decode(body), dict):
            raise InvalidArguments("the body must be an object with `code`")
    except InvalidRequest as exc:
        raise InvalidRequest(
            f"the body is {exc}", suggestion="send a JSON object with content-type application/json"
        ) from exc
    return Raw(body)
