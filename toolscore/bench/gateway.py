"""`toolscore bench gateway`: every door against a bare FastAPI echo and the direct call, in one run."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from toolscore.bench.process import (
    ACCEPT,
    OPENING,
    SESSIONS,
    command_of,
    configure,
    echo,
    free_port,
    judged,
    measure,
    print_judged,
    serving,
    settle,
    wait_for_servers,
    wait_for_tools,
)

__all__ = ["TARGETS", "run_gateway_bench"]

CONCURRENCY = (1, 16, 64)
ROUNDS = 3
"""Everything is measured so often, in turn, and each figure is the median: neighbours on the machine come and go."""
Results = dict[str, dict[str, dict[str, Any]]]
TEXT = "hello"
TOOLS = {"echo": 1, "pipe": 1, "ten": 10, "many": 500}
"""The servers, and how many tools each has."""
FLOOR = "bare FastAPI"
CPU_AT = 16
"""At so many calls at once the CPU of a call is measured: where others use the cores, it is steadier than calls/s."""

TARGETS = {
    "rest_cpu_ratio": ("POST /execute_tool at 16, CPU a call of the gateway against bare FastAPI", "<=", 1.15),
    "session_cpu_ratio": ("/mcp (session) at 16, the same", "<=", 1.25),
    "stateless_cpu_ratio": ("/mcp (stateless) at 16, the same", "<=", 1.25),
    "router_cpu_ratio": ("router (mcp) at 16, the same", "<=", 1.25),
    "recorder_cpu_ratio": ("POST /execute_tool at 16, CPU a call of the recorder against bare FastAPI", "<=", 0.25),
    "rest_throughput_ratio": ("POST /execute_tool at 16, calls/s against bare FastAPI", ">=", 0.7),
    "rest_added_p50_ms": ("POST /execute_tool at 1, p50 added to the direct call", "<=", 0.22),
    "mcp_throughput_ratio": ("/mcp (stateless) at 16, calls/s against bare FastAPI", ">=", 0.65),
    "p99_to_p50_at_64": ("POST /execute_tool at 64, p99 over p50", "<=", 1.6),
    "list_500_p50_ms": ("tools/list with 500 tools, p50", "<=", 0.25),
    "resident_mb": ("idle resident memory of the gateway with its servers up, MB", "<=", 85.0),
    "resident_rest_mb": ("the same, once the REST API was used", "<=", 100.0),
    "recorder_mb": ("idle resident memory of the recorder, MB", "<=", 30.0),
    "seconds_to_ready": ("process start to /readyz, seconds", "<=", 0.9),
}


def run_gateway_bench(*, seconds: float = 2.0, quiet: bool = False) -> dict[str, Any]:
    """Start everything, measure, print a table unless `quiet`, and return the figures."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    with ExitStack() as stack:
        echo_port, floor_port = free_port(), free_port()
        stack.enter_context(echo("mcp", echo_port))
        floor = stack.enter_context(echo("fastapi", floor_port))
        gateway = stack.enter_context(_gateway(echo_port))
        jobs = _jobs(echo_port, floor_port, gateway)
        progress = stack.enter_context(
            Progress(
                TextColumn("{task.description:<42}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(), console=Console(stderr=True), transient=True, refresh_per_second=1,
            )
        )  # fmt: skip
        steps = [(job, level) for level in CONCURRENCY for job in jobs if level in job["levels"]]
        task = progress.add_task("measuring", total=ROUNDS * len(steps))
        rounds: list[Results] = []
        for _ in range(ROUNDS):
            results: Results = {}
            for job, level in steps:
                progress.update(task, description=f"{job['name']}, {level} at once")
                watched = {"gateway": floor} if job["name"] == FLOOR else gateway["processes"]
                found = measure(job, level, seconds / ROUNDS, watched if level == CPU_AT else None)
                results.setdefault(job["name"], {})[str(level)] = found
                progress.advance(task)
            rounds.append(results)
    summary = _summary(rounds, gateway)
    report = {"seconds_each": seconds, "cores": os.cpu_count(), "results": _medians(rounds), "summary": summary}
    if not quiet:
        _print(console, report)
    return report


def _jobs(echo_port: int, floor_port: int, gateway: dict[str, Any]) -> list[dict[str, Any]]:
    http, router = gateway["http_port"], gateway["router_port"]
    arguments = {"text": TEXT}
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}

    def rpc(method: str, params: dict[str, Any], *, stateless: bool = False) -> str:
        params = {**params, "_meta": meta} if stateless else params
        return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})

    def routing(method: str, name: str | None = None) -> dict[str, str]:
        headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": method, "accept": ACCEPT}
        return {**headers, "mcp-name": name} if name else headers

    def post(name: str, port: int, path: str, body: str, **more: Any) -> dict[str, Any]:
        job = {"name": name, "kind": "http", "port": port, "path": path, "body": body, "headers": {}, "expect": TEXT}
        return {**job, "levels": CONCURRENCY, **more}

    def ws(name: str, subprotocol: str | None, opening: Sequence[str], body: str) -> dict[str, Any]:
        job = {"name": name, "kind": "ws", "port": router, "path": "/websocket", "subprotocol": subprotocol}
        return {**job, "opening": opening, "body": body, "expect": TEXT, "levels": CONCURRENCY}

    call = {"name": "echo", "arguments": arguments}
    full = {"name": "echo__echo", "arguments": arguments}
    return [
        post(FLOOR, floor_port, "/echo", json.dumps(arguments)),
        post(
            "direct call", echo_port, "/mcp", rpc("tools/call", call, stateless=True),
            headers=routing("tools/call", "echo"),
        ),
        post(
            "REST", http, "/execute_tool",
            json.dumps({"tool_id": "echo__echo", "parameters": arguments}),
        ),
        post(
            "/mcp, stateless", http, "/mcp", rpc("tools/call", full, stateless=True),
            headers=routing("tools/call", "echo__echo"),
        ),
        post(
            "/mcp, session", http, "/mcp", rpc("tools/call", full),
            headers={"mcp-protocol-version": SESSIONS, "accept": ACCEPT}, opening=OPENING,
        ),
        ws("router, mcp", "mcp", OPENING, rpc("tools/call", full)),
        ws(
            "router, typed", None, (),
            json.dumps({"type": "execute_tool", "request_id": "1", "tool_id": "echo__echo", "parameters": arguments}),
        ),
        post(
            "REST, stdio server", http, "/execute_tool",
            json.dumps({"tool_id": "pipe__echo", "parameters": arguments}),
        ),
        post(
            "tools/list, 10 tools", http, "/servers/ten/mcp", rpc("tools/list", {}, stateless=True),
            headers=routing("tools/list"), expect="echo_0010", levels=(1, 16),
        ),
        post(
            "tools/list, 500 tools", http, "/servers/many/mcp", rpc("tools/list", {}, stateless=True),
            headers=routing("tools/list"), expect="echo_0500", levels=(1, 16),
        ),
    ]  # fmt: skip


def _medians(rounds: list[Results]) -> Results:
    return {
        name: {
            level: {key: statistics.median(results[name][level][key] for results in rounds) for key in figures}
            for level, figures in levels.items()
        }
        for name, levels in rounds[0].items()
    }


def _summary(rounds: list[Results], gateway: dict[str, Any]) -> dict[str, Any]:
    def median(figure: Callable[[Results], float]) -> float:
        return round(statistics.median(figure(results) for results in rounds), 3)

    def throughput(path: str) -> float:
        return median(lambda r: r[path]["16"]["calls_per_second"] / r[FLOOR]["16"]["calls_per_second"])

    def cpu(path: str, process: str = "gateway") -> float:
        return median(lambda r: r[path][str(CPU_AT)][f"cpu_{process}_ms"] / r[FLOOR][str(CPU_AT)]["cpu_gateway_ms"])

    figures = {
        "rest_cpu_ratio": cpu("REST"),
        "session_cpu_ratio": cpu("/mcp, session"),
        "stateless_cpu_ratio": cpu("/mcp, stateless"),
        "router_cpu_ratio": cpu("router, mcp"),
        "recorder_cpu_ratio": cpu("REST", "recorder"),
        "rest_throughput_ratio": throughput("REST"),
        "rest_added_p50_ms": median(lambda r: r["REST"]["1"]["p50_ms"] - r["direct call"]["1"]["p50_ms"]),
        "mcp_throughput_ratio": throughput("/mcp, stateless"),
        "p99_to_p50_at_64": median(lambda r: r["REST"]["64"]["p99_ms"] / r["REST"]["64"]["p50_ms"]),
        "list_500_p50_ms": median(lambda r: float(r["tools/list, 500 tools"]["1"]["p50_ms"])),
        **{
            figure: gateway[figure] for figure in ("resident_mb", "resident_rest_mb", "recorder_mb", "seconds_to_ready")
        },
    }
    return judged(figures, TARGETS)


def _print(console: Any, report: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    results = report["results"]
    table = Table(
        "path", "p50 ms", "p99 ms", "/s at 16", "at 64", "x floor", "CPU ms", "recorder",
        box=box.SIMPLE_HEAD, padding=0, title=f"{report['cores']} cores, {report['seconds_each']:g} s each",
    )  # fmt: skip
    for column in table.columns:
        column.no_wrap = True
    floor = results[FLOOR]["16"]["calls_per_second"]
    for name, levels in results.items():
        one, sixteen = levels["1"], levels["16"]["calls_per_second"]
        more = f"{levels['64']['calls_per_second']:,.0f}" if "64" in levels else ""
        share = f"{sixteen / floor:.2f}" if not name.startswith("tools/list") else ""
        cpu, recorder = (levels[str(CPU_AT)].get(f"cpu_{process}_ms") for process in ("gateway", "recorder"))
        table.add_row(
            name, f"{one['p50_ms']:.3f}", f"{one['p99_ms']:.3f}", f"{sixteen:,.0f}", more,
            share, f"{cpu:.3f}" if cpu else "", f"{recorder:.3f}" if recorder else "",
        )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    console.print(
        "All rows but the first two go through the gateway to an echo server: over a\n"
        "second HTTP hop, and in the stdio row over a pipe, which is cheaper. The floor\n"
        "is a bare FastAPI route that checks and returns its body. CPU is that of a\n"
        "call at 16 at once, in the gateway and in its recorder.\n"
    )
    print_judged("", report["summary"])


def _resident(pid: int) -> float:
    """The resident memory of a process, in MB."""
    return round(psutil.Process(pid).memory_info().rss / 2**20, 1)


@contextmanager
def _gateway(echo_port: int) -> Iterator[dict[str, Any]]:
    """A gateway with settings of its own in a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="toolscore-bench-"))
    try:
        http_port, router_port = free_port(), free_port()
        python = sys.executable

        def stdio(count: int) -> dict[str, Any]:
            return {"command": python, "args": ["-m", "toolscore.bench.echo", "stdio", "0", str(count)]}

        servers = {
            "echo": {"url": f"http://127.0.0.1:{echo_port}/mcp"},
            **{name: stdio(count) for name, count in TOOLS.items() if name != "echo"},
        }
        configure(folder, http_port, router_port, servers)
        settle(folder, http_port)  # a first start, so that the measured one finds compiled files
        with serving(folder, http_port) as (process, seconds_to_ready):
            base = f"http://127.0.0.1:{http_port}"
            wait_for_tools(base, sum(TOOLS.values()))
            time.sleep(0.5)
            recorder = next(
                one for one in psutil.Process(process.pid).children() if "toolscore.history.recorder" in command_of(one)
            )
            idle, of_recorder = _resident(process.pid), _resident(recorder.pid)
            wait_for_servers(base, len(servers) + 1)
            yield {
                "processes": {"gateway": process.pid, "recorder": recorder.pid},
                "http_port": http_port,
                "router_port": router_port,
                "resident_mb": idle,
                "resident_rest_mb": _resident(process.pid),
                "recorder_mb": of_recorder,
                "seconds_to_ready": round(seconds_to_ready, 3),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
