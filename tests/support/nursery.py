"""`toolscore` programs as processes of their own, started in a tenth of the time (`servers/nursery.py`)."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["VARIABLE", "Born", "born", "fixture", "forked", "nursery", "start_nursery"]

SCRIPT = Path(__file__).resolve().parents[1] / "servers" / "nursery.py"
VARIABLE = "TEST_NURSERY"
"""Names the socket of a nursery that runs already, for programs of tests that start further ones."""
START_SECONDS = 60

_lock = threading.Lock()


class Born:
    """A program that was forked; used like `subprocess.Popen`."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """The exit code, negative for a signal; `None` while it runs."""
        return self._read(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it has not ended by then.
        """
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("toolscore", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """`kill -9`."""
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                data = self._connection.recv(4096)
            except (TimeoutError, BlockingIOError):
                return None
            if not data:
                raise AssertionError("the nursery has gone")
            self.returncode = int(json.loads(data)["status"])
            self._connection.close()
        return self.returncode


def born(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: str | Path, stdin: int, stdout: int, stderr: int
) -> Born:
    """Start `toolscore` with these arguments.

    Args:
        env: all of its environment.
        stdin, stdout, stderr: descriptors; they stay the caller's to close.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(_address())
    request = {"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}
    socket.send_fds(connection, [json.dumps(request).encode()], [stdin, stdout, stderr])
    connection.settimeout(START_SECONDS)
    return Born(connection, int(json.loads(connection.recv(4096))["pid"]))


def forked(script: str, *arguments: str) -> list[str]:
    """A command that runs a script of `servers/` that needs the official SDK, without importing that each time."""
    return [sys.executable, "-I", "-S", str(SCRIPT.with_name("forked.py")), _address(), str(SCRIPT.with_name(script)),
            *arguments]  # fmt: skip


def fixture(*arguments: str, **more: Any) -> dict[str, Any]:
    """The fixture of the conformance suite as an entry of `mcpServers`; `more` are further keys."""
    command, *args = forked("fixture.py", *arguments)
    return {"command": command, "args": args, **more}


def start_nursery() -> None:
    """Start the nursery of this process and of all that it starts, unless there is one. It answers after a while."""
    with _lock:
        if VARIABLE not in os.environ:
            stack = contextlib.ExitStack()
            _, os.environ[VARIABLE] = stack.enter_context(_process())
            atexit.register(stack.close)


def _address() -> str:
    """The socket of the nursery, which is started at its first use."""
    start_nursery()
    _wait_for(os.environ[VARIABLE])
    return os.environ[VARIABLE]


def _wait_for(address: str, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not os.path.exists(address):
        assert process is None or process.poll() is None, "the nursery does not start"
        assert time.monotonic() < deadline, "the nursery does not start in time"
        threading.Event().wait(0.01)


@contextlib.contextmanager
def _process(*prefix: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with tempfile.TemporaryDirectory(prefix="toolscore-nursery-") as folder:
        address = f"{folder}/socket"
        with subprocess.Popen([*prefix, sys.executable, str(SCRIPT), address], stdin=subprocess.DEVNULL) as process:
            try:
                yield process, address
            finally:
                process.terminate()


@contextlib.contextmanager
def nursery(*prefix: str) -> Iterator[tuple[int, str]]:
    """Run a nursery. Yields its pid and its socket.

    Args:
        prefix: a command that runs it somewhere else, such as in a network of its own.
    """
    with _process(*prefix) as (process, address):
        _wait_for(address, process)
        yield process.pid, address
