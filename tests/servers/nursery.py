"""Starts programs for tests by forking, after the libraries that they import were imported once.

    nursery.py SOCKET      (serves until whoever started it is gone)

Most of the time of a program's start goes into its imports. A forked program runs the same code as `python -m
toolscore` does. A script that needs the official SDK is run likewise. A client sends one JSON object, with the
descriptors of stdin, stdout and stderr; it is answered with the pid, and later with the status. A client that hangs up
before has its program killed.

With TEST_COVERAGE, the beginning of a file's name, it is written there which lines `toolscore` ran.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import warnings
from collections.abc import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MAX_REQUEST = 256 * 1024


def preload() -> None:
    """Import what the programs import."""
    gc.disable()
    for name in ("toolscore.app.compose", "toolscore.endpoints.api", "httpx", "rich.table", "rich.console", "uvloop",
                 "cryptography.fernet", "jwt", "throttled.asyncio"):  # fmt: skip
        __import__(name)
    __import__("toolscore.cli.main").cli.main.make_app()
    if "TEST_COVERAGE" in os.environ:
        __import__("coverage")
    gc.collect()
    gc.freeze()
    gc.enable()


def measured(data_file: str) -> Callable[[], None]:
    """Have the lines noted that run from now on. Returns what saves them."""
    import coverage

    noted = coverage.Coverage(data_file, data_suffix=True, config_file=f"{ROOT}/pyproject.toml")
    noted.start()

    def save() -> None:
        noted.stop()
        noted.save()

    return save


def become(request: dict[str, object], descriptors: list[int]) -> None:
    """Be the program, in the forked process. Does not return."""
    code = 1
    data_file, save = os.environ.get("TEST_COVERAGE"), None
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        for name in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
        os.chdir(str(request["cwd"]))
        os.environ.clear()
        os.environ.update(request["env"])  # type: ignore[arg-type, call-overload]
        script = request.get("script")
        sys.argv = [str(script or "toolscore"), *request["arguments"]]  # type: ignore[misc]
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", errors=errors)  # noqa: SIM115
            for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
        )
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        if script:
            warnings.simplefilter("ignore")
            sys.path[0] = os.path.dirname(str(script))
            runpy.run_path(str(script), run_name="__main__")
        else:
            if data_file and os.environ.get("TEST_COVERAGE") != "":  # empty: not of this one
                save = measured(data_file)
            runpy.run_module("toolscore", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        try:
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            if save:
                save()
        finally:
            os._exit(code)


def received(client: socket.socket) -> tuple[bytes, list[int]]:
    """A request and its descriptors; nothing when the client has hung up, an answer of ours unread or not."""
    try:
        data, descriptors, _, _ = socket.recv_fds(client, MAX_REQUEST, 3)
    except ConnectionError:
        return b"", []
    return data, descriptors


def tell(client: socket.socket, **answer: int) -> None:
    """Answer a client. One that has hung up is noticed at the next read."""
    with contextlib.suppress(OSError):
        client.send(json.dumps(answer).encode())


def main() -> None:
    parent = os.getppid()
    preload()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"{sys.argv[1]}.new")
    listening.listen(16)
    os.rename(f"{sys.argv[1]}.new", sys.argv[1])  # whoever sees it may connect
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}
    born: dict[int, socket.socket] = {}
    while os.getppid() == parent:
        ready, _, _ = select.select([listening, wake, *clients.values()], [], [], 1.0)
        if wake in ready:
            wake.recv(4096)
        for one in ready:
            if one is listening:
                client, _ = listening.accept()
                clients[client.fileno()] = client
            elif one is not wake:
                data, descriptors = received(one)
                if not data:
                    for pid in [pid for pid, client in born.items() if client is one]:
                        os.kill(pid, signal.SIGKILL)
                    del clients[one.fileno()]
                    one.close()
                    continue
                request = json.loads(data)
                if request.get("script"):
                    import mcp.server.stdio  # only what such scripts need, and when one comes
                    import mcp.server.streamable_http  # noqa: F401
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    become(request, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                born[pid] = one
                tell(one, pid=pid)
        while born:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            tell(born.pop(pid), pid=pid, status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
