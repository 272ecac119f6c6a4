"""`toolscore bench executor`: runs the measurements of `bench.py`, and shows them as tables and as a picture."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.bench import LEVELS, WORKLOADS, Tell, measure_engines, measure_soak

__all__ = ["run_bench", "run_soak"]


def run_soak(calls: int, *, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """Make many calls on end, and print what the executor holds after each tenth of them, unless `quiet`.

    Args:
        calls: how many.
        quiet: print nothing.
        options: of the executor.

    Returns:
        What `measure_soak` returns.
    """
    with _Display(quiet) as tell:
        result: dict[str, Any] = _run(measure_soak(calls, tell=tell, **options))
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
    """Measure, print the tables unless `quiet`, and write `benchmark_results.json` and the picture.

    Args:
        output: the folder to write to, made if it is missing; `None`: write nothing.
        quiet: print nothing.
        options: of `measure_engines`.

    Returns:
        What `measure_engines` returns.

    Raises:
        SandboxUnavailable: no engine runs here.
        OSError: the folder cannot be written.
    """
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
    """A line of progress on a terminal, which changes only between measurements: drawing it takes CPU time."""

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
    """Draw two panels: how long a paced call takes, and how many calls a second the engines make.

    Returns:
        The names of the files.
    """
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
