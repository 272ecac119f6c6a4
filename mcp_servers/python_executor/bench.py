"""`toolscore bench executor`: the engines beside one another in one run, on seven workloads.

Two things are measured. How long a call takes when calls come paced, as an agent's do: the engines take turns, so that
a neighbour on the machine slows them all alike. And how many calls a second an engine makes when 1, 4 and 16 are always
under way. Each throughput is the median of three rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.engine import ENGINES, Engine, Job
from mcp_servers.python_executor.executor import Executor
from mcp_servers.python_executor.pool import SandboxUnavailable

__all__ = ["LEVELS", "WORKLOADS", "measure_engines", "run_bench", "run_soak"]

WORKLOADS = {
    "simple_calc": "result = 1 + 1\nresult",
    "loop_calc": "total = 0\nfor i in range(1000):\n    total = total + i\nresult = total\nresult",
    "string_ops": (
        "s = 'hello world ' * 100\nwords = s.upper().replace('WORLD', 'PYTHON').split()\nresult = len(words)\nresult"
    ),
    "list_comp": "result = sum([x ** 2 for x in range(1000) if x % 2 == 0])\nresult",
    "dict_ops": (
        "d = {f'key_{i}': i * 2 for i in range(500)}\n"
        "result = sum([v for k, v in d.items() if k.endswith('5')])\nresult"
    ),
    "json_parsing": (
        "import json\ndata = json.dumps({'users': [{'id': i, 'name': f'user{i}'} for i in range(100)]})\n"
        "parsed = json.loads(data)\nresult = len(parsed['users'])\nresult"
    ),
    "mixed_workload": (
        "import json, math\nnums = [math.sqrt(i) for i in range(200)]\nd = {str(i): n for i, n in enumerate(nums)}\n"
        "s = json.dumps(d)\nt = 0\nfor k, v in json.loads(s).items():\n    if int(k) % 3 == 0:\n        t = t + v\n"
        "print(f'total={t:.3f}')\nresult = round(t, 3)\nresult"
    ),
}
"""The seven workloads, and what the last line of each must give."""
RESULTS = {
    "simple_calc": "2", "loop_calc": "499500", "string_ops": "200", "list_comp": "166167000", "dict_ops": "25000",
    "json_parsing": "100", "mixed_workload": "625.819",
}  # fmt: skip
IMPORTS = ("json_parsing", "mixed_workload")
"""Workloads that RestrictedPython refuses: it imports nothing."""
LEVELS = (1, 4, 16)
ROUNDS = 3
SAMPLES = 150
SLOW_SAMPLES = 10
WARM_UP = 20
PACE_SECONDS = 0.003
SLOW_ENGINES = ("fresh", "container")
TIMEOUT_SECONDS = 30.0
HOG_SECONDS = 2.0
MILLISECOND_CODE = "t = 0\nfor i in range(20_000):\n    t += i\nt"
TARGETS = {
    "paced_p50_ratio": ("fork against persistent, p50 of the seven workloads, paced", "<=", 1.2),
    "throughput_ratio": ("fork against one persistent process, calls/s at 16", ">=", 0.42),
    "fresh_ratio": ("fork against fresh, calls/s at 16", ">=", 12.0),
    "hog_p99_ratio": ("p99 of a 1 ms call beside two hogs, against alone", "<=", 5.0),
    "private_mb_per_spare": ("private memory of a spare child, MB", "<=", 0.7),
    "ready_ms": ("start to ready, ms", "<=", 500.0),
}
NEWER_THROUGHPUT = 0.5
"""Python 3.12 and later keep more pages shared."""

Tell = Callable[[str, float], None]


async def measure_engines(
    *,
    engines: Sequence[str] = (),
    seconds: float = 2.0,
    samples: int = SAMPLES,
    levels: Sequence[int] = LEVELS,
    tell: Tell = lambda _what, _share: None,
    **options: Any,
) -> dict[str, Any]:
    """Measure.

    Args:
        engines: which; all that run here if empty.
        seconds: of each throughput.
        samples: paced calls of each workload and engine; 0 leaves latency out.
        levels: calls under way, for throughput; empty leaves it out.
        tell: is told what is measured, and the share that is done.
        options: of the executor.

    Returns:
        `engines`: name → `latency` (workload → figures in ms), `throughput` (level → calls/s), `memory_kb`, `ready_ms`,
        `what`; `skipped`: name → why; `summary`; and the machine.
    """
    async with AsyncExitStack() as stack:
        running: dict[str, Engine] = {}
        report: dict[str, dict[str, Any]] = {}
        skipped: dict[str, str] = {}
        for name in engines or ENGINES:
            tell(f"starting {name}", 0)
            try:
                executor = await stack.enter_async_context(Executor(engine=name, **options))
            except SandboxUnavailable as exc:
                skipped[name] = str(exc)
                continue
            running[name] = await executor.ready_engine(name)
            about = running[name].about()
            report[name] = {
                "what": ENGINES[name],
                "tier": about.get("tier"),
                "python": about.get("python"),
                "ready_ms": about.get("ready_ms"),
                "start_ms": running[name].figures().get("start_ms"),
            }
        if not running:
            raise SandboxUnavailable("; ".join(f"{name}: {why}" for name, why in skipped.items()))
        for name, engine in running.items():
            tell(f"warming up {name}", 0.02)
            await _warm_up(name, engine)
        if samples:
            for name, latency in (await _latency(running, samples, tell)).items():
                report[name]["latency"] = latency
        if levels:
            for name, throughput in (await _throughput(running, seconds, levels, tell)).items():
                report[name]["throughput"] = throughput
        await asyncio.sleep(0.3)
        for name, engine in running.items():
            report[name]["memory_kb"] = await engine.memory_kb()
        hogs = await _beside_hogs(running["fork"], tell) if samples and "fork" in running else None
    return {
        "python": next((one["python"] for one in report.values() if one["python"]), platform.python_version()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release().split('-')[0]}",
        "seconds": seconds,
        "samples": samples,
        "workloads": WORKLOADS,
        "engines": report,
        "skipped": skipped,
        "beside_hogs": hogs,
        "summary": _summary(report, hogs),
    }


def _codes(name: str) -> dict[str, Job]:
    jobs = {workload: Job(code, timeout_seconds=TIMEOUT_SECONDS) for workload, code in WORKLOADS.items()}
    if name == "restricted":
        jobs = {workload: job for workload, job in jobs.items() if workload not in IMPORTS}
    return jobs


async def _warm_up(name: str, engine: Engine) -> None:
    """Also holds every result against what it must be: a fast wrong answer counts for nothing."""
    for workload, job in _codes(name).items():
        for _ in range(2 if name in SLOW_ENGINES else WARM_UP):
            outcome = await engine.run(job)
            if outcome.exit != "ok" or outcome.result != RESULTS[workload]:
                raise RuntimeError(f"{name}, {workload}: {outcome.exit}, {outcome.result}, {outcome.error}")


async def _latency(running: dict[str, Engine], samples: int, tell: Tell) -> dict[str, dict[str, dict[str, float]]]:
    """One call at a time, with a pause before each; the engines take turns."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in running}
    jobs = {name: _codes(name) for name in running}
    for at, workload in enumerate(WORKLOADS):
        tell(f"latency of {workload}", 0.05 + 0.35 * at / len(WORKLOADS))
        for number in range(samples):
            for name, engine in running.items():
                job = jobs[name].get(workload)
                if job is None or (name in SLOW_ENGINES and number >= SLOW_SAMPLES):
                    continue
                await asyncio.sleep(PACE_SECONDS)
                began = time.perf_counter()
                await engine.run(job)
                times[name].setdefault(workload, []).append((time.perf_counter() - began) * 1000)
    return {
        name: {workload: _figures(values) for workload, values in workloads.items()}
        for name, workloads in times.items()
    }


def _figures(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    found = {
        "average_ms": statistics.fmean(values), "median_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98],
        "min_ms": min(values), "max_ms": max(values),
    }  # fmt: skip
    return {**{key: round(value, 4) for key, value in found.items()}, "samples": len(values)}


async def _throughput(
    running: dict[str, Engine], seconds: float, levels: Sequence[int], tell: Tell
) -> dict[str, dict[str, float]]:
    rounds: dict[str, dict[str, list[float]]] = {name: {str(level): [] for level in levels} for name in running}
    steps = [(name, level) for _ in range(ROUNDS) for level in levels for name in running]
    for at, (name, level) in enumerate(steps):
        tell(f"throughput of {name}, {level} at once", 0.4 + 0.5 * at / len(steps))
        rounds[name][str(level)].append(await _calls_per_second(name, running[name], level, seconds / ROUNDS))
    return {
        name: {level: round(statistics.median(values), 1) for level, values in own.items()}
        for name, own in rounds.items()
    }


async def _calls_per_second(name: str, engine: Engine, level: int, seconds: float) -> float:
    jobs = list(_codes(name).values())
    began = time.perf_counter()
    end = began + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            outcome = await engine.run(jobs[done % len(jobs)])
            if outcome.exit != "ok":
                raise RuntimeError(f"{name}: {outcome.exit}, {outcome.error}")
            done += 1

    await asyncio.gather(*(caller() for _ in range(level)))
    return done / (time.perf_counter() - began)


async def _beside_hogs(engine: Engine, tell: Tell) -> dict[str, float]:
    """A call of a millisecond, alone and beside one that loops for ever and one that allocates to its limit."""
    job = Job(MILLISECOND_CODE, timeout_seconds=TIMEOUT_SECONDS)

    async def sample(seconds: float) -> list[float]:
        values = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await asyncio.sleep(PACE_SECONDS)
            began = time.perf_counter()
            await engine.run(job)
            values.append((time.perf_counter() - began) * 1000)
        return values

    async def allocate() -> None:
        while True:
            await engine.run(Job("x = []\nwhile True: x.append(bytearray(1 << 20))", timeout_seconds=TIMEOUT_SECONDS))

    alone: list[float] = []
    beside: list[float] = []
    for _ in range(ROUNDS):
        tell("a short call beside two hogs", 0.92)
        alone += await sample(HOG_SECONDS / ROUNDS)
        hogs = [
            asyncio.ensure_future(engine.run(Job("while True: pass", timeout_seconds=TIMEOUT_SECONDS))),
            asyncio.ensure_future(allocate()),
        ]
        await asyncio.sleep(0.1)
        beside += await sample(HOG_SECONDS / ROUNDS)
        for hog in hogs:
            hog.cancel()
        await asyncio.gather(*hogs, return_exceptions=True)
        await asyncio.sleep(0.1)
    return {
        "alone_p50_ms": _figures(alone)["median_ms"], "alone_p99_ms": _figures(alone)["p99_ms"],
        "beside_p50_ms": _figures(beside)["median_ms"], "beside_p99_ms": _figures(beside)["p99_ms"],
    }  # fmt: skip


def _summary(report: dict[str, dict[str, Any]], hogs: dict[str, float] | None) -> dict[str, Any]:
    fork, persistent, fresh = (report.get(name, {}) for name in ("fork", "persistent", "fresh"))
    found: dict[str, float] = {}
    if "latency" in fork and "latency" in persistent:
        ratios = [fork["latency"][one]["median_ms"] / persistent["latency"][one]["median_ms"] for one in WORKLOADS]
        found["paced_p50_ratio"] = statistics.geometric_mean(ratios)
    for key, other in (("throughput_ratio", persistent), ("fresh_ratio", fresh)):
        if "16" in fork.get("throughput", {}) and "16" in other.get("throughput", {}):
            found[key] = fork["throughput"]["16"] / other["throughput"]["16"]
    if hogs is not None:
        found["hog_p99_ratio"] = hogs["beside_p99_ms"] / hogs["alone_p99_ms"]
    if fork.get("memory_kb", {}).get("private_per_child"):
        found["private_mb_per_spare"] = fork["memory_kb"]["private_per_child"] / 1024
    if fork.get("start_ms"):
        found["ready_ms"] = fork["start_ms"]
    summary = {}
    for key, value in found.items():
        label, sign, bound = TARGETS[key]
        if key == "throughput_ratio" and fork["python"] >= "3.12":
            bound = NEWER_THROUGHPUT
        met = value >= bound if sign == ">=" else value <= bound
        summary[key] = {"label": label, "value": round(value, 3), "target": f"{sign} {bound:g}", "met": met}
    return summary


async def _soak(calls: int, tell: Tell, **options: Any) -> dict[str, Any]:
    async with Executor(engine="fork", **options) as executor:
        engine = await executor.ready_engine("fork")
        jobs = list(_codes("fork").values())
        left = calls
        marks: list[dict[str, float]] = []

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await engine.run(jobs[left % len(jobs)])

        while left > 0:
            step = min(left, max(1, calls // 10))
            goal, left = left - step, step
            await asyncio.gather(*(caller() for _ in range(16)))
            left = goal
            await asyncio.sleep(0.3)
            figures = engine.figures()
            marks.append(
                {
                    "calls": calls - left,
                    "server_kb": _resident_kb(),
                    "zygote_kb": (await engine.memory_kb())["zygote"],
                    "children": figures["children"],
                    "descriptors": len(os.listdir("/proc/self/fd")),
                }
            )
            tell(f"{calls - left:,} calls", 1 - left / calls)
    return {"calls": calls, "marks": marks}


def _resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def run_soak(calls: int, *, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """So many calls on end, and after each tenth of them what the executor holds: memory, processes, descriptors."""
    with _Display(quiet) as tell:
        result: dict[str, Any] = _run(_soak(calls, tell, **options))
    if not quiet:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(*result["marks"][0], box=box.SIMPLE_HEAD)
        for mark in result["marks"]:
            table.add_row(*(f"{value:,}" for value in mark.values()))
        Console().print(table)
    return result


def run_bench(*, output: Path | None, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """Measure, print the table unless `quiet`, and write `benchmark_results.json` and the picture to a folder."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "benchmark_results.json").touch()  # or it fails after the whole measurement
    with _Display(quiet) as tell:
        report: dict[str, Any] = _run(measure_engines(tell=tell, **options))
    if not quiet:
        _print(report)
    if output is None:
        return report
    (output / "benchmark_results.json").write_text(json.dumps(report, indent=2) + "\n")
    written = ["benchmark_results.json"]
    try:
        written += _draw(report, output)
    except ImportError:
        print("no picture was drawn: it needs matplotlib (pip install 'toolscore[bench]')", file=sys.stderr)
    if not quiet:
        print(f"written to {output.resolve()}: {', '.join(written)}")
    return report


def _run(work: Any) -> Any:
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


class _Display:
    """A line of progress on a terminal; it rests while calls are measured."""

    def __init__(self, quiet: bool) -> None:
        self._progress: Any = None
        if not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description:<42}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(), console=Console(stderr=True), transient=True, auto_refresh=False,
            )  # fmt: skip

    def __enter__(self) -> Tell:
        if self._progress is None:
            return lambda _what, _share: None
        self._progress.__enter__()
        task = self._progress.add_task("starting", total=1.0)

        def tell(what: str, share: float) -> None:
            self._progress.update(task, description=what, completed=share, refresh=True)

        return tell

    def __exit__(self, *details: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(*details)


def _print(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    engines = report["engines"]
    if any("latency" in figures for figures in engines.values()):
        table = Table("ms", *engines, box=box.SIMPLE_HEAD, title=f"Python {report['python']}, {report['machine']}")
        for workload in WORKLOADS:
            row = [figures.get("latency", {}).get(workload) for figures in engines.values()]
            table.add_row(workload, *(f"{one['median_ms']:.2f}" if one else "refused" for one in row))
        table.add_section()
        for label, key in (
            ("average", "average_ms"), ("median", "median_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"),
            ("min", "min_ms"), ("max", "max_ms"),
        ):  # fmt: skip
            table.add_row(label, *(f"{_over_all(figures, key):.2f}" for figures in engines.values()))
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)
        console.print("Median of each workload, paced; below, the seven workloads together.\n")
    if any("throughput" in figures for figures in engines.values()):
        table = Table(
            "engine", *(f"calls/s at {level}" for level in LEVELS), "zygote MB", "a child MB", box=box.SIMPLE_HEAD
        )
        for name, figures in engines.items():
            rates = [figures["throughput"].get(str(level)) for level in LEVELS]
            memory = figures["memory_kb"]
            sizes = [memory.get("zygote"), memory.get("private_per_child")]
            table.add_row(
                name,
                *(f"{rate:,.0f}" if rate is not None else "" for rate in rates),
                *(f"{size / 1024:.1f}" if size else "" for size in sizes),
            )
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)
    goals = Table("figure", "measured", "to reach", "", box=box.SIMPLE_HEAD)
    for line in report["summary"].values():
        goals.add_row(
            line["label"], f"{line['value']:g}", line["target"], "[green]met[/]" if line["met"] else "[red]missed[/]"
        )
    console.print(goals)
    for name, figures in engines.items():
        console.print(f"  [bold]{name}[/]: {figures['what']}")
    for name, why in report["skipped"].items():
        console.print(f"  [bold]{name}[/] does not run here: {why.splitlines()[0]}", style="yellow")


def _over_all(figures: dict[str, Any], key: str) -> float:
    values = [one[key] for one in figures["latency"].values()]
    if key == "min_ms":
        return float(min(values))
    return float(max(values) if key == "max_ms" else statistics.fmean(values))


def _draw(report: dict[str, Any], output: Path) -> list[str]:
    """Two panels: how long a paced call takes, and how many calls a second the engines make."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    engines = {name: one for name, one in report["engines"].items() if "latency" in one and "throughput" in one}
    if not engines:
        return []
    ink, quiet, accent, levels = "#1c2733", "#8793a0", "#d9480f", ("#c3d3e3", "#7da3c8", "#2f6497")
    style: Any = {
        "font.size": 10, "text.color": ink, "axes.edgecolor": quiet, "axes.labelcolor": ink, "xtick.color": ink,
        "ytick.color": ink, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "toolscore",
    }  # fmt: skip
    with mpl.rc_context(style):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 1.7 + 0.62 * len(engines)), sharey=True)
        for at, (name, one) in enumerate(engines.items()):
            low, mid, high = (_over_all(one, key) for key in ("min_ms", "median_ms", "p99_ms"))
            color = accent if name == "fork" else levels[2]
            left.plot([low, high], [at, at], color=color, linewidth=2, alpha=0.45, solid_capstyle="round")
            left.plot([mid], [at], "o", color=color, markersize=7)
            left.annotate(f"{mid:.3g} ms", (mid, at), (0, 9), textcoords="offset points", ha="center", color=color)
            for number, (level, shade) in enumerate(zip(LEVELS, levels, strict=True)):
                rate = one["throughput"].get(str(level), 0)
                place = at + (number - 1) * 0.25
                right.barh(place, rate, 0.23, color=shade, label=f"{level} at once" if at == 0 else None)
                right.annotate(
                    f"{rate:,.0f}", (rate, place), (4, 0), textcoords="offset points", va="center", fontsize=8
                )
        left.set_xscale("log")
        left.xaxis.set_major_formatter("{x:g}")
        left.set_yticks(range(len(engines)), engines)
        left.set_ylim(len(engines) - 0.4, -0.6)
        left.set_xlabel("a paced call, ms (log): least, median, p99")
        right.set_xlabel("calls per second, seven workloads")
        right.margins(x=0.12)
        right.tick_params(axis="y", length=0)
        left.set_title("How long a call takes", loc="left", fontweight="bold")
        right.set_title("How many calls a second", loc="left", fontweight="bold")
        figure.legend(frameon=False, loc="lower right", ncols=3, fontsize=8)
        figure.text(0.01, 0.01, f"Python {report['python']}, {report['machine']}", color=quiet, fontsize=8)
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        names = ["benchmark_results.png", "benchmark_results.svg"]
        for name in names:
            figure.savefig(output / name, dpi=150, metadata={"Date": None} if name.endswith("svg") else None)
        pyplot.close(figure)
    return names
