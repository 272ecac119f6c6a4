"""`make replicas`: Postgres, Redis, haproxy and several gateways on loopback, with nothing kept when it ends."""

from __future__ import annotations

import glob
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolscore.bench.process import PATIENCE_SECONDS, answers, configure, free_port, listens, stop
from toolscore.core.seal import new_key

__all__ = ["Gateway", "ProgramMissing", "Rig", "haproxy", "postgres", "redis", "rig", "run_rig"]

HAPROXY = """
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  timeout check 5s
  option redispatch
  retries 2
  {defaults}
frontend all
  bind 127.0.0.1:{port}
  default_backend gateways
backend gateways
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 200ms fall 1 rise 1
"""
EXAMPLE = "clock__get_current_time"
"""Of a server that one of the gateways has for all."""
LEAVE_SECONDS = 1.5
"""Longer than haproxy takes to notice that a gateway leaves."""


class ProgramMissing(Exception):
    """One of the programs is not there; the message says how to get it."""


def _find(*places: str) -> Path:
    for place in places:
        found = shutil.which(place) if "/" not in place else max(glob.glob(place), default=None)
        if found is not None:
            return Path(found)
    raise ProgramMissing(
        f"{Path(places[0]).name} is not there. On Debian: apt-get install postgresql redis-server haproxy"
    )


@contextmanager
def _running(
    command: list[Any], ready: Callable[[], bool], log: Path, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    with open(log, "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{log.stem} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield process
    finally:
        stop(process, 30)


@contextmanager
def postgres(folder: Path, programs: Path | None = None, port: int | None = None) -> Iterator[str]:
    """A Postgres of its own. Yields its URL, of a database that anybody on this machine may use.

    Args:
        folder: an empty one.
        programs: the folder of `initdb` and `postgres`.
        port: of loopback.
    """
    programs = programs or _find("/usr/lib/postgresql/*/bin/initdb", "initdb").parent
    as_user: list[Any] = []
    if os.getuid() == 0:  # it refuses to run as root
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        # `Popen(user=...)` forks, and a fork of a process that has loaded gRPC sometimes dies before its program runs
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    port = port or free_port()
    initdb = [*as_user, programs / "initdb", "-D", folder / "data", "-U", "toolscore", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
    ready: list[Any] = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    command = [*as_user, programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]

    def is_ready() -> bool:
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0

    with _running(command, is_ready, folder / "postgres.log", cwd=folder):
        yield f"postgresql+asyncpg://toolscore@127.0.0.1:{port}/postgres"


@contextmanager
def redis(folder: Path, program: Path | None = None, port: int | None = None) -> Iterator[subprocess.Popen[Any]]:
    """A Redis of its own, which keeps nothing. Yields its process; it listens on `port` of loopback."""
    port = port or free_port()
    program = program or _find("redis-server")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    with _running(command, lambda: listens(port), folder / "redis.log") as process:
        yield process


@contextmanager
def haproxy(
    folder: Path, ports: list[int], program: Path | None = None, port: int | None = None, defaults: str = ""
) -> Iterator[str]:
    """A haproxy before gateways on these ports, each request to the next. Yields its URL.

    Args:
        port: of loopback, on which it listens. defaults: a further line of that section.
    """
    port = port or free_port()
    backends = "".join(f"  server g{number} 127.0.0.1:{one}\n" for number, one in enumerate(ports, 1))
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, defaults=defaults) + backends)
    command = [program or _find("haproxy", "/usr/sbin/haproxy"), "-db", "-f", folder / "haproxy.cfg"]
    url = f"http://127.0.0.1:{port}"
    with _running(command, lambda: answers(f"{url}/readyz"), folder / "haproxy.log"):
        yield url


@dataclass
class Gateway:
    """One gateway of a rig.

    Attributes:
        folder: of its settings, its data and its log.
        url: of its HTTP port.
    """

    folder: Path
    url: str
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns at once."""
        known = {key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")}
        command = [sys.executable, "-m", "toolscore", "serve", "--config", str(self.folder)]
        with open(self.folder / "gateway.log", "ab") as said:
            self.process = subprocess.Popen(
                command, env={**known, **self.environment}, stdout=said, stderr=said, start_new_session=True
            )  # Ctrl-C is for us, who stop it in turn

    def wait(self) -> None:
        """Wait until it is ready.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(f"{self.url}/readyz"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a gateway does not start: {(self.folder / 'gateway.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass
class Rig:
    """What runs.

    Attributes:
        balancer: the URL of haproxy.
    """

    balancer: str
    gateways: list[Gateway]
    database_url: str
    redis_url: str


@contextmanager
def rig(
    count: int = 3, servers: Mapping[str, Any] | None = None, tell: Callable[[str], None] = lambda what: None
) -> Iterator[Rig]:
    """Start all of it; leaving stops all of it.

    Args:
        servers: as under `mcpServers`.
        tell: told what is being started.

    Raises:
        ProgramMissing, RuntimeError.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toolscore-replicas-")))
        folder.chmod(0o755)  # Postgres runs as somebody else
        for name in ("postgres", "redis"):
            (folder / name).mkdir()
        tell("Postgres")
        database_url = stack.enter_context(postgres(folder / "postgres"))
        tell("Redis")
        port = free_port()
        stack.enter_context(redis(folder / "redis", port=port))
        redis_url = f"redis://127.0.0.1:{port}/0"
        environment = {
            "TOOLSCORE_STORAGE__DATABASE_URL": database_url,
            "TOOLSCORE_STORAGE__REDIS_URL": redis_url,
            "TOOLSCORE_STORAGE__SEAL_KEYS": new_key(),
            "TOOLSCORE_SERVERS__LEAVE_SECONDS": f"{LEAVE_SECONDS:g}",
        }
        gateways = []
        for number in range(1, count + 1):
            own = folder / f"gateway-{number}"
            own.mkdir()
            http_port = free_port()
            configure(own, http_port, free_port(), dict(servers or {}))
            url = f"http://127.0.0.1:{http_port}"
            gateway = Gateway(own, url, environment)
            stack.callback(gateway.stop)
            gateways.append(gateway)
        tell(f"{count} gateways")
        for gateway in gateways:
            gateway.start()
        for gateway in gateways:
            gateway.wait()
        tell("haproxy")
        ports_of = [int(gateway.url.rpartition(":")[2]) for gateway in gateways]
        yield Rig(stack.enter_context(haproxy(folder, ports_of)), gateways, database_url, redis_url)


def run_rig(count: int, say: Callable[[str], None]) -> None:
    """Start a rig, say where everything is, and stop it at Ctrl-C.

    Raises:
        ProgramMissing, RuntimeError.
    """
    servers = {"clock": {"command": "uvx", "args": ["mcp-server-time", "--local-timezone", "UTC"]}}
    with rig(count, servers, lambda what: say(f"starting {what} ...")) as running:
        say("")
        say(f"  Balancer    {running.balancer}/mcp   (each request to the next gateway)")
        for number, gateway in enumerate(running.gateways, 1):
            process = gateway.process.pid if gateway.process is not None else "?"
            say(f"  Gateway {number}   {gateway.url}/   process {process}, log {gateway.folder / 'gateway.log'}")
        say(f"  Postgres    {running.database_url}")
        say(f"  Redis       {running.redis_url}")
        say("")
        say("Try:")
        say(f"  curl -s {running.balancer}/execute_tool -H 'content-type: application/json' \\")
        say(f"    -d '{json.dumps({'tool_id': EXAMPLE, 'parameters': {'timezone': 'Asia/Tokyo'}})}'")
        if running.gateways[0].process is not None:
            say(f"  kill -9 {running.gateways[0].process.pid}   # and call again: the others go on")
        say("")
        say("Ctrl-C stops all of it.")
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore the first
            signal.signal(number, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            while True:
                signal.pause()
        say("stopping ...")
