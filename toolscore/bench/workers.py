"""`toolscore bench workers`: what several processes on one port bring, and what they cost, against one process."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from toolscore.bench.process import (
    command_of,
    configure,
    cpu_seconds,
    echo,
    free_port,
    judged,
    measure,
    print_judged,
    serving,
    settle,
    wait_for_servers,
)

__all__ = ["TARGETS", "run_workers_bench"]

ROUNDS = 3
CONCURRENCY = 16
TEXT = "hello"
TARGETS = {
    "throughput_ratio": ("calls a second of all against one process, HTTP upstream, 16 calls at once", ">=", 1.6),
    "cpu_ratio": ("CPU a call of all processes against one and its recorder", "<=", 1.3),
    "busiest_share": ("CPU of the busiest worker against an even share", "<=", 1.25),
    "memory_mb": ("memory of a worker (PSS), MB", "<=", 70.0),
}


def run_workers_bench(
    *, workers: int = 2, seconds: float = 6.0, quiet: bool = False, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Start a gateway of one process and one of several, measure, print a table unless `quiet`, return the figures.

    Args:
        seconds: how long each is measured, over all rounds.
        tell: told what is done.
    """
    found: dict[str, list[dict[str, float]]] = {"one": [], "all": []}
    with ExitStack() as stack:
        echo_port = free_port()
        stack.enter_context(echo("mcp", echo_port))
        tell(f"starting a gateway of one process, and one of {workers}")
        counts = {"one": 1, "all": workers}
        running = {name: stack.enter_context(_gateway(echo_port, count)) for name, count in counts.items()}
        for number in range(ROUNDS):
            for name, (process, port) in running.items():
                tell(f"load on {name}, round {number + 1} of {ROUNDS}")
                found[name].append(_under_load(process, port, seconds / ROUNDS))
        memory = statistics.median(_memory(worker) for worker in _workers(*running["all"]))

    def ratio(figure: str) -> float:
        pairs = zip(found["all"], found["one"], strict=True)
        return round(statistics.median(one[figure] / other[figure] for one, other in pairs), 3)

    figures = {
        "throughput_ratio": ratio("calls_per_second"),
        "cpu_ratio": ratio("cpu_ms"),
        "busiest_share": round(statistics.median(one["busiest"] for one in found["all"]) * workers, 3),
        "memory_mb": round(memory / 2**20, 1),
    }
    summary = judged(figures, TARGETS)
    report = {"cores": os.cpu_count(), "workers": workers, "rounds": found, "summary": summary}
    if not quiet:
        print_judged(f"{workers} workers against one process, {report['cores']} cores for all", summary)
    return report


@contextmanager
def _gateway(echo_port: int, workers: int) -> Iterator[tuple[psutil.Process, int]]:
    with tempfile.TemporaryDirectory(prefix="toolscore-bench-") as name:
        folder, port = Path(name), free_port()
        servers = {"echo": {"url": f"http://127.0.0.1:{echo_port}/mcp"}}
        configure(folder, port, 0, servers)
        settle(folder, port)
        with serving(folder, port, workers) as (process, _):
            whole = psutil.Process(process.pid)
            wait_for_servers(f"http://127.0.0.1:{port}", 3)
            yield whole, port


def _processes(whole: psutil.Process) -> list[psutil.Process]:
    """Of the gateway itself: with its recorder, without its servers and sandboxes."""
    ours = {"serve", "toolscore.history.recorder"}
    return [whole, *(one for one in whole.children() if ours & set(command_of(one)))]


def _workers(whole: psutil.Process, port: int) -> list[psutil.Process]:
    """Those of several that take calls: they listen."""
    ours = [one for one in whole.children() if "serve" in command_of(one)]
    return [one for one in ours if any(link.laddr.port == port for link in one.net_connections("tcp"))]


def _memory(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss)


def _under_load(whole: psutil.Process, port: int, seconds: float) -> dict[str, float]:
    body = json.dumps({"tool_id": "echo__echo", "parameters": {"text": TEXT}})
    job = {
        "name": "echo__echo", "kind": "http", "port": port, "path": "/execute_tool", "body": body, "headers": {},
        "expect": TEXT,
    }  # fmt: skip
    processes, workers = _processes(whole), _workers(whole, port)
    before = {one.pid: cpu_seconds(one) for one in (*processes, *workers)}
    figures = measure(job, CONCURRENCY, seconds)
    spent = {one.pid: cpu_seconds(one) - before[one.pid] for one in (*processes, *workers)}
    of_workers = [spent[one.pid] for one in workers]
    return {
        "calls_per_second": figures["calls_per_second"],
        "p50_ms": figures["p50_ms"],
        "cpu_ms": sum(spent[one.pid] for one in processes) / max(1, figures["made"]) * 1000,
        "busiest": max(of_workers) / sum(of_workers) if of_workers else 1.0,
    }
