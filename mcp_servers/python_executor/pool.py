"""The pool: keeps a zygote alive and confined spare children ready, and hands one to whoever asks.

Everything of a call that can be done before or after it is: the caller writes to a socket, and reads what comes back.
One `Pool` stands for one zygote at a time; it starts the next when that one has served long enough, or died.

Only from the event loop's thread.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp_servers.python_executor import scratch
from mcp_servers.python_executor.cgroups import Cgroups, open_cgroups
from mcp_servers.python_executor.interpreter import Interpreter, find_interpreter
from mcp_servers.python_executor.sandbox.wire import (
    COMMAND,
    REPORT,
    Answer,
    BadAnswer,
    answer_length,
    decode_answer,
)

__all__ = ["Child", "Ending", "Pool", "PoolOptions", "SandboxUnavailable"]

PREIMPORT = (
    "abc", "array", "ast", "asyncio", "base64", "binascii", "bisect", "calendar", "codecs", "collections",
    "concurrent.futures", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "errno", "fnmatch", "fractions", "functools", "glob", "hashlib", "heapq", "hmac", "html", "inspect", "io",
    "itertools", "json", "keyword", "linecache", "locale", "math", "numbers", "operator", "os", "pathlib",
    "pickle", "pprint", "queue", "random", "re", "secrets", "select", "shlex", "shutil", "signal", "sqlite3",
    "stat", "statistics", "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "time",
    "timeit", "traceback", "types", "typing", "unicodedata", "urllib.parse", "uuid", "warnings", "weakref",
    "zlib", "zoneinfo", "encodings.idna", "encodings.ascii", "encodings.latin_1",
)  # fmt: skip
START_SECONDS = 60
STOP_SECONDS = 3
TICK_SECONDS = 0.01
"""How often calls under way are looked at."""
SLOW_SECONDS = 0.03
"""A call that takes longer is not about to make room: another child is forked beside it, for those who wait."""
LINGER_SECONDS = 0.05
"""How long a child may take to end once it has answered."""
GRACE_SECONDS = 0.25
"""The child's own clock strikes first, and shows where the code stood; this long after it, the child is killed."""
MAX_SPARES = 2 * (os.cpu_count() or 1) + 4
MIN_SPARES = 3
SPARE_MEMORY_SECONDS = 5.0
READ_BYTES = 1 << 18
GENERATION_CALLS = 20_000
GENERATION_SECONDS = 3600.0
"""Children of one zygote share its address layout and hash seed, and each box that was written to leaves a rule of
Landlock behind: it is replaced from time to time."""
LOOK_SECONDS = 0.25
"""How often the files of a call are added up, where it has no file system of its own that is full at its bound."""
MAX_START_FAILURES = 5
PACKAGE_ROOT = Path(__file__).parents[2]
SANDBOX = Path(__file__).parent / "sandbox"


class SandboxUnavailable(Exception):
    """There is no sandbox to run in; the message says why and what to do.

    Attributes:
        tier, layers: what the machine gives, where it was that.
    """

    def __init__(self, message: str, *, tier: str = "E", layers: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.tier, self.layers = tier, layers or {}


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How a pool's children are confined, and what they have at hand.

    Args:
        interpreter: the sandbox's Python; `None`: the one that runs us.
        cache: where a helper compiled for another Python is kept.
        packages: a folder of packages, read-only for the code; `None`: the standard library alone.
        preload: modules to import before the first call; a failure is one of the start.
        libraries: folders of packages that are preloaded, and that the code need not see.
        memory_bytes: what a call may use beyond what the zygote has.
        scratch_bytes: of `/tmp` and the working folder together.
        file_bytes: the largest file; also a bound on output.
        max_processes: processes and threads of a call.
        allow_processes: whether the code may start processes of its own.
        children: the most that live at a time.
        fresh: replace each child by a new interpreter.
        min_tier: refuse below (`A` … `E`, see `sandbox/layers.py`).
        use_helper, huge_pages, use_cgroups: off for tests, and for machines where they do harm.
    """

    interpreter: str | None = None
    cache: Path | None = None
    packages: str | None = None
    preload: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    memory_bytes: int = 512 << 20
    scratch_bytes: int = 64 << 20
    file_bytes: int = 16 << 20
    max_processes: int = 64
    max_open_files: int = 256
    allow_processes: bool = False
    children: int = 40
    fresh: bool = False
    min_tier: str = "C"
    use_helper: bool = True
    huge_pages: bool = True
    use_cgroups: bool = True


@dataclass(slots=True)
class Ending:
    """How a child's work on a request ended.

    Attributes:
        answer: what it said, or `None`.
        reason: why there is no answer: `exit`, `time`, `disk`, `protocol`, `sandbox`.
        status: the wait status, where it is known; cpu_seconds likewise.
        out_of_memory: the kernel killed it for its memory.
    """

    answer: Answer | None
    reason: str = ""
    status: int | None = None
    cpu_seconds: float = 0.0
    out_of_memory: bool = False


@dataclass(slots=True, eq=False)
class Child:
    """One confined process. `call` as often as its request's mode says, then `release`."""

    zygote: _Zygote
    id: int
    slot: int
    channel: int
    stdout: int
    stderr: int
    busy_since: float = 0.0
    deadline: float = math.inf
    answered_at: float = 0.0
    ended: bool = False
    released: bool = False
    spoiled: bool = False
    """It said more than it was asked: what it says next may be the answer to something else."""
    status: int | None = None
    cpu_seconds: float = 0.0
    _paused: bool = False
    _future: asyncio.Future[Ending] | None = None
    _received: bytearray = field(default_factory=bytearray)
    _length: int | None = None

    async def call(self, request: bytes, seconds: float) -> Ending:
        """Send a request and wait for the answer or the end. Cancelling this kills the child."""
        future = self._future = self.zygote.loop.create_future()
        self._received.clear()
        self._length = None
        now = time.monotonic()
        self.busy_since, self.deadline, self.answered_at = now, now + seconds + GRACE_SECONDS, 0.0
        if self._paused:
            self.zygote.tell(self, "C")
            self._paused = False
        self.zygote.watch(self)
        if self.ended:
            self._settle(Ending(None, "exit", self.status, self.cpu_seconds))
        try:
            rest = self._write(request)
            while rest and not future.done():
                await asyncio.sleep(0.001)
                rest = self._write(rest)
            ending: Ending = await future
            return ending
        except BaseException:
            self.kill()
            raise
        finally:
            self._future = None

    def _write(self, data: bytes | memoryview) -> memoryview | None:
        view = memoryview(data)
        try:
            return view[os.write(self.channel, view) :] or None
        except BlockingIOError:
            return view
        except OSError:
            return None  # it ended: the report says how

    def output(self, bound: int) -> tuple[bytes, bytes]:
        """What was written to stdout and stderr, each up to a byte over the bound."""
        if self.stdout < 0:  # it was ended by somebody else, and is closed
            return b"", b""
        return os.pread(self.stdout, bound + 1, 0), os.pread(self.stderr, bound + 1, 0)

    def forget_output(self) -> None:
        """Empty the output, between two calls of a session."""
        if self.stdout >= 0:
            os.ftruncate(self.stdout, 0)
            os.ftruncate(self.stderr, 0)

    def kill(self) -> None:
        if not self.ended:
            self.zygote.tell(self, "K")

    def pause(self) -> None:
        """Stop it until the next `call`: whatever it left running costs nothing meanwhile."""
        if not self.ended:
            self._paused = True
            self.zygote.tell(self, "S")
            self.zygote.unwatch(self)

    def release(self, *, kill: bool) -> None:
        """We are done with it. It ends by itself, or is killed."""
        self.released = True
        if kill:
            self.kill()
        self.zygote.let_go(self)

    # Below: called by the zygote's reader.

    def readable(self) -> None:
        try:
            data = os.read(self.channel, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.zygote.unwatch_channel(self)
            return  # the report of its end follows
        if self._future is None or self._future.done():  # nobody asked
            self.spoiled = True
            self.kill()
            return
        received = self._received
        received += data
        try:
            if self._length is None and len(received) >= 4:
                self._length = answer_length(bytes(received[:4]))
            if self._length is not None and len(received) >= self._length:
                self.spoiled = len(received) > self._length
                self._settle(Ending(decode_answer(bytes(received[: self._length]))))
        except BadAnswer:
            self.kill()
            self._settle(Ending(None, "protocol"))

    def _settle(self, ending: Ending) -> None:
        self.answered_at = time.monotonic()
        self.deadline = math.inf
        if self._future is not None and not self._future.done():
            self._future.set_result(ending)

    def end(self, reason: str) -> None:
        """Kill it, and tell whoever waits why."""
        self.kill()
        self._settle(Ending(None, reason))

    def has_ended(self, status: int, cpu_seconds: float, out_of_memory: bool, reason: str = "exit") -> None:
        self.ended, self.status, self.cpu_seconds = True, status, cpu_seconds
        if self._future is not None and not self._future.done():
            self.readable()  # what it managed to send
            self._settle(Ending(None, reason, status, cpu_seconds, out_of_memory))

    def close(self) -> None:
        for fd in (self.channel, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.channel = self.stdout = self.stderr = -1


class _Zygote:
    """One zygote process and its children."""

    def __init__(self, pool: Pool, options: PoolOptions, interpreter: Interpreter) -> None:
        self._pool, self._options, self._interpreter = pool, options, interpreter
        self.loop = asyncio.get_running_loop()
        self.about: dict[str, Any] = {}
        self.children: dict[int, Child] = {}
        self.ready: deque[Child] = deque()
        self.forked = 0
        self.born = time.monotonic()
        self.dead = False
        self._by_channel: dict[int, Child] = {}
        self._busy: set[Child] = set()
        self._epoll = select.epoll()
        self._ctl: socket.socket
        self._process: subprocess.Popen[bytes]
        self._cgroups = Cgroups(None, None, unified=False, detail="not used")
        self._scratch = ""
        self._told_target: int | None = None
        self._wanted_target = 0
        self._refused_until = self._looked_at = 0.0
        self._private = True
        self._commands: deque[bytes] = deque()

    # ------------------------------------------------------------------------------------------------- its own life

    async def start(self) -> None:
        """Start the process and wait until it serves.

        Raises:
            SandboxUnavailable: it refuses, or fails.
        """
        options = self._options
        self._scratch = await asyncio.to_thread(scratch.make)
        if options.use_cgroups:
            self._cgroups = await asyncio.to_thread(self._make_cgroups)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ctl = ours
        groups = self._cgroups.fds or [[-1, -1]] * options.children
        inherited = [theirs.fileno(), *(fd for fds in groups for fd in fds if fd >= 0)]
        program = (
            f"import sys; sys.path.insert(0, {str(PACKAGE_ROOT)!r}); "
            "from mcp_servers.python_executor.sandbox.zygote import main; "
            f"main({theirs.fileno()})"
        )
        try:
            # Not in a thread: the zygote dies with the thread that started it.
            self._process = subprocess.Popen(  # noqa: ASYNC220
                [self._interpreter.command, "-I", "-S", "-c", program],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_start_environment(),
                start_new_session=True,
            )
        except OSError as exc:
            raise SandboxUnavailable(f"cannot start {self._interpreter.command}: {exc}") from exc
        finally:
            theirs.close()
        ours.setblocking(False)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self.loop.sock_sendall(ours, json.dumps(self._config(groups)).encode())
                said = json.loads(await self.loop.sock_recv(ours, 1 << 16) or b"{}")
        except (TimeoutError, OSError, ValueError) as exc:
            raise SandboxUnavailable(f"the sandbox did not start: {exc or type(exc).__name__}") from exc
        if "refused" in said:
            raise SandboxUnavailable(_why_refused(said, options.min_tier), tier=said["refused"], layers=said["layers"])
        if "tier" not in said:
            raise SandboxUnavailable(f"the sandbox did not start: {said.get('failed', 'it ended')}")
        said["layers"]["cgroups"] = {"ok": bool(self._cgroups.fds), "detail": self._cgroups.detail}
        self.about = said
        self._private = said["tier"] in "AB"
        self._epoll.register(ours.fileno(), select.EPOLLIN)
        self.loop.add_reader(self._epoll.fileno(), self._on_readable)
        self.aim(MIN_SPARES)

    def _make_cgroups(self) -> Cgroups:
        options = self._options
        cgroups = open_cgroups()
        try:
            cgroups.make(
                options.children,
                memory_bytes=options.memory_bytes + options.scratch_bytes + 4 * options.file_bytes,
                processes=options.max_processes,
            )
        except OSError as exc:
            cgroups.close()
            return Cgroups(None, None, unified=False, detail=f"cannot be made: {exc}")
        return cgroups

    def _config(self, cgroups: list[list[int]]) -> dict[str, Any]:
        options, interpreter = self._options, self._interpreter
        more = [options.packages] if options.packages else []
        programs = options.allow_processes
        if options.fresh:
            package = PACKAGE_ROOT / "mcp_servers"
            more += [interpreter.command, str(SANDBOX)]
            more += [str(path) for path in (package / "__init__.py", package / "python_executor" / "__init__.py")]
        return {
            "min_tier": options.min_tier,
            "helper": str(interpreter.helper) if options.use_helper and interpreter.helper else None,
            "huge_pages": options.huge_pages,
            "source": str(SANDBOX / "child.py"),
            "stdlib": list(interpreter.stdlib),
            "packages": [options.packages] if options.packages else [],
            "visible": interpreter.visible(programs=programs, more=tuple(more)),
            "preimport": [] if options.fresh else PREIMPORT,
            "require": list(options.preload),
            "libraries": [str(Path(path).parent) for path in options.libraries],
            "environment": _CODE_ENVIRONMENT,
            "scratch": self._scratch,
            "scratch_bytes": options.scratch_bytes,
            "memory_bytes": options.memory_bytes,
            "file_bytes": options.file_bytes,
            "max_processes": options.max_processes,
            "max_open_files": options.max_open_files,
            "processes": options.allow_processes,
            "fresh": options.fresh,
            "cgroups": cgroups,
        }

    async def stop(self) -> None:
        """End it and every child; afterwards no process, folder or group of it is left."""
        if not self.dead:
            self._die("sandbox")
        if hasattr(self, "_ctl"):
            self._ctl.close()  # the zygote sees it, and takes its children along
        if hasattr(self, "_process"):
            await asyncio.shield(asyncio.to_thread(_wait_or_kill, self._process))
        self._epoll.close()
        await asyncio.shield(asyncio.to_thread(self._clean_up))

    def _clean_up(self) -> None:
        self._cgroups.close()
        scratch.delete(self._scratch)

    def _die(self, reason: str) -> None:
        """Nothing more comes from it: tell everybody who waits for a child of its."""
        self.dead = True
        if not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
        for child in list(self.children.values()):
            child.has_ended(signal.SIGKILL, 0.0, False, reason)
            self._forget(child)
        self._pool.zygote_died(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    # ----------------------------------------------------------------------------------------------------- children

    def aim(self, target: int) -> None:
        """Say how many children shall live."""
        self._wanted_target = min(target, self._options.children)
        if self._wanted_target != self._told_target and time.monotonic() >= self._refused_until:
            self._told_target = self._wanted_target
            self._send(COMMAND.pack(ord("T"), 0, 0, self._wanted_target))

    def tell(self, child: Child, op: str) -> None:
        """`K`: end; `S`: stop; `C`: go on."""
        self._send(COMMAND.pack(ord(op), child.id, child.slot, 0))

    def _send(self, command: bytes) -> None:
        self._commands.append(command)
        self._flush()

    def _flush(self) -> None:
        while self._commands and not self.dead:
            try:
                self._ctl.send(self._commands[0])
            except BlockingIOError:
                return  # the next tick tries again
            except OSError:
                self._commands.clear()
                return
            self._commands.popleft()

    def watch(self, child: Child) -> None:
        self._busy.add(child)
        self._pool.wake_tick()

    def unwatch(self, child: Child) -> None:
        """Nothing happens in it until its next call."""
        self._busy.discard(child)

    def let_go(self, child: Child) -> None:
        if child.ended:
            self._busy.discard(child)
            child.close()

    def unwatch_channel(self, child: Child) -> None:
        if self._by_channel.pop(child.channel, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(child.channel)

    def _forget(self, child: Child) -> None:
        self.children.pop(child.id, None)
        self._busy.discard(child)
        self.unwatch_channel(child)
        with contextlib.suppress(ValueError):
            self.ready.remove(child)
        if child.released or child.busy_since == 0.0:
            child.close()

    def _on_readable(self) -> None:
        ctl = self._ctl.fileno()
        by_channel = self._by_channel
        for fd, _ in self._epoll.poll(0, 64):
            if fd == ctl:
                self._on_report()
                if self.dead:
                    return
            else:
                child = by_channel.get(fd)
                if child is not None:
                    child.readable()

    def _on_report(self) -> None:
        while not self.dead:
            try:
                data, ancillary, _, _ = self._ctl.recvmsg(REPORT.size, 64, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._die("sandbox")
                return
            exit_id, slot, new_id, status, error, faults, user_us, system_us, _ = REPORT.unpack(data)
            if exit_id:
                self._pool.reaped += 1
                self._pool.child_faults += faults
                self._pool.child_cpu_us += user_us + system_us
                child = self.children.get(exit_id)
                if child is not None:
                    killed = child._future is not None and status & 0x7F == signal.SIGKILL
                    out_of_memory = killed and self._cgroups.out_of_memory(slot)
                    child.has_ended(status, (user_us + system_us) / 1e6, out_of_memory)
                    self._forget(child)
                if not self._private:
                    self._pool.delete(self._scratch + "/trash")
            if new_id:
                fds = array.array("i")
                if ancillary:
                    data = ancillary[0][2]
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self.forked += 1
                if len(fds) == 3:
                    channel, stdout, stderr = fds
                    self._add(Child(self, new_id, slot, channel, stdout, stderr))
                    continue
                for fd in fds:  # we have no descriptors left for the others
                    os.close(fd)
                self._send(COMMAND.pack(ord("T"), 0, 0, len(self.children)))  # and not another in its place
                self._send(COMMAND.pack(ord("K"), new_id, slot, 0))
                error = errno.EMFILE
            if error:
                self._pool.fork_failed(error)
                self._told_target = None
                self._refused_until = time.monotonic() + 0.1
                self._pool.wake_tick()

    def _add(self, child: Child) -> None:
        self.children[child.id] = child
        self._by_channel[child.channel] = child
        self._epoll.register(child.channel, select.EPOLLIN)
        if not self._pool.offer(child):
            self.ready.append(child)

    def tick(self, now: float) -> bool:
        """Look after calls under way. Returns whether there is anything to look after."""
        self._flush()
        for child in [*self._busy]:
            if now >= child.deadline:
                child.end("time")
            elif child.released and not child.ended and now - child.answered_at > LINGER_SECONDS:
                child.kill()
        if not self._private and self._busy and now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            self._pool.spawn(self._look_at_files([*self._busy]))
        if self._wanted_target != self._told_target:
            self.aim(self._wanted_target)
        return bool(self._busy or self._commands or self._wanted_target != self._told_target)

    async def _look_at_files(self, children: list[Child]) -> None:
        """End those whose files are more than a call may have."""
        bound = self._options.scratch_bytes
        for child in children:
            folder = f"{self._scratch}/{child.slot}"
            if await asyncio.to_thread(scratch.holds_more, folder, bound) and not child.ended and not child.released:
                child.end("disk")

    def long_busy(self, now: float) -> int:
        """Children that are not about to come free: slow calls, and sessions."""
        return sum(1 for child in self.children.values() if child.busy_since and now - child.busy_since > SLOW_SECONDS)


_CODE_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/box/tmp",
    "TMPDIR": "/box/tmp",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": "/box/tmp",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All that user code finds. One thread for numeric libraries: the zygote must have no other when it forks."""


def _start_environment() -> dict[str, str]:
    return {
        **_CODE_ENVIRONMENT,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_BIND_NOW": "1",  # or each child resolves symbols for itself
        "GLIBC_TUNABLES": "glibc.pthread.rseq=0",  # or the kernel writes to a page that all children share
    }


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _why_refused(said: dict[str, Any], minimum: str) -> str:
    missing = "; ".join(
        f"{name}: {layer['detail'] or 'no'}" for name, layer in said["layers"].items() if not layer["ok"]
    )
    return (
        f"this machine confines code at tier {said['refused']} only, and at least {minimum} is asked for ({missing}). "
        "`toolscore doctor` explains the layers; python_executor.min_tier sets the least, and the engine `container` "
        "runs code in a container instead"
    )


class Pool:
    """Confined children for one kind of call. An `async with` gives it its life; nothing starts before the first `take`
    or `ready`.
    """

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.calls = self.reaped = self.child_faults = self.child_cpu_us = 0
        self.restarts = 0
        self.start_ms: float | None = None
        self.last_error: str | None = None
        self._zygote: _Zygote | None = None
        self._retired: set[_Zygote] = set()
        self._starting: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[float, asyncio.Future[Child]]] = deque()
        self._tick: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._deleting: asyncio.Task[None] | None = None
        self._delete_again = False
        self._closed = False
        self._spares = MIN_SPARES
        self._peak_at = 0.0
        self._failures = 0

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def about(self) -> dict[str, Any]:
        """What the zygote said of itself: `tier`, `layers`, `slow_path`, `python`, `modules`; empty before."""
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

    async def _start(self) -> None:
        if sys.platform != "linux":
            raise SandboxUnavailable(
                f"the sandbox needs Linux: on {sys.platform} set python_executor.engine: container"
            )
        began = time.perf_counter()
        if self._failures:
            await asyncio.sleep(min(5.0, 0.1 * 2**self._failures))
        options = self.options
        try:
            interpreter = await asyncio.to_thread(find_interpreter, options.interpreter, options.cache)
        except OSError as exc:
            raise SandboxUnavailable(str(exc)) from exc
        zygote = _Zygote(self, options, interpreter)
        try:
            await zygote.start()
        except BaseException as exc:
            self._failures = min(self._failures + 1, MAX_START_FAILURES)
            self.last_error = str(exc)
            zygote.dead = True
            await zygote.stop()
            raise
        self._failures = 0
        self.last_error = None
        self.start_ms = (time.perf_counter() - began) * 1000
        if self._zygote is not None:
            self._retire(self._zygote)
        self._zygote = zygote
        if interpreter.problem and options.use_helper:
            zygote.about["slow_path_reason"] = interpreter.problem
        self._aim()

    async def take(self) -> Child:
        """A child that nobody used before. `release` it.

        Raises:
            SandboxUnavailable: there is none to be had.
        """
        zygote = self._zygote
        if zygote is None:
            await self.ready()
            zygote = self._zygote
        self.calls += 1
        if zygote is not None and zygote.ready:
            child = zygote.ready.popleft()
        else:
            future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
            self._waiting.append((time.monotonic(), future))
            self.wake_tick()
            try:
                child = await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._give_back(future.result())
                raise
        child.busy_since = time.monotonic()
        child.zygote.watch(child)
        if zygote is not None and (
            zygote.forked > GENERATION_CALLS or time.monotonic() - zygote.born > GENERATION_SECONDS
        ):
            self._replace(zygote)
        return child

    def _give_back(self, child: Child) -> None:
        if child.ended:
            child.release(kill=False)
        elif not self.offer(child):
            child.busy_since = 0.0
            child.zygote.ready.appendleft(child)

    def offer(self, child: Child) -> bool:
        """Hand a new child to whoever waits longest."""
        if child.zygote is not self._zygote:
            child.busy_since = time.monotonic()
            child.release(kill=True)
            return True
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                child.busy_since = time.monotonic()
                future.set_result(child)
                return True
        return False

    # ------------------------------------------------------------------------------------------- how many are wanted

    def wake_tick(self) -> None:
        if self._tick is None and not self._closed:
            self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        now = time.monotonic()
        again = bool(self._waiting)
        for zygote in (self._zygote, *self._retired):
            if zygote is not None and not zygote.dead:
                again = zygote.tick(now) or again
        for zygote in [*self._retired]:
            if not any(child.busy_since for child in zygote.children.values()):
                self._retired.discard(zygote)
                self.spawn(zygote.stop())
        self._aim(now)
        if again or self._retired:
            self.wake_tick()

    def _aim(self, now: float | None = None) -> None:
        """As many spares as the recent load needs, beside those that are busy for longer than a moment."""
        zygote = self._zygote
        if zygote is None or zygote.dead:
            return
        now = now or time.monotonic()
        held = zygote.long_busy(now)
        demand = len(self._waiting) + sum(1 for child in zygote.children.values() if child.busy_since) - held
        waiting_long = sum(1 for since, _ in self._waiting if now - since > SLOW_SECONDS)
        wanted = max(MIN_SPARES, min(MAX_SPARES, demand))
        if wanted >= self._spares or now - self._peak_at > SPARE_MEMORY_SECONDS:
            if wanted != self._spares:
                self._spares = wanted
            self._peak_at = now
        zygote.aim(held + max(self._spares, waiting_long))

    # --------------------------------------------------------------------------------------------- its zygotes' lives

    def _retire(self, zygote: _Zygote) -> None:
        self._retired.add(zygote)
        for child in [*zygote.ready]:
            child.busy_since = time.monotonic()
            child.release(kill=True)
        zygote.ready.clear()
        zygote.aim(0)
        self.wake_tick()

    def _replace(self, zygote: _Zygote) -> None:
        """Start the next while this one serves."""
        if self._starting is None and zygote is self._zygote:
            self._starting = asyncio.ensure_future(self._start())
            self._starting.add_done_callback(self._replaced)

    def _replaced(self, task: asyncio.Task[None]) -> None:
        if self._starting is task:
            self._starting = None
        if not task.cancelled():
            task.exception()  # kept in last_error; the old one goes on

    def fork_failed(self, error: int) -> None:
        self.last_error = f"cannot fork: {os.strerror(error)}"

    def zygote_died(self, zygote: _Zygote) -> None:
        if zygote is self._zygote:
            self._zygote = None
            if not self._closed:
                self.restarts += 1
                self.spawn(zygote.stop())
                self.spawn(self._revive())

    async def _revive(self) -> None:
        """Start anew, for those who wait."""
        while not self._closed:
            try:
                await self.ready()
                break
            except SandboxUnavailable as exc:
                if self._failures >= MAX_START_FAILURES:
                    while self._waiting:
                        _, future = self._waiting.popleft()
                        if not future.done():
                            future.set_exception(SandboxUnavailable(str(exc)))
                    break

    def delete(self, folder: str) -> None:
        """Empty a folder of what calls left; what comes while that is done has its turn after it."""
        self._delete_again = True
        if self._deleting is None or self._deleting.done():
            self._deleting = self.spawn(self._delete(folder))

    async def _delete(self, folder: str) -> None:
        while self._delete_again:
            self._delete_again = False
            await asyncio.to_thread(scratch.empty, folder)

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """Have something done that nobody waits for, until we stop."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.last_error = str(exc)

    async def stop(self) -> None:
        """Stop everything; nothing of it is left running."""
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(SandboxUnavailable("the executor is shutting down"))
        zygotes = [zygote for zygote in (self._zygote, *self._retired) if zygote is not None]
        await asyncio.gather(*(zygote.stop() for zygote in zygotes), *self._tasks, return_exceptions=True)
        self._zygote = None

    def figures(self) -> dict[str, Any]:
        """For people and metrics."""
        zygote = self._zygote
        children = zygote.children.values() if zygote is not None else ()
        return {
            "calls": self.calls,
            "restarts": self.restarts,
            "spares": len(zygote.ready) if zygote is not None else 0,
            "children": len(children),
            "waiting": len(self._waiting),
            "start_ms": round(self.start_ms, 1) if self.start_ms is not None else None,
            "modules": self.about.get("modules"),
            "cpu_us_per_child": self.child_cpu_us // self.reaped if self.reaped else None,
            "page_faults_per_child": self.child_faults // self.reaped if self.reaped else None,
            "last_error": self.last_error,
        }

    async def memory_kb(self) -> dict[str, int]:
        """Proportional memory: `zygote`, `children`, and `private_per_child`; empty while there is none."""
        zygote = self._zygote
        return await asyncio.to_thread(_memory, zygote.pid) if zygote is not None and not zygote.dead else {}


def _memory(pid: int) -> dict[str, int]:
    """Proportional memory of a zygote and its children, in KB; reads one file for each."""
    total: dict[str, int] = {"zygote": 0, "children": 0, "private_per_child": 0}
    family = [(pid, 0)]
    privates = []
    while family:
        one, depth = family.pop()
        with contextlib.suppress(OSError, ValueError):
            fields = dict(line.split()[:2] for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:])
            total["zygote" if depth < 2 else "children"] += int(fields["Pss:"])
            if depth >= 2:
                privates.append(int(fields["Private_Dirty:"]) + int(fields["Private_Clean:"]))
        with contextlib.suppress(OSError):
            below = Path(f"/proc/{one}/task/{one}/children").read_text().split()
            family += [(int(child), depth + 1) for child in below]
    if privates:
        total["private_per_child"] = sum(privates) // len(privates)
    return total
