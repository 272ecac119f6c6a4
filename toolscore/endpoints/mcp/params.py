"""A request's params, each member raw until it is read."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from toolscore.core.errors import InvalidArguments
from toolscore.core.jsonrpc import decode, decode_object

__all__ = ["Members", "cursor_of", "read_params", "text_of", "without_token"]

Members = dict[str, Any]
MAX_CURSOR = 1024


def read_params(params: Raw | None) -> Members:
    """A request's params, each member raw; `_meta`, where there is one, as a dict of raw members.

    Raises:
        InvalidRequest: params or `_meta` is no object.
    """
    if params is None:
        return {}
    members: Members = dict(decode_object(params))
    if "_meta" in members:
        if bytes(members["_meta"]) == b"null":
            del members["_meta"]
        else:
            members["_meta"] = decode_object(members["_meta"])
    return members


def text_of(params: Members, member: str, method: str) -> str:
    """A member that must be a string.

    Raises:
        InvalidArguments: it is none.
    """
    value = decode(params[member]) if member in params else None
    if not isinstance(value, str):
        raise InvalidArguments(f"{method} needs `{member}`, a string")
    return value


def cursor_of(params: Members) -> str | None:
    """The `cursor` of a list's page.

    Raises:
        InvalidArguments: it is no string, or longer than any of ours.
    """
    cursor = decode(params["cursor"]) if "cursor" in params else None
    if cursor is not None and not isinstance(cursor, str):
        raise InvalidArguments(f"`cursor` must be a string, found {cursor!r:.80}")
    if cursor is not None and len(cursor) > MAX_CURSOR:
        raise InvalidArguments(f"`cursor` is none of this gateway: it has {len(cursor):,} characters")
    return cursor


def without_token(params: Members) -> Members:
    """The params without the client's own progress token: the connection to the server sets another."""
    meta = params.get("_meta")
    if meta is not None:
        meta.pop("progressToken", None)
    return params
