"""Writes that nobody waits for: made in order, in the background, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from toolscore.stores.errors import StoreError

__all__ = ["WriteBehind", "with_patience"]

log = structlog.get_logger(__name__)

MAX_WAITING = 10_000
TRIES = 30
"""A write that the database refuses is tried again so often, a second apart; then it is lost."""
AGAIN_SECONDS = 1.0


class WriteBehind:
    """Use as `async with WriteBehind("tools") as writes`; leaving makes what waits, if the database takes it.

    Args:
        what: is written, for the log.

    Attributes:
        error: why the last write failed; `None`: it did not.
        lost: how many writes were given up.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.error: str | None = None
        self.lost = 0
        self._closing = asyncio.Event()
        self._trying = False
        self._waiting: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue(maxsize=MAX_WAITING)

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be written, or is tried just now."""
        return self.empty and not self._trying

    @property
    def empty(self) -> bool:
        """Whether nothing waits; one may be tried just now."""
        return self._waiting.empty()

    async def __aenter__(self) -> WriteBehind:
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        await self._waiting.join()
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    def put(self, write: Callable[[], Awaitable[None]]) -> None:
        """Have this done, after what was put before. Never waits."""
        try:
            self._waiting.put_nowait(write)
        except asyncio.QueueFull:
            self.lost += 1
            self.error = f"the database does not keep up: changes of {self.what} are not being saved"

    async def _write(self) -> None:
        refused = False
        while True:
            write = await self._waiting.get()
            self._trying = True
            try:
                if refused and self._closing.is_set():
                    self.lost += 1  # the database has had its last chance
                elif await with_patience(write, self.what, self._closing, self._failed):
                    self.error, refused = None, False
                else:
                    self.lost += 1
                    refused = True
            except Exception as exc:  # one write that cannot be made must not be the end of all others
                self.lost += 1
                self.error = f"{type(exc).__name__}: {exc}"
                log.exception(f"cannot save {self.what}")
            finally:
                self._trying = False
                self._waiting.task_done()

    def _failed(self, error: str) -> None:
        self.error = error


async def with_patience(
    write: Callable[[], Awaitable[None]], what: str, closing: asyncio.Event, failed: Callable[[str], None]
) -> bool:
    """Make a write, trying again while the database refuses it: it may be locked, or its disk full, for a moment.

    Args:
        closing: once it is set nothing is tried again.
        failed: told why, each time.

    Returns:
        Whether it was made in the end.
    """
    for trial in range(1, TRIES + 1):
        try:
            await write()
            return True
        except StoreError as exc:
            failed(str(exc))
            last = trial == TRIES or closing.is_set()
            if last or trial == 1:
                log.error(f"cannot save {what}" + ("" if last else ", trying again"), error=str(exc))
            if last:
                return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_SECONDS):
                await closing.wait()
    raise AssertionError("unreachable")
