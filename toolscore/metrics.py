"""Every metric in one list, for `/metrics`. Rooms get the object and call its methods."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The gateway's metrics. Labels are server ids, outcomes and event types: sets that stay small."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "toolscore_calls_total", "Tool calls by outcome (ok, tool_error, or an error code).", ["server", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "toolscore_call_seconds", "How long a tool call took.", ["server"], buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("toolscore_calls_in_flight", "Tool calls under way.", registry=self.registry)
        self.tools = Gauge("toolscore_tools", "Tools in the library.", registry=self.registry)
        self._up = Gauge("toolscore_server_up", "1 while the server can be called.", ["server"], registry=self.registry)
        self._restarts = Counter(
            "toolscore_server_restarts_total", "Restarts of a server.", ["server"], registry=self.registry
        )
        self._events = Counter("toolscore_events_total", "Events told.", ["type"], registry=self.registry)
        # labels() costs as much as the observation itself: keep its answers
        self._call_children: dict[tuple[str, str], Counter] = {}
        self._seconds_children: dict[str, Histogram] = {}

    def call_finished(self, server_id: str, outcome: str, seconds: float) -> None:
        """Count one call."""
        counter = self._call_children.get((server_id, outcome))
        if counter is None:
            counter = self._call_children[server_id, outcome] = self._calls.labels(server_id, outcome)
        counter.inc()
        histogram = self._seconds_children.get(server_id)
        if histogram is None:
            histogram = self._seconds_children[server_id] = self._seconds.labels(server_id)
        histogram.observe(seconds)

    def server_up(self, server_id: str, up: bool) -> None:
        self._up.labels(server_id).set(1 if up else 0)

    def server_restarted(self, server_id: str) -> None:
        self._restarts.labels(server_id).inc()

    def server_gone(self, server_id: str) -> None:
        """Forget a server that was removed, so that labels do not pile up."""
        self._seconds_children.pop(server_id, None)
        for metric in (self._up, self._restarts, self._seconds):
            metric.remove_by_labels({"server": server_id})
        self._calls.remove_by_labels({"server": server_id})
        self._call_children = {key: child for key, child in self._call_children.items() if key[0] != server_id}

    def event(self, event_type: str) -> None:
        self._events.labels(event_type).inc()

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
