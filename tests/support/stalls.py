"""What counts as a stall of the event loop on this machine, which may be a slow one."""

from __future__ import annotations

import json
import statistics
import time

__all__ = ["stall_seconds"]

STALL_SECONDS = 0.5
REFERENCE_SECONDS = 0.005
"""What `_reference` takes on a machine that is quick and quiet."""
_VALUE = {f"name {number}": [number, str(number), {"x": number / 3}] for number in range(3000)}


def stall_seconds() -> float:
    """CPU time that the loop's thread may take at a stretch: half a second, and more on a slower machine.

    Elapsed time would be the machine's, too; and CPU time is, where cores are slow or shared with other machines.
    """
    return STALL_SECONDS * max(1.0, statistics.median(_reference() for _ in range(5)) / REFERENCE_SECONDS)


def _reference() -> float:
    began = time.thread_time()
    json.loads(json.dumps(_VALUE))
    return time.thread_time() - began
