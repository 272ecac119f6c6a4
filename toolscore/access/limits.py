"""How much: calls a minute of each caller and of each tool (token buckets), and calls at a time of each server.

The buckets are `throttled-py`'s, in memory, or in Redis where replicas share them; a server's places and its queue are
here.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict, deque
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Raw
from pydantic import Field

from toolscore.core.errors import Overloaded, RateLimited
from toolscore.core.jsonrpc import encode
from toolscore.core.memo import Memo
from toolscore.core.models import LOCAL, Principal, Tool
from toolscore.core.rules import Rules
from toolscore.stores.redis import SharedStore
from toolscore.upstreams import Caller

if TYPE_CHECKING:
    from throttled.asyncio import MemoryStore, RateLimitResult, RedisStore, Throttled

__all__ = ["Rate", "RateLimits", "RateRules", "Turnstile"]

MAX_BUCKETS = 100_000
MAX_SHOWN = 10_000
SMOOTHING = 0.2


class Rate(Rules):
    """Calls a minute, and how many of them may come at once."""

    per_minute: Annotated[int, Field(ge=1, le=1_000_000)]
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 20


class RateRules(Rules):
    """Calls a minute of callers with a key; those on this machine without one are not bounded."""

    per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = Field(100, description="calls of each caller; 0: no bound")
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = Field(20, description="of them at once")
    tools: dict[str, Rate] = Field(
        {}, description='further bounds by the tool\'s name: {"mail__*": {per_minute: 5, burst: 2}}'
    )


class RateLimits:
    """The budgets of callers. A caller on this machine that needs no key has none.

    Args:
        rules: the budget of each caller: over all tools, and for tools whose full name fits a pattern; all that fit
            count.
        shared: where the budgets are those of all gateways together; while it is down each has its own.
    """

    def __init__(self, rules: RateRules | None = None, shared: SharedStore | None = None) -> None:
        self._shared = shared
        self._set(rules or RateRules())

    def use(self, rules: RateRules) -> None:
        """Count by other rules from now on; if they are others, what was counted so far is forgotten."""
        if rules != self._rules:
            self._set(rules)

    def _set(self, rules: RateRules) -> None:
        self._rules = rules
        stores = _Stores(self._shared)
        rate = Rate(per_minute=rules.per_minute, burst=rules.burst) if rules.per_minute else None
        self._rate = rate
        self._all = _Bucket(rate, stores) if rate is not None else None
        self._tools = {pattern: _Bucket(of_tool, stores) for pattern, of_tool in rules.tools.items()}
        self._matching: Memo[str, list[str]] = Memo(MAX_SHOWN)
        self._last: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @property
    def is_open(self) -> bool:
        """Whether there is no bound at all."""
        return self._all is None and not self._tools

    async def take(self, principal: Principal, tool: Tool) -> None:
        """Take one call out of each budget that it belongs to.

        Raises:
            RateLimited: one is used up; with the time to wait.
        """
        await self.take_of_tool(principal, tool)
        if self._all is not None and principal is not LOCAL:
            result = await self._all.take(principal.name, self._shared)
            self._last[principal.name] = (result.state.remaining, result.state.reset_after)
            self._last.move_to_end(principal.name)
            if len(self._last) > MAX_SHOWN:
                self._last.popitem(last=False)
            if result.limited:
                raise _refused(f"{principal.name!r} has called too often", result.state.retry_after)

    async def take_of_tool(self, principal: Principal, tool: Tool) -> None:
        """Take one call out of the budgets for this tool, and not out of that over all.

        Raises:
            RateLimited: one is used up; with the time to wait.
        """
        if principal is LOCAL or self.is_open:
            return
        patterns = self._matching.get(tool.tool_id)
        if patterns is None:
            patterns = [pattern for pattern in self._tools if fnmatchcase(tool.tool_id, pattern)]
            self._matching[tool.tool_id] = patterns
        for pattern in patterns:
            result = await self._tools[pattern].take(f"{pattern}\0{principal.name}", self._shared)
            if result.limited:
                raise _refused(f"{principal.name!r} has called {pattern} too often", result.state.retry_after)

    def headers(self, principal: Principal) -> list[tuple[bytes, bytes]]:
        """`RateLimit` and `RateLimit-Policy` as of the last call (IETF httpapi: RateLimit header fields)."""
        last = self._last.get(principal.name)
        if last is None or self._rate is None:
            return []
        remaining, reset_after = last
        return [
            (b"ratelimit-policy", b'"calls";q=%d;w=60' % self._rate.per_minute),
            (b"ratelimit", b'"calls";r=%d;t=%d' % (max(0, remaining), max(0, round(reset_after)))),
        ]


def _at(library: Any, shared: SharedStore) -> RedisStore:
    """throttled-py's store in Redis, over the client that is there already."""

    class Backend:
        base_exceptions = ()

        def __init__(self, *_: Any) -> None: ...

        def get_client(self) -> Any:
            return shared.client

    store: RedisStore = type("Shared", (library.RedisStore,), {"_BACKEND_CLASS": Backend})()
    return store


def _throttled() -> Any:
    """throttled-py. It imports Redis' driver wherever that is installed, and with it 20 MB: only if that is there."""
    hide = "redis" not in sys.modules and "throttled" not in sys.modules
    if hide:
        sys.modules["redis"] = None  # type: ignore[assignment]
    try:
        return import_module("throttled.asyncio")
    finally:
        if hide:
            del sys.modules["redis"]


class _Stores:
    """Where buckets are counted. throttled-py is loaded when somebody with a bound calls first."""

    def __init__(self, shared: SharedStore | None) -> None:
        self._shared = shared

    @cached_property
    def here(self) -> MemoryStore:
        store: MemoryStore = _throttled().MemoryStore(options={"MAX_SIZE": MAX_BUCKETS})
        return store

    @cached_property
    def far(self) -> RedisStore | None:
        return _at(_throttled(), self._shared) if self._shared is not None else None


class _Bucket:
    """One rate, counted here, and in Redis while that answers."""

    def __init__(self, rate: Rate, stores: _Stores) -> None:
        self._rate = rate
        self._stores = stores

    def _counting(self, store: MemoryStore | RedisStore) -> Throttled:
        library = _throttled()
        quota = library.rate_limiter.per_min(self._rate.per_minute, burst=self._rate.burst)
        counting: Throttled = library.Throttled(using=library.RateLimiterType.GCRA.value, quota=quota, store=store)
        return counting

    @cached_property
    def _here(self) -> Throttled:
        return self._counting(self._stores.here)

    @cached_property
    def _far(self) -> Throttled | None:
        return self._counting(self._stores.far) if self._stores.far is not None else None

    async def take(self, key: str, shared: SharedStore | None) -> RateLimitResult:
        here = await self._here.limit(key)  # kept up to date, for when Redis goes
        if self._far is None or shared is None or not shared.up:
            return here
        far: RateLimitResult | None = await shared.ask(self._far.limit(key))
        return here if far is None else far


def _refused(why: str, wait: float) -> RateLimited:
    seconds = max(0.1, round(wait, 1))
    return RateLimited(f"{why}: wait {seconds:g} s", retry_after_seconds=seconds)


class Turnstile:
    """Places for calls at a time at one server, and a bounded queue before them, first come first served.

    Args:
        places: calls at a time. queue: calls that may wait.
    """

    def __init__(self, server_id: str, places: int, queue: int) -> None:
        self.server_id = server_id
        self.places = places
        self.queue = queue
        self.inside = 0
        self._waiting: deque[tuple[asyncio.Future[None], Caller | None]] = deque()
        self._seconds = 0.0

    def resize(self, places: int, queue: int) -> None:
        """Have other numbers of places from now on; those inside stay."""
        self.places, self.queue = places, queue

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, caller: Caller | None, seconds: float) -> None:
        """Take a place, waiting for one if need be; give it back with `leave`. Who waits is told the position.

        Args:
            caller: whoever wants to hear of progress hears the position.
            seconds: how long to wait at most.

        Raises:
            Overloaded: the queue is full, or nobody left in time.
        """
        if self.inside < self.places and not self._waiting:
            self.inside += 1
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wait(caller)
        except TimeoutError:
            raise Overloaded(
                f"{self.server_id} serves {self.places} calls at a time, and none ended within {seconds:g} s",
                retry_after_seconds=max(1.0, round(self._seconds, 1)),
            ) from None

    def leave(self, took_seconds: float) -> None:
        """Give the place to who waits longest."""
        self._seconds += SMOOTHING * (took_seconds - self._seconds)
        self.inside -= 1
        self._admit()

    async def _wait(self, caller: Caller | None) -> None:
        if len(self._waiting) >= self.queue:
            wait = max(1.0, round(self._seconds * (len(self._waiting) + 1) / self.places, 1))
            raise Overloaded(
                f"{self.server_id} serves {self.places} calls at a time and {len(self._waiting)} wait: come back later",
                retry_after_seconds=wait,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, caller))
        self._tell(len(self._waiting), caller)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had its place already
                self.inside -= 1
                self._admit()
            else:
                self._waiting = deque(one for one in self._waiting if one[0] is not turn)
            raise

    def _admit(self) -> None:
        while self._waiting and self.inside < self.places:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                self.inside += 1
                turn.set_result(None)
        for position, (_, caller) in enumerate(self._waiting, 1):
            self._tell(position, caller)

    def _tell(self, position: int, caller: Caller | None) -> None:
        if caller is not None and caller.wants_progress:
            message = f"waiting for {self.server_id}: position {position} in the queue"
            caller.notify("notifications/progress", Raw(encode({"progress": 0, "message": message})))
