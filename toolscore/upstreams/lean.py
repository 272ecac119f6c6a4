"""POSTs to HTTP servers on kept connections, for the hot path: `asyncio`, and `httptools` to read what comes.

A call is one request and one answer, and aiohttp's client takes a third of a call's CPU for what a call never needs. It
still has all that is rare: other verbs, proxies, addresses that must be public.

    POST ── one write ──► server
         ◄── head: `Answer`; body: as it comes, never more than `HIGH_BYTES` of it unread
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Mapping
from types import TracebackType

from aiohappyeyeballs import start_connection
from yarl import URL

from toolscore.core.errors import InvalidRequest
from toolscore.upstreams.http_channel import Answer, HttpChannel

__all__ = ["ConnectFailed", "LeanClient"]

KEEPALIVE_SECONDS = 4.0
"""Below uvicorn's 5 s and Node's 5 s: we let go of an idle connection before the server closes it under a request."""
CONNECT_SECONDS = 10.0
NEXT_SECONDS = 0.25
"""After so long the next address of a name is tried, too (RFC 8305)."""
MAX_HEADS = 1000
"""Heads of requests that are kept: of each tool or session one."""
MAX_IDLE = 256
"""Connections that are kept for one server."""
UNFIT = re.compile(r"[\r\n\0]")
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class ConnectFailed(OSError):
    """There is no connection: nothing was sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Origin = tuple[str, str, int, ssl.SSLContext | None]
"""Scheme, host, port, and how it is trusted: whose connections are alike."""


class _Exchange:
    """One request: a context manager that gives the answer. Leaving it early closes the connection."""

    __slots__ = ("_client", "_connection", "_key", "_request")

    def __init__(self, client: LeanClient, key: Origin, request: bytes) -> None:
        self._client = client
        self._key = key
        self._request = request
        self._connection: HttpChannel | None = None

    async def __aenter__(self) -> Answer:
        connection = self._client.take(self._key) or await self._client.connect(*self._key)
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
            self._client.give_back(self._key, connection)
        else:
            connection.close()


class LeanClient:
    """Use as `async with LeanClient(…) as client`.

    Args:
        user_agent: what the requests say who asks.
    """

    def __init__(self, user_agent: str) -> None:
        self._idle: dict[Origin, list[HttpChannel]] = {}
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
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _sweep(self) -> None:
        """Close connections that were idle for too long."""
        while True:
            await asyncio.sleep(KEEPALIVE_SECONDS / 2)
            long_ago = time.monotonic() - KEEPALIVE_SECONDS
            for key, connections in list(self._idle.items()):
                for one in connections:
                    if one.idle_since < long_ago:
                        one.close()
                kept = self._idle[key] = [one for one in connections if not one.is_closed]
                if not kept:
                    del self._idle[key]

    def take(self, origin: Origin) -> HttpChannel | None:
        """A connection that is idle, and was not closed; `None`: there is none."""
        idle = self._idle.get(origin)
        long_ago = time.monotonic() - KEEPALIVE_SECONDS
        while idle:
            connection = idle.pop()
            if connection.idle_since >= long_ago and connection.is_fit:
                return connection
            connection.close()
        return None

    def give_back(self, origin: Origin, connection: HttpChannel) -> None:
        """Keep a connection for the next request."""
        idle = self._idle.setdefault(origin, [])
        if len(idle) >= MAX_IDLE:
            idle.pop(0).close()
        connection.chunks.clear()
        connection.idle_since = time.monotonic()
        idle.append(connection)

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
        return _Exchange(self, (url.scheme, url.raw_host or "", url.port or 0, tls), request)

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
            if lower in ("content-length", "transfer-encoding", "connection"):
                continue
            if lower == "host":
                lines[1] = f"Host: {value}"
                continue
            given.add(lower)
            lines.append(f"{name}: {value}")
        if "user-agent" not in given:
            lines.append(f"User-Agent: {self._user_agent}")
        lines.append("Content-Length: ")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")

    async def connect(self, scheme: str, host: str, port: int, tls: ssl.SSLContext | None) -> HttpChannel:
        """A new connection.

        Raises:
            ConnectFailed.
        """
        if scheme == "https" and tls is None:
            if self._usual_tls is None:
                self._usual_tls = await asyncio.to_thread(ssl.create_default_context)
            tls = self._usual_tls
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                loop = asyncio.get_running_loop()
                places = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                opened = await start_connection(places, happy_eyeballs_delay=NEXT_SECONDS)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                secure = scheme == "https"
                _, connection = await loop.create_connection(
                    HttpChannel, sock=opened, ssl=tls if secure else None, server_hostname=host if secure else None
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
