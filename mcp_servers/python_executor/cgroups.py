"""Control groups for the sandbox's children: an honest bound on memory and processes, where the machine delegates it.

Limits of the process itself (`RLIMIT_AS`) come first and give a clean `MemoryError`; the group is for what they cannot
see: files in memory, and many processes at once. Version 2 and version 1; where neither can be had, `detail` says why.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

__all__ = ["Cgroups", "open_cgroups"]

_numbers = itertools.count(1)


class Cgroups:
    """A group for each slot, below one folder of ours in each hierarchy.

    Args:
        memory, pids: folders to put the groups in; the same in version 2; `None`: not delegated.
        detail: one line for people.
    """

    def __init__(self, memory: Path | None, pids: Path | None, *, unified: bool, detail: str) -> None:
        self._memory, self._pids, self._unified, self.detail = memory, pids, unified, detail
        self._slots: list[list[Path]] = []
        self.fds: list[list[int]] = []
        """For each slot the descriptors that a child writes itself into; -1 for one that is not there."""
        self._kills: dict[int, int] = {}

    def make(self, count: int, *, memory_bytes: int, processes: int) -> None:
        """Make a group for each slot.

        Raises:
            OSError: the kernel refuses.
        """
        folders = [folder for folder in dict.fromkeys((self._memory, self._pids)) if folder is not None]
        for number in range(count):
            made = []
            fds = []
            for folder in folders:
                group = folder / f"slot-{number}"
                group.mkdir()
                if folder == self._memory:
                    name = "memory.max" if self._unified else "memory.limit_in_bytes"
                    (group / name).write_text(str(memory_bytes))
                    if self._unified:
                        with contextlib.suppress(OSError):
                            (group / "memory.swap.max").write_text("0")
                if folder == self._pids:
                    (group / "pids.max").write_text(str(processes))
                made.append(group)
                fds.append(os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            self._slots.append(made)
            self.fds.append([*fds, -1, -1][:2])
            self._kills[number] = 0

    def out_of_memory(self, slot: int) -> bool:
        """Whether the kernel killed in this slot for its memory since the last time we asked."""
        if self._memory is None or slot >= len(self._slots):
            return False
        group = self._memory / f"slot-{slot}"
        try:
            text = (group / ("memory.events" if self._unified else "memory.oom_control")).read_text()
        except OSError:
            return False
        kills = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
        new, self._kills[slot] = kills > self._kills[slot], kills
        return new

    def close(self) -> None:
        """Remove the groups; whoever was in them has ended."""
        for fds in self.fds:
            for fd in fds:
                if fd >= 0:
                    os.close(fd)
        for group in (group for made in self._slots for group in made):
            with contextlib.suppress(OSError):
                group.rmdir()
        for folder in {self._memory, self._pids} - {None}:
            assert folder is not None
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._slots, self.fds = [], []


def open_cgroups() -> Cgroups:
    """Find out what this machine delegates to us, by making a group and setting its limits."""
    name = f"toolscore-{os.getpid()}-{next(_numbers)}"
    own = _own_groups()
    unified = own.get("")
    if unified is not None:
        folder = _try(unified / name, "memory.max")
        if folder is not None:
            return Cgroups(folder, folder, unified=True, detail="memory and processes (cgroup v2)")
    memory = _try(own["memory"] / name, "memory.limit_in_bytes") if "memory" in own else None
    pids = _try(own["pids"] / name, "pids.max", probe=False) if "pids" in own else None
    if memory is None and pids is None:
        return Cgroups(None, None, unified=False, detail="no group is delegated to us: process limits only")
    bounds = " and ".join(what for what, has in (("memory", memory), ("processes", pids)) if has is not None)
    return Cgroups(memory, pids, unified=False, detail=f"{bounds} (cgroup v1)")


def _try(folder: Path, limit: str, *, probe: bool = True) -> Path | None:
    try:
        folder.mkdir()
    except OSError:
        return None
    _remove_dead(folder.parent)
    try:
        test = folder / "slot-test"
        test.mkdir()
        try:
            (test / limit).write_text("1073741824" if probe else "64")
        finally:
            test.rmdir()
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    return folder


def _remove_dead(parent: Path) -> None:
    """Groups that a server left behind when it was killed."""
    for folder in parent.glob("toolscore-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            for group in [*folder.glob("slot-*"), folder]:
                with contextlib.suppress(OSError):
                    group.rmdir()


def _own_groups() -> dict[str, Path]:
    """Where our own groups are mounted: controller → folder; "" is version 2."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    places: dict[str, tuple[str, str]] = {}
    for line in mounts:
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, at = left.split()[3:5]
        if kind == "cgroup2":
            places[""] = (root, at)
        elif kind == "cgroup":
            for controller in options.split(","):
                places.setdefault(controller, (root, at))
    found = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in places:
                root, at = places[controller]
                inside = path.removeprefix(root.rstrip("/")) if root != "/" else path
                found[controller] = Path(at + inside)
    return found
