"""`toolscore bench executor`: the engines, which the executor measures itself, and the gateway before it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from toolscore.app.executor import EXECUTOR_ID, executor_command
from toolscore.bench.process import configure, free_port, measure, serving, settle, wait_for_servers

__all__ = ["run_executor_bench"]

CONCURRENCY = 16
ROUNDS = 3
TARGET = 0.6


def run_executor_bench(
    *, seconds: float, engines: str, samples: int, output: Path, soak: int, interpreter: str | None, quiet: bool
) -> int:
    """Measure, print, and write `benchmark_results.json`. Returns the exit code."""
    options = json.dumps({"interpreter": interpreter} if interpreter else {})
    command = executor_command(
        "bench", "--seconds", str(seconds), "--engines", engines, "--samples", str(samples), "--options", options
    )
    if soak:
        return subprocess.run([*command, "--soak", str(soak), *(["--json"] if quiet else [])], check=False).returncode
    silent = subprocess.DEVNULL if quiet else None
    done = subprocess.run(
        [*command, "--output", str(output), *(["--json"] if quiet else [])], stdout=silent, check=False
    )
    if done.returncode != 0:
        return done.returncode
    results = output / "benchmark_results.json"
    report = json.loads(results.read_text())
    if "fork" in report["engines"]:
        report["gateway"] = gateway = _through_the_gateway(report["workloads"], seconds, options, quiet=quiet)
        results.write_text(json.dumps(report, indent=2) + "\n")
        if not quiet:
            _print(gateway)
    if quiet:
        print(json.dumps(report))
    return 0


def _through_the_gateway(workloads: dict[str, str], seconds: float, options: str, *, quiet: bool) -> dict[str, Any]:
    """Calls a second at 16: the executor by itself, and behind `POST /execute_tool`, in turn."""
    if not quiet:
        print("measuring it behind the gateway ...", file=sys.stderr)
    bodies = [
        json.dumps({"tool_id": EXECUTOR_ID, "action": "python_execute", "parameters": {"code": code}})
        for code in workloads.values()
    ]
    bare: list[float] = []
    behind: list[float] = []
    with tempfile.TemporaryDirectory(prefix="toolscore-bench-") as name:
        folder = Path(name)
        port = free_port()
        configure(folder, port, free_port(), settings={"python_executor": json.loads(options)})
        settle(folder, port)
        with serving(folder, port):
            wait_for_servers(f"http://127.0.0.1:{port}", 1)
            job = {"name": "python_execute", "kind": "http", "port": port, "path": "/execute_tool", "bodies": bodies}
            for _ in range(ROUNDS):
                alone = subprocess.run(
                    executor_command(
                        "bench", "--engines", "fork", "--samples", "0", "--levels", str(CONCURRENCY), "--seconds",
                        str(seconds), "--options", options, "--json",
                    ),
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                bare.append(json.loads(alone.stdout)["engines"]["fork"]["throughput"][str(CONCURRENCY)])
                found = measure({**job, "headers": {}, "expect": '"exit":"ok"'}, CONCURRENCY, seconds)
                behind.append(found["calls_per_second"])
    ratio = round(statistics.median(one / other for one, other in zip(behind, bare, strict=True)), 3)
    return {
        "bare_calls_per_second": statistics.median(bare),
        "gateway_calls_per_second": statistics.median(behind),
        "ratio": ratio,
        "target": f">= {TARGET:g}",
        "met": ratio >= TARGET,
    }


def _print(gateway: dict[str, Any]) -> None:
    from rich.console import Console

    mark = "[green]met[/]" if gateway["met"] else "[red]missed[/]"
    Console().print(
        f"Behind POST /execute_tool, {CONCURRENCY} at once: {gateway['gateway_calls_per_second']:,.0f} calls/s, "
        f"{gateway['ratio']:.2f} of the executor by itself ({gateway['bare_calls_per_second']:,.0f}); "
        f"to reach {gateway['target']}: {mark}"
    )
