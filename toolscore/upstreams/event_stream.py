"""Server-sent events as an HTTP server writes them (HTML standard, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from toolscore.core.errors import UpstreamProtocolError

__all__ = ["MAX_RETRY_SECONDS", "MESSAGE", "EventStream"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MESSAGE = (b"", b"message")
"""The types of an event that is a message; the first stands for none."""
MAX_EVENT_ID = 1024
MAX_RETRY_SECONDS = 30.0


class Content(Protocol):
    """Where the bytes of a stream come from."""

    def iter_any(self) -> AsyncIterator[bytes]:
        """The pieces as they come."""
        ...


class EventStream:
    """Server-sent events (HTML standard), with what is needed to come back to where a stream broke off.

    Args:
        before: the stream that this one goes on with.
    """

    def __init__(self, content: Content, max_bytes: int, before: EventStream | None = None) -> None:
        self._content = content
        self._max = max_bytes
        self.last_id: str = before.last_id if before is not None else ""
        self.retry_seconds: float | None = before.retry_seconds if before is not None else None

    async def messages(self) -> AsyncIterator[bytes]:
        """The `data` of each event that has any, and is a message: events of other types are for others."""
        async for kind, data in self.events():
            if kind in MESSAGE:
                yield data

    async def events(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """The type and the `data` of each event that has any."""
        buffer = bytearray()
        data: list[bytes] = []
        size, kind, begun, after_return, pending_id = 0, b"", False, False, self.last_id
        searched = 0  # no line ends before it: an unfinished line is not looked through again with each piece
        async for came in self._content.iter_any():
            chunk = came[1:] if after_return and came[:1] == b"\n" else came
            after_return = came[-1:] == b"\r"
            if b"\r" in chunk:
                chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            buffer += chunk
            if not begun and len(buffer) >= len(BYTE_ORDER_MARK):
                begun = True
                if buffer.startswith(BYTE_ORDER_MARK):
                    del buffer[: len(BYTE_ORDER_MARK)]
                    searched = 0
            if len(buffer) > self._max:
                raise self._too_large()
            while (end := buffer.find(b"\n", searched)) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                searched = 0
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" "))
                    size += len(line)
                    if size > self._max:
                        raise self._too_large()
                elif line.startswith(b"event:"):
                    kind = line[6:].strip()
                elif line.startswith(b"id:"):
                    given = line[3:].strip().decode("latin-1")
                    if len(given) <= MAX_EVENT_ID and given.isprintable():  # it comes back in a header
                        pending_id = given
                elif line.startswith(b"retry:") and line[6:].strip().isdigit():
                    self.retry_seconds = min(int(line[6:].strip()[:9]) / 1000, MAX_RETRY_SECONDS)
                elif not line:
                    self.last_id = pending_id  # of events that are whole: what breaks off is to come again
                    if any(data):
                        yield kind, b"\n".join(data)
                    data.clear()
                    size, kind = 0, b""
            searched = len(buffer)

    def _too_large(self) -> UpstreamProtocolError:
        return UpstreamProtocolError(f"the server sent an event over the bound of {self._max:,} bytes")
