"""Files and entries of MCP clients, as they are written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolscore.core.entries import plain_json, servers_in, translated, without_effect
from toolscore.core.models import UpstreamSpec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, // one\n "b": [1, 2,],}', {"a": 1, "b": [1, 2]}),
        ('/* all */ {"a": "// no /* comment", "b": "\\" // x",}', {"a": "// no /* comment", "b": '" // x'}),
        ('{"a": "x,}", "b": ",]" // ,\n ,}', {"a": "x,}", "b": ",]"}),
        ('{"a": [1 /* , */ , // ]\n ]}', {"a": [1]}),
    ],
)
def test_comments_and_trailing_commas_are_left_out(text: str, value: Any) -> None:
    assert json.loads(plain_json(text)) == value


@pytest.mark.parametrize("text", ["{,}", "[,]", '{"a":,}', "{ /* , */ ,}", '{"a": 1,,}', "/* never closed {}"])
def test_what_no_editor_allows_stays_wrong(text: str) -> None:
    with pytest.raises(ValueError):
        json.loads(plain_json(text))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
@pytest.mark.long
def test_plain_json_stays_as_it_is_line_by_line(value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    assert json.loads(plain_json(text)) == value
    assert len(plain_json(text).splitlines()) == len(text.splitlines())


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"baseUrl": "http://h/mcp", "type": "streamableHttp", "isActive": True},
            {"url": "http://h/mcp", "disabled": False},
        ),
        ({"serverUrl": "http://h/mcp", "enabled": False}, {"disabled": True}),
        ({"httpUrl": "http://h/mcp", "excludeTools": ["a"]}, {"exclude_tools": ("a",)}),
        (
            {"type": "local", "command": ["npx", "-y", "x"], "environment": {"A": 1}},
            {"command": "npx", "args": ("-y", "x"), "env": {"A": "1"}},
        ),
        (
            {"command": {"path": "x", "args": ["y"], "env": {"A": "b"}}, "settings": {}},
            {"command": "x", "args": ("y",), "env": {"A": "b"}},
        ),
        (
            {"cmd": "x", "envs": {"A": True}, "args": [5, True, 1.5]},
            {"command": "x", "env": {"A": "true"}, "args": ("5", "true", "1.5")},
        ),
        (
            {"url": "http://h/mcp", "bearer_token_env_var": "T", "http_headers": {"X": "1"}},
            {"headers": {"X": "1", "Authorization": "Bearer ${env:T}"}},
        ),
        ({"url": "http://h/sse", "transport": "sse"}, {"type": "sse"}),
        (
            {"command": "x", "tools": ["read"], "disabledTools": ["write"]},
            {"include_tools": ("read",), "exclude_tools": ("write",)},
        ),
        (
            {"command": "x", "tools": {"read": True, "write": False}},
            {"include_tools": ("read",), "exclude_tools": ("write",)},
        ),
        (
            {"command": "x", "envFile": ".env", "startup_timeout_sec": 5, "autoApprove": ["a"]},
            {"env_file": ".env", "start_timeout_seconds": 5.0},
        ),
    ],
)
def test_an_entry_means_what_its_client_means(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = UpstreamSpec.model_validate(entry)
    assert {name: getattr(spec, name) for name in expected} == expected


def test_an_entry_that_says_two_things_is_refused() -> None:
    with pytest.raises(ValueError, match="keep one of them"):
        translated({"url": "http://a", "baseUrl": "http://b"})


def test_what_has_no_effect_is_named() -> None:
    assert without_effect({"command": "x", "autoApprove": [], "trust": True}) == ["autoApprove", "trust"]


@pytest.mark.parametrize(
    "data",
    [
        {"mcpServers": {"a": {}}, "other": 1},
        {"servers": {"a": {}}, "inputs": []},
        {"mcp_servers": {"a": {}}, "model": "x"},
        {"context_servers": {"a": {}}},
        {"extensions": {"a": {}}},
        {"mcp": {"servers": {"a": {}}}},
        {"mcp": {"a": {}}, "$schema": "x"},
    ],
)
def test_servers_are_found_in_every_clients_file(data: dict[str, Any]) -> None:
    assert [given for _, given in servers_in(data)] == [{"a": {}}]
