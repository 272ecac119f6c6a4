"""The tools that code calls: frames of its child, put to whoever runs the code, and answered.

What comes from the child is bounded and opaque here: its bytes are passed on, and their meaning is for who answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

__all__ = ["Asker", "CallsOfRun", "Reply"]

MAX_UNDER_WAY = 64
"""Of one run, whatever it was told: more are refused."""
MAX_UNDER_WAY_BYTES = 8 * 1024 * 1024
MAX_REFUSED = 1000
"""A run that goes on asking after so many refusals is ended."""


class Reply(Protocol):
    """The answer to a call.

    Attributes:
        body: JSON, for the code.
        asked_seconds: for how long, in this run so far, somebody was asked: the code's clock stood still.
        over: the run may call nothing more, and is ended if it goes on.
    """

    @property
    def body(self) -> bytes: ...

    @property
    def asked_seconds(self) -> float: ...

    @property
    def over(self) -> bool: ...


class Asker(Protocol):
    """Who answers the calls of one run: a gateway, as a function in the same process or at the end of a connection.

    Attributes:
        at_once: how many the code may have under way.
    """

    at_once: int

    @property
    def on_output(self) -> Callable[[str], None] | None:
        """Is given what the code writes to stdout while it runs, as text; `None`: nobody wants it."""
        ...

    def ask(self, call: bytes, seconds: float, /) -> Awaitable[Reply]:
        """Answer a call. Cancelling it cancels the tool's work.

        Args:
            call: JSON, as the code wrote it.
            seconds: that the code has left.
        """
        ...


class Code(Protocol):
    """The child, as it is needed here."""

    def seconds_left(self) -> float: ...

    def extend(self, seconds: float) -> None:
        """Stop the code so much later than it was said at first."""
        ...

    def reply(self, number: int, body: bytes) -> None: ...

    def end(self, reason: str) -> None: ...


class CallsOfRun:
    """The calls under way of one run. Only from the event loop's thread."""

    def __init__(self, asker: Asker, code: Code) -> None:
        self._asker = asker
        self._code = code
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._bytes = 0
        self._stopped = False
        self._refused = 0
        self._may_cancel = MAX_UNDER_WAY
        """Calls that were made; a session may have left some of its last run."""

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    def came(self, number: int, body: bytes) -> None:
        """Take a call of the code."""
        self._may_cancel += 1
        if len(self._tasks) >= MAX_UNDER_WAY or number in self._tasks:
            self._refuse(number, "overloaded", f"{MAX_UNDER_WAY} calls are under way")
            return
        if self._bytes + len(body) > MAX_UNDER_WAY_BYTES:
            self._refuse(number, "overloaded", f"calls of {self._bytes:,} bytes are under way")
            return
        seconds = self._code.seconds_left()
        if seconds <= 0 and not self._tasks:  # else somebody may be being asked, which who answers knows
            self._refuse(number, "upstream_timeout", "the time of the run is over")
            return
        self._bytes += len(body)
        task = self._tasks[number] = asyncio.ensure_future(self._answer(number, body, seconds))
        task.add_done_callback(lambda _: self._ended(number, len(body)))

    def _ended(self, number: int, size: int) -> None:
        self._bytes -= size
        self._tasks.pop(number, None)

    def cancel(self, number: int) -> None:
        """The code does not wait for a call any more. It says so once of each, or is ended."""
        self._may_cancel -= 1
        task = self._tasks.get(number)
        if self._may_cancel < 0:
            self._code.end("calls")
        elif task is not None:
            task.cancel()

    async def _answer(self, number: int, body: bytes, seconds: float) -> None:
        try:
            reply = await self._asker.ask(body, seconds)
        except asyncio.CancelledError:
            if not self._stopped:
                self._code.reply(number, _refusal("cancelled", "the code does not wait for it"))
            raise
        except TimeoutError:
            self._refuse(number, "overloaded", "other runs' calls took the time of this one")
            return
        except Exception as exc:  # who answers is gone
            self._refuse(number, "upstream_unavailable", f"nobody answers: {exc}")
            return
        self._code.extend(reply.asked_seconds)
        if reply.over:
            self._count_refused()
        self._code.reply(number, reply.body)

    def _refuse(self, number: int, code: str, message: str) -> None:
        self._count_refused()
        self._code.reply(number, _refusal(code, message))

    def _count_refused(self) -> None:
        self._refused += 1
        if self._refused > MAX_REFUSED:
            self._code.end("calls")

    async def stop(self) -> None:
        """Cancel what is under way, and wait for that."""
        self._stopped = True
        if self._tasks:
            tasks = [*self._tasks.values()]
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)


def _refusal(code: str, message: str) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message, "retryable": False}
    return json.dumps({"error": error}).encode()
