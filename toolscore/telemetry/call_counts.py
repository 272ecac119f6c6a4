"""How many calls ended how, and how soon: an entry a server, tool and outcome, of which `/metrics` is made when asked.

A counter and a histogram of `prometheus_client` cost a lock and a walk through the buckets each, and a call needs four.
Here it is one look-up and three additions; the event loop's thread alone writes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["FEW_SECONDS", "CallCounts"]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
FEW_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60)
"""Of a tool: some of those of a server."""
MAX_TOOLS = 1000
OTHER = "other"
"""Stands for the tools beyond the bound."""
GONE = ""
"""Stands for tools that were removed: their server's sums stay what they were."""

Key = tuple[str, str, str]
"""Server, tool, outcome."""


class _Ended:
    """Calls that ended alike."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(SECONDS) + 1)
        self.seconds = 0.0

    def merge(self, other: _Ended) -> None:
        self.buckets = [one + more for one, more in zip(self.buckets, other.buckets, strict=True)]
        self.seconds += other.seconds

    @property
    def count(self) -> int:
        return sum(self.buckets)


class CallCounts(Collector):
    """The calls since the start. Labels are server ids, a thousand tools, outcomes: sets that stay small."""

    def __init__(self) -> None:
        self._ended: dict[Key, _Ended] = {}
        self._tools: set[str] = set()

    def add(self, server_id: str, tool_id: str, outcome: str, seconds: float) -> None:
        """Count one call."""
        ended = self._ended.get((server_id, tool_id, outcome))
        if ended is None:
            ended = self._new(server_id, tool_id, outcome)
        ended.buckets[bisect_left(SECONDS, seconds)] += 1
        ended.seconds += seconds

    def _new(self, server_id: str, tool_id: str, outcome: str) -> _Ended:
        if tool_id not in self._tools:
            if len(self._tools) >= MAX_TOOLS:
                tool_id = OTHER
            self._tools.add(tool_id)
        return self._ended.setdefault((server_id, tool_id, outcome), _Ended())

    def server_gone(self, server_id: str) -> None:
        """Forget a server that was removed."""
        self._ended = {key: ended for key, ended in self._ended.items() if key[0] != server_id}
        self._tools = {tool_id for _, tool_id, _ in self._ended}

    def tools_gone(self, tool_ids: Collection[str]) -> None:
        """Forget tools that were removed."""
        gone = self._tools.intersection(tool_ids)
        if not gone:
            return
        self._tools -= gone
        for key in [key for key in self._ended if key[1] in gone]:
            self._ended.setdefault((key[0], GONE, key[2]), _Ended()).merge(self._ended.pop(key))

    def collect(self) -> Iterator[Metric]:
        calls: Counter[tuple[str, str]] = Counter()
        tool_calls: Counter[tuple[str, str]] = Counter()
        by_server: dict[str, _Ended] = {}
        by_tool: dict[str, _Ended] = {}
        for (server_id, tool_id, outcome), ended in list(self._ended.items()):
            calls[server_id, outcome] += ended.count
            by_server.setdefault(server_id, _Ended()).merge(ended)
            if tool_id != GONE:
                tool_calls[tool_id, outcome] += ended.count
                by_tool.setdefault(tool_id, _Ended()).merge(ended)
        yield _counted("toolscore_calls", "Tool calls by outcome (ok, tool_error, or an error code).", "server", calls)
        yield _timed("toolscore_call_seconds", "How long a tool call took.", "server", by_server, SECONDS)
        yield _counted("toolscore_tool_calls", "Calls of a tool by outcome.", "tool", tool_calls)
        yield _timed("toolscore_tool_seconds", "How long calls of a tool took.", "tool", by_tool, FEW_SECONDS)


def _counted(name: str, said: str, label: str, counts: Counter[tuple[str, str]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, said, labels=[label, "outcome"])
    for (whose, outcome), count in counts.items():
        family.add_metric([whose, outcome], count)
    return family


def _timed(
    name: str, said: str, label: str, ended: dict[str, _Ended], bounds: tuple[float, ...]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, said, labels=[label])
    for whose, one in ended.items():
        below, seen = [], 0
        for bound, count in zip(SECONDS, one.buckets, strict=False):
            seen += count
            if bound in bounds:
                below.append((str(float(bound)), seen))
        family.add_metric([whose], [*below, ("+Inf", one.count)], one.seconds)
    return family
