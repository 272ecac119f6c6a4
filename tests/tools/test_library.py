"""The library by itself: schemas that cost too much, names that are taken."""

from __future__ import annotations

import time
from typing import Any

from toolscore.tools.schemas import compile_schema


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


def test_a_schema_that_contains_itself_is_used() -> None:
    tree = {
        "$defs": {
            "node": {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
        },
        "$ref": "#/$defs/node",
    }
    validator = compile_schema(tree)
    assert validator.is_valid({"below": [{"below": []}]})
    assert not validator.is_valid({"below": [{"below": 5}]})


def test_references_are_never_fetched() -> None:
    assert compile_schema({"$ref": "http://127.0.0.1:9/schema.json"}) is None
