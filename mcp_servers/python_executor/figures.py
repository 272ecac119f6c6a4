"""What the executor's engines did: counts, and how long calls waited and ran."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from mcp_servers.python_executor.engine import Outcome

__all__ = ["EngineFigures"]

RECENT_CALLS = 1000


class EngineFigures:
    """What one engine did since the start. Times are those of the last thousand calls."""

    def __init__(self) -> None:
        self.executions = 0
        self._exits: Counter[str] = Counter()
        self._limits: Counter[str] = Counter()
        self._wait_ms: deque[float] = deque(maxlen=RECENT_CALLS)
        self._run_ms: deque[float] = deque(maxlen=RECENT_CALLS)

    def add(self, outcome: Outcome, total_ms: float) -> None:
        self.executions += 1
        self._exits[outcome.exit] += 1
        for limit in outcome.limits_hit:
            self._limits[limit] += 1
        self._run_ms.append(outcome.duration_ms)
        self._wait_ms.append(max(0.0, total_ms - outcome.duration_ms))

    def snapshot(self) -> dict[str, Any]:
        import statistics  # with exact fractions, which nobody needs until somebody asks

        phases = {}
        total = [run + wait for run, wait in zip(self._run_ms, self._wait_ms, strict=True)]
        for name, values in (("wait", self._wait_ms), ("run", self._run_ms), ("total", total)):
            cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else None
            phases[name] = {
                "p50_ms": round(cuts[49], 3) if cuts else None,
                "p95_ms": round(cuts[94], 3) if cuts else None,
                "p99_ms": round(cuts[98], 3) if cuts else None,
            }
        return {
            "executions": self.executions,
            "exits": dict(self._exits),
            "limits": dict(self._limits),
            "phases": phases,
        }
