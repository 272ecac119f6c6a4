"""Lists that strict clients take."""

from __future__ import annotations

from typing import Any

import pytest
from mcp_types import Prompt, Resource, Tool

from toolscore.tools.mending import mended_entry, mended_tool

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
GOOD = {"name": "go", "description": "d", "inputSchema": SCHEMA, "annotations": {"title": "t", "readOnlyHint": True}}


def test_a_good_tool_stays_the_same_object() -> None:
    mended, told = mended_tool(GOOD)
    assert mended is GOOD
    assert told == []


@pytest.mark.parametrize(
    "odd",
    [
        {"description": None}, {"title": 5}, {"annotations": None}, {"annotations": {"readOnlyHint": None}},
        {"annotations": {"title": None}}, {"icons": None}, {"icons": [5, {"src": None}]}, {"_meta": []},
        {"inputSchema": None}, {"inputSchema": []}, {"inputSchema": {"type": None}},
        {"inputSchema": {"type": "string"}},
        {"inputSchema": {"type": "object", "properties": None}}, {"inputSchema": {"type": "object", "required": None}},
        {"inputSchema": {"type": "object", "required": [None]}},
        {"inputSchema": {"type": "object", "properties": {"a": None}}},
        {"inputSchema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}},
        {"outputSchema": None}, {"outputSchema": {"type": "array"}}, {"outputSchema": {"$ref": "#/$defs/none"}},
        {"outputSchema": {"type": "object", "properties": {"a": {"$ref": "http://elsewhere/schema"}}}},
    ],
)  # fmt: skip
def test_an_odd_tool_becomes_one_that_strict_clients_take(odd: dict[str, Any]) -> None:
    mended, told = mended_tool({**GOOD, **odd})
    Tool.model_validate(mended)
    assert mended["inputSchema"]["type"] == "object"
    assert [said.split(" ")[0] for said in told] == list(odd)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"child": {"$ref": "#"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/a~1b%20c"}}, "$defs": {"a/b c": {}}},
        {"type": "object", "properties": {"a": {"$ref": "#here"}}, "$defs": {"x": {"$anchor": "here"}}},
        {"type": "object", "$id": "http://x/s", "properties": {"a": {"$ref": "http://x/s"}}},
        {"type": "object", "properties": {"a": {"const": {"$ref": "#/nowhere"}}}},
    ],
)
def test_a_schema_whose_references_lead_somewhere_is_shown(schema: dict[str, Any]) -> None:
    assert mended_tool({**GOOD, "outputSchema": schema})[0]["outputSchema"] == schema


def test_prompts_and_resources_too() -> None:
    prompt = {"name": "p", "description": None, "arguments": [{"name": "a", "required": None}, None, {"name": 5}]}
    assert Prompt.model_validate(mended_entry(prompt)).arguments is not None
    resource = {"uri": "note://1", "name": None, "mimeType": None, "size": "large", "annotations": None}
    assert Resource.model_validate(mended_entry(resource)).name == "note://1"
