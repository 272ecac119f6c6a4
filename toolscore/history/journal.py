"""The journal: what was called, by whom, with what, how it went. Append-only, and written by a process of its own.

A record is in that process's pipe a few milliseconds after its call's answer, and survives a `kill -9` of the gateway
from then on. If the recorder dies another takes its place, and is sent again what the first had not confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Raw
from pydantic import Field

from toolscore.core.errors import ToolNotFound
from toolscore.core.jsonrpc import decode
from toolscore.core.models import timestamp
from toolscore.core.rules import Count, Places, Rules
from toolscore.history.recording import CallRecord, Order, Taken, call_frame, order_frame, unpacked
from toolscore.stores import Database

__all__ = ["Journal", "JournalRules"]

log = structlog.get_logger(__name__)

SEND_SECONDS = 0.002
"""Records of so long go through the pipe together."""
PIPE_BYTES = 1024 * 1024
"""What a recorder that lags leaves in its pipe outlives the gateway; a socket pair would hold a fifth of it."""
MAX_UNCONFIRMED = 20_000
MAX_UNCONFIRMED_BYTES = 64 * 1024 * 1024
RESTART_SECONDS = 1.0
END_SECONDS = 10.0
SETTLE_SECONDS = 2.0

_taken = msgspec.json.Decoder(Taken)


class JournalRules(Rules):
    """What was called, by whom, and how it went: `toolscore calls`."""

    enabled: bool = True
    keep_days: Annotated[float, Field(gt=0)] = Field(30, description="after that a record goes")
    keep_mb: Count = Field(1024, description="roughly; the oldest goes first")
    max_body_bytes: Places = Field(4 * 1024 * 1024, description="larger arguments and results are left out")
    log_calls: bool = Field(True, description="a line in the log for each call, too")


class Journal:
    """Use as `async with Journal(…) as journal`; leaving waits until what there is has been written.

    Args:
        command: of the recorder.
        order: what the recorder is told first, beside the rules: the database, how to log.

    Attributes:
        written: records that are in the database. lost: that could not be written.
        store_error: why nothing is being written just now.
    """

    def __init__(
        self, database: Database, command: Sequence[str], order: Order, rules: JournalRules | None = None
    ) -> None:
        self._database = database
        self._command = command
        self.rules = rules or JournalRules()
        self._order = _obeying(order, self.rules)
        self.written = 0
        self.lost = 0
        self.store_error: str | None = None
        self._unsent: list[bytes] = []
        self._unconfirmed: deque[bytes] = deque()
        self._unconfirmed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pipe: asyncio.WriteTransport | None = None
        self._added = self._confirmed = 0
        self._progress = asyncio.Event()
        self._closing = False
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Journal:
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._send()
        if self._pipe is not None:
            self._pipe.close()
        if self._keeper is not None:
            try:
                async with asyncio.timeout(END_SECONDS):
                    await self._keeper
            except TimeoutError:
                log.error(
                    "the recorder does not end: calls may be missing from the journal", calls=len(self._unconfirmed)
                )
        self.lost += len(self._unconfirmed)

    def use(self, rules: JournalRules) -> None:
        """Record by other rules from now on."""
        if rules != self.rules:
            self.rules, self._order = rules, _obeying(self._order, rules)
            if self._pipe is not None:
                self._pipe.write(order_frame(self._order))
            self._start()

    # Writing

    def add(self, record: CallRecord, arguments: Raw, result: Raw | None) -> None:
        """Have a call recorded. Never waits; at the bound the record is lost, and counted."""
        rules = self.rules
        if not rules.enabled:
            return
        if record.arguments_bytes > rules.max_body_bytes:
            arguments = Raw(b"")
        if record.result_bytes > rules.max_body_bytes:
            result = None
        size = memoryview(arguments).nbytes + (memoryview(result).nbytes if result is not None else 0)
        if len(self._unconfirmed) >= MAX_UNCONFIRMED or self._unconfirmed_bytes + size > MAX_UNCONFIRMED_BYTES:
            self.lost += 1
            self.store_error = self.store_error or "the database does not keep up: calls are not being recorded"
            return
        frame = call_frame(record, arguments, result)
        self._unconfirmed.append(frame)
        self._unconfirmed_bytes += len(frame)
        self._unsent.append(frame)
        self._added += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SEND_SECONDS, self._send)

    async def settled(self) -> None:
        """Wait until all that was added so far is written, or lost; two seconds at most."""
        self._send()
        until = self._added
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._confirmed < until:
                    self._progress.clear()
                    await self._progress.wait()

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pipe is not None and self._unsent:
            self._pipe.write(b"".join(self._unsent))
            self._unsent.clear()

    def _start(self) -> None:
        if self._keeper is None and self.rules.enabled:
            self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Have a recorder, for as long as the gateway lives."""
        while True:
            started = time.monotonic()
            try:
                await self._run()
            except Exception as exc:  # whatever it is, calls must be recorded again soon
                self.store_error = f"the recorder does not run: {exc}"
            if self._closing:
                return
            self.store_error = self.store_error or "the recorder ended: another is being started"
            log.error("the recorder ended: another takes its place", error=self.store_error)
            await asyncio.sleep(max(0.0, RESTART_SECONDS - (time.monotonic() - started)))

    async def _run(self) -> None:
        recorder, pipe = await self._launch()
        assert recorder.stdout is not None
        try:
            pipe.write(order_frame(self._order))
            self._unsent = list(self._unconfirmed)
            self._pipe = pipe
            self._send()
            if self._closing:
                pipe.close()
            confirmed = lost = 0
            async for line in recorder.stdout:
                said = _taken.decode(line)
                self.store_error = said.error
                for _ in range(said.taken - confirmed):
                    self._unconfirmed_bytes -= len(self._unconfirmed.popleft())
                self.written += said.taken - confirmed - (said.lost - lost)
                self.lost += said.lost - lost
                self._confirmed += said.taken - confirmed
                confirmed, lost = said.taken, said.lost
                self._progress.set()
            await recorder.wait()
        finally:
            self._pipe = None
            pipe.abort()
            if recorder.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    recorder.kill()
                await recorder.wait()

    async def _launch(self) -> tuple[asyncio.subprocess.Process, asyncio.WriteTransport]:
        """A recorder, and the pipe to it."""
        theirs, ours = os.pipe()
        try:
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                with contextlib.suppress(OSError):  # this user has as much in pipes as it may
                    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            loop = asyncio.get_running_loop()
            pipe, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours, "wb", 0))
            try:
                recorder = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=theirs,
                    stdout=asyncio.subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for the gateway; the recorder ends after it
                )
            except BaseException:
                pipe.close()
                raise
            return recorder, pipe
        finally:
            os.close(theirs)

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
        rows = await self._database.read_these_calls([call["call_id"] for call in shown])
        found = await self._bodies(rows)
        return [{**_shown(row), **found[row["call_id"]]} for row in rows]

    async def _bodies(self, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        hashes = {row[name] for row in rows for name in ("arguments_body", "result_body") if row[name]}
        contents = await self._database.read_bodies(hashes)

        def value(row: dict[str, Any], name: str) -> Any:
            if row[name] is not None:
                return decode(row[name].encode())
            content = contents.get(row[f"{name}_body"])
            return decode(unpacked(content)) if content is not None else None

        return {row["call_id"]: {name: value(row, name) for name in ("arguments", "result")} for row in rows}


def _obeying(order: Order, rules: JournalRules) -> Order:
    return msgspec.structs.replace(order, keep_days=rules.keep_days, keep_mb=rules.keep_mb, log_calls=rules.log_calls)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A call as REST shows it, without its bodies."""
    kept = ("call_id", "request_id", "principal", "tool_id", "server_id", "name", "definition_hash", "outcome",
            "duration_ms", "cache", "error")  # fmt: skip
    return {
        **{name: row[name] for name in kept},
        "at": timestamp(datetime.fromtimestamp(row["at_ms"] / 1000, UTC)),
        "redacted": [name for bit, name in ((1, "arguments"), (2, "result")) if row["redacted"] & bit],
    }
