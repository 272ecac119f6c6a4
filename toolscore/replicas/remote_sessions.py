"""The session that gateways have with a remote server, as one: what the server keeps in it is the same through each."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from toolscore.replicas.members import Members
from toolscore.upstreams.protocol import ServerInfo

__all__ = ["Together"]


class Together:
    """A `SharedSession` in Redis."""

    def __init__(self, members: Members, key: str, fresh: bool) -> None:
        self._members = members
        self._key = sha256(key.encode()).hexdigest()
        self._fresh = fresh

    async def known(self) -> tuple[str, ServerInfo] | None:
        found = None if self._fresh else await self._members.session_of(self._key)
        return _session(found) if found is not None else None

    async def offer(self, session_id: str, info: ServerInfo, instead_of: str | None) -> tuple[str, ServerInfo]:
        ours = msgspec.json.encode([session_id, info])
        counts = await self._members.offer_session(self._key, ours, session_id if self._fresh else instead_of)
        self._fresh = False
        return _session(counts) or (session_id, info)

    def may_end(self) -> bool:
        return not self._members.others


def _session(found: bytes) -> tuple[str, ServerInfo] | None:
    try:
        session_id, info = msgspec.json.decode(found, type=tuple[str, ServerInfo])
    except msgspec.MsgspecError:
        return None  # another release's
    return session_id, info
