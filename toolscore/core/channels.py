"""A WebSocket as an MCP transport, over TCP or a Unix socket: sub-protocol `mcp`, one JSON-RPC object a text frame.

The official SDK dropped its WebSocket transport in 2.0; this one interoperates with the client and server of 1.x.
Knows bytes and frames, not what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from websockets.asyncio.client import connect, unix_connect
from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State
from websockets.typing import Subprotocol

from toolscore.core.hosts import is_loopback
from toolscore.core.jsonrpc import NotSent
from toolscore.core.models import shown_url

__all__ = ["MAX_FRAME_BYTES", "Channel", "HandshakeRefused", "WebSocketChannel", "dial"]

MESSAGES_A_TURN = 20
MAX_FRAME_BYTES = 4 * 1024 * 1024
"""The bound of docs/wire.md; a larger frame closes the connection with 1009, as RFC 6455 has it."""


class HandshakeRefused(ConnectionError):
    """Somebody is there, and opens no WebSocket.

    Attributes:
        status: of the HTTP answer.
        text: what the answer says.
    """

    def __init__(self, url: str, status: int, text: str) -> None:
        super().__init__(f"cannot connect to {shown_url(url)}: it answered HTTP {status}")
        self.status = status
        self.text = text


def _why(exc: Exception) -> str:
    if isinstance(exc, InvalidURI):
        return f"it is no address of a WebSocket ({exc.msg})"  # its own text has all of the address
    return str(exc) or type(exc).__name__


class Channel(Protocol):
    """Whole messages, both ways.

    Attributes:
        closed_reason: why `messages` ended.
    """

    closed_reason: str

    async def send(self, message: bytes) -> None: ...

    async def try_send(self, message: bytes) -> None: ...

    def messages(self) -> AsyncIterator[bytes]: ...


class WebSocketChannel:
    """Whole messages over one WebSocket; its errors are those of a plain connection."""

    def __init__(self, socket: Connection) -> None:
        self._socket = socket

    async def send(self, message: bytes) -> None:
        """Write one message, once the other side has read most of those before.

        Raises:
            NotSent: the socket is closed. ConnectionResetError: it closed meanwhile.
        """
        await self._socket.drain()
        if self._socket.state is not State.OPEN:
            raise NotSent(self.closed_reason)
        try:
            await self._socket.send(message, text=True)
        except ConnectionClosed as exc:
            raise ConnectionResetError(_reason(exc)) from exc

    async def try_send(self, message: bytes) -> None:
        """Write one message, unless the socket is closed."""
        with contextlib.suppress(ConnectionResetError):
            await self.send(message)

    async def messages(self) -> AsyncIterator[bytes]:
        """What arrives, until the socket closes; `closed_reason` then says why."""
        for number in itertools.count(1):
            if number % MESSAGES_A_TURN == 0:
                await asyncio.sleep(0)  # those that have come already are handed out without a wait
            try:
                message = await self._socket.recv(decode=False)
            except ConnectionClosed as exc:
                self.closed_reason = _reason(exc)
                return
            yield message if isinstance(message, bytes) else message.encode()

    closed_reason = "the WebSocket closed"

    async def feed(self, take: Callable[[bytes], None], closed: Callable[[str], None]) -> None:
        """Hand on what arrives until the socket closes.

        Args:
            take: gets each message.
            closed: gets the reason of the end; not called if this is cancelled.
        """
        async for message in self.messages():
            take(message)
        closed(self.closed_reason)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with the handshake of RFC 6455. Idempotent."""
        await self._socket.close(code, reason)


def _reason(exc: ConnectionClosed) -> str:
    closing = exc.rcvd or exc.sent
    if closing is None:
        return "the WebSocket broke off"
    return f"the WebSocket closed ({closing.code}{' ' + closing.reason if closing.reason else ''})"


@asynccontextmanager
async def dial(
    url: str,
    *,
    subprotocol: str | None,
    headers: Mapping[str, str] | None = None,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    tls: ssl.SSLContext | None = None,
    ping_seconds: float = 20,
    dead_seconds: float = 60,
) -> AsyncIterator[WebSocketChannel]:
    """Connect to a WebSocket server.

    Args:
        url: `ws://host:port/path`, `wss://…`, or `ws+unix:///path.sock` (with `:/resource` behind it, `/` by default).
        tls: of a `wss` address; `None`: as usual.

    Raises:
        ConnectionError: nobody there, or no WebSocket there (`HandshakeRefused`).
    """
    subprotocols = [Subprotocol(subprotocol)] if subprotocol else None
    common: dict[str, Any] = {
        "subprotocols": subprotocols,
        "additional_headers": headers,
        "max_size": max_frame_bytes,
        "compression": None,  # costs more than it saves between machines that stand side by side
        "ping_interval": ping_seconds,
        "ping_timeout": dead_seconds - ping_seconds,
        "open_timeout": 10,
        "close_timeout": 2,
    }
    try:
        if url.startswith("ws+unix://"):
            path, _, resource = unquote(urlsplit(url).path).partition(":")
            socket = await unix_connect(path, f"ws://localhost{resource or '/'}", **common)
        else:
            on_this_machine = is_loopback(urlsplit(url).hostname or "")
            if tls is not None and url.startswith("wss"):
                common["ssl"] = tls
            socket = await connect(url, proxy=None if on_this_machine else True, **common)
    except InvalidStatus as exc:
        text = bytes(exc.response.body or b"").decode("utf-8", "replace")
        raise HandshakeRefused(url, exc.response.status_code, text) from exc
    except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as exc:
        raise ConnectionError(f"cannot connect to {shown_url(url)}: {_why(exc)}") from exc
    try:
        yield WebSocketChannel(socket)
    finally:
        await socket.close()
