"""Streams of responses in Redis, for a minute: a client whose stream broke off goes on with it on any gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import msgspec

from toolscore.core.errors import OutcomeUnknown
from toolscore.core.jsonrpc import error_frame
from toolscore.endpoints.asgi import SSE_COMMENT_SECONDS, sse_event
from toolscore.replicas import Replicas
from toolscore.stores import SharedStore

__all__ = ["Mirror", "Mirrors"]

KEPT_SECONDS = 60.0
READER_SECONDS = 3.0
"""A gateway that reads a stream of another says so at least this often."""
POLL_SECONDS = 0.1
MOST = 1000
MAX_BYTES = 1024 * 1024
"""Of one message; one that is larger cannot be fetched elsewhere."""
MAX_WAITING = 2000
"""Messages that Redis has not taken yet; then the rest of the stream is not kept."""
LOST_SECONDS = 10.0
"""A stream of which nothing is known for so long has ended."""


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
        owner = self.replicas.members.id.encode()
        first = {b"owner": owner, b"request": msgspec.json.encode(request_id)}
        return Mirror(self.shared, self.key(session, number), first)

    async def read(self, session: str, number: int, after: int) -> AsyncGenerator[bytes] | None:
        """A stream of another gateway, from the event behind `after` on, as bytes to send; `None`: it is not kept."""
        key = self.key(session, number)
        found = await self.shared.entries(key, b"", 1)
        if not found or b"owner" not in found[0][1]:
            return None
        first = found[0][1]
        return self._chunks(key, number, after, found[0][0], first[b"owner"].decode(), first[b"request"])

    async def _chunks(
        self, key: str, number: int, after: int, position: bytes, owner: str, request: bytes
    ) -> AsyncGenerator[bytes]:
        yield b"id: %d-%d\nretry: 1000\ndata: \n\n" % (number, after)
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
                    return
                seen = int(fields[b"n"])
                if seen > after:
                    yield sse_event(fields[b"m"], event_id=f"{number}-{seen}")
            if entries:
                continue
            if now > heard + 1 and not await self.replicas.members.is_there(owner):
                lost = OutcomeUnknown(
                    "the gateway that carried this request went away, and it may have done its work: find out before "
                    "you make it again"
                )
                yield sse_event(error_frame(msgspec.json.decode(request), lost.rpc_error()))
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


class Mirror:
    """One stream, as it is written."""

    def __init__(self, shared: SharedStore, key: str, first: dict[bytes, bytes]) -> None:
        self._shared = shared
        self._key = key
        self._waiting: list[dict[bytes, bytes]] = [first]
        self._writer: asyncio.Task[None] | None = None
        self._broken = False

    def put(self, number: int, message: bytes) -> None:
        """Add an event. Never waits."""
        self._add({b"n": b"%d" % number, b"m": message})

    def end(self) -> None:
        """Nothing more comes."""
        self._add({b"end": b"1"})

    def _add(self, entry: dict[bytes, bytes]) -> None:
        if self._broken or len(self._waiting) >= MAX_WAITING or len(entry.get(b"m", b"")) > MAX_BYTES:
            self._broken = True
            return
        self._waiting.append(entry)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                entries, self._waiting = self._waiting, []
                await self._shared.append(self._key, entries, MOST, KEPT_SECONDS)
        finally:
            self._writer = None
