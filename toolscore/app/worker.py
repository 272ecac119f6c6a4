"""One of the processes that are a gateway together: `toolscore serve --workers N`."""

from __future__ import annotations

import asyncio
import mmap
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path

from toolscore.app.settings import Settings

__all__ = ["Loads", "Worker"]

NOBODY = 2**62
POLL_SECONDS = 0.02


class Loads:
    """How many connections each worker has, and who is done, in memory that all see. Made before they are forked.

    Args:
        workers: how many there are, numbered from 1.
    """

    def __init__(self, workers: int) -> None:
        shared = memoryview(mmap.mmap(-1, 16 * workers)).cast("q")
        self._counts, self._busy = shared[:workers], shared[workers:]
        for number in range(1, workers + 1):
            self.gone(number)

    def begin(self, number: int) -> None:
        """A worker takes connections from now on."""
        self._counts[number - 1], self._busy[number - 1] = 0, 1

    def set(self, number: int, connections: int) -> None:
        """A worker has so many now."""
        self._counts[number - 1] = connections

    def closed(self, number: int) -> None:
        """A worker takes none any more."""
        self._counts[number - 1] = NOBODY

    def gone(self, number: int) -> None:
        """A worker is not there, or has nothing to do any more."""
        self._counts[number - 1], self._busy[number - 1] = NOBODY, 0

    def has_more(self, number: int) -> bool:
        """Whether a worker has more than another one."""
        return bool(self._counts[number - 1] > min(self._counts))

    async def all_gone(self, seconds: float) -> None:
        """Wait until no worker has anything to do, for so long at most: they use one another's servers till then."""
        deadline = time.monotonic() + seconds
        while any(self._busy) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Worker:
    """A process that does what a gateway does, for the clients whose connections it took.

    Attributes:
        number: from 1.
        folder: where the processes meet; nobody else may look into it.
        loads: of all of them.
    """

    number: int
    folder: Path
    loads: Loads

    def keep_settings(self, settings: Settings) -> None:
        """Note the settings that are in force, for a process that takes the place of one of these."""
        fresh = self.folder / f"settings-{os.getpid()}"
        fresh.write_bytes(pickle.dumps(settings))
        fresh.replace(self.folder / "settings")

    def kept_settings(self) -> Settings | None:
        """The settings that were put in force last, since the start; `None`: those of the start are."""
        try:
            written = (self.folder / "settings").read_bytes()
        except FileNotFoundError:
            return None
        settings: Settings = pickle.loads(written)  # noqa: S301  (only processes of ours may write there)
        return settings

    @property
    def hops(self) -> Path:
        """The Unix socket on which the others reach this process."""
        return self.folder / f"worker-{os.getpid()}"

    @property
    def host(self) -> Path:
        """The Unix socket of what they share where there is no Redis."""
        return self.folder / "shared"

    @property
    def recorder(self) -> Path:
        """The Unix socket of the recorder of all."""
        return self.folder / "recorder"
