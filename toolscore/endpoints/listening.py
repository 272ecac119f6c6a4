"""The sockets of the doors, and the HTTP server on them: alone, or with other processes on the same sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import structlog
import uvicorn

from toolscore.app.worker import Worker
from toolscore.core.tasks import TaskSet
from toolscore.endpoints.guard import ConnectionGuard, GuardedHttp
from toolscore.endpoints.tls import Certificate

__all__ = ["AddressInUse", "Server", "bind"]

log = structlog.get_logger(__name__)

HANDSHAKE_SECONDS = 10.0
LAST_HANDSHAKES_SECONDS = 1.0
ACCEPT_AGAIN_SECONDS = 0.5
COURTESY_SECONDS = 0.003
"""For so long a worker that has more connections leaves the next one to others."""


class AddressInUse(Exception):
    """A port is taken, or may not be listened on."""


class _OneByOne:
    """Takes connections one at a time, as an `asyncio.Server`, and lets those of the other processes on the same socket
    be first that have fewer. Event loops take all that wait at once, and count none before its handshake.
    """

    def __init__(
        self,
        listening: socket.socket,
        connection: Callable[[], GuardedHttp],
        guard: ConnectionGuard,
        worker: Worker | None,
        **options: Any,
    ) -> None:
        self._listening = listening
        self._connection = connection
        self._guard = guard
        self._worker = worker
        self._options = options
        self._closed = False
        self._tasks = TaskSet()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening, self._one_waits)

    def _one_waits(self) -> None:
        if self._worker is not None and self._worker.loads.has_more(self._worker.number):
            self._loop.remove_reader(self._listening)
            self._loop.call_later(COURTESY_SECONDS, self._take_and_go_on)
        else:
            self._take()

    def _take_and_go_on(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listening, self._one_waits)
            self._take()

    def _take(self) -> None:
        try:
            taken, address = self._listening.accept()
        except BlockingIOError:  # another process was first
            return
        except OSError as exc:  # no descriptor is free, or the client has gone
            log.warning("a connection cannot be taken", error=str(exc))
            self._loop.remove_reader(self._listening)
            self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._take_and_go_on)
            return
        connection = self._connection()
        if "ssl" in self._options and not self._guard.comes(connection, str(address[0])):
            taken.close()  # it could be told nothing before its handshake
        else:
            self._tasks.start(self._serve(taken, connection))

    async def _serve(self, taken: socket.socket, connection: GuardedHttp) -> None:
        try:
            taken.setblocking(False)
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(lambda: connection, taken, **self._options)
        except (OSError, TimeoutError):
            pass  # it went, or is no client of TLS
        finally:
            self._guard.has_come(connection)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._worker is not None:
                self._worker.loads.closed(self._worker.number)
            self._loop.remove_reader(self._listening)
            self._listening.close()

    async def wait_closed(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_HANDSHAKES_SECONDS):
                await self._tasks.wait()
        await self._tasks.close()


class _Counted(set[Any]):
    """The connections of a worker; the others see how many."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        worker.loads.begin(worker.number)

    def add(self, connection: Any) -> None:
        super().add(connection)
        self._worker.loads.set(self._worker.number, len(self))

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._worker.loads.set(self._worker.number, len(self))


class Server(uvicorn.Server):
    """Uvicorn without its signal handlers, as the gateway has its own; with a certificate that may change, and with
    other processes on the same socket.
    """

    def __init__(
        self, config: uvicorn.Config, guard: ConnectionGuard, certificate: Certificate | None, worker: Worker | None
    ) -> None:
        super().__init__(config)
        self._guard = guard
        self._certificate = certificate
        self._worker = worker
        if worker is not None:
            self.server_state.connections = _Counted(worker)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._certificate is None and self._worker is None:
            await super().startup(sockets)
            return
        await super().startup([])

        make: Any = self.config.http_protocol_class
        connection = partial(make, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        options: dict[str, Any] = {}
        if self._certificate is not None:
            options = {"ssl": self._certificate.context, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
        for listening in sockets or ():
            server: Any = _OneByOne(listening, connection, self._guard, self._worker, **options)
            self.servers.append(server)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        AddressInUse: with what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as exc:
        listening.close()
        raise AddressInUse(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    listening.setblocking(False)
    return listening
