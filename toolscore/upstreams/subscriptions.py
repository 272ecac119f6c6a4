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
from weakref import WeakValueDictionary

from msgspec import Raw

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import METHOD_NOT_FOUND, ConnectionLost, RemoteError
from toolscore.core.tasks import TaskSet
from toolscore.upstreams.caller import Caller
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.lists import REFRESH_SECONDS
from toolscore.upstreams.protocol import LISTED

__all__ = ["Subscriptions"]

FOLLOW_RETRY_SECONDS = 5.0
"""The rest before a stateless server is asked again to tell what changes."""
STANDS_SECONDS = 5.0
"""How long a server may take to say that a new stream stands, before the old one is ended all the same."""


class Subscriptions:
    """What is watched on one server. Each `add` that succeeds needs a `remove`.

    Attributes:
        watched: each resource, and by how many; the same object in what takes over from this.
    """

    def __init__(self) -> None:
        self.watched: Counter[str] = Counter()
        self._told: dict[Connection, set[str]] = {}
        """Which resources each session was asked to tell of."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """No request about a resource overtakes another about it."""
        self._rewatch = asyncio.Event()
        self._followers: dict[Connection, asyncio.Task[Any]] = {}
        self._tasks = TaskSet()

    async def add(self, uri: str, connection: Connection, caller: Caller) -> None:
        """Have the server tell of changes of a resource.

        Raises:
            RemoteError, ConnectionLost, UpstreamProtocolError: it does not.
        """
        if connection.info.stateless and not connection.info.declares("resources", "subscribe"):
            raise RemoteError({"code": METHOD_NOT_FOUND, "message": "the server does not tell of changes"})
        self.watched[uri] += 1
        try:
            if not connection.info.stateless:
                await self._subscribe(uri, connection, caller)
        except BaseException:
            self._less(uri)
            raise
        self._rewatch.set()

    async def remove(self, uri: str, caller: Caller) -> None:
        """One who watched a resource does so no more."""
        if self._less(uri):
            return
        self._rewatch.set()
        async with self._turn(uri):
            for connection, told in list(self._told.items()):
                if uri in told and not self.watched[uri]:  # somebody may watch it again by now
                    told.discard(uri)
                    with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError):
                        await connection.request("resources/unsubscribe", {"uri": uri}, caller=caller)

    def _less(self, uri: str) -> int:
        """Returns how many still watch it."""
        self.watched[uri] -= 1
        left = self.watched[uri]
        if left <= 0:
            del self.watched[uri]
        return max(left, 0)

    def _turn(self, uri: str) -> asyncio.Lock:
        return self._turns.setdefault(uri, asyncio.Lock())

    async def _subscribe(self, uri: str, connection: Connection, caller: Caller | None = None) -> None:
        """Ask a session for a resource's changes, unless it was asked already or nobody wants them any more."""
        async with self._turn(uri):
            told = self._told.get(connection)
            if told is None:
                raise ConnectionLost("the server went away", sent=False)
            if uri in told or not self.watched[uri]:
                return
            try:
                await connection.request("resources/subscribe", {"uri": uri}, caller=caller)
            except RemoteError:
                raise
            except BaseException:  # it may have been heard
                self._tasks.start(self._take_back(uri, connection))
                raise
            told.add(uri)

    async def _take_back(self, uri: str, connection: Connection) -> None:
        """Have a session tell nothing of a resource, unless it was asked to meanwhile."""
        async with self._turn(uri):
            if uri not in self._told.get(connection, ()):
                with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError):
                    await connection.request("resources/unsubscribe", {"uri": uri})

    def follow(self, connection: Connection) -> None:
        """Have a new connection's server tell what changes, until `leave`."""
        if connection.info.stateless:
            work = self._listen(connection)
        else:
            self._told[connection] = set()
            work = self._subscribe_to(self.watched, connection)
        self._followers[connection] = self._tasks.start(work)

    def leave(self, connection: Connection) -> None:
        """Stop following a connection. Idempotent. What it alone was to tell, another is asked to."""
        told = self._told.pop(connection, set())
        for other in list(self._told)[:1]:
            self._tasks.start(self._subscribe_to(told.difference(*self._told.values()), other))
        follower = self._followers.pop(connection, None)
        if follower is not None:
            follower.cancel()

    def take_over(self, old: Subscriptions, connections: Iterable[Connection]) -> None:
        """Watch what was watched on the form of the server before this one."""
        self.watched = old.watched
        self._rewatch.set()
        for connection in connections:
            if not connection.info.stateless:
                self._tasks.start(self._subscribe_to(self.watched, connection))

    async def _subscribe_to(self, uris: Iterable[str], connection: Connection) -> None:
        """Have a session tell what another told, or the last one did."""
        for uri in list(uris):
            with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError):
                await self._subscribe(uri, connection)

    def _wanted(self, connection: Connection) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            f"{kind}ListChanged": True for kind in LISTED if connection.info.declares(kind, "listChanged")
        }
        if self.watched:
            wanted["resourceSubscriptions"] = list(self.watched)
        return wanted

    async def _listen(self, connection: Connection) -> None:
        """Keep a stream open on which a stateless server tells what changes, of what is wanted now."""
        listening: asyncio.Future[Raw] | None = None
        if not connection.elsewhere:
            connection.hearing.end()  # until the server says that it tells
        try:
            while True:
                self._rewatch.clear()
                wanted = self._wanted(connection)
                before, listening = listening, None
                try:
                    connection.hearing.begun.clear()
                    if wanted:
                        params = {"notifications": wanted}
                        listening = asyncio.ensure_future(connection.request("subscriptions/listen", params))
                    if before is not None and listening is not None:
                        await asyncio.sleep(REFRESH_SECONDS)  # as long may come what is wanted, too
                        await self._stands(connection, listening)
                finally:
                    if before is not None:
                        before.cancel()
                rewatch = asyncio.create_task(self._rewatch.wait())
                try:
                    await asyncio.wait({rewatch, *([listening] if listening else [])}, return_when="FIRST_COMPLETED")
                finally:
                    rewatch.cancel()
                if listening is not None and listening.done():
                    if not connection.elsewhere:
                        connection.hearing.end()
                    if _is_refused(listening):
                        return
                    listening = None
                    await asyncio.sleep(FOLLOW_RETRY_SECONDS)
        finally:
            if listening is not None:
                listening.cancel()

    async def _stands(self, connection: Connection, listening: asyncio.Future[Raw]) -> None:
        """Wait until a new stream stands in the place of the one before, which goes on until then."""
        if connection.elsewhere:  # who has the server hears that
            return
        begun: asyncio.Future[Any] = asyncio.create_task(connection.hearing.begun.wait())
        ended: asyncio.Future[Any] = listening
        try:
            await asyncio.wait({begun, ended}, timeout=STANDS_SECONDS, return_when="FIRST_COMPLETED")
        finally:
            begun.cancel()
        if not connection.hearing.begun.is_set():
            connection.hearing.end()  # so that what goes by unheard is read once it does


def _is_refused(listening: asyncio.Future[Raw]) -> bool:
    """Whether a server has no such stream at all."""
    try:
        listening.result()
    except RemoteError as exc:
        return exc.code == METHOD_NOT_FOUND
    except (ConnectionLost, ToolScoreError):
        pass
    return False
