"""A server that another gateway has, as one more `Connection`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec import Raw

from toolscore.core.jsonrpc import ConnectionLost, Params
from toolscore.replicas.hop import Link
from toolscore.upstreams import Caller
from toolscore.upstreams.connection import Hearing
from toolscore.upstreams.protocol import LISTED, ServerInfo

if TYPE_CHECKING:
    from toolscore.replicas.owners import Owners

__all__ = ["HopConnection"]


class HopConnection:
    """A server that another gateway has, as a `Connection`."""

    elsewhere = True

    def __init__(self, link: Link, server_id: str, owners: Owners, info: ServerInfo) -> None:
        self.info = info
        self.in_flight = 0
        self.log_level: str | None = None
        self.hearing = Hearing(LISTED)  # its owner hears, and passes it on
        self.link = link
        self._server_id = server_id
        self._owners = owners
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link.ended.add_done_callback(lambda ended: self.close(f"the gateway that has it went away: {ended.result()}"))

    async def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Raw:
        try:
            return await self._owners.request(self.link, self._server_id, method, params, caller)
        except ConnectionLost as exc:
            if not exc.sent and not exc.refused:
                self.close(exc.reason)
            raise

    async def notify(self, method: str, params: Params | None = None) -> None:
        """Nothing: what a server is told without being asked is its owner's matter."""

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def close(self, reason: str) -> None:
        """It is used no more. Idempotent."""
        if not self._closed.done():
            self._closed.set_result(reason)
