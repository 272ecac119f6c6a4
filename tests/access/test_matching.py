"""Expressions of the operator against texts of strangers: what `re` says, or in time that it cannot be told."""

from __future__ import annotations

import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolscore.access.matching import SHORT, Expression, Looking

LONG = "x" * (SHORT + 1)
PIECES = ["a", "b", " ", r"\s", r"\w", ".", "[ab]", "(?:ab)", "^", "$", r"\b", "(?<=a)", "(?!b)", "|", "é", r"\d"]
plain = st.lists(st.builds("".join, st.tuples(st.sampled_from(PIECES), st.sampled_from(["", "", "?"]))), max_size=3)
repeated = st.builds("".join, st.tuples(st.sampled_from(PIECES), st.sampled_from(["", "*", "+", "{2}", "*?"])))
patterns = st.tuples(plain, repeated, plain).map(lambda parts: "".join([*parts[0], parts[1], *parts[2]]))


@settings(deadline=None, max_examples=150)
@given(
    pieces=patterns, flags=st.sampled_from(["", "(?i)", "(?m)", "(?s)"]),
    text=st.text("ab \n1éAxİ\u0301\x1f", max_size=12), where=st.sampled_from(["before", "behind", "short"]),
)  # fmt: skip
def test_it_finds_what_re_finds_in_short_texts_and_in_long_ones(pieces: str, flags: str, text: str, where: str) -> None:
    expression = flags + pieces
    try:
        re.compile(expression)
    except re.error:
        return
    whole = {"before": text + LONG, "behind": LONG + text, "short": text}[where]
    assert Looking(60.0).finds(expression, whole) is (re.search(expression, whole) is not None)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("(a+)+$", "a" * 60 + "b"),
        (r"(\w+\s?)+@", "a" * 100),
        (r"\w+@", "a" * 2_000_000),
        (r"[a-z]+[a-z]+[a-z]+\d", "a" * 2_000_000),
        ("(?:a|b)*c", "ab" * 1_000_000),
    ],
)
def test_what_would_take_long_is_ended(expression: str, text: str) -> None:
    looking, began = Looking(0.05), time.thread_time()
    for _ in range(20):  # and once the time is used up, all that is asked
        with pytest.raises(TimeoutError):
            looking.finds(expression, text)
    assert time.thread_time() - began < 5, "that would take hours"


@pytest.mark.parametrize("expression", ["import os", r"drop\s+table", "^/etc.*", r"secret_\w+"])
def test_texts_of_megabytes_are_looked_through(expression: str) -> None:
    assert not Looking(30.0).finds(expression, "x y" * 1_000_000)
    assert Looking(30.0).finds("x?$", "x y" * 1_000_000)


def test_another_thread_is_not_disturbed() -> None:
    found: list[bool] = []
    other = threading.Thread(target=lambda: found.append(Looking(30.0).finds("b+$", "ab")))
    other.start()
    other.join()
    assert found == [True]


def test_the_ways_that_are_quick_are_those_meant() -> None:
    assert Expression("^/etc|^/var").is_quick
    assert not Expression("^/etc|^/var").is_at_start
    assert Expression("^/etc/.*").is_at_start
    assert not Expression("(?m)^a.*").is_at_start
