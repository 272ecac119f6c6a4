"""Results that may be given again: in memory (L1), in Redis where replicas share one (L2), else in the database (L3).

A result is kept only of a tool that the operator names, or if its server says for how long it is good. Its key holds
the tool, its definition, its server's settings, the arguments and who called: nobody gets what was made for somebody
else, unless the operator says that a tool answers all alike. A call that may change something at a server ends all
that is kept of it (`validity.py`).

One module: the three levels keep one promise together: what is invalid in one is given by none.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple

import msgspec
import structlog
from cachetools import LRUCache
from msgspec import Raw
from pydantic import Field

from toolscore.calls.validity import SharedEpochs, Validity
from toolscore.core.errors import ToolScoreError, UpstreamTimeout
from toolscore.core.memo import Memo
from toolscore.core.models import Principal, Tool
from toolscore.core.redaction import redact_json
from toolscore.core.rules import Bytes, Count, Rules
from toolscore.core.tasks import TaskSet
from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError
from toolscore.stores.redis import SharedStore

__all__ = ["CacheRules", "Cached", "Level", "Made", "ResultCache", "Slot", "canonical"]

log = structlog.get_logger(__name__)

Level = Literal["l1", "l2", "l3"]
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
FLIGHT = "toolscore:flight:"
FLIGHT_SECONDS = 5.0
"""For so long at most other gateways wait for one that is asking for the same."""
FLIGHT_POLL_SECONDS = 0.03

_exact = msgspec.json.Decoder(float_hook=Decimal)  # 20 digits stay 20 digits, and 1.0 is not 1
_sorted = msgspec.json.Encoder(order="sorted", decimal_format="number")


class CacheRules(Rules):
    """Which results are kept, and for how long: those of tools that are named here, and those whose server says so."""

    enabled: bool = True
    tools: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description='seconds by the tool\'s name: {"docs__*": 3600}; a call of the server that may write ends them',
    )
    max_server_ttl_seconds: Annotated[float, Field(ge=0)] = Field(
        3600, description="results of read-only tools that say `ttlMs` are kept for that, and no longer than this"
    )
    stale_seconds: Annotated[float, Field(ge=0)] = Field(
        300, description="and for so long after that while the server cannot be reached"
    )
    max_entries: Annotated[int, Field(ge=1, le=1_000_000)] = Field(2000, description="in memory")
    max_bytes: Bytes = Field(64 * 1024 * 1024, description="of them all")
    max_result_bytes: Count = Field(1024 * 1024, description="a larger result is not kept")
    shared: tuple[str, ...] = Field(
        (), description="tools that answer all callers alike; else each caller has results of its own"
    )


class Slot(msgspec.Struct):
    """Where a call's result belongs, and how many seconds it stays fresh; `None`: its server may say.

    `epoch` is the server's in Redis when it was looked for; `None`: nothing may be given or kept just now.
    """

    key: str
    tool: Tool
    ttl: float | None
    epoch: str | None = ""


class Made(NamedTuple):
    """A result that a server has just made."""

    raw: Raw
    ttl: float = 0.0
    """Seconds for which it may be given again."""
    own: bool = False
    """It is for its caller alone: whoever waits for the same asks anew."""


class Cached(msgspec.Struct, frozen=True):
    """A kept result. Times are seconds since 1970; `stored_at` is when it was asked for."""

    raw: Raw
    tool: Tool
    stored_at: float
    fresh_until: float
    stale_until: float
    level: Level = "l1"
    epoch: str = ""

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
    epoch: str


_unpack = msgspec.msgpack.Decoder(_Packed)


class _Flight:
    """One call under way, and how many wait for it."""

    def __init__(self, slot: Slot, task: asyncio.Task[Made]) -> None:
        self.task = task
        self.epoch = slot.epoch
        self.began_at = time.time()
        self.waiting = 0
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, whether or not anybody waits

    async def result(self) -> Made:
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
        shared: Redis, where there is one. It takes the place of the database then; while it is away nothing is given.
    """

    def __init__(self, database: Database, shared: SharedStore | None = None, rules: CacheRules | None = None) -> None:
        self._database = database
        self._shared = shared
        self._wake = asyncio.Event()
        self._epochs = SharedEpochs(shared, self._wake.set) if shared is not None else None
        self._validity = Validity()
        self.store_error: str | None = None
        self.hits = {"l1": 0, "l2": 0, "l3": 0, "stale": 0}
        self.misses = 0
        self._stored: dict[str, tuple[str, str, int]] = {}
        self._stored_bytes = 0
        self._stored_of: Counter[str] = Counter()
        self._flights: dict[str, _Flight] = {}
        self._reading: dict[str, asyncio.Task[Cached | None]] = {}
        self._unwritten: dict[str, Cached] = {}
        self._unwritten_bytes = 0
        self._skip_database_until = 0.0
        self._removed: set[str] = set()
        self._saving = asyncio.Lock()
        self._closing = False
        self._tasks = TaskSet()
        self.rules = rules or CacheRules()
        self._make_room()

    def use(self, rules: CacheRules) -> None:
        """Keep by other rules from now on. What is in memory is dropped, if they are others."""
        if rules == self.rules:
            return
        self.rules = rules
        self._make_room()

    def expect(self, tools: Collection[Tool]) -> None:
        """A server has these tools: if results of any will be kept, the other gateways are told ahead."""
        if self._epochs is not None and self.rules.enabled:
            for server_id in {tool.server_id for tool in tools if self._operator_ttl(tool)}:
                self._tasks.start(self._epochs.keep(server_id))

    def reads(self, tool: Tool) -> bool:
        """Whether a call of a tool changes nothing: by its own word, or since the operator has its results kept."""
        return tool.reads_only or bool(self._operator_ttl(tool))

    def _make_room(self) -> None:
        rules = self.rules
        self._ttls: Memo[str, float | None] = Memo(MAX_TTLS)
        self._told_ttl: Memo[str, bool] = Memo(MAX_TTLS)
        """Whether a tool's last result might be kept: only then it is worth waiting for another gateway's."""
        # Each entry counts as its share of the places at least: so both bounds are one.
        least = max(1, rules.max_bytes // max(1, rules.max_entries))
        self._memory: LRUCache[str, Cached] = LRUCache(
            rules.max_bytes, getsizeof=lambda entry: max(least, memoryview(entry.raw).nbytes)
        )

    async def __aenter__(self) -> ResultCache:
        try:
            if self._shared is not None:
                await self._database.forget_cached()  # nobody keeps it up to date now
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
        await self._tasks.close()

    # Reading

    def slot(
        self, tool: Tool, arguments: Raw, principal: Principal, spec_digest: str, *, own: bool = False
    ) -> Slot | None:
        """Where the result of a call belongs; `None`: it is neither kept nor shared.

        Args:
            spec_digest: of the settings of the tool's server: with others it may answer otherwise.
            own: each caller is somebody else to the server, whatever the rules say.
        """
        ttl = self._operator_ttl(tool)
        if not self.rules.enabled or not (ttl or tool.reads_only):
            return None
        everybody = not own and any(fnmatchcase(tool.tool_id, pattern) for pattern in self.rules.shared)
        parts = [tool.tool_id, tool.definition_hash, spec_digest, None if everybody else principal.name]
        digest = hashlib.sha256(msgspec.json.encode(parts))
        digest.update(canonical(arguments))
        return Slot(digest.hexdigest(), tool, ttl)

    async def look(self, slot: Slot) -> Cached | None:
        """What is kept and holds, fresh or not, from the nearest level that has it."""
        if self._epochs is not None:
            if not slot.ttl and self._told_ttl.get(slot.tool.tool_id) is False:
                slot.epoch = None  # no result of it was ever to be kept
                return None
            return await self._look_shared(slot, self._epochs)
        found = self._memory.get(slot.key)
        if found is not None and not self._validity.holds(slot.tool, found.stored_at):
            found = None
        if found is not None or slot.key not in self._stored:
            return found
        reading = self._reading.get(slot.key)
        if reading is None:
            reading = self._reading[slot.key] = asyncio.create_task(self._read_stored(slot))
            reading.add_done_callback(lambda _: self._reading.pop(slot.key, None))
        below = await asyncio.shield(reading)
        return below if below is not None and self._validity.holds(slot.tool, below.stored_at) else None

    def count(self, found: Cached, *, stale: bool = False) -> None:
        """Note that a kept result was given."""
        self.hits["stale" if stale else found.level] += 1

    async def once(self, slot: Slot, make: Callable[[], Awaitable[Made]], seconds: float) -> Raw:
        """Make the result, or wait for whoever makes it just now; then keep it.

        Args:
            seconds: how long to wait for another's at most.

        Raises:
            UpstreamTimeout: the other took longer. Whatever `make` raises.
        """
        if slot.epoch is None:
            made = await make()
            self._told_ttl[slot.tool.tool_id] = made.ttl > 0
            return made.raw
        until = time.monotonic() + seconds
        while True:
            flight = self._flights.get(slot.key)
            if flight is not None and not self._may_join(flight, slot):
                flight = None  # it set out before something was changed: it may bring back what was before
            if flight is None:
                ready = self._memory.get(slot.key)
                if ready is not None and ready.is_fresh and self._gives(slot, ready):
                    return ready.raw  # it came while we got here
                flight = _Flight(slot, asyncio.create_task(self._make(slot, make, seconds)))
                self._flights[slot.key] = flight
                return (await flight.result()).raw
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    made = await flight.result()
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
            return made.raw if not made.own else (await make()).raw

    def _may_join(self, flight: _Flight, slot: Slot) -> bool:
        return flight.epoch == slot.epoch and self._validity.holds(slot.tool, flight.began_at)

    def _gives(self, slot: Slot, found: Cached) -> bool:
        return found.epoch == slot.epoch and self._validity.holds(slot.tool, found.stored_at)

    async def _make(self, slot: Slot, make: Callable[[], Awaitable[Made]], seconds: float) -> Made:
        asked_at, task = time.time(), asyncio.current_task()
        first, token = False, secrets.token_bytes(8)
        try:
            if self._shared is not None and (slot.ttl or self._told_ttl.get(slot.tool.tool_id)):
                first = await self._shared.put_new(FLIGHT + slot.key, token, FLIGHT_SECONDS)
                found = await self._made_elsewhere(slot, seconds) if not first else None
                if found is not None:
                    return Made(found.raw)
            made = await make()
            self._told_ttl[slot.tool.tool_id] = made.ttl > 0
            if made.ttl > 0 and memoryview(made.raw).nbytes <= self.rules.max_result_bytes:
                until = time.time() + made.ttl
                entry = Cached(
                    made.raw, slot.tool, asked_at, until, until + self.rules.stale_seconds, epoch=slot.epoch or ""
                )
                self.misses += 1
                if self._validity.holds(slot.tool, asked_at):
                    self._keep(slot.key, entry)
                    if first and self._shared is not None and not await asyncio.to_thread(redacted, entry.raw):
                        await self._share(slot.key, entry)  # before those that wait for it elsewhere look
            return made
        finally:
            if first and self._shared is not None:
                await asyncio.shield(self._shared.drop_if([FLIGHT + slot.key], token))
            flight = self._flights.get(slot.key)
            if flight is not None and flight.task is task:
                del self._flights[slot.key]

    async def _made_elsewhere(self, slot: Slot, seconds: float) -> Cached | None:
        """What another gateway is asking for just now; `None` if nothing comes of it that may be given."""
        assert self._shared is not None
        assert self._epochs is not None
        until = time.monotonic() + min(seconds, FLIGHT_SECONDS)
        while time.monotonic() < until:
            under_way = await self._shared.get(FLIGHT + slot.key)
            found = await self._look_shared(slot, self._epochs)
            if found is not None and found.is_fresh:
                return found
            if under_way is None or slot.epoch is None:
                return None
            await asyncio.sleep(FLIGHT_POLL_SECONDS)
        return None

    def _operator_ttl(self, tool: Tool) -> float | None:
        """What the operator says of a tool: seconds; `None`: nothing."""
        if not self.rules.tools:
            return None
        key = tool.tool_id
        if key not in self._ttls:
            patterns = self.rules.tools.items()
            self._ttls[key] = next((seconds for pattern, seconds in patterns if fnmatchcase(key, pattern)), None)
        return self._ttls[key]

    async def _look_shared(self, slot: Slot, epochs: SharedEpochs) -> Cached | None:
        keeps = bool(slot.ttl or self._told_ttl.get(slot.tool.tool_id))
        slot.epoch, packed = await epochs.read(slot.tool.server_id, PREFIX + slot.key, keeps)
        if slot.epoch is None:
            return None
        found = self._memory.get(slot.key)
        if found is not None and not self._gives(slot, found):
            found = None
        if packed is None or (found is not None and found.is_fresh):
            return found
        try:
            entry = _unpack.decode(packed)
        except msgspec.MsgspecError:
            return found  # another version's
        if entry.epoch != slot.epoch or (found is not None and entry.stored_at <= found.stored_at):
            return found
        below = self._accept(slot, Raw(entry.raw), (entry.stored_at, entry.fresh_until, entry.stale_until), "l2")
        if below is not None:
            self._fill(slot.key, below)
        return below

    async def _read_stored(self, slot: Slot) -> Cached | None:
        if time.monotonic() <= self._skip_database_until:
            return None
        try:
            async with asyncio.timeout(READ_SECONDS):
                row = await self._database.load_cached(slot.key)
        except (StoreError, TimeoutError) as exc:
            self.store_error = str(exc) or f"the database gave no result within {READ_SECONDS:g} s"
            self._skip_database_until = time.monotonic() + AGAIN_SECONDS
            return None
        if row is None:
            return None
        times = (row["stored_at"], row["fresh_until"], row["stale_until"])
        found = self._accept(slot, Raw(bytes(row["result"])), times, "l3")
        if found is not None:
            self._fill(slot.key, found)
        return found

    def _accept(self, slot: Slot, raw: Raw, times: tuple[float, float, float], level: Level) -> Cached | None:
        """What a level below had, by the rules of now; `None` if it is worthless."""
        stored_at = times[0]
        most = self.rules.max_server_ttl_seconds if slot.ttl is None else slot.ttl
        fresh_until = min(times[1], stored_at + most)
        stale_until = min(times[2], fresh_until + self.rules.stale_seconds)
        if stale_until <= time.time() or not self._validity.holds(slot.tool, stored_at):
            return None
        return Cached(raw, slot.tool, stored_at, fresh_until, stale_until, level, slot.epoch or "")

    # What may change something

    def changing(self, server_id: str, seconds: float) -> Awaitable[None] | None:
        """A call that may change something at a server is about to be made. Needs a `changed`.

        Returns what has to be awaited before the call is made, if anything has.
        """
        self._validity.began(server_id)
        if self._epochs is not None:
            return self._epochs.began(server_id, seconds)
        return self._forget_stored(server_id) if self._stored_of[server_id] or self._saving.locked() else None

    async def _forget_stored(self, server_id: str) -> None:
        """What the database has of a server goes before it is changed: it must not be found after a crash."""
        async with self._saving:
            for key, (_, of_server, _) in list(self._stored.items()):
                if of_server == server_id:
                    self._drop(key)
            try:
                await self._database.forget_cached(server_id)
            except StoreError as exc:  # the writer tries on
                self.store_error = str(exc)
                self._wake.set()

    def changed(self, server_id: str, seconds: float, settled: bool) -> Awaitable[None] | None:
        """The call has ended, in whatever way. Returns what has to be awaited before its answer is given, if anything.

        Args:
            settled: it does nothing from now on; otherwise it may for so many seconds.
        """
        self._validity.ended(server_id, seconds, settled)
        return self._epochs.ended(server_id, seconds, settled) if self._epochs is not None else None

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

    def invalidate(self, *, tool_id: str | None = None, server_id: str | None = None) -> int:
        """Forget results: of one tool, of one server, or all. Returns how many."""
        self._validity.end(tool_id, server_id)
        if self._epochs is not None:
            self._epochs.end(server_id if tool_id is None else None)

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
        self._wake.set()
        return len(gone | set(stored))

    def _note(self, key: str, tool_id: str, server_id: str, size: int) -> None:
        old = self._stored.pop(key, None)
        self._stored_bytes += size - (old[2] if old else 0)
        self._stored_of[server_id] += 0 if old else 1
        self._stored[key] = (tool_id, server_id, size)
        while self._stored_bytes > MAX_STORED_BYTES or len(self._stored) > MAX_STORED:
            self._drop(next(iter(self._stored)))

    def _drop(self, key: str) -> None:
        _, server_id, size = self._stored.pop(key)
        self._stored_bytes -= size
        self._stored_of[server_id] -= 1
        if not self._stored_of[server_id]:
            del self._stored_of[server_id]
        self._removed.add(key)

    async def _share(self, key: str, entry: Cached) -> None:
        assert self._shared is not None
        seconds = entry.stale_until - time.time()
        packed = _Packed(bytes(entry.raw), entry.stored_at, entry.fresh_until, entry.stale_until, entry.epoch)
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
            if self._epochs is not None:
                for key, entry in group.items():
                    await self._share(key, entry)
                if not await self._epochs.tell() and not self._closing:
                    await asyncio.sleep(AGAIN_SECONDS)
                    self._wake.set()
            else:
                async with self._saving:
                    saved = await self._save(group)
                if not saved and not self._closing:
                    await asyncio.sleep(AGAIN_SECONDS)
                    self._wake.set()

    async def _save(self, group: dict[str, Cached]) -> bool:
        """Write results into the database, and take out what is worthless. Returns whether it took that."""
        group = {key: entry for key, entry in group.items() if self._validity.holds(entry.tool, entry.stored_at)}
        removed, self._removed = self._removed, set()
        if not (group or removed):
            return True
        rows = [
            {
                "key": key,
                "tool_id": entry.tool.tool_id,
                "server_id": entry.tool.server_id,
                "result": bytes(entry.raw),
                "stored_at": entry.stored_at,
                "fresh_until": entry.fresh_until,
                "stale_until": entry.stale_until,
            }
            for key, entry in group.items()
        ]
        try:
            await self._database.save_cached(rows, removed - group.keys())
        except StoreError as exc:  # memory goes on without it
            if self.store_error is None:
                log.warning("results cannot be kept in the database", error=str(exc))
            self.store_error = str(exc)
            if not self._closing:
                for key, entry in group.items():
                    if key not in self._unwritten:
                        self._put(key, entry)
                self._removed |= removed
            return False
        self.store_error = None
        for key, entry in group.items():
            self._note(key, entry.tool.tool_id, entry.tool.server_id, _size(entry))
            if not self._validity.holds(entry.tool, entry.stored_at):
                self._drop(key)  # declared worthless while it was written
        return True

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
    return {key for key, entry in group.items() if redacted(entry.raw)}


def redacted(raw: Raw) -> bool:
    """Whether there is a secret in a result, as far as one can tell."""
    return bool(redact_json(raw)[1])


def canonical(arguments: Raw) -> bytes:
    """Arguments in one form: sorted keys, no blanks, numbers as they were written."""
    return _sorted.encode(_exact.decode(arguments)) if memoryview(arguments).nbytes else b"{}"
