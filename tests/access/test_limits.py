"""Budgets of callers and places at servers: as they are, and at the doors of a gateway that runs."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from support import GatewayProcess, fixture, odd, running_gateway, with_config

from toolscore.access.limits import Rate, RateLimits, RateRules, Turnstile
from toolscore.core.errors import Overloaded, RateLimited
from toolscore.core.jsonrpc import decode
from toolscore.core.models import LOCAL, Principal, Tool
from toolscore.upstreams import Caller


def tool(name: str) -> Tool:
    return Tool(
        tool_id=name, server_id="s", name=name, definition={"name": name}, definition_hash=name, first_seen="2026"
    )


async def taken(limits: RateLimits, principal: Principal, name: str, calls: int) -> int:
    """How many of so many calls at once are let through."""
    through = 0
    waits: list[float] = []
    for _ in range(calls):
        try:
            await limits.take(principal, tool(name))
        except RateLimited as exc:
            waits.append(exc.retry_after_seconds or 0)
        else:
            through += 1
    assert all(wait > 0 for wait in waits)
    return through


@settings(deadline=None, max_examples=30)
@given(burst=st.integers(1, 50), calls=st.integers(0, 80))
def test_a_burst_is_let_through_and_no_more(burst: int, calls: int) -> None:
    async def run() -> None:
        limits = RateLimits(RateRules(per_minute=60, burst=burst))
        ada, bob = Principal("ada"), Principal("bob")
        # A caller may have what a second of waiting brings, on a machine that is slow just now.
        assert min(burst, calls) <= await taken(limits, ada, "t", calls) <= min(burst + 1, calls)
        assert await taken(limits, bob, "t", 1) == 1, "one caller's budget is no other's"
        assert await taken(limits, LOCAL, "t", calls) == calls

    asyncio.run(run())


def test_a_budget_comes_back_with_time() -> None:
    async def run() -> None:
        limits = RateLimits(RateRules(per_minute=600, burst=1))
        ada = Principal("ada")
        assert await taken(limits, ada, "t", 1) == 1
        with pytest.raises(RateLimited) as refused:
            await limits.take(ada, tool("t"))
        await asyncio.sleep((refused.value.retry_after_seconds or 0) + 0.05)
        assert await taken(limits, ada, "t", 1) == 1

    asyncio.run(run())


def test_a_tool_may_have_a_budget_of_its_own() -> None:
    async def run() -> None:
        limits = RateLimits(RateRules(per_minute=0, tools={"mail__*": Rate(per_minute=1, burst=2)}))
        ada = Principal("ada")
        assert await taken(limits, ada, "mail__send", 3) == 2
        assert await taken(limits, ada, "mail__draft", 1) == 0, "a pattern is one budget"
        assert await taken(limits, ada, "time__now", 50) == 50

    asyncio.run(run())


class Listening(Caller):
    wants_progress = True

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def notify(self, method: str, params: Raw | None) -> None:
        assert params is not None
        self.heard.append(decode(params)["message"])


@settings(deadline=None, max_examples=50)
@given(
    places=st.integers(1, 4),
    queue=st.integers(0, 5),
    comers=st.integers(1, 15),
    quitters=st.sets(st.integers(0, 14)),
)
@pytest.mark.long
def test_no_more_than_its_places_are_taken_and_none_is_lost(
    places: int, queue: int, comers: int, quitters: set[int]
) -> None:
    async def run() -> None:
        turnstile = Turnstile("s", places, queue)
        inside, refused, most = 0, 0, 0

        async def come(number: int) -> None:
            nonlocal inside, refused, most
            try:
                await turnstile.enter(None, 30)
            except Overloaded:
                refused += 1
                return
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(0.001)
            finally:
                inside -= 1
                turnstile.leave(0.001)

        tasks = [asyncio.create_task(come(number)) for number in range(comers)]
        await asyncio.sleep(0)
        for number in quitters:
            if number < comers:
                tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= places
        assert refused == max(0, comers - places - queue)
        assert (turnstile.inside, turnstile.waiting) == (0, 0)

    asyncio.run(run())


def test_who_waits_hears_the_position_and_does_not_wait_for_ever() -> None:
    async def run() -> None:
        turnstile = Turnstile("s", 1, 5)
        await turnstile.enter(None, 1)
        first, second = Listening(), Listening()
        waiting = [asyncio.create_task(turnstile.enter(caller, 5)) for caller in (first, second)]
        await asyncio.sleep(0.01)
        assert "position 2" in second.heard[0]
        turnstile.leave(0.1)
        await waiting[0]
        assert "position 1" in second.heard[-1]
        with pytest.raises(Overloaded, match="none ended within"):
            await turnstile.enter(None, 0.05)
        turnstile.leave(0.1)
        await waiting[1]

    asyncio.run(run())


# At the doors


def make_key(gateway: GatewayProcess, *arguments: str) -> str:
    return with_config(gateway, "keys", "create", *arguments)


@pytest.mark.long
def test_a_caller_with_a_key_has_a_budget() -> None:
    settings = "rates: {per_minute: 6, burst: 3}\n"
    with running_gateway({"echo": odd("good")}, settings=settings) as gateway:
        gateway.wait_for_state("echo", "up")
        headers = {"authorization": f"Bearer {make_key(gateway, 'ada')}"}
        call = {"tool_id": "echo__echo", "parameters": {"text": "x"}}
        answers = [httpx.post(f"{gateway.url}/execute_tool", json=call, headers=headers) for _ in range(5)]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        refused = answers[-1]
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limited"
        assert refused.json()["error"]["retryable"]
        assert 1 <= int(refused.headers["retry-after"]) <= 11
        assert refused.headers["ratelimit-policy"] == '"calls";q=6;w=60'
        assert refused.headers["ratelimit"].startswith('"calls";r=0;t=')
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        body |= {"params": {"name": "echo__echo", "arguments": {"text": "x"}}}
        response = httpx.post(f"{gateway.url}/mcp", json=body, headers=headers)
        assert response.headers["ratelimit"].startswith('"calls";r=0;t=')
        over_mcp = response.json()["error"]
        assert over_mcp["code"] == -32007
        assert over_mcp["data"]["retry_after_seconds"] > 0
        assert all(gateway.execute("echo__echo", {"text": "x"})["success"] for _ in range(20)), "nobody on this machine"


@pytest.mark.long
def test_a_server_serves_so_many_at_a_time() -> None:
    slow = fixture("stdio", max_concurrent=2)
    with running_gateway({"slow": slow}, settings="servers: {max_queued: 2}\n") as gateway:
        gateway.wait_for_state("slow", "up")

        def call(_: int) -> Any:
            return gateway.execute("slow__test_reconnection")  # which takes 0.3 s

        began = time.monotonic()
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(call, range(6)))
        refused = [answer["error"] for answer in answers if not answer["success"]]
        assert len(refused) == 2
        assert all(error["code"] == "overloaded" and error["retry_after_seconds"] >= 1 for error in refused)
        assert time.monotonic() - began >= 0.6, "two at a time"
