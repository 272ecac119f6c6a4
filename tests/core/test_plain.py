"""What others wrote cannot steer a terminal, and programs read what they read before."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from toolscore.core.plain import escaped, plain

STEERS = "\x1b]0;owned\x07\x9b31m\r\x7f\u202e\u2066\u200b\ufeff\u2028\U000e0041"


def test_what_steers_is_written_out() -> None:
    assert plain(STEERS).isprintable()
    assert plain("\x1b[2J\u202eabc") == "\\x1b[2J\\u202eabc"
    assert plain("two\nlines\tand a tab, ä, 日本, 😀") == "two\nlines\tand a tab, ä, 日本, 😀"


@given(st.text() | st.text(alphabet=STEERS))
def test_json_means_the_same(text: str) -> None:
    shown = escaped(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(shown) == {text: text}
    assert plain(shown) == shown
