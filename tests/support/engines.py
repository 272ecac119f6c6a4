"""The engines that gateways share, real ones of our own on loopback: Postgres, Redis, haproxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from support.processes import debian_package, free_port, wait_for

__all__ = ["Redis", "haproxy", "new_database", "postgres_url"]

HAPROXY = """
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  option redispatch
  option http-server-close
  retries 2
frontend all
  bind 127.0.0.1:{port}
  default_backend gateways
backend gateways
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 200ms fall 1 rise 1
"""


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
    """A real haproxy before gateways on these ports, each request to the next. Yields its URL."""
    program, port = debian_package("haproxy", "/usr/sbin/haproxy"), free_port()
    backends = "".join(f"  server g{number} 127.0.0.1:{one}\n" for number, one in enumerate(ports))
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port) + backends)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([program, "-db", "-f", folder / "haproxy.cfg"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/readyz").is_success
        return False

    try:
        wait_for(answers, 30)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server of our own on loopback."""
    programs = debian_package("postgresql", "/usr/lib/postgresql/*/bin/initdb").parent
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="toolscore-postgres-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    port = free_port()
    try:
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "toolscore", "--auth=trust", "--no-sync"]
        subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=folder)
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"],
            user=user, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 30, "for Postgres")
        try:
            yield f"postgresql+asyncpg://toolscore@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(20)
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
