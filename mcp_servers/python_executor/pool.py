"""The pool: keeps a zygote and enough spare children, and hands a child to whoever asks.

Everything slow about a call is done before it or after it: the caller writes to a socket, and reads what comes back.
The pool decides how many spares there are, who gets the next one, and when a zygote is replaced. One epoll watches
the sockets of all zygotes and children, and one timer all clocks. What a zygote and a child are is in
`zygote_process.py` and `child_process.py`.

Only from the event loop's thread.

One module: how many children there are and who gets the next one is one question.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from mcp_servers.python_executor.child_process import ChildProcess
from mcp_servers.python_executor.interpreter import find_interpreter
from mcp_servers.python_executor.memory import family_memory_kb
from mcp_servers.python_executor.options import PoolOptions
from mcp_servers.python_executor.zygote_process import SandboxUnavailable, ZygoteProcess, start_zygote

__all__ = ["Pool", "SandboxUnavailable"]

TICK_SECONDS = 0.01
"""How often the clocks of children are looked at while any is taken."""
SLOW_SECONDS = 0.03
"""A call that takes longer will not make room soon: another child is forked beside it, for those who wait."""
MAX_SPARES = 2 * (os.cpu_count() or 1) + 4
"""More spares than this did not make calls faster in measurements."""
MIN_SPARES = 3
SPARE_MEMORY_SECONDS = 5.0
"""How long spares are kept after a peak: forking them again costs more than keeping them."""
MAX_START_FAILURES = 5
"""After so many in a row, those who wait are told; so many also bound the pause before the next try."""
MAX_RETRY_SECONDS = 5.0
FIRST_RETRY_SECONDS = 0.1
MAX_EVENTS = 64
"""How many sockets are served before the event loop has its turn."""


class _Spares:
    """How many spare children are wanted: as many as the load of the last seconds used."""

    def __init__(self) -> None:
        self._wanted = MIN_SPARES
        self._peak_at = 0.0

    def wanted(self, demand: int, now: float) -> int:
        """Note the demand of this moment. Returns the number of spares to keep.

        Args:
            demand: short calls under way, and callers who wait.
            now: monotonic seconds.
        """
        wanted = max(MIN_SPARES, min(MAX_SPARES, demand))
        if wanted >= self._wanted or now - self._peak_at > SPARE_MEMORY_SECONDS:
            self._wanted, self._peak_at = wanted, now
        return self._wanted


def _end(spare: ChildProcess) -> None:
    spare.take()
    spare.release(kill=True)


class Pool:
    """Confined children for one kind of call. An `async with` gives it its life; it starts with the first `take` or
    `ready`.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self.packages = options.packages
        """The folder that its children import from beside the standard library."""
        self._calls = self._reaped = self._child_faults = self._child_cpu_us = 0
        self._restarts = self._failures = 0
        self._start_ms: float | None = None
        self._last_error: str | None = None
        self._zygote: ZygoteProcess | None = None
        self._retired: set[ZygoteProcess] = set()
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._ready: deque[ChildProcess] = deque()
        self._waiting: deque[tuple[float, asyncio.Future[ChildProcess]]] = deque()
        self._spares = _Spares()
        self._busy: set[ChildProcess] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def about(self) -> dict[str, Any]:
        """What the zygote said at its start: `tier`, `layers`, `slow_path`, `python`, `modules`; empty before."""
        return self._zygote.about if self._zygote is not None else {}

    async def ready(self) -> None:
        """Start, if that was not done, and wait until calls can be taken.

        Raises:
            SandboxUnavailable: it cannot be started.
        """
        while self._zygote is None:
            if self._closed:
                raise SandboxUnavailable("the executor is shutting down")
            if self._starting is None:
                self._starting = asyncio.ensure_future(self._start())
            try:
                await asyncio.shield(self._starting)
            finally:
                if self._starting is not None and self._starting.done():
                    self._starting = None

    async def stop(self) -> None:
        """Stop everything. No process is left, and whoever waits for a child gets `SandboxUnavailable`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        self._refuse_all("the executor is shutting down")
        zygotes = [zygote for zygote in (self._zygote, *self._retired) if zygote is not None]
        await asyncio.gather(*(zygote.stop() for zygote in zygotes), *self._tasks, return_exceptions=True)
        self._zygote = None
        if not self._epoll.closed:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()

    # ------------------------------------------------------------------------------------------ handing out children

    async def take(self) -> ChildProcess:
        """Return a child that nobody used before. The caller must `release` it.

        Raises:
            SandboxUnavailable: no child can be had.
        """
        zygote = self._zygote
        if zygote is None:
            await self.ready()
            zygote = self._zygote
        self._calls += 1
        if self._ready:
            child = self._ready.popleft()
        else:
            child = await self._wait_for_child()
        child.take()
        self.watch_clock(child)
        if zygote is not None and (
            zygote.forked > self._options.generation_calls
            or time.monotonic() - zygote.born > self._options.generation_seconds
        ):
            self._replace(zygote)
        return child

    async def _wait_for_child(self) -> ChildProcess:
        future: asyncio.Future[ChildProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append((time.monotonic(), future))
        self._wake_timer()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(future.result())
            raise

    def _give_back(self, child: ChildProcess) -> None:
        """Find another use for a child whose caller was cancelled before it had the child."""
        if child.ended:
            child.release(kill=False)
        elif self._zygote is None or self._zygote.children.get(child.id) is not child:  # its zygote was replaced
            child.release(kill=True)
        elif not self._offer(child):
            child.give_back()
            self._ready.appendleft(child)

    def _offer(self, child: ChildProcess) -> bool:
        """Hand a child to whoever waits longest. Returns whether anybody waits."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                child.take()
                future.set_result(child)
                return True
        return False

    def _refuse_all(self, why: str) -> None:
        """Tell everybody who waits that there will be no child."""
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(SandboxUnavailable(why))

    # ---------------------------------------------------------------------------------------------- epoll and timer

    def _on_readable(self) -> None:
        readers = self._readers
        for fd, _ in self._epoll.poll(0, MAX_EVENTS):
            read = readers.get(fd)
            if read is not None:
                read()

    def watch_clock(self, child: ChildProcess) -> None:
        """Call the child's `tick` with every tick of the timer from now on."""
        self._busy.add(child)
        self._wake_timer()

    def ignore_clock(self, child: ChildProcess) -> None:
        """Stop calling the child's `tick`."""
        self._busy.discard(child)

    def let_go(self, child: ChildProcess) -> None:
        """Have none forked in the place of a child that is about to be killed, unless another spare is wanted."""
        self.ignore_clock(child)
        self._aim(time.monotonic())
        self._wake_timer()

    def _watch_socket(self, fd: int, read: Callable[[], None]) -> None:
        self._readers[fd] = read
        self._epoll.register(fd, select.EPOLLIN)

    def ignore_socket(self, fd: int) -> None:
        """Stop calling what reads this descriptor. Idempotent."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _wake_timer(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = time.monotonic()
        for child in [*self._busy]:
            child.tick(now)
        again = bool(self._waiting or self._busy)
        for zygote in (self._zygote, *self._retired):
            if zygote is not None and not zygote.dead:
                again = zygote.tick(now, self._busy) or again
        for zygote in [*self._retired]:
            if not any(child.taken_at for child in zygote.children.values()):
                self._retired.discard(zygote)
                self.in_background(zygote.stop())
        self._aim(now)
        if again or self._retired:
            self._wake_timer()

    def _aim(self, now: float) -> None:
        """Tell the zygote how many children shall live: the spares, and those that are busy for long."""
        zygote = self._zygote
        if zygote is None or zygote.dead:
            return
        taken = slow = 0
        for child in zygote.children.values():
            if child.taken_at and (child in self._busy or not child.released):  # else it is being killed
                taken += 1
                slow += now - child.taken_at > SLOW_SECONDS  # a slow call, or a session
        waiting_long = sum(1 for since, _ in self._waiting if now - since > SLOW_SECONDS)
        spares = self._spares.wanted(len(self._waiting) + taken - slow, now)
        zygote.aim(slow + max(spares, waiting_long))

    # ---------------------------------------------------------------------------------------- what zygotes tell us

    def child_forked(self, zygote: ZygoteProcess, child: ChildProcess) -> None:
        """Hand a new child to whoever waits, or keep it as a spare."""
        self._watch_socket(child.channel, child.read)
        if zygote is not self._zygote:  # it was retired meanwhile
            _end(child)
        elif not self._offer(child):
            self._ready.append(child)

    def child_ended(self, child: ChildProcess) -> None:
        """Forget a child that ended. Whoever took it still reads its output, and releases it."""
        self._busy.discard(child)
        self.ignore_socket(child.channel)
        if not child.taken_at:
            self._ready.remove(child)
        if child.released or not child.taken_at:
            child.close()

    def child_reaped(self, page_faults: int, cpu_us: int) -> None:
        """Count what a child used."""
        self._reaped += 1
        self._child_faults += page_faults
        self._child_cpu_us += cpu_us

    def fork_failed(self, error: int) -> None:
        """Note why, and look again in a moment."""
        self._last_error = f"cannot fork: {os.strerror(error)}"
        self._wake_timer()

    def zygote_died(self, zygote: ZygoteProcess) -> None:
        """Start another in its place, unless it was told to go."""
        self.ignore_socket(zygote.fileno())
        if zygote is self._zygote:
            self._zygote = None
            if not self._closed:
                self._restarts += 1
                self.in_background(zygote.stop())
                self.in_background(self._revive())

    # ------------------------------------------------------------------------------------------- the lives of zygotes

    async def _start(self) -> None:
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"the sandbox needs Linux: on {sys.platform} set python_executor.engine: container"
            )
        began = time.perf_counter()
        if self._failures:
            await asyncio.sleep(min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures, 20)))
        try:
            interpreter = await asyncio.to_thread(find_interpreter, self._options.interpreter, self._options.cache)
        except OSError as exc:
            raise SandboxUnavailable(str(exc)) from exc
        try:
            zygote = await start_zygote(self._options, interpreter, self)
        except BaseException as exc:
            self._failures = min(self._failures + 1, MAX_START_FAILURES)
            self._last_error = str(exc)
            raise
        self._failures = 0
        self._last_error = None
        self._start_ms = (time.perf_counter() - began) * 1000
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_readable)  # changes nothing the next time
        self._watch_socket(zygote.fileno(), zygote.read)
        if self._zygote is not None:
            self._retire(self._zygote)
        self._zygote = zygote
        self._aim(time.monotonic())

    def _retire(self, zygote: ZygoteProcess) -> None:
        """Let a zygote end when its last taken child has ended."""
        self._retired.add(zygote)
        while self._ready:
            _end(self._ready.popleft())
        zygote.aim(0)
        self._wake_timer()

    def _replace(self, zygote: ZygoteProcess) -> None:
        """Start the next zygote while this one serves."""
        if self._starting is None and zygote is self._zygote:
            self._starting = asyncio.ensure_future(self._start())
            self._starting.add_done_callback(self._on_replaced)

    def _on_replaced(self, task: asyncio.Task[None]) -> None:
        if self._starting is task:
            self._starting = None
        if not task.cancelled():
            task.exception()  # kept in last_error; the old one goes on

    async def _revive(self) -> None:
        """Start a new zygote for those who wait; refuse them when that has failed often enough."""
        while not self._closed:
            try:
                await self.ready()
                break
            except SandboxUnavailable as exc:
                if self._failures >= MAX_START_FAILURES:
                    self._refuse_all(str(exc))
                    break

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done that nobody waits for, until the pool stops."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._last_error = str(exc)

    # ------------------------------------------------------------------------------------------------------- figures

    def figures(self) -> dict[str, Any]:
        """Return what costs nothing to tell, for people and metrics."""
        zygote = self._zygote
        return {
            "calls": self._calls,
            "restarts": self._restarts,
            "spares": len(self._ready),
            "children": len(zygote.children) if zygote is not None else 0,
            "waiting": len(self._waiting),
            "start_ms": round(self._start_ms, 1) if self._start_ms is not None else None,
            "modules": self.about.get("modules"),
            "cpu_us_per_child": self._child_cpu_us // self._reaped if self._reaped else None,
            "page_faults_per_child": self._child_faults // self._reaped if self._reaped else None,
            "last_error": self._last_error,
        }

    async def memory_kb(self) -> dict[str, int]:
        """Return the proportional memory in KB: `zygote`, `children`, `private_per_child`; empty without a zygote."""
        zygote = self._zygote
        return await asyncio.to_thread(family_memory_kb, zygote.pid) if zygote is not None and not zygote.dead else {}
