"""Schemas and values of strangers: what is held against what takes no longer than a moment, and no memory."""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

import pytest
from support import Double, in_memory_gateway
from support.stalls import stall_seconds

from toolscore.core.errors import InvalidArguments
from toolscore.tools.checking import Judge, branches_of
from toolscore.tools.schemas import compile_schema


def tree(*kinds: str) -> dict[str, Any]:
    """Nodes of several kinds, each of which may hold a node."""
    kind = [{"properties": {"in": {"$ref": "#/$defs/node"}, "kind": {"const": one}}} for one in kinds]
    return {
        "type": "object",
        "properties": {"top": {"$ref": "#/$defs/node"}},
        "$defs": {"node": {"type": "object", "anyOf": kind}},
    }


def nested(depth: int, kind: str) -> dict[str, Any]:
    node: dict[str, Any] = {"kind": kind}
    for _ in range(depth):
        node = {"in": node, "kind": kind}
    return {"top": node}


@pytest.mark.no_cover  # counting lines takes CPU time, too
@pytest.mark.parametrize("depth", [3, 10, 12, 30, 60])
@pytest.mark.long
def test_wrong_arguments_of_a_recursive_schema_are_refused_at_once(depth: int) -> None:
    async def run() -> None:
        double = Double().tool("draw", lambda _: "drawn", schema=tree("a", "b", "c"))
        async with in_memory_gateway({"town": double}) as gateway:
            await asyncio.sleep(0.1)
            gateway.rooms.watchdog.busiest_seconds = 0.0
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(InvalidArguments, match=r"town__draw (do not fit|cannot be held)") as refused:
                await gateway.call("town__draw", **nested(depth, "z"))
            await asyncio.sleep(0.1)
            assert refused.value.suggestion == "expected {top?: any}"
            assert gateway.rooms.watchdog.busiest_seconds < stall_seconds()
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024
            assert not double.calls
            result = await gateway.call("town__draw", **nested(depth, "a"))  # right ones pass
            assert not result.is_error

    asyncio.run(run())


def test_how_often_a_schema_contains_itself() -> None:
    assert branches_of({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "string"}}}) == 0
    assert branches_of({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}) == 2
    assert branches_of(tree("a", "b", "c")) == 3
    pair = {"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}}
    assert branches_of(pair) == 2
    line = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(7000)}
    started = time.process_time()
    assert branches_of({"$defs": line}) == 0
    assert branches_of({"$defs": {**line, "a7000": {"$ref": "#/$defs/a0"}}}) == 7001
    assert time.process_time() - started < 5, "each place is gone through once"


def test_large_values_are_checked_beside_the_loop() -> None:
    schema = {"type": "object", "properties": {"rows": {"items": {"anyOf": [{"const": n} for n in range(500)]}}}}

    async def run() -> None:
        compiled = compile_schema(schema)
        assert compiled is not None
        good, bad = {"rows": [7] * 20_000}, {"rows": [*[7] * 20_000, "x"]}
        async with Judge() as judge:
            assert not compiled.is_quick(good, 40_000)
            assert await judge.fits(compiled, good) is True
            assert await judge.fits(compiled, bad) is False
        async with Judge(seconds=0.001) as hasty:
            assert await hasty.fits(compiled, good) is None
            hasty._seconds = 20
            assert await hasty.fits(compiled, good) is True, "another process took its place"
        assert not compiled.is_explained(bad, 40_000)

    asyncio.run(run())
