"""The executor: bounds what callers may ask for, lets so many run and so many wait, and hands the rest to an engine."""

from __future__ import annotations

import asyncio

from mcp_servers.python_executor.engine import Engine, FreshEngine, Job, Outcome

__all__ = ["Busy", "Executor"]


class Busy(Exception):
    """As many calls run and wait as may."""


class Executor:
    """Runs code.

    Args:
        timeout_seconds: for calls that give none; max_timeout_seconds: the most that a call may give.
        memory_mb: per call.
        max_output_bytes: of stdout and of stderr, each.
        max_concurrent, max_queued: calls that run, and that wait, at a time.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 30,
        max_timeout_seconds: float = 300,
        memory_mb: int = 512,
        max_output_bytes: int = 1024 * 1024,
        max_concurrent: int = 16,
        max_queued: int = 256,
        engine: Engine | None = None,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.max_timeout_seconds = max_timeout_seconds
        self._memory_bytes = memory_mb * 1024 * 1024
        self._max_output_bytes = max_output_bytes
        self._slots = asyncio.Semaphore(max_concurrent)
        self._bound = max_concurrent + max_queued
        self._admitted = 0
        self._engine = engine or FreshEngine()

    async def execute(self, code: str, *, input: str = "", timeout_seconds: float | None = None) -> Outcome:
        """Run code in a process of its own. Cancelling this ends it.

        Raises:
            Busy: too many run and wait.
        """
        if self._admitted >= self._bound:
            raise Busy(f"{self._bound} calls run or wait already: try again in a second")
        self._admitted += 1
        try:
            async with self._slots:
                return await self._engine.run(
                    Job(
                        code=code,
                        input=input,
                        timeout_seconds=min(timeout_seconds or self.timeout_seconds, self.max_timeout_seconds),
                        memory_bytes=self._memory_bytes,
                        max_output_bytes=self._max_output_bytes,
                    )
                )
        finally:
            self._admitted -= 1
