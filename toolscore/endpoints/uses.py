"""Whether anybody uses this gateway: one that `toolscore stdio` started ends when nobody does."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Uses"]

FIRST_SECONDS = 60.0
"""For how long a gateway that nobody has used yet waits for whoever started it."""
LEFT_SECONDS = 5.0
"""After the last socket or stream has closed: clients that restart come back."""
ASKED_SECONDS = 600.0
"""After the last request without one: who asks now and then has no connection that would show it."""
LOOK_SECONDS = 1.0


class Uses:
    """Counts the sockets and streams that are open, and knows when somebody asked last. Whoever has one open does so
    inside `with uses`.

    Attributes:
        asked_at: when the last request came, by `time.perf_counter()`; signs of life do not count.
    """

    def __init__(self) -> None:
        self._open = 0
        self._left_at = time.perf_counter()
        self.asked_at = float("-inf")
        self._used = False

    def __enter__(self) -> None:
        self._open += 1
        self._used = True

    def __exit__(self, *_: object) -> None:
        self._open -= 1
        self._left_at = time.perf_counter()

    def unused(self) -> bool:
        """Whether nobody uses the gateway, and nobody is expected."""
        now = time.perf_counter()
        if self._open or now - self.asked_at < ASKED_SECONDS:
            return False
        return now - self._left_at >= (LEFT_SECONDS if self._used else FIRST_SECONDS)

    async def wait_unused(self) -> None:
        """Return once nobody uses the gateway."""
        while not self.unused():
            await asyncio.sleep(LOOK_SECONDS)
