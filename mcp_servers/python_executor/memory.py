"""How much memory a zygote and its children take."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["family_memory_kb"]


def family_memory_kb(pid: int) -> dict[str, int]:
    """Read the proportional memory of a zygote and of its children. Blocks: one file of /proc for each process.

    Args:
        pid: of the process that the server started; the zygote may be that or its only child.

    Returns:
        In KB: `zygote`, `children`, and `private_per_child`, the average of what a child shares with nobody.
    """
    total: dict[str, int] = {"zygote": 0, "children": 0, "private_per_child": 0}
    family = [(pid, 0)]
    privates = []
    while family:
        one, depth = family.pop()
        with contextlib.suppress(OSError, ValueError):
            fields = dict(line.split()[:2] for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:])
            total["zygote" if depth < 2 else "children"] += int(fields["Pss:"])
            if depth >= 2:
                privates.append(int(fields["Private_Dirty:"]) + int(fields["Private_Clean:"]))
        with contextlib.suppress(OSError):
            below = Path(f"/proc/{one}/task/{one}/children").read_text().split()
            family += [(int(child), depth + 1) for child in below]
    if privates:
        total["private_per_child"] = sum(privates) // len(privates)
    return total
