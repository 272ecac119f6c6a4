"""The event log by itself: order, catching up, lagging, a database that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from toolscore.access.permissions import Permissions
from toolscore.app.switches import ToolSwitches
from toolscore.core.models import Tool
from toolscore.history.events import EventLog, EventRules
from toolscore.stores import behind
from toolscore.stores.database import Database, open_database
from toolscore.stores.errors import StoreError
from toolscore.tools.features import ChangeFeed


@asynccontextmanager
async def event_log(folder: Path, rules: EventRules | None = None) -> AsyncIterator[EventLog]:
    async with open_database(f"sqlite+aiosqlite:///{folder / 'events.db'}") as database:
        async with EventLog(database, rules) as events:
            yield events


async def take(events: AsyncIterator[Any], count: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [await anext(events) for _ in range(count)]


@pytest.mark.long
def test_the_missed_come_first_and_none_twice(tmp_path: Path) -> None:
    async def run() -> None:
        async with event_log(tmp_path) as events:
            for number in range(1200):
                events.publish("server_up", server_id=str(number))
            async with events.subscribe() as live:
                await take(live, 1)
            while events.last_seq < 1200:
                await asyncio.sleep(0)
            async with events.subscribe(since=100) as following:
                first = await take(following, 600)
                for number in range(1200, 1210):
                    events.publish("server_up", server_id=str(number))
                while events.last_seq < 1210:  # stored and queued, before the last page is read
                    await asyncio.sleep(0)
                rest = await take(following, 510)
                events.publish("server_up", server_id="last")
                rest += await take(following, 1)
            seqs = [event.seq for event in first + rest]
            assert seqs == list(range(101, 1212))

    asyncio.run(run())


@pytest.mark.long
def test_numbers_go_on_after_a_restart_and_after_pruning(tmp_path: Path) -> None:
    async def run() -> None:
        async with event_log(tmp_path, EventRules(keep=100)) as events:
            for number in range(2500):
                events.publish("server_up", server_id=str(number))
        async with event_log(tmp_path) as events:
            assert events.last_seq == 2500
            async with events.subscribe(since=0) as following:
                oldest = (await take(following, 1))[0].seq
                assert oldest > 1
                events.publish("server_up", server_id="next")
            async with events.subscribe(since=2500) as following:
                assert (await take(following, 1))[0].seq == 2501
            async with events.subscribe(since=1) as following:
                lost, first = await take(following, 2)
                said = {"missed": oldest - 2, "resume_from": oldest - 1, "lost": True}
                assert (lost.type, lost.data, first.seq) == ("lagged", said, oldest), "what is gone is said"

    asyncio.run(run())


def test_one_who_lags_is_told_and_can_ask_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with event_log(tmp_path) as events, events.subscribe(queue_events=10) as slow:
            for number in range(50):
                events.publish("server_up", server_id=str(number))
            while events.last_seq < 50:
                await asyncio.sleep(0)
            got = await take(slow, 11)
            assert [event.seq for event in got[:10]] == list(range(1, 11))
            assert got[10].type == "lagged"
            assert got[10].data == {"missed": 40, "resume_from": 10}
            async with events.subscribe(since=10) as again:
                assert [event.seq for event in await take(again, 40)] == list(range(11, 51))

    asyncio.run(run())


def test_a_number_from_another_database_hides_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with event_log(tmp_path) as events, events.subscribe(since=10_000) as following:
            reading = asyncio.ensure_future(take(following, 1))
            await asyncio.sleep(0)
            events.publish("server_up", server_id="x")
            assert (await reading)[0].data == {"server_id": "x"}

    asyncio.run(run())


def test_a_database_that_fails_costs_the_number_not_the_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses for a moment costs nothing."""
    refusals = [2]

    class Failing:
        shared = False

        async def last_seq(self) -> int:
            return 7

        async def append_events(self, rows: Any) -> list[int]:
            refusals[0] -= 1
            if refusals[0] >= 0:
                raise StoreError("disk full")
            return [8]

        async def prune_events(self, keep: int) -> None:
            return

    async def run() -> None:
        failing: Any = Failing()
        database: Database = failing
        async with EventLog(database) as events, events.subscribe() as live:
            events.publish("server_up", server_id="x")
            assert (await take(live, 1))[0].seq == 8
            assert (events.unsaved, events.store_error) == (0, None)
            refusals[0] = 10
            events.publish("server_down", server_id="x")
            event = (await take(live, 1))[0]
            assert (event.type, event.seq) == ("server_down", None)
            assert (events.unsaved, events.store_error) == (1, "disk full")
            assert refusals[0] == 7, "three tries; and one for the next, now that it goes on refusing"
            events.publish("server_up", server_id="x")
            assert (await take(live, 1))[0].seq is None
            assert refusals[0] == 6

    monkeypatch.setattr(behind, "TRIES", 3)
    monkeypatch.setattr(behind, "AGAIN_SECONDS", 0.01)
    asyncio.run(run())


def test_events_of_a_switch_come_in_the_order_of_the_changes_at_all_gateways(tmp_path: Path) -> None:
    tool = Tool(tool_id="a__b", server_id="a", name="b", definition={}, definition_hash="", first_seen="")

    async def run() -> None:
        url = f"sqlite+aiosqlite:///{tmp_path / 'events.db'}"
        async with (
            open_database(url, shared=True) as one,
            open_database(url, shared=True) as other,
            EventLog(one) as at_one,
            EventLog(other) as at_other,
            at_one.subscribe() as live,
        ):
            switches = [
                ToolSwitches(database, Permissions(), events, ChangeFeed())
                for database, events in ((one, at_one), (other, at_other))
            ]
            for _ in range(5):
                await switches[0].switch(tool, off=True)
                at_one.publish("settings_applied", changed=[])  # its writer is busy
                await switches[1].switch(tool, off=False)
            await at_one.read_on()
            told = [event.type for event in await take(live, 15) if event.type.startswith("tool_")]
            assert told == ["tool_disabled", "tool_enabled"] * 5

    asyncio.run(run())
