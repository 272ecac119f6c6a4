"""Sockets and streams end when the key that opened them does: a key is looked at at each request, these live longer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import structlog

from toolscore.access.auth import Authenticator, Credential
from toolscore.core.tasks import TaskSet

__all__ = ["Leases"]

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 0.5
END_SECONDS = 1.0


class Leases:
    """What was opened with a key or token that may end. Use as `async with Leases(auth) as leases`."""

    def __init__(self, auth: Authenticator) -> None:
        self._auth = auth
        self._held: dict[object, tuple[Credential, Callable[[str], Awaitable[None]]]] = {}
        self._ending = TaskSet()

    async def __aenter__(self) -> Leases:
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._ending.close()

    @contextlib.contextmanager
    def hold(self, credential: Credential | None, end: Callable[[str], Awaitable[None]]) -> Iterator[None]:
        """Have `end` awaited, with the reason, as soon as a credential is good no more.

        Args:
            credential: `None`: nothing was shown that could end.
        """
        if credential is None:
            yield
            return
        place = object()
        self._held[place] = (credential, end)
        try:
            yield
        finally:
            self._held.pop(place, None)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            if not self._held:
                continue
            try:
                await self._auth.refresh()
                for place, (credential, end) in list(self._held.items()):
                    reason = self._auth.ended(credential)
                    if reason is not None and self._held.pop(place, None) is not None:
                        self._ending.start(_end(end, reason))
            except Exception:  # a task's outermost line: it must go on looking
                log.exception("looking at the keys of open sockets failed")


async def _end(end: Callable[[str], Awaitable[None]], reason: str) -> None:
    with contextlib.suppress(Exception):  # it may have closed by itself
        async with asyncio.timeout(END_SECONDS):
            await end(reason)
