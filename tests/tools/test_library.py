"""The library by itself: schemas that cost too much, names that are taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from toolscore.core.errors import InvalidRequest, ToolNotFound
from toolscore.core.models import UpstreamSpec
from toolscore.stores.database import open_database
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.tools.pins import Pins
from toolscore.tools.schemas import compile_schema

SPEC = UpstreamSpec(command="server", tags=("town",))


@asynccontextmanager
async def library_in(folder: Path, told: list[tuple[str, str]] | None = None) -> AsyncIterator[UnifiedToolLibrary]:
    heard = told if told is not None else []
    async with open_database(f"sqlite+aiosqlite:///{folder / 'tools.db'}") as database:
        async with Pins(database) as pins:
            async with UnifiedToolLibrary(
                database, pins, publish=lambda event, **data: heard.append((event, data["tool_id"]))
            ) as library:
                yield library


def definitions(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{"name": name, "description": f"does {name}", "inputSchema": {"type": "object"}, **more} for name in names]


def doubling(levels: int) -> dict[str, Any]:
    """A schema that unfolds to twice its size at each level."""
    parts: dict[str, Any] = {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}, {"$ref": f"#/$defs/d{level + 1}"}]}
        for level in range(levels)
    }
    return {"$defs": {**parts, f"d{levels}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def test_a_schema_that_unfolds_without_end_is_not_used() -> None:
    assert compile_schema(doubling(5)) is not None
    started = time.monotonic()
    assert compile_schema(doubling(60)) is None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("keyword", ["$anchor", "$id", "$dynamicAnchor", "escaped"])
def test_however_a_reference_is_written_its_target_counts(keyword: str) -> None:
    reference = "$dynamicRef" if keyword == "$dynamicAnchor" else "$ref"
    prefix = {"$id": "part-", "escaped": "#/%24defs/d"}.get(keyword, "#d")
    parts: dict[str, Any] = {f"d{level}": {"allOf": 2 * [{reference: f"{prefix}{level + 1}"}]} for level in range(60)}
    parts["d60"] = {"type": "object"}
    if keyword != "escaped":
        for level in range(61):
            parts[f"d{level}"][keyword] = f"{prefix.removeprefix('#')}{level}"
    assert compile_schema({"$defs": parts, reference: f"{prefix}0"}) is None
    assert compile_schema({"$defs": parts, reference: f"{prefix}58"}) is not None


def test_a_schema_that_contains_itself_is_used() -> None:
    tree = {
        "$defs": {
            "node": {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
        },
        "$ref": "#/$defs/node",
    }
    compiled = compile_schema(tree)
    assert compiled is not None
    validator = compiled.validator
    assert validator.is_valid({"below": [{"below": []}]})
    assert not validator.is_valid({"below": [{"below": 5}]})


def test_references_are_never_fetched() -> None:
    assert compile_schema({"$ref": "http://127.0.0.1:9/schema.json"}) is None


def test_a_name_that_is_taken_stays_with_whoever_had_it_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with library_in(tmp_path) as library:
            library.update("a", SPEC, definitions("b__c"))
            taken = library.resolve("b__c", None, "a").tool_id
            library.update(taken.rpartition("__")[0] or "x", SPEC, definitions("other"))
            library.update("a__b", SPEC, definitions("c", "d"))
            names = [tool.tool_id for tool in library]
            assert len(names) == len(set(names))
            assert library.resolve("b__c", None, "a").tool_id == taken
            owner = library.find(taken)
            assert owner is not None
            assert (owner.server_id, owner.name) == ("a", "b__c")
            assert library.resolve("d", None, "a__b").name == "d", "the others of that server are there"

    asyncio.run(main())


def test_what_comes_changes_and_goes_is_told_and_kept(tmp_path: Path) -> None:
    async def main() -> None:
        told: list[tuple[str, str]] = []
        async with library_in(tmp_path, told) as library:
            library.update("town", SPEC, definitions("look", "walk"))
            generation = library.generation
            library.update("town", SPEC, definitions("look", "walk"))
            assert library.generation == generation, "nothing has changed"
            library.update("town", SPEC, definitions("look", title="Look around"))
            assert told == [
                ("tool_installed", "town__look"),
                ("tool_installed", "town__walk"),
                ("tool_updated", "town__look"),
                ("tool_removed", "town__walk"),
            ]
        async with library_in(tmp_path) as again:
            assert [tool.tool_id for tool in again] == ["town__look"]
            assert not again.available(again.resolve("town__look")), "its server is not back yet"
            again.set_state("town", "up")
            assert again.available(again.resolve("town__look"))
            again.forget("town")
            assert len(again) == 0

    asyncio.run(main())


@pytest.mark.long
def test_a_tool_is_found_by_every_way_to_say_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with library_in(tmp_path) as library:
            library.update("town", SPEC, definitions("look", "walk"))
            library.update("lake", SPEC, definitions("swim"))
            for key, action, server_id in (
                ("town__look", None, None), ("town", "look", None), ("town", "town__look", None),
                ("look", None, "town"), ("town__look", "look", None),
            ):  # fmt: skip
                assert library.resolve(key, action, server_id).tool_id == "town__look"
            assert library.resolve("lake").tool_id == "lake__swim", "a server with one tool needs no action"
            for key, action, words in (
                ("town", None, "name one of its tools"), ("town__look", "swim", "leave `action` out"),
                ("town__lok", None, "town__look"), ("nowhere", None, "no tool"),
            ):  # fmt: skip
                with pytest.raises(ToolNotFound) as refused:
                    library.resolve(key, action)
                assert words in refused.value.text
            with pytest.raises(ToolNotFound) as hidden:
                library.resolve("town__look", sees=lambda tool: tool.server_id != "town")
            assert "town" not in str(hidden.value.suggestion)

    asyncio.run(main())


def test_pages_stand_when_tools_come_and_go_in_between(tmp_path: Path) -> None:
    async def main() -> None:
        async with library_in(tmp_path) as library:
            library.update("town", SPEC, definitions(*"abcdef"))
            first, cursor = library.page(limit=2)
            library.update("town", SPEC, definitions("a", "bb", *"cdef"))
            rest, end = library.page(cursor=cursor, limit=10)
            assert [tool.name for tool in [*first, *rest]] == ["a", "b", "bb", "c", "d", "e", "f"]
            assert end is None
            assert library.page(tag="town")[0]
            assert library.page(tag="sea") == ([], None)
            assert [tool.name for tool in library.page(text="does bb")[0]] == ["bb"]
            with pytest.raises(InvalidRequest):
                library.page(limit=0)

    asyncio.run(main())


def test_definitions_that_nobody_could_read_are_left_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with library_in(tmp_path) as library:
            deep: dict[str, Any] = {}
            for _ in range(70):
                deep = {"type": "object", "properties": {"x": deep}}
            library.update(
                "town",
                SPEC,
                [*definitions("good"), *definitions("long" * 100), *definitions("deep", inputSchema=deep),
                 *definitions("large", title="x" * 300_000)],
            )  # fmt: skip
            assert [tool.name for tool in library] == ["good"]

    asyncio.run(main())
