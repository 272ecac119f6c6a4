"""Arranges the zygote's memory so that forks are cheap. Inside the sandbox; standard library only.

A fork copies page tables, and each page that a child writes to is copied by a page fault. So a child should find few,
large pages, and write to few of them. `ARCHITECTURE.md` has the figures.
"""

from __future__ import annotations

import gc
import os
import resource
import struct
import sys
from types import ModuleType
from typing import Any

from mcp_servers.python_executor.sandbox.syscalls import PR_SET_DUMPABLE, prctl

__all__ = ["PAGE", "arrange"]

PAGE = resource.getpagesize()
MAX_TRAINED_BYTES = 32 * 1024
"""What the pipe from a sample takes for certain: the parent reads it after the sample has ended."""
MAX_TOUCHED = 150
"""Pages that a spare takes for itself before it is asked: they are its private memory."""


def arrange(
    helper: ModuleType | None, child: dict[str, Any], proc: int, *, outputs: str, huge_pages: bool
) -> tuple[Any, bytes]:
    """Make forks cheap: nothing to collect, no holes to fill, reference counts that stay, a dozen large pages.

    Call it last before the first fork: what is made afterwards is not arranged.

    Args:
        helper: the compiled fork server; `None`: only the garbage collector is taken care of.
        child: the namespace of `child.py`.
        proc: a descriptor of /proc.
        outputs: an empty folder, for samples to run in.
        huge_pages: whether to lay the memory out in large pages.

    Returns:
        What the children find prepared, and the addresses of the pages that every call writes to (8 bytes each).
    """
    gc.collect()
    gc.disable()
    if helper is not None:
        _fill_pools()
        helper.fill_heap()
    prepared = child["prepare"](outputs)
    child["arm_random"]()
    gc.freeze()
    if helper is None:
        return prepared, b""
    gc.unfreeze()
    everything = gc.get_objects()
    gc.freeze()
    helper.immortalize(everything)
    del everything
    prctl(PR_SET_DUMPABLE, 1)  # or /proc/self is not ours to read after the change of user
    if not huge_pages:
        return prepared, b""
    helper.flatten(proc)
    return prepared, _train(helper, proc, child, prepared, outputs)


def _train(helper: ModuleType, proc: int, child: dict[str, Any], prepared: Any, outputs: str) -> bytes:
    """Run samples in children and see which of their pages are no longer shared: most calls write to the same."""
    ranges = _writable(proc)
    seen: dict[int, int] = {}
    samples = child["SAMPLES"]
    for code in samples:
        request = child["encode_request"](child["Request"](code))
        read_end, write_end = os.pipe()
        if helper.fork_and_wait():
            child["answer_request"](request, prepared.namespace, "<code>", outputs)
            os.write(write_end, _own_pages(proc, ranges)[:MAX_TRAINED_BYTES])
            os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as file:
            for (page,) in struct.iter_unpack("Q", file.read()):
                seen[page] = seen.get(page, 0) + 1
    common = sorted(page for page, times in seen.items() if times * 2 > len(samples))
    return struct.pack(f"{len(common[:MAX_TOUCHED])}Q", *common[:MAX_TOUCHED])


def _writable(proc: int) -> list[tuple[int, int]]:
    """The private, writable ranges of our memory, without the stack."""
    with open(os.open("self/maps", os.O_RDONLY, dir_fd=proc)) as file:
        lines = [line.split() for line in file]
    kept = [words for words in lines if words[1][1] == "w" and words[1][3] == "p" and words[-1] != "[stack]"]
    return [(int(start, 16), int(end, 16)) for start, end in (words[0].split("-") for words in kept)]


def _own_pages(proc: int, ranges: list[tuple[int, int]]) -> bytes:
    """The pages of these ranges that this process has for itself (bits 63 and 56 of /proc/self/pagemap)."""
    pages = bytearray()
    fd = os.open("self/pagemap", os.O_RDONLY, dir_fd=proc)
    for start, end in ranges:
        entries = os.pread(fd, (end - start) // PAGE * 8, start // PAGE * 8)
        for at in range(7, len(entries), 8):
            if entries[at] & 0x81 == 0x81:
                pages += struct.pack("Q", start + at // 8 * PAGE)
    return bytes(pages)


def _fill_pools() -> None:
    """Use up the free blocks of Python's own allocator, so that children allocate from fresh, contiguous pages."""
    kept = []
    for _ in range(3):
        read_end, write_end = os.pipe()
        stderr = os.dup(2)
        os.dup2(write_end, 2)
        sys._debugmallocstats()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(write_end)
        with open(read_end, "rb") as file:
            lines = file.read().decode().splitlines()
        for line in lines:  # class, block size, pools, blocks in use, blocks available
            words = line.split()
            if len(words) == 5 and words[0].isdigit() and words[1].isdigit():
                size, available = int(words[1]), int(words[4])
                if size >= 48 and available:
                    kept.append([bytes(size - 33) for _ in range(available)])
                elif size == 32 and available:
                    kept.append([1e300 / (number + 1) for number in range(available)])  # type: ignore[misc]
    _kept_for_ever.append(kept)


_kept_for_ever: list[object] = []
