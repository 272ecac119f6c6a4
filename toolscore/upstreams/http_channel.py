"""One HTTP connection of ours: a request out, its answer in, read by `httptools`; every bound of an answer is here."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections import deque
from collections.abc import AsyncIterator
from http.cookies import CookieError, SimpleCookie
from typing import Any

import httptools

__all__ = ["Answer", "BadAnswer", "HttpChannel"]

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
TOO_MANY = f"an answer with more than {MAX_HEADERS} headers"
MAX_INFORMATIONS = 16
"""Answers of 1xx before the one that counts."""
HIGH_BYTES, LOW_BYTES = 1024 * 1024, 256 * 1024
"""A server that sends faster than is read waits between these."""
OK, SWITCHING_PROTOCOLS = 200, 101
NO_BODY = frozenset({204, 304})
JSON = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
TO_NOTE = frozenset({b"set-cookie", b"content-encoding"})
"""With one of these an answer has more to it than its body."""


class BadAnswer(OSError):
    """What came is no HTTP answer, or not the whole of one."""


class Headers:
    """Headers by their names, in whatever case; of several with one name the first."""

    __slots__ = ("_found",)

    def __init__(self, found: dict[bytes, bytes]) -> None:
        self._found = found

    def get(self, name: str, default: Any = None) -> Any:
        value = self._found.get(name.lower().encode())
        return value.decode("utf-8", "surrogateescape") if value is not None else default

    def __contains__(self, name: str) -> bool:
        return name.lower().encode() in self._found

    def __getitem__(self, name: str) -> str:
        return self._found[name.lower().encode()].decode("utf-8", "surrogateescape")


class HttpChannel(asyncio.Protocol):
    """One connection. It serves one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost: Exception | None = None
        self.is_closed = False
        self.idle_since = 0.0
        self._head: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._paused = False
        self.is_complete = True
        self.keeps = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    @property
    def is_fit(self) -> bool:
        """Whether a request may be sent on it: it is open, and nothing has come that nobody asked for, nor its end."""
        closing = self.is_closed or self.transport is None or self.transport.is_closing()
        return not closing and not self._poll.poll(0)

    def ask(self, request: bytes) -> asyncio.Future[None]:
        """Send a request. What is returned is done once its answer has begun."""
        assert self.transport is not None
        if self._paused:  # the answer before was whole in that moment
            self._paused = False
            self.transport.resume_reading()
        self._head = asyncio.get_running_loop().create_future()
        self.headers: dict[bytes, bytes] = {}
        self._fields: list[tuple[bytes, bytes]] = []
        self.reason = b""
        self.status = 0
        self.chunks: deque[bytes] = deque()
        self._unread = self._bare_bytes = self._informations = 0
        self._until_end = self.keeps = self.is_complete = False
        self.transport.write(request)
        return self._head

    # What the parser finds

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise BadAnswer("a second answer, which is nobody's")

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if len(self._fields) > MAX_HEADERS:
            raise BadAnswer(TOO_MANY)
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            return
        self.headers = dict(reversed(self._fields))
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        self._until_end = not framed and self.status not in NO_BODY
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        self.chunks.append(body)
        self._unread += len(body)
        if self._unread > HIGH_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if len(self._fields) > MAX_HEADERS:  # trailers are such, too
            raise BadAnswer(TOO_MANY)
        if 100 <= self.status < 200:
            self._informations += 1
            if self.status == SWITCHING_PROTOCOLS or self._informations > MAX_INFORMATIONS:
                raise BadAnswer(f"HTTP {self.status} in the place of an answer")
            self._fields, self.reason, self._bare_bytes = [], b"", 0
            return
        self.keeps = bool(self._parser.should_keep_alive()) and not self._until_end
        self.is_complete = True

    def values(self, name: bytes) -> list[bytes]:
        """All that its answer says under a name, in lower case."""
        return [value for given, value in self._fields if given == name]

    # What the connection says

    def data_received(self, data: bytes) -> None:
        if self.is_complete:  # nobody asked for anything: it cannot be told what it belongs to
            self.close()
            return
        self._bare_bytes += len(data)  # head, ends of chunks, trailers: all that is no body
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            cause = exc.__context__ if isinstance(exc.__context__, BadAnswer) else None
            self._fail(cause or BadAnswer(f"what came is no HTTP answer: {exc}"))
        else:
            if not self.is_complete and self._bare_bytes > MAX_HEAD_BYTES:
                self._fail(BadAnswer(f"an answer with more than {MAX_HEAD_BYTES:,} bytes that are no body"))
        self._tell()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        if self._until_end and exc is None and self._head is not None and self._head.done() and not self.lost:
            self.is_complete = True
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        """It serves nobody any more."""
        self.is_closed = True
        if not self.is_complete and self.lost is None:
            self.lost = error
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # seen, whether or not anybody waits
        self._tell()
        if self.transport is not None:
            self.transport.abort()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # For who reads

    async def piece(self) -> bytes:
        """What has come of the body, as one piece; empty at its end.

        Raises:
            OSError: it broke off.
        """
        while not self.chunks:
            if self.is_complete:
                return b""
            if self.lost is not None:
                raise self.lost
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        piece = self.chunks.popleft() if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self._unread -= len(piece)
        if self._paused and self._unread < LOW_BYTES and self.transport is not None and not self.is_closed:
            self._paused = False
            self.transport.resume_reading()
        return piece

    def close(self) -> None:
        """Close. Idempotent."""
        self.is_closed = True
        if self.transport is not None:
            self.transport.abort()


class Answer:
    """An answer, as its reader knows aiohttp's: the head; the body as it comes.

    Attributes:
        status, reason, headers: of the head.
    """

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: HttpChannel) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers = Headers(connection.headers)

    @property
    def reason(self) -> str:
        return self._connection.reason.decode("latin-1")

    @property
    def content(self) -> Answer:
        return self

    @property
    def content_length(self) -> int | None:
        """What the head says of the body, in bytes; `None`: nothing."""
        given = self.headers.get("content-length")
        return int(given) if given is not None and given.isdecimal() else None

    @property
    def cookies(self) -> SimpleCookie:
        cookies = SimpleCookie()
        for value in self._connection.values(b"set-cookie"):
            with contextlib.suppress(CookieError):
                cookies.load(value.decode("utf-8", "replace"))
        return cookies

    def plain_body(self, most: int) -> bytes | None:
        """The body of an answer like most: JSON with status 200, all there, with nothing in its head to be noted.

        Args:
            most: bytes.

        Returns:
            `None`: it is another; look at it closely.
        """
        connection = self._connection
        headers, chunks = connection.headers, connection.chunks
        if not connection.is_complete or len(chunks) != 1 or self.status != OK:
            return None
        if headers.get(b"content-type") not in JSON or not TO_NOTE.isdisjoint(headers) or len(chunks[0]) > most:
            return None
        return chunks.popleft()

    async def read(self, most: int | None = None) -> bytes:
        """The body, or its first bytes.

        Raises:
            OSError: it broke off.
        """
        connection = self._connection
        if connection.is_complete and most is None:
            body = b"".join(connection.chunks) if len(connection.chunks) != 1 else connection.chunks[0]
            connection.chunks.clear()
            return body
        found = bytearray()
        while piece := await connection.piece():
            found += piece
            if most is not None and len(found) >= most:
                return bytes(found[:most])
        return bytes(found)

    async def iter_any(self) -> AsyncIterator[bytes]:
        """The body, piece by piece.

        Raises:
            OSError: it broke off.
        """
        while piece := await self._connection.piece():
            yield piece

    def close(self) -> None:
        """Read no more of it; its connection is used for nothing else. Idempotent."""
        self._connection.close()
