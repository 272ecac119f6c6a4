"""The ways to a recorder: start one, or hand the ends of two pipes to one that is there for several processes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

__all__ = ["HANDED_OVER", "recorder_at"]

PIPE_BYTES = 1024 * 1024
"""What a recorder that lags leaves in its pipe outlives the gateway; a socket pair would hold a fifth of it."""
HANDED_OVER = b"pipes"
"""What comes with the descriptors: of the pipe to read, of the one to answer on, and perhaps of a lock to hold."""

Recorder = tuple[asyncio.WriteTransport, asyncio.StreamReader, Callable[[bool], Awaitable[None]]]
"""The pipe to it, what it says, and what waits for its end (`True`) or makes it end."""


async def recorder_at(place: Sequence[str] | Path, locks: Sequence[int]) -> Recorder:
    """A recorder.

    Args:
        place: the command that starts one, or the Unix socket of one (`serve_recorders`).
        locks: descriptors that it holds for as long as it records.

    Raises:
        OSError: there is none.
    """
    pipe, theirs = await _new_pipe()
    try:
        return await (_joined(place, pipe, theirs, locks) if isinstance(place, Path) else
                      _started(place, pipe, theirs, locks))  # fmt: skip
    except BaseException:
        pipe.abort()
        raise
    finally:
        os.close(theirs)


async def _started(command: Sequence[str], pipe: asyncio.WriteTransport, theirs: int, locks: Sequence[int]) -> Recorder:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=locks,
        start_new_session=True,  # Ctrl-C is for the gateway; the recorder ends after it
    )
    assert process.stdout is not None

    async def end(by_itself: bool) -> None:
        if not by_itself and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    return pipe, process.stdout, end


async def _joined(path: Path, pipe: asyncio.WriteTransport, theirs: int, locks: Sequence[int]) -> Recorder:
    loop = asyncio.get_running_loop()
    said, answers = os.pipe()
    lines = asyncio.StreamReader()
    try:
        reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(said, "rb", 0))
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.setblocking(False)
                await loop.sock_connect(connection, str(path))
                socket.send_fds(connection, [HANDED_OVER], [theirs, answers, *locks])
        except BaseException:
            reading.close()
            raise
    finally:
        os.close(answers)

    async def end(_: bool) -> None:
        reading.close()

    return pipe, lines, end


async def _new_pipe() -> tuple[asyncio.WriteTransport, int]:
    """A pipe: our end, and the recorder's."""
    theirs, ours = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # this user has as much in pipes as it may
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        pipe, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours, "wb", 0))
    except BaseException:
        os.close(theirs)
        raise
    return pipe, theirs
