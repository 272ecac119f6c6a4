"""Noticing that a client has gone: a call that nobody waits for must not go on."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import ClassVar, Protocol

from toolscore.endpoints.asgi import Receive

__all__ = ["ClientWatch", "LongResponse"]

SWEEP_SECONDS = 0.05
"""A call that outlives one sweep is watched from the next on."""


class LongResponse(Protocol):
    """A response that can be resumed."""

    def slow(self) -> None:
        """The answer takes longer than most."""

    async def gone(self) -> None:
        """The client hung up. Returns when it will not come back."""


class ClientWatch:
    """Cancels the task that enters it when the HTTP client hangs up: a call that nobody waits for must not go on.

    Args:
        response: told when the answer takes long and when the client hangs up; it may have the call go on.

    The body must have been read before, so that the next message can only be the disconnect. Most calls end before
    watching is worth a task; one sweep for all of them finds those that take longer.
    """

    _watches: ClassVar[set[ClientWatch]] = set()
    _sweeping: ClassVar[asyncio.TimerHandle | None] = None
    _loop: ClassVar[asyncio.AbstractEventLoop | None] = None

    __slots__ = ("_receive", "_response", "_seen", "_task", "_watcher", "gone")

    def __init__(self, receive: Receive, response: LongResponse | None = None) -> None:
        self._receive = receive
        self._response = response
        self._watcher: asyncio.Task[None] | None = None
        self._seen = False
        self.gone = False

    def __enter__(self) -> ClientWatch:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._watches.add(self)
        if ClientWatch._sweeping is None or ClientWatch._loop is not loop:
            ClientWatch._loop = loop
            ClientWatch._sweeping = loop.call_later(SWEEP_SECONDS, ClientWatch._sweep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watches.discard(self)
        if self._watcher is not None:
            self._watcher.cancel()

    @classmethod
    def _sweep(cls) -> None:
        for watch in cls._watches:
            if watch._seen and watch._watcher is None:
                if watch._response is not None:
                    watch._response.slow()
                watch._watcher = asyncio.get_running_loop().create_task(watch._watch())
            watch._seen = True
        loop = asyncio.get_running_loop()
        cls._sweeping = loop.call_later(SWEEP_SECONDS, cls._sweep) if cls._watches else None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._response is not None:
            await self._response.gone()
        self.gone = True
        if self._task is not None:
            self._task.cancel()
