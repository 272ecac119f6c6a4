"""Results that may be given again: in memory (L1), in Redis where replicas share one (L2), in the database (L3).

A result is kept only of a tool that calls itself read-only and idempotent, or that the operator names. Its key holds
the tool, its definition, its server's settings, the arguments and who called: nobody gets what was made for somebody
else, unless the operator says that a tool answers all alike.

One module: the three levels keep one promise together: what is invalid in one is given by none.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
import structlog
from cachetools import LRUCache
from msgspec import Raw
from pydantic import Field

from toolscore.core.errors import ToolScoreError, UpstreamTimeout
from toolscore.core.memo import Memo
from toolscore.core.models import Principal, Tool
from toolscore.core.redaction import redact_json
from toolscore.core.rules import Bytes, Count, Rules
from toolscore.stores import Database, SharedStore
from toolscore.stores.database import StoreError

__all__ = ["CacheRules", "Cached", "Keep", "Level", "ResultCache", "Slot", "canonical"]

log = structlog.get_logger(__name__)

Level = Literal["l1", "l2", "l3"]
Keep = Literal["kept", "shared", "own"]
"""What may become of a result: given again later; to those who wait for it now (a failure); to nobody else."""

MAX_UNWRITTEN = 2000
MAX_STORED_BYTES = 256 * 1024 * 1024
"""Of results in the database; the oldest go first."""
MAX_STORED = 100_000
MAX_TTLS = 50_000
MAX_EXPIRED = 5000
MAX_UNWRITTEN_BYTES = 32 * 1024 * 1024
READ_SECONDS = 0.2
"""A call waits no longer for the database than it takes to do without it."""
WRITE_SECONDS = 1.0
AGAIN_SECONDS = 1.0
PRUNE_SECONDS = 60.0
PREFIX = "toolscore:result:"

_exact = msgspec.json.Decoder(float_hook=Decimal)  # 20 digits stay 20 digits, and 1.0 is not 1
_sorted = msgspec.json.Encoder(order="sorted", decimal_format="number")


class CacheRules(Rules):
    """Which results are kept, and for how long: those of tools that call themselves read-only and idempotent."""

    enabled: bool = True
    ttl_seconds: Annotated[float, Field(ge=0)] = Field(60, description="for so long they are given again")
    stale_seconds: Annotated[float, Field(ge=0)] = Field(
        300, description="and for so long after that while the server cannot be reached"
    )
    max_entries: Annotated[int, Field(ge=1, le=1_000_000)] = Field(2000, description="in memory")
    max_bytes: Bytes = Field(64 * 1024 * 1024, description="of them all")
    max_result_bytes: Count = Field(1024 * 1024, description="a larger result is not kept")
    tools: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description='seconds by the tool\'s name, whatever it says of itself: {"docs__*": 3600, "time__*": 0}'
    )
    shared: tuple[str, ...] = Field(
        (), description="tools that answer all callers alike; else each caller has results of its own"
    )


class Slot(msgspec.Struct, frozen=True):
    """Where a call's result belongs, and how many seconds it stays fresh."""

    key: str
    tool: Tool
    ttl: float


class Cached(msgspec.Struct, frozen=True):
    """A kept result. Times are seconds since 1970."""

    raw: Raw
    tool: Tool
    stored_at: float
    fresh_until: float
    stale_until: float
    level: Level = "l1"

    @property
    def is_fresh(self) -> bool:
        return self.fresh_until > time.time()

    @property
    def age(self) -> float:
        return max(0.0, time.time() - self.stored_at)


class _Packed(msgspec.Struct, array_like=True):
    """A result as it stands in Redis."""

    raw: bytes
    stored_at: float
    fresh_until: float
    stale_until: float


_unpack = msgspec.msgpack.Decoder(_Packed)


class _Flight:
    """One call under way, and how many wait for it."""

    def __init__(self, task: asyncio.Task[tuple[Raw, Keep]]) -> None:
        self.task = task
        self.waiting = 0
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, whether or not anybody waits

    async def result(self) -> tuple[Raw, Keep]:
        """Wait for it. It ends when the last who waits has gone.

        Raises:
            ToolScoreError: to each its own, since what one caller is advised is not for the others.
        """
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        except ToolScoreError as exc:
            raise copy.copy(exc) from exc
        finally:
            self.waiting -= 1
            if not self.waiting and not self.task.done():
                self.task.cancel()


class ResultCache:
    """The three levels. Use as `async with ResultCache(…) as cache`.

    Args:
        shared: Redis, where there is one.
    """

    def __init__(self, database: Database, shared: SharedStore | None = None, rules: CacheRules | None = None) -> None:
        self._database = database
        self._shared = shared
        self.store_error: str | None = None
        self.hits = {"l1": 0, "l2": 0, "l3": 0, "stale": 0}
        self.misses = 0
        self._stored: dict[str, tuple[str, str, int]] = {}
        self._stored_bytes = 0
        self._flights: dict[str, _Flight] = {}
        self._reading: dict[str, asyncio.Task[Cached | None]] = {}
        self._unwritten: dict[str, Cached] = {}
        self._unwritten_bytes = 0
        self._invalid_before: dict[tuple[str | None, str | None], float] = {}
        self._skip_database_until = 0.0
        self._removed: set[str] = set()
        self._unshared: set[str] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self.rules = rules or CacheRules()
        self._make_room()

    def use(self, rules: CacheRules) -> None:
        """Keep by other rules from now on. What is in memory is dropped, if they are others."""
        if rules == self.rules:
            return
        self.rules = rules
        self._make_room()

    def _make_room(self) -> None:
        rules = self.rules
        self._ttls: Memo[tuple[str, str], float] = Memo(MAX_TTLS)
        # Each entry counts as its share of the places at least: so both bounds are one.
        least = max(1, rules.max_bytes // max(1, rules.max_entries))
        self._memory: LRUCache[str, Cached] = LRUCache(
            rules.max_bytes, getsizeof=lambda entry: max(least, memoryview(entry.raw).nbytes)
        )

    async def __aenter__(self) -> ResultCache:
        try:
            for row in await self._database.load_cached_keys():
                self._note(row["key"], row["tool_id"], row["server_id"], int(row["size"]))
        except StoreError as exc:
            self.store_error = str(exc)
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._wake.set()
        await self._writer

    # Reading

    def slot(
        self, tool: Tool, arguments: Raw, principal: Principal, spec_digest: str, *, own: bool = False
    ) -> Slot | None:
        """Where the result of a call belongs; `None`: it is not kept.

        Args:
            spec_digest: of the settings of the tool's server: with others it may answer otherwise.
            own: each caller is somebody else to the server, whatever the rules say.
        """
        key = (tool.tool_id, tool.definition_hash)
        ttl = self._ttls.get(key)
        if ttl is None:
            ttl = self._ttls[key] = self._ttl(tool)
        if ttl <= 0:
            return None
        everybody = not own and any(fnmatchcase(tool.tool_id, pattern) for pattern in self.rules.shared)
        parts = [tool.tool_id, tool.definition_hash, spec_digest, None if everybody else principal.name]
        digest = hashlib.sha256(msgspec.json.encode(parts))
        digest.update(canonical(arguments))
        return Slot(digest.hexdigest(), tool, ttl)

    async def look(self, slot: Slot) -> Cached | None:
        """What is kept, fresh or not, from the nearest level that has it."""
        found = self._memory.get(slot.key)
        if found is not None and found.is_fresh:
            return found
        # What is in memory is what the database has; another replica may have put a later one into Redis.
        if (found is not None or slot.key not in self._stored) and (self._shared is None or not self._shared.up):
            return found
        reading = self._reading.get(slot.key)
        if reading is None:
            reading = self._reading[slot.key] = asyncio.create_task(self._read_below(slot))
            reading.add_done_callback(lambda _: self._reading.pop(slot.key, None))
        below = await asyncio.shield(reading)
        return below if below is not None and (found is None or below.stored_at > found.stored_at) else found

    def count(self, found: Cached | None, *, stale: bool = False) -> None:
        """Note how a look ended."""
        if found is None:
            self.misses += 1
        else:
            self.hits["stale" if stale else found.level] += 1

    async def once(self, slot: Slot, make: Callable[[], Awaitable[tuple[Raw, Keep]]], seconds: float) -> Raw:
        """Make the result, or wait for whoever makes it just now; then keep it.

        Args:
            make: returns the result, and what may become of it.
            seconds: how long to wait for another's at most.

        Raises:
            UpstreamTimeout: the other took longer. Whatever `make` raises.
        """
        until = time.monotonic() + seconds
        while True:
            flight = self._flights.get(slot.key)
            if flight is None:
                ready = self._memory.get(slot.key)
                if ready is not None and ready.is_fresh:
                    return ready.raw  # it came while we got here
                flight = self._flights[slot.key] = _Flight(asyncio.create_task(self._make(slot, make)))
                return (await flight.result())[0]
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    raw, keep = await flight.result()
            except TimeoutError:
                raise UpstreamTimeout(
                    f"an equal call of {slot.tool.tool_id} is under way and gave no answer within {seconds:g} s: "
                    "it may be called again, or with a larger `timeout_seconds`"
                ) from None
            except UpstreamTimeout:
                continue  # the first was in a greater hurry than we are
            except asyncio.CancelledError:
                if not flight.task.cancelled():
                    raise
                continue  # the first has gone, and took its call along
            return raw if keep != "own" else (await make())[0]

    async def _make(self, slot: Slot, make: Callable[[], Awaitable[tuple[Raw, Keep]]]) -> tuple[Raw, Keep]:
        started = time.time()
        try:
            raw, keep = await make()
            if keep == "kept" and memoryview(raw).nbytes <= self.rules.max_result_bytes:
                now = time.time()
                until = now + slot.ttl
                entry = Cached(raw, slot.tool, now, until, until + self.rules.stale_seconds)
                if self._holds(slot.tool, started):
                    self._keep(slot.key, entry)
            return raw, keep
        finally:
            self._flights.pop(slot.key, None)

    def _ttl(self, tool: Tool) -> float:
        if not self.rules.enabled:
            return 0.0
        for pattern, seconds in self.rules.tools.items():
            if fnmatchcase(tool.tool_id, pattern):
                return seconds
        hints = tool.annotations
        safe = hints.get("readOnlyHint") is True and hints.get("idempotentHint") is True
        return self.rules.ttl_seconds if safe else 0.0

    async def _read_below(self, slot: Slot) -> Cached | None:
        stale: Cached | None = None
        if self._shared is not None:
            packed = await self._shared.get(PREFIX + slot.key)
            if packed is not None:
                try:
                    entry = _unpack.decode(packed)
                except msgspec.MsgspecError:
                    pass  # another version's
                else:
                    times = (entry.stored_at, entry.fresh_until, entry.stale_until)
                    stale = self._accept(slot, Raw(entry.raw), times, "l2")
                    if stale is not None and stale.is_fresh:
                        self._fill(slot.key, stale)
                        return stale
        if slot.key in self._stored and time.monotonic() > self._skip_database_until:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    row = await self._database.load_cached(slot.key)
            except (StoreError, TimeoutError) as exc:
                self.store_error = str(exc) or f"the database gave no result within {READ_SECONDS:g} s"
                self._skip_database_until = time.monotonic() + AGAIN_SECONDS
                return stale
            if row is not None:
                times = (row["stored_at"], row["fresh_until"], row["stale_until"])
                found = self._accept(slot, Raw(bytes(row["result"])), times, "l3")
                if found is not None:
                    self._fill(slot.key, found)
                    if self._shared is not None and found.is_fresh:
                        await self._share(slot.key, found)
                    return found
        return stale

    def _accept(self, slot: Slot, raw: Raw, times: tuple[float, float, float], level: Level) -> Cached | None:
        """What a level below had, by the rules of now; `None` if it is worthless."""
        stored_at = times[0]
        fresh_until = min(times[1], stored_at + slot.ttl)
        stale_until = min(times[2], fresh_until + self.rules.stale_seconds)
        if stale_until <= time.time() or not self._holds(slot.tool, stored_at):
            return None
        return Cached(raw, slot.tool, stored_at, fresh_until, stale_until, level)

    # Writing

    def _fill(self, key: str, found: Cached) -> None:
        """Put what a level below had into memory."""
        try:
            self._memory[key] = msgspec.structs.replace(found, level="l1")
        except ValueError:
            pass  # larger than all of it

    def _keep(self, key: str, entry: Cached) -> None:
        self._fill(key, entry)
        self._put(key, entry)
        self._wake.set()

    def _put(self, key: str, entry: Cached) -> None:
        """Have a result written, if there is room for it to wait."""
        if len(self._unwritten) < MAX_UNWRITTEN and self._unwritten_bytes + _size(entry) <= MAX_UNWRITTEN_BYTES:
            old = self._unwritten.get(key)
            self._unwritten_bytes += _size(entry) - (_size(old) if old is not None else 0)
            self._unwritten[key] = entry

    def _holds(self, tool: Tool, made_at: float) -> bool:
        """Whether what was made (or asked for) then was not declared worthless since."""
        if not self._invalid_before:
            return True
        keys = ((None, None), (tool.tool_id, None), (None, tool.server_id), (tool.tool_id, tool.server_id))
        return all(made_at > self._invalid_before.get(key, 0.0) for key in keys)

    def invalidate(self, *, tool_id: str | None = None, server_id: str | None = None) -> int:
        """Forget results: of one tool, of one server, or all. Returns how many."""
        if len(self._invalid_before) > 10_000:
            self._invalid_before = {(None, None): time.time()}
        self._invalid_before[tool_id, server_id] = time.time()

        def meant(of_tool: str, of_server: str) -> bool:
            return tool_id in (None, of_tool) and server_id in (None, of_server)

        gone = {key for key, entry in self._memory.items() if meant(entry.tool.tool_id, entry.tool.server_id)}
        for key in gone:
            del self._memory[key]
        for key, entry in list(self._unwritten.items()):
            if meant(entry.tool.tool_id, entry.tool.server_id):
                self._unwritten_bytes -= _size(self._unwritten.pop(key))
        stored = [key for key, (of_tool, of_server, _) in self._stored.items() if meant(of_tool, of_server)]
        for key in stored:
            self._drop(key)
        self._unshared |= gone | set(stored)
        self._wake.set()
        return len(gone | set(stored))

    def _note(self, key: str, tool_id: str, server_id: str, size: int) -> None:
        old = self._stored.pop(key, None)
        self._stored_bytes += size - (old[2] if old else 0)
        self._stored[key] = (tool_id, server_id, size)
        while self._stored_bytes > MAX_STORED_BYTES or len(self._stored) > MAX_STORED:
            self._drop(next(iter(self._stored)))

    def _drop(self, key: str) -> None:
        self._stored_bytes -= self._stored.pop(key)[2]
        self._removed.add(key)

    async def _share(self, key: str, entry: Cached) -> None:
        assert self._shared is not None
        seconds = entry.stale_until - time.time()
        packed = _Packed(bytes(entry.raw), entry.stored_at, entry.fresh_until, entry.stale_until)
        await self._shared.put(PREFIX + key, msgspec.msgpack.encode(packed), seconds)

    async def _write(self) -> None:
        pruned_at = time.monotonic()
        while not (self._closing and not self._unwritten and not self._removed):
            try:
                async with asyncio.timeout(PRUNE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._closing:
                await asyncio.sleep(WRITE_SECONDS)
            if time.monotonic() - pruned_at > PRUNE_SECONDS:
                pruned_at = time.monotonic()
                await self._forget_old()
            group, self._unwritten, self._unwritten_bytes = self._unwritten, {}, 0
            # Memory forgets a secret; a disk, and Redis, would not. Looking takes time, so a thread does.
            secret = await asyncio.to_thread(_secrets_among, group)
            group = {key: entry for key, entry in group.items() if key not in secret}
            removed, self._removed = self._removed, set()
            unshared, self._unshared = self._unshared, set()
            if self._shared is not None and unshared:
                await self._shared.drop([PREFIX + key for key in unshared])
                if not self._shared.up:  # it will have them still when it comes back
                    self._unshared |= set(list(unshared)[:MAX_UNWRITTEN])
            rows: list[dict[str, Any]] = []
            for key, entry in group.items():
                if self._shared is not None:
                    await self._share(key, entry)
                rows.append(
                    {
                        "key": key,
                        "tool_id": entry.tool.tool_id,
                        "server_id": entry.tool.server_id,
                        "result": bytes(entry.raw),
                        "stored_at": entry.stored_at,
                        "fresh_until": entry.fresh_until,
                        "stale_until": entry.stale_until,
                    }
                )
            if not (rows or removed):
                continue
            try:
                await self._database.save_cached(rows, removed - group.keys())
                self.store_error = None
            except StoreError as exc:  # memory goes on without it
                if self.store_error is None:
                    log.warning("results cannot be kept in the database", error=str(exc))
                self.store_error = str(exc)
                if not self._closing:
                    for key, entry in group.items():
                        if key not in self._unwritten and self._holds(entry.tool, entry.stored_at):
                            self._put(key, entry)
                    self._removed |= removed
                    await asyncio.sleep(AGAIN_SECONDS)
                    self._wake.set()
            else:
                for key, entry in group.items():
                    self._note(key, entry.tool.tool_id, entry.tool.server_id, _size(entry))
                    if not self._holds(entry.tool, entry.stored_at):
                        self._drop(key)  # declared worthless while it was written

    async def _forget_old(self) -> None:
        try:
            for key in await self._database.expired_cached(time.time(), MAX_EXPIRED):
                if key in self._stored:
                    self._drop(key)
        except StoreError as exc:
            self.store_error = str(exc)


def _size(entry: Cached) -> int:
    return memoryview(entry.raw).nbytes


def _secrets_among(group: dict[str, Cached]) -> set[str]:
    return {key for key, entry in group.items() if redact_json(entry.raw)[1]}


def canonical(arguments: Raw) -> bytes:
    """Arguments in one form: sorted keys, no blanks, numbers as they were written."""
    return _sorted.encode(_exact.decode(arguments)) if memoryview(arguments).nbytes else b"{}"
