"""Tasks that run beside what started them, and end with it."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Coroutine, Iterator
from typing import Any

__all__ = ["TaskSet", "where_waiting"]


class TaskSet:
    """Keeps tasks alive until they end, and cancels those that are left. Only from the event loop's thread."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(list(self._tasks))

    def start(self, work: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Run a coroutine as a task; an exception that nobody awaits is reported by asyncio."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        """Cancel all of them; does not wait."""
        for task in self._tasks:
            task.cancel()

    async def wait(self) -> None:
        """Wait until all that run now have ended, however they end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Cancel all of them and wait for their ends."""
        self.cancel()
        await self.wait()


def where_waiting(task: asyncio.Task[Any]) -> str:
    """Where a task stands, from its first function to the innermost: `tail.py:88 _follow > database.py:400 _read`."""
    places: list[str] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        if type(waiting).__name__ in ("async_generator_asend", "async_generator_athrow"):
            waiting = next((one for one in gc.get_referents(waiting) if inspect.isasyncgen(one)), None)
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
        if frame is None:
            break
        code = frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}")
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)
    return " > ".join(places)
