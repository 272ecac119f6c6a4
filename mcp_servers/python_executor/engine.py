"""Engines: each is a way to give a piece of code a process. No engine runs code in the server's own process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mcp_servers.python_executor.child_process import ChildProcess, Ending
from mcp_servers.python_executor.pool import Pool
from mcp_servers.python_executor.sandbox.wire import CPU_GRACE_SECONDS, Answer, Mode, Request, encode_request
from mcp_servers.python_executor.tool_calls import Asker

__all__ = ["ENGINES", "Engine", "Exit", "Job", "Outcome", "PoolEngine", "ReusedEngine", "conclude", "request_of"]

Exit = Literal["ok", "error", "timeout", "memory", "killed", "output_limit"]

ENGINES: Mapping[str, str] = {
    "fork": "a fresh, confined process for every call, forked ahead of time; nothing passes from one call to the next",
    "fresh": "a new, confined interpreter for every call: as `fork`, with its own address layout and hash seed; slow",
    "restricted": "as `fork`, and only RestrictedPython's subset of the language: for expressions and policies",
    "reset": "confined, but one process serves many callers: what one leaves running can read and answer the next",
    "persistent": "confined, but one process serves many callers, who share all variables",
    "container": "a new interpreter in a long-lived container, for hosts without layers: files and processes pass on",
}
"""What each isolates, and what not."""

CRASHES = {
    signal.SIGSEGV: "it crashed (SIGSEGV): endless recursion in C, or a fault in an extension module",
    signal.SIGABRT: "it aborted (SIGABRT)",
    signal.SIGSYS: "it made a system call of another machine (SIGSYS)",
    signal.SIGBUS: "it crashed (SIGBUS): a mapped file was cut short",
}


@dataclass(frozen=True, slots=True)
class Job:
    """One call: the code, what `input()` reads, the files it finds, its bounds, and who answers the tools it calls."""

    code: str
    input: str = ""
    timeout_seconds: float = 30.0
    max_output_bytes: int = 1024 * 1024
    files: tuple[tuple[str, bytes], ...] = ()
    asker: Asker | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job.

    Attributes:
        result: `repr` of a last expression's value.
        error: `type`, `message`, `traceback` with the code's own lines.
        images: PNG.
        files: path → content, or the size of one that was too large to come along.
        limits_hit: of `time`, `cpu`, `memory`, `output`, `result`, `disk`, `file_size`, `files`, `processes`,
            `images`, `open_files`, `answer`, `calls`.
        duration_ms: wall-clock, from handing over the code to the answer.
    """

    exit: Exit
    stdout: str = ""
    stderr: str = ""
    result: str | None = None
    error: dict[str, str] | None = None
    images: tuple[bytes, ...] = ()
    files: tuple[tuple[str, bytes | int], ...] = ()
    duration_ms: float = 0.0
    limits_hit: tuple[str, ...] = ()


class Written(Protocol):
    """Where the output of the code can be read."""

    def output(self, bound: int) -> tuple[bytes, bytes]:
        """Return stdout and stderr, each up to one byte over the bound."""
        ...


class Engine(Protocol):
    """A way to run a job. Cancelling `run` ends the code at once. An `async with` gives it its life."""

    name: str

    async def ready(self) -> None:
        """Start what can be started before the first call.

        Raises:
            SandboxUnavailable: it cannot run here.
        """
        ...

    async def run(self, job: Job) -> Outcome: ...

    def about(self) -> dict[str, Any]:
        """`tier`, `layers`, …, where they are known."""
        ...

    def figures(self) -> dict[str, Any]: ...

    async def memory_kb(self) -> dict[str, int]:
        """Return the proportional memory of its processes, where it is known. Takes milliseconds, in a thread."""
        ...

    async def stop(self) -> None: ...


def request_of(job: Job, mode: int) -> bytes:
    return encode_request(
        Request(
            job.code.encode("utf-8", "surrogatepass"),
            mode,
            job.timeout_seconds,
            job.input.encode("utf-8", "surrogatepass"),
            list(job.files),
            job.asker.at_once if job.asker is not None else 0,
        )
    )


class PoolEngine:
    """`fork`, `fresh` and `restricted`: a child for each call."""

    def __init__(self, name: str, pool: Pool, mode: int = Mode.ONCE) -> None:
        self.name = name
        self.pool = pool
        self._mode = mode

    async def ready(self) -> None:
        await self.pool.ready()

    async def run(self, job: Job) -> Outcome:
        child = await self.pool.take()
        began = time.perf_counter()
        ending: Ending | None = None
        try:
            request = request_of(job, self._mode)
            ending = await child.call(request, job.timeout_seconds, job.max_output_bytes, job.asker)
            return conclude(ending, child, job, (time.perf_counter() - began) * 1000)
        finally:
            child.release(kill=ending is None or ending.answer is None)

    def about(self) -> dict[str, Any]:
        return self.pool.about

    def figures(self) -> dict[str, Any]:
        return self.pool.figures()

    async def memory_kb(self) -> dict[str, int]:
        return await self.pool.memory_kb()

    async def stop(self) -> None:
        await self.pool.stop()


@dataclass(slots=True)
class _Worker:
    child: ChildProcess | None = None
    executions: int = 0


class ReusedEngine:
    """`persistent` and `reset`: a few children that serve everybody, one call at a time each.

    Args:
        processes: how many.
        max_executions: after so many calls a worker is replaced by a spare, which is ready: no call is slow for it.
    """

    def __init__(self, name: str, pool: Pool, *, processes: int = 1, max_executions: int = 1000) -> None:
        self.name = name
        self.pool = pool
        self._mode = Mode.PERSISTENT if name == "persistent" else Mode.RESET
        self._max_executions = max_executions if name == "reset" else math.inf
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        for _ in range(processes):
            self._idle.put_nowait(_Worker())
        self.restarts = 0

    async def ready(self) -> None:
        await self.pool.ready()

    async def run(self, job: Job) -> Outcome:
        worker = await self._idle.get()
        try:
            return await self._run_on(worker, job)
        finally:
            self._idle.put_nowait(worker)

    async def _run_on(self, worker: _Worker, job: Job) -> Outcome:
        child = worker.child
        if child is not None and (child.ended or child.spoiled or worker.executions >= self._max_executions):
            child.release(kill=True)
            worker.child = child = None
            self.restarts += 1
        if child is None:
            child = worker.child = await self.pool.take()
            worker.executions = 0
        worker.executions += 1
        began = time.perf_counter()
        ending: Ending | None = None
        try:
            ending = await child.call(request_of(job, self._mode), job.timeout_seconds, job.max_output_bytes)
            outcome = conclude(ending, child, job, (time.perf_counter() - began) * 1000)
            child.forget_output()
            return outcome
        finally:
            if ending is None or ending.answer is None:
                child.release(kill=True)
                worker.child = None
                self.restarts += 1

    def about(self) -> dict[str, Any]:
        return self.pool.about

    def figures(self) -> dict[str, Any]:
        figures = self.pool.figures()
        return {**figures, "restarts": self.restarts + figures["restarts"]}

    async def memory_kb(self) -> dict[str, int]:
        return await self.pool.memory_kb()

    async def stop(self) -> None:
        await self.pool.stop()


def conclude(ending: Ending, child: Written, job: Job, duration_ms: float) -> Outcome:
    """Make the outcome of a job from the child's answer, its output and its end.

    Args:
        ending: the answer, or why there is none.
        child: has the output.
        job: what ran.
        duration_ms: wall-clock time, from handing over the code to the answer.
    """
    out, err = child.output(job.max_output_bytes)
    answer = ending.answer
    exit_: Exit
    error: dict[str, str] | None = None
    limits = []
    if answer is not None:
        exit_ = answer.exit  # type: ignore[assignment]
        if answer.limits:
            limits.append(answer.limits)
        if exit_ == "timeout":
            error = _error("TimeoutError", _too_long(job), answer.traceback)
        elif exit_ != "ok":
            error = _error(answer.error_type, answer.error_message, answer.traceback)
    else:
        answer = Answer()
        exit_, error, limit = _without_answer(ending, job)
        if limit:
            limits.append(limit)
    if max(len(out), len(err)) > job.max_output_bytes:
        out, err = out[: job.max_output_bytes], err[: job.max_output_bytes]
        exit_, limits = "output_limit", ["output"]
        said = f"the code wrote more than {job.max_output_bytes:,} bytes"
        error = _error("OutputLimit", said, error["traceback"] if error is not None else "")
    return Outcome(
        exit_,
        out.decode("utf-8", "replace") if out else "",
        err.decode("utf-8", "replace") if err else "",
        answer.result,
        error,
        tuple(answer.images) if answer.images else (),
        tuple(answer.files) if answer.files else (),
        round(duration_ms, 3),
        tuple(limits),
    )


def _without_answer(ending: Ending, job: Job) -> tuple[Exit, dict[str, str], str]:
    """Return (exit, error, limit) for a child that ended, or was killed, before it answered."""
    if ending.reason in ("time", "output"):  # what it wrote says so in the second case
        return "timeout", _error("TimeoutError", _too_long(job)), "time"
    if ending.reason == "disk":
        return "killed", _error("Killed", "the code wrote more files than a call may have, and was ended"), "disk"
    if ending.reason == "protocol":
        return "killed", _error("Killed", "it wrote into the channel that its result goes through, and was ended"), ""
    if ending.reason == "calls":
        return "killed", _error("Killed", "it went on calling tools after it had been refused many times"), "calls"
    if ending.reason == "sandbox":
        return "killed", _error("Killed", "the sandbox was stopped or restarted during the call: call again"), ""
    status = ending.status or 0
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return "killed", _error("Killed", f"the process ended before it could answer (exit code {code})"), ""
    if ending.out_of_memory:
        return (
            "memory",
            _error("MemoryError", "the code and its processes used up their memory, and were ended"),
            "memory",
        )
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and ending.cpu_seconds >= int(job.timeout_seconds) + CPU_GRACE_SECONDS - 0.5:
        return (
            "timeout",
            _error("TimeoutError", f"the code used more than {ending.cpu_seconds:.0f} s of CPU time"),
            "cpu",
        )
    with contextlib.suppress(ValueError):
        known = signal.Signals(number)
        said = CRASHES.get(known, f"it was killed ({known.name})")
        return "killed", _error("Killed", f"the process ended before it could answer: {said}"), ""
    return "killed", _error("Killed", f"the process was killed by signal {number}"), ""


def _too_long(job: Job) -> str:
    return f"the code ran longer than {job.timeout_seconds:g} s and was ended"


def _error(kind: str, message: str, traceback: str = "") -> dict[str, str]:
    return {"type": kind, "message": message, "traceback": traceback}
