"""A circuit breaker for each server: one that keeps failing is left alone for a while. Pure: the clock is an argument.

::

    closed ──(enough of the last calls failed)──► open ──(its time is over)──► half open
       ▲                                           ▲                              │
       └──────(the probes succeed)─────────────────┼──────(a probe fails)─────────┘
"""

from __future__ import annotations

from collections import deque
from typing import Annotated, Literal

from pydantic import Field

from toolscore.core.rules import Count, Rules, Seconds

__all__ = ["Breaker", "BreakerRules", "BreakerState"]

BreakerState = Literal["closed", "open", "half_open"]


class BreakerRules(Rules):
    """When a server that keeps failing is left alone for a while."""

    window_seconds: Seconds = Field(30, description="calls that ended within it count")
    min_calls: Count = Field(10, description="fewer say nothing")
    failure_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="if so many of them failed, it is left alone"
    )
    open_seconds: Seconds = Field(5, description="for so long; then twice as long each time in a row")
    max_open_seconds: Seconds = Field(60, description="and no longer than this")
    probes: Annotated[int, Field(ge=1, le=100)] = Field(
        2, description="calls at a time that find out whether it is back; as many must succeed"
    )


class Breaker:
    """One server's breaker. Times are seconds of a clock that never goes back."""

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.state: BreakerState = "closed"
        self.epoch = 0
        """Grows with each change of the state: a call that was admitted in another epoch says nothing of this one."""
        self._ended: deque[tuple[float, bool]] = deque()
        self._failed = 0
        self._open_until = 0.0
        self._open_for = rules.open_seconds
        self._probing = 0
        self._succeeded = 0

    def admit(self, now: float) -> float | None:
        """Ask to make a call. `None`: make it, and `record` how it ended; else how many seconds to wait."""
        if self.state == "closed":
            return None
        if self.state == "open":
            if now < self._open_until:
                return self._open_until - now
            self._turn("half_open")
            self._probing = self._succeeded = 0
        if self._probing >= self.rules.probes:
            return self.rules.open_seconds  # others are finding out just now
        self._probing += 1
        return None

    def record(self, ok: bool | None, now: float, epoch: int | None = None) -> None:
        """Take how a call ended that was admitted: well, badly, or in a way that says nothing (`None`).

        Args:
            epoch: of its admission; `None`: this one.
        """
        if epoch is not None and epoch != self.epoch:
            return
        if self.state == "closed":
            if ok is not None:
                self._take(ok, now)
        elif self.state == "half_open":
            self._probing = max(0, self._probing - 1)
            if ok is False:
                self._open_for = min(2 * self._open_for, self.rules.max_open_seconds)
                self._open(now)
            elif ok:
                self._succeeded += 1
                if self._succeeded >= self.rules.probes:
                    self._close()

    def _take(self, ok: bool, now: float) -> None:
        ended = self._ended
        ended.append((now, ok))
        long_ago = now - self.rules.window_seconds
        while ended[0][0] < long_ago or len(ended) > MAX_ENDED:
            if not ended.popleft()[1]:
                self._failed -= 1
        if ok:
            return
        rules = self.rules
        self._failed += 1
        if len(ended) >= rules.min_calls and self._failed >= rules.failure_ratio * len(ended):
            self._open_for = rules.open_seconds
            self._open(now)

    def _open(self, now: float) -> None:
        self._turn("open")
        self._open_until = now + self._open_for
        self._forget()

    def _close(self) -> None:
        self._turn("closed")
        self._open_for = self.rules.open_seconds
        self._forget()

    def _turn(self, state: BreakerState) -> None:
        self.state = state
        self.epoch += 1

    def _forget(self) -> None:
        self._ended.clear()
        self._failed = 0


MAX_ENDED = 1000
"""A busy server is judged by this many of its last calls, however short the time they took."""
