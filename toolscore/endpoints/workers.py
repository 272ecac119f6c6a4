"""`toolscore serve --workers N`: one gateway, several processes, one port.

    launcher ─┬─ host       what they share, where there is no Redis (`stores/host.py`)
              ├─ recorder   writes the journal of all
              └─ worker 1 … N   each a whole gateway for the clients whose connections it took

The launcher has loaded everything once and forks the others, so that they share that memory. It serves nobody: it
starts what ended without being asked, passes on the end, and waits. Whoever of them starts a server on this machine has
it for all, as gateways on several machines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from toolscore.app.compose import Gateway
from toolscore.app.files import Loaded, load_settings
from toolscore.app.reload import rejected, why_not, with_bound_ports
from toolscore.app.worker import Loads, Worker
from toolscore.core.errors import SettingsError
from toolscore.endpoints.app import alone_in, bind_services, check_before_start, serve_sockets
from toolscore.endpoints.process import end_with_parent
from toolscore.history.recorder import serve_recorders
from toolscore.stores.errors import StoreError
from toolscore.stores.host import serve_memory
from toolscore.telemetry.logs import configure_logging

__all__ = ["run_workers"]

LOADED_AHEAD = (
    "aiosqlite",
    "cryptography.hazmat.primitives.ciphers.aead",
    "lupa.lua51",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "throttled.asyncio",
    "toolscore.endpoints.api",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
)
"""What a process of ours imports only when it needs it."""
HEALTHY_SECONDS = 10.0
AGAIN_SECONDS, MAX_AGAIN_SECONDS = 0.2, 10.0
"""Until one that ended is started again; twice as long each time that it ended soon."""
END_SECONDS = 20.0
"""Beyond what calls may take: to end the servers, and what is no call."""
AT_ONCE_SECONDS = 2.0
LAST_SECONDS = 15.0
"""For the recorder to write what it has, once all others have ended."""
FIRST_IS_UP = signal.SIGUSR1
"""What the first worker tells the launcher once it takes calls: the database is up to date, the others may come."""
WATCHED = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, FIRST_IS_UP})

Work = Callable[[], int]


class _Process:
    """One of those that the launcher keeps running.

    Args:
        keep: it is a worker: asked to end when all shall.
        on_end: called each time that it has ended.
    """

    def __init__(self, name: str, work: Work, *, keep: bool = True, on_end: Callable[[], None] = lambda: None) -> None:
        self.name, self.work, self.keep, self.on_end = name, work, keep, on_end
        self.pid: int | None = None
        self.started = 0.0
        self.failures = 0
        self.due: float | None = 0.0
        """When it is to be started; `None`: it runs, or is not to run any more."""


class _Launcher:
    """Starts processes, and starts them again.

    Args:
        end_seconds: in which workers that are asked to end do so; then they are killed.
    """

    def __init__(self, end_seconds: float) -> None:
        self.processes: list[_Process] = []
        self.ending = False
        self.first_is_up = False
        self.code = 0
        self._end_seconds = end_seconds
        self._kill_at = math.inf
        self._alive_read, self._alive_write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)

    @property
    def alive(self) -> int:
        """Of a pipe whose other end the launcher holds: it ends with it."""
        return self._alive_read

    def fork(self, process: _Process) -> None:
        """Start a process now."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(self._alive_write)
                os.setpgid(0, 0)  # Ctrl-C is for the launcher
                signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
                if os.getppid() != parent:
                    os._exit(1)
                code = process.work()
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        process.pid, process.started, process.due = pid, time.monotonic(), None

    def run(self, until: Callable[[], bool]) -> None:
        """Keep them running until then."""
        while not until():
            now = time.monotonic()
            for process in self.processes:
                if process.due is not None and process.due <= now and not self.ending:
                    self.fork(process)
            self._wait(min((one.due - now for one in self.processes if one.due is not None), default=1.0))

    def _wait(self, seconds: float) -> None:
        """Wait for what happens next."""
        came = signal.sigtimedwait(WATCHED, max(0.01, min(1.0, seconds)))
        if came is not None and came.si_signo in (signal.SIGTERM, signal.SIGINT):
            self.end()
        elif came is not None and came.si_signo == FIRST_IS_UP:
            self.first_is_up = True
        if time.monotonic() > self._kill_at:
            self._signal_workers(signal.SIGKILL)
        self._reap()

    def end(self) -> None:
        """Have the workers end: asked twice, at once."""
        again = self.ending
        self.ending = True
        self._kill_at = min(self._kill_at, time.monotonic() + (AT_ONCE_SECONDS if again else self._end_seconds))
        self._signal_workers(signal.SIGTERM)
        for process in self.processes:
            process.due = None

    def _signal_workers(self, number: int) -> None:
        for process in self.processes:
            if process.pid is not None and process.keep:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def _reap(self) -> None:
        for process in self.processes:
            if process.pid is None:
                continue
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid == 0:
                    continue
                self._ended(process, os.waitstatus_to_exitcode(status))

    def _ended(self, process: _Process, code: int) -> None:
        process.pid = None
        process.on_end()
        if self.ending:
            return
        if process.keep and code == 0:  # it was asked to end, and not by us: then all shall
            self.end()
            return
        soon = time.monotonic() - process.started < HEALTHY_SECONDS
        process.failures = process.failures + 1 if soon else 0
        if process.keep and not any(one.keep and one.pid for one in self.processes) and process.failures > 0:
            self.code = code if code > 0 else 1  # it said why
            self.end()
            return
        wait = min(MAX_AGAIN_SECONDS, AGAIN_SECONDS * 2 ** min(process.failures, 20))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        print(f"toolscore: {process.name} {how}: another takes its place in {wait:g} s", file=sys.stderr, flush=True)
        process.due = time.monotonic() + wait

    def finish(self) -> None:
        """Have what is left end: it does when nobody needs it any more."""
        os.close(self._alive_write)
        deadline = time.monotonic() + LAST_SECONDS
        while any(one.pid for one in self.processes) and time.monotonic() < deadline:
            self._wait(0.1)
        for process in self.processes:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def run_workers(
    loaded: Loaded, config_dir: Path | None, count: int, ready: Callable[..., None], runner: Callable[[], Any]
) -> int:
    """Run a gateway of several processes until SIGINT or SIGTERM.

    Args:
        ready: called in each worker once it takes calls, with the gateway, and with `first`.
        runner: makes what a worker's event loop runs in: `asyncio.Runner`.

    Returns:
        What the program exits with.

    Raises:
        AddressInUse, StoreError, SettingsError.
    """
    if loaded.settings.storage.redis_url is not None and loaded.settings.replicas.port:
        raise SettingsError(["replicas.port must be 0 (any free port) with --workers: each of them listens on its own"])
    asyncio.run(check_before_start(loaded.settings))
    for name in LOADED_AHEAD:
        import_module(name)
    logging = loaded.settings.logging
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone_in(loaded.settings))
        folder = stack.enter_context(_meeting_place())
        settings, *sockets = bind_services(loaded.settings)
        for one in sockets:
            stack.enter_context(one)
        loaded = Loaded(settings, loaded.problems, loaded.broken_servers, loaded.remarks)
        servers = loaded.settings.servers
        launcher = _Launcher(servers.leave_seconds + servers.grace_seconds + END_SECONDS)
        outside = Worker(0, folder, Loads(count))

        def apart() -> None:
            """What is no worker takes no connections."""
            for one in sockets:
                one.close()

        def host() -> int:
            apart()
            asyncio.run(_host(outside.host, launcher.alive))
            return 0

        def recorder() -> int:
            apart()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.nice(5)
            lines = configure_logging(logging.level, logging.format)
            asyncio.run(_recorder(outside.recorder, lines.write, launcher.alive))
            return 0

        def worker(number: int) -> Work:
            def up(gateway: Gateway) -> None:
                if number == 1:
                    os.kill(os.getppid(), FIRST_IS_UP)
                ready(gateway, first=number == 1)

            def work() -> int:
                end_with_parent()
                configure_logging(logging.level, logging.format, worker=number)
                with runner() as running:
                    own = replace(outside, number=number)
                    return _outcome(
                        running, serve_sockets(_as_now(loaded, config_dir, own), config_dir, sockets, up, own)
                    )

            return work

        if settings.storage.redis_url is None:
            launcher.processes.append(_Process("the host of the workers", host, keep=False))
        # Also where there is no journal: it may be switched on while they run.
        launcher.processes.append(_Process("the recorder", recorder, keep=False))

        def process(number: int) -> _Process:
            return _Process(f"worker {number}", worker(number), on_end=lambda: outside.loads.gone(number))

        launcher.processes.append(process(1))
        gc.collect()
        gc.freeze()  # so that no collection in a process of ours copies the pages that all share
        gc.enable()
        launcher.run(lambda: launcher.ending or launcher.first_is_up)
        if not launcher.ending:
            launcher.processes += [process(number) for number in range(2, count + 1)]
        launcher.run(lambda: launcher.ending and not any(one.keep and one.pid for one in launcher.processes))
        launcher.finish()
        return launcher.code


def _as_now(loaded: Loaded, config_dir: Path | None, worker: Worker) -> Loaded:
    """The settings that the other workers obey by now, for one that takes another's place: those that were put in force
    last, where the files have mistakes since, or ask for what needs a restart.
    """
    now = load_settings(config_dir)
    settings = with_bound_ports(now.settings, loaded.settings)
    why = why_not(now.problems, loaded.settings, settings)
    if why is None:
        return Loaded(settings, now.problems, now.broken_servers, now.remarks)
    problems = loaded.problems if now.problems and now.problems == loaded.problems else [rejected(why)]
    return Loaded(worker.kept_settings() or loaded.settings, problems, loaded.broken_servers, loaded.remarks)


def _outcome(running: Any, work: Any) -> int:
    """Run a worker to its end, and say why if it cannot begin."""
    try:
        running.run(work)
    except (SettingsError, StoreError) as exc:
        print(f"toolscore: {exc}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _meeting_place() -> Iterator[Path]:
    """A folder for sockets, whose path is short enough for them."""
    folder = Path(tempfile.mkdtemp(prefix="toolscore-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _launcher_ended(alive: int) -> asyncio.Event:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(alive, ended.set)
    return ended


async def _host(path: Path, alive: int) -> None:
    ended = await _launcher_ended(alive)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: None)
    async with serve_memory(path) as memory:
        await ended.wait()
        await memory.alone.wait()


async def _recorder(path: Path, log_lines: Callable[[str], object], alive: int) -> None:
    await serve_recorders(path, log_lines, await _launcher_ended(alive))
