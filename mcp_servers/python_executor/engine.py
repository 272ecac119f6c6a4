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
from typing import Any, Literal, Protocol

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
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(WORKER), str(write_end),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                cwd=folder, env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
                start_new_session=True, pass_fds=(write_end,),
            )  # fmt: skip
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        answer = _Sink(MAX_ANSWER_BYTES)
        stdout, stderr = _Sink(job.max_output_bytes), _Sink(job.max_output_bytes)
        limit: Exit | None = None
        try:
            reader = await _pipe_reader(read_end)
            assert process.stdout is not None
            assert process.stderr is not None
            reading = [
                asyncio.create_task(answer.fill(reader, end=b"\n")),
                asyncio.create_task(stdout.fill(process.stdout)),
                asyncio.create_task(stderr.fill(process.stderr)),
            ]
            try:
                async with asyncio.timeout(job.timeout_seconds):
                    await _feed(process, job)
                    await _until_done(process, reading, stdout, stderr)
            except TimeoutError:
                limit = "timeout"
            except _Overflow:
                limit = "output_limit"
            finally:
                _kill_session(process.pid)
                await asyncio.shield(process.wait())
                await asyncio.wait(reading, timeout=0.2)
                for task in reading:
                    task.cancel()
        finally:
            with contextlib.suppress(OSError):
                os.close(read_end)
        duration_ms = (time.perf_counter() - started) * 1000
        return _outcome(process.returncode, limit, answer.data, stdout, stderr, job, duration_ms)


class _Overflow(Exception):
    """The code wrote more than it may."""


class _Sink:
    """Reads a stream up to a bound."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self.data = bytearray()
        self.overflowed = False

    async def fill(self, stream: asyncio.StreamReader, end: bytes | None = None) -> None:
        while chunk := await stream.read(65536):
            self.data += chunk
            if end is not None and chunk.endswith(end):
                return
            if len(self.data) > self._bound:
                del self.data[self._bound :]
                self.overflowed = True
                return

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


async def _pipe_reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe = os.fdopen(os.dup(descriptor), "rb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def _feed(process: asyncio.subprocess.Process, job: Job) -> None:
    assert process.stdin is not None
    message = {
        "code": job.code,
        "input": job.input,
        "timeout_seconds": job.timeout_seconds,
        "memory_bytes": job.memory_bytes + INTERPRETER_BYTES,
        "file_bytes": FILE_BYTES,
        "parent": os.getpid(),
    }
    with contextlib.suppress(ConnectionError):  # it died at its start: its exit says why
        process.stdin.write(json.dumps(message).encode())
        await process.stdin.drain()
    process.stdin.close()


async def _until_done(
    process: asyncio.subprocess.Process, reading: list[asyncio.Task[None]], stdout: _Sink, stderr: _Sink
) -> None:
    """Wait for the answer or the process's end. What the code left running may hold its output open for ever.

    Raises:
        _Overflow: a stream passed its bound first.
    """
    exited = asyncio.ensure_future(process.wait())
    answering, *_ = reading
    pending: set[asyncio.Future[Any]] = {exited, *reading}
    try:
        while exited in pending and answering in pending:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if stdout.overflowed or stderr.overflowed:
                raise _Overflow
        if exited in pending and answering.done():
            await asyncio.wait({exited}, timeout=LEAVING_SECONDS)
    finally:
        exited.cancel()


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _outcome(
    code: int | None, limit: Exit | None, answer: bytearray, stdout: _Sink, stderr: _Sink, job: Job, duration_ms: float
) -> Outcome:
    if limit is None and (stdout.overflowed or stderr.overflowed):
        limit = "output_limit"
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
    return Outcome(how, stdout.text, stderr.text, result, error, round(duration_ms, 3))


def _error(kind: str, message: str) -> dict[str, str]:
    return {"type": kind, "message": message, "traceback": ""}
