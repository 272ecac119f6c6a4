"""Engines: how a piece of code gets a process. Whatever the engine, it is never the server's own.

`FreshEngine` starts a new interpreter for every call. It isolates one call from the next and bounds time, memory,
files and output; it does not hide the file system or the network from the code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

__all__ = ["Engine", "Exit", "FreshEngine", "Job", "Outcome"]

Exit = Literal["ok", "error", "timeout", "memory", "killed", "output_limit"]

WORKER = Path(__file__).with_name("worker.py")
FILE_BYTES = 64 * 1024 * 1024
MAX_ANSWER_BYTES = 4 * 1024 * 1024
LEAVING_SECONDS = 0.5
"""How long a process may take to end once it has answered."""
INTERPRETER_BYTES = 64 * 1024 * 1024
"""Address space that an interpreter takes before it runs anything; the limit is counted from there."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call: the code, what `input()` reads, and its bounds."""

    code: str
    input: str
    timeout_seconds: float
    memory_bytes: int
    max_output_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `result` is the `repr` of a last expression's value; durations are wall-clock milliseconds."""

    exit: Exit
    stdout: str
    stderr: str
    result: str | None
    error: dict[str, str] | None
    duration_ms: float


class Engine(Protocol):
    """A way to run a job. Cancelling `run` ends the code at once."""

    name: str

    async def run(self, job: Job) -> Outcome: ...


class FreshEngine:
    """A new interpreter for every call, in a folder of its own that is gone afterwards."""

    name = "fresh"

    async def run(self, job: Job) -> Outcome:
        started = time.perf_counter()
        folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="toolscore-python-")
        try:
            return await self._run_in(folder, job, started)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, True))

    async def _run_in(self, folder: str, job: Job, started: float) -> Outcome:
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        child = _Child(job.max_output_bytes)
        answer = _Answer(child)
        answers, _ = await loop.connect_read_pipe(lambda: answer, os.fdopen(read_end, "rb", buffering=0))
        try:
            process, _ = await loop.subprocess_exec(
                lambda: child,
                sys.executable, "-I", "-S", str(WORKER), str(write_end),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                cwd=folder, env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
                start_new_session=True, pass_fds=(write_end,),
            )  # fmt: skip
        except BaseException:
            answers.close()
            raise
        finally:
            os.close(write_end)
        try:
            stdin = cast(asyncio.WriteTransport, process.get_pipe_transport(0))
            stdin.write(_message(job))
            stdin.close()
            try:
                async with asyncio.timeout(job.timeout_seconds):
                    await child.done.wait()
            except TimeoutError:
                child.limit = child.limit or "timeout"
            if answer.data and not child.limit:
                await _within(LEAVING_SECONDS, child.exited)
        finally:
            _kill_session(process.get_pid())
            # What was written before the end is still in the pipes.
            await asyncio.shield(asyncio.ensure_future(_within(LEAVING_SECONDS, child.exited, child.drained)))
            process.close()
            answers.close()
        duration_ms = (time.perf_counter() - started) * 1000
        return _outcome(process.get_returncode(), child, answer.data, job, duration_ms)


async def _within(seconds: float, *events: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for event in events:
                await event.wait()


class _Child(asyncio.SubprocessProtocol):
    """Reads stdout and stderr up to a bound, and knows when there is nothing more to wait for."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._open = {1, 2}
        self.output = {1: bytearray(), 2: bytearray()}
        self.limit: Exit | None = None
        self.done, self.exited, self.drained = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        output = self.output[fd]
        output += data[: self._bound - len(output) + 1]
        if len(output) > self._bound:
            del output[self._bound :]
            self.limit = self.limit or "output_limit"
            self.done.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.done.set()

    def text(self, fd: int) -> str:
        return self.output[fd].decode("utf-8", "replace")


class _Answer(asyncio.Protocol):
    """Reads the one line that the worker answers. What the code left running may hold its output open for ever."""

    def __init__(self, child: _Child) -> None:
        self._child = child
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data
        if data.endswith(b"\n") or len(self.data) > MAX_ANSWER_BYTES:
            self._child.done.set()


def _message(job: Job) -> bytes:
    message = {
        "code": job.code,
        "input": job.input,
        "timeout_seconds": job.timeout_seconds,
        "memory_bytes": job.memory_bytes + INTERPRETER_BYTES,
        "file_bytes": FILE_BYTES,
        "parent": os.getpid(),
    }
    return json.dumps(message).encode()


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _outcome(code: int | None, child: _Child, answer: bytearray, job: Job, duration_ms: float) -> Outcome:
    limit = child.limit
    parsed: dict[str, Any] = {}
    if limit is None and answer:
        with contextlib.suppress(ValueError):
            parsed = json.loads(answer)
    how: Exit = limit or parsed.get("exit") or "killed"
    error = parsed.get("error")
    if how == "timeout":
        error = _error("TimeoutError", f"the code ran longer than {job.timeout_seconds:g} s and was ended")
    elif how == "output_limit":
        error = _error("OutputLimit", f"the code wrote more than {job.max_output_bytes:,} bytes and was ended")
    elif how == "killed":
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        error = _error("Killed", f"the process ended before it could answer ({name})")
    result = parsed.get("result")
    return Outcome(how, child.text(1), child.text(2), result, error, round(duration_ms, 3))


def _error(kind: str, message: str) -> dict[str, str]:
    return {"type": kind, "message": message, "traceback": ""}
