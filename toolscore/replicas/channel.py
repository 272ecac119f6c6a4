"""Sealed messages between gateways that share a key, over TCP or, on one machine, a Unix socket: who has it not can
neither read, write nor repeat one.

Each side sends `key id, nonce`; both make one key of it (HKDF). From then on a message is `length, AES-256-GCM`, its
nonce the number of the message. The first that can be opened proves who is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as socketlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from toolscore.core.seal import BadSeal, KeyRing

__all__ = ["SealedChannel", "dial_sealed", "listen_sealed"]

MAGIC = b"TSH1"
NONCE_BYTES = 16
HELLO_BYTES = len(MAGIC) + 4 + NONCE_BYTES
HELLO_SECONDS = 5.0
MAX_UNKNOWN = 64
"""Connections at a time that have not said yet who they are."""
PURPOSE = "hop"
HIGH_BYTES = 4 * 1024 * 1024
"""Unsent bytes from which on whoever sends waits."""
OVERHEAD = 16
FIRST_BYTES = 64
"""Of the first message, which shows that whoever dialled has the key."""
SILENT_MS = 5000
"""A machine that acknowledges nothing for so long is gone. One whose gateway stalls still acknowledges."""


class SealedChannel(asyncio.Protocol):
    """One connection. `take` gets each message that arrives; `closed` is called once, with the reason.

    Args:
        dialled: whether this side opened it.
        greeted: called when the other side may be spoken to: one that dialled has shown with its first message that
            it has the key.
    """

    def __init__(
        self, ring: KeyRing, max_bytes: int, *, dialled: bool, greeted: Callable[[SealedChannel], None]
    ) -> None:
        self._ring = ring
        self._max = max_bytes
        self._dialled = dialled
        self._greeted = greeted
        self._nonce = os.urandom(NONCE_BYTES)
        self._buffer = bytearray()
        self._sealer: Any = None
        self._sent = self._received = 0
        self._free = asyncio.Event()
        self._free.set()
        self._transport: asyncio.Transport | None = None
        self.take: Callable[[bytes], None] = lambda message: None
        self.closed: Callable[[str], None] = lambda reason: None
        self.reason: str | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self.reason is not None:  # it was given up before it was there
            transport.abort()
            return
        _notice_silence(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(HIGH_BYTES)
        if self._dialled:
            transport.write(MAGIC + self._ring.key_id + self._nonce)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if self._sealer is None and not self._take_hello():
                return
            self._take_messages()
        except BadSeal as exc:
            self.end(str(exc))

    def _take_hello(self) -> bool:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not self._buffer.startswith(MAGIC[: len(self._buffer)]):
            raise BadSeal("it is no gateway")
        if len(self._buffer) < HELLO_BYTES:
            return False
        key_id, other = bytes(self._buffer[4:8]), bytes(self._buffer[8:HELLO_BYTES])
        del self._buffer[:HELLO_BYTES]
        if not self._dialled:
            if key_id not in self._ring:
                raise BadSeal("its key is not in the ring")
            assert self._transport is not None
            self._transport.write(MAGIC + key_id + self._nonce)
        salt = self._nonce + other if self._dialled else other + self._nonce
        self._sealer = AESGCM(self._ring.derived(key_id, salt, PURPOSE))
        if self._dialled:
            self._greeted(self)
        return True

    def _take_messages(self) -> None:
        from cryptography.exceptions import InvalidTag

        buffer = self._buffer
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            most = self._max if self._dialled or self._received else FIRST_BYTES
            if size > most + OVERHEAD:
                raise BadSeal(f"a message has {size:,} bytes, and {most:,} are taken")
            if len(buffer) - start < 4 + size:
                break
            sealed = bytes(buffer[start + 4 : start + 4 + size])
            start += 4 + size
            try:
                message = self._sealer.decrypt(self._number(not self._dialled, self._received), sealed, None)
            except InvalidTag:
                raise BadSeal("a message was changed, or its key is another") from None
            if self._received == 0 and not self._dialled:
                self._greeted(self)
            self._received += 1
            self.take(message)
        del buffer[:start]

    @staticmethod
    def _number(by_dialler: bool, count: int) -> bytes:
        return (b"dial" if by_dialler else b"take") + count.to_bytes(8, "big")

    def write(self, message: bytes) -> None:
        """Send without waiting.

        Raises:
            ConnectionResetError: the connection is gone.
        """
        if self.reason is not None or self._transport is None or self._sealer is None:
            raise ConnectionResetError(self.reason or "it is not open yet")
        sealed: bytes = self._sealer.encrypt(self._number(self._dialled, self._sent), message, None)
        self._sent += 1
        self._transport.write(len(sealed).to_bytes(4, "big") + sealed)

    async def send(self, message: bytes) -> None:
        """Send; waits while the other side does not read.

        Raises:
            ConnectionResetError: the connection is gone.
        """
        self.write(message)
        if not self._free.is_set():
            await self._free.wait()

    @property
    def full(self) -> bool:
        """Whether the other side does not read."""
        return not self._free.is_set()

    def pause_writing(self) -> None:
        self._free.clear()

    def resume_writing(self) -> None:
        self._free.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(str(exc) if exc is not None else "the other gateway closed the connection")

    def end(self, reason: str) -> None:
        """Close. Idempotent."""
        if self._transport is not None:
            self._transport.abort() if self._sealer is None else self._transport.close()
        self._ended(reason)

    def _ended(self, reason: str) -> None:
        self._free.set()
        if self.reason is None:
            self.reason = reason
            self.closed(reason)


def _notice_silence(socket: Any) -> None:
    """Have the kernel end a connection whose other machine is gone without a word."""
    with contextlib.suppress(OSError, AttributeError):
        for level, option, value in (
            (socketlib.SOL_SOCKET, socketlib.SO_KEEPALIVE, 1),
            (socketlib.IPPROTO_TCP, socketlib.TCP_KEEPIDLE, 2),
            (socketlib.IPPROTO_TCP, socketlib.TCP_KEEPINTVL, 1),
            (socketlib.IPPROTO_TCP, socketlib.TCP_KEEPCNT, 3),
            (socketlib.IPPROTO_TCP, socketlib.TCP_USER_TIMEOUT, SILENT_MS),
        ):
            socket.setsockopt(level, option, value)


@asynccontextmanager
async def listen_sealed(
    address: str, ring: KeyRing, max_bytes: int, opened: Callable[[SealedChannel], None]
) -> AsyncIterator[int]:
    """Take connections of other gateways. Yields the port, 0 where there is none.

    Args:
        address: `host:port`, or the path of a Unix socket.
        opened: gets each that has shown that it has a key; it sets `take` and `closed`.

    Raises:
        OSError: the address cannot be listened on.
    """
    unknown: dict[SealedChannel, asyncio.TimerHandle] = {}
    open_ones: set[SealedChannel] = set()
    loop = asyncio.get_running_loop()

    def greeted(channel: SealedChannel) -> None:
        timer = unknown.pop(channel, None)
        if timer is not None:
            timer.cancel()
        open_ones.difference_update([one for one in open_ones if one.reason is not None])
        open_ones.add(channel)
        opened(channel)

    def coming() -> SealedChannel:
        channel = SealedChannel(ring, max_bytes, dialled=False, greeted=greeted)
        channel.closed = lambda reason: lost(channel)
        if len(unknown) >= MAX_UNKNOWN:
            oldest = next(iter(unknown))
            unknown.pop(oldest).cancel()
            oldest.end("too many say nothing")
        unknown[channel] = loop.call_later(HELLO_SECONDS, silent, channel)
        return channel

    def lost(channel: SealedChannel) -> None:
        timer = unknown.pop(channel, None)
        if timer is not None:
            timer.cancel()

    def silent(channel: SealedChannel) -> None:
        unknown.pop(channel, None)
        channel.end("it said nothing")

    if address.startswith("/"):
        server, port = await loop.create_unix_server(coming, address), 0
    else:
        server = await loop.create_server(coming, *_host_and_port(address))
        port = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        for timer in unknown.values():
            timer.cancel()
        for channel in (*unknown, *open_ones):
            channel.end("the gateway stops")


async def dial_sealed(address: str, ring: KeyRing, max_bytes: int) -> SealedChannel:
    """Connect to another gateway.

    Args:
        address: as of `listen_sealed`.

    Raises:
        OSError: nobody there, or nobody with a key of ours.
    """
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()

    def greeted(_: SealedChannel) -> None:
        if not there.done():
            there.set_result(None)

    def lost(reason: str) -> None:
        if not there.done():
            there.set_exception(ConnectionResetError(reason))

    async with asyncio.timeout(HELLO_SECONDS):
        dialling = lambda: SealedChannel(ring, max_bytes, dialled=True, greeted=greeted)  # noqa: E731
        if address.startswith("/"):
            _, channel = await loop.create_unix_connection(dialling, address)
        else:
            _, channel = await loop.create_connection(dialling, *_host_and_port(address))
        channel.closed = lost
        try:
            if channel.reason is not None:
                lost(channel.reason)
            await there
        except BaseException:
            channel.end("given up")
            raise
    return channel


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
