"""What the tests share: a real gateway in a process of its own, and waiting for things instead of sleeping."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from support.nursery import Born, born
from toolscore.bench.process import command_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "servers"
"""Servers and clients that tests run as programs."""

SERVERS = ROOT / ".cache" / "servers"
ODD = SCRIPTS / "odd.py"
_GIVEN_AWAY = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
PORTS = range(20_000, max(_GIVEN_AWAY, 30_000))
"""Below those that the system gives to connections, unless it gives nearly all."""
EXECUTOR = "python-executor-mcp-server"
PYTHON = f"{EXECUTOR}__python_execute"


def wait_for(what: Callable[[], Any], seconds: float = 60, message: str = "") -> Any:
    """The first true value of `what`, asked again and again for at most `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain {message}")
        pause.wait(0.02)


def odd(kind: str, *arguments: object, **more: Any) -> dict[str, Any]:
    """An `mcpServers` entry of one of the odd servers."""
    return {"command": sys.executable, "args": ["-I", "-S", str(ODD), kind, *map(str, arguments)], **more}


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The answer in a response of the MCP door: JSON, or the last event of a stream where it took a moment."""
    if "event-stream" not in response.headers.get("content-type", ""):
        return dict(response.json())
    return dict(json.loads([line[5:] for line in response.text.splitlines() if line.startswith("data: {")][-1]))


def free_port() -> int:
    """A port that nobody has, and nobody else gets soon.

    The system hands ports of its own range to every connection, so one of those that is free now may be taken when a
    server wants to listen there. These lie below that range, and processes take turns by a file.
    """
    with open(Path(tempfile.gettempdir()) / "toolscore-test-ports", "a+") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        turn.seek(0)
        last = int(turn.read() or 0)
        for step in range(1, len(PORTS)):
            port = PORTS[(last + step) % len(PORTS)]
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                turn.truncate(0)
                turn.write(str((last + step) % len(PORTS)))
                return port
    raise AssertionError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")


def debian_package(package: str, program: str) -> Path:
    """A program of a Debian package, as a glob pattern; the package is installed where it is missing."""
    if not glob.glob(program):
        # Tests run side by side, and apt takes one at a time.
        with open(Path(tempfile.gettempdir()) / "toolscore-apt.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not glob.glob(program):
                environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
                subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
                subprocess.run(["apt-get", "install", "-y", "-qq", package], check=True, env=environment)
    return Path(sorted(glob.glob(program))[-1])


class Fickle:
    """The server of `servers/fickle.py`: its entry, its orders, and what was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        script = str(SCRIPTS / "fickle.py")
        self.entry: dict[str, Any] = {"command": sys.executable, "args": ["-I", "-S", script, str(folder)]}

    def order(self, **orders: Any) -> None:
        """Have it do this from now on, and nothing else."""
        fresh = self.folder / "orders.new"
        fresh.write_text(json.dumps(orders))
        fresh.rename(self.folder / "orders.json")

    def calls(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        except FileNotFoundError:
            return []


class GatewayProcess:
    """`toolscore serve` as a user runs it, with settings of its own."""

    def __init__(
        self,
        folder: Path,
        servers: dict[str, Any],
        settings: str,
        ports: str,
        journal: bool = False,
        python: bool = False,
    ) -> None:
        self.python = python
        self.folder = folder
        self.http_port, self.router_port, self.executor_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.router_url = f"ws://127.0.0.1:{self.router_port}/websocket"
        self.register_url = f"ws://127.0.0.1:{self.router_port}/register"
        self.unix_socket = folder / "router.sock"
        self.events_url = f"ws://127.0.0.1:{self.http_port}/api/v1/events/tools"
        self.config = folder / "config"
        self.config.mkdir(exist_ok=True)
        self.ports(ports)
        if "journal" not in settings and not journal:
            settings += "\njournal: {enabled: false}\n"  # its recorder is a process more, of no concern to most
        if "embeddings:" not in settings:
            settings += "\nembeddings: {mode: light}\n"  # as where no extra is installed
        (self.config / "toolscore.yaml").write_text(
            f"storage: {{data_dir: {json.dumps(str(folder / 'data'))}}}\n{settings}"
        )
        self.servers(servers)
        self.http = httpx.Client(base_url=self.url, timeout=120)
        self.process: Born | None = None
        self.environment: dict[str, str] = {}

    def ports(self, more: str = "") -> None:
        """Write `ports_config.yaml`."""
        more = more or f"use_inprocess_python_executor: {str(self.python).lower()}"
        executor = {} if self.python else {"auto_start": False}
        (self.config / "ports_config.yaml").write_text(
            f"{more}\ncore_services:\n"
            f"  toolscore_http: {{port: {self.http_port}}}\n"
            f"  toolscore_mcp: {{port: {self.router_port}, unix_socket: {json.dumps(str(self.unix_socket))}}}\n"
            f"mcp_servers: {{python_executor: {json.dumps(executor)}}}\n"
        )

    def servers(self, servers: dict[str, Any]) -> None:
        """Write `mcp_servers.json`, as an editor does: a new file in the place of the old."""
        fresh = self.config / "mcp_servers.json.new"
        fresh.write_text(json.dumps({"mcpServers": servers}, indent=2))
        fresh.rename(self.config / "mcp_servers.json")

    def start(self, *arguments: str, ready: bool = True) -> GatewayProcess:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")}
        self.log = open(self.folder / "gateway.log", "ab")  # noqa: SIM115
        with open(os.devnull, "rb") as nothing:
            self.process = born(
                ["serve", "--config", str(self.config), *arguments],
                env={**environment, "SECRET_OF_THE_GATEWAY": "do not pass on", **self.environment},
                cwd=self.folder,
                stdin=nothing.fileno(),
                stdout=self.log.fileno(),
                stderr=self.log.fileno(),
            )
        if ready:
            wait_for(self.is_ready, 120, "for /readyz")
        return self

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.output()}")
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/readyz").status_code == 200
        return False

    def output(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def wait_for_output(self, text: str, times: int = 1) -> None:
        """Wait until its log has a text: a thread of its own writes that."""
        wait_for(lambda: self.output().count(text) >= times, 60, f"for {text!r} in the log")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def family(self) -> list[psutil.Process]:
        """The gateway's descendants."""
        return psutil.Process(self.pid).children(recursive=True)

    def commands(self) -> list[list[str]]:
        """The command lines of the descendants."""
        return [command for member in self.family() if (command := command_of(member))]

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.log.close()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(180)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.log.close()
        return code

    def get(self, path: str, **params: Any) -> Any:
        """`data` of a successful GET."""
        answer = self.http.get(path, params=params).json()
        assert answer["success"], answer
        return answer["data"]

    def server(self, server_id: str) -> dict[str, Any]:
        return dict(self.get(f"/api/v1/servers/{server_id}"))

    def busiest_seconds(self) -> float:
        """The most CPU time that the gateway's loop took at a stretch: other than time, it is no machine's fault."""
        found = re.search(r"^toolscore_loop_busiest_seconds (\S+)", self.http.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def wait_for_state(self, server_id: str, *states: str, seconds: float = 120) -> dict[str, Any]:
        """Wait until a server is in one of these states."""

        def there() -> dict[str, Any] | None:
            answer = self.http.get(f"/api/v1/servers/{server_id}").json()
            return answer["data"] if answer["success"] and answer["data"]["state"] in states else None

        return dict(wait_for(there, seconds, f"for {server_id} to be {states}"))

    def execute(self, tool_id: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """The whole envelope of a call."""
        body = {"tool_id": tool_id, "parameters": parameters or {}, **more}
        return dict(self.http.post("/execute_tool", json=body).json())

    def text(self, tool_id: str, parameters: dict[str, Any] | None = None, **more: Any) -> str:
        """The text of a call that succeeds."""
        answer = self.execute(tool_id, parameters, **more)
        assert answer["success"], answer
        assert not answer["data"]["is_error"], answer
        return "\n".join(block["text"] for block in answer["data"]["content"])

    def events(self, since: int = 0, seconds: float = 1) -> list[dict[str, Any]]:
        """The stored events behind `since`: those that come until nothing has come for so long."""
        return list(self._heard(since, seconds))

    def event_seen(self, kind: str, seconds: float = 20, **fields: Any) -> dict[str, Any] | None:
        """The first event of its kind with these fields, of those before and those that come in so many seconds."""
        until = time.monotonic() + seconds
        for event in self._heard(0, seconds):
            if event["type"] == kind and all(event.get(key) == value for key, value in fields.items()):
                return event
            if time.monotonic() > until:
                break
        return None

    def _heard(self, since: int, seconds: float) -> Iterator[dict[str, Any]]:
        """Events behind `since`: those that are stored by now, and what comes until nothing was said for so long."""
        last = int(self.get("/api/v1/stats")["last_event_seq"])
        if last > since:
            for event in self._told(since, 120):
                yield event
                since = event.get("seq") or since
                if since >= last:
                    break
        yield from self._told(since, seconds)

    def _told(self, since: int, silence: float) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(httpx.ReadTimeout):
            with self.http.stream(
                "GET", "/api/v1/events/stream", params={"since": since}, timeout=httpx.Timeout(10, read=silence)
            ) as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line[6:])


@contextlib.contextmanager
def running_gateway(
    servers: dict[str, Any] | None = None,
    *,
    settings: str = "",
    ports: str = "",
    start: bool = True,
    journal: bool = False,
    python: bool = False,
) -> Iterator[GatewayProcess]:
    """A gateway that is gone at the end, with everything it started.

    Args:
        ports: of `ports_config.yaml`, beside the addresses.
        journal: keep one, as a gateway does by default.
        python: have a Python executor, as a gateway does by default.
    """
    with tempfile.TemporaryDirectory(prefix="toolscore-test-") as folder:
        gateway = GatewayProcess(Path(folder), servers or {}, settings, ports, journal, python or bool(ports))
        try:
            yield gateway.start() if start else gateway
        finally:
            if gateway.process is not None and gateway.process.poll() is None:
                gateway.stop()
            gateway.http.close()


def process_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
