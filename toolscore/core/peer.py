"""`Peer`: one JSON-RPC conversation over a channel of whole messages. What the methods mean is not known here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Raw

from toolscore.core.errors import InternalError, InvalidRequest, Overloaded, ToolScoreError, UpstreamProtocolError
from toolscore.core.jsonrpc import (
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    ConnectionLost,
    Frame,
    NotSent,
    Params,
    RemoteError,
    RequestId,
    decode,
    decode_frame,
    decode_frames,
    error_frame,
    notification_frame,
    number_of,
    progress_token,
    remote_error,
    request_frame,
    result_frame,
    with_progress_token,
)

__all__ = ["Peer"]

OnRequest = Callable[[str, Raw | None, RequestId], Awaitable[Any]]
OnNotification = Callable[[str, Raw | None], None]

MAX_IN_FLIGHT = 64
"""Requests of the other side that one conversation serves at a time; one more is answered `overloaded`."""
ANSWERS = re.compile(rb'[{,]\s*"id"\s*:\s*"?(\d{1,15})"?\s*[,}]')
EDGE_BYTES = 256
"""Where the id of an answer stands that cannot be read as a whole."""
MAX_LATE = 1000
"""Cancelled requests whose late answers are still told from others."""


class Peer:
    """One JSON-RPC conversation. Either side may ask.

    Only from the event loop's thread. The owner feeds what arrives to `receive` and calls `close` when the
    channel ends; `send` writes one whole message and may wait for the other side to read.

    Args:
        on_junk: gets what is no message; without it the other side is told.
        lenient: take batches, and ids that are null, as servers in the field write them.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        *,
        on_request: OnRequest | None = None,
        on_notification: OnNotification | None = None,
        on_junk: Callable[[bytes], None] | None = None,
        lenient: bool = False,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._send = send
        self._on_request = on_request
        self._on_notification = on_notification
        self._on_junk = on_junk
        self._lenient = lenient
        self._max_in_flight = max_in_flight
        self._next_id = 0
        self._waiting: dict[RequestId, asyncio.Future[Raw]] = {}
        self._progress: dict[RequestId, Callable[[Raw], None]] = {}
        self._late: dict[RequestId, Callable[[], None]] = {}
        self._serving: dict[RequestId, asyncio.Task[None]] = {}
        self._side_tasks: set[asyncio.Task[None]] = set()
        self.closed: str | None = None

    @property
    def waiting(self) -> int:
        """Requests of ours that have no answer yet."""
        return len(self._waiting)

    async def request(
        self,
        method: str,
        params: Params | None = None,
        *,
        on_progress: Callable[[Raw], None] | None = None,
        on_late: Callable[[], None] | None = None,
    ) -> Raw:
        """Ask, and wait for the answer. Cancelling the wait tells the other side.

        Args:
            on_progress: gets the params of each `notifications/progress` for this request.
            on_late: called if the answer comes after the wait was cancelled.

        Raises:
            RemoteError: the other side refused.
            ConnectionLost: the channel ended first.
        """
        if self.closed is not None:
            raise ConnectionLost(self.closed, sent=False)
        self._next_id += 1
        request_id = self._next_id
        if on_progress is not None:
            params = with_progress_token(params, request_id)
            self._progress[request_id] = on_progress
        answer: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            await self._send(request_frame(request_id, method, params))
            return await answer
        except asyncio.CancelledError:
            if on_late is not None:
                self._late[request_id] = on_late
                if len(self._late) > MAX_LATE:
                    del self._late[next(iter(self._late))]
            if self.closed is None and method != "initialize":
                cancelled = {"requestId": request_id, "reason": "the caller went away or its time ran out"}
                self._spawn(self.notify("notifications/cancelled", cancelled))
            raise
        except OSError as exc:
            # What breaks while it is written may have arrived.
            raise ConnectionLost(str(exc) or type(exc).__name__, sent=not isinstance(exc, NotSent)) from exc
        finally:
            self._waiting.pop(request_id, None)
            self._progress.pop(request_id, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, also where the writing failed first

    async def notify(self, method: str, params: Params | None = None) -> None:
        """Tell without an answer. Does nothing on a channel that is gone."""
        if self.closed is None:
            try:
                await self._send(notification_frame(method, params))
            except (OSError, ConnectionLost):
                return

    def receive(self, data: bytes) -> None:
        """Take one message that arrived. Never raises."""
        try:
            self._receive(data)
        except (InvalidRequest, TypeError, ValueError, AttributeError):
            if self._on_junk is not None:  # an envelope that is well and a content that is not
                self._on_junk(data)

    def _receive(self, data: bytes) -> None:
        try:
            frames = decode_frames(data) if self._lenient else [decode_frame(data)]
        except InvalidRequest as exc:
            if self._lenient and (found := ANSWERS.search(data[:EDGE_BYTES]) or ANSWERS.search(data[-EDGE_BYTES:])):
                reason = UpstreamProtocolError(f"the server's answer cannot be read: {exc.message[:200]}")
                if self.fail(int(found[1]), reason):
                    return
            if self._on_junk is not None:
                self._on_junk(data)
            else:
                code = (exc.data or {}).get("rpc_code", INVALID_REQUEST)
                self._spawn(self._write(error_frame(None, {"code": code, "message": exc.message})))
            return
        for frame in frames:
            if not self._take(frame):
                if self._on_junk is not None:
                    self._on_junk(data)
                else:
                    self._refuse_null_id()

    def _take(self, frame: Frame) -> bool:
        """Take one message. Returns whether it is one."""
        if isinstance(frame.method, str):
            if isinstance(frame.id, int | str):
                self._serve(frame.id, frame.method, frame.params or None)
            elif frame.id is None and not (self._lenient or frame.method.startswith("notifications/")):
                return False
            else:
                self._notified(frame.method, frame.params or None)
        elif isinstance(frame.id, int | str):
            self._answered(frame.id, frame)
        elif self._lenient and len(self._waiting) == 1 and isinstance(frame.error, Raw):
            self._answered(next(iter(self._waiting)), frame)  # it could not read the id, and there is but one
        else:
            return False
        return True

    def fail(self, request_id: RequestId, reason: Exception) -> bool:
        """End one request of ours without its answer. False where nobody waits for it."""
        answer = self._waiting.get(request_id)
        if answer is None or answer.done():
            return False
        answer.set_exception(reason)
        return True

    def close(self, reason: str) -> None:
        """The channel is gone: whoever waits learns it now, whatever is being served is cancelled. Idempotent."""
        if self.closed is not None:
            return
        self.closed = reason
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost(reason, sent=True))
        for task in (*self._serving.values(), *self._side_tasks):
            task.cancel()

    def _answered(self, request_id: RequestId, frame: Frame) -> None:
        request_id = number_of(request_id)
        answer = self._waiting.get(request_id)
        if answer is None or answer.done():
            late = self._late.pop(request_id, None)
            if late is not None:
                late()
            return
        if isinstance(frame.error, Raw):
            answer.set_exception(remote_error(frame.error))
        elif isinstance(frame.result, Raw):
            answer.set_result(frame.result)
        else:
            answer.set_exception(RemoteError({"code": 0, "message": "an answer with neither result nor error"}))

    def _notified(self, method: str, params: Raw | None) -> None:
        if method == "notifications/progress":  # its token says whose it is; of a request that is over it is nobody's
            token = progress_token(params) if params is not None and self._progress else None
            listener = self._progress.get(token) if token is not None else None
            if listener is not None and params is not None:
                listener(params)
            return
        if method == "notifications/cancelled" and params is not None:
            target = decode(params)
            given = target.get("requestId") if isinstance(target, dict) else None
            task = self._serving.get(given) if isinstance(given, int | str) else None
            if task is not None:
                task.cancel()
                return
        if self._on_notification is not None:
            self._on_notification(method, params)

    def _serve(self, request_id: RequestId, method: str, params: Raw | None) -> None:
        if self._on_request is None:
            error = {"code": METHOD_NOT_FOUND, "message": f"method not found: {method}"}
            self._spawn(self._write(error_frame(request_id, error)))
        elif request_id in self._serving:
            error = {"code": INVALID_REQUEST, "message": f"request id {request_id!r} is in use"}
            self._spawn(self._write(error_frame(request_id, error)))
        elif len(self._serving) >= self._max_in_flight:
            full = Overloaded(
                f"{self._max_in_flight} requests are in flight on this connection: wait for one to end",
                retry_after_seconds=1,
            )
            self._spawn(self._write(error_frame(request_id, full.rpc_error())))
        else:
            task = asyncio.get_running_loop().create_task(self._carry_out(request_id, method, params))
            self._serving[request_id] = task

    async def _carry_out(self, request_id: RequestId, method: str, params: Raw | None) -> None:
        assert self._on_request is not None
        try:
            try:
                result = await self._on_request(method, params, request_id)
                message = result_frame(request_id, result)
            except RemoteError as exc:
                message = error_frame(request_id, exc.error)
            except ToolScoreError as exc:
                message = error_frame(request_id, exc.rpc_error())
            except Exception as exc:  # a request's outermost line: the other side gets an answer whatever happens
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"serving {method} failed", "exception": exc}
                )
                message = error_frame(request_id, InternalError(f"{method} failed inside the gateway").rpc_error())
            await self._write(message)
        finally:
            self._serving.pop(request_id, None)

    def _refuse_null_id(self) -> None:
        error = {"code": INVALID_REQUEST, "message": "a JSON-RPC message needs a method, or the id of an answer"}
        self._spawn(self._write(error_frame(None, error)))

    async def _write(self, message: bytes) -> None:
        try:
            await self._send(message)
        except (OSError, ConnectionLost):
            return

    def _spawn(self, coroutine: Any) -> None:
        if len(self._side_tasks) >= 4 * self._max_in_flight:
            coroutine.close()  # a peer that sends rubbish and reads nothing gets no queue of its own
            return
        task = asyncio.get_running_loop().create_task(coroutine)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)
