"""`ResultCache` by itself: whose a result is, equal calls at once, and what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from toolscore.calls.cache import CacheRules, Made, ResultCache, Slot
from toolscore.core.errors import UpstreamTimeout, UpstreamUnavailable
from toolscore.core.models import Principal, Tool, UpstreamSpec
from toolscore.stores.database import open_database
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.tools.pins import Pins

ADA, BOB = Principal("ada"), Principal("bob")
SAFE = {"readOnlyHint": True, "idempotentHint": True}


@asynccontextmanager
async def cache_in(folder: Path, **rules: Any) -> AsyncIterator[tuple[ResultCache, dict[str, Tool]]]:
    """A cache, and the tools `look` (safe) and `send` of a library."""
    async with open_database(f"sqlite+aiosqlite:///{folder / 'cache.db'}") as database:
        async with Pins(database) as pins:
            async with UnifiedToolLibrary(database, pins, publish=lambda event, **data: None) as library:
                schema = {"type": "object"}
                library.update(
                    "town",
                    UpstreamSpec(command="server"),
                    [
                        {"name": "look", "inputSchema": schema, "annotations": SAFE},
                        {"name": "send", "inputSchema": schema},
                    ],
                )
                async with ResultCache(database, rules=CacheRules(**rules)) as cache:
                    found = {name: library.find(f"town__{name}") for name in ("look", "send")}
                    yield cache, {name: tool for name, tool in found.items() if tool is not None}


def slot(cache: ResultCache, tool: Tool, arguments: bytes = b"{}", who: Principal = ADA, spec: str = "s") -> Slot:
    found = cache.slot(tool, Raw(arguments), who, spec)
    assert found is not None
    return found


def making(value: bytes, ttl: float = 60) -> Any:
    async def make() -> Made:
        return Made(Raw(value), ttl)

    return make


def test_a_result_is_its_callers_its_arguments_and_its_servers(tmp_path: Path) -> None:
    async def run() -> None:
        async with cache_in(tmp_path) as (cache, tools):
            assert cache.slot(tools["send"], Raw(b"{}"), ADA, "s") is None
            mine = slot(cache, tools["look"], b'{"a": 1.0, "b": 2}')
            assert mine == slot(cache, tools["look"], b'{"b":2,"a":1.0}')
            for other in (
                slot(cache, tools["look"], b'{"a": 2, "b": 2}'),
                slot(cache, tools["look"], b'{"a": 1.0, "b": 2}', BOB),
                slot(cache, tools["look"], b'{"a": 1.0, "b": 2}', spec="t"),
            ):
                assert other.key != mine.key
            cache.use(CacheRules(shared=("town__*",)))
            assert slot(cache, tools["look"]).key == slot(cache, tools["look"], who=BOB).key
            cache.use(CacheRules(enabled=False))
            assert cache.slot(tools["look"], Raw(b"{}"), ADA, "s") is None

    asyncio.run(run())


def test_equal_calls_at_once_are_one_and_each_hears_of_its_failure(tmp_path: Path) -> None:
    async def run() -> None:
        async with cache_in(tmp_path) as (cache, tools):
            one, made, go = slot(cache, tools["look"]), 0, asyncio.Event()

            async def make() -> Made:
                nonlocal made
                made += 1
                await go.wait()
                raise UpstreamUnavailable("it went away")

            first, second = (asyncio.ensure_future(cache.once(one, make, 10)) for _ in range(2))
            await asyncio.sleep(0)
            with pytest.raises(UpstreamTimeout, match="an equal call"):
                await cache.once(one, make, 0.01)
            go.set()
            errors = await asyncio.gather(first, second, return_exceptions=True)
            assert made == 1
            assert all(isinstance(error, UpstreamUnavailable) for error in errors)
            assert errors[0] is not errors[1]
            assert bytes(await cache.once(one, making(b'{"x":1}'), 10)) == b'{"x":1}'

    asyncio.run(run())


@pytest.mark.long
def test_a_result_is_found_again_until_it_is_invalid_also_after_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        async with cache_in(tmp_path) as (cache, tools):
            one = slot(cache, tools["look"])
            await cache.once(one, making(b'{"x":1}'), 10)
            found = await cache.look(one)
            assert found is not None
            assert (bytes(found.raw), found.level, found.is_fresh) == (b'{"x":1}', "l1", True)
            passing = slot(cache, tools["look"], b'{"n": 1}')
            await cache.once(passing, making(b'{"x":2}', 0), 10)
            assert await cache.look(passing) is None
        async with cache_in(tmp_path) as (cache, tools):
            found = await cache.look(one)
            assert found is not None
            assert (bytes(found.raw), found.level) == (b'{"x":1}', "l3")
            assert cache.invalidate(server_id="village") == 0
            assert cache.invalidate(tool_id="town__look") == 1
            assert await cache.look(one) is None
        async with cache_in(tmp_path) as (cache, tools):
            assert await cache.look(one) is None

    asyncio.run(run())


def test_a_call_from_before_an_invalidation_is_not_kept(tmp_path: Path) -> None:
    async def run() -> None:
        async with cache_in(tmp_path) as (cache, tools):
            one = slot(cache, tools["look"])

            async def make() -> Made:
                cache.invalidate()
                return Made(Raw(b'{"old":1}'), 60)

            await cache.once(one, make, 10)
            assert await cache.look(one) is None

    asyncio.run(run())


def test_what_a_write_ended_is_not_found_after_a_crash(tmp_path: Path) -> None:
    async def run() -> None:
        async with cache_in(tmp_path, tools={"town__look": 60}) as (cache, tools):
            one = slot(cache, tools["look"])
            await cache.once(one, making(b'{"x":1}'), 10)
        async with cache_in(tmp_path, tools={"town__look": 60}) as (cache, tools):
            gone = cache.changing("town", 10)
            assert gone is not None
            await gone  # and nothing comes after it
            async with cache_in(tmp_path, tools={"town__look": 60}) as (after, _):
                assert await after.look(slot(after, tools["look"])) is None
            assert cache.changed("town", 10, settled=True) is None

    asyncio.run(run())
