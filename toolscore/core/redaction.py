"""Secrets out of what is written down: members by their names, and whatever looks like a key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from toolscore.core.errors import InvalidRequest
from toolscore.core.jsonrpc import decode, encode, twice

__all__ = ["REDACTED", "redact_json", "redact_text"]

REDACTED = "[redacted]"
MAX_DEPTH = 200

NAMES = (
    r"(?:pass(?:_?(?:word|wd|phrase|code))?|pwd|secret\w{0,40}|(?:auth|access|refresh|id|bearer)?tokens?|(?:api|access|private|secret|ssh|signing|encryption|auth)_?keys?"
    r"|authorization|auth|credentials?|cookies?|set_cookie|session_?(?:key|cookie)|bearer|otp|pin_?code|cvv|cvc|card_?number|ssn"
    r"|client_?secret|connection_?string|dsn)"
)
_name = re.compile(rf"(?:^|_|pg|db|my){NAMES}s?(?:_?\d*$|_(?:hash|pem|value|text)$)")
_camel = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
VALUES = re.compile(
    r"""
    \bts_[0-9a-f]{12}_[A-Za-z0-9_-]{43}
    | \bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,} | \b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}
    | \bgh[pousr]_[A-Za-z0-9]{30,} | \bgithub_pat_[A-Za-z0-9_]{30,} | \bglpat-[A-Za-z0-9_-]{20,}
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,} | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b | \bAIza[A-Za-z0-9_-]{35}
    | \bya29\.[A-Za-z0-9_-]{20,} | \bnpm_[A-Za-z0-9]{36} | \bpypi-[A-Za-z0-9_-]{50,} | \bhf_[A-Za-z0-9]{30,}
    | (?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY(?:\ BLOCK)?-----[\s\S]*?(?:-----END\ [A-Z ]*PRIVATE\ KEY(?:\ BLOCK)?-----|\Z)
    | (?i:(?<=\bBearer\ ))[A-Za-z0-9._~+/=-]{12,} | (?i:(?<=\bBasic\ ))[A-Za-z0-9+/=]{12,}
    | (?<=://)[^\s/:@"']{0,100}:[^\s/@"']{1,200}(?=@)
    """,
    re.VERBOSE,
)
WORDS = (
    "pass", "pwd", "secret", "token", "key", "auth", "credential", "cookie", "bearer", "otp", "pin", "cvv", "cvc",
    "card", "ssn", "connection", "dsn",
    "ts_", "sk-", "sk_", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat", "glpat", "xox", "akia", "asia",
    "aiza", "ya29", "npm_", "hf_", "eyj", "private key", "basic", "pypi-", "://",
)  # fmt: skip
"""What a name or a value has of these, in small letters: a quick look that misses nothing."""
_WORDS_IN_JSON = tuple(word.encode() for word in (*WORDS, ":\\/", "\\u", "ſ", "\u212a", "İ", "ı"))
"""A letter that is escaped may be any, and the last four count as s, k and i where case counts for nothing."""


def _any_of(words: Iterable[bytes]) -> bytes:
    """An expression for any of these words: beginnings that they share are looked at once, at half the time."""
    by_first: dict[bytes, list[bytes]] = {}
    for word in words:
        by_first.setdefault(word[:1], []).append(word[1:])
    if b"" in by_first:
        return b""  # one ends here: whatever follows
    return b"(?:" + b"|".join(re.escape(first) + _any_of(rest) for first, rest in by_first.items()) + b")"


_parts = re.compile(_any_of(_WORDS_IN_JSON))
SMALL = 1024
"""One search for all is faster below, one for each above."""

_pairs = re.compile(
    rf"""(?ix)(["']?(?<![\w-])[\w-]{{0,64}}?{NAMES}\\?["']?\s{{0,4}}[:=]\s{{0,4}})"""
    r"""(?:(\\?(["']))(?!\[redacted\])(?:(?!\\?\3)[^\r\n]){1,4000}|(?!\\?["']?\[redacted\])[^\s"'\\,;&}]{3,})""",
)
"""`password=…` in running text, and `"password": "…"` to the end of what is quoted."""
_line = re.compile(r"""(?i)(\bauthorization\s{0,4}[:=]\s{0,4})(?!["'\[])[^\r\n"'\\]{3,}""")
"""A header, whose value may have several parts."""


def redact_text(text: str) -> str:
    """A text without what looks like a key, nor the value of what is called one."""
    folded = text.replace("İ", "i").replace("ı", "i").casefold()  # which are an i where case counts for nothing
    if not any(word in folded for word in WORDS):
        return text
    text = _line.sub(lambda found: found[1] + REDACTED, VALUES.sub(REDACTED, text))
    return _pairs.sub(lambda found: f"{found[1]}{found[2] or ''}{REDACTED}", text)


def redact_json(body: Raw) -> tuple[bytes, bool]:
    """JSON without secrets, and whether there were any. As it came where there are none.

    By the name of a member (`password`, `apiKey`, …) its whole value goes, however deep; by its look, a part of a text.
    """
    data = bytes(body)
    lowered = data.lower()
    if len(lowered) < SMALL:
        if not _parts.search(lowered):
            return data, False
    elif not any(word in lowered for word in _WORDS_IN_JSON):
        return data, False
    try:
        value = decode(data)
    except InvalidRequest:
        return encode(redact_text(data.decode("utf-8", "replace"))), True
    clean = _redacted(value, 0)
    if clean is value and twice(data, value) is None:  # of a member that is there twice we saw one only
        return data, False
    return encode(clean), True


def _redacted(value: Any, depth: int) -> Any:
    """The value itself where nothing had to go."""
    if isinstance(value, str):
        clean = redact_text(value) if len(value) >= 8 else value
        return value if clean == value else clean
    if depth > MAX_DEPTH:
        return REDACTED
    if isinstance(value, dict):
        members = {
            name: REDACTED
            if member not in (None, "", REDACTED) and _is_secret(name, member)
            else _redacted(member, depth + 1)
            for name, member in value.items()
        }
        return members if any(members[name] is not value[name] for name in value) else value
    if isinstance(value, list):
        items = [_redacted(member, depth + 1) for member in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _is_secret(name: str, value: Any) -> bool:
    if value in (None, "", REDACTED):
        return False
    if isinstance(value, bool | int | float) and not isinstance(value, str):
        return bool(re.search(r"pin|otp|cvv|cvc|card|ssn|pass", name, re.IGNORECASE)) and _named(name)
    return _named(name)


def _named(name: str) -> bool:
    return _name.search(_camel.sub("_", name).replace("-", "_").lower()) is not None
