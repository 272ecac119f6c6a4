"""What the HTTP doors share: the envelope of WIRE.md 2, bounded bodies, and noticing that a client has gone.

The two hot routes, `POST /execute_tool` and `POST /mcp`, are plain ASGI on top of this: FastAPI's own work would cost
more than ours.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any

from toolscore.errors import InvalidRequest, PayloadTooLarge, ToolScoreError
from toolscore.jsonrpc import encode
from toolscore.models import timestamp

__all__ = [
    "ClientWatch",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "envelope",
    "failure",
    "header",
    "new_request_id",
    "read_body",
    "send_json",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCH_AFTER_SECONDS = 0.05
"""Most calls end sooner; only for the others is it worth a task to notice that the client hung up."""

MAX_REQUEST_ID = 128


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a header, its name in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def new_request_id(given: str | None) -> str:
    """The caller's own request id, if it is a reasonable one, else a new one."""
    if given and len(given) <= MAX_REQUEST_ID and given.isprintable():
        return given
    return uuid.uuid4().hex


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: over `limit` bytes, refused before it was read where its length was announced.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise PayloadTooLarge(f"the body has {int(announced):,} bytes, the bound is {limit:,} (`limits.max_body_bytes`)")
    message = await receive()
    if message["type"] == "http.disconnect":
        raise InvalidRequest("the client left before its request was whole")
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > limit:
            raise PayloadTooLarge(f"the body is over the bound of {limit:,} bytes (`limits.max_body_bytes`)")
        return body
    parts = bytearray(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client left before its request was whole")
        parts += message.get("body", b"")
        if len(parts) > limit:
            raise PayloadTooLarge(f"the body is over the bound of {limit:,} bytes (`limits.max_body_bytes`)")
    return bytes(parts)


async def send_json(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """One JSON answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *(headers or ()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def envelope(
    data: Any,
    *,
    request_id: str,
    started: float,
    message: str = "",
    cache_hit: bool = False,
) -> dict[str, Any]:
    """The one shape of every REST answer. `started` is a `time.perf_counter()`."""
    return {
        "success": True,
        "data": data,
        "message": message,
        "timestamp": timestamp(),
        "request_id": request_id,
        "performance": {"duration_ms": round((time.perf_counter() - started) * 1000, 3), "cache_hit": cache_hit},
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


class ClientWatch:
    """Cancels the task that enters it when the HTTP client hangs up: a call that nobody waits for must not go on.

    The body must have been read before, so that the next message can only be the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.gone = False

    def __enter__(self) -> ClientWatch:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                if self._task is not None:
                    self._task.cancel()
                return


def log_fields(scope: Mapping[str, Any]) -> dict[str, Any]:
    """What a log line says of a request."""
    return {"method": scope.get("method"), "path": scope.get("path")}
