"""The folder of one installed server: made by an install, marked as such, removed with it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from toolscore.discovery.install.failure import StepFailed

__all__ = ["held", "is_marked", "prepare", "remove"]

MARKER = ".toolscore-install"
"""Stands in each folder that an install made: no other folder is ever removed."""


def is_marked(place: Path) -> bool:
    """Whether an install made this folder."""
    return (place / MARKER).is_file()


@contextlib.contextmanager
def held(place: Path) -> Iterator[bool]:
    """Hold the folder of a server for one install. Yields whether no other process of this machine holds it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


async def prepare(place: Path) -> Path:
    """Make the folder of a server anew.

    Returns:
        The server's home in it.

    Raises:
        StepFailed: a folder is there that no install made.
    """
    if place.exists() and not is_marked(place):
        raise StepFailed(f"{place} is there, and was not made by an install: move it away")
    await remove(place)
    home = place / "home"
    await asyncio.to_thread(home.mkdir, parents=True)
    await asyncio.to_thread((place / MARKER).write_text, "made by an install; removed with it\n")
    return home


async def remove(place: Path) -> None:
    """Remove the folder of a server, if an install made it. Idempotent."""
    if is_marked(place):
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
