"""Watches the event loop: whatever keeps it from turning keeps every caller waiting.

A beat on the loop notes the time; a thread looks whether beats come, and where the loop stands if they do not. The time
for which the machine gave the thread no processor is not the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import structlog

__all__ = ["Watchdog"]

log = structlog.get_logger(__name__)

BEAT_SECONDS = 0.05
STALL_SECONDS = 0.1
LOG_SECONDS = 5.0
"""At most one line in so long."""
MAX_FRAMES = 12


class Watchdog:
    """Logs each stall of the loop, with its stack. Use as `async with Watchdog() as watchdog`.

    Args:
        on_stall: told how many seconds each took.

    Attributes:
        armed: whether callers may wait: before `arm`, as at the start, nothing is told.
        stalls: how many there were.
        busiest_seconds: the most CPU time that the loop's thread took between two beats: unlike a stall, that does not
            depend on what else the machine does.
    """

    def __init__(self, on_stall: Callable[[float], None] = lambda seconds: None) -> None:
        self._on_stall = on_stall
        self.armed = False
        self.stalls = 0
        self.busiest_seconds = 0.0
        self._beat_at = self._worked = self._waited = 0.0
        self._schedule = -1
        self._stack: str | None = None
        self._logged_at = -LOG_SECONDS
        self._unlogged = 0
        self._end = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Watchdog:
        self._thread_id = threading.get_ident()
        with contextlib.suppress(OSError):
            self._schedule = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._waited = self._so_far()
        self._beat_at, self._worked = time.monotonic(), time.thread_time()
        self._timer = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end.set()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._thread.join)
        if self._schedule >= 0:
            os.close(self._schedule)
            self._schedule = -1

    def arm(self) -> None:
        """Callers may wait from now on. What the loop was kept from before is nobody's loss."""
        self.armed = True
        self._waited, self._stack = self._so_far(), None
        self._beat_at, self._worked = time.monotonic(), time.thread_time()

    def _beat(self) -> None:
        now, worked = time.monotonic(), time.thread_time()
        waited, before = self._so_far(), self._waited
        late = now - self._beat_at - BEAT_SECONDS - (waited - before)
        self._waited = waited
        if self.armed:
            self.busiest_seconds = max(self.busiest_seconds, worked - self._worked)
        if late > STALL_SECONDS and self.armed:
            self._tell(late, worked - self._worked, now)
        self._beat_at, self._worked, self._stack = now, worked, None
        self._timer = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _tell(self, seconds: float, worked: float, now: float) -> None:
        self.stalls += 1
        self._on_stall(seconds)
        self._unlogged += 1
        if now - self._logged_at >= LOG_SECONDS:
            log.warning(
                "the event loop stood: every caller waited",
                seconds=round(seconds, 3),
                cpu_seconds=round(worked, 3),
                stalls=self._unlogged,
                stack=self._stack,
            )
            self._logged_at, self._unlogged = now, 0

    def _watch(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            beat = self._beat_at
            if time.monotonic() - beat > BEAT_SECONDS + STALL_SECONDS and self._stack is None:
                with contextlib.suppress(Exception):  # a frame that goes on while it is read
                    stack = self._stack_now()
                    if beat == self._beat_at:
                        self._stack = stack

    def _stack_now(self) -> str | None:
        """Where the loop's thread is. A function of its own: who keeps a frame keeps the call that is in it."""
        frame = sys._current_frames().get(self._thread_id)
        return "".join(traceback.format_stack(frame, MAX_FRAMES)) if frame is not None else None

    def _so_far(self) -> float:
        """Seconds for which the loop's thread could have run and had no processor; 0 where the kernel does not tell."""
        try:
            return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0
