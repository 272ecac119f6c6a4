"""Session ids that carry their session, sealed: any gateway that has the key makes the session of its id."""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec

from toolscore.core.seal import BadSeal, KeyRing
from toolscore.upstreams.caller import CLIENT_FEATURES

__all__ = ["MAX_AGE_SECONDS", "Opened", "new_opened", "sealed_id", "unsealed_id"]

PURPOSE = "session"
MAX_AGE_SECONDS = 7 * 86_400.0
"""A session that no gateway has in memory is made anew for so long after it was opened."""
MAX_CAPABILITIES_BYTES = 1024
"""Of what a client declares: the id goes with each request. Of more it has a part; the whole lies in Redis."""


class Opened(msgspec.Struct, array_like=True, frozen=True):
    """What was settled when a session was opened.

    Attributes:
        name: of the session; no other has it.
        principal: the name of who opened it.
        server_id: of the address; `None` for `/mcp`.
        version: the revision that was agreed on.
        capabilities: what the client declared.
        at: Unix seconds.
    """

    name: str
    principal: str
    server_id: str | None
    version: str
    capabilities: dict[str, Any]
    at: int


def new_opened(principal: str, server_id: str | None, version: str, capabilities: dict[str, Any]) -> Opened:
    """What is settled now."""
    carried = capabilities
    if len(msgspec.json.encode(carried)) > MAX_CAPABILITIES_BYTES:
        carried = {name: carried[name] for name in CLIENT_FEATURES if name in carried}
    if len(msgspec.json.encode(carried)) > MAX_CAPABILITIES_BYTES:
        carried = {name: {} for name in carried}
    return Opened(secrets.token_urlsafe(12), principal, server_id, version, carried, int(time.time()))


def sealed_id(ring: KeyRing, opened: Opened) -> str:
    """The id of a session; of letters, digits, `-` and `_`."""
    return ring.seal(msgspec.msgpack.encode(opened), PURPOSE)


def unsealed_id(ring: KeyRing, session_id: str) -> Opened | None:
    """What an id says; `None`: it is none of ours, or too old."""
    try:
        opened = msgspec.msgpack.decode(ring.open(session_id, PURPOSE), type=Opened)
    except (BadSeal, msgspec.MsgspecError):
        return None
    return opened if time.time() < opened.at + MAX_AGE_SECONDS else None
