"""Which layers of confinement this machine gives, found by trying each in a child. Standard library only.

A setting that says "allowed" proves nothing: Ubuntu's AppArmor lets `unshare` pass and refuses the mount after it.

======  ==============================================================================================================
tier    what stands between the code and the machine
======  ==============================================================================================================
A       all namespaces, a user id for each child, its own root, Landlock, seccomp, limits (root, or a range of user ids)
B       the same with one user id for all (an ordinary user who may make user namespaces)
C       Landlock, seccomp with the child's own pid in it, limits; no namespaces (a container without privileges)
D       seccomp and limits: any file that the user may read could be read. Refused
E       limits only. Refused
======  ==============================================================================================================

``python -m mcp_servers.python_executor doctor`` prints this page's answers for the machine it runs on.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from mcp_servers.python_executor.sandbox import landlock, seccomp
from mcp_servers.python_executor.sandbox.syscalls import (
    ARCHITECTURES,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MACHINE,
    MS_PRIVATE,
    MS_REC,
    libc,
    mount,
    unshare,
)

__all__ = ["UserMapper", "map_user_ids", "tier_of", "try_layers", "write"]

NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
UID_BASE = 100_000
UID_COUNT = 65_536
PR_GET_SECCOMP = 21
MAX_DETAIL_BYTES = 400


def try_layers() -> dict[str, dict[str, object]]:
    """Try each layer in a child of its own.

    Returns:
        name → {"ok": bool, "detail": str}
    """
    trials: dict[str, Callable[[], str]] = {
        "user_ids": _try_user_ids,
        "namespaces": _try_namespaces,
        "landlock": _try_landlock,
        "seccomp": _try_seccomp,
    }
    return {name: _in_child(trial) for name, trial in trials.items()}


def tier_of(layers: dict[str, dict[str, object]]) -> str:
    """Return the best tier that these layers make."""
    has = {name for name, layer in layers.items() if layer["ok"]}
    if {"landlock", "seccomp", "namespaces"} <= has:
        return "A" if "user_ids" in has else "B"
    if {"landlock", "seccomp"} <= has:
        return "C"
    return "D" if "seccomp" in has else "E"


def map_user_ids(pid: int, *, single: tuple[int, int] | None) -> None:
    """Say which users a new user namespace has: a range of its own, or one that stands for this user and group.

    Raises:
        OSError: we may not.
    """
    if single is not None:
        write(f"/proc/{pid}/setgroups", "deny")
    for name, own in zip(("uid_map", "gid_map"), single or (0, 0), strict=True):
        write(f"/proc/{pid}/{name}", f"1000 {own} 1" if single is not None else f"0 {UID_BASE} {UID_COUNT}")


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _in_child(trial: Callable[[], str]) -> dict[str, object]:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = "+" + trial()
        except BaseException as exc:
            answer = f"-{exc}"
        os.write(write_end, answer.encode()[:MAX_DETAIL_BYTES])
        os._exit(0)
    os.close(write_end)
    answer = os.read(read_end, MAX_DETAIL_BYTES).decode("utf-8", "replace")
    os.close(read_end)
    os.waitpid(pid, 0)
    return {"ok": answer[:1] == "+", "detail": answer[1:]}


def _try_namespaces() -> str:
    """Make them all, mount in them, and start a process in them, as the zygote will."""
    us = os.geteuid(), os.getegid()  # nobody, as soon as we have a namespace without users
    if us[0] == 0:
        unshare(NAMESPACES & ~CLONE_NEWUSER)
    else:
        unshare(NAMESPACES)
        map_user_ids(os.getpid(), single=us)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs")  # noqa: S108 - a mount that only we see
    pid = os.fork()
    if pid == 0:
        os._exit(0 if os.getpid() == 1 else 1)
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("a process in the new pid namespace does not have pid 1")
    return "user, mount, pid, network, ipc and uts namespaces"


def _try_user_ids() -> str:
    """Map a range of user ids into a user namespace and become one of them."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_write)
            unshare(CLONE_NEWUSER)
            os.write(ready_write, b"+")
            os.read(go_read, 1)
            os.setresuid(1005, 1005, 1005)
            os._exit(0)
        except OSError as exc:
            os.write(ready_write, f"-{exc}".encode())
            os._exit(1)
    os.close(ready_write)
    os.close(go_read)
    said = os.read(ready_read, MAX_DETAIL_BYTES)
    try:
        if said != b"+":
            raise OSError(said[1:].decode())
        map_user_ids(pid, single=None)
    finally:
        os.close(go_write)
        status = os.waitpid(pid, 0)[1]
    if status != 0:
        raise OSError("cannot become a user of the mapped range")
    return f"user ids {UID_BASE} to {UID_BASE + UID_COUNT - 1}"


def _try_landlock() -> str:
    version = landlock.abi()
    ruleset = landlock.create_ruleset(version)
    libc.prctl(seccomp.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock.restrict_self(ruleset)
    try:
        os.listdir("/")
    except PermissionError:
        return f"version {version}" + (", signals too" if version >= 6 else "")
    raise OSError("a ruleset without grants let a folder be listed")


def _try_seccomp() -> str:
    """Load the real filter and see it refuse."""
    if MACHINE not in ARCHITECTURES:
        raise OSError(f"no filter is written for {MACHINE}: use the engine `container`")
    program = seccomp.zygote_filter(processes=False, new_pid=True)
    seccomp.load(program)
    try:
        unshare(CLONE_NEWUTS)
    except PermissionError:
        return f"an allow-list of {len(program) // struct.calcsize('HBBI')} instructions"
    raise OSError("the filter let through what it should refuse")


class UserMapper:
    """A process that stays outside of the namespaces we are about to enter, and says which users they have."""

    def __init__(self, *, single: bool) -> None:
        self._answer, answer = os.pipe()
        wait, self._go = os.pipe()
        pid = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._go)
            said = b"+"
            if os.read(wait, 1):
                try:
                    map_user_ids(pid, single=(os.geteuid(), os.getegid()) if single else None)
                except OSError as exc:
                    said = str(exc).encode()
                os.write(answer, said)
            os._exit(0)
        os.close(wait)
        os.close(answer)

    def map(self) -> None:
        """Have it done, once we are inside.

        Raises:
            OSError: the kernel refuses.
        """
        os.write(self._go, b"x")
        said = os.read(self._answer, 400)
        os.close(self._answer)
        os.close(self._go)
        os.waitpid(self._pid, 0)
        if said != b"+":
            raise OSError(f"cannot map user ids: {said.decode()}")
