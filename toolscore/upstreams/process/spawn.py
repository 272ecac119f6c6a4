"""A child process that leaves nothing behind: own session, allow-listed environment, a reaper between it and us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import cast

__all__ = ["ChildProtocol", "CommandNotFound", "child_environment", "resolve_command", "spawn", "stop"]

ALLOWED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP",
           "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE")  # fmt: skip
"""What a server gets of our environment. Keys and tokens are not here: name them in the server's `env`."""

ALLOWED_PREFIXES = ("LC_", "XDG_")

RUNNERS = frozenset({"uvx", "uv", "pipx", "npx", "npm", "pnpm", "bunx"})
RUNNER_PREFIXES = ("UV_", "PIP_", "NPM_CONFIG_", "npm_config_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
                   "http_proxy", "https_proxy", "no_proxy")  # fmt: skip
"""Package runners fetch what they run, so they also get the user's own registry configuration."""

CONTAINER_ENGINES = frozenset({"docker", "podman", "nerdctl"})
MAX_WORDS_BEFORE_RUN = 6
STDERR_LINES = 50
STDERR_LINE_BYTES = 500

CLOSE_SECONDS = 1.5
"""How long a server has to leave by itself once its stdin is closed (MCP, lifecycle: shutdown over stdio)."""

REAPER = Path(__file__).with_name("reaper.py")


class CommandNotFound(Exception):
    """There is no such program: trying again will not help."""


def child_environment(command: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The allow-listed part of our environment and the server's own `env`."""
    prefixes: tuple[str, ...] = ALLOWED_PREFIXES
    if os.path.basename(command) in RUNNERS:
        prefixes += RUNNER_PREFIXES
    environment = {key: value for key, value in os.environ.items() if key in ALLOWED or key.startswith(prefixes)}
    # `uvx` and our own programs live beside this interpreter, which need not be on PATH.
    environment["PATH"] = os.pathsep.join(
        part for part in (os.path.dirname(sys.executable), environment.get("PATH", os.defpath)) if part
    )
    own_path = environment["PATH"]
    environment.update(extra)
    if "PATH" in extra:  # its own comes first; what only ours has is still found
        environment["PATH"] = os.pathsep.join(part for part in (extra["PATH"], own_path) if part)
    return environment


def resolve_command(command: str, environment: Mapping[str, str], cwd: str | None = None) -> str:
    """The program's path: as a shell in `cwd` would find it. Where no other is found, `python` is the gateway's own.

    Args:
        environment: of `child_environment`.

    Raises:
        CommandNotFound: with what to do.
    """
    command = os.path.expanduser(command)
    if os.sep in command and not os.path.isabs(command) and cwd is not None:
        command = os.path.join(os.path.expanduser(cwd), command)
    found = shutil.which(command, path=environment.get("PATH"))
    if command in ("python", "python3") and (found is None or _is_the_systems(found)):
        return sys.executable
    if found is None:
        hint = {
            "uvx": "install uv: pip install uv",
            "npx": "install Node.js",
            "docker": "install Docker",
        }.get(command, "install it, or give its full path")
        if " " in command:
            hint = "give the program alone in `command`, and each further word as an entry of `args`"
        raise CommandNotFound(f"command {command!r} was not found on PATH: {hint}")
    return found


def _is_the_systems(python: str) -> bool:
    """Whether a Python was found where the gateway's own PATH has it, and not where an entry says."""
    ours = {os.path.dirname(sys.executable), *os.environ.get("PATH", os.defpath).split(os.pathsep)}
    return os.path.dirname(python) in ours


def in_container(command: str, args: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The arguments of `docker run` or `podman run` with a label, and with a file for the container's id, by which it
    is ended; and that file's path. An empty path: it runs no container, or has such a file already.
    """
    at = args.index("run") if "run" in args[:MAX_WORDS_BEFORE_RUN] else -1
    if os.path.basename(command) not in CONTAINER_ENGINES or at < 0 or any("--cidfile" in word for word in args):
        return args, ""
    file = os.path.join(tempfile.gettempdir(), f"toolscore-{secrets.token_hex(8)}.cid")
    return (*args[: at + 1], f"--cidfile={file}", "--label=toolscore", *args[at + 1 :]), file


class ChildProtocol(asyncio.SubprocessProtocol):
    """What a child writes and how it ends. Subclasses read stdout."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._partial = b""
        self.pid: int | None = None
        self.lifeline: socket.socket | None = None
        self.transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.SubprocessTransport, transport)  # uvloop's own class is no subclass of it

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self.stdout_received(data)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-STDERR_LINE_BYTES:]
        for line in lines[-STDERR_LINES:]:
            self.note(line)

    def note(self, line: bytes) -> None:
        """Keep a line for whoever asks why the server fails."""
        if line.strip():
            self.stderr.append(line[:STDERR_LINE_BYTES].decode(errors="replace").rstrip())

    def stdout_received(self, data: bytes) -> None:
        """Take what came on stdout."""

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)
        self.writable.set()

    def exit_reason(self) -> str:
        """How the server ended, in words."""
        self.note(self._partial)
        self._partial = b""
        code = self.transport.get_returncode() if self.transport is not None else None
        if code is None:
            return "the server closed its output"
        if code > 128 and code - 128 in {number.value for number in signal.Signals}:
            return f"the server was killed by {signal.Signals(code - 128).name}"
        if code < 0:
            return f"the server was killed by {signal.Signals(-code).name}"
        return f"the server exited with code {code}"


async def spawn(
    protocol: ChildProtocol,
    command: str,
    args: tuple[str, ...],
    *,
    env: Mapping[str, str],
    cwd: str | None,
    pipes: bool,
    whole_environment: bool = False,
) -> None:
    """Start a program below a reaper.

    Args:
        whole_environment: `env` is all that it gets.
        pipes: with stdin and stdout; without, only stderr is read.

    Raises:
        CommandNotFound: no such program or folder.
    """
    environment = dict(env) if whole_environment else child_environment(command, env)
    program = resolve_command(command, environment, cwd)
    args, container_file = in_container(command, args)
    if cwd is not None and not Path(cwd).expanduser().is_dir():
        raise CommandNotFound(f"the folder {cwd!r} given as `cwd` does not exist")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    pipe = asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL
    try:
        await asyncio.get_running_loop().subprocess_exec(
            lambda: protocol,
            sys.executable, "-I", "-S", str(REAPER), str(theirs.fileno()), container_file, "--", program, *args,
            stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.PIPE,
            env=environment, cwd=str(Path(cwd).expanduser()) if cwd else None,
            start_new_session=True, pass_fds=(theirs.fileno(),),
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    protocol.lifeline = ours
    try:
        async with asyncio.timeout(5):
            protocol.pid = int(await asyncio.get_running_loop().sock_recv(ours, 32) or 0) or None
    except (TimeoutError, OSError, ValueError):
        protocol.pid = None


async def stop(protocol: ChildProtocol) -> None:
    """Close stdin, wait, SIGTERM all, SIGKILL all. Bounded, idempotent; nothing is left when it returns."""
    transport = protocol.transport
    if transport is None or protocol.lifeline is None:
        return
    try:
        stdin = transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()
            await _exited(protocol, CLOSE_SECONDS)
        protocol.lifeline.close()  # the reaper takes it from here
        if not await _exited(protocol, 4):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
            await _exited(protocol, 2)
    finally:
        # A reaper that was killed itself could not clean up; its session is still ours to kill.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        protocol.lifeline.close()
        transport.close()


async def _exited(protocol: ChildProtocol, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.shield(protocol.exited)
    return protocol.exited.done()
