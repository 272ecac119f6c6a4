"""Figures of calls: gathered first, and counted in the step in which they were."""

from __future__ import annotations

import itertools

import pytest

from toolscore.calls import stats as module
from toolscore.calls.stats import CallStats, Latencies, More


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def told(tool: str, outcome: str, milliseconds: float) -> list[object]:
    """What another worker tells of one call."""
    latencies = Latencies()
    latencies.add(milliseconds)
    return [[tool, outcome, False, [latencies.count, latencies.sum, latencies.low, latencies.high, latencies.steps]]]


def test_what_is_gathered_is_counted_whenever_it_is_read(clock: list[float]) -> None:
    stats = CallStats()
    for outcome, milliseconds, kept in (("ok", 2.0, False), ("ok", 4.0, True), ("tool_error", 8.0, False)):
        stats.add("a__b", outcome, milliseconds, kept=kept)
    assert stats.outcomes == {"ok": 2, "tool_error": 1}
    assert stats.tools == {"a__b": 3}
    stats.add("a__b", "ok", 6.0)
    figures = stats.snapshot()
    assert figures["calls_total"] == 4
    assert (figures["windows"]["10s"]["count"], figures["windows"]["10s"]["errors"]) == (4, 1)
    assert (figures["windows"]["1m"]["min_ms"], figures["windows"]["1m"]["max_ms"]) == (2.0, 8.0)
    assert figures["windows"]["1m"]["avg_ms"] == 5.0
    assert stats.of_tool("a__b")["5m"]["count"] == 4
    (point,) = stats.recent(60)["points"]
    assert (point["count"], point["outcomes"], point["cached"]) == (4, {"ok": 3, "tool_error": 1}, 1)


def test_calls_count_in_the_step_in_which_they_ended(clock: list[float]) -> None:
    stats = CallStats()
    for moment in (101.0, 104.9, 105.1, 130.0):
        clock[0] = moment
        stats.add("a__b", "ok", 1.0)
    clock[0] = 159.0
    points = stats.recent(60)["points"]
    assert [(point["count"], point["age_seconds"]) for point in points] == [(2, 54.0), (1, 49.0), (1, 24.0)]
    assert stats.snapshot()["windows"]["10s"]["count"] == 0


def test_what_other_workers_tell_stands_in_order_with_our_own(clock: list[float]) -> None:
    stats = CallStats()
    clock[0] = 104.9
    stats.add("a__b", "ok", 1.0)
    clock[0] = 105.1
    stats.add_more(told("a__b", "ok", 3.0))
    ages = [point["age_seconds"] for point in stats.recent(60)["points"]]
    assert ages == sorted(ages, reverse=True), "the oldest first"
    assert stats.outcomes == {"ok": 2}


def test_all_is_told_once_to_other_workers(clock: list[float]) -> None:
    stats = CallStats()
    stats.note_more()
    seen: list[More] = []
    for number, moment in enumerate(itertools.islice(itertools.count(100.0, 2.5), 8)):
        clock[0] = moment
        stats.add(f"a__{number % 2}", "ok", 1.0)
        if number % 3 == 2:
            seen += stats.take_more()
    seen += stats.take_more()
    assert sum(more.latencies.count for more in seen) == 8
    assert stats.take_more() == []
    assert stats.outcomes == {"ok": 8}
