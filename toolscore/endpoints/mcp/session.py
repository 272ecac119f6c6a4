"""One client of the session era over HTTP, and what is kept of it on this gateway."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import (
    METHOD_NOT_FOUND,
    Frame,
    RemoteError,
    notification_frame,
    remote_error,
    request_frame,
)
from toolscore.core.models import Principal
from toolscore.endpoints.mcp.conversation import Conversation
from toolscore.endpoints.mcp.listener import Listener
from toolscore.endpoints.mcp.server import McpServer
from toolscore.endpoints.mcp.session_ids import Opened
from toolscore.endpoints.mcp.shared_sessions import Kept, SharedSessions
from toolscore.endpoints.mcp.sse import Stream
from toolscore.upstreams.caller import client_named

__all__ = ["Session"]

RESUMABLE_SINCE = "2025-11-25"
"""From this revision on a stream begins with an event that has an id and no data: it can be resumed (SEP-1699)."""
AGAIN_SECONDS = 0.5
REACH_SECONDS = 10.0
"""How long a question outside of any request waits for a stream to its client."""
NUMBER_BITS = 40
"""Of a stream's number: no other gateway gives the same. Those of a session's own streams are even."""
KEPT_STREAMS = 16
KEPT_BYTES = 1024 * 1024
"""What a session keeps of streams that have ended; larger answers cannot be fetched again once they were sent."""


class Session(Conversation):
    """One client of the session era over HTTP, on this gateway.

    Args:
        opened: what was settled when its client opened it.
        shared: tells other gateways.
    """

    def __init__(
        self, gateway: Gateway, server: McpServer, opened: Opened, principal: Principal, shared: SharedSessions
    ) -> None:
        super().__init__(principal, opened.capabilities, client_named(opened.name))
        self.name = opened.name
        self.server = server
        self.server_id = opened.server_id
        self.version = opened.version
        self.resumable = opened.version >= RESUMABLE_SINCE
        self.is_stale = False
        """What its client set may be another thing by now."""
        self.used = time.monotonic()
        self.calls: dict[Any, asyncio.Task[Any]] = {}
        self.asked: dict[str, asyncio.Future[Raw]] = {}
        self.taken: dict[str, asyncio.Future[None]] = {}
        self.own = Stream(secrets.randbits(NUMBER_BITS) << 1, self.resumable)
        self.streams: OrderedDict[int, Stream] = OrderedDict({self.own.number: self.own})
        self._shared = shared
        self.listener = Listener(gateway, server, self, self.tell, self.own.end)
        self._input_seconds = gateway.settings.current.limits.input_seconds
        self._questions = itertools.count(1)

    @property
    def busy(self) -> bool:
        return bool(self.calls) or self.own.readers > 0

    def open_stream(self, request_id: int | str) -> Stream:
        """A stream for the response to one request."""
        stream = Stream(secrets.randbits(NUMBER_BITS) << 1 | 1, self.resumable)
        if self.resumable and self._shared.is_shared and self._shared.mirrors is not None:
            stream.mirror = self._shared.mirrors.write(self.name, stream.number, request_id)
        self.streams[stream.number] = stream
        self.tidy()
        return stream

    async def read_elsewhere(self, number: int, after: int) -> AsyncGenerator[bytes] | None:
        """A stream of this session that another gateway began; `None`: it is not kept."""
        mirrors = self._shared.mirrors
        return await mirrors.read(self.name, number, after) if mirrors is not None else None

    async def is_read_elsewhere(self, number: int) -> bool:
        """Whether another gateway sends a stream that this one began."""
        mirrors = self._shared.mirrors
        return mirrors is not None and await mirrors.is_read(self.name, number)

    def tidy(self) -> None:
        """Keep few of the streams that have ended, for clients that come back to them, and none for others."""
        ended = [stream for stream in self.streams.values() if stream.ended and not stream.readers]
        size = sum(stream.size for stream in ended)
        while ended and (len(ended) > KEPT_STREAMS or size > KEPT_BYTES or not self.resumable):
            oldest = ended.pop(0)
            size -= oldest.size
            del self.streams[oldest.number]

    def tell(self, method: str, params: Any) -> None:
        message = notification_frame(method, params)
        if params is None:  # each gateway tells of lists itself
            self.own.put_once(message)
            return
        if not self.own.readers:
            self._shared.tell_own(self.name, message)
        if method == "notifications/resources/updated":
            self.own.put_once(message)
        else:
            self.own.put(message)

    async def keep_level(self) -> None:
        """The log level counts wherever the client comes next."""
        await self._shared.keep(self.name, level=self.log_level)

    async def keep_watching(self, uri: str, watched: bool) -> None:
        """What the client watches counts wherever it comes next."""
        await self._shared.watch(self.name, uri, watched)

    async def take(self, kept: Kept) -> None:
        """Take what the client set elsewhere."""
        self.log_level = kept.log_level
        if kept.capabilities is not None:
            self.capabilities = kept.capabilities
        if self.listener is None:
            return
        for uri in set(self.listener.watched) - set(kept.watched):
            await self.listener.unwatch(uri)
        for uri in kept.watched:
            with contextlib.suppress(ToolScoreError):
                await self.listener.watch(uri)

    async def ask(self, method: str, params: Raw | None) -> Any:
        """Over the session's own stream, or the response of a request that is under way."""
        deadline = time.monotonic() + REACH_SECONDS
        while True:
            if self.own.readers:
                return await self.question(self.own, method, params)
            for stream in self.streams.values():
                if stream.readers and not stream.ended:
                    return await self.question(stream, method, params)
            if self._shared.is_shared:  # another gateway may have its stream
                return await self.question(None, method, params)
            if time.monotonic() > deadline:
                raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"the client keeps no stream open: {method}"})
            await asyncio.sleep(0.05)

    async def question(self, stream: Stream | None, method: str, params: Raw | None) -> Any:
        """Put a request to the client on one of its streams, and wait for its answer.

        Args:
            stream: `None`: the session's own, of which another gateway may have the reader.
        """
        instance = self._shared.instance
        number = f"toolscore-{instance}{'-' if instance else ''}{next(self._questions)}"
        answer = self.asked[number] = asyncio.get_running_loop().create_future()

        def put(message: bytes, ack: str | None = None) -> None:
            if stream is not None:
                stream.put(message)
            elif not self.own.readers:
                self._shared.tell_own(self.name, message, ack)
            else:  # the client opened its stream here meanwhile
                self.own.put_once(message)
                if (taken := self.taken.get(number)) is not None and not taken.done():
                    taken.set_result(None)

        put(request_frame(number, method, params), number)
        try:
            if stream is None:
                await self._taken(number, answer, lambda: put(request_frame(number, method, params), number))
            async with asyncio.timeout(self._input_seconds):
                return await answer
        except TimeoutError:
            cancelled = {"requestId": number, "reason": "it took too long"}
            put(notification_frame("notifications/cancelled", cancelled))
            raise RemoteError({"code": -32603, "message": f"the client did not answer {method} in time"}) from None
        except asyncio.CancelledError:
            put(notification_frame("notifications/cancelled", {"requestId": number}))
            raise
        finally:
            self.asked.pop(number, None)

    async def _taken(self, number: str, answer: asyncio.Future[Raw], again: Callable[[], None]) -> None:
        """Wait until the gateway that has the client's stream says that it put a question there; say it again until
        then, as the client may open its stream a moment later, here or elsewhere.
        """
        taken = self.taken[number] = asyncio.get_running_loop().create_future()
        try:
            both: set[asyncio.Future[Any]] = {taken, answer}
            for _ in range(int(REACH_SECONDS / AGAIN_SECONDS)):
                done, _ = await asyncio.wait(both, timeout=AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return
                again()
        finally:
            del self.taken[number]
        raise RemoteError({"code": METHOD_NOT_FOUND, "message": "the client keeps no stream open"})

    def answered(self, frame: Frame) -> bool:
        """Take the client's answer to a question. Returns whether it was waited for; otherwise it is dropped."""
        answer = self.asked.get(str(frame.id))
        if answer is None or answer.done():
            return False
        if isinstance(frame.error, Raw):
            answer.set_exception(remote_error(frame.error))
        elif isinstance(frame.result, Raw):
            answer.set_result(frame.result)
        return True

    def cancel(self, target: Any, *, pass_on: bool = True) -> None:
        """Take `notifications/cancelled` of the client.

        Args:
            target: the params.
            pass_on: what is not under way here may be so on another gateway.
        """
        given = target.get("requestId") if isinstance(target, dict) else None
        if not isinstance(given, int | str):
            return
        task = self.calls.get(given)
        if task is not None:
            task.cancel()
        elif pass_on:
            self._shared.tell("session/cancelled", name=self.name, target={"requestId": given})

    def end(self) -> None:
        """End what is under way, and the streams."""
        for task in self.calls.values():
            task.cancel()
        for stream in self.streams.values():
            stream.end()
        for answer in self.asked.values():
            if not answer.done():
                answer.set_exception(RemoteError({"code": -32600, "message": "the client has ended its session"}))
        if self.listener is not None:
            self.listener.close()
            self.listener = None  # it knows us: what knows one another waits for the collector
