"""Figures of the calls: counts since the start, and windows of the last minute, five minutes and hour."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from typing import Any

import msgspec

__all__ = ["CallStats", "More", "Windows"]

WINDOWS = {"10s": 10.0, "1m": 60.0, "5m": 300.0, "1h": 3600.0}
STEP_SECONDS = 5.0
MAX_TOOLS = 300
FINENESS = 1.1
"""Latencies are counted in steps of a tenth: a percentile is off by no more."""
MAX_GATHERED = 5000
"""Tools and outcomes of one second that other workers are told of."""
MOST = 1e12
_log = math.log(FINENESS)


class _Bucket:
    """The calls of a few seconds."""

    __slots__ = ("counts", "errors", "high", "kept", "low", "outcomes", "sum")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.sum = 0.0
        self.low = math.inf
        self.high = 0.0
        self.errors = 0
        self.kept = 0
        self.outcomes: dict[str, int] = {}

    def quantile(self, share: float) -> float | None:
        """A latency in ms that this share of the calls did not exceed; `None` without calls."""
        return _quantile(sorted(self.counts.items()), share, self.low, self.high)


class More(msgspec.Struct, array_like=True):
    """Calls of a tool that ended alike in the last moment. Times in ms; `steps`: how many took how long."""

    tool: str
    outcome: str
    kept: bool
    count: int = 0
    sum: float = 0.0
    low: float = MOST
    high: float = 0.0
    steps: dict[int, int] = {}


class Windows:
    """Latencies of the last hour. The clock is an argument.

    Args:
        bucket_seconds: how finely time is cut.
    """

    def __init__(self, bucket_seconds: float) -> None:
        self._seconds = bucket_seconds
        self._buckets: OrderedDict[int, _Bucket] = OrderedDict()

    def add(self, milliseconds: float, failed: bool, now: float) -> _Bucket:
        """Take one call. Returns the figures of its moment."""
        bucket = self._at(now)
        step = _step(milliseconds)
        bucket.counts[step] = bucket.counts.get(step, 0) + 1
        bucket.sum += milliseconds
        bucket.low = min(bucket.low, milliseconds)
        bucket.high = max(bucket.high, milliseconds)
        bucket.errors += failed
        return bucket

    def add_more(self, more: More, failed: bool, now: float) -> _Bucket:
        """Take calls that were counted elsewhere. Returns the figures of their moment."""
        bucket = self._at(now)
        for step, count in more.steps.items():
            bucket.counts[step] = bucket.counts.get(step, 0) + count
        bucket.sum += more.sum
        bucket.low = min(bucket.low, more.low)
        bucket.high = max(bucket.high, more.high)
        bucket.errors += failed * more.count
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
        counts: Counter[int] = Counter()
        total, low, high, errors = 0.0, math.inf, 0.0, 0
        for key, bucket in self._buckets.items():
            if key >= first:
                counts.update(bucket.counts)
                total += bucket.sum
                low, high, errors = min(low, bucket.low), max(high, bucket.high), errors + bucket.errors
        number = counts.total()
        figures: dict[str, Any] = {"count": number, "errors": errors}
        if not number:
            return {**figures, **dict.fromkeys(("avg_ms", "min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"))}
        steps = sorted(counts.items())

        return {
            **figures,
            "avg_ms": round(total / number, 3),
            "min_ms": round(low, 3),
            "p50_ms": _quantile(steps, 0.5, low, high),
            "p95_ms": _quantile(steps, 0.95, low, high),
            "p99_ms": _quantile(steps, 0.99, low, high),
            "max_ms": round(high, 3),
        }

    def points(self, seconds: float, now: float) -> list[dict[str, Any]]:
        """The last seconds cut into steps, the oldest first: `age_seconds` of each one's end, and its calls. Steps
        without calls are left out.
        """
        first = int((now - seconds) / self._seconds) + 1
        return [
            {
                "age_seconds": round(max(0.0, now - (key + 1) * self._seconds), 3),
                "count": sum(bucket.counts.values()),
                "outcomes": dict(bucket.outcomes),
                "cached": bucket.kept,
                "p50_ms": bucket.quantile(0.5),
                "p95_ms": bucket.quantile(0.95),
                "p99_ms": bucket.quantile(0.99),
            }
            for key, bucket in self._buckets.items()
            if key >= first
        ]


def _quantile(steps: list[tuple[int, int]], share: float, low: float, high: float) -> float | None:
    """A latency in ms, out of counts by step, the smallest first."""
    seen, wanted = 0, share * sum(count for _, count in steps)
    for step, count in steps:
        seen += count
        if seen >= wanted:
            return round(min(max(FINENESS**step, low), high), 3)
    return None


def _step(milliseconds: float) -> int:
    return math.ceil(math.log(milliseconds) / _log) if milliseconds > 0.001 else -80


class CallStats:
    """All calls together, and each tool's; also those of other workers of this gateway."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.tools: Counter[str] = Counter()
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
        more, self._more = self._more or {}, {}
        return list(more.values())

    def add_more(self, told: list[Any]) -> None:
        """Take what another worker has counted.

        Args:
            told: what its `take_more` gave, as it went over the wire.
        """
        now = time.monotonic()
        for more in msgspec.convert(told, list[More], strict=False):
            self._count(more.tool, more.outcome, more.count)
            moment = self._all.add_more(more, more.outcome != "ok", now)
            moment.outcomes[more.outcome] = moment.outcomes.get(more.outcome, 0) + more.count
            moment.kept += more.kept * more.count
            self._windows(more.tool).add_more(more, more.outcome != "ok", now)

    def _count(self, tool: str, outcome: str, calls: int) -> None:
        self.outcomes[outcome] += calls
        self.tools[tool] += calls

    def add(self, tool: str, outcome: str, milliseconds: float, *, kept: bool = False) -> None:
        """Take one call's end.

        Args:
            kept: its result came out of the cache.
        """
        now, failed = time.monotonic(), outcome != "ok"
        self._count(tool, outcome, 1)
        moment = self._all.add(milliseconds, failed, now)
        moment.outcomes[outcome] = moment.outcomes.get(outcome, 0) + 1
        moment.kept += kept
        self._windows(tool).add(milliseconds, failed, now)
        if self._more is not None:
            self._gather(self._more, tool, outcome, milliseconds, kept)

    @staticmethod
    def _gather(
        gathered: dict[tuple[str, str, bool], More], tool: str, outcome: str, milliseconds: float, kept: bool
    ) -> None:
        more = gathered.get((tool, outcome, kept))
        if more is None:
            if len(gathered) >= MAX_GATHERED:
                return
            more = gathered[tool, outcome, kept] = More(tool, outcome, kept)
        step = _step(milliseconds)
        more.count += 1
        more.sum += milliseconds
        more.low, more.high = min(more.low, milliseconds), max(more.high, milliseconds)
        more.steps[step] = more.steps.get(step, 0) + 1

    def _windows(self, tool: str) -> Windows:
        of_tool = self._of_tool.get(tool)
        if of_tool is None:
            if len(self._of_tool) >= MAX_TOOLS:
                self._of_tool.popitem(last=False)
            of_tool = self._of_tool[tool] = Windows(60.0)
        return of_tool

    def of_tool(self, tool: str) -> dict[str, Any]:
        """One tool's calls in the last five minutes and hour."""
        windows, now = self._of_tool.get(tool) or Windows(60.0), time.monotonic()
        return {name: windows.over(WINDOWS[name], now) for name in ("5m", "1h")}

    def recent(self, seconds: float) -> dict[str, Any]:
        """The last seconds in steps, for `/api/v1/stats/recent`."""
        return {"step_seconds": STEP_SECONDS, "points": self._all.points(seconds, time.monotonic())}

    def snapshot(self) -> dict[str, Any]:
        """The figures for `/api/v1/stats`."""
        now = time.monotonic()
        return {
            "calls_total": self.outcomes.total(),
            "calls_in_flight": self.in_flight,
            "outcomes": dict(self.outcomes),
            "uptime_seconds": round(now - self.started, 3),
            "windows": {name: self._all.over(seconds, now) for name, seconds in WINDOWS.items()},
            "top_tools": [{"tool_id": name, "calls": calls} for name, calls in self.tools.most_common(10)],
        }
