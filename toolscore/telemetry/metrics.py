"""Every metric in one list, for `/metrics`. Rooms get the object and call its methods."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from toolscore.telemetry.call_counts import FEW_SECONDS, CallCounts

__all__ = ["CONTENT_TYPE", "Metrics", "summed"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The gateway's metrics. Labels are server ids, a thousand tools, outcomes, event types: sets that stay small."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = CallCounts()
        self.registry.register(self._calls)
        self._cache = Counter(
            "toolscore_cache_hits_total", "Cache hits, by the level that had the result.", ["level"],
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("toolscore_calls_in_flight", "Tool calls under way.", registry=self.registry)
        self.tasks = Gauge("toolscore_tasks", "Tasks of the event loop.", registry=self.registry)
        self.tools = Gauge("toolscore_tools", "Tools in the library.", registry=self.registry)
        self._up = Gauge("toolscore_server_up", "1 while the server can be called.", ["server"], registry=self.registry)
        self._restarts = Counter(
            "toolscore_server_restarts_total", "Restarts of a server.", ["server"], registry=self.registry
        )
        self._circuit = Gauge(
            "toolscore_server_circuit",
            "0 while calls go to the server, 2 while none do, 1 while some find out.",
            ["server"],
            registry=self.registry,
        )
        self._events = Counter("toolscore_events_total", "Events told.", ["type"], registry=self.registry)
        self._stalls = Histogram(
            "toolscore_loop_stall_seconds", "Stalls of the event loop over 0.1 s: all callers waited.",
            buckets=FEW_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.busiest = Gauge(
            "toolscore_loop_busiest_seconds", "The most CPU time that the event loop took at a stretch.",
            registry=self.registry,
        )  # fmt: skip
        self._executors = _PythonExecutors()
        self.registry.register(self._executors)

    def call_finished(self, server_id: str, tool_id: str, outcome: str, seconds: float, level: str | None) -> None:
        """Count one call. Beyond a thousand tools the others are counted as `other`.

        Args:
            level: of the cache that had its result; `None`: none.
        """
        if level is not None:
            self._cache.labels(level).inc()
        self._calls.add(server_id, tool_id, outcome, seconds)

    def server_up(self, server_id: str, up: bool) -> None:
        self._up.labels(server_id).set(1 if up else 0)

    def stalled(self, seconds: float) -> None:
        self._stalls.observe(seconds)

    def circuit(self, server_id: str, state: str) -> None:
        self._circuit.labels(server_id).set({"closed": 0, "half_open": 1, "open": 2}[state])

    def server_restarted(self, server_id: str) -> None:
        self._restarts.labels(server_id).inc()

    def server_gone(self, server_id: str) -> None:
        """Forget a server that was removed, so that labels do not pile up."""
        for metric in (self._up, self._restarts, self._circuit):
            metric.remove_by_labels({"server": server_id})
        self._calls.server_gone(server_id)

    def tools_gone(self, tool_ids: Collection[str]) -> None:
        """Forget tools that were removed."""
        self._calls.tools_gone(tool_ids)

    def show_servers(self, figures: Mapping[str, dict[str, Any]]) -> None:
        """Show what our own servers say of themselves: server id → figures."""
        self._executors.figures = figures

    def event(self, event_type: str) -> None:
        self._events.labels(event_type).inc()

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


AS_ONE = (
    "toolscore_loop_busiest",
    "toolscore_python_modules",
    "toolscore_python_sandbox",
    "toolscore_python_seconds",
    "toolscore_server_circuit",
    "toolscore_server_up",
    "toolscore_tools",
)
"""What each worker says of the same thing: the largest counts. Everything else is each one's own, and summed."""


def summed(texts: list[bytes]) -> bytes:
    """The metrics of several workers as those of one, each as `Metrics.render` gave them."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            found = values.setdefault(known.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                before = found.get(key)
                if before is None:
                    found[key] = sample.value
                elif sample.name.endswith("_created"):
                    found[key] = min(before, sample.value)
                else:
                    found[key] = max(before, sample.value) if sample.name.startswith(AS_ONE) else before + sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Made(list(families.values())))
    return generate_latest(registry)


class _Made(Collector):
    """Metrics that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class _PythonExecutors(Collector):
    """The figures of Python executors, as they last gave them."""

    figures: Mapping[str, dict[str, Any]] = {}

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        by_engine, by_pool = ["server", "engine"], ["server", "engine", "packages"]
        executions = CounterMetricFamily(
            "toolscore_python_executions", "Runs of code by how they ended.", labels=[*by_engine, "exit"]
        )
        limits = CounterMetricFamily(
            "toolscore_python_limits", "Limits that code ran into.", labels=[*by_engine, "limit"]
        )
        seconds = GaugeMetricFamily(
            "toolscore_python_seconds", "Time of the last thousand runs.", labels=[*by_engine, "phase", "quantile"]
        )
        restarts = CounterMetricFamily("toolscore_python_restarts", "Restarts of a sandbox.", labels=by_pool)
        children = GaugeMetricFamily("toolscore_python_children", "Processes in a sandbox.", labels=by_pool)
        spares = GaugeMetricFamily("toolscore_python_spares", "Processes that wait for a call.", labels=by_pool)
        modules = GaugeMetricFamily("toolscore_python_modules", "Modules imported ahead.", labels=by_pool)
        memory = GaugeMetricFamily(
            "toolscore_python_memory_bytes", "Proportional memory (PSS).", labels=[*by_pool, "part"]
        )
        sandbox = GaugeMetricFamily(
            "toolscore_python_sandbox", "1, with how code is confined.", labels=["server", "tier", "slow_path"]
        )
        calls = GaugeMetricFamily("toolscore_python_calls", "Calls that run or wait.", labels=["server", "state"])
        sessions = GaugeMetricFamily("toolscore_python_sessions", "Open sessions.", labels=["server"])
        for server, stats in self.figures.items():
            if "engines" not in stats:
                continue
            sandbox.add_metric([server, str(stats.get("tier")), str(stats.get("slow_path", False)).lower()], 1)
            for state in ("running", "waiting"):
                calls.add_metric([server, state], stats[state])
            sessions.add_metric([server], stats["sessions"]["open"])
            for engine, figures in stats["engines"].items():
                for exit_, count in figures["exits"].items():
                    executions.add_metric([server, engine, exit_], count)
                for limit, count in figures["limits"].items():
                    limits.add_metric([server, engine, limit], count)
                for phase, cuts in figures["phases"].items():
                    for name, quantile in (("p50_ms", "0.5"), ("p95_ms", "0.95"), ("p99_ms", "0.99")):
                        if cuts[name] is not None:
                            seconds.add_metric([server, engine, phase, quantile], cuts[name] / 1000)
                for packages, pool in figures["pools"].items():
                    labels = [server, engine, packages]
                    restarts.add_metric(labels, pool["restarts"])
                    if "children" in pool:
                        children.add_metric(labels, pool["children"])
                        spares.add_metric(labels, pool["spares"])
                        modules.add_metric(labels, pool["modules"] or 0)
                        for part, kilobytes in pool["memory_kb"].items():
                            memory.add_metric([*labels, part], kilobytes * 1024)
        yield from (
            executions, limits, seconds, restarts, children, spares, modules, memory, sandbox, calls, sessions
        )  # fmt: skip
