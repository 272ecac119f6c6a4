"""The executor: gives each call its turn, its engine, its packages and its session, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.admission import Admission, Busy
from mcp_servers.python_executor.container import ContainerEngine
from mcp_servers.python_executor.engine import ENGINES, Engine, Job, Outcome, PoolEngine, ReusedEngine
from mcp_servers.python_executor.figures import EngineFigures
from mcp_servers.python_executor.hints import with_hint
from mcp_servers.python_executor.interpreter import find_interpreter
from mcp_servers.python_executor.options import PoolOptions
from mcp_servers.python_executor.packages import PackageSets, UnknownPackages
from mcp_servers.python_executor.pool import Pool, SandboxUnavailable
from mcp_servers.python_executor.sandbox.wire import CONFINING_TIERS, Mode
from mcp_servers.python_executor.sessions import Sessions
from mcp_servers.python_executor.tool_calls import Asker

__all__ = ["Executor"]

MB = 1024 * 1024
SPARE_SLOTS = 16
OTHERS_DESCRIPTORS = 64
"""What the process needs beside connections and children."""
FEWEST_SPARES = 3
CHILD_DESCRIPTORS = 3
"""What each of its processes takes of ours: a channel and two files of output."""
DEFAULT = "default"
"""The pool without packages, in figures."""
MAX_WAITING_FOR_ENGINES = 256


class Executor:
    """Runs code. An `async with` gives it its life.

    Args:
        engine: for calls that name none; allowed_engines: those that a call may name beside it.
        timeout_seconds: for calls that give none; max_timeout_seconds: the most that a call may give.
        memory_mb, scratch_mb, max_processes: of a call: memory, files in `/tmp` and the working folder, threads.
        max_output_bytes: of stdout and of stderr, each.
        max_concurrent, max_queued: calls that run, and that wait, at a time.
        max_sessions, max_sessions_per_principal, session_idle_seconds: bounds on sessions.
        packages: name of a set → its requirements.
        allow_processes: whether code may start processes of its own.
        min_tier: refuse to run code where the machine confines it less, see `sandbox/layers.py`.
        max_executions: calls after which a process of the engine `reset` is replaced.
        reused_processes: how many processes `reset` and `persistent` have.
        interpreter: the sandbox's Python; `None`: the one that runs us.
        container_image, container_command: for the engine `container`.
        data_dir: where package sets and a compiled helper are kept.
        pool: overrides for every pool, see `PoolOptions`; for tests and benchmarks.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        engine: str = "fork",
        allowed_engines: Sequence[str] = (),
        timeout_seconds: float = 30,
        max_timeout_seconds: float = 300,
        memory_mb: int = 512,
        scratch_mb: int = 64,
        max_processes: int = 64,
        max_output_bytes: int = MB,
        max_concurrent: int = 16,
        max_queued: int = 256,
        max_sessions: int = 16,
        max_sessions_per_principal: int = 8,
        session_idle_seconds: float = 600,
        packages: Mapping[str, Sequence[str]] | None = None,
        allow_processes: bool = False,
        min_tier: str = "C",
        max_executions: int = 1000,
        reused_processes: int = 1,
        interpreter: str | None = None,
        container_image: str = "python:3.12-slim",
        container_command: str | None = None,
        data_dir: str | os.PathLike[str] = "data",
        pool: Mapping[str, Any] | None = None,
    ) -> None:
        for name in (engine, *allowed_engines):
            if name not in ENGINES:
                raise ValueError(f"no engine {name!r}: there are {', '.join(ENGINES)}")
        if min_tier not in CONFINING_TIERS:
            raise ValueError(f"min_tier must be one of {', '.join(CONFINING_TIERS)}, found {min_tier!r}")
        self.engine = engine
        self.engines = tuple(dict.fromkeys((engine, *allowed_engines)))
        self.timeout_seconds = timeout_seconds
        self.max_timeout_seconds = max_timeout_seconds
        self._max_output_bytes = max_output_bytes
        folder = Path(data_dir).absolute() / "python"
        self.packages = PackageSets(packages or {}, folder)
        self._max_executions, self._reused_processes = max_executions, reused_processes
        self._container = (container_image, container_command)
        share = _share_of_descriptors(max_concurrent, max_sessions)
        self._limited = None
        if share is not None:
            self._limited = (
                f"only {_descriptors()} open files are allowed: {share[0]} calls run at a time and {share[1]} sessions "
                f"are kept, of {max_concurrent} and {max_sessions} (raise `ulimit -n`)"
            )
            max_concurrent, max_sessions = share
        self._options = {
            "interpreter": interpreter,
            "cache": folder,
            "memory_bytes": memory_mb * MB,
            "scratch_bytes": scratch_mb * MB,
            "file_bytes": min(scratch_mb * MB, max(16 * MB, 2 * max_output_bytes)),
            "max_processes": max_processes,
            "allow_processes": allow_processes,
            "min_tier": min_tier,
            "children": max_concurrent + max_sessions + (SPARE_SLOTS if share is None else FEWEST_SPARES),
            "use_cgroups": allow_processes,
            **(pool or {}),
        }
        self.admission = Admission(max_concurrent, max_queued)
        self.sessions = Sessions(
            max_sessions=max_sessions, max_per_principal=max_sessions_per_principal, idle_seconds=session_idle_seconds
        )
        self._engines: dict[tuple[str, str | None], Engine] = {}
        self._preparing: dict[tuple[str, str | None], asyncio.Task[Engine]] = {}
        self._figures = {name: EngineFigures() for name in ENGINES}
        self._closed = False
        self._waiting_for_engines = 0

    async def __aenter__(self) -> Executor:
        """Start the default engine.

        Raises:
            SandboxUnavailable: it cannot run here.
        """
        try:
            engine = await self._engine(self.engine, None)
            await engine.ready()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End everything; no process is left."""
        self._closed = True
        for task in self._preparing.values():
            task.cancel()
        await asyncio.gather(*self._preparing.values(), return_exceptions=True)
        await self.sessions.stop()
        await self.packages.stop()
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()), return_exceptions=True)
        self._engines.clear()

    async def execute(
        self,
        code: str,
        *,
        input: str = "",
        timeout_seconds: float | None = None,
        session_id: str | None = None,
        files: Sequence[tuple[str, bytes]] = (),
        packages: Sequence[str] = (),
        engine: str | None = None,
        principal: str = "",
        asker: Asker | None = None,
        on_position: Callable[[int], None] | None = None,
        on_install: Callable[[str], None] | None = None,
    ) -> Outcome:
        """Run code in a process of its own. Cancelling this ends it.

        Args:
            session_id: keep the variables under this name, which is the principal's own.
            files: path below the working folder, content.
            packages: names of packages, or of a set.
            asker: answers the tools that the code calls; `None`: it has none.
            on_position: is told the place in the queue, if there is one.
            on_install: is told the set of packages that has to be made ready first.

        Raises:
            Busy: too many run and wait.
            SandboxUnavailable: nothing here can run it.
            UnknownPackages, TooManySessions, ValueError: the call asks for what this executor does not offer.
        """
        name = engine or self.engine
        if name not in self.engines:
            raise ValueError(f"engine {name!r} is not allowed here: choose {', '.join(self.engines)}")
        if session_id is not None and name not in ("fork", "fresh"):
            raise ValueError(f"sessions need the engine `fork` or `fresh`, not `{name}`")
        if asker is not None and name not in ("fork", "fresh"):
            raise ValueError(f"code that calls tools needs the engine `fork` or `fresh`, not `{name}`")
        package_set = self.packages.find(packages)
        job = Job(
            code,
            input,
            min(timeout_seconds or self.timeout_seconds, self.max_timeout_seconds),
            self._max_output_bytes,
            tuple(files),
            asker,
        )
        figures = self._figures[name]
        asked = time.perf_counter()
        # A call waits for its engine and its session before it takes a place: places are for calls that run.
        if on_install is not None and package_set is not None and (name, package_set) not in self._engines:
            on_install(package_set)
        chosen = await self._engine(name, package_set)
        if session_id is not None:
            assert isinstance(chosen, PoolEngine)
            sets = {package_set: chosen.pool.packages or ""} if package_set is not None else {}
            async with (
                self.sessions.hold(principal, session_id, chosen.pool, sets) as session,
                self.admission.enter(principal, on_position),
            ):
                outcome = await self.sessions.run(session, job, sets)
        else:
            async with self.admission.enter(principal, on_position):
                outcome = await chosen.run(job)
        figures.add(outcome, (time.perf_counter() - asked) * 1000)
        return with_hint(outcome, job, package_set, self.packages)

    async def ready_engine(self, name: str) -> Engine:
        """Return the engine itself, started; for benchmarks."""
        return await self._engine(name, None)

    async def _engine(self, name: str, package_set: str | None) -> Engine:
        """Return the engine for these packages. It is made on first use, once for all callers."""
        key = (name, package_set)
        engine = self._engines.get(key)
        if engine is not None:
            return engine
        if self._closed:
            raise SandboxUnavailable("the executor is shutting down")
        task = self._preparing.get(key)
        if task is None:
            task = self._preparing[key] = asyncio.ensure_future(self._make(name, package_set))
            task.add_done_callback(lambda _task: self._preparing.pop(key, None))
        if self._waiting_for_engines >= MAX_WAITING_FOR_ENGINES:
            raise Busy("many calls wait for their packages to be installed: try again in 10 s", 10.0)
        self._waiting_for_engines += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting_for_engines -= 1

    async def _make(self, name: str, package_set: str | None) -> Engine:
        engine: Engine
        options = dict(self._options)
        if package_set is not None:
            if name == "container":
                raise UnknownPackages("the engine `container` has the packages of its image, and no sets")
            interpreter = await asyncio.to_thread(find_interpreter, options["interpreter"], options["cache"])
            folder, preload = await self.packages.installed(
                package_set, python=interpreter.command, version=interpreter.version
            )
            options |= {"packages": str(folder), "preload": preload}
        if name in ("fork", "fresh") and self.packages.names():
            with contextlib.suppress(OSError):  # a session may ask for a set later
                options["reachable"] = str(await asyncio.to_thread(self.packages.prepare))
        if name == "container":
            image, command = self._container
            engine = ContainerEngine(image=image, command=command, call_bytes=options["memory_bytes"])
        elif name in ("persistent", "reset"):
            engine = ReusedEngine(
                name,
                Pool(PoolOptions(**options)),
                processes=self._reused_processes,
                max_executions=self._max_executions,
            )
        elif name == "restricted":
            options["preload"] = (*options.get("preload", ()), "RestrictedPython", "RestrictedPython.Eval")
            engine = PoolEngine(name, Pool(PoolOptions(**options, libraries=_restricted_python())), Mode.RESTRICTED)
        else:
            engine = PoolEngine(name, Pool(PoolOptions(**options, fresh=name == "fresh")))
        try:
            await engine.ready()
        except BaseException:
            await engine.stop()
            raise
        self._engines[name, package_set] = engine
        return engine

    def about(self) -> dict[str, Any]:
        """Return how code is confined: `engine`, `tier`, `layers`, `slow_path`, …"""
        engine = self._engines.get((self.engine, None))
        limited = {"limited": self._limited} if self._limited is not None else {}
        return {"engine": self.engine, **limited, **(engine.about() if engine is not None else {})}

    def tier(self, engine: str) -> str | None:
        """Return the tier at which an engine runs code; `None` before its first call."""
        return next((one.about().get("tier") for (name, _), one in self._engines.items() if name == engine), None)

    async def stats(self) -> dict[str, Any]:
        """Return the figures and the memory of each pool, for `/metrics` and `/api/v1/stats`."""
        figures = self.figures()
        for (name, package_set), engine in [*self._engines.items()]:
            pools = figures["engines"][name]["pools"]
            pools[package_set or DEFAULT]["memory_kb"] = await engine.memory_kb()
        return figures

    def figures(self) -> dict[str, Any]:
        """Return the figures that cost nothing to get."""
        engines: dict[str, Any] = {}
        for name in ENGINES:
            own = {package_set: engine for (kind, package_set), engine in self._engines.items() if kind == name}
            if not own and not self._figures[name].executions:
                continue
            engines[name] = self._figures[name].snapshot()
            engines[name]["pools"] = {package_set or DEFAULT: engine.figures() for package_set, engine in own.items()}
        return {
            **self.about(),
            "running": self.admission.running,
            "waiting": self.admission.waiting,
            "refused": self.admission.refused,
            "sessions": self.sessions.figures(),
            "engines": engines,
        }


def _descriptors() -> int:
    """How many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _share_of_descriptors(max_concurrent: int, max_sessions: int) -> tuple[int, int] | None:
    """How many calls and sessions our descriptors are enough for; `None` if for all.

    Half of them may be ours: callers need theirs, and when there are none left nobody is answered.
    """
    allowed = _descriptors()
    children = (allowed - OTHERS_DESCRIPTORS) // (2 * CHILD_DESCRIPTORS)
    wanted = max_concurrent + max_sessions
    if allowed == resource.RLIM_INFINITY or wanted + SPARE_SLOTS <= children:
        return None
    places = max(2, min(children - FEWEST_SPARES, wanted))
    running = min(max_concurrent, max(1, places * max_concurrent // wanted))
    return running, min(max_sessions, places - running)


def _restricted_python() -> tuple[str, ...]:
    """Where RestrictedPython is, for an interpreter that has no site-packages."""
    import importlib.util

    spec = importlib.util.find_spec("RestrictedPython")
    if spec is None or spec.origin is None:
        raise ValueError("the engine `restricted` needs RestrictedPython: pip install RestrictedPython")
    return (str(Path(spec.origin).parent),)
