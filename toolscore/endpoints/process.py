"""What a process that serves asks of its machine: descriptors, memory that goes back, and to be read by nobody."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal

__all__ = ["end_with_parent", "prepare_process"]

MAX_DESCRIPTORS = 65_536
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
LARGE_BYTES, MAX_ARENAS = 1024 * 1024, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4


def prepare_process() -> None:
    """Ask for all of it; what the machine does not give is done without."""
    _give_memory_back()
    _raise_descriptors()
    _keep_to_itself()


def end_with_parent() -> None:
    """Have the kernel ask this process to end (SIGTERM) when the one that started it is killed."""
    _ask_kernel(PR_SET_PDEATHSIG, signal.SIGTERM)


def _keep_to_itself() -> None:
    """Keep other processes of this user from reading our memory and environment, where keys and tokens stand."""
    _ask_kernel(PR_SET_DUMPABLE, 0)


def _ask_kernel(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _give_memory_back() -> None:
    """Have the C library return large buffers to the kernel when they are freed. By default it learns from the first
    ones to keep such room, and what lies above a small piece that stays is never given back.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_ARENA_MAX, MAX_ARENAS)


def _raise_descriptors() -> None:
    """Take as many descriptors as this user may have: a thousand is soon used up by connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
