"""`POST /execute_tool`, a hot route, as plain ASGI."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.calls import Call
from toolscore.core.errors import InternalError, InvalidArguments, InvalidRequest, ToolScoreError
from toolscore.core.jsonrpc import encode
from toolscore.core.models import ToolResult
from toolscore.endpoints.asgi import (
    Receive,
    Scope,
    Send,
    envelope,
    failure,
    forwarded_headers,
    header,
    headers_of,
    principal_of,
    read_body,
    request_id_of,
    send_json,
)
from toolscore.endpoints.views import failure_text, kept_fields, result_fields
from toolscore.endpoints.watch import ClientWatch
from toolscore.telemetry.tracing import CARRIED
from toolscore.upstreams import Caller

__all__ = ["EXECUTE_PATHS", "RUN_PATH", "ExecuteEndpoint"]

log = structlog.get_logger(__name__)

EXECUTE_PATHS = ("/execute_tool", "/api/v1/tools/execute")
RUN_PATH = "/api/v1/code/run"

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class ExecuteRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /execute_tool`."""

    tool_id: str
    action: str | None = None
    parameters: Raw = Raw(b"{}")
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    session_id: str | None = None
    cache: bool = True


_requests = msgspec.json.Decoder(ExecuteRequest)


class ExecuteEndpoint:
    """`POST /execute_tool`, the hot route, as plain ASGI."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = request_id_of(scope)
        headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
        watch = ClientWatch(receive)
        try:
            body = await read_body(scope, receive, self._gateway.settings.current.limits.max_body_bytes)
            call = self._read(_parse(body), scope, request_id)
            with watch:
                result = await self._gateway.calls.call(call)
            answer = _answer(result, request_id, started)
            status = 200
            headers += self._gateway.rates.headers(principal_of(scope))
        except ToolScoreError as exc:
            status = exc.status
            answer, headers = failure(exc, request_id=request_id, started=started)
            headers += self._gateway.rates.headers(principal_of(scope))
        except asyncio.CancelledError:
            if watch.gone:
                return
            raise
        except Exception:  # a request's outermost line
            log.exception("a call failed inside the gateway", request_id=request_id)
            error = InternalError(f"the gateway failed; its log has the details under request {request_id}")
            status = error.status
            answer, headers = failure(error, request_id=request_id, started=started)
        await send_json(send, status, answer, headers)

    def _read(self, request: ExecuteRequest, scope: Scope, request_id: str) -> Call:
        headers = forwarded_headers(self._gateway.upstreams.forwarded, scope)
        parameters = request.parameters
        if request.session_id is not None:
            parameters = _with_session(parameters, request.session_id)
        return Call(
            request.tool_id,
            parameters,
            caller=Caller(principal_of(scope), headers=headers),
            request_id=request_id,
            action=request.action,
            timeout_seconds=request.timeout_seconds,
            use_cache=request.cache,
            extra=_trace(scope),
        )


def _answer(result: ToolResult, request_id: str, started: float) -> bytes:
    return encode(
        envelope(
            result_fields(result),
            request_id=request_id,
            started=started,
            message=failure_text(result) if result.is_error else "",
            kept=kept_fields(result),
        )
    )


def _trace(scope: Scope) -> dict[str, Any] | None:
    """The caller's trace, as a tool's server gets it (MCP: members of `_meta`)."""
    if b"traceparent" not in headers_of(scope):
        return None
    return {"_meta": {key: value for key in CARRIED if (value := header(scope, key.encode())) is not None}}


def _parse(body: bytes) -> ExecuteRequest:
    try:
        if not body.isascii():
            body.decode()  # the parameters stay raw, so they are looked at here
        return _requests.decode(body)
    except msgspec.ValidationError as exc:
        raise InvalidArguments(
            f"the body does not fit: {exc}",
            suggestion='expected {"tool_id": str, "action"?: str, "parameters"?: {…}, "timeout_seconds"?: number, '
            '"session_id"?: str, "cache"?: bool}',
        ) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        suggestion = "send a JSON object with content-type application/json"
        if SURROGATE.search(body):
            suggestion = "half a surrogate pair (\\ud800 to \\udfff) is no character: send both halves, or \\ufffd"
        raise InvalidRequest(f"the body is not JSON: {exc}", suggestion=suggestion) from exc


def _with_session(parameters: Raw, session_id: str) -> Raw:
    """`session_id` beside the parameters means the tool's own argument of that name, unless it is given there."""
    try:
        members = msgspec.json.decode(parameters, type=dict[str, Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidArguments(f"`parameters` must be an object: {exc}") from exc
    return Raw(encode({"session_id": session_id, **members}))
