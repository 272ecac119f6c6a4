"""What a client may make the HTTP port hold: connections, heads of requests, slow bodies, answers that nobody reads.

All of it is bounded before anybody is asked for a key. One sweep a second looks at all connections.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from toolscore.core.rules import LimitRules
from toolscore.endpoints.exchange import BY_NAME, Exchange

__all__ = ["ConnectionGuard", "GuardedHttp", "possible_connections"]

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
MAX_PIPELINED = 64
"""Requests of one connection that wait for their turn: a few bytes each on the wire, and kilobytes here."""
FEW_BYTES = 8192
"""A head that came in no more is not measured."""
BODY_BYTES_PER_SECOND = 16 * 1024
"""Beside `limits.request_seconds`, a body has a second more for each so many bytes."""
LOG_SECONDS = 10.0
LINGER_SECONDS = 0.5
"""How long what a refused client still sends is read and dropped."""
MAX_LINGERING = 16
OTHERS_DESCRIPTORS = 64
"""What the gateway needs beside connections and running code."""
MAX_KNOWN, FEW_CHARACTERS = 256, 128
"""So many targets of requests, of at most so many characters, are read once."""
ASGI = {"version": "3.0", "spec_version": "2.3"}

ANSWERS = {
    408: b"the request was not whole in time (`limits.request_seconds`)",
    431: b"the head of the request is over 64 KiB or 128 headers",
    503: b"too many connections are open: try again (`limits.max_connections`, `limits.max_connections_per_address`, "
    b"`ulimit -n`)",
}
PHRASES = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class ConnectionGuard:
    """Watches the connections of the HTTP port. Use as `async with ConnectionGuard(rules) as guard`.

    Args:
        rules: the limits in force, asked for each time.
    """

    def __init__(self, rules: Callable[[], LimitRules]) -> None:
        self._rules = rules
        self.lingering = 0
        self._open: dict[GuardedHttp, str] = {}
        self._coming: dict[GuardedHttp, str] = {}
        """Those that have not shaken hands."""
        self._of_address: Counter[str] = Counter()
        """Of both."""
        self._refused = 0
        self._logged_at = 0.0
        self._possible = possible_connections()

    async def __aenter__(self) -> ConnectionGuard:
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    def lingers(self) -> bool:
        """Whether one more refused connection may be read to its end; `lingering` counts it then."""
        if self.lingering >= MAX_LINGERING:
            return False
        self.lingering += 1
        return True

    async def __aexit__(self, *_: object) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)

    def protocol(self, **arguments: Any) -> GuardedHttp:
        """A connection, as uvicorn makes them."""
        made = GuardedHttp(**arguments)
        made.guard = self
        return made

    def comes(self, connection: GuardedHttp, address: str) -> bool:
        """Count a connection before its handshake. Returns whether there is room for it."""
        return self._counts(connection, address, self._coming)

    def has_come(self, connection: GuardedHttp) -> None:
        """Its handshake is over; unless it is open by now, it is gone. Idempotent."""
        self._gone(self._coming.pop(connection, None))

    def opened(self, connection: GuardedHttp) -> bool:
        """Count a connection, if it is not yet. Returns whether there is room for it."""
        address = self._coming.pop(connection, None)
        if address is None:
            return self._counts(connection, connection.address, self._open)
        self._open[connection] = address
        return True

    def closed(self, connection: GuardedHttp) -> None:
        """A connection is gone. Idempotent."""
        self._gone(self._open.pop(connection, None))

    def _counts(self, connection: GuardedHttp, address: str, among: dict[GuardedHttp, str]) -> bool:
        rules = self._rules()
        all_of_them, of_address = len(self._open) + len(self._coming), self._of_address[address]
        if all_of_them >= min(rules.max_connections, self._possible) or of_address >= rules.max_connections_per_address:
            self.tell(f"{all_of_them} connections are open, {of_address} from one address")
            return False
        among[connection] = address
        self._of_address[address] += 1
        return True

    def _gone(self, address: str | None) -> None:
        if address is None:
            return
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]

    def fills(self, connection: GuardedHttp) -> None:
        """More waits to be read than a connection takes at once: all that waits for one caller is bounded."""
        rules, holder = self._rules(), connection.holder
        waiting = [one for one in self._open if one.unread and one.holder == holder]
        total = sum(one.unread for one in waiting)
        for one in sorted(waiting, key=lambda one: one.read_at):
            if total <= rules.max_unread_bytes:
                break
            if one is not connection or len(waiting) == 1:
                total -= one.unread
                self.tell("answers that nobody reads")
                one.transport.abort()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now, rules = time.monotonic(), self._rules()
            for connection in list(self._open):
                if connection.transport.is_closing() and not connection.unread:
                    self.closed(connection)
                else:
                    connection.check(now, rules.request_seconds, rules.write_seconds)

    def tell(self, what: str) -> None:
        """Log a connection that is refused or cut, at most once in ten seconds."""
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            log.warning("a connection was refused or cut", reason=what, times=self._refused)
            self._logged_at, self._refused = now, 0


def possible_connections() -> int:
    """Half of what descriptors are left for. With none, nobody could be answered, not even that we are full."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if allowed == resource.RLIM_INFINITY else max(1, (allowed - OTHERS_DESCRIPTORS) // 2)


class GuardedHttp(HttpToolsProtocol):
    """One connection, with its bounds.

    What comes between the pieces of a body (sizes of chunks, their extensions, trailers) is bounded as a head is.

    Attributes:
        read_at: when its client last read something.
    """

    guard: ConnectionGuard
    cycle: Exchange

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = str(self.client[0]) if self.client else "local"
        self._head_since: float | None = time.monotonic()
        self._chunk = self._begun_in = self._head_bytes = self._body_bytes = self._beside_body = 0
        self._body_since = 0.0
        self._status = 0
        self._upgrades = self._upgraded = False
        self._unread_before = 0
        self._rests_since: float | None = None
        self.read_at = time.monotonic()
        if not self.guard.opened(self):
            self._answer(503)

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.closed(self)
        super().connection_lost(exc)

    @property
    def unread(self) -> int:
        """Bytes that its client has not read yet."""
        return int(self.transport.get_write_buffer_size())

    @property
    def holder(self) -> str:
        """Whose answers these are: the caller's name, or the address before it is known."""
        principal = self.scope.get("toolscore.principal") if self.scope is not None else None
        return principal.name if principal is not None else self.address  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self._status:
            return
        self._chunk = len(data)
        if self._head_since is not None:
            self._head_bytes += self._chunk
        elif self._body_since:
            self._beside_body += self._chunk
        super().data_received(data)
        in_head, in_body = self._head_since is not None, bool(self._body_since)
        too_long = (in_head and self._head_bytes > MAX_HEAD_BYTES) or (in_body and self._beside_body > MAX_HEAD_BYTES)
        if too_long and not self._status:
            self._answer(431)

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._rests_since = None
        if self._head_since is None:
            self._head_since, self._head_bytes = time.monotonic(), 0
            self._begun_in = self._chunk  # behind another request, whose bytes are not this head's

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._status:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self.guard.tell(f"more than {MAX_PIPELINED} requests at once on one connection")
            self._status = 503
            self.transport.abort()
            return
        read = self._head_bytes + self._begun_in
        too_large = read > FEW_BYTES and _size(self.url, self.headers) > MAX_HEAD_BYTES
        self._head_since, self._body_since = None, time.monotonic()
        self._begun_in = self._body_bytes = self._beside_body = 0
        if too_large or len(self.headers) > MAX_HEADERS:
            self._answer(431)
        else:
            self._begin()

    def _begin(self) -> None:
        """As uvicorn's `on_headers_complete`: have the application take the request, now or in its turn."""
        parser = self.parser
        version = parser.get_http_version()
        headers = dict(self.headers)
        scope: Any = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": "",
            "headers": self.headers,
            BY_NAME: headers,
        }
        self.scope = scope
        self._upgrades = parser.should_upgrade() and self._should_upgrade()
        if self._upgrades:
            return
        read = _known if len(self.url) <= FEW_CHARACTERS else _parsed
        scope["path"], scope["raw_path"], scope["query_string"] = read(self.url)
        before = self.cycle
        self.cycle = Exchange(
            scope,
            self.transport,
            self.flow,
            self.server_state.default_headers,
            self.on_response_complete,
            expect_100_continue=headers.get(b"expect", b"").lower() == b"100-continue",
            keep_alive=version != "1.0" and parser.should_keep_alive(),
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._beside_body = 0
        cycle = self.cycle
        if self._status or self._upgrades or cycle.response_complete:
            return
        cycle.take_body(body)
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._body_since = 0.0
        cycle = self.cycle
        if not (self._status or self._upgrades or cycle.response_complete):
            cycle.more_body = False
            cycle.tell()

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer of the event loop for each answer: the sweep closes what rests for too long."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._head_since is None:
            self._rests_since = time.monotonic()

    def handle_websocket_upgrade(self) -> None:
        if self._status or not self._upgrades:
            return  # refused: what came with it goes no further
        self._upgraded, self._head_since, self._body_since = True, None, 0.0
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.guard.fills(self)

    def check(self, now: float, request_seconds: float, write_seconds: float) -> None:
        """Cut the connection if its request does not become whole, or its answer is not read."""
        unread = self.unread
        if unread == 0 or unread < self._unread_before:
            self.read_at = now
        self._unread_before = unread
        if now - self.read_at > write_seconds:
            self.transport.abort()
        elif self._head_since is not None and now - self._head_since > request_seconds:
            self._answer(408)
        elif self._body_since and not self._upgraded:
            allowed = request_seconds + self._body_bytes / BODY_BYTES_PER_SECOND
            if now - self._body_since > allowed and not self.flow.read_paused:
                self._answer(408)
        elif self._rests_since is not None and now - self._rests_since > self.timeout_keep_alive:
            self.transport.close()

    def _answer(self, status: int) -> None:
        """Refuse what comes, and close."""
        self._status = status
        text = ANSWERS[status]
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.tell()
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s" % (status, PHRASES[status], len(text), text)
            )
        if self.transport.can_write_eof() and self.guard.lingers():
            self.transport.write_eof()  # closed with bytes unread, it would be reset, and the answer lost
            self.loop.call_later(LINGER_SECONDS, self._leave)
        else:
            self.transport.close()

    def _leave(self) -> None:
        self.guard.lingering -= 1
        self.transport.close()


def _parsed(url: bytes) -> tuple[str, bytes, bytes]:
    """The path, the path as it was sent, and the query of a request's target."""
    parts = httptools.parse_url(url)
    path = parts.path.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, parts.path, parts.query or b""


_known = lru_cache(MAX_KNOWN)(_parsed)


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
