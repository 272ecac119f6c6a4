"""The sandbox's interpreter: which Python it is, its helper, and the files that it needs to see."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mcp_servers.python_executor.sandbox.build import MODULE, SOURCE, build_helper, describe

__all__ = ["Interpreter", "find_interpreter"]

SYSTEM = (
    "/lib64", "/usr/lib64", "/lib/{multiarch}", "/usr/lib/{multiarch}", "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo",
)  # fmt: skip
"""What a dynamic linker and the clock's time zone need."""
PROGRAMS = ("/bin", "/usr/bin", "/usr/lib", "/lib")


@dataclass(frozen=True)
class Interpreter:
    """A Python for the sandbox.

    Attributes:
        command: what starts it.
        helper: the compiled fork server, or `None`, and then `problem` says why.
        stdlib: its `sys.path`.
        libraries: files and folders it needs beside the standard library.
    """

    command: str
    version: str
    helper: Path | None
    problem: str | None
    stdlib: tuple[str, ...]
    libraries: tuple[str, ...]

    def visible(self, *, programs: bool, more: tuple[str, ...] = ()) -> list[str]:
        """The paths that the sandbox shows, links before what they point to, without those inside another."""
        wanted = [*self.stdlib, *self.libraries, *more]
        if programs:
            wanted += [*PROGRAMS, self.command]
        found: dict[str, None] = {}
        for path in wanted:
            for step in _steps(path):
                found.setdefault(step)
        links = [path for path in found if os.path.islink(path)]
        real = sorted(path for path in found if not os.path.islink(path))
        kept: list[str] = []
        for path in real:
            if not kept or not path.startswith(kept[-1] + "/"):
                kept.append(path)
        inside = tuple(f"{path}/" for path in kept)
        return [link for link in links if not link.startswith(inside)] + kept


def _steps(path: str) -> list[str]:
    """The links on the way to a path, and the path itself at its real place; nothing if it does not exist."""
    if not os.path.exists(path):
        return []
    steps = []
    at = ""
    parts = [part for part in os.path.abspath(path).split("/") if part]
    while parts:
        at = f"{at}/{parts.pop(0)}"
        if os.path.islink(at):
            steps.append(at)
            target = os.path.normpath(os.path.join(os.path.dirname(at), os.readlink(at)))
            parts = [part for part in target.split("/") if part] + parts
            at = ""
            if len(steps) > 40:
                return []
    return [*steps, at]


@functools.cache
def find_interpreter(python: str | None, cache: Path | None) -> Interpreter:
    """Look a Python over. Takes some 20 ms the first time, and a second where the helper must be compiled.

    Args:
        python: a command or path; `None`: the one that runs us.
        cache: where to keep a helper that is not installed with the package; `None`: none is built.

    Raises:
        OSError: it cannot be run.
    """
    found = describe(python or sys.executable)
    suffix = str(found["suffix"])
    helper: Path | None = SOURCE.with_name(f"{MODULE}{suffix}")
    problem = None
    if helper is not None and (not helper.exists() or helper.stat().st_mtime < SOURCE.stat().st_mtime):
        helper, problem = None, f"the C helper for Python {found['version']} is not installed"
        if cache is not None:
            folder = cache / f"helper-{SOURCE.stat().st_mtime_ns:x}"
            helper = folder / f"{MODULE}{suffix}"
            if not helper.exists():
                try:
                    helper = build_helper(str(found["include"]), suffix, folder)
                except OSError as exc:
                    helper, problem = None, f"{problem}, and cannot be built: {exc}"
    stdlib = found["stdlib"]
    assert isinstance(stdlib, list)
    command = str(found["executable"])
    libdir = Path(str(found["libdir"]))
    libraries = [path.format(multiarch=found["multiarch"]) for path in SYSTEM if found["multiarch"] or "{" not in path]
    if not found["multiarch"]:
        libraries += ["/lib", "/usr/lib"]
    if libdir != Path("/usr/lib"):
        libraries += [str(path) for path in libdir.glob("libpython*")]
    return Interpreter(
        command, str(found["version"]), helper, problem if helper is None else None, tuple(stdlib), tuple(libraries)
    )
