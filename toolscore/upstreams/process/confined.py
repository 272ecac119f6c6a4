"""The last step into a confined server: limits, a filter of system calls, another user, its variables; then the server.

    python -I -S confined.py '{"uid", "home", "memory", "processes", "denied_ports", "folders"}' PROGRAM [ARGUMENT…]

Standard library only. Runs inside the server's own view (bubblewrap has made it), so that limits count its own
processes alone. The server's variables come under a prefix: they must not steer the programs before it (`LD_DEBUG`, …).
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

__all__ = ["PREFIX", "main"]

PREFIX = "TOOLSCORE_SERVER_ENV_"
MAX_FILE_BYTES = 1 << 30
MAX_DESCRIPTORS = 4096

EPERM, ENOSYS = 1, 38
CLONE_NEWUSER = 0x10000000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
KEYCTL_JOIN_SESSION_KEYRING = 1

# Keys, namespaces, mounts, other processes, and parts of the kernel that no server needs and exploits do.
DENIED = {
    "x86_64": (
        0xC000003E, 56,
        (250, 248, 249, 272, 308, 165, 166, 155, 321, 298, 323, 101, 246, 175, 313, 304, 428, 429, 430, 432, 425),
    ),
    "aarch64": (
        0xC00000B7, 220,
        (219, 217, 218, 97, 268, 40, 39, 41, 280, 241, 282, 117, 104, 105, 273, 265, 428, 429, 430, 432, 425),
    ),
}  # fmt: skip
CLONE3 = 435
KEYCTL = {"x86_64": 250, "aarch64": 219}


def limit(memory: int, processes: int) -> None:
    """Set limits: of each process, but for the number of processes."""
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_NPROC, processes),
    ):
        _, hard = resource.getrlimit(kind)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))


def leave_the_keyring(libc: ctypes.CDLL) -> None:
    """A session keyring of its own: the gateway's may hold keys."""
    number = KEYCTL.get(platform.machine())
    if number is not None:
        libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None)


def filter_calls(libc: ctypes.CDLL) -> None:
    """Refuse system calls that no server needs (seccomp). Other machines than these two go without."""
    known = DENIED.get(platform.machine())
    if known is None:
        return
    arch, clone, denied = known
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, missing = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS
    tail = [
        (equal, 0, 1, CLONE3), (answer, 0, 0, missing),  # then libraries take clone, whose flags can be read
        (equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 1, CLONE_NEWUSER), (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]  # fmt: skip
    checks = []
    for number in denied:
        checks += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    program = [
        (load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, refuse),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse),
        *checks, *tail,
    ]  # fmt: skip
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    held = ctypes.create_string_buffer(code)
    whole = struct.pack("@HP", len(program), ctypes.addressof(held))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(whole), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def keep_off(libc: ctypes.CDLL, ports: list[int]) -> None:
    """With a network: never to these TCP ports, nor to others' abstract sockets (Landlock, where the kernel has it)."""
    create, add, restrict = 444, 445, 446
    version = libc.syscall(create, None, 0, 1)
    if version < 4 or not ports:
        return
    connect, scopes = 2, 3 if version >= 6 else 0
    attributes = struct.pack("=QQQ", 0, connect, scopes)[: 24 if version >= 6 else 16]
    rules = libc.syscall(create, ctypes.c_char_p(attributes), len(attributes), 0)
    if rules < 0:
        return
    rule = (ctypes.c_uint64 * 2)(connect, 0)
    denied = set(ports)
    for port in range(65536):
        if port not in denied:
            rule[1] = port
            libc.syscall(add, rules, 2, rule, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.syscall(restrict, rules, 0)
    os.close(rules)


def main() -> None:
    """Confine this process and become the server."""
    orders, command = json.loads(sys.argv[1]), sys.argv[2:]
    environment = {key[len(PREFIX) :]: value for key, value in os.environ.items() if key.startswith(PREFIX)}
    os.closerange(3, 1 << 20)
    libc = ctypes.CDLL(None, use_errno=True)
    for path, identity in orders["folders"].items():
        shown = os.stat(path)
        if [shown.st_dev, shown.st_ino] != identity:
            os.write(2, f"{path} was exchanged while this server was started\n".encode())
            os._exit(126)
    leave_the_keyring(libc)
    limit(orders["memory"], orders["processes"])
    keep_off(libc, orders["denied_ports"])
    if orders["uid"] and os.getuid() == 0:
        os.setgroups([])
        os.setresgid(orders["uid"], orders["uid"], orders["uid"])
        os.setresuid(orders["uid"], orders["uid"], orders["uid"])
    try:
        os.chdir(orders["home"])
        filter_calls(libc)
        os.execve(command[0], command, environment)
    except OSError as exc:
        os.write(2, f"cannot start {command[0]}: {exc.strerror}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    main()
