"""Texts that only gateways with the same key can make or read."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolscore.core.seal import BadSeal, KeyRing, new_key

ONE, OTHER = (base64.b64encode(bytes([one]) * 32).decode() for one in (1, 2))


def test_a_new_key_is_one() -> None:
    assert KeyRing.read(new_key()).key_id != KeyRing.read(new_key()).key_id


def test_a_value_comes_back_for_its_purpose_alone() -> None:
    ring = KeyRing.read(ONE)
    text = ring.seal(b"value", "session")
    assert ring.open(text, "session") == b"value"
    assert text != ring.seal(b"value", "session"), "no two texts are alike"
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    with pytest.raises(BadSeal):
        ring.open(text, "state")
    with pytest.raises(BadSeal):
        KeyRing.read(OTHER).open(text, "session")


def test_a_key_is_changed_in_three_steps() -> None:
    old, both, turned, new = (KeyRing.read(keys) for keys in (ONE, f"{ONE},{OTHER}", f"{OTHER}, {ONE}", OTHER))
    of_old, of_turned = old.seal(b"1", "p"), turned.seal(b"2", "p")
    assert both.seal(b"3", "p")[:5] == of_old[:5], "the first seals"
    for ring in (both, turned):
        assert ring.open(of_old, "p") == b"1"
        assert ring.open(of_turned, "p") == b"2"
    assert new.open(of_turned, "p") == b"2"
    with pytest.raises(BadSeal, match="not in the ring"):
        new.open(of_old, "p")


@given(st.data())
def test_nothing_that_was_changed_is_opened(data: st.DataObject) -> None:
    ring = KeyRing.read(ONE)
    text = ring.seal(b"some value", "p")
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("ABab01-_=+/ é"))
    changed = text[:place] + letter + text[place + 1 :]
    if changed != text:
        with pytest.raises(BadSeal):
            ring.open(changed, "p")
    for wrong in (text[:place], text + letter, ""):
        with pytest.raises(BadSeal):
            ring.open(wrong, "p")


@given(st.text(max_size=200))
def test_what_is_no_seal_is_refused(text: str) -> None:
    with pytest.raises(BadSeal):
        KeyRing.read(ONE).open(text, "p")


@pytest.mark.parametrize(
    "wrong", ["", "short", "é" * 44, base64.b64encode(b"x" * 31).decode(), f"{ONE},x"], ids=range(5)
)
def test_what_are_no_keys_is_said_without_saying_them(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"seal needs keys|is no 32 bytes") as refused:
        KeyRing.read(wrong)
    assert not wrong or wrong not in str(refused.value)
