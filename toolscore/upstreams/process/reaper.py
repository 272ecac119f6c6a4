"""Runs one server as its child and leaves nothing of it behind. Standard library only; started with `-I -S`.

    python -I -S reaper.py LIFELINE_FD CONTAINER_FILE -- PROGRAM [ARGUMENT…]

`uvx` and `npx` start the real server as a grandchild, and servers start processes of their own. On Linux this
process is their subreaper, so whoever loses its parent becomes its child and is found. When the server exits, or the
gateway's end of the lifeline closes (it does, even after `kill -9` of the gateway), everything below is killed. A
container lives under its engine's daemon instead: its id stands in CONTAINER_FILE, and PROGRAM removes it.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CONTAINER_SECONDS = 10.0
GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Every process below this one, found through /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def signal_all(number: int, child: int) -> None:
    if sys.platform == "linux":
        for pid in descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, number)
    else:
        with contextlib.suppress(OSError):
            os.killpg(child, number)


def reap(child: int, status: int | None) -> tuple[int | None, bool]:
    """Collect whoever has exited: the server's status once known, and whether nobody is left."""
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, True
        if pid == 0:
            return status, False
        if pid == child:
            status = os.waitstatus_to_exitcode(raw)


def end_container(engine: str, file: str) -> None:
    """Remove the container whose id stands in a file, if it is still there. Bounded."""
    try:
        with open(file) as written:
            container = written.read(256).strip()
        os.unlink(file)
    except OSError:
        return
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.execv(engine, [engine, "rm", "--force", container])
        os._exit(127)
    give_up = time.monotonic() + CONTAINER_SECONDS
    while time.monotonic() < give_up:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.02)


def main() -> int:
    lifeline, container_file, command = int(sys.argv[1]), sys.argv[2], sys.argv[4:]
    os.set_inheritable(lifeline, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)  # whoever stops us means the server
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # if somebody kills this reaper with -9
        os.closerange(3, 1 << 20)  # what the gateway's libraries leave open over an exec is not the server's
        try:
            os.execvp(command[0], command)
        except OSError as exc:
            os.write(2, f"cannot start {command[0]}: {exc.strerror}\n".encode())
            os._exit(127)
    os.write(lifeline, b"%d\n" % child)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)  # only the server holds the pipes, so their end is its end
    status: int | None = None
    stop_at: float | None = None
    while True:
        ready, _, _ = select.select(
            [lifeline, woken] if stop_at is None else [woken], [], [], 0.05 if stop_at else None
        )
        if woken in ready:
            numbers = os.read(woken, 512)
            if signal.SIGTERM in numbers and stop_at is None:
                ready.append(lifeline)
        status, empty = reap(child, status)
        if empty:
            if container_file:
                end_container(command[0], container_file)
            return status if status is not None and status >= 0 else 128 - (status or 0)
        if status is not None:
            signal_all(signal.SIGKILL, child)  # the server is gone: what it left has nothing to do
        elif lifeline in ready and stop_at is None:
            signal_all(signal.SIGTERM, child)
            stop_at = time.monotonic() + GRACE_SECONDS
        if stop_at is not None and time.monotonic() > stop_at:
            signal_all(signal.SIGKILL, child)


if __name__ == "__main__":
    sys.exit(main())
