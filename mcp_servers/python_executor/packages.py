"""Package sets: what the operator lets code import beside the standard library.

A set is installed once, from wheels, into a folder named after what is in it, and is read-only for the code. User code
installs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["PackageSets", "UnknownPackages"]

INSTALL_SECONDS = 900
RETRY_SECONDS = 60.0
"""How long a set that could not be installed is not tried again."""
SHOWN_OUTPUT_CHARS = 600
DONE = ".toolscore.json"
NAME = re.compile(r"^[A-Za-z0-9._-]+")
EXTRA_PRELOADS = {"matplotlib": ("matplotlib.pyplot",)}
"""Modules that people import from a package, and that take long to import."""


class UnknownPackages(Exception):
    """No set has what was asked for; the message says what there is."""


class PackageSets:
    """The sets, and where they are installed.

    Args:
        sets: name → requirements, such as `{"data": ["numpy", "pandas==2.*"]}`.
        folder: where they are installed, each in a folder of its own.
    """

    def __init__(self, sets: Mapping[str, Sequence[str]], folder: Path) -> None:
        self._sets = {name: tuple(requirements) for name, requirements in sets.items()}
        self.folder = folder
        self._failed: dict[str, tuple[float, str]] = {}
        self._installing: dict[str, asyncio.Task[Path]] = {}

    def prepare(self) -> Path:
        """Make the folder that all sets lie in, which code may read whatever this process's umask is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        return self.folder

    def names(self) -> dict[str, tuple[str, ...]]:
        return dict(self._sets)

    def describe(self) -> str:
        """Describe the sets in one line."""
        if not self._sets:
            return "the standard library only"
        return "; ".join(f"{name} ({', '.join(requirements)})" for name, requirements in self._sets.items())

    def find(self, wanted: Sequence[str]) -> str | None:
        """Return the smallest set that has all of these; `None` if nothing is wanted.

        Args:
            wanted: names of sets or of packages.

        Raises:
            UnknownPackages: no set has them all.
        """
        if not wanted:
            return None
        fitting = []
        for name, requirements in self._sets.items():
            has = {_canonical(name), *(_canonical(_name_of(requirement)) for requirement in requirements)}
            if all(_canonical(one) in has for one in wanted):
                fitting.append((len(requirements), name))
        if not fitting:
            asked = ", ".join(wanted)
            raise UnknownPackages(f"no package set has {asked}. Available: {self.describe()}")
        return min(fitting)[1]

    def holding(self, module: str) -> str | None:
        """Return the set whose requirements name this module's package, for a hint."""
        for name, requirements in self._sets.items():
            if _canonical(module) in {_canonical(_name_of(requirement)) for requirement in requirements}:
                return name
        return None

    async def installed(self, name: str, *, python: str, version: str) -> tuple[Path, tuple[str, ...]]:
        """Install a set if that was not done. Callers share one installation; cancelling one does not end it.

        Returns:
            Its folder, and the modules to import ahead.

        Raises:
            UnknownPackages: it cannot be installed; with the installer's last words.
        """
        key = f"{name}-{_digest([*self._sets[name], '.'.join(version.split('.')[:2])])}"
        folder = self.folder / key
        done = folder / DONE
        if not done.exists():
            task = self._installing.get(key)
            if task is None:
                failed = self._failed.get(key)
                if failed is not None and time.monotonic() < failed[0]:
                    raise UnknownPackages(failed[1])
                task = self._installing[key] = asyncio.ensure_future(self._install(name, folder, python))
                task.add_done_callback(lambda _task: self._installing.pop(key, None))
            try:
                await asyncio.shield(task)
            except UnknownPackages as exc:
                self._failed[key] = (time.monotonic() + RETRY_SECONDS, str(exc))
                raise
        return folder, tuple(json.loads(await asyncio.to_thread(done.read_text))["preload"])

    async def stop(self) -> None:
        tasks = [*self._installing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _install(self, name: str, folder: Path, python: str) -> Path:
        try:
            import uv

            uv_command = uv.find_uv_bin()
        except (ImportError, FileNotFoundError) as exc:
            raise UnknownPackages(f"package set {name!r} cannot be installed: uv is missing (pip install uv)") from exc
        self.prepare()
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
        made.chmod(0o755)
        command = [
            uv_command, "pip", "install", "--quiet", "--only-binary", ":all:", "--python", python,
            "--target", str(made), "--compile-bytecode", "--link-mode", "copy", *self._sets[name],
        ]  # fmt: skip
        process = None
        try:
            async with asyncio.timeout(INSTALL_SECONDS):
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
                said, _ = await process.communicate()
            if process.returncode != 0:
                words = said.decode("utf-8", "replace").strip()[-SHOWN_OUTPUT_CHARS:]
                raise UnknownPackages(f"package set {name!r} cannot be installed: {words}")
            about = {"requirements": self._sets[name], "preload": await asyncio.to_thread(self._preload, name, made)}
            (made / DONE).write_text(json.dumps(about))
            made.rename(folder)
        except TimeoutError as exc:
            raise UnknownPackages(f"package set {name!r} was not installed within {INSTALL_SECONDS} s") from exc
        except OSError as exc:
            if not (folder / DONE).exists():  # else another process was faster
                raise UnknownPackages(f"package set {name!r} cannot be installed: {exc}") from exc
        finally:
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            await asyncio.to_thread(shutil.rmtree, made, True)
        return folder

    def _preload(self, name: str, folder: Path) -> list[str]:
        """The modules that the set's own requirements bring."""
        wanted = {_canonical(_name_of(requirement)) for requirement in self._sets[name]}
        modules: list[str] = []
        for distribution in importlib.metadata.distributions(path=[str(folder)]):
            if _canonical(distribution.metadata["Name"]) not in wanted:
                continue
            tops = {Path(str(file)).parts[0] for file in distribution.files or () if not str(file).startswith("..")}
            for top in sorted(tops):
                if (folder / top / "__init__.py").exists():
                    modules += [top, *EXTRA_PRELOADS.get(top, ())]
                elif top.endswith(".py"):
                    modules.append(top[:-3])
        return modules


def _name_of(requirement: str) -> str:
    found = NAME.match(requirement.strip())
    return found[0] if found else requirement


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()[:12]
