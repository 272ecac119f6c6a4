"""`toolscore bench code --channel`: what the way from code in the sandbox to a tool costs, and what a run costs.

Two gateways, with the executor in their process and apart, in front of an echo server over stdio, measured in turn. An
inner call is timed by the code that makes it; what the same calls took in the pipeline stands in the journal: the
difference is the channel.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from toolscore.bench.process import configure, free_port, serving, wait_for_servers

__all__ = ["BOUNDS", "run_channel_bench"]

ROUNDS = 5
RUNS = 200
BOUNDS = {"in process": {"added_ms": 0.35, "one_by_one_s": 0.6, "at_once_s": 0.3}, "apart": {"added_ms": 0.6}}
"""What the channel may add to the p50 of an inner call; 1,000 inner calls by one run; 16 of them at a time."""
ONE_BY_ONE = """
import time
times = []
began = time.perf_counter()
for _ in range(1000):
    start = time.perf_counter()
    tools.echo.echo(text="hello")
    times.append(time.perf_counter() - start)
print(time.perf_counter() - began, sorted(times)[500] * 1000)
"""
AT_ONCE = """
import time
began = time.perf_counter()
tools.parallel(tools.echo.echo.later(text="hello") for _ in range(1000))
print(time.perf_counter() - began)
"""
EMPTY = {"code": "1 + 1"}


def run_channel_bench(*, rounds: int = ROUNDS, quiet: bool = False) -> dict[str, Any]:
    """Measure, print a table unless `quiet`, and return the figures of each place: `inner_p50_ms`, `pipeline_p50_ms`,
    `added_ms`, `one_by_one_s`, `at_once_s`, `run_ms`, `execute_ms`, `ratio`.
    """
    from rich.console import Console
    from rich.progress import track

    with tempfile.TemporaryDirectory(prefix="toolscore-bench-") as name, ExitStack() as stack:
        bases = {
            place: _started(stack, Path(name) / str(number), inside=place == "in process")
            for number, place in enumerate(BOUNDS)
        }
        turns = [*bases.items()] * (rounds + 1)  # the first warms up
        taken: dict[str, list[dict[str, float]]] = {place: [] for place in bases}
        for place, base in track(turns, "measuring", console=Console(stderr=True), transient=True, disable=quiet):
            taken[place].append(_round(base))
    report = {}
    for place, found in taken.items():
        figures = {key: round(statistics.median(one[key] for one in found[1:]), 4) for key in found[0]}
        figures["ratio"] = round(figures["run_ms"] / figures["execute_ms"], 3)
        report[place] = figures
    if not quiet:
        _print(report)
    return report


def _round(base: str) -> dict[str, float]:
    run = _run(base, ONE_BY_ONE)
    seconds, inner = map(float, run["structured_content"]["stdout"].split())
    query = f"/api/v1/calls?parent={run['call_id']}&limit=1000"
    calls = _ask(base, query)["calls"]
    pipeline = statistics.median(call["duration_ms"] for call in calls)
    at_once = float(_run(base, AT_ONCE)["structured_content"]["stdout"])
    times: dict[str, list[float]] = {"run": [], "execute": []}
    for _ in range(RUNS // ROUNDS):
        for what, tool in (("run", "toolscore__run_code"), ("execute", "python-executor-mcp-server__python_execute")):
            began = time.perf_counter()
            _ask(base, "/execute_tool", {"tool_id": tool, "parameters": EMPTY})
            times[what].append((time.perf_counter() - began) * 1000)
    return {
        "inner_p50_ms": inner, "pipeline_p50_ms": pipeline, "added_ms": inner - pipeline, "one_by_one_s": seconds,
        "at_once_s": at_once, "run_ms": statistics.median(times["run"]),
        "execute_ms": statistics.median(times["execute"]),
    }  # fmt: skip


def _run(base: str, code: str) -> dict[str, Any]:
    answer = _ask(base, "/api/v1/code/run", {"code": code, "tools": ["echo"], "timeout_seconds": 60})
    if answer["is_error"]:
        raise RuntimeError(f"the code failed: {answer['content']}")
    return answer


def _ask(base: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{base}{path}", data, {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        found: dict[str, Any] = json.loads(response.read())["data"]
    return found


def _started(stack: ExitStack, folder: Path, *, inside: bool) -> str:
    """A gateway; its address."""
    folder.mkdir()
    http_port, router_port = free_port(), free_port()
    entry = {"command": sys.executable, "args": ["-m", "toolscore.bench.echo", "stdio", "0"]}
    settings = {"journal": {"log_calls": False}}
    configure(folder, http_port, router_port, {"echo": entry}, settings, use_inprocess_python_executor=inside)
    stack.enter_context(serving(folder, http_port))
    base = f"http://127.0.0.1:{http_port}"
    wait_for_servers(base, 3)
    return base


def _print(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = (
        ("an inner call, p50", "inner_p50_ms", "ms"),
        ("the same in the pipeline, p50", "pipeline_p50_ms", "ms"),
        ("what the channel adds", "added_ms", "ms"),
        ("1,000 inner calls, one after the other", "one_by_one_s", "s"),
        ("1,000 inner calls, 16 at a time", "at_once_s", "s"),
        ("run_code without inner calls", "run_ms", "ms"),
        ("python_execute", "execute_ms", "ms"),
        ("their ratio", "ratio", ""),
    )
    table = Table("", *report, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for text, key, unit in rows:
        cells = []
        for place, figures in report.items():
            bound = BOUNDS[place].get(key)
            mark = "" if bound is None else " [green]✓[/]" if figures[key] <= bound else f" [red]> {bound:g}[/]"
            cells.append(f"{figures[key]:.3f} {unit}{mark}".strip())
        table.add_row(text, *cells)
    Console().print(table)
