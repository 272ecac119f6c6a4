"""Which calls have begun: noted where a kill of every process of ours leaves it, before their requests are sent.

A start is copied into a file that is mapped into memory: it is the kernel's from then on, at the cost of a copy. It is
marked there as over once the journal has how the call ended, or has lost it. After a kill, what is noted, not marked
and not in the journal was under way.

Each run has a folder of its own, with files of a fixed size that are used again once all that they hold is over. A lock
there, which the run's recorders share, says when nobody writes to the journal for that run any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

__all__ = ["MAX_SEGMENTS", "Start", "StartLog", "left_by_others"]

SEGMENT_BYTES = 1024 * 1024
MAX_SEGMENTS = 16
"""Then what the oldest still holds moves on, so that one long call does not keep a file for itself."""
WAIT_SECONDS = 60.0
"""How long to wait for the recorder of a run that was killed to write what it has."""
LOOK_SECONDS = 0.25

_HEAD = struct.Struct("<II")
"""Length and checksum of an entry; a length of 0 is the end."""
SOME = bytes(8192)
"""As large as a start may be."""
_END = b"\0\0\0\0"
_LENGTH_BYTES, _OVER = 4, 0xFF
"""The first byte of a checksum is the other way round once its call is over."""


class Start:
    """A call that has begun, and where that stands."""

    __slots__ = ("at", "frame", "segment")

    def __init__(self, frame: bytes, segment: _Segment, at: int) -> None:
        self.frame, self.segment, self.at = frame, segment, at


class _Segment:
    """One file. Its room is taken from the disk when it is made, so that no later write can fail."""

    def __init__(self, path: Path, *, on_disk: bool) -> None:
        self.path = path
        self.open: set[Start] = set()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SEGMENT_BYTES)
            if on_disk:
                os.fsync(fd)
            self.memory = mmap.mmap(fd, SEGMENT_BYTES)
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        self._fd = fd
        self._at = 0

    def has_room(self, frame: bytes) -> bool:
        return self._at + _HEAD.size + len(frame) + len(_END) <= SEGMENT_BYTES

    def write(self, frame: bytes) -> int:
        """Returns where it stands."""
        at = self._at
        start = at + _HEAD.size
        end = start + len(frame)
        self.memory[start : end + len(_END)] = frame + _END
        self.memory[at:start] = _HEAD.pack(len(frame), zlib.crc32(frame))  # from now on it counts
        self._at = end
        return at

    def mark_over(self, at: int) -> None:
        self.memory[at + _LENGTH_BYTES] ^= _OVER

    def flush(self) -> None:
        """Have the disk take what was written. Blocks."""
        os.fdatasync(self._fd)

    def reuse(self) -> None:
        self.memory[: len(_END)] = _END
        self._at = 0

    def close(self) -> None:
        self.memory.close()
        os.close(self._fd)

    def remove(self) -> None:
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


class StartLog:
    """The starts of this run. `close` it when the journal has all that ended.

    Args:
        folder: of all runs; this one's is made below it.
        on_disk: each start is on the disk before `flushed` returns: it survives a power cut, too.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, on_disk: bool) -> None:
        self._on_disk = on_disk
        self.folder = folder / secrets.token_hex(8)
        self.folder.mkdir(parents=True, mode=0o700)
        self.lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self._segments: list[_Segment] = []
        self._current: _Segment | None = None
        self._made = 0
        self._dirty: set[_Segment] = set()
        self._group: asyncio.Future[None] | None = None
        self._flusher: asyncio.Task[None] | None = None

    def note(self, frame: bytes) -> Start:
        """Note a start. A process that is killed right after this has noted it.

        Raises:
            OSError: there is no room.
        """
        segment = self._current
        if segment is None or not segment.has_room(frame):
            segment = self._next(frame)
        start = Start(frame, segment, segment.write(frame))
        segment.open.add(start)
        if self._on_disk:
            self._dirty.add(segment)
        return start

    def has_room(self) -> bool:
        """Whether another start can be noted."""
        try:
            if self._current is None or not self._current.has_room(SOME):
                self._next(SOME)
        except (OSError, ValueError):
            return False
        return True

    def over(self, start: Start) -> None:
        """The journal has how it ended, or has lost it."""
        if start in start.segment.open:
            start.segment.open.discard(start)
            start.segment.mark_over(start.at)

    def flushed(self) -> asyncio.Future[None] | None:
        """What to await until all that was noted is on the disk; starts of one moment share the wait. `None`: nothing.

        Awaiting it raises `OSError` if the disk refuses.
        """
        if not self._dirty:
            return None
        if self._group is None:
            self._group = asyncio.get_running_loop().create_future()
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.ensure_future(self._flush())
        return asyncio.shield(self._group)

    async def _flush(self) -> None:
        while self._group is not None:
            group, self._group = self._group, None
            dirty, self._dirty = self._dirty, set()
            try:
                for segment in dirty:
                    await asyncio.to_thread(segment.flush)
            except OSError as exc:
                group.set_exception(OSError(errno.EIO, f"the disk refuses: {exc}"))
                group.exception()  # somebody may have gone
            else:
                group.set_result(None)

    def _next(self, frame: bytes) -> _Segment:
        """The file to go on in."""
        free = next((one for one in self._segments if not one.open and one is not self._current), None)
        if free is not None:
            free.reuse()
        else:
            free = _Segment(self.folder / f"{self._made}.log", on_disk=self._on_disk)
            self._made += 1
            self._segments.append(free)
            if len(self._segments) > MAX_SEGMENTS:
                self._move_on(self._segments[0], free)
        self._current = free
        if not free.has_room(frame):
            raise OSError(errno.ENOSPC, "more calls are under way than their starts have room for")
        return free

    def _move_on(self, old: _Segment, new: _Segment) -> None:
        for start in old.open:
            start.at = new.write(start.frame)
            start.segment = new
        new.open |= old.open
        self._segments.remove(old)
        self._dirty.discard(old)
        old.remove()

    async def close(self) -> None:
        """Forget this run. What is still open is left for the next one to find."""
        if self._flusher is not None:
            await asyncio.gather(self._flusher, return_exceptions=True)
        all_over = not any(segment.open for segment in self._segments)
        for segment in self._segments:
            if segment.open:
                segment.open.clear()
                segment.close()
            else:
                segment.remove()
        os.close(self.lock)
        if all_over:
            await asyncio.to_thread(shutil.rmtree, self.folder, True)


async def left_by_others(folder: Path, own: Path | None) -> AsyncIterator[tuple[Path, list[bytes]]]:
    """What other runs noted, as soon as nobody writes to the journal for them: the folder of each, and its frames. Runs
    that go on, as those of other workers do, are not among them.

    Args:
        folder: of all runs. own: this run's folder.
    """
    runs = await asyncio.to_thread(lambda: sorted(path for path in folder.glob("*") if path.is_dir()))
    deadline = time.monotonic() + WAIT_SECONDS
    waiting = [run for run in runs if run != own]
    while waiting:
        for run in [run for run in waiting if _has_ended(run)]:
            waiting.remove(run)
            yield run, await asyncio.to_thread(list, _frames(run))
        if time.monotonic() > deadline:
            return
        if waiting:
            await asyncio.sleep(LOOK_SECONDS)


def _has_ended(run: Path) -> bool:
    """Whether the recorders of a run are gone."""
    try:
        lock = os.open(run / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # it never began, or begins just now
        with contextlib.suppress(OSError):
            return time.time() - run.stat().st_mtime > WAIT_SECONDS
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _frames(run: Path) -> Iterator[bytes]:
    for path in run.glob("*.log"):
        try:
            with open(path, "rb") as file:
                data = file.read(SEGMENT_BYTES)
        except OSError:
            continue
        at = 0
        while at + _HEAD.size <= len(data):
            length, checksum = _HEAD.unpack_from(data, at)
            frame = data[at + _HEAD.size : at + _HEAD.size + length]
            found = zlib.crc32(frame)
            if not length or found not in (checksum, checksum ^ _OVER):
                break
            if found == checksum:
                yield frame
            at += _HEAD.size + length
