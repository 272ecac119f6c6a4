"""The soak: a gateway under load, with faults, for as long as one likes; does anything grow? `make soak MINUTES=60`.

Calls go to a server that fails in every way, to a stdio server that is killed each minute, and to Python; sessions,
streams and sockets come and go; hostile clients hold on. Every ten seconds memory, descriptors, threads, tasks and
processes are counted. At the end the last tenth of the time is held against the second, after which all is warm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from support import GatewayProcess, odd, running_gateway, wait_for
from support.hostile import hostile_clients
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parent / "calls"))
from test_storm import Server

WORKERS = 8
PEAK_SECONDS = 20
SAMPLE_SECONDS = 10.0
GROWTH = 1.10
"""How much more memory the end may take than the beginning."""
MORE = 8
"""How many more descriptors, threads, tasks or processes, in the median."""
SETTINGS = """
breaker: {min_calls: 400, failure_ratio: 0.6, open_seconds: 0.2, max_open_seconds: 0.5}
journal: {log_calls: false, keep_mb: 50}
limits: {request_seconds: 2, write_seconds: 2, max_connections_per_address: 256, session_idle_seconds: 60}
python_executor: {session_idle_seconds: 30}
"""
PYTHON = "python-executor-mcp-server__python_execute"
CODES = (
    "1 + 1",
    "1/0",
    "print('x' * 2_000_000)",
    "import os; os._exit(1)",
    "open('f', 'w').write('x' * 1000)",
    "bytearray(10**10)",
)
EVENTS = {"Accept": "application/json, text/event-stream"}


class Load:
    """What the clients do, at a pace."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._number = 0
        self._lock = threading.Lock()
        self.pace: float | None = None
        """Calls a second; `None`: as many as go."""
        self.done: Counter[str] = Counter()
        self.stop = threading.Event()

    def work(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self._gateway.url, timeout=40) as client:
            while not self.stop.is_set():
                began = time.monotonic()
                kind = chance.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
                try:
                    KINDS[kind][1](self, client, chance)
                    self.done[kind] += 1
                except (httpx.HTTPError, WebSocketException, OSError) as exc:
                    self.done[f"{kind}: {type(exc).__name__}"] += 1
                if self.pace is not None:
                    time.sleep(max(0.0, WORKERS / self.pace - (time.monotonic() - began)))

    def number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def storm(self, client: httpx.Client, chance: random.Random) -> None:
        body = {"tool_id": f"storm__{chance.choice(['once', 'again'])}", "parameters": {"id": self.number()}}
        client.post("/execute_tool", json={**body, "timeout_seconds": 1.0})

    def echo(self, client: httpx.Client, chance: random.Random) -> None:
        client.post(
            "/execute_tool", json={"tool_id": "echo__echo", "parameters": {"text": "x" * chance.randrange(5000)}}
        )

    def wrong(self, client: httpx.Client, chance: random.Random) -> None:
        client.post("/execute_tool", json={"tool_id": f"no_{chance.randrange(10**9)}", "parameters": {}})
        client.post(
            "/execute_tool", json={"tool_id": "storm__once", "parameters": {"id": f"{chance.randrange(10**9)}"}}
        )

    def python(self, client: httpx.Client, chance: random.Random) -> None:
        code = chance.choice(CODES) if chance.random() < 0.3 else f"sum(range({chance.randrange(1000)}))"
        client.post("/execute_tool", json={"tool_id": PYTHON, "parameters": {"code": code}})

    def python_session(self, client: httpx.Client, chance: random.Random) -> None:
        given = {"code": f"a = {chance.randrange(1000)}", "session_id": f"s{chance.randrange(12)}"}
        client.post("/execute_tool", json={"tool_id": PYTHON, "parameters": given})

    def mcp_session(self, client: httpx.Client, chance: random.Random) -> None:
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "soak", "version": "1"}}
        begun = _rpc(client, "initialize", hello)
        session = {"Mcp-Session-Id": begun.headers.get("mcp-session-id", ""), "MCP-Protocol-Version": "2025-11-25"}
        _rpc(client, "tools/list", {}, session)
        _rpc(client, "tools/call", {"name": "echo__echo", "arguments": {"text": "hi"}}, session)
        if chance.random() < 0.5:  # the others are left behind
            client.delete("/mcp", headers=session)

    def stream(self, client: httpx.Client, chance: random.Random) -> None:
        with client.stream("GET", "/api/v1/events/stream?since=0") as response:
            for _ in zip(range(chance.randrange(20)), response.iter_lines(), strict=False):
                pass

    def socket(self, client: httpx.Client, chance: random.Random) -> None:
        with connect(self._gateway.events_url, open_timeout=10) as socket:
            socket.send(json.dumps({"command": "list_tools", "request_id": 1}))
            socket.recv(10)


def _rpc(client: httpx.Client, method: str, params: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return client.post("/mcp", json=message, headers={**EVENTS, **(headers or {})})


Action = Callable[[Load, httpx.Client, random.Random], None]
KINDS: dict[str, tuple[float, Action]] = {
    "storm": (50, Load.storm), "echo": (20, Load.echo), "wrong": (5, Load.wrong), "python": (12, Load.python),
    "python session": (4, Load.python_session), "mcp session": (5, Load.mcp_session), "stream": (2, Load.stream),
    "socket": (2, Load.socket),
}  # fmt: skip


def sample(gateway: GatewayProcess) -> dict[str, float]:
    """What the gateway takes at this moment."""
    process = psutil.Process(gateway.pid)
    below = [one for one in process.children(recursive=True) if one.is_running()]
    others = 0
    for one in below:
        with contextlib.suppress(psutil.Error):
            others += one.memory_info().rss
    metrics = gateway.http.get("/metrics").text
    tasks = next(line for line in metrics.splitlines() if line.startswith("toolscore_tasks "))
    return {
        "gateway MB": process.memory_info().rss / 1e6, "others MB": others / 1e6, "descriptors": process.num_fds(),
        "threads": process.num_threads(), "tasks": float(tasks.split()[1]), "processes": len(below),
    }  # fmt: skip


def soak(minutes: float, share: float) -> bool:
    """Run it, print a line a minute and the table at the end. Returns whether nothing grew.

    Args:
        share: of what the gateway takes at most.
    """
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger"
        ledger.touch()
        server = Server(ledger)
        servers = {"storm": {"url": f"http://127.0.0.1:{server.port}/mcp"}, "echo": odd("echo")}
        try:
            with running_gateway(servers, settings=SETTINGS, journal=True, python=True) as gateway:
                for server_id in servers:
                    gateway.wait_for_state(server_id, "up")
                wait_for(lambda: gateway.get("/list_tools", server_id="storm")["tools"])
                return _verdict(_run(gateway, minutes, share))
        finally:
            server.stop()


def _run(gateway: GatewayProcess, minutes: float, share: float) -> list[dict[str, float]]:
    load = Load(gateway)
    threads = [threading.Thread(target=load.work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(PEAK_SECONDS)
        load.pace = sum(load.done.values()) / PEAK_SECONDS * share
        print(f"{share:.0%} load is {load.pace:.0f} actions a second, for {minutes:g} minutes", flush=True)
        samples: list[dict[str, float]] = []
        began = time.monotonic()
        with hostile_clients(gateway.http_port, each=1) as ended:
            while time.monotonic() - began < minutes * 60:
                time.sleep(SAMPLE_SECONDS)
                samples.append(sample(gateway))
                if len(samples) % 6 == 0:
                    _kill_echo(gateway)
                    told = "  ".join(f"{name} {value:.0f}" for name, value in samples[-1].items())
                    print(f"{(time.monotonic() - began) / 60:5.1f} min  {told}", flush=True)
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(60)
    health = gateway.get("/health")
    print(
        f"done: {dict(load.done.most_common())}\nhostile connections ended: {dict(ended)}\nhealth: {health['status']}"
    )
    return samples


def _kill_echo(gateway: GatewayProcess) -> None:
    pid = gateway.get("/api/v1/servers/echo")["pid"]
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            psutil.Process(pid).kill()


def _verdict(samples: list[dict[str, float]]) -> bool:
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth] or samples[:1], samples[-tenth:]
    flat = True
    print(f"{'':14}{'early':>10}{'late':>10}{'most':>10}")
    for name in samples[0]:
        before, after = (statistics.median(one[name] for one in some) for some in (early, late))
        grew = after > before * GROWTH + 5 if name.endswith("MB") else after > before + MORE
        flat &= not grew
        most = max(one[name] for one in samples)
        print(f"{name:14}{before:10.1f}{after:10.1f}{most:10.1f}{'  GREW' if grew else ''}")
    return flat


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--load", type=float, default=0.5, help="of what the gateway takes at most")
    arguments = parser.parse_args()
    sys.exit(0 if soak(arguments.minutes, arguments.load) else 1)
