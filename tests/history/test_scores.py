"""Scores: pure arithmetic with the clock as an argument, and what a gateway measures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Fickle, running_gateway, wait_for

from toolscore.core.models import Tool
from toolscore.history.scores import BLAMES, HALF_LIFE_SECONDS, PRIOR_SUCCESS, Scores, TrackRecord, score_of
from toolscore.stores.database import open_database

NOW = 1_800_000_000.0
outcomes = st.sampled_from(["ok", "tool_error", *sorted(BLAMES), "invalid_arguments", "forbidden", "cancelled"])


def after(*seen: str, now: float = NOW) -> TrackRecord:
    evidence = TrackRecord()
    for outcome in seen:
        evidence.add(outcome, now)
    return evidence


def test_a_cold_tool_is_average() -> None:
    score = score_of(TrackRecord(), NOW)
    assert (score.value, score.sample_size, score.calls) == (PRIOR_SUCCESS, 0, 0)
    assert score.parts == {"success": PRIOR_SUCCESS, "latency": None, "conformance": None, "stability": 1.0}


@given(st.lists(outcomes, max_size=60))
@pytest.mark.long
def test_a_score_is_a_share_and_success_never_lowers_it(seen: list[str]) -> None:
    before = score_of(after(*seen), NOW).value
    assert 0 <= before <= 1
    assert score_of(after(*seen, "ok"), NOW).value >= before
    assert score_of(after(*seen, "upstream_timeout"), NOW).value <= before


@given(st.lists(outcomes, min_size=1, max_size=60))
def test_evidence_fades_towards_the_average(seen: list[str]) -> None:
    evidence = after(*seen)
    now, later = (abs(score_of(evidence, moment).value - PRIOR_SUCCESS) for moment in (NOW, NOW + HALF_LIFE_SECONDS))
    assert later <= now + 1e-9
    assert score_of(evidence, NOW + 40 * HALF_LIFE_SECONDS).value == PRIOR_SUCCESS


def test_what_the_caller_did_says_nothing() -> None:
    for outcome in ("invalid_arguments", "forbidden", "cancelled", "rate_limited", "tool_not_found"):
        assert score_of(after(*[outcome] * 50), NOW) == score_of(TrackRecord(), NOW)


def test_little_evidence_says_little() -> None:
    assert score_of(after("upstream_timeout"), NOW).value > 0.6
    assert score_of(after(*["upstream_timeout"] * 50), NOW).value < 0.1
    assert score_of(after(*["tool_error"] * 50), NOW).value > score_of(after(*["upstream_timeout"] * 50), NOW).value


def test_lateness_nonsense_and_changes_cost() -> None:
    def with_(late: bool = False, unfitting: bool = False, changes: float = 0.0) -> float:
        evidence = TrackRecord()
        for _ in range(30):
            evidence.add("ok", NOW, in_time=not late, fits=not unfitting)
        evidence.changes = changes
        return score_of(evidence, NOW, "instant").value

    assert with_() > with_(late=True) > 0.7 * with_()
    assert with_() > with_(unfitting=True) > 0.5 * with_()
    assert with_() > with_(changes=0.25)
    assert with_() == pytest.approx(score_of(after(*["ok"] * 30), NOW).value)


@pytest.mark.long
def test_a_gateway_measures_and_remembers(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "fickle")
    with running_gateway({"city": fickle.entry}, settings="cache: {enabled: false}\n", journal=True) as process:
        process.wait_for_state("city", "up")
        cold = process.get("/api/v1/tools/city__look")["score"]
        for _ in range(20):
            process.execute("city__look", {"city": "Rome"})
            process.execute("city__measure", {"city": "Rome"})
        fickle.order(measured={"size": "large"}, sleep=0.15)
        for _ in range(10):
            process.execute("city__measure", {"city": "Rome"})
        good = process.get("/api/v1/tools/city__look")["score"]
        worse = process.get("/api/v1/tools/city__measure")["score"]
        assert cold["value"] < good["value"]
        assert worse["value"] < good["value"]
        assert (good["calls"], worse["calls"]) == (20, 30)
        assert any("33% of its results are not as its outputSchema says" in reason for reason in worse["reasons"])
        assert any("within 0.1 s, as its class 'instant' says" in reason for reason in worse["reasons"])
        assert {tool["tool_id"]: tool["score"] for tool in process.get("/list_tools")["tools"]}["city__look"] > 0.9
        process.stop()
        process.start()
        wait_for(lambda: process.get("/api/v1/tools/city__look"))
        assert process.get("/api/v1/tools/city__look")["score"]["calls"] == 20


def test_what_several_gateways_see_of_a_tool_counts_together(tmp_path: Path) -> None:
    tool = Tool(
        tool_id="a__b", server_id="a", name="b", definition={"name": "b"}, definition_hash="0", first_seen="then"
    )

    async def run() -> None:
        url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
        async with open_database(url) as one, open_database(url) as other:
            async with Scores(one) as here, Scores(other) as there:
                for _ in range(31):
                    here.add(tool, "ok", 0.1, None)
                    there.add(tool, "ok", 0.1, None)
                there.add(tool, "upstream_timeout", 0.1, None)
            async with Scores(one) as again:
                record = again.of(tool)
                assert record.calls == 63
                assert record.sample_size == pytest.approx(63, abs=0.1)
                again.forget([tool.tool_id])
            async with Scores(other) as gone:
                assert gone.of(tool).calls == 0

    asyncio.run(run())


def test_what_is_learned_is_kept_before_long_also_if_nothing_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolscore.history.scores.FLUSH_SECONDS", 0.01)
    tool = Tool(tool_id="a__b", server_id="a", name="b", definition={}, definition_hash="", first_seen="")

    async def run() -> None:
        async with open_database(f"sqlite+aiosqlite:///{tmp_path}/x.db") as database, Scores(database) as scores:
            scores.add(tool, "ok", 0.1, None)
            async with asyncio.timeout(20):
                while not await database.load_scores():
                    await asyncio.sleep(0.01)

    asyncio.run(run())
