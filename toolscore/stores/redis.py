"""Redis, which replicas share, or what the processes of one machine have in its place (`host.py`). When it is away or
slow the gateway goes on with what it has itself, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from toolscore.stores.host import HostClient

__all__ = ["SharedStore", "open_shared"]

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 0.1
"""A slower answer is none: no call waits longer for what it can do without."""
PATIENT_SECONDS = 1.0
"""For what no call waits for."""
PROBE_SECONDS = 1.0
LISTEN_SECONDS = 5.0
"""Without a message for so long, a listener asks whether the connection is there."""
REDIS = "Redis"
AT_ONCE = 64
"""Requests under way; each takes a connection, and the driver has a hundred."""


DROP_IF = """
for _, key in ipairs(KEYS) do
  if redis.call('get', key) == ARGV[1] then redis.call('del', key) end
end
return 1
"""


class SharedStore:
    """One Redis. Its methods never raise: what is not to be had is `None`.

    Attributes:
        client: of it, for libraries that speak to it themselves.
        up: whether it is used just now. It is asked again once a second while it is not.
        error: why not.
        outages: how often it went away.
    """

    def __init__(self, client: Any, shown: str, name: str) -> None:
        self.client = client
        self.shown = shown
        self.name = name
        self.up = False
        self.error: str | None = "it has not answered yet"
        self.outages = 0
        self._places = asyncio.Semaphore(AT_ONCE)

    async def get(self, key: str) -> bytes | None:
        """The bytes of a key."""
        found: bytes | None = await self.ask(self.client.get(key)) if self.up else None
        return found

    async def get_many(self, keys: list[str]) -> list[bytes | None] | None:
        """The bytes of several keys, as they are at one moment."""
        found: list[bytes | None] | None = await self.ask(self.client.mget(keys)) if self.up else None
        return found

    async def put(self, key: str, value: bytes, seconds: float) -> bool:
        """Keep bytes for so long. Returns whether it took them."""
        if not self.up or seconds <= 0:
            return False
        return await self.ask(self.client.set(key, value, px=max(1, int(seconds * 1000)))) is not None

    async def put_new(self, key: str, value: bytes, seconds: float) -> bool:
        """Keep bytes for so long, if the key has none. Returns whether it had none; true also where Redis is away."""
        if not self.up:
            return True
        taken = await self.ask(self.client.set(key, value, px=max(1, int(seconds * 1000)), nx=True))
        return bool(taken) or not self.up

    async def drop_if(self, keys: list[str], value: bytes) -> None:
        """Forget those of these keys that have this value."""
        await self.run(DROP_IF, keys, [value])

    async def drop(self, keys: list[str]) -> None:
        """Forget keys."""
        for start in range(0, len(keys), 500):
            if self.up:
                await self.ask(self.client.delete(*keys[start : start + 500]))

    async def run(
        self, script: str, keys: list[str], arguments: list[str | bytes | int], seconds: float = PATIENT_SECONDS
    ) -> Any:
        """What a Lua script makes of keys, at one moment; for no longer than so many seconds."""
        if not self.up:
            return None
        return await self.ask(self.client.eval(script, len(keys), *keys, *arguments), seconds)

    async def publish(self, channel: str, message: bytes) -> bool:
        """Tell all who listen. Returns whether it was taken."""
        return self.up and await self.ask(self.client.publish(channel, message)) is not None

    async def listen(self, channel: str, heard: Callable[[bytes], None], ready: Callable[[], None]) -> None:
        """Hear what is published on a channel, for as long as the connection lasts.

        Args:
            ready: called once it is heard: what was said before is not known.
        """
        listener = self.client.pubsub(ignore_subscribe_messages=False)
        try:
            async with asyncio.timeout(PATIENT_SECONDS):
                await listener.subscribe(channel)
            silent = 0
            while silent < 2:
                async with asyncio.timeout(2 * LISTEN_SECONDS):
                    message = await listener.get_message(timeout=LISTEN_SECONDS)
                    if message is None:
                        await listener.ping()
                silent = silent + 1 if message is None else 0
                kind = message["type"] if message is not None else None
                if kind == "subscribe":
                    ready()
                elif kind == "message":
                    heard(message["data"])
        except Exception as exc:  # whatever the driver makes of it
            log.debug("a channel is heard no more", channel=channel, error=str(exc))
        finally:
            with contextlib.suppress(Exception):
                await listener.aclose()

    async def append(self, key: str, entries: list[dict[bytes, bytes]], most: int, seconds: float) -> bool:
        """Add entries to a stream, of which about `most` are kept, for so long after the last. Returns whether it took
        them.
        """
        if not self.up:
            return False
        pipe = self.client.pipeline(transaction=False)
        for entry in entries:
            pipe.xadd(key, entry, maxlen=most, approximate=True)
        pipe.pexpire(key, int(seconds * 1000))
        return await self.ask(pipe.execute(), PATIENT_SECONDS) is not None

    async def entries(self, key: str, after: bytes, most: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Entries of a stream, those behind the one with this id."""
        if not self.up:
            return []
        request = self.client.xrange(key, min=b"(" + after if after else b"-", count=most)
        return await self.ask(request) or []

    async def ask(self, request: Awaitable[Any], seconds: float = ANSWER_SECONDS) -> Any:
        """Wait for an answer, so long at most; `None` if there is none. Then it counts as down."""
        if self._places.locked():
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._places.acquire()
            except TimeoutError:  # we are busy, it is not down
                if asyncio.iscoroutine(request):
                    request.close()
                return None
        else:
            await self._places.acquire()
        try:
            async with asyncio.timeout(seconds):
                return await request
        except TimeoutError:
            self.fail(f"no answer within {seconds:g} s")
        except Exception as exc:  # whatever the driver makes of it
            self.fail(str(exc) or type(exc).__name__)
        finally:
            self._places.release()
        return None

    def fail(self, error: str) -> None:
        """It did not answer."""
        if self.up:
            log.warning(f"{self.name} is not used until it answers again: budgets are this process's own, no result is "
                        "kept", where=self.shown, error=error)  # fmt: skip
            self.outages += 1
        self.up = False
        self.error = error

    async def watch(self) -> None:
        """Find out whether it is there, again and again."""
        while True:
            if not self.up:
                was = self.error
                try:
                    async with asyncio.timeout(ANSWER_SECONDS * 5):
                        await self.client.ping()
                except Exception as exc:  # whatever the driver makes of it
                    self.error = str(exc) or type(exc).__name__
                else:
                    self.up, self.error = True, None
                    say = log.info if self.outages or self.name == REDIS else log.debug
                    say(f"{self.name} answers", where=self.shown, before=was)
            else:
                await self.ask(self.client.ping())
            await asyncio.sleep(PROBE_SECONDS)


@asynccontextmanager
async def open_shared(url: str | None, host: Path | None = None) -> AsyncIterator[SharedStore | None]:
    """Connect to Redis, if one is configured, or to the host of this machine's processes. It need not be there yet.

    Args:
        url: `redis://host:port/db`, `rediss://…` or `unix://…`.
        host: the Unix socket of `serve_memory`, which is used where there is no Redis.
    """
    if url is None and host is None:
        yield None
        return
    client: Any
    name = REDIS
    if url is not None:
        import redis.asyncio as redis

        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        # No time-outs of the driver for what it sends and reads: on Python 3.11 a cancelling is lost in them, and
        # whoever is cancelled goes on for ever. All is asked through `ask`, or listens, and is bounded there.
        client = redis.Redis.from_url(
            url, socket_timeout=None, socket_connect_timeout=ANSWER_SECONDS * 5, health_check_interval=0
        )
    else:
        assert host is not None
        name, shown, client = "what this machine's workers share", str(host), HostClient(host)
    store = SharedStore(client, shown, name)
    started = time.monotonic()
    watcher = asyncio.create_task(store.watch())
    try:
        while not store.up and time.monotonic() - started < ANSWER_SECONDS * 6 and not watcher.done():
            await asyncio.sleep(0.01)
        if not store.up:
            log.warning(f"{name} does not answer: going on without", where=shown, error=store.error)
        yield store
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        with contextlib.suppress(Exception):
            await client.aclose()
