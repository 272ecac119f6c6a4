"""Clients that want no answer: silent, slow and greedy ones, from an address of their own on this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["ADDRESS", "KINDS", "hostile_clients"]

ADDRESS = "127.0.0.2"
PATIENCE_SECONDS = 180
GREED = 60
"""Requests for a large page at once, whose answers nobody reads."""


@contextmanager
def hostile_clients(port: int, *, each: int = 4) -> Iterator[Counter[str]]:
    """Have them at a gateway while the block runs.

    Args:
        each: how many of each kind at a time.

    Returns:
        How many connections of each kind the gateway ended; and of each `held: KIND`: those that it kept for a minute.
    """
    ended: Counter[str] = Counter()
    stop = threading.Event()
    threads = [
        threading.Thread(target=_again, args=(kind, play, port, stop, ended))
        for kind, play in KINDS.items()
        for _ in range(each)
    ]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def _again(kind: str, play: Play, port: int, stop: threading.Event, ended: Counter[str]) -> None:
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), 5, (ADDRESS, 0)) as connection:
                connection.settimeout(0.2)
                patience = _Patience(stop)
                with contextlib.suppress(ConnectionError, BrokenPipeError):
                    if not play(connection, patience.is_over):
                        ended[f"held: {kind}"] += not stop.is_set()
                        continue
            ended[kind] += 1
        except OSError:
            time.sleep(0.1)


class _Patience:
    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._deadline = stop, time.monotonic() + PATIENCE_SECONDS

    def is_over(self) -> bool:
        return self._stop.is_set() or time.monotonic() > self._deadline


def _closed(connection: socket.socket, over: Callable[[], bool], *, reads: bool = True) -> bool:
    """Wait until the gateway closes the connection. Returns whether it did."""
    while not over():
        if not reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            time.sleep(0.2)
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return True
            with contextlib.suppress(TimeoutError):
                connection.send(b"\r\n")
            continue
        try:
            if not connection.recv(65536):
                return True
        except TimeoutError:
            continue
    return False


def _silent(connection: socket.socket, over: Callable[[], bool]) -> bool:
    return _closed(connection, over)


def _half_a_head(connection: socket.socket, over: Callable[[], bool]) -> bool:
    connection.sendall(b"POST /execute_tool HTTP/1.1\r\nHost: localhost\r\nX-Half: ")
    return _closed(connection, over)


def _drips(connection: socket.socket, over: Callable[[], bool]) -> bool:
    connection.sendall(
        b"POST /execute_tool HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 4000\r\n\r\n"
    )
    while not over():
        connection.send(b" ")
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65536):
                return True
    return False


def _reads_nothing(connection: socket.socket, over: Callable[[], bool]) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(TimeoutError):
        connection.sendall(b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * GREED)
    return _closed(connection, over, reads=False)


def _follows_and_reads_nothing(connection: socket.socket, over: Callable[[], bool]) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(b"GET /api/v1/events/stream?since=0&events=call_finished HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return _closed(connection, over, reads=False)


Play = Callable[[socket.socket, Callable[[], bool]], bool]
KINDS: dict[str, Play] = {
    "silent": _silent,
    "half a head": _half_a_head,
    "drips": _drips,
    "reads nothing": _reads_nothing,
    "follows and reads nothing": _follows_and_reads_nothing,
}
