"""All doors together: one HTTP port for REST, MCP, events and health, one port (and a Unix socket) for the router."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from toolscore.access.auth import Authenticator
from toolscore.app.compose import Gateway, open_gateway
from toolscore.app.files import Loaded
from toolscore.app.settings import Settings
from toolscore.app.worker import Worker
from toolscore.core.hosts import is_loopback
from toolscore.core.tasks import where_waiting
from toolscore.endpoints.front import Front
from toolscore.endpoints.guard import ConnectionGuard
from toolscore.endpoints.leases import Leases
from toolscore.endpoints.listening import AddressInUse, Server, bind
from toolscore.endpoints.process import prepare_process
from toolscore.endpoints.router import serve_router
from toolscore.endpoints.tls import Certificate
from toolscore.endpoints.uses import Uses
from toolscore.stores.database import open_database

__all__ = ["alone_in", "bind_services", "check_before_start", "create_app", "serve", "serve_sockets"]

log = structlog.get_logger(__name__)

KEEP_ALIVE_SECONDS = 620
"""Longer than balancers keep an idle connection (600 s at most), or one of their requests meets a closed one."""
ECHO_SECONDS = 1.0
"""A service manager may tell each process of ours to end, and so does the launcher."""
SHUTDOWN_SECONDS = 5
"""How long those inside may take to finish once the doors are closed."""
CLOSE_SECONDS = 60
"""How long all the rooms may take to close, beside the grace of calls: then this process ends as it is."""
MAX_TOLD = 20
LOG_SECONDS = 1.0
"""A thread writes the log."""


def create_app(gateway: Gateway, leases: Leases | None = None, uses: Uses | None = None) -> Front:
    """The ASGI application of the HTTP port."""
    return Front(gateway, leases or Leases(gateway.auth), uses or Uses())


@dataclass(frozen=True)
class Doors:
    """The open doors.

    Attributes:
        uses: whether somebody uses the gateway.
    """

    uses: Uses
    _server: uvicorn.Server

    def send_away(self) -> None:
        """Have clients close their connections with their next answer, and so come back elsewhere."""
        close = (b"connection", b"close")
        state, config = self._server.server_state, self._server.config
        state.default_headers = [*state.default_headers, close]
        config.encoded_headers = [*config.encoded_headers, close]  # uvicorn makes the others of these, each second


def bind_services(settings: Settings) -> tuple[Settings, socket.socket, socket.socket]:
    """Take both ports, and put the numbers that were bound into the settings.

    Raises:
        AddressInUse: a port is taken, or reaches beyond this machine without leave.
    """
    services = settings.core_services
    sockets = []
    for name, service in (("toolscore_http", services.toolscore_http), ("toolscore_mcp", services.toolscore_mcp)):
        try:
            sockets.append(bind(service.host, service.port))
        except AddressInUse as exc:
            for bound in sockets:
                bound.close()
            variable = f"TOOLSCORE_CORE_SERVICES__{name.upper()}__PORT"
            raise AddressInUse(
                f"{exc}. Stop what holds it, or choose another port: core_services.{name}.port in ports_config.yaml, "
                f"or {variable}=0 for any free one"
            ) from exc
    ports = [bound.getsockname()[1] for bound in sockets]
    settings = settings.model_copy(
        update={
            "core_services": services.model_copy(
                update={
                    "toolscore_http": services.toolscore_http.model_copy(update={"port": ports[0]}),
                    "toolscore_mcp": services.toolscore_mcp.model_copy(update={"port": ports[1]}),
                }
            )
        }
    )
    return settings, sockets[0], sockets[1]


async def check_before_start(settings: Settings) -> None:
    """Refuse to listen beyond this machine where nobody would be asked for anything, and with a certificate that is
    none.

    Raises:
        AddressInUse, SettingsError: with what to do.
    """
    http = settings.core_services.toolscore_http
    if http.tls_cert:
        Certificate(http.tls_cert, http.tls_key)  # before anything is started
    services = settings.core_services
    open_to = [
        (name, service.host)
        for name, service in (("toolscore_http", services.toolscore_http), ("toolscore_mcp", services.toolscore_mcp))
        if not is_loopback(service.host)
    ]
    executor = settings.mcp_servers.python_executor
    if executor.port is not None and not settings.use_inprocess_python_executor and not is_loopback(executor.host):
        open_to.append(("mcp_servers.python_executor", executor.host))
    if settings.access.allow_unauthenticated and open_to:
        log.warning("whoever reaches this address may run any tool", hosts=[host for _, host in open_to])
    elif open_to:
        async with open_database(settings.storage.url, migrate=settings.storage.migrate) as database:
            if not await Authenticator(database, settings.access).any_keys():
                name, host = open_to[0]
                where = name if "." in name else f"core_services.{name}"
                raise AddressInUse(
                    f"{where}.host is {host!r}, and nobody has a key yet. Make one with `toolscore keys "
                    "create NAME`, set access.tokens for those of an authorization server, or, if whoever reaches that "
                    "address may run any tool, access.allow_unauthenticated: true"
                )


@asynccontextmanager
async def open_doors(
    gateway: Gateway, http_socket: socket.socket, router_socket: socket.socket, worker: Worker | None = None
) -> AsyncIterator[Doors]:
    """Serve on both ports; leaving closes the doors, tells those inside, and waits for them, bounded.

    Args:
        worker: which it is of the processes that listen on the same sockets; `None`: it is alone.
    """
    leases, uses = Leases(gateway.auth), Uses()
    guard = ConnectionGuard(lambda: gateway.settings.current.limits)
    config = uvicorn.Config(
        create_app(gateway, leases, uses),
        http=guard.protocol,  # type: ignore[arg-type]
        ws="websockets-sansio",
        ws_max_size=max(  # a frame over its bound is answered; one over this ends the connection
            gateway.settings.current.limits.max_frame_bytes, gateway.settings.current.limits.max_result_bytes
        ),
        ws_per_message_deflate=False,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    http = gateway.settings.current.core_services.toolscore_http
    certificate = Certificate(http.tls_cert, http.tls_key) if http.tls_cert else None
    server = Server(config, guard, certificate, worker)
    own_path = worker is None or worker.number == 1
    async with guard, leases, serve_router(gateway, leases, uses, [router_socket], own_path=own_path):
        task = asyncio.create_task(server.serve(sockets=[http_socket]))
        watching = asyncio.create_task(certificate.watch()) if certificate is not None else None
        try:
            while not server.started:
                if task.done():
                    task.result()
                    raise RuntimeError("the HTTP server ended at its start")
                await asyncio.sleep(0.005)
            yield Doors(uses, server)
        finally:
            await gateway.close_calls(gateway.settings.current.servers.grace_seconds)
            config.timeout_graceful_shutdown = SHUTDOWN_SECONDS  # those that are no calls: downloads, streams
            server.should_exit = True
            if watching is not None:
                watching.cancel()
            gateway.events.notifier.close()  # streams end; what is being called may finish
            await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def alone_in(settings: Settings) -> Iterator[None]:
    """Hold the data folder for this gateway, and keep others of this machine out of it.

    Raises:
        AddressInUse: another gateway has it.
    """
    folder, http = settings.storage.folder, settings.core_services.toolscore_http
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(0o700)
        lock = open(folder / "gateway.lock", "a+")  # noqa: SIM115
    except OSError:  # the database says what is wrong with it
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            process, _, address = lock.read(300).strip().partition(" ")
            raise AddressInUse(
                f"another gateway (process {process or '?'}) uses the data folder {folder}: "
                f"{f'use it at {address}, ' if address else ''}stop it (one that an MCP client started ends soon after "
                "its client), or give this one a folder and ports of its own: storage.data_dir in toolscore.yaml, or "
                "TOOLSCORE_STORAGE__DATA_DIR, and core_services"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} {http.local_url if http.port else ''}\n")
        lock.flush()
        yield


async def serve(
    loaded: Loaded,
    config_dir: Path | None,
    ready: Callable[[Gateway], None] = lambda _: None,
    *,
    while_used: bool = False,
) -> None:
    """Run the gateway until SIGINT or SIGTERM.

    Args:
        ready: called once calls are accepted.
        while_used: end also when nobody uses it any more.

    Raises:
        AddressInUse, StoreError, SettingsError.
    """
    stop = _stop_when_asked()
    await check_before_start(loaded.settings)
    with alone_in(loaded.settings):
        settings, *sockets = bind_services(loaded.settings)
        with sockets[0], sockets[1]:
            loaded = Loaded(settings, loaded.problems, loaded.broken_servers, loaded.remarks)
            await _serve(loaded, config_dir, sockets, ready, stop, while_used=while_used)


async def serve_sockets(
    loaded: Loaded,
    config_dir: Path | None,
    sockets: Sequence[socket.socket],
    ready: Callable[[Gateway], None],
    worker: Worker,
) -> None:
    """Be one of the processes of a gateway, until SIGTERM.

    Args:
        sockets: of HTTP and of the router; the others listen on them, too.
        ready: called once calls are accepted.

    Raises:
        StoreError, SettingsError.
    """
    await _serve(loaded, config_dir, sockets, ready, _stop_when_asked(ECHO_SECONDS), worker=worker)


def _stop_when_asked(echo_seconds: float = 0.0) -> asyncio.Event:
    """Set when this process is asked to end; asked again, it ends at once.

    Args:
        echo_seconds: for so long the same question may come by two ways.
    """
    stop = asyncio.Event()
    asked_at = 0.0

    def asked() -> None:
        nonlocal asked_at
        if not stop.is_set():
            asked_at = time.monotonic()
            stop.set()
        elif time.monotonic() > asked_at + echo_seconds:
            os._exit(130)  # the reapers end the servers

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked)
    return stop


async def _serve(
    loaded: Loaded,
    config_dir: Path | None,
    sockets: Sequence[socket.socket],
    ready: Callable[[Gateway], None],
    stop: asyncio.Event,
    *,
    while_used: bool = False,
    worker: Worker | None = None,
) -> None:
    prepare_process()
    settings = loaded.settings
    async with open_gateway(loaded, config_dir=config_dir, hold=True, worker=worker) as gateway:
        async with open_doors(gateway, sockets[0], sockets[1], worker) as doors:
            if worker is None or worker.number == 1:
                _say_who_may(settings)
            ready(gateway)
            gateway.upstreams.opened.set()
            gateway.watchdog.arm()
            ends: list[asyncio.Future[Any]] = [asyncio.create_task(stop.wait())]
            if while_used:
                ends.append(asyncio.create_task(doors.uses.wait_unused()))
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            leave = gateway.settings.current.servers.leave_seconds
            if stop.is_set() and leave:
                log.info("leaving: calls are taken, but should go elsewhere", seconds=leave)
                gateway.calls.underway.leaving = True
                doors.send_away()
                await asyncio.sleep(leave)
            log.info("shutting down")
            grace = gateway.settings.current.servers.grace_seconds
            asyncio.get_running_loop().call_later(grace + SHUTDOWN_SECONDS + CLOSE_SECONDS, _end_as_it_is)


def _end_as_it_is() -> None:
    """End this process, whatever still keeps it, and say what that is."""
    tasks = sorted((where_waiting(task) for task in asyncio.all_tasks()), key=len, reverse=True)
    log.error("it did not close in time, and ends as it is: a defect of the gateway's own", waiting=tasks[:MAX_TOLD])
    asyncio.get_running_loop().call_later(LOG_SECONDS, os._exit, 1)  # the reapers end the servers


def _say_who_may(settings: Settings) -> None:
    if is_loopback(settings.core_services.toolscore_http.host) and settings.access.local_without_key:
        log.info("open to this machine only, where nobody is asked for a key")
    if os.geteuid() == 0:
        log.warning("running as root: servers that are not confined may read all of this gateway")
