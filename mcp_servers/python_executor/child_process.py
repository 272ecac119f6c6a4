"""A child process, seen from the server: its socket, its state, its clocks, its answer and its end.

What runs inside the child is `sandbox/child.py`. The two meet over the child's socket only, in the formats of
`sandbox/wire.py`. Who forks children is `zygote_process.py`; who hands them out and watches their clocks is `pool.py`.

Only from the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mcp_servers.python_executor.sandbox.wire import (
    CALL,
    CALL_HEAD,
    CANCEL,
    Answer,
    BadAnswer,
    Op,
    answer_length,
    call_length,
    decode_answer,
    reply_frame,
)
from mcp_servers.python_executor.tool_calls import Asker, CallsOfRun

__all__ = ["ChildProcess", "Ending", "Watcher"]

GRACE_SECONDS = 0.5
"""The child's own clock stops the code first, and its traceback shows where the code stood. A child that has not
answered this long after that is killed."""
LINGER_SECONDS = 0.05
"""How long a child may take to end after its answer: it has nothing left to do."""
WRITE_PAUSE_SECONDS = 0.001
"""How long to wait before writing again when the socket's buffer is full: large requests only."""
READ_BYTES = 1 << 18
LENGTH_BYTES = 4
KIND_AT = 4
MAX_UNREAD_BYTES = 128 * 1024 * 1024
"""Replies that a child does not read; it is ended."""
OUTPUT_BYTES = 64 * 1024
"""So much of stdout is passed on at a time."""


@dataclass(slots=True)
class Ending:
    """How a child's work on one request ended.

    Attributes:
        answer: what the child said, or `None`.
        reason: why there is no answer: `exit`, `time`, `output`, `disk`, `protocol`, `calls` or `sandbox`.
        status: the wait status, where it is known.
        cpu_seconds: CPU time of the child, where it is known.
        out_of_memory: the kernel killed the child for its memory.
    """

    answer: Answer | None
    reason: str = ""
    status: int | None = None
    cpu_seconds: float = 0.0
    out_of_memory: bool = False


class Watcher(Protocol):
    """Who watches the clocks and the sockets of children: the pool."""

    def watch_clock(self, child: ChildProcess) -> None:
        """Call the child's `tick` every few milliseconds from now on."""
        ...

    def ignore_clock(self, child: ChildProcess) -> None:
        """Stop calling the child's `tick`."""
        ...

    def let_go(self, child: ChildProcess) -> None:
        """A child is about to be killed that nobody needs."""
        ...

    def ignore_socket(self, fd: int) -> None:
        """Stop calling the `read` of the child whose channel this descriptor is."""
        ...


@dataclass(slots=True, eq=False)
class ChildProcess:
    """One confined process. The caller uses `call` as often as the request's mode allows, then `release`.

    Args:
        tell: sends one of `wire.Op` to the zygote, for the child with this id and slot.
        watcher: who calls `tick` and `read`.
        id: the zygote's number for the child; never used again.
        slot: the number of the child's prepared folder; used again after its end.
        channel, stdout, stderr: descriptors, which the child process owns.

    Attributes:
        taken_at: when somebody took it or called it last (monotonic seconds); 0: it is a spare.
        ended: its end was reported.
        spoiled: it wrote more than one answer. What it says next may be the answer to something else.
    """

    tell: Callable[[int, int, int], None]
    watcher: Watcher
    id: int
    slot: int
    channel: int
    stdout: int
    stderr: int
    taken_at: float = 0.0
    ended: bool = False
    released: bool = False
    spoiled: bool = False
    _deadline: float = math.inf
    _late: str = "time"
    _max_output_bytes: int = 0
    _answered_at: float = 0.0
    _status: int | None = None
    _cpu_seconds: float = 0.0
    _paused: bool = False
    _future: asyncio.Future[Ending] | None = None
    _calls: CallsOfRun | None = None
    _asker: Asker | None = None
    _extended: float = 0.0
    _unsent: bytearray = field(default_factory=bytearray)
    _told_bytes: int = 0
    _requesting: bool = False
    _received: bytearray = field(default_factory=bytearray)
    _length: int | None = None

    # ------------------------------------------------------------------------------------------------ for its caller

    async def call(self, request: bytes, seconds: float, max_output_bytes: int, asker: Asker | None = None) -> Ending:
        """Send a request and wait for the answer or for the child's end. Cancelling this kills the child.

        Args:
            request: what `encode_request` gave.
            seconds: the time limit that stands in the request.
            max_output_bytes: code that wrote more to stdout or to stderr is ended.
            asker: answers the tools that the code calls; `None`: it has none.
        """
        future = self._future = asyncio.get_running_loop().create_future()
        self._received.clear()
        self._length = None
        now = time.monotonic()
        self.taken_at, self._deadline, self._answered_at = now, now + seconds + GRACE_SECONDS, 0.0
        self._late, self._max_output_bytes = "time", max_output_bytes
        self._asker, self._extended, self._told_bytes = asker, 0.0, 0
        self._calls = calls = CallsOfRun(asker, self) if asker is not None else None
        if self._unsent:  # the rest of a reply that the code did not wait for
            request = bytes(self._unsent) + request
            self._unsent.clear()
        if self._paused:
            self.tell(Op.CONTINUE, self.id, self.slot)
            self._paused = False
        self.watcher.watch_clock(self)
        if self.ended:
            self._settle(Ending(None, "exit", self._status, self._cpu_seconds))
        try:
            self._requesting = True  # a reply to what an earlier run left would come between
            rest = self._write(request)
            while rest and not future.done():
                await asyncio.sleep(WRITE_PAUSE_SECONDS)
                rest = self._write(rest)
            self._requesting = False
            self._write_rest()
            ending: Ending = await future
            return ending
        except BaseException:
            self.kill()
            raise
        finally:
            self._requesting = False
            self._future = self._calls = None
            if calls is not None:
                await calls.stop()
                self._tell_output(last=True)

    def _write(self, data: bytes | memoryview) -> memoryview | None:
        """Write what the socket takes. Returns the rest."""
        view = memoryview(data)
        try:
            return view[os.write(self.channel, view) :] or None
        except BlockingIOError:
            return view
        except OSError:
            return None  # it ended: the report says how

    def seconds_left(self) -> float:
        """Of the code's time."""
        return self._deadline - GRACE_SECONDS - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Stop the code so much later than `call` was told."""
        if seconds > self._extended and self._deadline < math.inf:
            self._deadline += seconds - self._extended
            self._extended = seconds

    def reply(self, number: int, body: bytes) -> None:
        """Answer a call of the code. Never waits."""
        frame = reply_frame(number, max(0.0, min(self.seconds_left(), 1e9)), body)
        if self._unsent or self._requesting:
            self._unsent += frame
            if len(self._unsent) > MAX_UNREAD_BYTES:
                self.end("protocol")
            return
        rest = self._write(frame)
        if rest:
            self._unsent += rest
            asyncio.get_running_loop().call_later(WRITE_PAUSE_SECONDS, self._write_rest)

    def _write_rest(self) -> None:
        if self._calls is None or not self._unsent:  # the next call sends it
            return
        rest = self._write(bytes(self._unsent[:READ_BYTES]))
        del self._unsent[: min(len(self._unsent), READ_BYTES) - (len(rest) if rest else 0)]
        if self._unsent:
            asyncio.get_running_loop().call_later(WRITE_PAUSE_SECONDS if rest else 0, self._write_rest)

    def _tell_output(self, *, last: bool = False) -> None:
        """Pass on what the code wrote to stdout meanwhile; at last also a character that did not come whole."""
        tell = self._asker.on_output if self._asker is not None else None
        if tell is None or self.stdout < 0:
            return
        while self._told_bytes < self._max_output_bytes:
            data = os.pread(self.stdout, min(OUTPUT_BYTES, self._max_output_bytes - self._told_bytes), self._told_bytes)
            whole = len(data) if last else _whole(data)
            if not whole:
                break
            self._told_bytes += whole
            tell(data[:whole].decode("utf-8", "replace"))

    def output(self, bound: int) -> tuple[bytes, bytes]:
        """Return what was written to stdout and to stderr, each up to one byte over the bound."""
        if self.stdout < 0:  # the zygote died, and the files are closed
            return b"", b""
        return os.pread(self.stdout, bound + 1, 0), os.pread(self.stderr, bound + 1, 0)

    def forget_output(self) -> None:
        """Empty stdout and stderr, between two calls of a session."""
        if self.stdout >= 0:
            os.ftruncate(self.stdout, 0)
            os.ftruncate(self.stderr, 0)

    def kill(self) -> None:
        """Kill the child. Does nothing after its end."""
        if not self.ended:
            self.tell(Op.KILL, self.id, self.slot)

    def pause(self) -> None:
        """Stop the child until the next `call`, so that what it left running costs nothing meanwhile."""
        if not self.ended:
            self._paused = True
            self.tell(Op.STOP, self.id, self.slot)
            self.watcher.ignore_clock(self)

    def release(self, *, kill: bool) -> None:
        """Say that nobody needs the child any more. Its descriptors are closed now, or when it ends.

        Args:
            kill: kill it. Otherwise it ends by itself, or is killed `LINGER_SECONDS` after its answer.
        """
        self.released = True
        if kill and not self.ended:
            self.watcher.let_go(self)
            self.kill()
        if self.ended:
            self.watcher.ignore_clock(self)
            self.close()

    # --------------------------------------------------------------------------------- for the pool and for the zygote

    def take(self) -> None:
        """Mark the child as taken: it is no spare any more."""
        self.taken_at = time.monotonic()

    def give_back(self) -> None:
        """Mark the child as a spare again: whoever took it has not called it."""
        self.taken_at = 0.0

    def tick(self, now: float) -> None:
        """End code that is past its time limit or wrote too much; kill a child that lingers after its answer."""
        if now >= self._deadline:
            if self._late == "time" and self._calls is not None and self._calls.under_way:
                return  # they end by the same clock, which stands still while somebody is asked
            self.end(self._late)
        elif self._deadline < math.inf and self._late == "time" and self._wrote_too_much():
            self._late, self._deadline = "output", now + GRACE_SECONDS
            self.tell(Op.INTERRUPT, self.id, self.slot)
        elif self._asker is not None and self._calls is not None:
            self._tell_output()
        elif self.released and not self.ended and now - self._answered_at > LINGER_SECONDS:
            self.kill()

    def _wrote_too_much(self) -> bool:
        if self.stdout < 0:
            return False
        return max(os.fstat(self.stdout).st_size, os.fstat(self.stderr).st_size) > self._max_output_bytes

    def read(self) -> None:
        """Read what came over the socket, and settle the call when the answer is complete."""
        try:
            data = os.read(self.channel, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.watcher.ignore_socket(self.channel)
            return  # the report of its end follows
        if self._future is None or self._future.done():  # nobody asked
            self.spoiled = True
            self.kill()
            return
        received = self._received
        received += data
        try:
            while self._calls is not None and len(received) > KIND_AT and received[KIND_AT] in (CALL, CANCEL):
                length = call_length(received)
                if len(received) < length:
                    return
                _, kind, number = CALL_HEAD.unpack_from(received)
                if kind == CANCEL:
                    self._calls.cancel(number)
                else:
                    self._calls.came(number, bytes(received[CALL_HEAD.size : length]))
                del received[:length]
                if self._future.done():
                    return
            if self._length is None and len(received) >= LENGTH_BYTES:
                self._length = answer_length(bytes(received[:LENGTH_BYTES]))
            if self._length is not None and len(received) >= self._length:
                self.spoiled = len(received) > self._length
                self._settle(Ending(decode_answer(bytes(received[: self._length]))))
        except BadAnswer:
            self.kill()
            self._settle(Ending(None, "protocol"))

    def _settle(self, ending: Ending) -> None:
        self._answered_at = time.monotonic()
        self._deadline = math.inf
        if self._future is not None and not self._future.done():
            self._future.set_result(ending)

    def end(self, reason: str) -> None:
        """Kill the child, and give whoever waits for its answer the reason."""
        self.kill()
        self._settle(Ending(None, reason))

    def was_killed_in_a_call(self, status: int) -> bool:
        """Whether this wait status, of its end, says that something killed the child while a caller waited."""
        return self._future is not None and status & 0x7F == signal.SIGKILL

    def has_ended(self, status: int, cpu_seconds: float, *, out_of_memory: bool = False, reason: str = "exit") -> None:
        """Note the child's end, and settle the call with what the child managed to send.

        Args:
            status: the wait status.
            cpu_seconds: the CPU time it used.
            out_of_memory: the kernel killed it for its memory.
            reason: for `Ending`.
        """
        self.ended, self._status, self._cpu_seconds = True, status, cpu_seconds
        if self._future is not None and not self._future.done():
            self.read()
            self._settle(Ending(None, reason, status, cpu_seconds, out_of_memory))

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        self._unsent.clear()
        for fd in (self.channel, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.channel = self.stdout = self.stderr = -1


def _whole(data: bytes) -> int:
    """How many bytes of UTF-8 are whole characters: the last may have come in part."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:  # it begins a character of several bytes
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) if length <= back else len(data) - back
        if byte < 0x80:
            break
    return len(data)
