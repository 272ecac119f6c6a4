"""Measures the engines beside one another in one run, on seven workloads; `bench_report.py` shows the figures.

Two things are measured. The first is how long a call takes when there is a pause before each, as with an agent. The
engines take turns, so that a neighbour on the machine slows them all alike. The second is how many calls a second an
engine makes when 1, 4 and 16 are always under way. Each throughput is the median of three rounds.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mcp_servers.python_executor.engine import ENGINES, Engine, Job
from mcp_servers.python_executor.executor import Executor
from mcp_servers.python_executor.pool import SandboxUnavailable

__all__ = ["LEVELS", "WORKLOADS", "Tell", "measure_engines", "measure_soak"]

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
"""Is told what is measured now, and the share that is done."""


async def measure_engines(
    *,
    engines: Sequence[str] = (),
    seconds: float = 2.0,
    samples: int = SAMPLES,
    levels: Sequence[int] = LEVELS,
    rounds: int = ROUNDS,
    tell: Tell = lambda _what, _share: None,
    **options: Any,
) -> dict[str, Any]:
    """Measure engines beside one another.

    Args:
        engines: which; all that run here if empty.
        seconds: how long each throughput is measured, and a short call alone and beside two hogs.
        samples: paced calls of each workload and engine; 0 leaves out latency, and the short call.
        levels: calls under way, for throughput; empty leaves it out.
        rounds: how often throughput and the short call are measured, each for its part of `seconds`.
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
            for name, throughput in (await _throughput(running, seconds, levels, rounds, tell)).items():
                report[name]["throughput"] = throughput
        await asyncio.sleep(0.3)
        for name, engine in running.items():
            report[name]["memory_kb"] = await engine.memory_kb()
        hogs = await _beside_hogs(running["fork"], seconds, rounds, tell) if samples and "fork" in running else None
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


async def measure_soak(calls: int, *, tell: Tell, **options: Any) -> dict[str, Any]:
    """Make many calls on end, and note after each tenth of them what the executor holds.

    Args:
        calls: how many.
        tell: is told how many were made.
        options: of the executor.

    Returns:
        `calls`, and `marks`: memory in KB, processes and descriptors after so many calls.
    """
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
    running: dict[str, Engine], seconds: float, levels: Sequence[int], rounds: int, tell: Tell
) -> dict[str, dict[str, float]]:
    rates: dict[str, dict[str, list[float]]] = {name: {str(level): [] for level in levels} for name in running}
    steps = [(name, level) for _ in range(rounds) for level in levels for name in running]
    for at, (name, level) in enumerate(steps):
        tell(f"throughput of {name}, {level} at once", 0.4 + 0.5 * at / len(steps))
        rates[name][str(level)].append(await _calls_per_second(name, running[name], level, seconds / rounds))
    return {
        name: {level: round(statistics.median(values), 1) for level, values in own.items()}
        for name, own in rates.items()
    }


async def _calls_per_second(name: str, engine: Engine, level: int, seconds: float) -> float:
    jobs = list(_codes(name).values())
    began = time.perf_counter()
    end = began + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while True:  # each makes one call at least, or a busy machine's figure would be 0
            outcome = await engine.run(jobs[done % len(jobs)])
            if outcome.exit != "ok":
                raise RuntimeError(f"{name}: {outcome.exit}, {outcome.error}")
            done += 1
            if time.perf_counter() >= end:
                return

    await asyncio.gather(*(caller() for _ in range(level)))
    return done / (time.perf_counter() - began)


async def _beside_hogs(engine: Engine, seconds: float, rounds: int, tell: Tell) -> dict[str, float]:
    """Measure a call of a millisecond, alone and beside two hogs: one loops for ever, one allocates to its limit."""
    job = Job(MILLISECOND_CODE, timeout_seconds=TIMEOUT_SECONDS)

    async def sample() -> list[float]:
        values = []
        end = time.perf_counter() + seconds / rounds
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
    for _ in range(rounds):
        tell("a short call beside two hogs", 0.92)
        alone += await sample()
        hogs = [
            asyncio.ensure_future(engine.run(Job("while True: pass", timeout_seconds=TIMEOUT_SECONDS))),
            asyncio.ensure_future(allocate()),
        ]
        await asyncio.sleep(0.1)
        beside += await sample()
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


def _resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
