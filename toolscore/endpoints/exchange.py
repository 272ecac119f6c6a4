"""One request on a connection of the HTTP port and its answer: uvicorn's, with a short way for what is whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

__all__ = ["BY_NAME", "Exchange"]

BY_NAME = "toolscore.headers"
"""The member of a scope with a request's headers by their names in lower case; of several with one name the last."""


class Exchange(RequestResponseCycle):
    """One request and its answer. Applications know it as the `receive` and `send` of ASGI.

    Most requests come whole and are answered whole: `whole_body` and `answer` are for those, and cost no event, no
    message and no walk through headers that are the same each time.

    Args:
        on_response: called once the answer is written.
    """

    access_log = False
    logger = logging.getLogger("uvicorn.error")
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0

    _usual_of: Sequence[tuple[bytes, bytes]] | None = None
    _usual = b""

    def __init__(
        self,
        scope: Any,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        on_response: Callable[[], None],
        *,
        expect_100_continue: bool,
        keep_alive: bool,
    ) -> None:
        # Not uvicorn's `__init__`: what begins the same each time stands in the class.
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.on_response = on_response
        self.waiting_for_100_continue = expect_100_continue
        self.keep_alive = keep_alive
        self.body: Any = b""
        self._has_news = False
        self._event: asyncio.Event | None = None

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """What `receive` waits for."""
        if self._event is None:
            self._event = asyncio.Event()
            if self._has_news:
                self._event.set()
        return self._event

    def tell(self) -> None:
        """There is something to receive."""
        self._has_news = True
        if self._event is not None:
            self._event.set()

    def take_body(self, piece: bytes) -> None:
        """Some of the body has come."""
        if not self.body:
            self.body = piece
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += piece
        self.tell()

    def whole_body(self) -> bytes | None:
        """What `receive` would give, of a request that has come whole and was not received yet; `None`: wait for it."""
        if self.more_body or self._event is not None or not self._has_news:
            return None
        if self.disconnected or self.response_complete or self.waiting_for_100_continue:
            return None
        body, self.body = bytes(self.body), b""
        self._has_news = False
        self.flow.resume_reading()
        return body

    async def answer(self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """What `send` does with a JSON answer that is whole, in one write."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if Exchange._usual_of is not self.default_headers:
            Exchange._usual = b"".join(b"%b: %b\r\n" % each for each in self.default_headers)
            Exchange._usual_of = self.default_headers
        parts = [
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b"
            % (STATUS_LINE[status], len(body), Exchange._usual)
        ]
        for name, value in headers:
            if HEADER_VALUE_RE.search(value):
                raise RuntimeError("Invalid HTTP header value.")
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.waiting_for_100_continue = False
        self.response_started = self.response_complete = True
        self.transport.write(b"".join(parts))
        self.tell()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
