"""Server-sent events as an HTTP server writes them (HTML standard, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from toolscore.core.errors import UpstreamProtocolError

__all__ = ["MAX_RETRY_SECONDS", "EventStream"]

MAX_EVENT_ID = 1024
MAX_RETRY_SECONDS = 30.0


class EventStream:
    """Server-sent events (HTML standard), with what is needed to come back to where a stream broke off.

    Args:
        before: the stream that this one goes on with.
    """

    def __init__(self, content: aiohttp.StreamReader, max_bytes: int, before: EventStream | None = None) -> None:
        self._content = content
        self._max = max_bytes
        self.last_id: str = before.last_id if before is not None else ""
        self.retry_seconds: float | None = before.retry_seconds if before is not None else None

    async def messages(self) -> AsyncIterator[bytes]:
        """The `data` of each event that has any."""
        buffer = bytearray()
        data: list[bytes] = []
        size = 0
        async for chunk in self._content.iter_any():
            buffer += chunk
            if len(buffer) > self._max:
                raise self._too_large()
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end]).rstrip(b"\r")
                del buffer[: end + 1]
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" "))
                    size += len(line)
                    if size > self._max:
                        raise self._too_large()
                elif line.startswith(b"id:"):
                    given = line[3:].strip().decode("latin-1")
                    if len(given) <= MAX_EVENT_ID and given.isprintable():  # it comes back in a header
                        self.last_id = given
                elif line.startswith(b"retry:") and line[6:].strip().isdigit():
                    self.retry_seconds = min(int(line[6:].strip()[:9]) / 1000, MAX_RETRY_SECONDS)
                elif not line:
                    if any(data):
                        yield b"\n".join(data)
                    data.clear()
                    size = 0

    def _too_large(self) -> UpstreamProtocolError:
        return UpstreamProtocolError(f"the server sent an event over the bound of {self._max:,} bytes")
