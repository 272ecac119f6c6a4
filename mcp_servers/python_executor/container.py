"""The engine `container`: code runs in a long-lived container, for hosts without namespaces and Landlock.

The container is started once, without a network, with a read-only root, without capabilities and with bounds on memory
and processes; each call is `exec`ed into it as a new interpreter with a folder of its own. Calls share the container's
files in `/tmp` and its process table.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import shutil
import struct
import time
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.child_process import Ending
from mcp_servers.python_executor.engine import Job, Outcome, conclude, request_of
from mcp_servers.python_executor.pool import SandboxUnavailable
from mcp_servers.python_executor.sandbox.wire import MAX_ANSWER_BYTES, Answer, BadAnswer, Mode, decode_answer

__all__ = ["ContainerEngine"]

START_SECONDS = 120
COMMAND_SECONDS = 20
END_SECONDS = 3
MAX_WORDS_BYTES = 2000
READ_BYTES = 1 << 18
INTERPRETER_BYTES = 64 << 20
"""Address space of Python itself."""
GRACE_SECONDS = 1.0
SOURCES = ("wire", "channel", "tools", "child")
"""Modules of the sandbox, each after those that it imports."""

FIRST_PROCESS = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whatever ends is reaped
print("ready", flush=True)
sys.stdin.read()  # the container ends with the server that holds the other end
"""

RUNNER = (
    f"SOURCES = {SOURCES}"
    + """
import os, resource, shutil, struct, sys, types
memory = int(os.environ["TOOLSCORE_MEMORY"])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
given = sys.stdin.buffer.read()
package = types.ModuleType("mcp_servers.python_executor.sandbox")
sys.modules[package.__name__] = package
for name in SOURCES:  # not from a file: a caller before us could have changed it
    length = int.from_bytes(given[:4], "little")
    source, given = given[4 : 4 + length], given[4 + length :]
    module = types.ModuleType(package.__name__ + "." + name)
    setattr(package, name, module)
    module.__file__ = name + ".py"
    sys.modules[module.__name__] = module
    exec(compile(source, name + ".py", "exec"), module.__dict__)
child, data = module, given
folder = os.environ.pop("TOOLSCORE_FOLDER")
os.mkdir(folder)
os.chdir(folder)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
answer_to = os.dup(1)
out, err = (os.open(folder + ".%d" % n, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600) for n in (1, 2))
for number, fd in ((1, out), (2, err)):
    os.dup2(fd, number)
child.install_alarm()
prepared = child.Prepared()
prepared.install()
sys.path[0] = ""
sys.argv = [""]
try:
    answer = child.answer_request(data, prepared.namespace, "<code>", folder)
except BaseException as exc:
    answer = child.broken(exc)
bound = int(os.environ["TOOLSCORE_MAX_OUTPUT"]) + 1
texts = [os.pread(fd, bound, 0) for fd in (out, err)]
whole = struct.pack("<II", len(texts[0]), len(texts[1])) + texts[0] + texts[1] + answer
while whole:
    whole = whole[os.write(answer_to, whole):]
shutil.rmtree(folder, ignore_errors=True)
for number in (1, 2):
    os.unlink(folder + ".%d" % number)
os._exit(0)
"""
)


class ContainerEngine:
    """Runs `docker` or `podman`.

    Args:
        image: an image with Python 3.11 or later.
        command: the container engine's program; `None`: podman or docker, whichever is found.
        call_bytes: memory of a call.
        memory_bytes, max_processes: of the container, for all calls together.
    """

    name = "container"

    def __init__(
        self,
        *,
        image: str,
        command: str | None = None,
        call_bytes: int = 512 << 20,
        memory_bytes: int = 2 << 30,
        max_processes: int = 256,
    ) -> None:
        self._image = image
        self._command = command
        self._call_bytes = call_bytes
        self._memory_bytes, self._max_processes = memory_bytes, max_processes
        self._container = f"toolscore-python-{os.getpid()}-{secrets.token_hex(4)}"
        self._first: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._calls = self._restarts = 0
        self._cleaning: set[asyncio.Task[None]] = set()

    async def ready(self) -> None:
        async with self._lock:
            if self._first is not None:
                if self._first.returncode is None:
                    return
                self._restarts += 1
            try:
                await self._start()
            except BaseException:
                await self._end()
                raise

    def _program(self) -> str:
        for name in [self._command] if self._command else ["podman", "docker"]:
            found = shutil.which(name)
            if found:
                return found
        raise SandboxUnavailable("the engine `container` needs podman or docker, and neither is installed")

    async def _start(self) -> None:
        program = self._program()
        self._first = await asyncio.create_subprocess_exec(
            program, "run", "--rm", "--interactive", "--name", self._container, "--network", "none", "--read-only",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65534:65534",
            "--memory", str(self._memory_bytes), "--pids-limit", str(self._max_processes),
            "--tmpfs", "/box:rw,size=256m,mode=1777", "--tmpfs", "/tmp:rw,size=64m,mode=1777",  # noqa: S108
            "--entrypoint", "python3", self._image, "-c", FIRST_PROCESS,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stderr is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                if await self._first.stdout.readline() != b"ready\n":
                    said = (await self._first.stderr.read(MAX_WORDS_BYTES)).decode("utf-8", "replace").strip()
                    raise SandboxUnavailable(f"`{program} run` failed: {said}")
        except TimeoutError as exc:
            raise SandboxUnavailable(f"the container did not start within {START_SECONDS} s") from exc

    async def _end(self) -> None:
        first, self._first = self._first, None
        if first is None:
            return
        if first.stdin is not None:
            first.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await first.wait()
                return
        await self._beside("rm", "--force", self._container)
        _kill(first)
        await first.wait()

    async def _beside(self, *arguments: str) -> None:
        """Run the container engine's program beside the calls. Whether it succeeds does not matter."""
        process = await asyncio.create_subprocess_exec(
            self._program(), *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMMAND_SECONDS):
                    await process.wait()
        finally:
            _kill(process)

    async def run(self, job: Job) -> Outcome:
        await self.ready()
        self._calls += 1
        limit = job.timeout_seconds + GRACE_SECONDS
        folder = f"/box/{secrets.token_hex(8)}"
        process = await asyncio.create_subprocess_exec(
            self._program(), "exec", "--interactive", "--env", f"TOOLSCORE_MAX_OUTPUT={job.max_output_bytes}",
            "--env", f"TOOLSCORE_MEMORY={self._call_bytes + INTERPRETER_BYTES}", "--env", "HOME=/tmp",
            "--env", f"TOOLSCORE_FOLDER={folder}", self._container, "timeout", "--signal", "KILL", f"{limit:.1f}",
            "python3", "-I", "-S", "-c", RUNNER,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        began = time.perf_counter()
        written = _Written(b"", b"")
        ending = None
        try:
            async with asyncio.timeout(limit + 2):
                said = await _converse(process, _sources() + request_of(job, Mode.RESET), 2 * job.max_output_bytes)
            ending, written = self._ending(said, process.returncode or 0)
        except TimeoutError:
            ending = Ending(None, "time")
        finally:
            _kill(process)  # `timeout` ends the code itself
            if ending is None or ending.answer is None:
                self._clean(folder)
        return conclude(ending, written, job, (time.perf_counter() - began) * 1000)

    def _clean(self, folder: str) -> None:
        """Remove the files of a call that could not remove them itself."""
        remove = self._beside("exec", self._container, "rm", "-rf", folder, f"{folder}.1", f"{folder}.2")
        task = asyncio.ensure_future(remove)
        self._cleaning.add(task)
        task.add_done_callback(self._cleaned)

    def _cleaned(self, task: asyncio.Task[None]) -> None:
        self._cleaning.discard(task)
        if not task.cancelled():
            task.exception()  # the container ended, and its files with it

    def _ending(self, said: bytes, code: int) -> tuple[Ending, _Written]:
        if code in (124, 137):
            return Ending(None, "time"), _Written(b"", b"")
        try:
            out, err = struct.unpack_from("<II", said)
            written = _Written(said[8 : 8 + out], said[8 + out : 8 + out + err])
            answer: Answer = decode_answer(said[8 + out + err :])
        except (struct.error, BadAnswer):
            return Ending(None, "exit", code << 8), _Written(b"", b"")
        return Ending(answer), written

    def about(self) -> dict[str, Any]:
        return {"tier": "container", "layers": {}, "slow_path": False, "image": self._image}

    def figures(self) -> dict[str, Any]:
        return {"calls": self._calls, "restarts": self._restarts}

    async def memory_kb(self) -> dict[str, int]:
        return {}

    async def stop(self) -> None:
        await asyncio.gather(*self._cleaning, return_exceptions=True)
        async with self._lock:
            await self._end()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def _converse(process: asyncio.subprocess.Process, request: bytes, output_bytes: int) -> bytes:
    """Send the request, and read the answer. An answer above its bound counts as none."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(request)
        await process.stdin.drain()
        process.stdin.close()
    most = output_bytes + MAX_ANSWER_BYTES + 100
    said = bytearray()
    while data := await process.stdout.read(READ_BYTES):
        said += data
        if len(said) > most:
            return b""
    await process.wait()
    return bytes(said)


@functools.cache
def _sources() -> bytes:
    parts = []
    for name in SOURCES:
        source = (Path(__file__).parent / "sandbox" / f"{name}.py").read_bytes()
        parts += [len(source).to_bytes(4, "little"), source]
    return b"".join(parts)


class _Written:
    """stdout and stderr, as a child of the pool would give them."""

    def __init__(self, out: bytes, err: bytes) -> None:
        self._out, self._err = out, err

    def output(self, bound: int) -> tuple[bytes, bytes]:
        return self._out[: bound + 1], self._err[: bound + 1]
