"""JSON-RPC 2.0 as MCP uses it: the codec, and `Peer`, one conversation over a channel of whole messages.

Members that nobody here needs to read stay raw bytes: fields we do not know, big numbers and the sender's own
formatting reach the other side as they were. What the methods mean is not known here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from toolscore.core.errors import InternalError, InvalidRequest, Overloaded, ToolScoreError

__all__ = [
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "ConnectionLost",
    "Frame",
    "Params",
    "Peer",
    "RemoteError",
    "RequestId",
    "decode",
    "decode_frame",
    "decode_object",
    "encode",
    "error_frame",
    "meta_of",
    "notification_frame",
    "remote_error",
    "request_frame",
    "result_frame",
    "with_progress_token",
]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602

RequestId = int | str
Params = dict[str, Any]
OnRequest = Callable[[str, Raw | None, RequestId], Awaitable[Any]]
OnNotification = Callable[[str, Raw | None], None]

MAX_IN_FLIGHT = 64
"""Requests of the other side that one conversation serves at a time; one more is answered `overloaded`."""


MAX_LATE = 1000
"""Cancelled requests whose late answers are still told from others."""


class RemoteError(Exception):
    """The other side answered with a JSON-RPC error object."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('message')} (code {error.get('code')})")
        self.error = error
        self.code = error.get("code")
        self.message = str(error.get("message", ""))


class ConnectionLost(Exception):
    """The channel is gone. `sent` says whether the request had left before: then it may have been carried out."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class Frame(msgspec.Struct):
    """One JSON-RPC message, read no further than its envelope."""

    jsonrpc: str | UnsetType = UNSET
    id: int | str | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_encoder = msgspec.json.Encoder()
_frames = msgspec.json.Decoder(Frame)
_objects = msgspec.json.Decoder(dict[str, Raw])
_values = msgspec.json.Decoder()


def encode(value: Any) -> bytes:
    """JSON bytes of a value, `msgspec.Raw` members as they are. A lone surrogate becomes U+FFFD."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_scrubbed(value))


def decode(data: bytes | Raw) -> Any:
    """The Python value of JSON bytes.

    Raises:
        InvalidRequest: not JSON.
    """
    try:
        return _values.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _lenient(bytes(data))


def decode_object(data: bytes | Raw) -> dict[str, Raw]:
    """A JSON object's members, each still raw.

    Raises:
        InvalidRequest: not a JSON object.
    """
    try:
        return _objects.decode(data)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"expected a JSON object: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode_object(_encoder.encode(_lenient(bytes(data))))


def decode_frame(data: bytes) -> Frame:
    """Read the envelope of one message.

    Raises:
        InvalidRequest: not JSON (`data["rpc_code"]` is -32700), or JSON that is no JSON-RPC object (a batch too).
    """
    data = _in_utf8(data)
    try:
        try:
            return _frames.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            if isinstance(exc, msgspec.ValidationError):
                raise
            return _frames.decode(_encoder.encode(_lenient(data)))
    except msgspec.ValidationError as exc:
        what = "batches are not part of MCP" if data.lstrip()[:1] == b"[" else str(exc)
        raise InvalidRequest(f"not a JSON-RPC 2.0 object: {what}") from exc


def _in_utf8(data: bytes) -> bytes:
    """The bytes, or where they are not UTF-8 (a server that writes Latin-1), with U+FFFD in the place of what is not.

    What stays raw is relayed, so it is looked at where it comes in.
    """
    if data.isascii():
        return data
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


def _lenient(data: bytes) -> Any:
    """Read what the fast decoder refuses and the standard library takes: lone surrogates, NaN (as null)."""
    try:
        return _scrubbed(json.loads(data, parse_constant=lambda _: None))
    except (ValueError, RecursionError):
        raise InvalidRequest(f"not JSON: {data[:80]!r}", data={"rpc_code": PARSE_ERROR}) from None


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_scrubbed(key): _scrubbed(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(member) for member in value]
    return value


def with_progress_token(params: Params | None, token: RequestId) -> Params:
    """The params of a request whose sender wants to hear of progress under this token (MCP, progress)."""
    return {**(params or {}), "_meta": {**meta_of(params), "progressToken": token}}


def meta_of(params: Params | None) -> dict[str, Any]:
    """The members of a request's `_meta`; a copy.

    Raises:
        InvalidRequest: it is not an object.
    """
    meta = (params or {}).get("_meta")
    return decode_object(meta) if isinstance(meta, Raw) else dict(meta or {})


def request_frame(request_id: RequestId, method: str, params: Any = None) -> bytes:
    """A request; without params where they are `None`."""
    message = {"jsonrpc": "2.0", "id": request_id, "method": method}
    return encode(message if params is None else {**message, "params": params})


def notification_frame(method: str, params: Any = None) -> bytes:
    """A notification; without params where they are `None`."""
    message = {"jsonrpc": "2.0", "method": method}
    return encode(message if params is None else {**message, "params": params})


def result_frame(request_id: RequestId, result: Any) -> bytes:
    """The answer to a request."""
    return encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def error_frame(request_id: RequestId | None, error: dict[str, Any]) -> bytes:
    """The refusal of a request; `None` where its id could not be read."""
    return encode({"jsonrpc": "2.0", "id": request_id, "error": error})


def remote_error(error: Raw) -> RemoteError:
    """The `error` member of an answer; code 0 where it is no object."""
    try:
        value = decode(error)
    except InvalidRequest as exc:
        value = exc.message
    return RemoteError(value if isinstance(value, dict) else {"code": 0, "message": str(value)})


class Peer:
    """One JSON-RPC conversation. Either side may ask.

    Only from the event loop's thread. The owner feeds what arrives to `receive` and calls `close` when the
    channel ends; `send` writes one whole message and may wait for the other side to read.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        *,
        on_request: OnRequest | None = None,
        on_notification: OnNotification | None = None,
        on_junk: Callable[[bytes], None] | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._send = send
        self._on_request = on_request
        self._on_notification = on_notification
        self._on_junk = on_junk
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
        sent = False
        try:
            await self._send(request_frame(request_id, method, params))
            sent = True
            return await answer
        except asyncio.CancelledError:
            if sent and on_late is not None:
                self._late[request_id] = on_late
                if len(self._late) > MAX_LATE:
                    del self._late[next(iter(self._late))]
            if sent and self.closed is None and method != "initialize":
                cancelled = {"requestId": request_id, "reason": "the caller went away or its time ran out"}
                self._spawn(self.notify("notifications/cancelled", cancelled))
            raise
        except OSError as exc:
            raise ConnectionLost(str(exc) or type(exc).__name__, sent=sent) from exc
        finally:
            self._waiting.pop(request_id, None)
            self._progress.pop(request_id, None)

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
            frame = decode_frame(data)
        except InvalidRequest as exc:
            if self._on_junk is not None:
                self._on_junk(data)
            else:
                code = (exc.data or {}).get("rpc_code", INVALID_REQUEST)
                self._spawn(self._write(error_frame(None, {"code": code, "message": exc.message})))
            return
        if isinstance(frame.method, str):
            if isinstance(frame.id, int | str):
                self._serve(frame.id, frame.method, frame.params or None)
            elif frame.id is None:
                self._refuse_null_id()
            else:
                self._notified(frame.method, frame.params or None)
        elif isinstance(frame.id, int | str):
            self._answered(frame.id, frame)
        elif self._on_junk is not None:
            self._on_junk(data)
        else:
            self._refuse_null_id()

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
        if isinstance(request_id, str) and request_id.isascii() and request_id.isdigit():
            request_id = int(request_id)  # some servers turn an id into a string
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
        if method == "notifications/progress" and params is not None and self._progress:
            token = decode_object(params).get("progressToken")
            listener = self._progress.get(decode(token)) if token is not None else None
            if listener is not None:
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
