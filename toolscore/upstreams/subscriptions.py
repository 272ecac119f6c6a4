"""The resources of one server that somebody wants to hear of, and how the server is made to tell of changes.

A server with sessions is told resource by resource. A stateless one tells on a stream (`subscriptions/listen`), which
is opened again whenever something else is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import METHOD_NOT_FOUND, ConnectionLost, RemoteError
from toolscore.core.tasks import TaskSet
from toolscore.upstreams.caller import Caller
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.lists import REFRESH_SECONDS

__all__ = ["Subscriptions"]

FOLLOW_RETRY_SECONDS = 5.0
"""The rest before a stateless server is asked again to tell what changes."""


class Subscriptions:
    """What is watched on one server. Each `add` needs a `remove`."""

    def __init__(self) -> None:
        self.changing = asyncio.Lock()
        """To be held around `add`."""
        self._watched: Counter[str] = Counter()
        self._rewatch = asyncio.Event()
        self._followers: dict[Connection, asyncio.Task[Any]] = {}
        self._tasks = TaskSet()

    async def add(self, uri: str, connection: Connection, caller: Caller) -> None:
        """Have the server tell of changes of a resource.

        Raises:
            RemoteError, ConnectionLost, UpstreamProtocolError: it does not.
        """
        if connection.info.stateless:
            if not connection.info.declares("resources", "subscribe"):
                raise RemoteError({"code": METHOD_NOT_FOUND, "message": "the server does not tell of changes"})
        elif not self._watched[uri]:
            await connection.request("resources/subscribe", {"uri": uri}, caller=caller)
        self._watched[uri] += 1
        self._rewatch.set()

    async def remove(self, uri: str, connection: Connection | None, caller: Caller) -> None:
        """One who watched a resource does so no more.

        Args:
            connection: `None` while the server is away.

        Raises:
            RemoteError, ConnectionLost, UpstreamProtocolError.
        """
        self._watched[uri] -= 1
        if self._watched[uri] > 0:
            return
        del self._watched[uri]
        self._rewatch.set()
        if connection is not None and not connection.info.stateless:
            await connection.request("resources/unsubscribe", {"uri": uri}, caller=caller)

    def follow(self, connection: Connection) -> None:
        """Have a new connection's server tell what changes, until `leave`."""
        work = self._listen(connection) if connection.info.stateless else self._subscribe_again(connection)
        self._followers[connection] = self._tasks.start(work)

    def leave(self, connection: Connection) -> None:
        """Stop following a connection. Idempotent."""
        follower = self._followers.pop(connection, None)
        if follower is not None:
            follower.cancel()

    def take_over(self, old: Subscriptions, connections: Iterable[Connection]) -> None:
        """Watch what was watched on the form of the server before this one."""
        self._watched = old._watched
        self._rewatch.set()
        for connection in connections:
            if not connection.info.stateless:
                self._tasks.start(self._subscribe_again(connection))

    async def _subscribe_again(self, connection: Connection) -> None:
        """A new session knows nothing of what the last one was asked to tell."""
        for uri in list(self._watched):
            with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError):
                await connection.request("resources/subscribe", {"uri": uri})

    def _wanted(self, connection: Connection) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            f"{kind}ListChanged": True
            for kind in ("tools", "prompts", "resources")
            if connection.info.declares(kind, "listChanged")
        }
        if self._watched:
            wanted["resourceSubscriptions"] = list(self._watched)
        return wanted

    async def _listen(self, connection: Connection) -> None:
        listening: asyncio.Future[Raw] | None = None
        try:
            while True:
                self._rewatch.clear()
                wanted = self._wanted(connection)
                before, listening = listening, None
                if wanted:
                    params = {"notifications": wanted}
                    listening = asyncio.ensure_future(connection.request("subscriptions/listen", params))
                if before is not None:
                    await asyncio.sleep(REFRESH_SECONDS)  # the new stream stands before the old one ends
                    before.cancel()
                rewatch = asyncio.create_task(self._rewatch.wait())
                try:
                    await asyncio.wait({rewatch, *([listening] if listening else [])}, return_when="FIRST_COMPLETED")
                finally:
                    rewatch.cancel()
                if listening is not None and listening.done():
                    if _is_refused(listening):
                        return
                    listening = None
                    await asyncio.sleep(FOLLOW_RETRY_SECONDS)
        finally:
            if listening is not None:
                listening.cancel()


def _is_refused(listening: asyncio.Future[Raw]) -> bool:
    """Whether a server has no such stream at all."""
    try:
        listening.result()
    except RemoteError as exc:
        return exc.code == METHOD_NOT_FOUND
    except (ConnectionLost, ToolScoreError):
        pass
    return False
