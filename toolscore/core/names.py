"""Stable names: `server__tool`, of `[a-zA-Z0-9_-]`, and no longer than every model's API accepts (64 characters) with
what a client puts before them, such as `mcp__toolscore__`.

A name is a function of the server's id and the tool's own name alone, so it never changes because another server
joins. Different pairs get different names: a plain `server__tool` splits only one way, since a plain server part has no
double underscore in it and none at its end; everything else carries a hash of the pair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["EXECUTOR", "MAX_LENGTH", "MAX_SERVER_ID", "PYTHON", "is_server_id", "nearest", "reference_for", "tool_id"]

PYTHON, EXECUTOR = "python", "python-executor-mcp-server"
"""What may be said for the executor, unless a server has that id."""
MAX_LENGTH = 48
MAX_SERVER_ID = 128
MAX_COMPARED = 128
NEAR = 50
"""Of a hundred: less alike is not meant."""
HASH_DIGITS = 10

_PLAIN = re.compile(r"[a-zA-Z0-9_-]+")
_HASHED = re.compile(r"(?:^|_)[0-9a-f]{10}$")  # a name that looks hashed is hashed: it can be taken for no other's
_OTHER = re.compile(r"[^a-zA-Z0-9_-]+")


def is_server_id(given: Any) -> bool:
    """Whether something can be the id of a server: a text, which stands in addresses between slashes."""
    return isinstance(given, str) and 0 < len(given) <= MAX_SERVER_ID and "/" not in given


def reference_for(name: str) -> str:
    """How a secret of this name is given without its value: `${env:API_KEY}`, `Bearer ${env:TOKEN}`."""
    if name.casefold() == "authorization":
        return "Bearer ${env:TOKEN}"
    return f"${{env:{_OTHER.sub('_', name).replace('-', '_').upper()}}}"


def tool_id(server_id: str, name: str, max_length: int = MAX_LENGTH) -> str:
    """The gateway's name of a tool."""
    plain = f"{server_id}__{name}"
    splits_one_way = "__" not in server_id and not server_id.endswith("_")
    if len(plain) <= max_length and _PLAIN.fullmatch(plain) and splits_one_way and not _HASHED.search(name):
        return plain
    digest = hashlib.sha256(f"{server_id}\0{name}".encode("utf-8", "replace")).hexdigest()[:HASH_DIGITS]
    room = max_length - HASH_DIGITS - 1
    server_part = _OTHER.sub("_", server_id)[: room // 2]
    readable = f"{server_part}__{_OTHER.sub('_', name)}"[:room].rstrip("_")
    return f"{readable}_{digest}"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that a caller may have meant, best first. Of a long name the beginning counts."""
    from rapidfuzz import fuzz, process  # 40 ms, at the first mistake

    names = list(known)
    found = process.extract(name[:MAX_COMPARED], names, scorer=fuzz.ratio, limit=count, score_cutoff=NEAR)
    return [names[index] for _, _, index in found]
