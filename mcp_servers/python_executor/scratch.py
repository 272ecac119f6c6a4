"""Scratch folders: a zygote's mount point, and at a tier without mounts the place where calls write.

Hostile code may have made what lies in one. So it is deleted and added up without following links, without recursion,
and without a long path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.child_process import ChildProcess
from mcp_servers.python_executor.sandbox.wire import MAX_INODES

__all__ = ["SharedFolders", "delete", "empty", "holds_more", "make"]

PREFIX = "toolscore-sandbox-"
LOOK_SECONDS = 0.25
"""How often the files of a call are added up, where no file system of its own bounds them."""


class SharedFolders:
    """The folders of calls at a tier where children have no file systems of their own.

    Args:
        folder: the zygote's; slot 3 writes to `3` in it, and what ended calls left lies in `trash`.
        call_bytes: what the files of one call may take.
        in_background: has something done that nobody waits for.
    """

    def __init__(
        self, folder: str, *, call_bytes: int, in_background: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        self._folder, self._call_bytes, self._in_background = folder, call_bytes, in_background
        self._looked_at = 0.0
        self._deleting: asyncio.Task[None] | None = None
        self._delete_again = False

    def empty_trash(self) -> None:
        """Start to delete what ended calls left. What comes while that runs is deleted after it."""
        self._delete_again = True
        if self._deleting is None or self._deleting.done():
            self._deleting = self._in_background(self._delete_trash())

    async def _delete_trash(self) -> None:
        while self._delete_again:
            self._delete_again = False
            await asyncio.to_thread(empty, f"{self._folder}/trash")

    def look(self, children: Sequence[ChildProcess], now: float) -> None:
        """Start to add up the files of these children, unless that was done a moment ago; end those with too many."""
        if children and now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            self._in_background(self._end_those_with_too_much(children))

    async def _end_those_with_too_much(self, children: Sequence[ChildProcess]) -> None:
        for child in children:
            too_much = await asyncio.to_thread(holds_more, f"{self._folder}/{child.slot}", self._call_bytes)
            if too_much and not child.ended and not child.released:
                child.end("disk")


def make() -> str:
    """Make a scratch folder, in memory where that is possible. Folders that killed servers left are deleted first."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()  # noqa: S108
    _remove_dead(parent)
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
    os.chmod(folder, 0o755)  # noqa: S103 - a mount point, which the sandbox's root must reach
    return folder


def _remove_dead(parent: str) -> None:
    """Delete the folders of servers that are gone. Never raises: what lies there must not keep us from starting."""
    for folder in Path(parent).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).split("-")[0]
        with contextlib.suppress(OSError):
            status = folder.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if ours and pid.isdigit() and not Path(f"/proc/{pid}").exists():
                delete(str(folder))


def delete(folder: str) -> None:
    """Delete a folder of ours, whatever code made in it: folders of any depth, folders closed to others."""
    empty(folder)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def empty(folder: str) -> None:
    """Delete what is in a folder that nobody else can reach any more.

    Folders deeper down are moved up first, so that no path gets long.
    """
    pending = [folder]
    while pending:
        at = pending.pop()
        with contextlib.suppress(OSError), os.scandir(at) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                        continue
                    os.chmod(entry.path, 0o700)
                    path = entry.path
                    if at != folder:  # whose own entries would be met again under their new names
                        path = os.path.join(folder, secrets.token_hex(8))
                        os.rename(entry.path, path)
                    pending.append(path)
        if at != folder:
            with contextlib.suppress(OSError):
                os.rmdir(at)


def holds_more(folder: str, bound: int) -> bool:
    """Whether a folder holds more bytes or files than a call may have, or cannot be looked through.

    Files that were deleted and are still open are not counted.
    """
    room, files = bound, MAX_INODES
    pending = [folder]
    while pending:
        at = pending.pop()
        try:
            with os.scandir(at) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        room -= status.st_blocks * 512
                        files -= 1
                        if stat.S_ISDIR(status.st_mode) and status.st_mode & (stat.S_IRUSR | stat.S_IWUSR):
                            pending.append(entry.path)  # else nothing can be in it
                    if room < 0 or files < 0:
                        return True
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False
