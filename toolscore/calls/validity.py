"""Which results of a server still hold: those that were asked for after the last call that may have changed something.

Here by the time of asking. Where replicas share a Redis, each server also has an epoch there, a random word that a call
which may change something replaces: a result is given only under the word under which it was asked for.
"""

from __future__ import annotations

import secrets
import time

from toolscore.core.models import Tool
from toolscore.stores import SharedStore

__all__ = ["SharedEpochs", "Validity"]

MAX_NOTED = 10_000
EPOCH = "toolscore:epoch:"
CHANGING = "toolscore:changing:"
EPOCH_SECONDS = 7 * 86400.0
"""An epoch that is forgotten makes results worthless, and nothing worse."""
EVERYTHING = "*"


class _Server:
    """What is known of one server: calls that may change something, and when the last of them was over."""

    __slots__ = ("changing", "open_until", "since")

    def __init__(self) -> None:
        self.changing = 0
        self.open_until = 0.0
        self.since = 0.0


class Validity:
    """Since when results hold, in this process. Times are seconds since 1970."""

    def __init__(self) -> None:
        self._servers: dict[str, _Server] = {}
        self._tools: dict[tuple[str, str | None], float] = {}
        self._since = 0.0

    def holds(self, tool: Tool, asked_at: float) -> bool:
        """Whether a result that was asked for then may be given now."""
        if asked_at <= self._since:
            return False
        server = self._servers.get(tool.server_id)
        if server is not None and (server.changing or asked_at <= max(server.since, server.open_until)):
            return False
        if not self._tools:
            return True
        since = self._tools.get
        return asked_at > max(since((tool.tool_id, None), 0.0), since((tool.tool_id, tool.server_id), 0.0))

    def end(self, tool_id: str | None, server_id: str | None) -> None:
        """Nothing holds that was asked for before now: of one tool, of one server, or at all."""
        now = time.time()
        if tool_id is not None and len(self._tools) < MAX_NOTED:
            self._tools[tool_id, server_id] = now
        elif server_id is not None:
            self._of(server_id).since = now
        else:
            self._since = now

    def began(self, server_id: str) -> None:
        """A call that may change something begins."""
        self._of(server_id).changing += 1

    def ended(self, server_id: str, seconds: float, settled: bool) -> None:
        """It ended.

        Args:
            settled: it is known that it does nothing from now on; otherwise it may for so many seconds.
        """
        server = self._of(server_id)
        server.changing -= 1
        server.since = time.time()
        if not settled:
            server.open_until = max(server.open_until, server.since + seconds)

    def _of(self, server_id: str) -> _Server:
        server = self._servers.get(server_id)
        if server is None:
            if len(self._servers) >= MAX_NOTED:  # servers that came and went
                self._servers = {name: one for name, one in self._servers.items() if one.changing}
                self._since = time.time()
            server = self._servers[server_id] = _Server()
        return server


class SharedEpochs:
    """The epochs of servers in Redis. While it is away nothing is known to hold."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._untold: set[str] = set()
        self._outages = 0

    @property
    def untold(self) -> bool:
        """Whether other replicas have not heard of all changes yet."""
        return bool(self._untold)

    async def read(self, server_id: str, key: str) -> tuple[str | None, bytes | None]:
        """The epoch of a server, and the value of a key; no epoch: nothing holds just now."""
        if self._store.outages != self._outages:  # whoever changed something meanwhile could tell nobody
            self._outages = self._store.outages
            self.end(None)
        if self._untold and not await self.tell():
            return None, None
        names = [EPOCH + EVERYTHING, EPOCH + server_id]
        for _ in range(2):
            found = await self._store.get_many([*names, CHANGING + server_id, key])
            if found is None or found[2] is not None:
                break
            if found[0] is not None and found[1] is not None:
                return (found[0] + found[1]).hex(), found[3]
            for name in names:
                await self._store.put_new(name, secrets.token_bytes(12), EPOCH_SECONDS)
        return None, None

    async def began(self, server_id: str, seconds: float) -> None:
        """A call that may change something begins: nothing holds until it has ended, or for so long."""
        await self._store.put(CHANGING + server_id, b"1", seconds)

    async def ended(self, server_id: str, settled: bool) -> None:
        """It ended: nothing holds that was asked for before."""
        self.end(server_id)
        if await self.tell() and settled:
            await self._store.drop([CHANGING + server_id])

    def end(self, server_id: str | None) -> None:
        """Note that nothing of a server holds, or nothing at all; `tell` tells others."""
        if server_id is None or len(self._untold) >= MAX_NOTED:
            self._untold = {EVERYTHING}
        elif EVERYTHING not in self._untold:
            self._untold.add(server_id)

    async def tell(self) -> bool:
        """Tell all replicas. Returns whether Redis took it; what it did not take is told later."""
        while self._untold:
            server_id = self._untold.pop()
            if not await self._store.put(EPOCH + server_id, secrets.token_bytes(12), EPOCH_SECONDS):
                self._untold.add(server_id)
                return False
        return True
