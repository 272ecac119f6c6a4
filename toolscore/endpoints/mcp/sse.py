"""The events of one response of streamable HTTP, kept for as long as its client may come back for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from toolscore.endpoints.asgi import SSE_COMMENT_SECONDS, sse_event
from toolscore.endpoints.mcp.mirror import Mirror

__all__ = ["Stream"]

RETRY_MS = 1000
"""How long a client should wait before it comes back to a stream that broke off."""
MAX_EVENTS = 1000
MAX_EVENT_BYTES = 1024 * 1024
"""What a stream keeps, for a client that reads slowly or comes back; the oldest goes first, the newest always stays."""


class Stream:
    """The events of one response, kept for as long as its client may come back for them.

    `read` is the newest event that was sent, `readers` counts the responses that send it just now. `mirror` keeps it
    for other gateways, too.
    """

    def __init__(self, number: int, resumable: bool) -> None:
        self.number = number
        self.resumable = resumable
        self.readers = 0
        self.read = 0
        self.ended = False
        self._events: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._count = 0
        self._arrived = asyncio.Event()
        self._reader: object = None
        self.mirror: Mirror | None = None

    def put(self, message: bytes) -> None:
        """Add a message. Never waits."""
        self._count += 1
        self._events.append((self._count, message))
        self._bytes += len(message)
        while len(self._events) > 1 and (len(self._events) > MAX_EVENTS or self._bytes > MAX_EVENT_BYTES):
            self._bytes -= len(self._events.popleft()[1])
        self._arrived.set()
        if self.mirror is not None:
            self.mirror.put(self._count, message)

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._bytes

    def put_once(self, message: bytes) -> None:
        """Add a message unless it waits to be read already."""
        if all(waiting != message for number, waiting in self._events if number > self.read):
            self.put(message)

    def end(self) -> None:
        if self.mirror is not None and not self.ended:
            self.mirror.end()
        self.ended = True
        self._arrived.set()

    async def chunks(self, after: int = 0) -> AsyncGenerator[bytes]:
        """Bytes to send, from the event behind `after` on, until the stream ends, or another reader takes it over."""
        self.readers += 1
        self._reader = reader = object()
        self._arrived.set()  # whoever read so far stops: no message goes out twice
        try:
            if self.resumable:
                yield b"id: %d-%d\nretry: %d\ndata: \n\n" % (self.number, after, RETRY_MS)
            else:
                yield b": open\n\n"
            while self._reader is reader:
                self._arrived.clear()
                for number, message in [event for event in self._events if event[0] > after]:
                    if self._reader is not reader:
                        return
                    after = self.read = number
                    yield sse_event(message, event_id=f"{self.number}-{number}" if self.resumable else "")
                if self.ended:
                    return
                if self._arrived.is_set():
                    continue
                try:
                    async with asyncio.timeout(SSE_COMMENT_SECONDS):
                        await self._arrived.wait()
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.readers -= 1
            self._arrived.set()  # whoever waits for a reader looks again
