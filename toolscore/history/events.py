"""The ordered log of what changed, and those who listen.

One log feeds the events socket, the SSE stream, MCP's `list_changed` and the dashboard. An event is stored before
anybody hears of it, so its `seq` never repeats and whoever was away can catch up. Where several gateways share a
database each tells what it reads there, never what it wrote itself: all tell the same in the same order. What is told
and not kept (`stats_update`, `call_finished`) goes past the store and has no `seq`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
import structlog
from pydantic import Field

from toolscore.core.clock import timestamp
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Event
from toolscore.core.rules import Rules
from toolscore.stores.behind import with_patience
from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError

__all__ = ["ON_REQUEST_ONLY", "EventLog", "EventRules", "Subscription", "UnifiedNotifier"]

log = structlog.get_logger(__name__)

ON_REQUEST_ONLY = frozenset({"stats_update", "call_finished"})
"""Frequent events, sent only to those who name them."""

PRUNE_EVERY = 1000
"""Old events go in strides, so that pruning costs nothing at each write."""

MAX_PENDING = 10_000
"""Events that wait for a database that does not take them."""
PAGE_EVENTS = 500
MAX_ABOUT = 64


class EventRules(Rules):
    """What the log of events keeps."""

    needs_restart = True

    keep: Annotated[int, Field(ge=100)] = Field(100_000, description="how many the log keeps")
    queue: Annotated[int, Field(ge=10)] = Field(
        1000, description="what a subscriber may leave unread before it is told that it lags"
    )


class Subscription:
    """One listener's bounded queue. Iterate it; each item is an `Event`.

    A listener that does not keep up gets `lagged {missed, resume_from}` in place of what it missed: asking again
    with `since=resume_from` brings it all.
    """

    def __init__(self, types: Collection[str] | None, queue_events: int) -> None:
        self.types = frozenset(types) if types is not None else None
        self._bound = queue_events
        self._queue: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._missed = 0
        self._resume_from = 0
        self._last_seq = 0
        self._closed = False

    def wants(self, event_type: str) -> bool:
        return event_type in self.types if self.types is not None else event_type not in ON_REQUEST_ONLY

    def put(self, event: Event) -> None:
        """Queue an event, or count it as missed at the bound. Never waits."""
        if event.seq is not None and event.seq <= self._last_seq:
            return  # it came already while catching up
        if self._missed or len(self._queue) >= self._bound:
            if event.seq is not None:
                if not self._missed:
                    self._resume_from = self._last_seq
                self._missed += 1
            return
        if event.seq is not None:
            self._last_seq = event.seq
        self._queue.append(event)
        self._arrived.set()

    def skip_to(self, seq: int) -> None:
        """Nothing up to `seq` is wanted."""
        self._last_seq = max(self._last_seq, seq)

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._missed:
                lagged = {"missed": self._missed, "resume_from": self._resume_from}
                self._missed = 0
                return Event(type="lagged", data=lagged, timestamp=timestamp())
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()


class UnifiedNotifier:
    """Hands each event to every subscriber that wants it; a slow one never holds up the others."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def subscribe(self, types: Collection[str] | None, queue_events: int) -> Subscription:
        subscription = Subscription(types, queue_events)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        subscription.close()

    def notify(self, event: Event) -> None:
        for subscription in self._subscriptions:
            if subscription.wants(event.type):
                subscription.put(event)

    def wanted(self, event_type: str) -> bool:
        """Whether anybody asks for this type: spares making events that nobody reads."""
        return any(subscription.wants(event_type) for subscription in self._subscriptions)

    def __len__(self) -> int:
        return len(self._subscriptions)

    def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()


class EventLog:
    """Append, subscribe, catch up. Use as `async with EventLog(database) as events`."""

    def __init__(
        self,
        database: Database,
        rules: EventRules | None = None,
        *,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        self._database = database
        self._rules = rules or EventRules()
        self._on_event = on_event
        self.notifier = UnifiedNotifier()
        self._pending: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._since_prune = 0
        self._reading_on = asyncio.Lock()
        self.last_seq = 0
        self.unsaved = 0
        """Events that could not be stored: told without a number, or, of too many that wait for the database, not."""
        self.store_error: str | None = None

    async def __aenter__(self) -> EventLog:
        self.last_seq = await self._database.last_seq()
        self._writer = asyncio.create_task(self._write_groups())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        self._wake.set()
        await self._writer
        self.notifier.close()

    def publish(self, event_type: str, **data: Any) -> None:
        """Add an event to the log. Returns at once; it is stored and then told, in order."""
        self._put(Event(type=event_type, data=data, timestamp=timestamp()))

    def _put(self, event: Event) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._pending.popleft()
            self.unsaved += 1
        self._pending.append(event)
        self._wake.set()

    async def publish_with(self, write: Callable[[dict[str, Any] | None], Awaitable[None]], event: Event) -> None:
        """Make a change, and add the event that tells of it.

        Where gateways share the database both are written as one, so that events come in the order of the changes:
        whoever disables a tool at one gateway, and then enables it at another, must not be told the reverse.

        Args:
            write: makes the change, and keeps the row of the event beside it if there is one.

        Raises:
            what `write` does: then there is no event.
        """
        if not self._database.shared:
            await write(None)
            self._put(event)
            return
        await write(_row(event))
        with contextlib.suppress(StoreError):  # then it is told when the database answers again
            await self.read_on()
        if self._on_event is not None:
            self._on_event(event.type)

    def tell(self, event_type: str, **data: Any) -> None:
        """Tell those who asked for this type, without keeping it."""
        self.notifier.notify(Event(type=event_type, data=data, timestamp=timestamp()))

    async def past(self, since: int, limit: int) -> list[Event]:
        """What was kept after `since`, the oldest first.

        Raises:
            StoreError.
        """
        return [
            Event(type=row["type"], data=decode(row["data"].encode()), timestamp=row["timestamp"], seq=int(row["seq"]))
            for row in await self._database.read_events(since, limit)
        ]

    @asynccontextmanager
    async def subscribe(
        self, types: Collection[str] | None = None, *, since: int | None = None, queue_events: int | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Listen: the missed events first, then the live ones, none twice and none left out.

        Args:
            types: only these; `None`: all but those of `ON_REQUEST_ONLY`.
            since: the last `seq` seen; `None`: from now on.
        """
        subscription = self.notifier.subscribe(types, queue_events or self._rules.queue)
        try:
            yield self._replay_then_live(subscription, since)
        finally:
            self.notifier.unsubscribe(subscription)

    async def _replay_then_live(self, subscription: Subscription, since: int | None) -> AsyncIterator[Event]:
        if since is not None:
            with contextlib.suppress(StoreError):
                if self._database.shared and since > self.last_seq:
                    await self.read_on()  # another gateway told of it already
                if 0 < since < (oldest := await self._database.oldest_seq()) - 1:  # 0 asks for all that there is
                    yield _lost(since, oldest)
                    since = oldest - 1
            until = self.last_seq  # what is newer is in the subscription's queue already
            since = min(since, until)  # a number from another database must not hide what comes
            while since < until:
                try:
                    found = await self.past(since, PAGE_EVENTS)
                except StoreError as exc:
                    log.error("cannot read the event log", error=str(exc))
                    break
                for event in found:
                    assert event.seq is not None
                    since = event.seq
                    subscription.skip_to(since)
                    if subscription.wants(event.type):
                        yield event
                if not found:
                    break
        async for event in subscription:
            if since is None or event.seq is None or event.seq > since:
                yield event

    async def _write_groups(self) -> None:
        while not (self._stopping.is_set() and not self._pending):
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                group = [self._pending.popleft() for _ in range(min(len(self._pending), PAGE_EVENTS))]
                seqs: Sequence[int | None] | None
                seqs = await self._store(group)
                if seqs is None:  # in the end telling matters more than keeping: it is told without a number
                    seqs = [None] * len(group)
                    self.unsaved += len(group)
                if self._database.shared and self.store_error is None:
                    with contextlib.suppress(StoreError):  # then they are told when it answers again
                        await self.read_on()
                else:
                    for event, seq in zip(group, seqs, strict=True):
                        self._tell(msgspec.structs.replace(event, seq=seq))
                if self._on_event is not None:
                    for event in group:
                        self._on_event(event.type)
                await self._prune(len(group))

    async def _store(self, group: list[Event]) -> list[int] | None:
        """Store events, with patience for a database that refuses them for a moment; once it went on refusing, each is
        tried once. Returns their numbers; `None`: it refuses.
        """
        seqs: list[int] = []

        async def append() -> None:
            seqs[:] = await self._database.append_events([_row(event) for event in group])

        def failed(error: str) -> None:
            self.store_error = error

        hopeless = asyncio.Event()
        hopeless.set()
        closing = self._stopping if self.store_error is None else hopeless
        if not await with_patience(append, f"{len(group)} events", closing, failed):
            return None
        self.store_error = None
        return seqs

    async def read_on(self) -> None:
        """Tell what was stored since, whoever did: with several gateways on a database all tell the same, in the
        same order.

        Raises:
            StoreError.
        """
        async with self._reading_on:
            while found := await self.past(self.last_seq, PAGE_EVENTS):
                for event in found:
                    self._tell(event)

    def _tell(self, event: Event) -> None:
        self.last_seq = event.seq or self.last_seq
        self.notifier.notify(event)

    async def _prune(self, added: int) -> None:
        self._since_prune += added
        if self._since_prune >= PRUNE_EVERY:
            self._since_prune = 0
            try:
                await self._database.prune_events(self._rules.keep)
            except StoreError as exc:
                log.warning("cannot prune the event log", error=str(exc))


def _row(event: Event) -> dict[str, Any]:
    about = event.data.get("tool_id") if event.type.startswith("tool_") else None
    if event.type in ("server_up", "server_down", "server_idle"):
        about = f"server {event.data.get('server_id')}"
    return {
        "type": event.type,
        "data": encode(event.data).decode(),
        "timestamp": event.timestamp,
        "about": str(about)[:MAX_ABOUT] if about is not None else None,
    }


def _lost(since: int, oldest: int) -> Event:
    """That what was asked for is not kept any more."""
    data = {"missed": oldest - 1 - since, "resume_from": oldest - 1, "lost": True}
    return Event(type="lagged", data=data, timestamp=timestamp())
