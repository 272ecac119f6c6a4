"""What `uvx` and `npx` would run: started itself, so that no uv or npm stays beside each server (50 to 90 MB each)."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from toolscore.upstreams.process.spawn import (
    ChildProtocol,
    CommandNotFound,
    child_environment,
    spawn,
    stop,
)

__all__ = ["Program", "environment_of", "find_program", "without_questions"]

UVX_VALUES = frozenset({
    "--with", "--with-editable", "--with-requirements", "-w", "--python", "-p", "--index-url", "-i", "--index",
    "--extra-index-url", "--default-index", "--find-links", "-f", "--prerelease", "--resolution", "--constraints", "-c",
    "--overrides", "--exclude-newer", "--index-strategy", "--keyring-provider", "--allow-insecure-host", "--cache-dir",
})  # fmt: skip
UVX_SWITCHES = frozenset({
    "-q", "--quiet", "-U", "--upgrade", "--refresh", "--native-tls", "--offline", "--no-progress", "--no-config",
    "--managed-python", "--no-managed-python", "--no-python-downloads", "--pre",
})  # fmt: skip
NPX_SWITCHES = frozenset(
    {"-y", "--yes", "-q", "--quiet", "--silent", "--prefer-offline", "--prefer-online", "--offline"}
)
"""What is understood of them; an entry with anything else is run as it stands."""
PYTHON_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NPM_SPEC = re.compile(r"(@[\w.~-]+/[\w.~-]+|[\w~-][\w.~-]*)(@[^/\s]*)?")
PREFIX_SCRIPT = "import sys; print('toolscore:' + sys.prefix)"
MAX_OUTPUT = 64 * 1024


class Program:
    """A program to start in the place of a runner.

    Attributes:
        command, args: of the program itself.
        folder: where what belongs to it stands; first on its PATH.
    """

    def __init__(self, command: str, args: tuple[str, ...], folder: str) -> None:
        self.command = command
        self.args = args
        self.folder = folder


def without_questions(command: str, args: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments, so that `npx` never waits for a yes."""
    if os.path.basename(command) == "npx" and not {"-y", "--yes", "--no", "--no-install"} & set(args):
        return ("--yes", *args)
    return args


async def find_program(command: str, args: tuple[str, ...], env: Mapping[str, str], cwd: str | None) -> Program | None:
    """What a runner would start, once its package is there, which this sees to.

    Returns:
        `None`: it is no runner, its arguments are of a kind that is left to it, or it failed, as it will do again.
    """
    runner = os.path.basename(command)
    if runner == "uvx":
        return await _of_uvx(command, args, env, cwd)
    if runner == "uv" and args[:2] == ("tool", "run"):
        return await _of_uvx(command, args[2:], env, cwd, before=args[:2])
    if runner == "npx":
        return await _of_npx(command, args, env, cwd)
    return None


async def _of_uvx(
    command: str, args: tuple[str, ...], env: Mapping[str, str], cwd: str | None, before: tuple[str, ...] = ()
) -> Program | None:
    flags, rest, package = _split(args, UVX_VALUES | {"--from"}, UVX_SWITCHES, "--from")
    if flags is None or not rest:
        return None
    name = PYTHON_NAME.match(rest[0]) if package is None else re.match(r"[^@]+", rest[0])
    if name is None or "://" in rest[0] or name[0] in ("python", "python3") or "/" in name[0]:
        return None
    wanted = (*before, *flags, "--from", package or rest[0], "python", "-I", "-c", PREFIX_SCRIPT)
    found = re.search(r"^toolscore:(.+)$", await _output(command, wanted, env, cwd), re.MULTILINE)
    if found is None:
        return None
    folder = Path(found[1]) / "bin"
    program = folder / name[0]
    return Program(str(program), rest[1:], str(folder)) if os.access(program, os.X_OK) else None


async def _of_npx(command: str, args: tuple[str, ...], env: Mapping[str, str], cwd: str | None) -> Program | None:
    flags, rest, package = _split(args, frozenset({"-p", "--package"}), NPX_SWITCHES, "--package")
    if flags is None or not rest:
        return None
    spec = NPM_SPEC.fullmatch(package or rest[0])
    if spec is None:
        return None
    wanted = ("--yes", *flags, f"--package={spec[0]}", "-c", 'echo "toolscore:$PATH"')
    found = re.search(r"^toolscore:(.+)$", await _output(command, wanted, env, cwd), re.MULTILINE)
    for folder in found[1].split(os.pathsep) if found else ():
        about = Path(folder).parent / spec[1] / "package.json"
        if folder.endswith("node_modules/.bin") and about.is_file():
            program = Path(folder) / (rest[0] if package else _program_of(spec[1], about))
            return Program(str(program), rest[1:], folder) if os.access(program, os.X_OK) else None
    return None


def _program_of(package: str, about: Path) -> str:
    """The program that npx starts for a package: its only one, or the one of its name (npm docs, npm exec)."""
    try:
        programs = json.loads(about.read_bytes()).get("bin")
    except (OSError, ValueError, AttributeError):
        return ""
    own_name = package.rpartition("/")[2]
    if isinstance(programs, dict) and len(set(programs.values())) == 1:
        return str(next(iter(programs)))
    return own_name


def _split(
    args: tuple[str, ...], values: frozenset[str], switches: frozenset[str], package_flag: str
) -> tuple[tuple[str, ...] | None, tuple[str, ...], str | None]:
    """The runner's own flags (`None`: one is not understood), what follows them, and the package if it is named."""
    flags: list[str] = []
    package, at = None, 0
    while at < len(args) and args[at].startswith("-"):
        flag, separator, value = args[at].partition("=")
        at += 1
        if flag == "--":
            break
        if flag in switches and not separator:
            flags.append(flag)
            continue
        if flag not in values:
            return None, (), None
        if not separator:
            if at >= len(args):
                return None, (), None
            value, at = args[at], at + 1
        if flag == package_flag or (flag == "-p" and package_flag == "--package"):
            if package is not None:
                return None, (), None
            package = value
        else:
            flags += [flag, value]
    return tuple(flags), args[at:], package


class _Output(ChildProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.text = b""

    def stdout_received(self, data: bytes) -> None:
        self.text = (self.text + data)[-MAX_OUTPUT:]


async def _output(command: str, args: tuple[str, ...], env: Mapping[str, str], cwd: str | None) -> str:
    """What a program writes on stdout; nothing where it fails. Its time is the caller's to bound."""
    protocol = _Output()
    try:
        await spawn(protocol, command, args, env=env, cwd=cwd, pipes=True)
        await protocol.exited
    except CommandNotFound:
        return ""
    finally:
        await asyncio.shield(asyncio.ensure_future(stop(protocol)))
    code = protocol.transport.get_returncode() if protocol.transport is not None else None
    return protocol.text.decode("utf-8", "replace") if code == 0 else ""


def environment_of(program: Program, command: str, env: Mapping[str, str]) -> dict[str, str]:
    """What the program gets: what its runner would get, and its own folder first on PATH."""
    environment = child_environment(command, env)
    return {**environment, "PATH": os.pathsep.join((program.folder, environment["PATH"]))}
