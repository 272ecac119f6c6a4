"""Starts a program with fewer privileges: `python lower.py B|C|D program arguments…`.

B: an ordinary user without capabilities, who may still make user namespaces. C: and under a filter that refuses what
Docker's default profile refuses to a container without CAP_SYS_ADMIN. D: and Landlock. The user stands for us in a user
namespace of its own, so that it can read what we can read.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mcp_servers.python_executor.sandbox import layers, seccomp
from mcp_servers.python_executor.sandbox.syscalls import CLONE_NEWUSER, prctl, unshare

DOCKER_REFUSES = [
    "unshare", "setns", "mount", "umount2", "pivot_root", "mount_setattr", "ptrace", "bpf", "keyctl",
    "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "init_module",
    "chroot", "personality",
]  # fmt: skip


def become_ordinary() -> None:
    ready_read, ready_write = os.pipe()
    pid, us = os.getpid(), (os.geteuid(), os.getegid())
    mapper = os.fork()
    if mapper == 0:
        os.close(ready_write)
        os.read(ready_read, 1)
        layers.map_user_ids(pid, single=us)
        os._exit(0)
    unshare(CLONE_NEWUSER)
    os.close(ready_write)
    os.waitpid(mapper, 0)
    os.close(ready_read)
    assert os.getuid() == 1000


def docker_filter(*more: str) -> bytes:
    numbers = seccomp.NUMBERS
    program = seccomp._head()
    for name in (*DOCKER_REFUSES, *more):
        program += [(seccomp.JUMP_EQ, 0, 1, numbers[name]), seccomp._refuse(errno.EPERM)]
    program += [(seccomp.JUMP_EQ, 0, 1, numbers["clone3"]), seccomp._refuse(errno.ENOSYS)]
    program += [
        (seccomp.JUMP_EQ, 0, 3, numbers["clone"]),
        seccomp._argument(0),
        (seccomp.JUMP_SET, 0, 1, seccomp.CLONE_NEW_ANYTHING),
        seccomp._refuse(errno.EPERM),
        seccomp._return(seccomp.ALLOW),
    ]
    return seccomp._assemble(program)


if __name__ == "__main__":
    tier, command = sys.argv[1], sys.argv[2:]
    prctl(1, 9)
    become_ordinary()
    if tier in "CD":
        seccomp.load(docker_filter(*(["landlock_create_ruleset"] if tier == "D" else [])))
    os.execv(command[0], command)
