"""`python -m toolscore.history.recorder`: writes the journal for the gateway that started it; ends when that does.

Where a gateway is several processes, one recorder is for all of them (`serve_recorders`): each hands it the ends of its
pipes over a Unix socket.
"""

from __future__ import annotations

from toolscore.telemetry.logs import configure_logging  # isort: skip  (before whatever logs: it keeps structlog small)

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from toolscore.core.tasks import TaskSet
from toolscore.history.pipes import HANDED_OVER
from toolscore.history.recording import Order, Recording, first_order
from toolscore.stores.errors import StoreError

__all__ = ["main", "serve_recorders"]

log = structlog.get_logger(__name__)

MAX_FRAME = 64 * 1024
HAND_OVER_SECONDS = 5.0


async def _pipe_reader(pipe: Any) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader(limit=MAX_FRAME)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader, transport


async def _run() -> None:
    reader, pipe = await _pipe_reader(sys.stdin)
    try:
        order = await first_order(reader)
    except asyncio.IncompleteReadError:
        return
    lines = configure_logging(order.log_level, order.log_format)

    def say(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    try:
        async with Recording(order, lines.write if _logs(order) else len) as recording:
            await recording.record(reader, pipe, say, order)
    except StoreError as exc:
        sys.exit(f"the recorder cannot open the database: {exc}")


def _logs(order: Order) -> bool:
    return order.log_level in ("debug", "info")


async def serve_recorders(path: Path, log_lines: Callable[[str], object], ended: asyncio.Event) -> None:
    """Record for all processes that connect to a Unix socket and hand over their pipes, until `ended` is set and all
    pipes have closed.

    Args:
        log_lines: takes the log's lines of the calls.
    """
    loop = asyncio.get_running_loop()
    tasks = TaskSet()
    opening = asyncio.Lock()
    recording: Recording | None = None

    async def take(connection: socket.socket) -> None:
        with connection:
            try:
                async with asyncio.timeout(HAND_OVER_SECONDS):
                    await _readable(connection)
            except TimeoutError:
                return
            descriptors = socket.recv_fds(connection, len(HANDED_OVER), 3)[1]
        if len(descriptors) >= 2:
            await record(*descriptors)

    async def record(theirs: int, answers: int, *locks: int) -> None:
        nonlocal recording
        answering, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(answers, "wb", 0))
        reader, pipe = await _pipe_reader(os.fdopen(theirs, "rb", 0))
        try:
            order = await first_order(reader)
            async with opening:
                if recording is None:
                    fresh = Recording(order, log_lines if _logs(order) else len)
                    recording = await stack.enter_async_context(fresh)
            await recording.record(reader, pipe, answering.write, order)
        except asyncio.IncompleteReadError:
            pass
        except StoreError as exc:  # whoever it is comes again
            log.error("the recorder cannot open the database", error=str(exc))
        finally:
            pipe.close()
            answering.close()
            for lock in locks:
                os.close(lock)

    async with contextlib.AsyncExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        listening.listen(64)
        listening.setblocking(False)

        async def accept() -> None:
            while True:
                connection, _ = await loop.sock_accept(listening)
                connection.setblocking(False)
                tasks.start(take(connection))

        accepting = asyncio.create_task(accept())
        await ended.wait()
        while len(tasks):
            await tasks.wait()
        accepting.cancel()


async def _readable(connection: socket.socket) -> None:
    """Wait until something can be read."""
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not there.done():
            there.set_result(None)

    loop.add_reader(connection, readable)
    try:
        await there
    finally:
        loop.remove_reader(connection)


def main() -> None:
    """The program."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of the pipe is the end
    if hasattr(os, "nice"):
        os.nice(5)
    asyncio.run(_run())


if __name__ == "__main__":
    main()
