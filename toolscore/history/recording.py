"""The journal's writer, a process of its own: `python -m toolscore.history.recorder`, fed by the gateway over a pipe.

Redacting, packing and writing a call costs as much as the call itself. In the gateway's process it would hold up other
calls, whichever thread did it; here it costs them nothing. What was put into the pipe is written even if the gateway is
killed in that moment.

    gateway ── frames: rules, calls ──► recorder ──► database, log
            ◄── lines: {"taken", "lost", "error"} ──

One module: it is one way, from the frame to the row.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import msgspec
import structlog
from msgspec import Raw

from toolscore.core.drawn import Drawn
from toolscore.core.redaction import redact_json, redact_text
from toolscore.history.lines import console_line, json_line
from toolscore.stores.behind import with_patience
from toolscore.stores.errors import StoreError
from toolscore.stores.journal_file import JournalStore, open_journal

__all__ = [
    "LEFT_OUT",
    "CallRecord",
    "Order",
    "Recording",
    "Taken",
    "call_frame",
    "call_id_of",
    "first_order",
    "new_call_id",
    "order_frame",
    "prune",
    "start_frame",
    "unpacked",
]

log = structlog.get_logger("call")

GROUP_SECONDS = 0.03
"""So long records are gathered, in the pipe, which outlives the gateway; but what kills a container kills us, too."""
READ_BYTES, GROUP_RECORDS = 256 * 1024, 500
FEW_BYTES = 64 * 1024
"""Who sends more at once, or more than an eighth of what the pipe holds, is read on without a pause: it must not fill.
"""
MAX_WAITING = 2000
"""Records that were read and not written yet; then the pipe has to wait."""
LEFT_OUT = "toolscore/left_out"
"""The member of what stands in the place of a body that is not there."""
INLINE_BYTES = 2048
"""A larger body is compressed and kept once, under its hash."""
MAX_ERROR = 2000
KNOWN_BODIES = 4096
BODY_NOTED_MS = 60_000
PRUNE_SECONDS = 60.0
ROW_BYTES = 400
"""What a record takes beside its bodies, roughly."""

_HEAD = struct.Struct("<BIII")
_CALL, _ORDER = 0, 1
_numbers = count()
_process = Drawn(lambda: os.urandom(2).hex())


def new_call_id(moment: float | None = None) -> str:
    """An id that sorts by time: milliseconds since 1970, this process, a number; 22 hex digits."""
    milliseconds = int((time.time() if moment is None else moment) * 1000)
    return f"{milliseconds:012x}{_process.text}{next(_numbers) & 0xFFFFFF:06x}"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """How to record from now on. `database_url` and the log's form count in the first only.

    Attributes:
        keep_days: records are kept for so long. keep_mb: roughly so much, in MB; the oldest goes first.
        log_calls: also write a line to the log for each call.
    """

    keep_days: float = 30.0
    keep_mb: int = 1024
    log_calls: bool = True
    database_url: str = ""
    log_level: str = "info"
    log_format: str = "console"


class CallRecord(msgspec.Struct, array_like=True):
    """How one call went. `at_ms`: milliseconds since 1970; its bodies travel beside it, as they came, secrets too."""

    call_id: str
    request_id: str
    at_ms: int
    principal: str
    tool_id: str
    server_id: str
    name: str
    definition_hash: str
    outcome: str
    duration_ms: float
    cache: str | None = None
    error: str | None = None
    arguments_bytes: int = 0
    result_bytes: int = -1
    """-1: there was none. Of a body over the bound only the size is sent."""
    parent: str | None = None
    """The call whose code made it."""
    queued_ms: float | None = None  # of its duration: waiting for a place
    server_ms: float | None = None  # and at the server


class Taken(msgspec.Struct, frozen=True):
    """What the recorder has done since it started."""

    taken: int
    lost: int
    error: str | None = None


_encode = msgspec.json.Encoder().encode
_records = msgspec.json.Decoder(CallRecord)
_orders = msgspec.json.Decoder(Order)


def call_frame(record: CallRecord, arguments: Raw, result: Raw | None) -> bytes:
    """A call as it goes through the pipe."""
    head = _encode(record)
    body = b"" if result is None else bytes(result)
    given = bytes(arguments)
    return b"".join((_HEAD.pack(_CALL, len(head), len(given), len(body)), head, given, body))


def start_frame(record: CallRecord, arguments: Raw) -> bytes:
    """A call that begins, as it goes through the pipe if its end never does; without secrets, since it is kept."""
    if record.arguments_bytes > INLINE_BYTES:
        return call_frame(record, Raw(b""), None)
    data, hidden = redact_json(arguments)
    if not hidden:
        return call_frame(record, arguments, None)
    clean = Raw(data)
    return call_frame(msgspec.structs.replace(record, arguments_bytes=memoryview(clean).nbytes), clean, None)


def call_id_of(frame: bytes) -> str:
    """The id of the call that `call_frame` made this of."""
    _, head, _, _ = _HEAD.unpack_from(frame)
    return _records.decode(frame[_HEAD.size : _HEAD.size + head]).call_id


def order_frame(order: Order) -> bytes:
    """An order as it goes through the pipe."""
    head = _encode(order)
    return _HEAD.pack(_ORDER, len(head), 0, 0) + head


def unpacked(content: bytes) -> bytes:
    """A large body as it was."""
    return zlib.decompress(content)


class _Rows:
    """Makes rows of calls: redacted, large bodies apart."""

    def __init__(self) -> None:
        self.order = Order()
        self._known: dict[str, str] = {}

    def of(self, group: list[tuple[CallRecord, bytes, bytes]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        large: dict[str, Any] = {}
        for record, given, came in group:
            arguments, arguments_body, hidden = self._body(given, record.arguments_bytes, record.call_id, large)
            result, result_body, hidden_too = self._body(came, record.result_bytes, record.call_id, large)
            error = _text(redact_text(record.error[:MAX_ERROR])) if record.error else None
            rows.append(
                {
                    "call_id": record.call_id,
                    "request_id": _text(record.request_id[:128]),
                    "at_ms": record.at_ms,
                    "principal": _text(record.principal),
                    "tool_id": record.tool_id,
                    "server_id": record.server_id,
                    "name": _text(record.name),
                    "definition_hash": record.definition_hash,
                    "outcome": record.outcome,
                    "duration_ms": record.duration_ms,
                    "cache": record.cache,
                    "error": error,
                    "arguments": arguments,
                    "arguments_body": arguments_body,
                    "result": result,
                    "result_body": result_body,
                    "redacted": int(hidden) + 2 * int(hidden_too),
                    "parent": record.parent,
                    "queued_ms": record.queued_ms,
                    "server_ms": record.server_ms,
                }
            )
        return rows, list(large.values())

    def written(self, large: list[dict[str, Any]]) -> None:
        """Large bodies are in the database: they need not be written again for a while."""
        for body in large:
            self._known[body["hash"]] = body["last_call"]
        while len(self._known) > KNOWN_BODIES:
            del self._known[next(iter(self._known))]

    def _body(self, data: bytes, size: int, call_id: str, large: dict[str, Any]) -> tuple[str | None, str | None, bool]:
        if size < 0:
            return None, None, False
        if len(data) < size:
            return _encode({LEFT_OUT: f"{size} bytes"}).decode(), None, True
        data, hidden = redact_json(Raw(data or b"{}"))
        if len(data) <= INLINE_BYTES:
            return _text(data.decode("utf-8", "replace")), None, hidden
        digest = hashlib.sha256(data).hexdigest()
        if digest in large:
            large[digest]["last_call"] = call_id
        elif digest not in self._known or self._stale(digest, call_id):
            content = zlib.compress(data, 1)
            large[digest] = {"hash": digest, "content": content, "size": len(content), "last_call": call_id}
        return None, digest, hidden

    def _stale(self, digest: str, call_id: str) -> bool:
        """Whether it is time to note that a body is still in use: before its last noted call may be pruned."""
        return int(call_id[:12], 16) - int(self._known[digest][:12], 16) > BODY_NOTED_MS


def _holds(pipe: asyncio.ReadTransport) -> int:
    """How many bytes a pipe holds; 0 where that cannot be known."""
    try:
        return fcntl.fcntl(pipe.get_extra_info("pipe"), fcntl.F_GETPIPE_SZ)
    except (AttributeError, OSError, ValueError):  # a pipe that has ended already is a closed file
        return 0


def _text(text: str) -> str:
    """Text that every database takes."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


class _Recorder:
    """Reads frames, writes groups, says what it has done."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
        say: Callable[[bytes], object],
        database: JournalStore,
        order: Order,
        log_lines: Callable[[str], object],
        on_order: Callable[[Order], None],
    ) -> None:
        self._reader = reader
        self._pipe = pipe
        self._on_order = on_order
        self._answer = say
        self._database = database
        self._rows = _Rows()
        self._rows.order = order
        self._log = log_lines
        self._line = json_line if order.log_format == "json" else console_line
        self._waiting: deque[tuple[CallRecord, bytes, bytes]] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = asyncio.Event()
        self._taken = self._lost = 0

    async def run(self) -> None:
        writer = asyncio.create_task(self._write())
        try:
            await self._read()
        finally:
            self._ended.set()
            self._wake.set()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self) -> None:
        buffer = bytearray()
        few = min(FEW_BYTES, _holds(self._pipe) // 8)
        while data := await self._reader.read(READ_BYTES):
            buffer += data
            at = 0
            while at + _HEAD.size <= len(buffer):
                kind, head, given, came = _HEAD.unpack_from(buffer, at)
                start = at + _HEAD.size
                end = start + head + given + came
                if end > len(buffer):
                    break
                at = end
                if kind == _ORDER:
                    self._rows.order = _orders.decode(buffer[start : start + head])
                    self._on_order(self._rows.order)
                    continue
                body = bytes(buffer[start:end])
                self._waiting.append((_records.decode(body[:head]), body[head : head + given], body[head + given :]))
            del buffer[:at]
            self._wake.set()
            while len(self._waiting) > MAX_WAITING:
                self._room.clear()
                await self._room.wait()
            if len(data) < few and not buffer and self._pipe.is_reading():
                self._pipe.pause_reading()
                await asyncio.sleep(GROUP_SECONDS)
                self._pipe.resume_reading()

    async def _write(self) -> None:
        while not (self._ended.is_set() and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP_RECORDS))]
                self._room.set()
                try:
                    await self._record(group)
                except Exception as exc:  # one record that cannot be written must not be the end of all others
                    log.exception("calls cannot be recorded", count=len(group))
                    self._lost += len(group)
                    self._taken += len(group)
                    self._say(f"{type(exc).__name__}: {exc}")

    async def _record(self, group: list[tuple[CallRecord, bytes, bytes]]) -> None:
        rows, large = await asyncio.to_thread(self._rows.of, group)  # the pipe is read on meanwhile
        append = partial(self._database.append_calls, rows, large)
        if await with_patience(append, "calls", self._ended, self._say):
            self._rows.written(large)
        else:
            self._lost += len(group)
            if self._ended.is_set():
                self._waiting.clear()  # the database has had its last chance
        self._taken += len(group)
        self._say(None)
        if self._rows.order.log_calls:
            self._log("".join(map(self._line, rows)))

    def _say(self, error: str | None) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._answer(_encode(Taken(self._taken, self._lost, error)) + b"\n")


async def prune(database: JournalStore, order: Order) -> int:
    """Forget what is too old, and the oldest of what is too much. Returns how many calls went."""
    gone = await _prune_before(database, new_call_id(time.time() - order.keep_days * 86400))
    number, size = await database.journal_size()
    size += number * ROW_BYTES
    bound = order.keep_mb * 1_000_000
    if number and size > bound:
        keep = int(number * 0.9 * bound / size)  # somewhat more than needed, so as not to come back at once
        before = await database.nth_newest_call(keep)
        if before is not None:
            gone += await _prune_before(database, before)
    return gone


async def _prune_before(database: JournalStore, call_id: str) -> int:
    # A body is noted as used once a minute only: it stays for that much longer.
    milliseconds = max(0, int(call_id[:12], 16) - BODY_NOTED_MS)
    return await database.prune_calls(call_id, f"{milliseconds:012x}")


class Recording:
    """Records for whoever has a pipe to this process. Use as `async with Recording(…) as recording`.

    Args:
        order: the first one that came: it names the database.
        log_lines: takes the log's lines of the calls, each with its line end.

    Raises:
        StoreError: the database cannot be opened.
    """

    def __init__(self, order: Order, log_lines: Callable[[str], object]) -> None:
        self._order = order
        self._log = log_lines
        self._stack = contextlib.AsyncExitStack()
        self._pruner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Recording:
        self._database = await self._stack.enter_async_context(open_journal(self._order.database_url))
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._pruner is not None:
            self._pruner.cancel()
            await asyncio.gather(self._pruner, return_exceptions=True)
        await self._stack.aclose()

    async def record(
        self, reader: asyncio.StreamReader, pipe: asyncio.ReadTransport, say: Callable[[bytes], object], order: Order
    ) -> None:
        """Record what comes until the pipe closes.

        Args:
            pipe: what feeds the reader.
            say: takes the lines that say what was done.
            order: the pipe's first one, which came before.
        """
        self._obey(order)
        if self._pruner is None:
            self._pruner = asyncio.create_task(self._prune())
        await _Recorder(reader, pipe, say, self._database, order, self._log, self._obey).run()

    def _obey(self, order: Order) -> None:
        self._order = order

    async def _prune(self) -> None:
        """Forget what need not be kept any more, again and again."""
        while True:
            try:
                await prune(self._database, self._order)
            except StoreError as exc:
                log.warning("the journal cannot be pruned", error=str(exc))
            await asyncio.sleep(PRUNE_SECONDS)


async def first_order(reader: asyncio.StreamReader) -> Order:
    """The order that everything begins with."""
    kind, head, _, _ = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if kind != _ORDER:
        raise ValueError("the first frame must be an order")
    return _orders.decode(await reader.readexactly(head))
