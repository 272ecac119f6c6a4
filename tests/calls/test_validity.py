"""Which results hold where several gateways keep them: none of before is given after, whoever dies or stays silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.coroutines import running
from support.patience import patient_stores

from toolscore.calls import validity
from toolscore.calls.validity import KEEPS, SharedEpochs
from toolscore.stores.host import serve_memory
from toolscore.stores.redis import SharedStore, open_shared


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(validity, "GRACE_SECONDS", 0.04)
    monkeypatch.setattr(validity, "MORE", 0.1)
    monkeypatch.setattr(validity, "ANSWER_SECONDS", 5.0)
    patient_stores(monkeypatch)


@asynccontextmanager
async def gateways(folder: Path) -> AsyncIterator[tuple[SharedStore, SharedEpochs, SharedEpochs, SharedEpochs]]:
    """A store, and three gateways that share it."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serve_memory(folder / "shared"))
        stores = [await stack.enter_async_context(open_shared(None, folder / "shared")) for _ in range(3)]
        one, other, third = (SharedEpochs(store) for store in stores if store is not None)
        assert stores[0] is not None
        yield stores[0], one, other, third


async def epoch(gateway: SharedEpochs) -> str:
    """Under which a result may be kept now; waits until one may."""
    while True:
        found, _ = await gateway.read("town", "key", True)
        if found is not None:
            return found
        await asyncio.sleep(0.01)


async def change(gateway: SharedEpochs, *, settled: bool = True, seconds: float = 0.1) -> None:
    await begin(gateway, seconds)
    await end(gateway, settled=settled, seconds=seconds)


async def begin(gateway: SharedEpochs, seconds: float = 0.1) -> None:
    before = gateway.began("town", seconds)
    if before is not None:
        await before


async def end(gateway: SharedEpochs, *, settled: bool = True, seconds: float = 0.1) -> None:
    after = gateway.ended("town", seconds, settled)
    if after is not None:
        await after


@running
async def test_where_nothing_is_kept_nobody_is_told(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (store, one, _, _):
        await change(one)
        assert one.began("town", 0.1) is None  # what it saw a moment ago counts
        assert one.ended("town", 0.1, True) is None
        assert await store.get(validity.EPOCH + "town") is None


@running
async def test_a_change_ends_what_was_kept(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (_, one, other, _):
        before = await epoch(other)
        await change(one)
        assert await epoch(other) != before


@running
async def test_nothing_is_kept_before_all_have_looked(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (_, one, other, _):
        await change(one)  # it has just seen that nothing is kept
        await other.read("town", "key", True)
        assert (await other.read("town", "key", True))[0] is None
        before = await epoch(other)
        await change(one)
        assert await epoch(other) != before


@running
async def test_a_gateway_that_dies_in_a_change_ends_what_was_kept(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (_, one, other, _):
        before = await epoch(other)
        await begin(one)  # and it never says more
        assert (await other.read("town", "key", True))[0] is None
        assert await epoch(other) != before


@running
@pytest.mark.long
async def test_a_change_does_not_take_the_place_of_anothers_that_may_still_come(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (_, one, other, third):
        await epoch(other)
        await change(third, settled=False, seconds=2.0)
        await change(one)
        for _ in range(10):
            assert (await other.read("town", "key", True))[0] is None
            await asyncio.sleep(0.02)
        await epoch(other)  # in time it may be kept again


@running
async def test_what_may_still_come_counts_though_nothing_was_kept_yet(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (_, one, other, _):
        await change(one)
        await begin(one, 0.6)
        await end(one, settled=False, seconds=0.6)
        started = asyncio.get_running_loop().time()
        await epoch(other)
        assert asyncio.get_running_loop().time() - started > 0.4


@running
async def test_where_it_was_forgotten_that_results_are_kept_none_of_before_holds(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (store, one, other, _):
        before = await epoch(other)
        await store.drop([KEEPS + "town"])
        await asyncio.sleep(0.05)
        await change(one)  # tells nobody
        assert await epoch(other) != before


@running
@pytest.mark.parametrize("given_up", [False, True], ids=["no answer", "its caller has gone"])
async def test_the_end_of_a_change_that_was_not_taken_is_told_again(tmp_path: Path, given_up: bool) -> None:
    """Else nothing of the server is kept for as long as the call might have taken, though it has ended."""
    async with gateways(tmp_path) as (store, one, other, _):
        before = await epoch(other)
        await begin(one, seconds=3600)
        run = store.run
        asked = asyncio.Event()

        async def lost(*_: Any) -> Any:
            asked.set()
            return await asyncio.sleep(3600 if given_up else 0)

        store.run = lost  # type: ignore[method-assign]
        ending = asyncio.create_task(end(one, seconds=3600))
        await asked.wait()
        if given_up:
            ending.cancel()
        await asyncio.wait([ending])
        assert one.untold
        telling = asyncio.create_task(one.tell())
        await asyncio.sleep(0)
        if given_up:
            telling.cancel()
        await asyncio.wait([telling])
        assert one.untold
        store.run = run  # type: ignore[method-assign]
        assert (await other.read("town", "key", True))[0] is None
        assert await one.tell()
        assert not one.untold
        async with asyncio.timeout(30):
            assert await epoch(other) != before


@running
async def test_what_is_being_told_is_not_told_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a call wait for long until it is."""
    async with gateways(tmp_path) as (store, one, other, _):
        before = await epoch(other)
        run = store.run
        asked = asyncio.Event()

        async def stuck(*_: Any) -> Any:
            asked.set()
            await asyncio.sleep(3600)

        store.run = stuck  # type: ignore[method-assign]
        one.end("town")
        telling = asyncio.create_task(one.tell())
        await asked.wait()
        monkeypatch.setattr(validity, "ANSWER_SECONDS", 0.1)
        assert one.untold
        assert await one.read("elsewhere", "key", True) == (None, None)
        assert one.untold
        store.run = run  # type: ignore[method-assign]
        monkeypatch.setattr(validity, "ANSWER_SECONDS", 5.0)
        one.end("town")  # once more: what is on its way does not tell of it
        telling.cancel()
        await asyncio.wait([telling])
        assert await one.tell()
        assert not one.untold
        assert await epoch(other) != before


@running
async def test_many_changes_at_once_are_told_together(tmp_path: Path) -> None:
    async with gateways(tmp_path) as (store, one, other, _):
        before = await epoch(other)
        asked = 0
        run = store.run

        async def counted(*given: Any) -> Any:
            nonlocal asked
            asked += 1
            return await run(*given)

        store.run = counted  # type: ignore[method-assign]
        await asyncio.gather(*(change(one) for _ in range(50)))
        assert asked < 50
        assert await epoch(other) != before
