"""The breaker as a pure state machine, and around a server that fails."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Double, in_memory_gateway, odd, running_gateway, wait_for

from toolscore.calls.breaker import Breaker, BreakerRules

RULES = BreakerRules(window_seconds=10, min_calls=4, failure_ratio=0.5, open_seconds=2, max_open_seconds=8, probes=2)

steps = st.lists(st.tuples(st.floats(0, 5), st.sampled_from([True, False, None])), max_size=60)


@given(steps)
def test_it_opens_only_for_failures_and_lets_through_no_more_than_its_probes(
    calls: list[tuple[float, bool | None]],
) -> None:
    breaker, now, opened = Breaker(RULES), 0.0, 0.0
    for pause, ok in calls:
        now += pause
        before = breaker.state
        wait = breaker.admit(now)
        if wait is not None:
            assert before != "closed"
            assert wait > 0
            assert now + wait <= opened + RULES.max_open_seconds or before == "half_open"
            continue
        breaker.record(ok, now)
        if breaker.state == "open" and before != "open":
            assert ok is False
            opened = now
        elif breaker.state == "open":
            opened = now


@given(steps)
def test_a_server_that_works_again_is_called_again(calls: list[tuple[float, bool | None]]) -> None:
    breaker, now = Breaker(RULES), 0.0
    for pause, ok in calls:
        now += pause
        if breaker.admit(now) is None:
            breaker.record(ok, now)
    now += RULES.max_open_seconds
    for _ in range(RULES.probes):
        assert breaker.admit(now) is None
        breaker.record(True, now)
    assert breaker.state == "closed"


@given(st.lists(st.booleans(), max_size=50))
def test_a_server_that_fails_less_than_half_of_its_calls_is_left_in(outcomes: list[bool]) -> None:
    breaker = Breaker(RULES)
    failed = ended = 0
    for ok in outcomes:
        if not ok and 2 * (failed + 1) >= ended + 1:
            continue  # this one would make it half
        failed, ended = failed + (not ok), ended + 1
        breaker.record(ok, 0.0)
    assert breaker.state == "closed"


def opened_at(now: float = 0.0) -> Breaker:
    breaker = Breaker(RULES)
    for _ in range(RULES.min_calls):
        assert breaker.admit(now) is None
        breaker.record(False, now)
    assert breaker.state == "open"
    return breaker


def test_few_calls_say_nothing_and_old_ones_neither() -> None:
    breaker = Breaker(RULES)
    for number in range(20):
        breaker.record(False, number * 4.0)  # never four of them within ten seconds
    assert breaker.state == "closed"


def test_it_stays_open_twice_as_long_each_time() -> None:
    breaker, now = opened_at(), 0.0
    for expected in (2, 4, 8, 8):
        assert breaker.admit(now) == expected
        now += expected
        assert breaker.admit(now) is None
        breaker.record(False, now)
        assert breaker.state == "open"


def test_half_open_it_lets_a_few_through_at_a_time() -> None:
    breaker = opened_at()
    assert [breaker.admit(2.0) for _ in range(3)] == [None, None, RULES.open_seconds]
    breaker.record(None, 2.0)  # one was cancelled: its place is free again
    assert breaker.admit(2.0) is None


def test_a_call_of_before_says_nothing_of_now() -> None:
    breaker = Breaker(RULES)
    epoch = breaker.epoch
    for _ in range(RULES.min_calls):
        breaker.record(False, 0.0)
    assert breaker.admit(2.0) is None
    breaker.record(True, 2.0, epoch)
    breaker.record(True, 2.0, epoch)
    assert breaker.state == "half_open"


@pytest.mark.long
def test_around_a_server_that_dies_at_every_call() -> None:
    settings = "breaker: {min_calls: 3, open_seconds: 4}\n"
    with running_gateway({"bad": odd("dies"), "good": odd("good")}, settings=settings) as gateway:
        for server_id in ("bad", "good"):
            gateway.wait_for_state(server_id, "up")

        def code() -> str:
            answer = gateway.execute("bad__echo", {"text": "x"}, timeout_seconds=5)
            return str(answer["error"]["code"]) if not answer["success"] else "ok"

        wait_for(lambda: code() == "circuit_open", 60)
        refused = gateway.execute("bad__echo", {"text": "x"})["error"]
        assert refused["retryable"]
        assert 0 < refused["retry_after_seconds"] <= 4
        assert gateway.server("bad")["circuit"] == "open"
        assert gateway.event_seen("circuit_changed", server_id="bad", state="open")
        assert 'toolscore_server_circuit{server="bad"} 2.0' in gateway.http.get("/metrics").text
        assert gateway.text("good__echo", {"text": "x"}) == "x", "others are called as before"
        time.sleep(refused["retry_after_seconds"])
        wait_for(
            lambda: code() and gateway.event_seen("circuit_changed", seconds=1, server_id="bad", state="half_open"), 60
        )


def test_one_callers_hurry_does_not_cut_a_server_off_for_all() -> None:
    go = asyncio.Event()

    async def slow(_: dict[str, Any]) -> str:
        await go.wait()
        return "done"

    async def main() -> None:
        async with in_memory_gateway({"town": Double().tool("slow", slow)}) as gateway:
            for _ in range(BreakerRules().min_calls + 2):
                said = await gateway.execute("town__slow", timeout_seconds=0.001)
                assert said["error"]["code"] in ("outcome_unknown", "upstream_unavailable")
            go.set()
            assert (await gateway.execute("town__slow"))["success"]

    asyncio.run(main())
