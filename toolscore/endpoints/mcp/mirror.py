"""Streams of responses in Redis, for a minute: a client whose stream broke off goes on with it on any gateway."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import msgspec

from toolscore.core.errors import OutcomeUnknown, Overloaded
from toolscore.core.jsonrpc import error_frame
from toolscore.endpoints.asgi import SSE_COMMENT_SECONDS, sse_event
from toolscore.replicas import Replicas
from toolscore.stores.redis import SharedStore

__all__ = ["Mirror", "Mirrors"]

KEPT_SECONDS = 60.0
HEAD_SECONDS = 3.0
"""A client may come back elsewhere before it is written there that its stream is kept: it is looked for so long."""
READER_SECONDS = 3.0
"""A gateway that reads a stream of another says so at least this often."""
POLL_SECONDS = 0.1
AGAIN_SECONDS = 1.0
"""Until what Redis did not take is given to it again."""
MOST = 1000
MAX_BYTES = 1024 * 1024
"""Of one message; one that is larger cannot be fetched elsewhere."""
MAX_WAITING = 2000
"""Messages that Redis has not taken yet; then the rest of the stream is not kept."""
BROKEN = b"broken"
LOST_SECONDS = 10.0
"""A stream of which nothing is known for so long has ended."""


class _Head(msgspec.Struct):
    """Whose a stream is, for as long as it is kept. `request`: the id of the request that it answers."""

    owner: str
    request: int | str


class Mirrors:
    """The streams of a gateway's sessions, as other gateways find them."""

    def __init__(self, shared: SharedStore, replicas: Replicas, identity: str) -> None:
        self.shared = shared
        self.replicas = replicas
        self._space = f"toolscore:{identity}:stream:"

    def key(self, session: str, number: int) -> str:
        return f"{self._space}{session}:{number}"

    def write(self, session: str, number: int, request_id: int | str) -> Mirror:
        """Keep a stream from its beginning.

        Args:
            request_id: of the request that it answers.
        """
        head = _Head(self.replicas.members.id, request_id)
        return Mirror(self.shared, self.key(session, number), msgspec.json.encode(head))

    async def read(self, session: str, number: int, after: int) -> AsyncGenerator[bytes] | None:
        """A stream of another gateway, from the event behind `after` on, as bytes to send; `None`: it is not kept.

        Raises:
            Overloaded: whether it is kept cannot be said just now.
        """
        key = self.key(session, number)
        until = time.monotonic() + HEAD_SECONDS
        while (found := await self.shared.get(f"{key}:head")) is None:
            if time.monotonic() > until:
                if self.shared.up:
                    return None
                raise Overloaded(
                    f"whether this stream is kept cannot be said: {self.shared.name} does not answer",
                    retry_after_seconds=1,
                )
            await asyncio.sleep(POLL_SECONDS)
        return self._chunks(key, number, after, msgspec.json.decode(found, type=_Head))

    async def _chunks(self, key: str, number: int, after: int, head: _Head) -> AsyncGenerator[bytes]:
        yield b"id: %d-%d\nretry: 1000\ndata: \n\n" % (number, after)
        position = b""
        said = heard = time.monotonic()
        told_reader = 0.0
        while True:
            now = time.monotonic()
            if now > told_reader + READER_SECONDS / 3:
                told_reader = now
                await self.shared.put(f"{key}:reader", b"1", READER_SECONDS)
            entries = await self.shared.entries(key, position, MOST)
            for event_id, fields in entries:
                position = event_id
                said = heard = now
                if b"end" in fields:
                    if fields[b"end"] == BROKEN:
                        yield _unknown(head, "what this request was answered is too large to be fetched again")
                    return
                seen = int(fields[b"n"])
                if seen > after:
                    yield sse_event(fields[b"m"], event_id=f"{number}-{seen}")
            if entries:
                continue
            if now > heard + 1 and self.shared.up:
                heard = now
                if not await self.replicas.members.is_there(head.owner):
                    yield _unknown(head, "the gateway that carried this request went away")
                    return
                if await self.shared.get(f"{key}:head") is None and self.shared.up:
                    yield _unknown(head, "the rest of this stream is not kept")
                    return
            if not self.shared.up and now > heard + LOST_SECONDS:
                return
            if now > said + SSE_COMMENT_SECONDS:
                said = now
                yield b": still here\n\n"
            await asyncio.sleep(POLL_SECONDS)

    async def is_read(self, session: str, number: int) -> bool:
        """Whether another gateway sends a stream of ours just now."""
        return await self.shared.get(f"{self.key(session, number)}:reader") is not None


def _unknown(head: _Head, why: str) -> bytes:
    lost = OutcomeUnknown(f"{why}, and it may have done its work: find out before you make it again")
    return sse_event(error_frame(head.request, lost.rpc_error()))


class Mirror:
    """One stream, as it is written."""

    def __init__(self, shared: SharedStore, key: str, head: bytes) -> None:
        self._shared = shared
        self._key = key
        self._head = head
        self._waiting: list[dict[bytes, bytes]] = []
        self._wake = asyncio.Event()
        self._ended = self._broken = False
        self._writer = asyncio.create_task(self._write())

    def put(self, number: int, message: bytes) -> None:
        """Add an event. Never waits."""
        if len(self._waiting) >= MAX_WAITING or len(message) > MAX_BYTES:
            self._broken = True
        if not self._broken:
            self._waiting.append({b"n": b"%d" % number, b"m": message})
            self._wake.set()

    def end(self) -> None:
        """Nothing more comes."""
        if not self._ended:
            self._ended = True
            self._waiting.append({b"end": BROKEN if self._broken else b"1"})
            self._wake.set()

    async def _write(self) -> None:
        """Write what comes until the end; what Redis does not take is tried again for as long as it is worth."""
        kept_at, until = float("-inf"), float("inf")
        while self._waiting or not self._ended:
            now = time.monotonic()
            if self._ended:
                until = min(until, now + KEPT_SECONDS)
            if now > until:
                return
            if now > kept_at + KEPT_SECONDS / 3 and await self._shared.put(
                f"{self._key}:head", self._head, KEPT_SECONDS
            ):
                kept_at = now
            self._wake.clear()
            entries, self._waiting = self._waiting, []
            if entries and not await self._shared.append(self._key, entries, MOST, KEPT_SECONDS):
                self._waiting = entries + self._waiting
                await asyncio.sleep(AGAIN_SECONDS)
            elif not self._waiting and not self._ended:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(AGAIN_SECONDS, kept_at + KEPT_SECONDS / 3 - now)):
                        await self._wake.wait()
