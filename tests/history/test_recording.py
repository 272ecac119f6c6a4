"""The recorder by itself: pipes of every size, large records, a database that hangs."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Raw

from toolscore.history.recording import CallRecord, Order, Recording, call_frame, new_call_id
from toolscore.stores.database import open_database

MEGABYTE = 1024 * 1024


def frame(result: bytes = b"{}") -> bytes:
    record = CallRecord(new_call_id(), "r", 1, "p", "t", "s", "n", "h", "ok", 1.0, None, None, 2, len(result))
    return call_frame(record, Raw(b"{}"), Raw(result))


@asynccontextmanager
async def recorder(folder: Path, size: int) -> AsyncIterator[tuple[int, asyncio.StreamReader, Callable[[], str]]]:
    """The end of its pipe that is written to, what reads it, and the address of its database."""
    url = f"sqlite+aiosqlite:///{folder / 'calls.db'}"
    theirs, ours = os.pipe()
    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, size)
    reader = asyncio.StreamReader(limit=64 * 1024)
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(theirs, "rb", 0))
    order = Order(database_url=url)
    async with Recording(order, len) as recording:
        recording_all = asyncio.create_task(recording.record(reader, pipe, len, order))
        try:
            yield ours, reader, lambda: url
        finally:
            if not recording_all.done():
                os.close(ours)
            await recording_all


@pytest.mark.anyio
@pytest.mark.parametrize("size", [4096, 64 * 1024, MEGABYTE])
async def test_all_comes_through_a_pipe_of_any_size(tmp_path: Path, size: int) -> None:
    frames = [frame() for _ in range(700)] + [frame(b'"%s"' % (b"x" * 3 * MEGABYTE)), frame(b'"%s"' % (b"y" * 9000))]

    def write() -> None:
        for one in frames:
            at = 0
            while at < len(one):
                at += os.write(ours, one[at:])

    async with recorder(tmp_path, size) as (ours, _, url):
        await asyncio.to_thread(write)
    async with open_database(url()) as database:
        assert (await database.journal_size())[0] == len(frames)


@pytest.mark.anyio
async def test_a_database_that_hangs_bounds_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_more, taken = asyncio.Semaphore(0), 0
    hangs = True

    async def append(*_: object) -> None:
        if hangs:
            await one_more.acquire()

    async with recorder(tmp_path, MEGABYTE) as (ours, reader, _):
        monkeypatch.setattr("toolscore.stores.journal_file.JournalFile.append_calls", append)
        os.set_blocking(ours, False)
        small = rest = frame() * 80
        for number in range(160):  # a little at a time, until it reads no more; then all that goes in
            for _ in range(1 if number < 33 else 11 if number == 33 else 1000):
                try:
                    written = os.write(ours, rest)
                except BlockingIOError:
                    break
                rest, taken = rest[written:] or small, taken + written
            if number in (80, 90):
                one_more.release()  # a group is written, and it hangs again
            await asyncio.sleep(0.04 if number < 33 else 0.01)
        kept = len(reader._buffer)  # type: ignore[attr-defined]
        hangs = False
        for _ in range(1000):
            one_more.release()
        os.set_blocking(ours, True)
        if rest is not small:
            await asyncio.to_thread(os.write, ours, rest)
    assert kept < MEGABYTE
    assert taken < 4 * MEGABYTE
