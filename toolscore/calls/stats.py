"""Figures of the calls: counts since the start, and windows of the last minute, five minutes and hour."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from typing import Any

import msgspec

__all__ = ["CallStats", "Latencies", "More", "Windows"]

WINDOWS = {"10s": 10.0, "1m": 60.0, "5m": 300.0, "1h": 3600.0}
STEP_SECONDS = 5.0
MAX_TOOLS = 300
FINENESS = 1.1
"""Latencies are counted in steps of a tenth: a percentile is off by no more."""
MAX_GATHERED = 5000
"""Tools and outcomes of one second that other workers are told of."""
MOST = 1e12
_log = math.log(FINENESS)


def _step_of(milliseconds: float) -> int:
    """In which step of a tenth a latency lies."""
    return math.ceil(math.log(milliseconds) / _log) if milliseconds > 0.001 else -80


class Latencies(msgspec.Struct, array_like=True):
    """How long calls took, in ms; `steps`: how many took how long."""

    count: int = 0
    sum: float = 0.0
    low: float = MOST
    high: float = 0.0
    steps: dict[int, int] = {}

    def add(self, milliseconds: float) -> None:
        """Take one call."""
        steps, step = self.steps, _step_of(milliseconds)
        steps[step] = steps.get(step, 0) + 1
        self.count += 1
        self.sum += milliseconds
        if milliseconds < self.low:
            self.low = milliseconds
        if milliseconds > self.high:
            self.high = milliseconds

    def merge(self, others: Latencies) -> None:
        """Take others, too."""
        for step, count in others.steps.items():
            self.steps[step] = self.steps.get(step, 0) + count
        self.count += others.count
        self.sum += others.sum
        self.low, self.high = min(self.low, others.low), max(self.high, others.high)

    def percentiles(self) -> dict[str, float | None]:
        """p50, p95 and p99 in ms; `None` without calls."""
        steps = sorted(self.steps.items())
        return {
            name: self._quantile(steps, share) for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))
        }

    def _quantile(self, steps: list[tuple[int, int]], share: float) -> float | None:
        """A latency in ms that this share of the calls did not exceed, out of counts by step, the smallest first."""
        seen = 0
        for step, count in steps:
            seen += count
            if seen >= share * self.count:
                return round(min(max(FINENESS**step, self.low), self.high), 3)
        return None


class _Bucket:
    """The calls of a few seconds."""

    __slots__ = ("errors", "kept", "latencies", "outcomes")

    def __init__(self) -> None:
        self.latencies = Latencies()
        self.errors = 0
        self.kept = 0
        self.outcomes: dict[str, int] = {}


class More(msgspec.Struct, array_like=True):
    """Calls of a tool that ended alike in the last moment; `kept`: out of the cache."""

    tool: str
    outcome: str
    kept: bool
    latencies: Latencies


class Windows:
    """Latencies of the last hour. The clock is an argument.

    Args:
        bucket_seconds: how finely time is cut.
    """

    def __init__(self, bucket_seconds: float) -> None:
        self._seconds = bucket_seconds
        self._buckets: OrderedDict[int, _Bucket] = OrderedDict()

    def merge(self, latencies: Latencies, failed: bool, now: float) -> _Bucket:
        """Take calls that ended in this moment. Returns its figures."""
        bucket = self._at(now)
        bucket.latencies.merge(latencies)
        bucket.errors += failed * latencies.count
        return bucket

    def _at(self, now: float) -> _Bucket:
        key = int(now / self._seconds)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
            oldest = key - int(3600 / self._seconds)
            while next(iter(self._buckets)) < oldest:
                self._buckets.popitem(last=False)
        return bucket

    def over(self, seconds: float, now: float) -> dict[str, Any]:
        """Count, errors, and avg, min, p50, p95, p99, max in ms (`None` without calls) of the last seconds."""
        first = int((now - seconds) / self._seconds) + 1
        all_of_them, errors = Latencies(), 0
        for key, bucket in self._buckets.items():
            if key >= first:
                all_of_them.merge(bucket.latencies)
                errors += bucket.errors
        number = all_of_them.count
        figures: dict[str, Any] = {"count": number, "errors": errors}
        if not number:
            return {**figures, **dict.fromkeys(("avg_ms", "min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"))}
        return {
            **figures,
            "avg_ms": round(all_of_them.sum / number, 3),
            "min_ms": round(all_of_them.low, 3),
            **all_of_them.percentiles(),
            "max_ms": round(all_of_them.high, 3),
        }

    def points(self, seconds: float, now: float) -> list[dict[str, Any]]:
        """The last seconds cut into steps, the oldest first: `age_seconds` of each one's end, and its calls. Steps
        without calls are left out.
        """
        first = int((now - seconds) / self._seconds) + 1
        return [
            {
                "age_seconds": round(max(0.0, now - (key + 1) * self._seconds), 3),
                "count": bucket.latencies.count,
                "outcomes": dict(bucket.outcomes),
                "cached": bucket.kept,
                **bucket.latencies.percentiles(),
            }
            for key, bucket in self._buckets.items()
            if key >= first
        ]


class CallStats:
    """All calls together, and each tool's; also those of other workers of this gateway.

    What ends is gathered by tool and outcome first: it comes into the figures when they are read, or a step is over.
    """

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._tools: Counter[str] = Counter()
        self._gathered: dict[tuple[str, str, bool], Latencies] = {}
        self._until = 0.0
        """When the step ends in which they were gathered."""
        self.in_flight = 0
        self.started = time.monotonic()
        self._all = Windows(STEP_SECONDS)
        self._of_tool: OrderedDict[str, Windows] = OrderedDict()
        self._more: dict[tuple[str, str, bool], More] | None = None

    def note_more(self) -> None:
        """Gather from now on what is added, for `take_more`."""
        self._more = {}

    def take_more(self) -> list[More]:
        """What was added since this was asked last."""
        self._count_gathered()
        more, self._more = self._more or {}, {}
        return list(more.values())

    def add_more(self, told: list[Any]) -> None:
        """Take what another worker has counted.

        Args:
            told: what its `take_more` gave, as it went over the wire.
        """
        self._count_gathered()  # which may be of an earlier step
        now = time.monotonic()
        for more in msgspec.convert(told, list[More], strict=False):
            self._count(more.tool, more.outcome, more.kept, more.latencies, now)

    def _count(self, tool: str, outcome: str, kept: bool, latencies: Latencies, now: float) -> None:
        failed, calls = outcome != "ok", latencies.count
        self._outcomes[outcome] += calls
        self._tools[tool] += calls
        moment = self._all.merge(latencies, failed, now)
        moment.outcomes[outcome] = moment.outcomes.get(outcome, 0) + calls
        moment.kept += kept * calls
        self._windows(tool).merge(latencies, failed, now)

    def add(self, tool: str, outcome: str, milliseconds: float, *, kept: bool = False) -> None:
        """Take one call's end.

        Args:
            kept: its result came out of the cache.
        """
        now = time.monotonic()
        if now >= self._until or len(self._gathered) >= MAX_GATHERED:
            self._count_gathered()
            self._until = (int(now / STEP_SECONDS) + 1) * STEP_SECONDS
        key = tool, outcome, kept
        latencies = self._gathered.get(key)
        if latencies is None:
            latencies = self._gathered[key] = Latencies()
        latencies.add(milliseconds)

    def _count_gathered(self) -> None:
        """Count what was gathered, in the step in which it was."""
        gathered, self._gathered = self._gathered, {}
        for (tool, outcome, kept), latencies in gathered.items():
            self._count(tool, outcome, kept, latencies, self._until - STEP_SECONDS / 2)
            if self._more is None:
                continue
            more = self._more.get((tool, outcome, kept))
            if more is not None:
                more.latencies.merge(latencies)
            elif len(self._more) < MAX_GATHERED:
                self._more[tool, outcome, kept] = More(tool, outcome, kept, latencies)

    @property
    def outcomes(self) -> Counter[str]:
        """How many calls ended how, since the start."""
        self._count_gathered()
        return self._outcomes

    @property
    def tools(self) -> Counter[str]:
        """How many calls each tool had, since the start."""
        self._count_gathered()
        return self._tools

    def _windows(self, tool: str) -> Windows:
        of_tool = self._of_tool.get(tool)
        if of_tool is None:
            if len(self._of_tool) >= MAX_TOOLS:
                self._of_tool.popitem(last=False)
            of_tool = self._of_tool[tool] = Windows(60.0)
        self._of_tool.move_to_end(tool)
        return of_tool

    def of_tool(self, tool: str) -> dict[str, Any]:
        """One tool's calls in the last five minutes and hour."""
        self._count_gathered()
        windows, now = self._of_tool.get(tool) or Windows(60.0), time.monotonic()
        return {name: windows.over(WINDOWS[name], now) for name in ("5m", "1h")}

    def recent(self, seconds: float) -> dict[str, Any]:
        """The last seconds in steps, for `/api/v1/stats/recent`."""
        self._count_gathered()
        return {"step_seconds": STEP_SECONDS, "points": self._all.points(seconds, time.monotonic())}

    def snapshot(self) -> dict[str, Any]:
        """The figures for `/api/v1/stats`."""
        now = time.monotonic()
        return {
            "calls_total": self.outcomes.total(),  # counts what was gathered, too
            "calls_in_flight": self.in_flight,
            "outcomes": dict(self.outcomes),
            "uptime_seconds": round(now - self.started, 3),
            "windows": {name: self._all.over(seconds, now) for name, seconds in WINDOWS.items()},
            "top_tools": [{"tool_id": name, "calls": calls} for name, calls in self.tools.most_common(10)],
        }
