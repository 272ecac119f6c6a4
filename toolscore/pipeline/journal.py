"""The journal: what was called, by whom, with what, how it went. Written in groups, in the background; append-only.

A record is in the database within some 20 ms of its call's answer; then it survives `kill -9`. Secrets are redacted
before anything is written, a large body is kept once for each content, and what is old or too much goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
import zlib
from collections import deque
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import msgspec
import structlog
from msgspec import Raw

from toolscore.errors import ToolNotFound
from toolscore.jsonrpc import decode
from toolscore.models import CallRecord, timestamp
from toolscore.redaction import redact_json, redact_text
from toolscore.stores import Database, with_patience
from toolscore.stores.database import StoreError

__all__ = ["Journal", "JournalRules", "new_call_id"]

log = structlog.get_logger(__name__)

GROUP_SECONDS = 0.01
GROUP_RECORDS = 500
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
INLINE_BYTES = 2048
"""A larger body is compressed and kept once, under its hash."""
MAX_ERROR = 2000
KNOWN_BODIES = 4096
BODY_NOTED_MS = 60_000
PRUNE_SECONDS = 60.0
ROW_BYTES = 400
"""What a record takes beside its bodies, roughly."""

_process = os.urandom(2).hex()
_numbers = count()


def new_call_id(moment: float | None = None) -> str:
    """An id that sorts by time: milliseconds since 1970, this process, a number; 22 hex digits."""
    milliseconds = int((time.time() if moment is None else moment) * 1000)
    return f"{milliseconds:012x}{_process}{next(_numbers) & 0xFFFFFF:06x}"


class JournalRules(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept.

    Args:
        keep_days: for how long. keep_mb: how much, roughly, in MB; the oldest goes first.
        max_body_bytes: of the arguments and of the result; of a larger one only its size is kept.
        log_calls: also write a line to the log for each call.
    """

    enabled: bool = True
    keep_days: float = 30.0
    keep_mb: int = 1024
    max_body_bytes: int = 4 * 1024 * 1024
    log_calls: bool = True


class Journal:
    """Use as `async with Journal(database) as journal`; leaving writes what waits.

    Attributes:
        lost: records that could not be written.
        store_error: why, if the last group could not.
    """

    def __init__(self, database: Database, rules: JournalRules | None = None) -> None:
        self._database = database
        self.rules = rules or JournalRules()
        self.written = 0
        self.lost = 0
        self.store_error: str | None = None
        self._waiting: deque[CallRecord] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = asyncio.Event()
        self._known_bodies: dict[str, str] = {}

    async def __aenter__(self) -> Journal:
        self._writer = asyncio.create_task(self._write())
        self._pruner = asyncio.create_task(self._prune())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        self._wake.set()
        self._pruner.cancel()
        await asyncio.gather(self._writer, self._pruner, return_exceptions=True)

    # Writing

    def add(self, record: CallRecord) -> None:
        """Have a call written. Never waits; at the bound the record is lost, and counted."""
        if not self.rules.enabled:
            return
        size = _size(record)
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            self.lost += 1
            self.store_error = "the database does not keep up: calls are not being recorded"
            return
        self._waiting.append(record)
        self._waiting_bytes += size
        self._wake.set()
        self._idle.clear()

    async def settled(self) -> None:
        """Wait until all that was added is written, or lost."""
        await self._idle.wait()

    async def _write(self) -> None:
        while not (self._closing.is_set() and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            if len(self._waiting) < GROUP_RECORDS and not self._closing.is_set():
                await asyncio.sleep(GROUP_SECONDS)
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP_RECORDS))]
                self._waiting_bytes -= sum(map(_size, group))
                # Off the event loop: redaction reads every byte, and the log may be read slowly.
                rows, large = await asyncio.to_thread(self._rows, group)
                if await with_patience(
                    partial(self._database.append_calls, rows, large), "calls", self._closing, self._failed
                ):
                    self.written += len(group)
                    self.store_error = None
                    for body in large:
                        self._known_bodies[body["hash"]] = body["last_call"]
                    while len(self._known_bodies) > KNOWN_BODIES:
                        del self._known_bodies[next(iter(self._known_bodies))]
                else:
                    self.lost += len(group)
                    if self._closing.is_set():  # the database has had its last chance
                        self.lost += len(self._waiting)
                        self._waiting.clear()
            self._idle.set()

    def _failed(self, error: str) -> None:
        self.store_error = error

    def _rows(self, group: list[CallRecord]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        large: dict[str, Any] = {}
        for record in group:
            arguments, arguments_body, hidden = self._body(record.arguments, record.call_id, large)
            result, result_body, hidden_too = self._body(record.result, record.call_id, large)
            error = _text(redact_text(record.error[:MAX_ERROR])) if record.error else None
            rows.append(
                {
                    "call_id": record.call_id,
                    "request_id": _text(record.request_id[:128]),
                    "at_ms": record.at_ms,
                    "principal": record.principal,
                    "tool_id": record.tool_id,
                    "server_id": record.server_id,
                    "name": _text(record.name),
                    "definition_hash": record.definition_hash,
                    "outcome": record.outcome,
                    "duration_ms": round(record.duration_ms, 3),
                    "cache": record.cache,
                    "error": error,
                    "arguments": arguments,
                    "arguments_body": arguments_body,
                    "result": result,
                    "result_body": result_body,
                    "redacted": int(hidden) + 2 * int(hidden_too),
                }
            )
            if self.rules.log_calls:
                log.info(
                    "call",
                    tool=record.tool_id,
                    outcome=record.outcome,
                    ms=round(record.duration_ms, 2),
                    principal=record.principal,
                    request_id=record.request_id,
                    **({"cache": record.cache} if record.cache else {}),
                    **({"error": error[:200]} if error else {}),
                )
        return rows, list(large.values())

    def _body(self, body: Raw | None, call_id: str, large: dict[str, Any]) -> tuple[str | None, str | None, bool]:
        if body is None:
            return None, None, False
        size = memoryview(body).nbytes
        if size > self.rules.max_body_bytes:
            return json.dumps({"toolscore/left_out": f"{size} bytes, over journal.max_body_bytes"}), None, True
        data, hidden = redact_json(body)
        if len(data) <= INLINE_BYTES:
            return _text(data.decode("utf-8", "replace")), None, hidden
        digest = hashlib.sha256(data).hexdigest()
        if digest in large:
            large[digest]["last_call"] = call_id
        elif digest not in self._known_bodies or self._stale(digest, call_id):
            content = zlib.compress(data, 1)
            large[digest] = {"hash": digest, "content": content, "size": len(content), "last_call": call_id}
        return None, digest, hidden

    def _stale(self, digest: str, call_id: str) -> bool:
        """Whether it is time to note that a body is still in use: before its last noted call may be pruned."""
        noted = int(self._known_bodies[digest][:12], 16)
        return int(call_id[:12], 16) - noted > BODY_NOTED_MS

    async def _prune(self) -> None:
        while True:
            try:
                await self.prune()
            except StoreError as exc:
                log.warning("the journal cannot be pruned", error=str(exc))
            await asyncio.sleep(PRUNE_SECONDS)

    async def prune(self) -> int:
        """Forget what is too old, and the oldest of what is too much. Returns how many calls went."""
        gone = await self._prune_before(new_call_id(time.time() - self.rules.keep_days * 86400))
        number, size = await self._database.journal_size()
        size += number * ROW_BYTES
        bound = self.rules.keep_mb * 1_000_000
        if number and size > bound:
            keep = int(number * 0.9 * bound / size)  # somewhat more than needed, so as not to come back at once
            before = await self._database.nth_newest_call(keep)
            if before is not None:
                gone += await self._prune_before(before)
        return gone

    async def _prune_before(self, call_id: str) -> int:
        # A body is noted as used once a minute only: it stays for that much longer.
        milliseconds = max(0, int(call_id[:12], 16) - BODY_NOTED_MS)
        return await self._database.prune_calls(call_id, f"{milliseconds:012x}")

    # Reading

    async def find(
        self,
        *,
        filters: dict[str, Any],
        since_ms: int | None = None,
        until_ms: int | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Calls, the newest first, without their bodies; and the cursor of the next page.

        Args:
            filters: column → value: `tool_id`, `server_id`, `principal`, `outcome`, `request_id`.

        Raises:
            StoreError.
        """
        await self.settled()
        rows = await self._database.read_calls(
            filters, since_ms=since_ms, until_ms=until_ms, before=cursor, limit=limit + 1
        )
        after = rows[limit - 1]["call_id"] if len(rows) > limit else None
        return [_shown(row) for row in rows[:limit]], after

    async def get(self, call_id: str, principal: str | None = None) -> dict[str, Any]:
        """One call with its arguments and its result.

        Args:
            principal: only if it is this one's; `None`: whosever.

        Raises:
            ToolNotFound: there is none. StoreError.
        """
        await self.settled()
        row = await self._database.read_call(call_id)
        if row is None or (principal is not None and row["principal"] != principal):
            raise ToolNotFound(f"no call {call_id!r}: it never was, or is no longer kept (`journal.keep_days`)")
        return {**_shown(row), **(await self._bodies([row]))[call_id]}

    async def with_bodies(self, shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Calls as `find` gave them, with their arguments and results."""
        rows = [row for call in shown if (row := await self._database.read_call(call["call_id"])) is not None]
        found = await self._bodies(rows)
        return [{**_shown(row), **found[row["call_id"]]} for row in rows]

    async def _bodies(self, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        hashes = {row[name] for row in rows for name in ("arguments_body", "result_body") if row[name]}
        contents = await self._database.read_bodies(hashes) if hashes else {}

        def value(row: dict[str, Any], name: str) -> Any:
            if row[name] is not None:
                return decode(row[name].encode())
            content = contents.get(row[f"{name}_body"])
            return decode(zlib.decompress(content)) if content is not None else None

        return {row["call_id"]: {name: value(row, name) for name in ("arguments", "result")} for row in rows}


def _text(text: str) -> str:
    """Text that every database takes."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


def _size(record: CallRecord) -> int:
    result = memoryview(record.result).nbytes if record.result is not None else 0
    return ROW_BYTES + memoryview(record.arguments).nbytes + result


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A call as REST shows it, without its bodies."""
    kept = ("call_id", "request_id", "principal", "tool_id", "server_id", "name", "definition_hash", "outcome",
            "duration_ms", "cache", "error")  # fmt: skip
    return {
        **{name: row[name] for name in kept},
        "at": timestamp(datetime.fromtimestamp(row["at_ms"] / 1000, UTC)),
        "redacted": [name for bit, name in ((1, "arguments"), (2, "result")) if row["redacted"] & bit],
    }
