"""What keeps the event loop from turning is seen, with its place in the code."""

from __future__ import annotations

import asyncio
import time
import weakref

import structlog

from toolscore.telemetry.watchdog import Watchdog


def test_a_stall_is_told_with_where_the_loop_stands() -> None:
    def stand() -> weakref.ref[Watchdog]:
        held = Watchdog()
        until = time.thread_time() + 0.5  # of its own: a busy machine takes longer
        while time.thread_time() < until:
            sum(range(1000))  # stands here
        return weakref.ref(held)

    async def run() -> None:
        seconds: list[float] = []
        with structlog.testing.capture_logs() as logs:
            async with Watchdog(seconds.append) as watchdog:
                watchdog.arm()
                await asyncio.sleep(0.1)
                held = stand()
                while not watchdog.stalls or held() is not None:  # who looked at it keeps nothing of it
                    await asyncio.sleep(0.01)
        assert max(seconds) > 0.3
        assert watchdog.busiest_seconds > 0.1
        told = next(line for line in logs if line["event"].startswith("the event loop stood"))
        assert "test_watchdog.py" in told["stack"]

    asyncio.run(run())


def test_what_was_done_before_callers_come_is_no_stall() -> None:
    async def run() -> None:
        async with Watchdog(told.append) as watchdog:
            until = time.thread_time() + 0.5
            while time.thread_time() < until:
                sum(range(1000))
            watchdog.arm()
            await asyncio.sleep(0.2)
            assert watchdog.busiest_seconds < 0.3
            assert not [seconds for seconds in told if seconds > 0.3]

    told: list[float] = []
    asyncio.run(run())
