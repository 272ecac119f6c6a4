"""The figures of calls are what `prometheus_client`'s own counters and histograms would say."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.registry import Collector

from toolscore.telemetry.call_counts import FEW_SECONDS, MAX_TOOLS, SECONDS, CallCounts

SERVERS = {"s1": ["s1__a", "s1__b"], "s2": ["s2__c"]}


def said(collector: Collector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples, but when they began."""
    found = {}
    for metric in collector.collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                found[sample.name, tuple(sorted(sample.labels.items()))] = round(sample.value, 9)
    return found


def test_they_say_what_the_library_would() -> None:
    theirs, ours, chance = CollectorRegistry(), CallCounts(), random.Random(7)
    calls = Counter("toolscore_calls_total", "", ["server", "outcome"], registry=theirs)
    seconds = Histogram("toolscore_call_seconds", "", ["server"], buckets=SECONDS, registry=theirs)
    tool_calls = Counter("toolscore_tool_calls_total", "", ["tool", "outcome"], registry=theirs)
    tool_seconds = Histogram("toolscore_tool_seconds", "", ["tool"], buckets=FEW_SECONDS, registry=theirs)
    for _ in range(2000):
        server = chance.choice([*SERVERS])
        tool, outcome = chance.choice(SERVERS[server]), chance.choice(["ok", "ok", "tool_error", "upstream_timeout"])
        took = chance.choice([*SECONDS, chance.uniform(0, 90), chance.expovariate(100)])
        ours.add(server, tool, outcome, took)
        calls.labels(server, outcome).inc()
        seconds.labels(server).observe(took)
        tool_calls.labels(tool, outcome).inc()
        tool_seconds.labels(tool).observe(took)
    assert said(ours) == said(theirs)


def test_what_was_removed_is_not_shown_and_a_servers_sums_stay() -> None:
    counts = CallCounts()
    for server, tools in SERVERS.items():
        for tool in tools:
            counts.add(server, tool, "ok", 0.1)
    counts.tools_gone(["s1__a", "never"])
    found = said(counts)
    assert found["toolscore_calls_total", (("outcome", "ok"), ("server", "s1"))] == 2
    assert {dict(labels).get("tool") for _, labels in found} == {None, "s1__b", "s2__c"}
    counts.server_gone("s1")
    assert {dict(labels).get("server") for _, labels in said(counts)} == {None, "s2"}


def test_beyond_a_thousand_tools_they_are_one() -> None:
    counts = CallCounts()
    for number in range(MAX_TOOLS + 50):
        for _ in range(2):
            counts.add("s", f"s__{number}", "ok", 0.1)
    found = said(counts)
    assert found["toolscore_tool_calls_total", (("outcome", "ok"), ("tool", "other"))] == 100
    assert found["toolscore_calls_total", (("outcome", "ok"), ("server", "s"))] == 2 * (MAX_TOOLS + 50)
