"""What other gateways on the same database change, as soon as they do: Postgres tells (with SQLite whoever wrote), and
it is asked each second.

Every write of a part that replicas share (`Database`) gives that part its next number, in the same
transaction. A number that is not of our own writing means that somebody else wrote: the part is read again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError

__all__ = ["Tail"]

log = structlog.get_logger(__name__)

ASK_SECONDS = 1.0
LISTEN_SECONDS = 5.0
"""A connection that tells us is tried again so often."""


class Tail:
    """Use as `async with Tail(database) as tail`, before anything else is read. On a database of one gateway alone it
    does nothing.

    Attributes:
        error: why the database could not be asked last; `None`: it could.
    """

    def __init__(self, database: Database) -> None:
        self.error: str | None = None
        self._database = database
        self._seen: dict[str, int] = {}
        self._readers: dict[str, Callable[[], Awaitable[None]]] = {}
        self._told = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def on_change(self, part: str, read: Callable[[], Awaitable[None]]) -> None:
        """Have a part read again whenever another gateway wrote it. `read` may raise `StoreError`: then it is tried
        again.
        """
        self._readers[part] = read

    async def __aenter__(self) -> Tail:
        if self._database.shared:
            self._seen = await self._database.change_numbers()  # before the rooms read: nothing falls in between
        return self

    def start(self) -> None:
        """Begin to follow: everything that is read again is there."""
        if self._database.shared:
            self._tasks = [asyncio.create_task(self._follow())]
            if self._database.tells:
                self._tasks.append(asyncio.create_task(self._listen()))

    def told(self, *_: Any) -> None:
        """Somebody wrote."""
        self._told.set()

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        """Keep a connection on which the database tells of writes."""
        while True:
            with contextlib.suppress(StoreError):
                await self._database.listen(self.told)
            self.told()  # whatever was told meanwhile is asked for
            await asyncio.sleep(LISTEN_SECONDS)

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_SECONDS):
                    await self._told.wait()
            self._told.clear()
            try:
                await self._look()
                self.error = None
            except StoreError as exc:
                if self.error is None:
                    log.warning("what other gateways change is not seen: the database cannot be asked", error=str(exc))
                self.error = str(exc)

    async def _look(self) -> None:
        for part, number in (await self._database.change_numbers()).items():
            before = self._seen.get(part, 0)
            if number == before:
                continue
            own = self._database.take_own(part, number)
            read = self._readers.get(part)
            if read is not None and number - before != own:
                try:
                    await read()
                except StoreError:
                    raise
                except Exception:  # a mistake of ours in one part must not be the end of the others
                    log.exception("what another gateway changed could not be taken", part=part)
            self._seen[part] = number
