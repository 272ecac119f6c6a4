"""The one hop from a gateway to another: JSON-RPC over a sealed connection, dialled when it is first wanted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from msgspec import Raw

from toolscore.core.errors import InvalidRequest, MethodNotFound
from toolscore.core.jsonrpc import ConnectionLost, Params, RequestId, notification_frame
from toolscore.core.peer import Peer
from toolscore.core.seal import KeyRing
from toolscore.replicas.channel import SealedChannel, dial_sealed, listen_sealed
from toolscore.replicas.members import Members

__all__ = ["Hops", "Link", "is_late"]

log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 4096
"""Requests of one other gateway that are served at a time; each was admitted there."""
SKEW_SECONDS = 5.0
"""How far the clocks of two gateways may be apart."""

Served = Callable[["Link", Any], Awaitable[Any]]
Heard = Callable[["Link", Any], None]


class Link:
    """The conversation with one other gateway.

    Attributes:
        other: its id.
    """

    def __init__(self, channel: SealedChannel, hops: Hops, other: str) -> None:
        self.other = other
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._hops = hops
        self._peer = Peer(channel.send, on_request=self._asked, on_notification=self._told, max_in_flight=MAX_IN_FLIGHT)
        channel.take = self._peer.receive
        channel.closed = self._closed

    async def ask(self, method: str, params: Params) -> Raw:
        """Have the other gateway do something. Cancelling this cancels it there.

        Raises:
            RemoteError: it refused. ConnectionLost: it went away; `sent` says whether it may have begun.
        """
        return await self._peer.request(method, params)

    def tell(self, method: str, params: Any) -> None:
        """Tell it something. Never waits; one that does not read misses it."""
        if not self._channel.full:
            with contextlib.suppress(ConnectionResetError):
                self._channel.write(notification_frame(method, params))

    def end(self, reason: str) -> None:
        """Close the connection. Idempotent."""
        self._channel.end(reason)

    def _closed(self, reason: str) -> None:
        self._peer.close(f"the gateway {self.other} went away: {reason}")
        if not self.ended.done():
            self.ended.set_result(reason)
        self._hops.ended(self)

    async def _asked(self, method: str, params: Raw | None, _: RequestId) -> Any:
        known = self._hops.served.get(method)
        if known is None:
            raise MethodNotFound(f"gateways do not ask one another {method}: they may be of different releases")
        return await known[1](self, _read(params, known[0]))

    def _told(self, method: str, params: Raw | None) -> None:
        known = self._hops.heard.get(method)
        if known is not None:
            known[1](self, _read(params, known[0]))


class Hops:
    """The connections with other gateways. Use as `async with Hops(…) as hops`.

    Args:
        max_bytes: of one message.

    Attributes:
        served: method → the shape of its params, and what answers it.
        heard: method → the shape of its params, and what takes the notification.
    """

    def __init__(self, members: Members, ring: KeyRing, max_bytes: int) -> None:
        self.members = members
        self.served: dict[str, tuple[type[Any], Served]] = {}
        self.heard: dict[str, tuple[type[Any], Heard]] = {}
        self._ring = ring
        self._max = max_bytes
        self._links: dict[str, asyncio.Task[Link]] = {}
        self._on_end: list[Callable[[Link], None]] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Hops:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in list(self._links.values()):
            link = _result(task)
            if link is not None:
                link.end("the gateway stops")
            task.cancel()
        await self._stack.aclose()

    async def listen(self, address: str) -> int:
        """Take connections of others from now on. Returns the port.

        Args:
            address: `host:port`, or the path of a Unix socket.

        Raises:
            OSError: the address cannot be listened on.
        """
        return await self._stack.enter_async_context(listen_sealed(address, self._ring, self._max, self._take))

    def on_end(self, ended: Callable[[Link], None]) -> None:
        """Be told of each conversation that has ended."""
        self._on_end.append(ended)

    def ended(self, link: Link) -> None:
        """A conversation has ended."""
        task = self._links.get(link.other)
        if task is not None and _result(task) is link:
            del self._links[link.other]
        for told in self._on_end:
            told(link)

    def _take(self, channel: SealedChannel) -> None:
        def first(message: bytes) -> None:
            Link(channel, self, message.decode("ascii", "replace")[:64])  # which the channel keeps

        channel.take = first

    async def to(self, other: str) -> Link:
        """The conversation with another gateway.

        Raises:
            ConnectionLost: it cannot be reached.
        """
        task = self._links.get(other)
        if task is None or (task.done() and _result(task) is None):
            task = self._links[other] = asyncio.create_task(self._dial(other))
        try:
            return await asyncio.shield(task)
        except (OSError, TimeoutError) as exc:
            raise ConnectionLost(f"the gateway {other} cannot be reached: {exc or 'no answer'}", sent=False) from exc

    async def _dial(self, other: str) -> Link:
        address = self.members.others.get(other) if await self.members.is_there(other) else None
        if address is None:
            raise ConnectionResetError("it is not there any more")
        try:
            channel = await dial_sealed(address, self._ring, self._max)
        except (ConnectionRefusedError, FileNotFoundError):  # the socket of one that ended may be gone
            self.members.gone(other)
            raise
        channel.write(self.members.id.encode())
        return Link(channel, self, other)


def is_late(deadline: float | None) -> bool:
    """Whether what was asked need not be begun any more. `deadline`: Unix seconds, of the clock of who asked."""
    return deadline is not None and time.time() > deadline + SKEW_SECONDS


def _result(task: asyncio.Task[Link]) -> Link | None:
    """What a task has made, if it has."""
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


def _read(params: Raw | None, shape: type[Any]) -> Any:
    try:
        return msgspec.json.decode(params if params is not None else b"{}", type=shape)
    except msgspec.MsgspecError as exc:
        raise InvalidRequest(f"another gateway sent something else than was expected: {exc}") from exc
