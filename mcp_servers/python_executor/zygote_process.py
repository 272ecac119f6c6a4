"""A zygote process, seen from the server: its start and first message, our commands, its reports, its end.

What runs inside the process is `sandbox/zygote.py`. The zygote forks as many children as it is told to keep alive,
and reports each fork and each end over its socket. It owns its children by number; which child serves whom, and when
another is needed, is decided in `pool.py`.

Only from the event loop's thread.
"""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Set
from dataclasses import dataclass
from typing import Any, Protocol

from mcp_servers.python_executor import scratch
from mcp_servers.python_executor.cgroups import Cgroups, open_cgroups
from mcp_servers.python_executor.child_process import ChildProcess, Watcher
from mcp_servers.python_executor.interpreter import Interpreter
from mcp_servers.python_executor.options import CODE_ENVIRONMENT, PACKAGE_ROOT, PoolOptions, zygote_config
from mcp_servers.python_executor.sandbox.wire import COMMAND, REPORT, Op
from mcp_servers.python_executor.scratch import SharedFolders

__all__ = ["Keeper", "SandboxUnavailable", "ZygoteProcess", "start_zygote"]

START_ENVIRONMENT = {
    **CODE_ENVIRONMENT,
    "PYTHONDONTWRITEBYTECODE": "1",
    "LD_BIND_NOW": "1",  # or each child resolves symbols for itself
    "GLIBC_TUNABLES": "glibc.pthread.rseq=0",  # or the kernel writes to a page that all children share
}
START_SECONDS = 60
"""Far more than a start takes: half a second, some seconds with large packages, more on a machine that is busy."""
STOP_SECONDS = 3
"""The zygote ends when its socket is closed. After this time it is killed."""
REFUSED_SECONDS = 0.1
"""How long to ask for no more children after a fork failed."""
MAX_HELLO_BYTES = 1 << 16
MAX_REPORTS = 64
"""How many are read before the event loop has its turn."""
ANCILLARY_BYTES = 64
"""Room for three descriptors and their header."""


class SandboxUnavailable(Exception):
    """There is no sandbox to run code in. The message says why and what to do.

    Attributes:
        tier, layers: what this machine gives, where that is the reason.
    """

    def __init__(self, message: str, *, tier: str = "E", layers: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.tier, self.layers = tier, layers or {}


class Keeper(Watcher, Protocol):
    """Who keeps zygotes and is told what happens to them: the pool."""

    def child_forked(self, zygote: ZygoteProcess, child: ChildProcess) -> None:
        """A new child is ready."""
        ...

    def child_ended(self, child: ChildProcess) -> None:
        """A child ended. The call that it served, if any, is settled."""
        ...

    def child_reaped(self, page_faults: int, cpu_us: int) -> None:
        """The zygote reported what a child used; a figure, whether or not we still knew the child."""
        ...

    def fork_failed(self, error: int) -> None:
        """The zygote could not fork, for this `errno`."""
        ...

    def zygote_died(self, zygote: ZygoteProcess) -> None:
        """The zygote is gone, and `child_ended` was called for each of its children."""
        ...

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done that nobody waits for."""
        ...


async def start_zygote(options: PoolOptions, interpreter: Interpreter, keeper: Keeper) -> ZygoteProcess:
    """Start a zygote process, and wait until it can fork. Nothing is left behind if that fails.

    Args:
        options: of the pool.
        interpreter: the sandbox's Python, looked over.
        keeper: is told of children from then on.

    Raises:
        SandboxUnavailable: it refuses, or fails.
    """
    folder = await asyncio.to_thread(scratch.make)
    belongings = _Belongings(folder, Cgroups(None, None, unified=False, detail="not used"))
    try:
        if options.use_cgroups:
            belongings = _Belongings(folder, await asyncio.to_thread(_make_cgroups, options))
        cgroups = belongings.cgroups
        slots = cgroups.fds or [[-1, -1]] * options.children
        ours, process = _launch(interpreter, [fd for fds in slots for fd in fds if fd >= 0])
        try:
            hello = await _greet(ours, zygote_config(options, interpreter, folder, slots), options.min_tier)
        except BaseException:
            ours.close()
            await asyncio.shield(asyncio.to_thread(_wait_or_kill, process))
            raise
    except BaseException:
        await asyncio.shield(asyncio.to_thread(belongings.delete))
        raise
    hello["layers"]["cgroups"] = {"ok": bool(cgroups.fds), "detail": cgroups.detail}
    if interpreter.problem and options.use_helper:
        hello["slow_path_reason"] = interpreter.problem
    return ZygoteProcess(process, ours, hello, belongings, options, keeper)


@dataclass(frozen=True)
class _Belongings:
    """What a zygote has outside of its process."""

    scratch: str
    cgroups: Cgroups

    def delete(self) -> None:
        """Blocks: only once the zygote and its children have ended."""
        self.cgroups.close()
        scratch.delete(self.scratch)


def _make_cgroups(options: PoolOptions) -> Cgroups:
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


def _launch(interpreter: Interpreter, inherited: Iterable[int]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process. Returns our end of the socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = (
        f"import sys; sys.path.insert(0, {str(PACKAGE_ROOT)!r}); "
        "from mcp_servers.python_executor.sandbox.zygote import main; "
        f"main({theirs.fileno()})"
    )
    try:
        # Not in a thread of its own: the zygote dies with the thread that started it.
        process = subprocess.Popen(
            [interpreter.command, "-I", "-S", "-c", program],
            pass_fds=[theirs.fileno(), *inherited],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=START_ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as exc:
        ours.close()
        raise SandboxUnavailable(f"cannot start {interpreter.command}: {exc}") from exc
    finally:
        theirs.close()
    ours.setblocking(False)
    return ours, process


async def _greet(ctl: socket.socket, config: dict[str, Any], min_tier: str) -> dict[str, Any]:
    """Send the configuration, and wait for the zygote's first message: what it is, or why it will not serve."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(START_SECONDS):
            await loop.sock_sendall(ctl, json.dumps(config).encode())
            hello: dict[str, Any] = json.loads(await loop.sock_recv(ctl, MAX_HELLO_BYTES) or b"{}")
    except (TimeoutError, OSError, ValueError) as exc:
        raise SandboxUnavailable(f"the sandbox did not start: {exc or type(exc).__name__}") from exc
    if "refused" in hello:
        raise SandboxUnavailable(_why_refused(hello, min_tier), tier=hello["refused"], layers=hello["layers"])
    if "tier" not in hello:
        raise SandboxUnavailable(f"the sandbox did not start: {hello.get('failed', 'it ended')}")
    return hello


def _why_refused(hello: dict[str, Any], minimum: str) -> str:
    missing = "; ".join(
        f"{name}: {layer['detail'] or 'no'}" for name, layer in hello["layers"].items() if not layer["ok"]
    )
    return (
        f"this machine confines code at tier {hello['refused']} only, and at least {minimum} is asked for ({missing}). "
        "`toolscore doctor` explains the layers; python_executor.min_tier sets the least, and the engine `container` "
        "runs code in a container instead"
    )


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class ZygoteProcess:
    """One zygote process and its children. `start_zygote` makes it; `stop` ends it.

    Args:
        process: the process, which serves.
        ctl: our end of its socket; the zygote process owns it.
        about: its first message: `tier`, `layers`, `slow_path`, `python`, `modules`, …
        belongings: what to delete after its end.
        options: of the pool.
        keeper: is told what happens.

    Attributes:
        children: those that live, by id.
        forked: how many it made.
        born: when it was ready (monotonic seconds).
        dead: it is gone, or told to go.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ctl: socket.socket,
        about: dict[str, Any],
        belongings: _Belongings,
        options: PoolOptions,
        keeper: Keeper,
    ) -> None:
        self.about = about
        self.children: dict[int, ChildProcess] = {}
        self.forked = 0
        self.born = time.monotonic()
        self.dead = False
        self._process, self._ctl, self._belongings = process, ctl, belongings
        self._options, self._keeper = options, keeper
        self._commands: deque[bytes] = deque()
        self._told_target: int | None = None
        self._wanted_target = 0
        self._refused_until = 0.0
        self._shared_folders: SharedFolders | None = None
        if about["tier"] not in "AB":
            self._shared_folders = SharedFolders(
                belongings.scratch, call_bytes=options.scratch_bytes, in_background=keeper.in_background
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor that is readable when there are reports."""
        return self._ctl.fileno()

    async def stop(self) -> None:
        """End the process and every child. Afterwards no process, folder or control group of it is left."""
        if not self.dead:
            self._die()
        self._ctl.close()  # the zygote sees it, and ends with its children
        await asyncio.shield(asyncio.to_thread(_wait_or_kill, self._process))
        await asyncio.shield(asyncio.to_thread(self._belongings.delete))

    def _die(self) -> None:
        """Nothing more comes from it: settle the calls of its children."""
        self.dead = True
        for child in [*self.children.values()]:
            child.has_ended(signal.SIGKILL, 0.0, reason="sandbox")
            self._forget(child)
        self._keeper.zygote_died(self)

    def _forget(self, child: ChildProcess) -> None:
        del self.children[child.id]
        self._keeper.child_ended(child)

    # ----------------------------------------------------------------------------------------------------- commands

    def aim(self, target: int) -> None:
        """Say how many children shall live. The bound of the options holds."""
        self._wanted_target = min(target, self._options.children)
        if self._wanted_target != self._told_target and time.monotonic() >= self._refused_until:
            self._told_target = self._wanted_target
            self._send(Op.TARGET, 0, 0, self._wanted_target)

    def _tell(self, op: int, child_id: int, slot: int) -> None:
        self._send(op, child_id, slot, 0)

    def _send(self, op: int, child_id: int, slot: int, argument: int) -> None:
        self._commands.append(COMMAND.pack(op, child_id, slot, argument))
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

    def tick(self, now: float, busy: Set[ChildProcess]) -> bool:
        """Send what could not be sent before, and look at the files of busy children where that is needed.

        Returns:
            Whether something is still to be sent.
        """
        if self._shared_folders is not None:
            self._shared_folders.look([child for child in self.children.values() if child in busy], now)
        self._flush()
        if self._wanted_target != self._told_target:
            self.aim(self._wanted_target)
        return bool(self._commands or self._wanted_target != self._told_target)

    # ------------------------------------------------------------------------------------------------------ reports

    def read(self) -> None:
        """Read the reports that are there, up to a bound: the loop comes back for the rest."""
        for _ in range(MAX_REPORTS):
            if self.dead:
                return
            try:
                data, ancillary, _, _ = self._ctl.recvmsg(REPORT.size, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._die()
                return
            exit_id, slot, new_id, status, error, faults, user_us, system_us, _ = REPORT.unpack(data)
            if exit_id:
                self._child_ended(exit_id, slot, status, faults, user_us + system_us)
            if new_id:
                fds = array.array("i")
                if ancillary:
                    data = ancillary[0][2]
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self.forked += 1
                if len(fds) == 3:
                    channel, stdout, stderr = fds
                    child = ChildProcess(self._tell, self._keeper, new_id, slot, channel, stdout, stderr)
                    self.children[new_id] = child
                    self._keeper.child_forked(self, child)
                    continue
                for fd in fds:  # we have no descriptors left for the others
                    os.close(fd)
                self._send(Op.TARGET, 0, 0, len(self.children))  # and not another in its place
                self._send(Op.KILL, new_id, slot, 0)
                error = errno.EMFILE
            if error:
                self._told_target = None
                self._refused_until = time.monotonic() + REFUSED_SECONDS
                self._keeper.fork_failed(error)

    def _child_ended(self, child_id: int, slot: int, status: int, page_faults: int, cpu_us: int) -> None:
        self._keeper.child_reaped(page_faults, cpu_us)
        child = self.children.get(child_id)
        if child is not None:
            out_of_memory = child.was_killed_in_a_call(status) and self._belongings.cgroups.out_of_memory(slot)
            child.has_ended(status, cpu_us / 1e6, out_of_memory=out_of_memory)
            self._forget(child)
        if self._shared_folders is not None:
            self._shared_folders.empty_trash()
