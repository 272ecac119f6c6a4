"""Texts that cannot steer a terminal: what servers and callers wrote may try."""

from __future__ import annotations

import re

__all__ = ["escaped", "plain"]

STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # marks of direction, and what cannot be seen
    "\U000e0000-\U000e007f]"  # tags
)


def plain(text: str) -> str:
    """A text as a terminal may show it: what would steer it, or hide, is written out (`\\x1b`, `\\u202e`)."""
    return STEERING.sub(lambda found: _written(ord(found[0])), text)


def escaped(json_text: str) -> str:
    """JSON with the same characters as JSON's own escapes: programs read what they read before."""
    return STEERING.sub(lambda found: "".join(f"\\u{unit:04x}" for unit in _units(ord(found[0]))), json_text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _units(code: int) -> tuple[int, ...]:
    if code < 0x10000:
        return (code,)
    code -= 0x10000
    return 0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF)
