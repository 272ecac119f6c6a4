"""Who is there, who has what: presence and leases in Redis, and a channel on which all are told at once.

While Redis is away everybody keeps what they have, and nobody takes anything. A replica that stalls for longer than a
lease finds, when it looks again, that another has what it had, and lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from toolscore.core.jsonrpc import decode, encode
from toolscore.core.tasks import TaskSet
from toolscore.stores.redis import SharedStore

__all__ = ["Members"]

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
LEASE_SECONDS = 5.0
"""A replica that was not heard of for so long is gone."""
AGAIN_SECONDS = 1.0
CLAIM_AGAIN_SECONDS = 0.2
LOOK_REST_SECONDS = 0.2
PATIENCE_SECONDS = 3.0
"""So long a connection that is being opened waits for a Redis that was there before."""
MAX_SESSIONS = 1000
SESSIONS_KEPT_SECONDS = 60.0
SESSION_SECONDS = 86_400.0
"""For how long a session with a remote server is joined after somebody opened or joined it."""

PRESENT = """
redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
redis.call('hset', KEYS[2], ARGV[1], ARGV[2])
local found = {}
for _, id in ipairs(redis.call('hkeys', KEYS[2])) do
  local address = redis.call('get', ARGV[4] .. id)
  if address then
    found[#found + 1] = id
    found[#found + 1] = address
  else
    redis.call('hdel', KEYS[2], id)
  end
end
return found
"""
RENEW = """
local lost = {}
for number, key in ipairs(KEYS) do
  local owner = redis.call('get', key)
  if not owner or owner == ARGV[1] then
    redis.call('set', key, ARGV[1], 'px', ARGV[2])
  else
    lost[#lost + 1] = number
  end
end
return lost
"""
CLAIM = """
local owner = redis.call('get', KEYS[1])
if not owner or owner == ARGV[1] or owner == ARGV[3] then
  redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
  return ARGV[1]
end
return owner
"""
KNOWN = "return redis.call('get', KEYS[1]) or ''"
OFFER = """
local known = redis.call('get', KEYS[1])
local function id(text) return cjson.decode(text)[1] end
if not known or id(known) == ARGV[2] or id(ARGV[1]) == ARGV[2] then
  redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[3])
  return ARGV[1]
end
redis.call('pexpire', KEYS[1], ARGV[3])
return known
"""


class Members:
    """Use as `async with Members(…) as members`, then `begin`.

    Args:
        space: what the gateways of one database have in common, and no others.

    Attributes:
        id: of this gateway, for as long as it runs.
        others: the id of each other one that is there → its address for hops.
    """

    def __init__(self, shared: SharedStore, space: str) -> None:
        self.id = secrets.token_hex(6)
        self.others: dict[str, str] = {}
        self.heard_first = asyncio.Event()
        """Set when it is known for the first time who is there."""
        self._listens = asyncio.Event()
        """Set when it listens for the first time, or Redis could not be reached."""
        self._shared = shared
        self._space = f"toolscore:{space}:"
        self._address = ""
        self._began = 0.0
        self._held: dict[str, Callable[[], None]] = {}
        self._listeners: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._on_silence: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._gone: dict[str, float] = {}
        self._ticking = asyncio.Lock()
        self._ticked_at = float("-inf")
        self._sessions: OrderedDict[str, bytes] = OrderedDict()
        self._sessions_kept_at = 0.0
        self._instances: dict[str, set[str]] = {}

    async def __aenter__(self) -> Members:
        return self

    async def begin(self, address: str) -> None:
        """Say that this gateway is there, and where, once it listens: who knows of it is heard. Returns when it is
        known who else is there, or Redis does not answer.
        """
        self._address = address
        self._began = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(self._listen())]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._listens.wait()
        await self._tick()
        self._tasks.append(asyncio.create_task(self._keep()))

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._address:
            await self.release(*self._held)
            await self._shared.drop([f"{self._space}replica:{self.id}"])

    # Who is there

    def gone(self, other: str) -> None:
        """A replica was not to be reached where it said: what it has may be taken."""
        self.others.pop(other, None)
        self._gone[other] = time.monotonic() + LEASE_SECONDS

    async def is_there(self, other: str) -> bool:
        """Whether a replica is there; one that is not known may have come just now."""
        if other != self.id and other not in self.others:
            await self._look_again()
        return other == self.id or other in self.others

    async def _look_again(self) -> None:
        """Who is there now; for all who ask within a moment once."""
        async with self._ticking:
            if time.monotonic() - self._ticked_at > LOOK_REST_SECONDS:
                await self._renew()

    async def _tick(self) -> None:
        async with self._ticking:
            await self._renew()

    async def _renew(self) -> None:
        self._ticked_at = time.monotonic()
        present = [f"{self._space}replica:{self.id}", f"{self._space}replicas"]
        arguments: list[str | bytes | int] = [
            self.id, self._address, int(LEASE_SECONDS * 1000), f"{self._space}replica:"
        ]  # fmt: skip
        found = await self._shared.run(PRESENT, present, arguments)
        if found is None:
            return
        texts = [one.decode() for one in found]
        there = dict(zip(texts[::2], texts[1::2], strict=True))
        there.pop(self.id, None)
        self._gone = {one: until for one, until in self._gone.items() if one in there and until > self._ticked_at}
        self.others = {other: address for other, address in there.items() if other not in self._gone}
        self.heard_first.set()
        if self._held:
            keys = list(self._held)
            lost = await self._shared.run(RENEW, [self._key(key) for key in keys], [self.id, int(LEASE_SECONDS * 1000)])
            for number in lost or ():
                let_go = self._held.pop(keys[number - 1], None)
                if let_go is not None:
                    log.warning("another gateway has taken over what this one had", what=keys[number - 1])
                    let_go()
        for server_id in list(self._instances):
            await self._show_instances(server_id)
        if self._ticked_at > self._sessions_kept_at + SESSIONS_KEPT_SECONDS:
            self._sessions_kept_at = self._ticked_at
            for key, value in list(self._sessions.items()):
                await self._shared.run(OFFER, [f"{self._space}session:{key}"], [value, "", int(SESSION_SECONDS * 1000)])

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self._tick()
            except Exception:  # a task's outermost line: without it the leases of this gateway would end
                log.exception("the leases could not be renewed")

    # Who has what

    def _key(self, what: str) -> str:
        return f"{self._space}owner:{what}"

    async def claim(self, what: str, let_go: Callable[[], None]) -> str:
        """Take something that one gateway has at a time, if nobody who is there has it.

        Args:
            let_go: called if it turns out later that another has it.

        Returns:
            The id of who has it now; of this gateway while Redis does not say.
        """
        await self._answered()
        owner = await self._claimed(what, "")
        if owner is None:
            self._held.setdefault(what, let_go)  # when Redis answers again, all but one let go
            return self.id
        owner = owner.decode()
        if owner in self._gone:
            owner = await self._claimed(what, owner)
            owner = owner.decode() if owner is not None else self.id
        if owner == self.id:
            self._held[what] = let_go
        return str(owner)

    async def _claimed(self, what: str, instead_of: str) -> Any:
        """Who has it now; `None`: Redis was away for as long as a lease holds, so that what others had has ended."""
        until = time.monotonic() + LEASE_SECONDS
        while True:
            owner = await self._shared.run(
                CLAIM, [self._key(what)], [self.id, int(LEASE_SECONDS * 1000), instead_of]
            )  # fmt: skip
            over = what in self._held or not self.heard_first.is_set() or time.monotonic() > until
            if owner is not None or over:
                return owner
            await asyncio.sleep(CLAIM_AGAIN_SECONDS)

    async def _answered(self) -> None:
        """Wait for the first answer of Redis, for so long as a lease holds at most: others may have what is claimed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._began + LEASE_SECONDS):
                await self.heard_first.wait()

    def held(self) -> list[str]:
        """All that this gateway has."""
        return list(self._held)

    def holds(self, what: str) -> bool:
        """Whether this gateway has it."""
        return what in self._held

    async def release(self, *what: str) -> None:
        """Let others have it. Idempotent."""
        async with self._ticking:  # or a renewal that is on its way would take it again
            held = [one for one in what if self._held.pop(one, None) is not None]
            if held:
                await self._shared.drop_if([self._key(one) for one in held], self.id.encode())
        if held:
            self.tell("released", what=held)

    async def owner_of(self, what: str) -> str | None:
        """The id of who has something and is there."""
        owner = await self._shared.get(self._key(what))
        return owner.decode() if owner is not None and await self.is_there(owner.decode()) else None

    async def home_of(self, what: str, seconds: float) -> str | None:
        """Which replica something belongs to that stays where it was first, for so long after its last use; `None`:
        Redis does not say. What belonged to one that is gone belongs to this one.
        """
        key = f"{self._space}home:{what}"
        await self._shared.put_new(key, self.id.encode(), seconds)
        home = await self._shared.get(key)
        if home is None:
            return None
        found = home.decode() if await self.is_there(home.decode()) else self.id
        await self._shared.put(key, found.encode(), seconds)
        return found

    async def connected(self, server_id: str, names: set[str]) -> None:
        """These instances of a server that dialled in are connected to this gateway, and no others."""
        self._instances[server_id] = names
        await self._show_instances(server_id)

    async def _show_instances(self, server_id: str) -> None:
        for name in self._instances.get(server_id, ()):
            await self._shared.put(f"{self._space}instance:{server_id}:{name}", self.id.encode(), LEASE_SECONDS)

    async def place_of(
        self, server_id: str, name: str, chosen: str, there: set[str], seconds: float
    ) -> tuple[str, str | None]:
        """The instance at which something is that stays where it was first, for as long as that lives.

        Args:
            chosen: where it goes that is nowhere. there: those that are connected to this gateway.

        Returns:
            The instance, and the other gateway to which it is connected if it is not connected here.
        """
        key = f"{self._space}place:{server_id}:{name}"
        await self._shared.put_new(key, chosen.encode(), seconds)
        place = await self._shared.get(key)
        found, gateway = place.decode() if place is not None else chosen, None
        if found not in there:
            has_it = await self._shared.get(f"{self._space}instance:{server_id}:{found}")
            if has_it is not None and has_it.decode() != self.id and await self.is_there(has_it.decode()):
                gateway = has_it.decode()
            else:
                found = chosen
        await self._shared.put(key, found.encode(), seconds)
        return found, gateway

    # Sessions with remote servers

    async def session_of(self, key: str) -> bytes | None:
        """What was offered under a key, and holds."""
        found: bytes | None = await self._patiently(KNOWN, f"{self._space}session:{key}", [])
        if not found:
            return None
        self._use_session(key, found)
        return found

    async def _patiently(self, script: str, key: str, arguments: list[str | bytes | int]) -> Any:
        """What a script makes of a key; `None`: Redis does not say for a while."""
        await self._answered()
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = await self._shared.run(script, [key], arguments)
            if found is not None or not self.heard_first.is_set() or time.monotonic() > until:
                return found
            await asyncio.sleep(CLAIM_AGAIN_SECONDS)

    def _use_session(self, key: str, value: bytes) -> None:
        """Keep what is used: its time in Redis ends else, or Redis may have lost it."""
        self._sessions[key] = value
        self._sessions.move_to_end(key)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    async def offer_session(self, key: str, ours: bytes, instead_of: str | None) -> bytes:
        """Offer a session. Returns the one that counts: the first, unless it is the one that is to be replaced.

        Args:
            instead_of: the id of the one that holds no more; that of the new one itself: whatever there is.
        """
        arguments: list[str | bytes | int] = [ours, instead_of or "", int(SESSION_SECONDS * 1000)]
        counts: bytes | None = await self._patiently(OFFER, f"{self._space}session:{key}", arguments)
        self._use_session(key, counts or ours)
        return counts if counts is not None else ours

    # What all are told

    def on(self, kind: str, heard: Callable[[dict[str, Any]], None]) -> None:
        """Hear what others tell of this kind. `heard` gets the members that were told."""
        self._listeners[kind] = heard

    def on_silence(self, missed: Callable[[], None]) -> None:
        """Be told when something may have been said that was not heard."""
        self._on_silence.append(missed)

    def tell(self, kind: str, **members: Any) -> None:
        """Tell the others. Never waits; who does not listen just now misses it."""
        if self.others:
            _telling.start(self.told(kind, **members))

    def told(self, kind: str, **members: Any) -> Coroutine[Any, Any, bool]:
        """As `tell`; gives whether it is sure that those who listen get it."""
        return self._shared.publish(f"{self._space}bus", encode({**members, "kind": kind, "from": self.id}))

    def _heard(self, message: bytes) -> None:
        told = decode(message)
        if not isinstance(told, dict) or told.get("from") == self.id:
            return
        heard = self._listeners.get(str(told.get("kind")))
        if heard is not None:
            try:
                heard(told)
            except Exception:  # what another says must not be the end of listening
                log.exception("what another gateway told could not be taken", kind=told.get("kind"))

    async def _listen(self) -> None:
        def ready() -> None:
            self._listens.set()
            for missed in self._on_silence:
                missed()

        while True:
            with contextlib.suppress(OSError):
                await self._shared.listen(f"{self._space}bus", self._heard, ready)
            self._listens.set()
            await asyncio.sleep(AGAIN_SECONDS)


_telling = TaskSet()
