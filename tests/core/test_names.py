"""Stable names."""

from __future__ import annotations

import itertools
import re

from toolscore.core.names import nearest, tool_id


def test_plain_names_stay_readable() -> None:
    assert tool_id("time", "get_current_time") == "time__get_current_time"


def test_different_pairs_get_different_names_that_models_accept() -> None:
    parts = ["a", "b", "_", "__", "a_", "_a", "a__b", "x" * 64, "x" * 200, "ü", "a b", "a.b", "a/b", "-", ""]
    names = {}
    for server, tool in itertools.product(parts[:-1], parts):
        name = tool_id(server, tool)
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,48}", name), (server, tool, name)
        assert name not in names, (server, tool, names[name])
        names[name] = (server, tool)


def test_no_name_can_be_made_to_look_like_a_hashed_one() -> None:
    hashed = tool_id("io.example", "echo")
    server, _, tool = hashed.partition("__")
    assert tool_id(server, tool) != hashed


def test_a_name_depends_on_nothing_but_the_pair() -> None:
    assert tool_id("s" * 70, "t") == tool_id("s" * 70, "t")


def test_nearest_names_are_offered() -> None:
    assert nearest("tim__get", ["time__get", "git__log"])[0] == "time__get"
