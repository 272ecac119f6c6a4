"""Which results of a server still hold: those that were asked for after the last call that may have changed something.

Here by the time of asking. Where replicas share a Redis, each server also has an epoch there, a random word that a call
which may change something replaces: a result is given only under the word under which it was asked for.

Most servers say of no tool that it changes nothing, and no result of theirs is ever kept: then nobody need be told.
Whoever is about to keep the first result of a server says so in Redis, and keeps none for longer than another gateway
may go without looking there.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable

from toolscore.core.models import Tool
from toolscore.stores.redis import SharedStore

__all__ = ["SharedEpochs", "Validity"]

MAX_NOTED = 10_000
EPOCH = "toolscore:epoch:"
CHANGING = "toolscore:changes:"
"""Of a server: gateway → until when a call of it may change something there, in ms of Redis' clock."""
EPOCH_SECONDS = 7 * 86400.0
"""An epoch that is forgotten makes results worthless, and nothing worse."""
EPOCH_MS = int(EPOCH_SECONDS * 1000)
EVERYTHING = "*"
ANSWER_SECONDS = 0.1
"""As long as a call waits for Redis."""
MORE = 30.0
"""Seconds beyond what a call may take for which Redis is told that something changes: the next ones need not."""
KEEPS = "toolscore:keeps:"
LOOK_SECONDS = 0.25
"""For so long a gateway goes by what it saw: whether any gateway keeps results of a server."""
GRACE_SECONDS = 2 * LOOK_SECONDS
"""After so long all gateways know that somebody means to."""
LONG_AGO_SECONDS = 15.0
"""Their clocks are not further apart."""
AGAIN_SECONDS = 3600.0
"""So often it is said again that results are kept, as that has an end."""

READ = """
local now = redis.call('time')
now = now[1] * 1000 + now[2] / 1000
local changing = redis.call('hgetall', KEYS[3])
local busy = 0
for at = 1, #changing, 2 do
  if tonumber(changing[at + 1]) > now then
    busy = 1
  else
    redis.call('hdel', KEYS[3], changing[at])
  end
end
local found = {busy}
for at, key in ipairs({KEYS[1], KEYS[2], KEYS[4], KEYS[5]}) do
  found[at + 1] = redis.call('get', key) or ''
end
return found
"""
"""Whether something is being changed; the two epochs; when results were first kept; a value."""
MARK = """
local now = redis.call('time')
now = now[1] * 1000 + now[2] / 1000
redis.call('hset', KEYS[1], ARGV[1], string.format('%.0f', now + tonumber(ARGV[2])))
redis.call('pexpire', KEYS[1], ARGV[3])
redis.call('set', KEYS[2], ARGV[4], 'px', ARGV[3])
return 1
"""
"""A gateway changes something: also if it never says that it has."""
TELL = """
redis.call('set', KEYS[2], ARGV[2], 'px', ARGV[3])
if ARGV[4] == '1' then redis.call('hdel', KEYS[1], ARGV[1]) end
return 1
"""
KEEP = """
if redis.call('get', KEYS[1]) then
  redis.call('pexpire', KEYS[1], ARGV[3])
else
  redis.call('set', KEYS[2], ARGV[2], 'px', ARGV[3])
  redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[3])
end
return 1
"""
"""Results are kept from now on: whatever was kept before nobody has been told of."""


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


class _Changes:
    """Calls of this process that may change something at one server.

    Attributes:
        said_at: when it was last said here that results are kept, by `time.monotonic()`.
        looked_at: when Redis was last asked whether somebody keeps results of it, by `time.monotonic()`.
        kept: whether somebody does, as far as is known.
        kept_since: when that was first known here, by the same clock; infinite where it is not.
        open: how many are under way.
        marked_until: until when Redis says so; seconds since 1970.
        unsettled_until: until when one may do something that has ended.
        ended, told: how many have ended, and of how many Redis knows.
        turn: held by who speaks to Redis: for all who wait for it.
    """

    __slots__ = (
        "ended", "kept", "kept_since", "looked_at", "marked_until", "open", "said_at", "told", "turn", "unsettled_until"
    )  # fmt: skip

    def __init__(self) -> None:
        self.said_at = self.looked_at = -math.inf
        self.kept, self.kept_since = True, math.inf
        self.open = self.ended = self.told = 0
        self.marked_until = self.unsettled_until = 0.0
        self.turn = asyncio.Lock()

    @property
    def is_needed(self) -> bool:
        """Whether something is under way, or may still come."""
        return self.open > 0 or self.turn.locked() or self.unsettled_until > time.time()


class SharedEpochs:
    """The epochs of servers in Redis. While it is away nothing is known to hold.

    Args:
        on_end: called when there is something for `tell` to tell.
    """

    def __init__(self, store: SharedStore, on_end: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._on_end = on_end
        self._id = secrets.token_hex(6)
        self._untold: dict[str, int] = {}
        """Servers of which others have not heard that nothing of before holds, and by the how many-th `end` that is."""
        self._ends = 0
        self._outages = 0
        self._changes: dict[str, _Changes] = {}

    @property
    def untold(self) -> bool:
        """Whether other replicas have not heard of all changes yet."""
        return bool(self._untold)

    async def read(self, server_id: str, key: str, keeps: bool) -> tuple[str | None, bytes | None]:
        """The epoch of a server, and the value of a key; no epoch: nothing may be given or kept just now.

        Args:
            keeps: whether results of it will be kept, if none are.
        """
        if self._store.outages != self._outages:  # whoever changed something meanwhile could tell nobody
            self._outages = self._store.outages
            self.end(None)
        if self._untold and not await self._tell_soon():
            return None, None
        names = [EPOCH + EVERYTHING, EPOCH + server_id]
        for _ in range(2):
            keys = [*names, CHANGING + server_id, KEEPS + server_id, key]
            found = await self._store.run(READ, keys, [], ANSWER_SECONDS)
            if found is None or found[0]:
                break
            _, everything, epoch, said_at, value = found
            known = self._all_know(server_id, said_at)
            if keeps and (not said_at or time.monotonic() > self._of(server_id).said_at + AGAIN_SECONDS):
                await self.keep(server_id)
            if not known:
                break
            if everything and epoch:
                return (everything + epoch).hex(), value or None
            for name in names:
                await self._store.put_new(name, secrets.token_bytes(12), EPOCH_SECONDS)
        return None, None

    async def keep(self, server_id: str) -> None:
        """Say that results of a server will be kept."""
        arguments: list[str | bytes | int] = [repr(time.time()), secrets.token_bytes(12), EPOCH_MS]
        if await self._store.run(KEEP, [KEEPS + server_id, EPOCH + server_id], arguments, ANSWER_SECONDS) is not None:
            self._of(server_id).said_at = time.monotonic()

    def _all_know(self, server_id: str, said_at: bytes) -> bool:
        """Whether all gateways know by now that results of a server are kept.

        Args:
            said_at: when somebody said so, by its clock; empty: nobody did.
        """
        changes = self._of(server_id)
        if not said_at:
            changes.kept_since = math.inf
            return False
        now = time.monotonic()
        changes.kept, changes.kept_since = True, min(changes.kept_since, now)
        if now >= changes.kept_since + GRACE_SECONDS:
            return True
        try:
            return time.time() > float(said_at) + LONG_AGO_SECONDS
        except ValueError:
            return False

    def began(self, server_id: str, seconds: float) -> Awaitable[None] | None:
        """A call that may change something begins: nothing holds until it has ended, or for so long. Returns what has
        to be awaited before, if anything.
        """
        changes = self._of(server_id)
        changes.open += 1
        if not self._is_kept(changes):
            return None
        until = time.time() + seconds
        if changes.kept and changes.marked_until >= until and not changes.turn.locked():
            return None
        return self._begin(changes, server_id, until)

    @staticmethod
    def _is_kept(changes: _Changes) -> bool:
        """Whether results of a server are kept; also where that is not known."""
        return changes.kept or time.monotonic() > changes.looked_at + LOOK_SECONDS

    async def _begin(self, changes: _Changes, server_id: str, until: float) -> None:
        async with changes.turn:
            if await self._look(changes, server_id):
                await self._mark(changes, server_id, until)

    async def _look(self, changes: _Changes, server_id: str) -> bool:
        """Whether any gateway keeps results of a server, known anew where it was not just now."""
        now = time.monotonic()
        if now > changes.looked_at + LOOK_SECONDS:
            found = await self._store.get_many([KEEPS + server_id])
            changes.kept = found is None or found[0] is not None
            changes.looked_at = now if found is not None else -math.inf
        return changes.kept

    async def _mark(self, changes: _Changes, server_id: str, until: float) -> None:
        if changes.marked_until >= until:
            return
        milliseconds = int((until + MORE - time.time()) * 1000)
        arguments: list[str | bytes | int] = [self._id, milliseconds, EPOCH_MS, secrets.token_bytes(12)]
        keys = [CHANGING + server_id, EPOCH + server_id]
        if await self._store.run(MARK, keys, arguments, ANSWER_SECONDS) is not None:
            changes.marked_until = until + MORE
        else:
            self.end(server_id)

    def ended(self, server_id: str, seconds: float, settled: bool) -> Awaitable[None] | None:
        """It ended: nothing holds that was asked for before. Who ends meanwhile is told of together. Returns what has
        to be awaited before it is answered, if anything.

        Args:
            seconds, settled: as of `Validity.ended`.
        """
        changes = self._of(server_id)
        changes.open -= 1
        changes.ended += 1
        if not settled:
            changes.unsettled_until = max(changes.unsettled_until, time.time() + seconds)
        tells = not settled or self._is_kept(changes)  # what may still come may come when results are kept
        return self._end(changes, server_id, changes.ended, settled) if tells else None

    async def _end(self, changes: _Changes, server_id: str, mine: int, settled: bool) -> None:
        try:
            async with changes.turn:
                if changes.told < mine and (not settled or await self._look(changes, server_id)):
                    await self._tell_of(changes, server_id)
        except BaseException:  # the call is given up: then it is told by whoever reads next
            self.end(server_id)
            raise

    async def _tell_of(self, changes: _Changes, server_id: str) -> bool:
        """Say in Redis what has ended, in one's turn. Returns whether it took that."""
        now, over = changes.ended, "0"
        if changes.unsettled_until > time.time():
            await self._mark(changes, server_id, changes.unsettled_until)
        elif changes.open <= 0:
            over, changes.marked_until = "1", 0.0
        arguments: list[str | bytes | int] = [self._id, secrets.token_bytes(12), EPOCH_MS, over]
        keys = [CHANGING + server_id, EPOCH + server_id]
        if await self._store.run(TELL, keys, arguments, ANSWER_SECONDS) is not None:
            changes.told = now
            return True
        self.end(server_id)
        return False

    def _of(self, server_id: str) -> _Changes:
        changes = self._changes.get(server_id)
        if changes is None:
            if len(self._changes) >= MAX_NOTED:  # servers that came and went
                self._changes = {name: one for name, one in self._changes.items() if one.is_needed}
            changes = self._changes[server_id] = _Changes()
        return changes

    def end(self, server_id: str | None) -> None:
        """Note that nothing of a server holds, or nothing at all; `tell` tells others."""
        if server_id is None or len(self._untold) >= MAX_NOTED:
            server_id = EVERYTHING
        self._ends += 1
        self._untold[server_id] = self._ends
        self._on_end()

    async def tell(self) -> bool:
        """Tell all replicas. Returns whether Redis took it; what it did not take is told later."""
        while self._untold:
            server_id, number = next(iter(self._untold.items()))
            if not await self._tell(server_id):
                return False
            if self._untold.get(server_id) == number:  # else it ended again meanwhile
                del self._untold[server_id]
        return True

    async def _tell_soon(self) -> bool:
        """Tell all replicas, without a long wait for those who speak to Redis about a server."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self.tell()
        except TimeoutError:
            return False

    async def _tell(self, server_id: str) -> bool:
        """Have nothing of before hold. What Redis says to be changing here, and is not, goes along."""
        if server_id == EVERYTHING:
            return await self._store.put(EPOCH + EVERYTHING, secrets.token_bytes(12), EPOCH_SECONDS)
        changes = self._of(server_id)
        async with changes.turn:
            return await self._tell_of(changes, server_id)
