"""POSTs to HTTP servers on kept connections, for the hot path: `asyncio`, and `httptools` to read what comes.

A call is one request and one answer, and aiohttp's client takes a third of a call's CPU for what a call never needs. It
still has all that is rare: other verbs, proxies, addresses that must be public.

    POST ── one write ──► server
         ◄── head: `Answer`; body: as it comes, never more than `HIGH_BYTES` of it unread
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from types import TracebackType
from typing import Any

import httptools
from yarl import URL

from toolscore.core.errors import InvalidRequest

__all__ = ["Answer", "BadAnswer", "ConnectFailed", "LeanClient"]

KEEPALIVE_SECONDS = 4.0
"""Below uvicorn's 5 s and Node's 5 s: we let go of an idle connection before the server closes it under a request."""
CONNECT_SECONDS = 10.0
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_INFORMATIONS = 16
"""Answers of 1xx before the one that counts."""
HIGH_BYTES, LOW_BYTES = 1024 * 1024, 256 * 1024
"""A server that sends faster than is read waits between these."""
MAX_HEADS = 1000
"""Heads of requests that are kept: of each tool or session one."""
MAX_IDLE = 256
"""Connections that are kept for one server."""
NO_BODY = frozenset({204, 304})
UNFIT = re.compile(r"[\r\n\0]")
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class ConnectFailed(OSError):
    """There is no connection: nothing was sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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


class _Connection(asyncio.Protocol):
    """One connection. It serves one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost: Exception | None = None
        self.is_closed = False
        self.idle_since = 0.0
        self._head: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._parser: Any = None
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
        self._head = asyncio.get_running_loop().create_future()
        self.headers: dict[bytes, bytes] = {}
        self.cookies: list[bytes] = []
        self.reason = b""
        self.status = 0
        self.chunks: deque[bytes] = deque()
        self._unread = self._head_bytes = self._informations = self._fields = 0
        self._until_end = self.keeps = self.is_complete = False
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)
        return self._head

    # What the parser finds

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise BadAnswer("a second answer, which is nobody's")

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        self.headers.setdefault(lower, value)
        if lower == b"set-cookie":
            self.cookies.append(value)
        self._fields += 1
        if self._fields > MAX_HEADERS:
            raise BadAnswer(f"an answer with more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            return
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        self._until_end = not framed and self.status not in NO_BODY
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)
        self._unread += len(body)
        if self._unread > HIGH_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if 100 <= self.status < 200:
            self._informations += 1
            if self.status == HTTPStatus.SWITCHING_PROTOCOLS or self._informations > MAX_INFORMATIONS:
                raise BadAnswer(f"HTTP {self.status} in the place of an answer")
            self.headers, self.cookies, self.reason, self._head_bytes = {}, [], b"", 0
            return
        self.keeps = bool(self._parser.should_keep_alive()) and not self._until_end
        self.is_complete = True

    # What the connection says

    def data_received(self, data: bytes) -> None:
        if self.is_complete:  # nobody asked for anything: it cannot be told what it belongs to
            self.close()
            return
        if self._head is not None and not self._head.done():
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            cause = exc.__context__ if isinstance(exc.__context__, BadAnswer) else None
            self._fail(cause or BadAnswer(f"what came is no HTTP answer: {exc}"))
        else:
            waits = self._head is not None and not self._head.done()
            if waits and self._head_bytes > MAX_HEAD_BYTES:
                self._fail(BadAnswer(f"the head of an answer has more than {MAX_HEAD_BYTES:,} bytes"))
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
        """The next piece of the body; empty at its end.

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
        piece = self.chunks.popleft()
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

    def __init__(self, connection: _Connection) -> None:
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
        for value in self._connection.cookies:
            with contextlib.suppress(CookieError):
                cookies.load(value.decode("utf-8", "replace"))
        return cookies

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


class _Origin:
    """The kept connections of one server."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self.connect = connect
        self.idle: list[_Connection] = []

    def take(self) -> _Connection | None:
        """One that is idle, and was not closed."""
        long_ago = time.monotonic() - KEEPALIVE_SECONDS
        while self.idle:
            connection = self.idle.pop()
            if connection.idle_since >= long_ago and connection.is_fit:
                return connection
            connection.close()
        return None

    def give_back(self, connection: _Connection) -> None:
        if len(self.idle) >= MAX_IDLE:
            self.idle.pop(0).close()
        connection.idle_since = time.monotonic()
        self.idle.append(connection)

    def sweep(self) -> None:
        """Close those that were idle for too long."""
        long_ago = time.monotonic() - KEEPALIVE_SECONDS
        kept = [one for one in self.idle if not one.is_closed and one.idle_since >= long_ago]
        for one in self.idle:
            if one.idle_since < long_ago:
                one.close()
        self.idle = kept


class _Exchange:
    """One request: a context manager that gives the answer. Leaving it early closes the connection."""

    __slots__ = ("_client", "_connection", "_key", "_request")

    def __init__(self, client: LeanClient, key: tuple[Any, ...], request: bytes) -> None:
        self._client = client
        self._key = key
        self._request = request
        self._connection: _Connection | None = None

    async def __aenter__(self) -> Answer:
        origin = self._client.origin(self._key)
        connection = origin.take()
        if connection is None:
            connection = await origin.connect()
        self._connection = connection
        try:
            await connection.ask(self._request)
        except BaseException:
            connection.close()
            raise
        return Answer(connection)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        assert connection is not None
        if connection.is_complete and connection.keeps and not connection.is_closed:
            connection.chunks.clear()
            self._client.origin(self._key).give_back(connection)
        else:
            connection.close()


class LeanClient:
    """Use as `async with LeanClient(…) as client`.

    Args:
        user_agent: what the requests say who asks.
    """

    def __init__(self, user_agent: str) -> None:
        self._origins: dict[tuple[Any, ...], _Origin] = {}
        self._heads: dict[tuple[URL, tuple[tuple[str, str], ...]], bytes] = {}
        self._user_agent = user_agent
        self._usual_tls: ssl.SSLContext | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LeanClient:
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for origin in self._origins.values():
            for connection in origin.idle:
                connection.close()
        self._origins.clear()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_SECONDS / 2)
            for key, origin in list(self._origins.items()):
                origin.sweep()
                if not origin.idle:
                    del self._origins[key]

    def post(self, url: URL, headers: Mapping[str, str], body: bytes, tls: ssl.SSLContext | None = None) -> _Exchange:
        """A POST, as a context manager that gives the `Answer`.

        Raises:
            InvalidRequest: a header cannot be sent.
            OSError (entering, and reading): `ConnectFailed` if there was no connection; else it broke off.
        """
        given = url, tuple(headers.items())
        head = self._heads.get(given)
        if head is None:
            head = self._head(url, headers)
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[given] = head
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        return _Exchange(self, (url.scheme, url.raw_host, url.port, tls), request)

    def _head(self, url: URL, headers: Mapping[str, str]) -> bytes:
        """The head of a request up to the length of its body."""
        host = url.raw_host or ""
        if ":" in host:
            host = f"[{host}]"
        if not url.is_default_port():
            host = f"{host}:{url.port}"
        lines = [f"POST {url.raw_path_qs} HTTP/1.1", f"Host: {host}"]
        given = set()
        for name, value in headers.items():
            if UNFIT.search(value) or not TOKEN.fullmatch(name):
                raise InvalidRequest(f"the header {name!r:.80} cannot be sent: a line break stands in it")
            lower = name.lower()
            if lower in ("host", "content-length", "transfer-encoding", "connection"):
                continue
            given.add(lower)
            lines.append(f"{name}: {value}")
        if "user-agent" not in given:
            lines.append(f"User-Agent: {self._user_agent}")
        lines.append("Content-Length: ")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")

    def origin(self, key: tuple[Any, ...]) -> _Origin:
        """The kept connections of a server."""
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = _Origin(lambda: self._connect(*key))
        return origin

    async def _connect(self, scheme: str, host: str, port: int, tls: ssl.SSLContext | None) -> _Connection:
        if scheme == "https" and tls is None:
            if self._usual_tls is None:
                self._usual_tls = await asyncio.to_thread(ssl.create_default_context)
            tls = self._usual_tls
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host, port, ssl=tls if scheme == "https" else None
                )
        except TimeoutError as exc:
            raise ConnectFailed(f"no answer within {CONNECT_SECONDS:g} s") from exc
        except ssl.SSLCertVerificationError as exc:
            reason = exc.verify_message or str(exc)
            raise ConnectFailed(
                f"its certificate is not trusted ({reason}): name its authority with `ca_file`"
            ) from exc
        except OSError as exc:
            raise ConnectFailed(exc.strerror or str(exc)) from exc
        return connection
