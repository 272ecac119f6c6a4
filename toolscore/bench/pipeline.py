"""`toolscore bench gateway --pipeline`: what each step of the pipeline costs a call, in one run.

One gateway for each choice of steps, all in front of the same echo server and measured in turn, so that a noisy moment
hits all alike. What cannot be switched off (names, validation, places at a server, breaker, counters) is in each.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from toolscore.bench.process import configure, free_port, measure, serving, wait_for_servers

__all__ = ["BOUND_MS", "run_pipeline_bench"]

BOUND_MS = 0.15
"""What all steps together may add to the p50 of a call."""
ROUNDS = 9
TEXT = "hello"

OFF = {
    "cache": {"enabled": False},
    "journal": {"enabled": False, "log_calls": False},
    "scores": {"enabled": False},
    "firewall": {"enabled": False},
}
RULES = [
    *({"effect": "deny", "principals": [f"guest-{number}*"], "tools": [f"secret_{number}__*"]} for number in range(20)),
    {"effect": "deny", "tools": ["echo__*"], "arguments": {"text": {"matches": "^forbidden"}}},
]
DEFAULTS: dict[str, Any] = {"cache": {}, "journal": {}, "scores": {}, "firewall": {}}
STEPS: dict[str, dict[str, Any]] = {
    "every step off": {},
    "policy: 21 rules, one on arguments": {"policy": {"rules": RULES}},
    "cache: asked, and kept anew each time": {"cache": {"tools": {"echo__*": 0.000001}}},
    "journal": {"journal": {"log_calls": False, "starts": "off"}},
    "journal, starts noted before they are sent": {"journal": {"log_calls": False}},
    "journal, starts on the disk before they are sent": {"journal": {"log_calls": False, "starts": "power"}},
    "journal, and a log line for each call": {"journal": {}},
    "scores": {"scores": {}},
    "error firewall": {"firewall": {}},
    "as installed": DEFAULTS,
    "all together, with the rules": {**DEFAULTS, "policy": {"rules": RULES}},
    "with a key, and its budget": {
        **DEFAULTS, "policy": {"rules": RULES}, "access": {"local_without_key": False},
        "rates": {"per_minute": 1_000_000, "burst": 1_000_000},
    },
}  # fmt: skip
PIPELINE = "all together, with the rules"


def run_pipeline_bench(*, seconds: float = 2.0, quiet: bool = False) -> dict[str, Any]:
    """Start a gateway for each choice, measure, print a table unless `quiet`, and return the figures.

    Args:
        seconds: of each measurement of each choice, all rounds together.
    """
    from rich.console import Console
    from rich.progress import Progress

    folder = Path(tempfile.mkdtemp(prefix="toolscore-bench-"))
    try:
        with ExitStack() as stack:
            echo_port = free_port()
            echo = subprocess.Popen([sys.executable, "-m", "toolscore.bench.echo", "mcp", str(echo_port)])
            stack.callback(echo.wait, 5)
            stack.callback(echo.terminate)
            jobs = {name: _started(stack, folder / str(number), echo_port, steps)
                    for number, (name, steps) in enumerate(STEPS.items())}  # fmt: skip
            p50: dict[str, list[float]] = {name: [] for name in jobs}
            progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
            task = progress.add_task("measuring", total=ROUNDS * len(jobs))
            for turn in range(ROUNDS):
                names = list(jobs)
                for name in names if turn % 2 else reversed(names):
                    p50[name].append(float(measure(jobs[name], 1, seconds / ROUNDS)["p50_ms"]))
                    progress.advance(task)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    floor = p50["every step off"]
    figures = {
        name: {
            "p50_ms": round(statistics.median(taken), 4),
            "added_ms": round(statistics.median(one - base for one, base in zip(taken, floor, strict=True)), 4),
        }
        for name, taken in p50.items()
    }
    added = figures[PIPELINE]["added_ms"]
    report = {"steps": figures, "added_ms": added, "target_ms": BOUND_MS, "met": added <= BOUND_MS}
    if not quiet:
        _print(report)
    return report


def _started(stack: ExitStack, folder: Path, echo_port: int, steps: dict[str, Any]) -> dict[str, Any]:
    """A gateway with these steps on. The job that measures it."""
    folder.mkdir()
    http_port, router_port = free_port(), free_port()
    entry = {"url": f"http://127.0.0.1:{echo_port}/mcp"}
    configure(folder, http_port, router_port, {"echo": entry}, {**OFF, **steps})
    headers: dict[str, str] = {}
    stack.enter_context(serving(folder, http_port))
    if "access" in steps:
        command = [sys.executable, "-m", "toolscore", "keys", "create", "bench", "--config", str(folder)]
        key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        headers = {"authorization": f"Bearer {key}"}
    else:
        wait_for_servers(f"http://127.0.0.1:{http_port}", 2)
    body = json.dumps({"tool_id": "echo__echo", "parameters": {"text": TEXT}})
    return {"name": folder.name, "kind": "http", "port": http_port, "path": "/execute_tool", "body": body,
            "headers": headers, "expect": TEXT}  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "p50 ms", "added ms", box=box.SIMPLE_HEAD, title="POST /execute_tool, one caller")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figures in report["steps"].items():
        table.add_row(name, f"{figures['p50_ms']:.3f}", f"{figures['added_ms']:+.3f}")
    console = Console()
    console.print(table)
    mark = "[green]met[/]" if report["met"] else "[red]missed[/]"
    console.print(f"The pipeline adds {report['added_ms']:.3f} ms to the p50 of a call; at most {BOUND_MS:g}: {mark}")
