"""The engines that gateways share, real ones of our own on loopback: Postgres, Redis, haproxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from support.processes import GatewayProcess, debian_package, free_port, running_gateway, wait_for
from toolscore.bench import rig

__all__ = ["Redis", "exchange", "gateways", "haproxy", "new_database", "postgres_url", "redis"]


class Redis:
    """A redis-server of our own on loopback."""

    def __init__(self, folder: Path) -> None:
        self._program = debian_package("redis-server", "/usr/bin/redis-server")
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder],
            stdout=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def kill(self) -> None:
        """As a crash ends it: nothing is kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def results(self) -> int:
        """How many results it keeps."""
        asked = ["redis-cli", "-p", str(self.port), "--scan", "--pattern", "toolscore:result:*"]
        return len(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)


@contextlib.contextmanager
def haproxy(folder: Path, ports: list[int]) -> Iterator[str]:
    """A real haproxy before gateways on these ports, each request to the next, on a new connection. Yields its URL."""
    program = debian_package("haproxy", "/usr/sbin/haproxy")
    with rig.haproxy(folder, ports, program, free_port(), "option http-server-close") as url:
        yield url


@contextlib.contextmanager
def gateways(
    database_url: str, redis_url: str | None = None, count: int = 3, servers: dict[str, Any] | None = None, **more: Any
) -> Iterator[list[GatewayProcess]]:
    """Several that share these, started at once; yields them when they are ready.

    Args:
        more: as `running_gateway` takes it.
    """
    shared = {"TOOLSCORE_STORAGE__DATABASE_URL": database_url}
    if redis_url is not None:
        shared["TOOLSCORE_STORAGE__REDIS_URL"] = redis_url
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            process = stack.enter_context(running_gateway(servers, start=False, **more))
            process.environment = shared
            process.start(ready=False)
            found.append(process)
        for process in found:
            wait_for(process.is_ready, 60)
            for server_id in servers or {}:
                process.wait_for_state(server_id, "up")
        yield found


def exchange(processes: list[GatewayProcess], url: str, server_id: str, tool_id: str, callers: int = 4) -> list[str]:
    """Stop and start one after the other while a tool is called through a balancer. Returns what was refused."""
    done, refused, stop = [0] * callers, [], threading.Event()

    def call(number: int) -> None:
        with httpx.Client(base_url=url, timeout=120, headers={"host": "localhost"}) as http:
            while not stop.is_set():
                said = http.post("/execute_tool", json={"tool_id": tool_id, "parameters": {"text": "hi"}})
                if said.is_success and said.json()["success"]:
                    done[number] += 1
                else:
                    refused.append(said.text)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        for process in processes:
            before = sum(done)
            process.stop()
            process.start()
            process.wait_for_state(server_id, "up")
            wait_for(lambda before=before: sum(done) > before)  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(count > 0 for count in done)
    return refused


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A Redis of the tests of one folder."""
    with tempfile.TemporaryDirectory(prefix="toolscore-redis-") as folder:
        server = Redis(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server of our own on loopback."""
    folder = Path(tempfile.mkdtemp(prefix="toolscore-postgres-"))
    try:
        programs = debian_package("postgresql", "/usr/lib/postgresql/*/bin/initdb").parent
        with rig.postgres(folder, programs, free_port()) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_database(postgres_url: str) -> Callable[[], str]:
    """Makes an empty database there; returns its URL."""

    def make() -> str:
        name = f"test_{uuid.uuid4().hex}"

        async def create() -> None:
            engine = create_async_engine(postgres_url, isolation_level="AUTOCOMMIT")
            async with engine.connect() as connection:
                await connection.exec_driver_sql(f"CREATE DATABASE {name}")
            await engine.dispose()

        asyncio.run(create())
        return postgres_url.replace("/postgres", f"/{name}")

    return make
