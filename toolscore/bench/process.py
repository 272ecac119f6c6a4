"""What the benchmarks share: a gateway of their own, and the load generator, each in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from toolscore.upstreams.protocol import LATEST_STATELESS_VERSION, META

__all__ = [
    "ACCEPT",
    "OPENING",
    "PATIENCE_SECONDS",
    "SESSIONS",
    "answers",
    "command_of",
    "configure",
    "cpu_seconds",
    "echo",
    "free_port",
    "judged",
    "listens",
    "measure",
    "print_judged",
    "serving",
    "settle",
    "stop",
    "wait_for_servers",
    "wait_for_tools",
]

PATIENCE_SECONDS = 120
"""So long a program of a benchmark may take to be there: machines are slow at times."""

ACCEPT = "application/json, text/event-stream"
SESSIONS = "2025-11-25"
_HELLO = {"protocolVersion": SESSIONS, "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
OPENING = (
    json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": _HELLO}),
    json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
)
"""What an MCP client of the session era says first."""


def measure(
    job: dict[str, Any], concurrency: int, seconds: float, watched: dict[str, int] | None = None
) -> dict[str, Any]:
    """Figures of a load.

    Args:
        watched: name → pid: of each there is `cpu_NAME_ms`, its CPU for each call that was made, in ms.
    """
    processes = {name: psutil.Process(pid) for name, pid in (watched or {}).items()}
    before = {name: cpu_seconds(process) for name, process in processes.items()}
    order = {key: value for key, value in job.items() if key not in ("name", "levels")}
    done = subprocess.run(
        [sys.executable, "-m", "toolscore.bench.load"],
        input=json.dumps({**order, "concurrency": concurrency, "seconds": seconds}),
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{job['name']} at {concurrency}: {last[0]}")
    result: dict[str, Any] = json.loads(done.stdout)
    for name, process in processes.items():
        spent = cpu_seconds(process) - before[name]
        result[f"cpu_{name}_ms"] = round(spent / max(1, result["made"]) * 1000, 4)
    return result


def cpu_seconds(process: psutil.Process) -> float:
    """The CPU time that a process has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty once it has ended, and of one that may not be looked at."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def configure(
    folder: Path,
    http_port: int,
    router_port: int,
    servers: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> None:
    """Write the settings of a gateway into its folder, where it also keeps its data.

    Args:
        settings: of toolscore.yaml. more: of ports_config.yaml, beside the ports.
    """
    ports = {"toolscore_http": {"port": http_port}, "toolscore_mcp": {"port": router_port}}
    for name, content in (
        ("mcp_servers.json", {"mcpServers": servers or {}}),
        ("toolscore.yaml", {**(settings or {}), "storage": {"data_dir": str(folder / "data")}}),
        ("ports_config.yaml", {**more, "core_services": ports}),
    ):
        (folder / name).write_text(json.dumps(content))


def settle(folder: Path, http_port: int) -> None:
    with serving(folder, http_port):
        return


@contextmanager
def serving(folder: Path, http_port: int, workers: int = 1) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "toolscore", "serve", "--config", str(folder), "--workers", str(workers)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")}
    said = open(folder / "stderr.log", "w+b")  # noqa: SIM115 - closed below
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
    try:
        while not answers(f"http://127.0.0.1:{http_port}/readyz"):
            if process.poll() is not None:
                said.seek(0)
                raise RuntimeError(f"the gateway ended at its start: {said.read().decode()}")
            if time.perf_counter() - started > PATIENCE_SECONDS:
                raise RuntimeError(f"the gateway is not ready after {PATIENCE_SECONDS} s")
            time.sleep(0.005)
        yield process, time.perf_counter() - started
    finally:
        stop(process, 15)
        said.close()


def stop(process: subprocess.Popen[Any], seconds: float) -> None:
    """Ask a process to end, and kill it if it has not after so long."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def echo(kind: str, port: int) -> Iterator[int]:
    """The echo of `toolscore.bench.echo`, in a process of its own, from when it listens on. Yields its pid."""
    process = subprocess.Popen([sys.executable, "-m", "toolscore.bench.echo", kind, str(port)])
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not listens(port):
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on port {port}")
            time.sleep(0.02)
        yield process.pid
    finally:
        stop(process, 5)


def judged(figures: dict[str, float], targets: dict[str, tuple[str, str, float]]) -> dict[str, dict[str, Any]]:
    """Figures beside what they are to reach.

    Args:
        targets: the same names → label, `>=` or `<=`, bound.
    """
    summary = {}
    for key, value in figures.items():
        label, sign, bound = targets[key]
        met = value >= bound if sign == ">=" else value <= bound
        summary[key] = {"label": label, "value": value, "target": f"{sign} {bound:g}", "met": met}
    return summary


def print_judged(title: str, summary: dict[str, dict[str, Any]]) -> None:
    """Print what `judged` found."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("", "measured", "to reach", "", box=box.SIMPLE_HEAD, title=title)
    for one in summary.values():
        mark = "[green]met[/]" if one["met"] else "[red]missed[/]"
        table.add_row(one["label"], f"{one['value']:g}", one["target"], mark)
    Console().print(table)


def listens(port: int) -> bool:
    """Whether anything takes connections on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether an address answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_for_servers(base: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{base}/api/v1/servers", timeout=PATIENCE_SECONDS) as response:  # noqa: S310
            servers = json.loads(response.read())["data"]["servers"]
        if sum(server["state"] == "up" for server in servers) >= count:
            return
        time.sleep(0.05)
    raise RuntimeError(f"not all servers came up: {servers}")


def wait_for_tools(base: str, count: int) -> None:
    """Wait, over `/mcp` alone, until so many tools can be called: what serves REST is loaded when it is asked first."""
    params = {"_meta": {f"{META}protocolVersion": LATEST_STATELESS_VERSION, f"{META}clientCapabilities": {}}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}).encode()
    headers = {
        "accept": "application/json", "content-type": "application/json", "mcp-method": "tools/list",
        "mcp-protocol-version": LATEST_STATELESS_VERSION,
    }  # fmt: skip
    there, deadline = 0, time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        request = urllib.request.Request(f"{base}/mcp", body, headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:  # noqa: S310
            tools = json.loads(response.read())["result"]["tools"]
        there = sum(tool.get("_meta", {}).get("toolscore/available", True) for tool in tools)
        if there >= count:
            return
        time.sleep(0.05)
    raise RuntimeError(f"{there} tools can be called, and {count} should be")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
