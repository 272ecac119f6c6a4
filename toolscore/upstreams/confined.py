"""The last step into a confined server: limits, then another user, then the server. Standard library only.

    python -I -S confined.py UID MEMORY_BYTES PROCESSES PROGRAM [ARGUMENT…]

Runs inside the server's own view (bubblewrap has made it): limits set there count its own processes alone.
"""

import os
import resource
import sys

__all__ = ["main"]


def main() -> None:
    uid, memory, processes = (int(text) for text in sys.argv[1:4])
    command = sys.argv[4:]
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_NPROC, processes),
    ):
        _, hard = resource.getrlimit(kind)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))
    if uid and os.getuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    try:
        os.execv(command[0], command)
    except OSError as exc:
        os.write(2, f"cannot start {command[0]}: {exc.strerror}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    main()
