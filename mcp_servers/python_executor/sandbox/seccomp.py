"""Which system calls the code may make: an allow-list as a BPF program. Standard library only.

The filter is loaded once, in the zygote, and inherited. It must therefore allow the few calls with which the zygote
confines a child (`chroot`, `setresuid`, `mount`, …); the child has lost the capabilities that they need by the time
user code runs. The kernel runs the whole program for each call number once and remembers which are always allowed.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from mcp_servers.python_executor.sandbox.syscalls import (
    ARCHITECTURES,
    CLONE_NEWPID,
    MACHINE,
    NUMBERS,
    PR_SET_PDEATHSIG,
    prctl,
    raw,
)

__all__ = ["child_filter", "load", "zygote_filter"]

PR_SET_NO_NEW_PRIVS = 38
METADATA = "chmod fchmod fchmodat utime utimes"
SECCOMP_SET_MODE_FILTER = 1

PROCESSES = ["execve", "execveat", "setpgid", "vfork", "fork"]
XATTR = (
    "setxattr", "lsetxattr", "fsetxattr", "getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr",
)  # fmt: skip
CHECKED = (
    "clone", "clone3", "socket", "socketpair", "ioctl", "prctl", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "landlock_create_ruleset", "pivot_root", "mount_setattr", "unshare", "setns", "ptrace",
    "bpf", "keyctl", "perf_event_open", "userfaultfd", "init_module", "personality", *XATTR,
)  # fmt: skip
"""In the table for the rules below, or only so that they have a name."""

ALLOW = 0x7FFF0000
KILL = 0x80000000
SIGCHLD = 17
CLONE_THREAD = 0x00010000
CLONE_NEW_ANYTHING = 0x7E020080
AF_UNIX = 1
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX"""
PRCTLS = (PR_SET_PDEATHSIG, 15, 16, PR_SET_NO_NEW_PRIVS, 0x53564D41)
"""parent-death signal, set and get the name, no new privileges, name a mapping (glibc)"""

FCNTLS = (0, 1, 2, 3, 4, 9, 1030, 1032, 1034)
"""Duplicate, flags, ask for owner, pipe size and seals. Not: be told of others' accesses (F_NOTIFY), keep others
from opening (F_SETLEASE), have signals sent (F_SETOWN, F_SETSIG)."""
F_GETLK, F_SETLK, F_SETLKW = 5, 6, 7

# BPF: the few instructions we need
LOAD, JUMP, JUMP_EQ, JUMP_GT, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06
NUMBER_OFFSET, ARCH_OFFSET, ARGS_OFFSET = 0, 4, 16
TIMES_OFFSET = ARGS_OFFSET + 8 * 2
"""utimensat's third argument, a pointer; none means now."""
X32_BIT = 0x40000000

Instruction = tuple[int, int, int, int]


def _return(value: int) -> Instruction:
    return (RETURN, 0, 0, value)


def _refuse(number: int) -> Instruction:
    return _return(0x00050000 | number)


def _argument(index: int) -> Instruction:
    """Load the low half of an argument."""
    return (LOAD, 0, 0, ARGS_OFFSET + 8 * index)


def _one_of(argument: int, values: tuple[int, ...], otherwise: int) -> list[Instruction]:
    """Allow when the argument is one of these values."""
    program = [_argument(argument)]
    for value in values:
        program += [(JUMP_EQ, 0, 1, value), _return(ALLOW)]
    return [*program, _refuse(otherwise)]


def _fcntl(processes: bool) -> list[Instruction]:
    """POSIX locks are between processes, so code that has one only gets each at once, and the kernel never hears of it:
    a lock on a file of the machine would be met by others, and its memory counted for nobody.

    With processes they are real. A file of the machine can then be locked for reading alone, which none of them can
    find out. Locks of other kinds (OFD, leases) are refused.
    """
    locks = (F_SETLK, F_SETLKW)
    program = [_argument(1)]
    for command in locks:
        program += [(JUMP_EQ, 0, 1, command), _return(ALLOW) if processes else _refuse(0)]
    return [*program, *_one_of(1, FCNTLS if processes else (*FCNTLS, F_GETLK), errno.EINVAL)]


def _clone(new_pid: bool, processes: bool) -> list[Instruction]:
    """Threads always. A fork into a new pid namespace takes a capability that user code has lost."""
    zygotes_own = (CLONE_NEWPID if new_pid else 0) | SIGCHLD
    program = [_argument(0), (JUMP_EQ, 0, 1, zygotes_own), _return(ALLOW)]
    program += [(JUMP_SET, 0, 1, CLONE_NEW_ANYTHING), _refuse(errno.EPERM)]
    if processes:
        return [*program, _return(ALLOW)]
    return [*program, (JUMP_SET, 0, 1, CLONE_THREAD), _return(ALLOW), _refuse(errno.EPERM)]


def _dispatch(leaves: list[tuple[int, int, list[Instruction]]]) -> list[Instruction]:
    """Binary search over (first, last, program), sorted; a number in no leaf is refused."""
    if len(leaves) == 1:
        first, last, program = leaves[0]
        if first == last:
            return [(JUMP_EQ, 1, 0, first), _refuse(errno.EPERM), *program]
        return [(JUMP_GE, 0, 1, first), (JUMP_GT, 0, 1, last), _refuse(errno.EPERM), *program]
    middle = len(leaves) // 2
    below, above = _dispatch(leaves[:middle]), _dispatch(leaves[middle:])
    if len(below) <= 255:
        return [(JUMP_GE, len(below), 0, leaves[middle][0]), *below, *above]
    return [(JUMP_GE, 0, 1, leaves[middle][0]), (JUMP, 0, 0, len(below)), *below, *above]


def zygote_filter(*, processes: bool, new_pid: bool) -> bytes:
    """The allow-list.

    Args:
        processes: whether the code may start processes.
        new_pid: whether each child gets a pid namespace.
    """
    names = set(NUMBERS) - set(CHECKED) - set(PROCESSES)
    if processes:
        names |= set(PROCESSES)
    programs = {NUMBERS[name]: [_return(ALLOW)] for name in names}
    special = {
        "clone": _clone(new_pid, processes),
        "clone3": [_refuse(errno.ENOSYS)],  # its flags are in memory, where a filter cannot look: libc falls back
        "socket": [_refuse(errno.EACCES)],
        "socketpair": _one_of(0, (AF_UNIX,), errno.EACCES),
        "setsockopt": [_refuse(errno.EPERM)],  # larger buffers would be memory that no limit of a call counts
        "fcntl": _fcntl(processes),
        "flock": [_refuse(errno.ENOLCK)],
        "ioctl": _one_of(1, IOCTLS, errno.ENOTTY),
        "prctl": _one_of(0, PRCTLS, errno.EPERM),
        "io_uring_setup": [_refuse(errno.ENOSYS)],
        **{name: [_refuse(errno.ENOTSUP)] for name in XATTR},  # whoever copies files can do without
    }
    programs.update({NUMBERS[name]: program for name, program in special.items()})
    leaves: list[tuple[int, int, list[Instruction]]] = []
    for number in sorted(programs):
        program = programs[number]
        if leaves and leaves[-1][1] + 1 == number and leaves[-1][2] == program == [_return(ALLOW)]:
            leaves[-1] = (leaves[-1][0], number, program)
        else:
            leaves.append((number, number, program))
    return _assemble([*_head(), *_dispatch(leaves)])


def child_filter(*, truncate: bool) -> tuple[bytes, bytes]:
    """For a child without namespaces: no processes, signals and limits for itself only, and no file's mode or times.

    Landlock says nothing about modes and times. They are not changed, and the caller is told that they were: what
    copies files sets them, and nobody else sees these files. Times of now are refused: `touch` then makes the file.

    Args:
        truncate: whether Landlock looks after `truncate`.

    Returns:
        The program, and the indexes of the instructions whose operand becomes the child's own pid.
    """
    program = _head()
    places = []
    for names, argument in (("kill tgkill", False), ("sched_setaffinity prlimit64", True)):
        for name in names.split():
            body = [_argument(0)]
            if argument:  # 0 is oneself for these
                body += [(JUMP_EQ, 0, 1, 0), _return(ALLOW)]
            body += [(JUMP_EQ, 0, 1, 0), _return(ALLOW), _refuse(errno.EPERM)]
            program.append((JUMP_EQ, 0, len(body), NUMBERS[name]))
            places.append(len(program) + len(body) - 3)
            program += body
    threads_only = [_argument(0), (JUMP_SET, 0, 1, CLONE_THREAD), _return(ALLOW), _refuse(errno.EPERM)]
    program += [(JUMP_EQ, 0, len(threads_only), NUMBERS["clone"]), *threads_only]
    keep_dying = [_argument(0), (JUMP_EQ, 0, 1, PR_SET_PDEATHSIG), _refuse(errno.EPERM), _return(ALLOW)]
    program += [(JUMP_EQ, 0, len(keep_dying), NUMBERS["prctl"]), *keep_dying]
    now = [(LOAD, 0, 0, TIMES_OFFSET), (JUMP_EQ, 0, 3, 0), (LOAD, 0, 0, TIMES_OFFSET + 4), (JUMP_EQ, 0, 1, 0)]
    now += [_refuse(errno.EPERM), _refuse(0)]
    program += [(JUMP_EQ, 0, len(now), NUMBERS["utimensat"]), *now]
    more = "fork vfork waitid" if truncate else "fork vfork waitid truncate"
    for names, number in ((more, errno.EPERM), (METADATA, 0)):
        for name in names.split():
            if name in NUMBERS:
                program += [(JUMP_EQ, 0, 1, NUMBERS[name]), _refuse(number)]
    program.append(_return(ALLOW))
    return _assemble(program), bytes(places)


def _head() -> list[Instruction]:
    """Kill whoever speaks another machine's language, then load the call's number."""
    head = [(LOAD, 0, 0, ARCH_OFFSET), (JUMP_EQ, 1, 0, ARCHITECTURES[MACHINE]), _return(KILL)]
    head += [(LOAD, 0, 0, NUMBER_OFFSET)]
    if MACHINE == "x86_64":
        head += [(JUMP_GE, 0, 1, X32_BIT), _return(KILL)]
    return head


def _assemble(program: list[Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def load(program: bytes) -> None:
    """Put a filter on this thread, for good.

    Raises:
        OSError: the kernel refuses.
    """

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    buffer = ctypes.create_string_buffer(program)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    raw("seccomp", SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(Program(len(program) // 8, ctypes.addressof(buffer))))
