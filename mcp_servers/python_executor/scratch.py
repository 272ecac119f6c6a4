"""Scratch folders: a zygote's mount point, and at a tier without mounts the place where calls write.

What lies in one may have been made by hostile code: it is deleted and added up without following links, without
recursion, and without a long path.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from mcp_servers.python_executor.sandbox.wire import MAX_INODES

__all__ = ["delete", "empty", "holds_more", "make"]

PREFIX = "toolscore-sandbox-"


def make() -> str:
    """A new one, in memory where we can; those that killed servers left behind are deleted first."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()  # noqa: S108
    _remove_dead(parent)
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
    os.chmod(folder, 0o755)  # noqa: S103 - a mount point, which the sandbox's root must reach
    return folder


def _remove_dead(parent: str) -> None:
    """Nothing in them may keep us from starting."""
    for folder in Path(parent).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).split("-")[0]
        with contextlib.suppress(OSError):
            status = folder.lstat()
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if ours and pid.isdigit() and not Path(f"/proc/{pid}").exists():
                delete(str(folder))


def delete(folder: str) -> None:
    """Delete a folder of ours, whatever code has made in it: as deep as it likes, and closed to others."""
    empty(folder)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def empty(folder: str) -> None:
    """Delete what is in it; nobody else can reach it any more.

    Folders deeper down are moved up, and emptied in their turn.
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
    """Whether there is more in it than a call may have, in bytes or in files, or something that keeps us from looking.

    Files that were deleted and are still open are not seen.
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
