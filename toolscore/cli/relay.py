"""One MCP client's messages, carried to a gateway and back, whatever becomes of the connection between them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from msgspec import UNSET, Raw, json

from toolscore.cli.terminal import say
from toolscore.core.channels import HandshakeRefused, WebSocketChannel, dial
from toolscore.core.errors import InvalidRequest, OutcomeUnknown, PayloadTooLarge, ToolScoreError, UpstreamUnavailable
from toolscore.core.jsonrpc import (
    Frame,
    RequestId,
    decode,
    decode_frames,
    encode,
    error_frame,
    notification_frame,
    request_frame,
)

__all__ = ["MAX_LINE_BYTES", "Relay"]

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Of the gateway, whose own bounds are lower."""
MAX_PENDING = 10_000
START_SECONDS = 30.0
"""For how long requests wait for a gateway that starts, or comes back."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
LAST_SECONDS = 30.0
"""For how long answers are waited for once stdin has ended."""
CHANGED = ("tools", "prompts", "resources")
OURS = "toolscore-stdio-"
"""What ids of our own requests begin with."""


class Asked:
    """A request of the client that has no answer yet."""

    __slots__ = ("frame", "method", "sent")

    def __init__(self, method: str, frame: bytes) -> None:
        self.method = method
        self.frame = frame
        self.sent = False


class Relay:
    """Relays one client's messages to a gateway, whatever becomes of the connection.

    Args:
        address: `ws://…/mcp` of the gateway.
        headers: of the handshake.
        write: puts one line before the client; may block.
        start: starts a gateway, or says why the one it started has ended; is told whether one has answered since it
            was asked last. `None`: none is started.
    """

    def __init__(
        self,
        address: str,
        headers: dict[str, str],
        write: Callable[[bytes], None],
        start: Callable[[bool], str | None] | None = None,
    ) -> None:
        self._address = address
        self._headers = headers
        self._write_line = write
        self._start = start
        self._writing = asyncio.Lock()
        self._channel: WebSocketChannel | None = None
        self._up = asyncio.Event()
        """Set while a gateway answers, or while it is known that none does."""
        self._failure: ToolScoreError | None = None
        self._answered = False
        """Whether a gateway took the session since the last start."""
        self._pending: dict[RequestId, Asked] = {}
        self._initialize: Raw | None = None
        self._initialized = False
        self._level: Raw | None = None
        self._watched: dict[bytes, Raw] = {}
        self._numbers = 0
        self._theirs: dict[str, RequestId] = {}
        """Requests of the gateway that the client has not answered: our id → its id."""

    async def run(self, lines: Callable[[], bytes]) -> None:
        """Relay until the client's input ends and what it asked is answered.

        Args:
            lines: returns the next line, empty at the end; may block.
        """
        keeping = asyncio.create_task(self._keep())
        reading = asyncio.create_task(self._read(lines))
        try:
            await asyncio.wait({keeping, reading}, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    while not keeping.done() and any(one.method != "subscriptions/listen" for one in self._waiting()):
                        await asyncio.sleep(0.02)
                    async with self._writing:  # the last answer may still be on its way out
                        pass
        finally:
            reading.cancel()
            keeping.cancel()
            await asyncio.gather(keeping, reading, return_exceptions=True)

    def _waiting(self) -> list[Asked]:
        return list(self._pending.values())

    # From the client

    async def _read(self, lines: Callable[[], bytes]) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def pump() -> None:
            with contextlib.suppress(Exception):  # the loop is gone: we are ending
                while line := lines():
                    asyncio.run_coroutine_threadsafe(self.from_client(line), loop).result()
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=pump, daemon=True, name="stdin").start()
        await ended.wait()

    async def from_client(self, line: bytes) -> None:
        """Take one line. Waits while the gateway does not read, or is not there yet."""
        if not line.strip():
            return
        try:
            if len(line) > MAX_LINE_BYTES:
                raise PayloadTooLarge(f"a message of {len(line):,} bytes is over the bound of {MAX_LINE_BYTES:,}")
            frames = decode_frames(line.strip())
        except ToolScoreError as exc:
            await self._tell(error_frame(None, {**exc.rpc_error(), "code": (exc.data or {}).get("rpc_code", -32600)}))
            return
        for frame in frames:
            await self._take(frame)

    async def _take(self, frame: Frame) -> None:
        has_id = isinstance(frame.id, int | str)
        if isinstance(frame.method, str) and has_id:
            await self._ask(frame, frame.method)
        elif isinstance(frame.method, str):
            self._note(frame.method, frame)
            if frame.method == "notifications/cancelled":
                self._pending.pop(_cancelled(frame), None)
            if await self._there() is None:
                await self._send(encode(frame))
        elif has_id and (theirs := self._theirs.pop(str(frame.id), None)) is not None:
            frame.id = theirs
            await self._send(encode(frame))

    async def _ask(self, frame: Frame, method: str) -> None:
        assert isinstance(frame.id, int | str)
        failure = await self._there()
        if failure is None and len(self._pending) >= MAX_PENDING:
            failure = UpstreamUnavailable(f"{MAX_PENDING:,} requests wait for answers")
        if failure is not None:
            await self._tell(error_frame(frame.id, failure.rpc_error()))
            return
        self._note(method, frame)
        asked = self._pending[frame.id] = Asked(method, encode(frame))
        await self._deliver(asked)

    async def _there(self) -> ToolScoreError | None:
        """Wait until a gateway answers. Returns why none does."""
        await self._up.wait()
        return self._failure

    def _note(self, method: str, frame: Frame) -> None:
        """Remember what makes the session, to make it anew with another gateway."""
        params = frame.params if isinstance(frame.params, Raw) else Raw(b"{}")
        if method == "initialize":
            self._initialize = params
        elif method == "notifications/initialized":
            self._initialized = True
        elif method == "logging/setLevel":
            self._level = params
        elif method == "resources/subscribe":
            self._watched[bytes(params)] = params
        elif method == "resources/unsubscribe":
            self._watched.pop(bytes(params), None)

    async def _deliver(self, asked: Asked) -> None:
        asked.sent = True
        await self._send(asked.frame)

    async def _send(self, message: bytes) -> None:
        if self._channel is not None:
            await self._channel.try_send(message)

    # From the gateway

    async def _keep(self) -> None:
        """Stay connected. Returns when the client reads no more."""
        pause, down_since = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                async with dial(
                    self._address,
                    subprotocol="mcp",
                    headers=self._headers,
                    max_frame_bytes=MAX_MESSAGE_BYTES,
                ) as channel:
                    await self._resume(channel)
                    pause, down_since = FIRST_PAUSE, time.monotonic()
                    async for message in channel.messages():
                        await self._from_gateway(message)
                    reason: ConnectionError = ConnectionResetError(channel.closed_reason)
                    down_since = time.monotonic()
            except BrokenPipeError:
                return
            except ConnectionError as exc:
                reason = exc
            await self._down(reason, time.monotonic() - down_since)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _resume(self, channel: WebSocketChannel) -> None:
        """Bring a new connection to where the last one was.

        Raises:
            ConnectionError: it broke, or the gateway does not take the session.
        """
        anew = self._initialized
        if anew:
            await self._again(channel, "initialize", self._initialize)
            await channel.send(notification_frame("notifications/initialized"))
            if self._level is not None:
                await self._again(channel, "logging/setLevel", self._level)
            for params in list(self._watched.values()):
                with contextlib.suppress(HandshakeRefused):  # it may be gone with its server
                    await self._again(channel, "resources/subscribe", params)
        self._channel, self._failure, self._answered = channel, None, True
        self._up.set()
        for asked in self._waiting():
            if not asked.sent:
                await self._deliver(asked)
        if anew:
            for kind in CHANGED:
                await self._tell(notification_frame(f"notifications/{kind}/list_changed"))

    async def _again(self, channel: WebSocketChannel, method: str, params: Raw | None) -> None:
        self._numbers += 1
        ours = f"{OURS}{self._numbers}"
        await channel.send(request_frame(ours, method, params))
        async for message in channel.messages():
            for frame in _read(message):
                if frame.id == ours:
                    if isinstance(frame.error, Raw):
                        raise HandshakeRefused(self._address, 400, bytes(frame.error).decode("utf-8", "replace"))
                    return
        raise ConnectionResetError(channel.closed_reason)

    async def _from_gateway(self, message: bytes) -> None:
        for frame in _read(message):
            if isinstance(frame.method, str) and isinstance(frame.id, int | str):
                self._numbers += 1
                ours = f"{OURS}{self._numbers}"
                self._theirs[ours], frame.id = frame.id, ours
                await self._tell(encode(frame))
                continue
            if frame.method is UNSET and isinstance(frame.id, int | str):
                self._pending.pop(frame.id, None)
            if frame.method == "notifications/cancelled":
                message = self._cancelled(frame, message)
            await self._tell(message)

    def _cancelled(self, frame: Frame, message: bytes) -> bytes:
        """The gateway wants no answer to a request of its own any more: told under the id that the client knows."""
        params = decode(frame.params) if isinstance(frame.params, Raw) else None
        wanted = params.get("requestId") if isinstance(params, dict) else None
        ours = next((ours for ours, theirs in self._theirs.items() if theirs == wanted), None)
        if ours is None or not isinstance(params, dict):
            return message
        del self._theirs[ours]
        return notification_frame("notifications/cancelled", {**params, "requestId": ours})

    async def _tell(self, message: bytes) -> None:
        """Put one message before the client, in one line.

        Raises:
            BrokenPipeError: it reads no more.
        """
        line = message.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"
        async with self._writing:
            await asyncio.to_thread(self._write_line, line)

    async def _down(self, reason: ConnectionError, seconds: float) -> None:
        """No gateway is connected: what was under way has ended, what waits goes on waiting, for a while."""
        self._channel = None
        answered, self._answered = self._answered, False
        for request_id, asked in list(self._pending.items()):
            if asked.sent and asked.method == "tools/call":
                del self._pending[request_id]
                unknown = OutcomeUnknown(f"the gateway went away during the call ({reason}): it may have happened")
                await self._tell(error_frame(request_id, unknown.rpc_error()))
            asked.sent = False
        for ours in self._theirs:
            await self._tell(notification_frame("notifications/cancelled", {"requestId": ours, "reason": str(reason)}))
        self._theirs.clear()
        failure = _failure_of(reason)
        if isinstance(reason, HandshakeRefused):
            seconds = START_SECONDS
        elif self._start is not None and (ended := self._start(answered)) is not None:
            failure, seconds = UpstreamUnavailable(ended), START_SECONDS
        if seconds < START_SECONDS:
            if self._failure is None:
                self._up.clear()
            return
        if self._failure is None:
            say(f"toolscore: {failure.message}")
        self._failure = failure
        self._up.set()
        for request_id in list(self._pending):
            del self._pending[request_id]
            await self._tell(error_frame(request_id, failure.rpc_error()))


def _cancelled(frame: Frame) -> RequestId:
    with contextlib.suppress(InvalidRequest, AttributeError):
        found = decode(frame.params).get("requestId") if isinstance(frame.params, Raw) else None
        if isinstance(found, int | str):
            return found
    return ""


def _read(message: bytes) -> list[Frame]:
    with contextlib.suppress(InvalidRequest):
        return decode_frames(message)
    return []


def _failure_of(reason: ConnectionError) -> ToolScoreError:
    """What the client is told of a gateway that cannot be reached."""
    if not isinstance(reason, HandshakeRefused):
        return UpstreamUnavailable(f"no gateway answers ({reason})", suggestion="start it with `toolscore serve`")
    try:
        told = json.decode(reason.text)["error"]
        said, suggestion = str(told["message"]), told.get("suggestion")
    except (ValueError, TypeError, KeyError, AttributeError):
        said, suggestion = reason.text.strip()[:300] or str(reason), None
    if reason.status == 401:
        suggestion = "set TOOLSCORE_API_KEY for this command (`toolscore keys create NAME` makes a key)"
    return UpstreamUnavailable(f"the gateway refuses: {said}", suggestion=suggestion)
