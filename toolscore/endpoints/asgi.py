"""What the HTTP doors share: the envelope of docs/wire.md, headers, and bounded bodies.

The two hot routes, `POST /execute_tool` and `POST /mcp`, are plain ASGI on top of this: FastAPI's own work would cost
more than ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any, TypeVar

import msgspec

from toolscore.access.auth import AccessRules
from toolscore.core.clock import milliseconds, timestamp
from toolscore.core.drawn import Drawn
from toolscore.core.errors import InvalidArguments, InvalidRequest, PayloadTooLarge, ToolScoreError
from toolscore.core.jsonrpc import encode
from toolscore.core.models import Principal
from toolscore.endpoints.exchange import BY_NAME, Exchange

__all__ = [
    "SSE_COMMENT_SECONDS",
    "SSE_HEADERS",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "envelope",
    "failure",
    "forwarded_headers",
    "given_twice",
    "header",
    "headers_of",
    "new_request_id",
    "one_line",
    "principal_of",
    "read_as",
    "read_body",
    "request_id_of",
    "resource_url",
    "send_json",
    "send_stream",
    "sse_event",
    "text_member",
    "whole",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_REQUEST_ID = 128

SSE_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
MAX_DROPPED_BYTES = 256 * 1024 * 1024
DROP_SECONDS = 20.0
"""What of a body over its bound is read and dropped, so that its client comes to read the answer."""
SSE_COMMENT_SECONDS = 15.0
"""Proxies cut silent streams; a comment now and then keeps them open."""

_count = itertools.count(1)
_run = Drawn(lambda: uuid.uuid4().hex[:16])


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The headers of a request by their names in lower case; of several with one name the last."""
    try:
        headers: dict[bytes, bytes] = scope[BY_NAME]
    except KeyError:
        headers = scope[BY_NAME] = dict(scope["headers"])
    return headers


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a header, its name in lower case; of several the last."""
    value = headers_of(scope).get(name)
    return value.decode("latin-1") if value is not None else None


def given_twice(scope: Scope, names: Collection[bytes]) -> bytes | None:
    """One of these headers (in lower case) that a request has more than once; most often `None`."""
    if len(scope["headers"]) == len(headers_of(scope)):
        return None
    named = [name for name, _ in scope["headers"] if name in names]
    return next((name for name in named if named.count(name) > 1), None)


def forwarded_headers(names: Collection[str], scope: Scope) -> Mapping[str, str]:
    """The headers of a request that some server is to have, by their names in lower case; most often none."""
    if not names:
        return {}
    return {name: value for name in names if (value := header(scope, name.encode())) is not None}


def principal_of(scope: Scope) -> Principal:
    """Who makes a request, as the front door found out."""
    principal: Principal = scope["toolscore.principal"]
    return principal


def new_request_id() -> str:
    """A request id; unique as a UUID is, at a tenth of its cost."""
    return f"{_run.text}{next(_count):012x}"


def request_id_of(scope: Scope) -> str:
    """The caller's own id of a request, if it is a reasonable one, else a new one."""
    given = header(scope, b"x-request-id")
    if given and len(given) <= MAX_REQUEST_ID and given.isprintable():
        return given
    return new_request_id()


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: over `limit` bytes. What still comes is read and dropped first, within bounds: many clients
            send all of it before they read any answer.
    """
    announced = headers_of(scope).get(b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        if int(announced) <= limit + MAX_DROPPED_BYTES and header(scope, b"expect") is None:
            await _drop(receive)
        raise _over(int(announced), limit)
    exchange = getattr(receive, "__self__", None)
    if isinstance(exchange, Exchange) and (body := exchange.whole_body()) is not None:
        if len(body) > limit:
            raise _over(len(body), limit)
        return body
    parts = bytearray()
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client left before its request was whole")
        parts += message.get("body", b"")
        if len(parts) > limit:
            if message.get("more_body"):
                await _drop(receive)
            raise PayloadTooLarge(f"the body is over the bound of {limit:,} bytes (`limits.max_body_bytes`)")
    return bytes(parts)


def _over(size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body has {size:,} bytes, the bound is {limit:,} (`limits.max_body_bytes`)")


async def _drop(receive: Receive) -> None:
    """Read what is left of a body that is too large, for a while."""
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DROP_SECONDS):
            while dropped <= MAX_DROPPED_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return


def send_json(
    send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Coroutine[Any, Any, None]:
    """One JSON answer, when it is awaited."""
    exchange = getattr(send, "__self__", None)
    if isinstance(exchange, Exchange) and not exchange.response_started and exchange.scope["method"] != "HEAD":
        return exchange.answer(status, body, headers)
    return _send_parts(send, status, body, headers)


async def _send_parts(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def whole(body: dict[str, Any]) -> dict[str, Any]:
    """A body of whole characters.

    Raises:
        InvalidRequest: half a surrogate pair stands in it.
    """
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            "half a surrogate pair (\\ud800 to \\udfff) is no character: send both halves, or \\ufffd"
        ) from None
    return body


T = TypeVar("T")


def read_as(body: dict[str, Any], kind: type[T]) -> T:
    """A body as a struct of its own.

    Raises:
        InvalidArguments: it does not fit. InvalidRequest: half a surrogate pair stands in it.
    """
    try:
        return msgspec.convert(whole(body), kind)
    except msgspec.ValidationError as exc:
        raise InvalidArguments(f"the body does not fit: {exc}") from exc


def text_member(body: Mapping[str, Any], name: str) -> str:
    """A member that must be a text, and not empty.

    Raises:
        InvalidArguments: it is none.
    """
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidArguments(f"`{name}` must be a text, found {value!r:.80}")
    return value


def envelope(
    data: Any,
    *,
    request_id: str,
    started: float,
    message: str = "",
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The one shape of every REST answer. `started` is a `time.perf_counter()`; `kept` tells of a kept result."""
    performance: dict[str, Any] = {
        "duration_ms": milliseconds(time.perf_counter() - started),
        "cache_hit": kept is not None,
    }
    if kept is not None:
        performance |= kept
    return {
        "success": True,
        "data": data,
        "message": message,
        "timestamp": timestamp(),
        "request_id": request_id,
        "performance": performance,
    }


def failure(error: ToolScoreError, *, request_id: str, started: float) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The envelope of an error, and the headers that go with it."""
    body = envelope(None, request_id=request_id, started=started, message=error.message)
    body["success"] = False
    body["error"] = error.body()
    headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_seconds))).encode()))
    return encode(body), headers


async def send_stream(send: Send, chunks: AsyncGenerator[bytes]) -> None:
    """One answer of server-sent events, to the end of the stream."""
    await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


_SEPARATORS = (("\u0085", b"\\u0085"), ("\u2028", b"\\u2028"), ("\u2029", b"\\u2029"))


def one_line(data: bytes) -> bytes:
    """JSON in which no character ends a line, for whoever splits lines as Python's `splitlines` does."""
    for separator, escaped in _SEPARATORS:
        data = data.replace(separator.encode(), escaped)
    return data


def sse_event(data: bytes, *, event: str = "message", event_id: str = "") -> bytes:
    """One event of a stream (HTML standard, section 9.2); `data` is JSON, so a line break in it is a blank."""
    head = f"id: {event_id}\nevent: {event}\ndata: " if event_id else f"event: {event}\ndata: "
    return head.encode() + data.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n\n"


def resource_url(scope: Scope, path: str, access: AccessRules) -> str:
    """An address of ours as the client knows us: the public one, or as a proxy that is trusted says, or as it asked."""
    if access.public_url is not None:
        return access.public_url.rstrip("/") + path
    scheme, host, prefix = scope.get("scheme", "http"), header(scope, b"host") or "localhost", ""
    client = scope.get("client")
    if client is not None and access.trusts_proxy(client[0]):
        given = (header(scope, name) for name in (b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"))
        proto, forwarded, prefix = ((value or "").split(",")[-1].strip() for value in given)
        scheme = proto if proto in ("http", "https") else scheme
        host, prefix = forwarded or host, prefix.rstrip("/")
    return f"{scheme}://{host}{prefix}{path}"
