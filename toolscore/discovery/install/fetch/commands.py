"""Runs the commands that fetch: below a reaper, for a bounded time, with their last output kept for errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from toolscore.discovery.install.failure import OUTPUT_LINES, StepFailed
from toolscore.upstreams.process.spawn import ChildProtocol, spawn, stop

__all__ = ["run_command"]

STDOUT_BYTES = 64 * 1024
"""The last of stdout that is kept: more than any command prints whose output is read."""


class _Output(ChildProtocol):
    """What a program prints: the end of it, and all of a short stdout."""

    def __init__(self) -> None:
        super().__init__()
        self.stdout = b""

    def stdout_received(self, data: bytes) -> None:
        self.stdout = (self.stdout + data)[-STDOUT_BYTES:]

    def lines(self) -> list[str]:
        said = [line for line in self.stdout.decode(errors="replace").splitlines() if line.strip()]
        self.exit_reason()  # takes in an unfinished line
        return (said + list(self.stderr))[-OUTPUT_LINES:]


async def run_command(command: Sequence[str], folder: Path, timeout_seconds: float) -> str:
    """Run a program to its end, and return what it printed on stdout.

    Args:
        folder: where it runs.

    Raises:
        StepFailed: it ended with another code than 0, or did not end in time. CommandNotFound: it is not there.
    """
    output = _Output()
    await spawn(
        output, command[0], tuple(command[1:]), env=_environment(command[0]), cwd=str(folder), pipes=True
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.shield(output.exited)
    except TimeoutError:
        raise StepFailed(f"it did not end within {timeout_seconds:g} s", command, output.lines()) from None
    finally:
        await stop(output)
    if (code := output.transport.get_returncode() if output.transport is not None else 1) != 0:
        raise StepFailed(f"it ended with code {code}", command, output.lines())
    return output.stdout.decode(errors="replace")


def _environment(program: str) -> dict[str, str]:
    """Fetchers get the user's own registry configuration, and nothing that points into our environment."""
    return {"VIRTUAL_ENV": "", "UV_NO_PROGRESS": "1"} if program == "uv" else {"CI": "1"}
