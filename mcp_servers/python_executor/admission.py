"""Admission: which calls run, which wait and which are turned away. All of it is bounded, and fair between principals.

Each principal has a queue of its own, and a free place goes to whoever holds the fewest. Calls are not ended to make
room. So some places are always left for others: a principal alone gets at most three quarters of them, and never the
last one, however long its calls take.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["Admission", "Busy"]

OTHERS_SHARE = 3
"""A principal takes one more place only while it holds fewer than so many for each that is free."""
EVERYBODY = ("", "local")
"""The names of callers whom nobody tells apart: there are no others to leave places for."""
LEAST_RETRY_SECONDS = 0.1
MOST_RETRY_SECONDS = 60.0


class Busy(Exception):
    """The executor is full: as many calls run and wait as are allowed."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class _Waiter:
    def __init__(self, on_position: Callable[[int], None] | None) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_position = on_position
        self._told = 0

    def tell(self, position: int) -> None:
        if self._on_position is not None and position != self._told:
            self._told = position
            try:
                self._on_position(position)
            except Exception:  # the listener's own fault: it must not cost a place
                self._on_position = None


class Admission:
    """Limits how many calls run at a time, and how many wait.

    Args:
        max_concurrent, max_queued: calls that run, and that wait.
    """

    def __init__(self, max_concurrent: int, max_queued: int) -> None:
        self._max_concurrent, self._max_queued = max_concurrent, max_queued
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._held: Counter[str] = Counter()
        self.running = 0
        self.waiting = 0
        self.refused = 0
        self._seconds = 0.05
        """Running average of how long a call holds its place."""

    @asynccontextmanager
    async def enter(self, principal: str, on_position: Callable[[int], None] | None = None) -> AsyncIterator[None]:
        """Hold a place while the block runs.

        Args:
            on_position: is told the place in the queue, 1 for who is next, whenever it changes.

        Raises:
            Busy: the queue is full.
        """
        if self._has_room(principal):
            self._start(principal)
        else:
            await self._wait(principal, on_position)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            self._seconds += 0.1 * (loop.time() - began - self._seconds)
            self._end(principal)

    def _has_room(self, principal: str) -> bool:
        """Whether one more call of this principal may run. Nobody waits for whom that is so."""
        free = self._max_concurrent - self.running
        if free <= 0 or principal in EVERYBODY:
            return free > 0
        held = self._held[principal]
        return not held or (free > 1 and held < OTHERS_SHARE * free)

    def _start(self, principal: str) -> None:
        self.running += 1
        self._held[principal] += 1

    def _end(self, principal: str) -> None:
        self.running -= 1
        self._held[principal] -= 1
        if not self._held[principal]:
            del self._held[principal]
        self._next()

    async def _wait(self, principal: str, on_position: Callable[[int], None] | None) -> None:
        if self.waiting >= self._max_queued and not self._make_room(principal):
            self.refused += 1
            raise self._busy()
        waiter = _Waiter(on_position)
        self._queues.setdefault(principal, deque()).append(waiter)
        self.waiting += 1
        self._tell_positions()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._end(principal)  # our turn had come already
            else:
                self._leave(principal, waiter)
            raise

    def _leave(self, principal: str, waiter: _Waiter) -> None:
        queue = self._queues.get(principal)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self.waiting -= 1
            if not queue:
                del self._queues[principal]
            self._tell_positions()

    def _make_room(self, principal: str) -> bool:
        """A full queue turns away the last call of whoever has most in it, unless that is the newcomer."""
        greedy = max(self._queues, key=lambda name: len(self._queues[name]), default=principal)
        if greedy == principal or len(self._queues[greedy]) <= len(self._queues.get(principal, ())) + 1:
            return False
        waiter = self._queues[greedy].pop()
        self.waiting -= 1
        if not waiter.turn.done():
            waiter.turn.set_exception(self._busy())
        return True

    def _busy(self) -> Busy:
        wait = self._seconds * (self.waiting + 1) / self._max_concurrent
        wait = round(min(MOST_RETRY_SECONDS, max(LEAST_RETRY_SECONDS, wait)), 2)
        return Busy(
            f"the executor is full ({self.running} running, {self.waiting} waiting): try again in {wait:g} s",
            retry_after_seconds=wait,
        )

    def _next(self) -> None:
        while fitting := [principal for principal in self._queues if self._has_room(principal)]:
            principal = min(fitting, key=lambda name: self._held[name])
            queue = self._queues[principal]
            waiter = queue.popleft()
            self.waiting -= 1
            del self._queues[principal]
            if queue:
                self._queues[principal] = queue  # to the end of the line
            if not waiter.turn.done():
                self._start(principal)
                waiter.turn.set_result(None)
        self._tell_positions()

    def _tell_positions(self) -> None:
        """Tell each waiting call its place in the order of turns."""
        position = 0
        depth = 0
        left = [*self._queues.values()]
        while left:
            for queue in left:
                position += 1
                queue[depth].tell(position)
            depth += 1
            left = [queue for queue in left if len(queue) > depth]
