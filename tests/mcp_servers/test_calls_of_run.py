"""The calls of one run of code, with frames that no well-behaved child sends."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from mcp_servers.python_executor.tool_calls import MAX_REFUSED, MAX_UNDER_WAY, CallsOfRun

pytestmark = pytest.mark.anyio


class Child:
    """The child, as the calls see it."""

    def __init__(self) -> None:
        self.replies: dict[int, dict[str, Any]] = {}
        self.ended: list[str] = []

    def seconds_left(self) -> float:
        return 10.0

    def extend(self, seconds: float) -> None: ...

    def reply(self, number: int, body: bytes) -> None:
        self.replies[number] = json.loads(body)

    def end(self, reason: str) -> None:
        self.ended.append(reason)


@dataclass
class Answered:
    body: bytes = b'{"result": 1}'
    asked_seconds: float = 0.0
    over: bool = False


class Gateway:
    """Answers when it is let."""

    at_once = MAX_UNDER_WAY
    on_output = None

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.cancelled = 0

    async def ask(self, _call: bytes, _seconds: float, /) -> Answered:
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answered()


async def test_no_more_is_cancelled_than_was_called() -> None:
    gateway, child = Gateway(), Child()
    calls = CallsOfRun(gateway, child)
    calls.came(1, b"{}")
    await asyncio.sleep(0)
    for _ in range(MAX_UNDER_WAY + 1):
        calls.cancel(1)
    assert not child.ended, "some may be of the last run of a session"
    calls.cancel(1)
    assert child.ended == ["calls"]
    await calls.stop()
    assert gateway.cancelled == 1


async def test_a_call_that_was_answered_as_it_was_cancelled_costs_nothing() -> None:
    gateway, child = Gateway(), Child()
    calls = CallsOfRun(gateway, child)
    gateway.let.set()
    for number in range(MAX_REFUSED + MAX_UNDER_WAY + 100):
        calls.came(number, b"{}")
        while number not in child.replies:
            await asyncio.sleep(0)
        calls.cancel(number)
    await asyncio.sleep(0)
    assert not child.ended
    assert calls.under_way == 0


async def test_calls_beyond_the_bound_are_refused_and_then_end_the_run() -> None:
    gateway, child = Gateway(), Child()
    calls = CallsOfRun(gateway, child)
    for number in range(MAX_UNDER_WAY + MAX_REFUSED):
        calls.came(number, b"{}")
    assert calls.under_way == MAX_UNDER_WAY
    assert len(child.replies) == MAX_REFUSED
    assert {one["error"]["code"] for one in child.replies.values()} == {"overloaded"}
    assert not child.ended
    calls.came(9999, b"{}")
    assert child.ended == ["calls"]
    await calls.stop()
