"""The journal: what was called, by whom, with what, how it went. Append-only, and written by a process of its own.

A record is in that process's pipe a few milliseconds after its call's answer, and survives a `kill -9` of the gateway
from then on. If the recorder dies another takes its place, and is sent again what the first had not confirmed. If both
are killed, the last moment is missing: so of a call that may change something the start is noted before its request is
sent (`starts.py`), and the next run records it as `outcome_unknown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import structlog
from msgspec import Raw
from pydantic import Field

from toolscore.core.errors import ToolNotFound
from toolscore.core.rules import Count, Places, Rules
from toolscore.history.pipes import recorder_at
from toolscore.history.recording import (
    CallRecord,
    Order,
    Taken,
    call_frame,
    call_id_of,
    order_frame,
    start_frame,
)
from toolscore.history.rows import shown, with_bodies
from toolscore.history.starts import Start, StartLog, left_by_others
from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError

__all__ = ["CUT_OFF", "Journal", "JournalRules"]

log = structlog.get_logger(__name__)

SEND_SECONDS = 0.002
"""Records of so long go through the pipe together."""
MAX_UNCONFIRMED = 20_000
MAX_UNCONFIRMED_BYTES = 64 * 1024 * 1024
RESTART_SECONDS = 1.0
END_SECONDS = 10.0
SETTLE_SECONDS = 2.0
CUT_OFF = "the gateway was killed during the call, and it may have done its work"

_taken = msgspec.json.Decoder(Taken)


class JournalRules(Rules):
    """What was called, by whom, and how it went: `toolscore calls`."""

    enabled: bool = True
    keep_days: Annotated[float, Field(gt=0)] = Field(30, description="after that a record goes")
    keep_mb: Count = Field(1024, description="roughly; the oldest goes first")
    max_body_bytes: Places = Field(4 * 1024 * 1024, description="larger arguments and results are left out")
    log_calls: bool = Field(True, description="a line in the log for each call, too")
    starts: Literal["crash", "power", "off"] = Field(
        "crash",
        description="before a call that may change something is sent, its start is noted where it survives: crash, a "
        "kill of everything of ours; power, a power cut too, for a wait on the disk; off, nothing",
    )


class Journal:
    """Use as `async with Journal(…) as journal`; leaving waits until what there is has been written.

    Args:
        recorder: its command, or the Unix socket of one that is there for several processes.
        order: what the recorder is told first, beside the rules: the database, how to log.
        folder: where starts are noted; `None`: nowhere.

    Attributes:
        written: records that are in the database. lost: that could not be written.
        store_error: why nothing is being written just now.
    """

    def __init__(
        self,
        database: Database,
        recorder: Sequence[str] | Path,
        order: Order,
        rules: JournalRules | None = None,
        folder: Path | None = None,
    ) -> None:
        self._database = database
        self._recorder = recorder
        self.rules = rules or JournalRules()
        self._order = _obeying(order, self.rules)
        self.written = 0
        self.lost = 0
        self.store_error: str | None = None
        self._start_error: str | None = None
        self._folder = folder
        self._starts: StartLog | None = None
        self._unsent: list[bytes] = []
        self._unconfirmed: deque[tuple[bytes, Start | None]] = deque()
        self._unconfirmed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pipe: asyncio.WriteTransport | None = None
        self._added = self._confirmed = 0
        self._progress = asyncio.Event()
        self._closing = False
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Journal:
        self._open_starts()
        self._start()
        self._finder = asyncio.create_task(self._find_cut_off())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._finder.cancel()
        await asyncio.gather(self._finder, return_exceptions=True)
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
        if self._starts is not None:
            await self._starts.close()

    @property
    def start_error(self) -> str | None:
        """Why starts are not being noted."""
        if self._start_error is not None and self._starts is not None and self._starts.has_room():
            self._start_error = None
        return self._start_error

    def use(self, rules: JournalRules) -> None:
        """Record by other rules from now on."""
        if rules != self.rules:
            if rules.starts != self.rules.starts:
                log.warning("`journal.starts` counts from the next start of the gateway")
            self.rules, self._order = rules, _obeying(self._order, rules)
            if self._pipe is not None:
                self._pipe.write(order_frame(self._order))
            elif self._starts is None:  # a recorder that runs already would not know of them
                self._open_starts()
            self._start()

    # Writing

    def begin(self, record: CallRecord, arguments: Raw) -> Start | None:
        """Note that a call begins which may change something.

        Args:
            record: as it is kept if its end never gets here.

        Returns:
            What `add` takes at its end, and `kept` before it is sent; `None`: it is not noted.
        """
        starts = self._starts
        if starts is None or not self.rules.enabled:
            return None
        try:
            start = starts.note(start_frame(record, arguments))
        except (OSError, ValueError) as exc:  # the call itself must go on
            self._start_error = f"starts of calls are not being noted: {exc}"
            return None
        return start

    def kept(self, start: Start) -> Awaitable[None] | None:
        """What to await until a start survives whatever `journal.starts` names; `None`: it does."""
        on_disk = self._starts.flushed() if self._starts is not None else None
        if on_disk is not None:
            return self._on_disk(start, on_disk)
        self._start_error = None
        return None

    async def _on_disk(self, start: Start, flushed: Awaitable[None]) -> None:
        try:
            await flushed
        except OSError as exc:  # the call itself must go on
            self._start_error = f"starts of calls are not being noted: {exc}"
        except asyncio.CancelledError:
            self._over(start)
            raise
        else:
            self._start_error = None

    def add(self, record: CallRecord, arguments: Raw, result: Raw | None, start: Start | None = None) -> None:
        """Have a call recorded. Never waits; at the bound the record is lost, and counted.

        Args:
            start: of the call, where that was noted.
        """
        rules = self.rules
        if not rules.enabled:
            self._over(start)
            return
        if record.arguments_bytes > rules.max_body_bytes:
            arguments = Raw(b"")
        if record.result_bytes > rules.max_body_bytes:
            result = None
        frame = call_frame(record, arguments, result)
        if len(self._unconfirmed) >= MAX_UNCONFIRMED or self._unconfirmed_bytes + len(frame) > MAX_UNCONFIRMED_BYTES:
            self.lost += 1
            self.store_error = self.store_error or "the database does not keep up: calls are not being recorded"
            self._over(start)
            return
        self._enqueue(frame, start)

    def _over(self, start: Start | None) -> None:
        if start is not None and self._starts is not None:
            self._starts.over(start)

    def _enqueue(self, frame: bytes, start: Start | None = None) -> None:
        self._unconfirmed.append((frame, start))
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

    def _open_starts(self) -> None:
        if self._folder is None or not self.rules.enabled or self.rules.starts == "off":
            return
        try:
            self._starts = StartLog(self._folder, on_disk=self.rules.starts == "power")
        except OSError as exc:
            self._start_error = f"starts of calls are not being noted: {exc}"
            log.error(self._start_error)

    async def _find_cut_off(self) -> None:
        """Record the calls that were under way when an earlier run was killed."""
        if self._folder is None or not self.rules.enabled:
            return
        own = self._starts.folder if self._starts is not None else None
        async for run, frames in left_by_others(self._folder, own):
            try:
                noted = {call_id_of(frame): frame for frame in frames}
                there = {row["call_id"] for row in await self._database.read_these_calls([*noted])}
            except (StoreError, msgspec.MsgspecError) as exc:
                log.error("calls that were under way when the gateway was killed are not recorded yet", error=str(exc))
                continue
            missing = [frame for call_id, frame in noted.items() if call_id not in there]
            for frame in missing:
                self._enqueue(frame)
            if missing:
                log.warning(
                    "calls were under way when the gateway was killed: toolscore calls list --outcome outcome_unknown",
                    calls=len(missing),
                )
            until, lost = self._added, self.lost
            while self._confirmed < until:
                self._progress.clear()
                await self._progress.wait()
            if self.lost == lost:  # else the next run finds them again
                await asyncio.to_thread(shutil.rmtree, run, True)

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
        locks = () if self._starts is None else (self._starts.lock,)
        pipe, said_lines, end = await recorder_at(self._recorder, locks)
        try:
            pipe.write(order_frame(self._order))
            self._unsent = [frame for frame, _ in self._unconfirmed]
            self._pipe = pipe
            self._send()
            if self._closing:
                pipe.close()
            confirmed = lost = 0
            async for line in said_lines:
                said = _taken.decode(line)
                self.store_error = said.error
                for _ in range(said.taken - confirmed):
                    frame, start = self._unconfirmed.popleft()
                    self._unconfirmed_bytes -= len(frame)
                    self._over(start)
                self.written += said.taken - confirmed - (said.lost - lost)
                self.lost += said.lost - lost
                self._confirmed += said.taken - confirmed
                confirmed, lost = said.taken, said.lost
                self._progress.set()
            await end(True)
        finally:
            self._pipe = None
            pipe.abort()
            await end(False)

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
            filters: column → value: `tool_id`, `server_id`, `principal`, `outcome`, `request_id`, `parent`.

        Raises:
            StoreError.
        """
        await self.settled()
        rows = await self._database.read_calls(
            filters, since_ms=since_ms, until_ms=until_ms, before=cursor, limit=limit + 1
        )
        after = rows[limit - 1]["call_id"] if len(rows) > limit else None
        return [shown(row) for row in rows[:limit]], after

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
        return (await with_bodies(self._database, [row]))[0]

    async def with_bodies(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Calls as `find` gave them, with their arguments and results."""
        return await with_bodies(
            self._database, await self._database.read_these_calls([call["call_id"] for call in calls])
        )


def _obeying(order: Order, rules: JournalRules) -> Order:
    return msgspec.structs.replace(order, keep_days=rules.keep_days, keep_mb=rules.keep_mb, log_calls=rules.log_calls)
