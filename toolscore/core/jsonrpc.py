"""JSON-RPC 2.0 as MCP uses it: how messages are read and written.

Members that nobody here needs to read stay raw bytes: fields we do not know, big numbers and the sender's own
formatting reach the other side as they were. What the methods mean is not known here.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from toolscore.core.errors import InvalidRequest

__all__ = [
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "ConnectionLost",
    "Frame",
    "NotSent",
    "Params",
    "RemoteError",
    "RequestId",
    "decode",
    "decode_frame",
    "decode_frames",
    "decode_object",
    "encode",
    "error_frame",
    "meta_of",
    "notification_frame",
    "number_of",
    "progress_token",
    "remote_error",
    "request_frame",
    "result_frame",
    "twice",
    "with_progress_token",
]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602

RequestId = int | str
Params = dict[str, Any]


class RemoteError(Exception):
    """The other side answered with a JSON-RPC error object."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('message')} (code {error.get('code')})")
        self.error = error
        self.code = error.get("code")
        self.message = str(error.get("message", ""))


class NotSent(ConnectionResetError):
    """Of what was to be sent nothing has left."""


class ConnectionLost(Exception):
    """The channel is gone, or the other side refuses it.

    Attributes:
        sent: the request had left before: then it may have been carried out.
        refused: the other side is there and said no; asking again at once gets the same answer.
        busy: it refuses for the moment alone.
        retry_after: seconds after which it may be asked again, where it said so.
    """

    def __init__(
        self, reason: str, *, sent: bool, refused: bool = False, retry_after: float | None = None, busy: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.refused = refused
        self.busy = busy
        self.retry_after = retry_after


class Frame(msgspec.Struct):
    """One JSON-RPC message, read no further than its envelope."""

    jsonrpc: str | UnsetType | None = UNSET
    id: int | str | UnsetType | None = UNSET
    method: str | UnsetType | None = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SOME_BYTES, SOME_NUMBERS = 32 * 1024, 1000
MAX_PARTS = 1_000_000
"""Of a value: a million empty objects take twenty times the memory of their text."""
MAX_BATCH = 1000
"""Messages of one batch."""

_encoder = msgspec.json.Encoder()
_frames = msgspec.json.Decoder(Frame)
_batches = msgspec.json.Decoder(list[Raw])
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
        InvalidRequest: not JSON, or with far more parts than anybody means to send.
    """
    try:
        if memoryview(data).nbytes > SOME_BYTES:
            data = bytes(data)
            _check_parts(data)
            if data.count(b"e-") + data.count(b"E-") > SOME_NUMBERS:  # which the fast decoder takes 7 µs each for
                return _lenient(data)
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
    """Read the envelope of one message. Members that are null are taken as left out, but for `id`, and for a `result`
    that no error stands beside.

    Raises:
        InvalidRequest: not JSON (`data["rpc_code"]` is -32700), or JSON that is no JSON-RPC object (a batch too).
    """
    data = _in_utf8(data)
    try:
        try:
            return _without_nulls(_frames.decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            if isinstance(exc, msgspec.ValidationError):
                raise
            return _without_nulls(_frames.decode(_encoder.encode(_lenient(data))))
    except msgspec.ValidationError as exc:
        what = "batches are not part of MCP" if data.lstrip()[:1] == b"[" else str(exc)
        raise InvalidRequest(f"not a JSON-RPC 2.0 object: {what}") from exc


def decode_frames(data: bytes) -> list[Frame]:
    """Read a message, or a batch of them as revision 2025-03-26 has it.

    Raises:
        InvalidRequest: as `decode_frame`; an empty batch, or one that is over the bound.
    """
    if data.lstrip(BYTE_ORDER_MARK + b" \t\r\n")[:1] != b"[":
        return [decode_frame(data)]
    try:
        messages = _batches.decode(_in_utf8(data))
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidRequest(f"not a batch: {exc}", data={"rpc_code": PARSE_ERROR}) from exc
    if not 0 < len(messages) <= MAX_BATCH:
        raise InvalidRequest(f"a batch has 1 to {MAX_BATCH:,} messages, found {len(messages):,}")
    return [decode_frame(bytes(message)) for message in messages]


def _without_nulls(frame: Frame) -> Frame:
    if frame.method is None:
        frame.method = UNSET
    if _is_null(frame.params):
        frame.params = UNSET
    if frame.error is not UNSET:
        if _is_null(frame.error):
            frame.error = UNSET
        elif _is_null(frame.result):
            frame.result = UNSET
    return frame


def _is_null(member: Raw | UnsetType) -> bool:
    return isinstance(member, Raw) and memoryview(member).nbytes == 4 and bytes(member) == b"null"


def _in_utf8(data: bytes) -> bytes:
    """The bytes, or where they are not UTF-8 (a server that writes Latin-1), with U+FFFD in the place of what is not.

    What stays raw is relayed, so it is looked at where it comes in.
    """
    if data.isascii():
        return data
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


def _check_parts(data: bytes) -> None:
    parts = data.count(b",") + data.count(b"[") + data.count(b"{")
    if parts > MAX_PARTS:
        raise InvalidRequest(f"{parts:,} parts, over the bound of {MAX_PARTS:,}")


def _lenient(data: bytes) -> Any:
    """Read what the fast decoder refuses and the standard library takes: lone surrogates, NaN (as null)."""
    try:
        value = json.loads(data, parse_constant=lambda _: None)
        return _scrubbed(value) if b"\\u" in data else value
    except (ValueError, RecursionError) as exc:
        if "digits" in str(exc):
            raise InvalidRequest("a number in it has more digits than are read") from None
        shown = data[:80].decode("utf-8", "replace")
        raise InvalidRequest(f"not JSON: {shown}", data={"rpc_code": PARSE_ERROR}) from None


def twice(data: bytes | Raw, value: Any) -> str | None:
    """A member that some object in a text has twice; `None`: there is none.

    Readers take the first or the last of the two: what was judged would not be what is carried out.

    Args:
        value: what `decode` made of the text.
    """
    text = bytes(data)
    ends = text.count(b'":')
    is_flat = isinstance(value, dict) and text.count(b"{") == 1  # what stands in it are no objects
    members = len(value) if is_flat else _members(value)
    if ends == members and ends == text.count(b":"):  # the usual spelling, and no text with a colon
        return None
    if len(_KEY_ENDS.findall(text)) == members:  # each key ends so, and maybe some texts do
        return None
    found: list[str] = []

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            names = [name for name, _ in pairs]
            found.append(next(name for name in names if names.count(name) > 1))
        return members

    try:
        json.loads(text, object_pairs_hook=noted)
    except (ValueError, RecursionError):
        return None
    return found[0] if found else None


_KEY_ENDS = re.compile(rb'"[ \t\r\n]*:')


def _members(value: Any) -> int:
    """How many members all objects in a value have together."""
    count = 0
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            count += len(part)
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return count


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


def progress_token(params: Raw) -> RequestId | None:
    """Whose progress a `notifications/progress` tells of: the token that we gave; `None`: it has none.

    Raises:
        InvalidRequest: params that are no object.
    """
    given = decode_object(params).get("progressToken")
    token = number_of(decode(given)) if given is not None else None
    return token if isinstance(token, int | str) else None


def number_of(given: Any) -> Any:
    """An id or a token of ours, which are numbers: some servers send them back as texts."""
    return int(given) if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20 else given


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
