"""What gateways that share a Redis tell one another of sessions: that one has ended, what its client set, what it said.

A session is made of its id on every gateway that its client comes to. What was set later (log level, what is watched)
lies in Redis. What is for a client whose stream another gateway holds goes there, and so do its answers and its
cancelling of what another gateway carries out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError
from toolscore.endpoints.mcp.mirror import Mirrors
from toolscore.endpoints.mcp.session_ids import MAX_AGE_SECONDS
from toolscore.replicas import Link, Replicas
from toolscore.stores.redis import SharedStore

__all__ = ["Kept", "SharedSessions"]

KEPT_SECONDS = 86_400.0
"""For how long what a client set is kept after it was set."""
LEVEL, CAPABILITIES, WATCHED = "level", "capabilities", "watches:"
READ = "return redis.call('hgetall', KEYS[1])"
WRITE = """
if ARGV[1] == 'hset' then
  redis.call('hset', KEYS[1], ARGV[2], ARGV[3])
else
  redis.call('hdel', KEYS[1], ARGV[2])
end
redis.call('pexpire', KEYS[1], ARGV[4])
return 1
"""
MAX_ENDED = 10_000
END_SECONDS = 1.0
"""For so long a client that ends its session waits for the other gateways."""
KINDS = ("set", "ended", "cancelled", "roots", "own", "taken")
MAX_TOLD_BYTES = 1024 * 1024
"""Of a message that goes to the gateway that has a client's stream."""


class _Named(msgspec.Struct):
    """Which session is meant."""

    name: str


class Kept(msgspec.Struct, omit_defaults=True):
    """What a client set after it had opened its session, and what it declared that is too much for an id."""

    log_level: str | None = None
    watched: list[str] = []
    capabilities: dict[str, Any] | None = None


class SharedSessions:
    """What this gateway tells others of sessions; on its own, it remembers which have ended.

    Args:
        on_told: told of a kind and its members, when another gateway tells something.
        on_missed: called when something may have been told that was not heard.
    """

    def __init__(
        self,
        shared: SharedStore | None,
        replicas: Replicas | None,
        identity: str,
        on_told: Callable[[str, dict[str, Any]], None],
        on_missed: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._replicas = replicas
        self._space = f"toolscore:{identity}:session:"
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.mirrors: Mirrors | None = None
        if shared is not None and replicas is not None:
            self.mirrors = Mirrors(shared, replicas, identity)
        if replicas is not None:
            replicas.members.on_silence(on_missed)
            for kind in KINDS:
                replicas.members.on(f"session/{kind}", lambda told, kind=kind: on_told(f"session/{kind}", told))  # type: ignore[misc]

            async def end(_: Link, asked: _Named) -> dict[str, Any]:
                on_told("session/ended", {"name": asked.name})
                return {}

            replicas.hops.served["session/end"] = (_Named, end)

    @property
    def instance(self) -> str:
        """Of this gateway; empty where it is alone."""
        return self._replicas.members.id if self._replicas is not None else ""

    async def has_ended(self, name: str) -> bool:
        """Whether its client has ended a session."""
        if name in self._ended:
            return True
        return self._shared is not None and await self._shared.get(f"{self._space}{name}:ended") is not None

    async def end(self, name: str) -> None:
        """A client has ended its session."""
        self.note_ended(name)
        if self._shared is not None:
            await self._shared.put(f"{self._space}{name}:ended", b"1", MAX_AGE_SECONDS)
            await self._shared.drop([f"{self._space}{name}"])
        self.tell("session/ended", name=name)
        others = list(self._replicas.members.others) if self._replicas is not None else []
        await asyncio.gather(*(self._end_at(other, name) for other in others))

    async def _end_at(self, other: str, name: str) -> None:
        """Have another gateway end it before its client is answered, who may come there next. One that does not answer
        hears of it when it listens again.
        """
        assert self._replicas is not None
        with contextlib.suppress(ConnectionLost, RemoteError, ToolScoreError, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                link = await self._replicas.hops.to(other)
                await link.ask("session/end", {"name": name})

    def note_ended(self, name: str) -> None:
        self._ended[name] = None
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    async def kept(self, name: str) -> Kept | None:
        """What its client set; `None`: Redis does not say."""
        if self._shared is None:
            return Kept()
        found = await self._shared.run(READ, [self._space + name], [])
        if found is None:
            return None
        members = {found[at].decode(): found[at + 1] for at in range(0, len(found), 2)}
        level, much = members.pop(LEVEL, None), members.pop(CAPABILITIES, None)
        return Kept(
            level.decode() if level is not None else None,
            [one.removeprefix(WATCHED) for one in members],
            msgspec.json.decode(much) if much is not None else None,
        )

    async def keep(self, name: str, *, level: str | None = None, capabilities: dict[str, Any] | None = None) -> None:
        """A client has set its log level, or declared much."""
        if level is not None:
            await self._set(name, "hset", LEVEL, level.encode())
        if capabilities is not None:
            await self._set(name, "hset", CAPABILITIES, msgspec.json.encode(capabilities))

    async def watch(self, name: str, uri: str, watched: bool) -> None:
        """A client watches a resource, or does so no more."""
        await self._set(name, "hset" if watched else "hdel", WATCHED + uri, b"1")

    async def _set(self, name: str, how: str, member: str, value: bytes) -> None:
        if self._shared is not None:
            arguments: list[str | bytes | int] = [how, member, value, int(KEPT_SECONDS * 1000)]
            await self._shared.run(WRITE, [self._space + name], arguments)
        self.tell("session/set", name=name)

    def tell(self, kind: str, **members: Any) -> None:
        """Tell other gateways. Never waits."""
        if self._replicas is not None:
            self._replicas.members.tell(kind, **members)

    @property
    def is_shared(self) -> bool:
        """Whether there are other gateways just now."""
        return self._replicas is not None and bool(self._replicas.members.others)

    def tell_own(self, name: str, message: bytes, ack: str | None = None) -> None:
        """Have the gateway that has a session's own stream put a message on it.

        Args:
            ack: it says under this name that it did.
        """
        if self._replicas is not None and len(message) <= MAX_TOLD_BYTES:
            text = message.decode("utf-8", "replace")
            self._replicas.members.tell("session/own", name=name, message=text, ack=ack)
