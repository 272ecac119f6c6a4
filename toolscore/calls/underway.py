"""The calls under way, and their end when the gateway ends."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from toolscore.core.errors import Overloaded

__all__ = ["Underway"]

log = structlog.get_logger(__name__)


class Underway:
    """The tasks that carry out calls.

    Attributes:
        leaving: calls are taken, but should go elsewhere: this gateway is about to end.
    """

    def __init__(self) -> None:
        self.leaving = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        self._closing = False

    def enter(self) -> asyncio.Task[Any]:
        """The running task carries out a call from now on. Returns it, for `leave`.

        Raises:
            Overloaded: the gateway takes no more calls.
        """
        if self._closing:
            raise Overloaded("the gateway is shutting down: call again when it is back", retry_after_seconds=5)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        """A task's call has ended. Idempotent."""
        self._tasks.discard(task)

    def was_ended(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether `close` cancelled a task, and not its caller. Then the cancellation is taken back."""
        if task is None or task not in self._ended:
            return False
        task.uncancel()
        return True

    async def close(self, seconds: float) -> None:
        """Take no more calls, let those under way finish for so long, and end the others: their callers are told."""
        self._closing = self.leaving = True
        if self._tasks:
            log.info("waiting for calls to finish; a second Ctrl-C ends them", calls=len(self._tasks), seconds=seconds)
            await asyncio.wait(set(self._tasks), timeout=seconds)
        for task in self._tasks:
            self._ended.add(task)
            task.cancel()
