"""What the processes of one machine share that have no Redis: the commands of it that we use, in the memory of one of
them, over a Unix socket. Lua runs there as it does in Redis, so that nothing above knows which of the two it has.

    process ── [number, command, arguments] ──► host
            ◄── [number, error, value], or [0, channel, message] for who listens ──

A frame is its length (4 bytes, big endian), and MessagePack.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from toolscore.stores.memory import Memory, as_bytes

__all__ = ["HostClient", "serve_memory"]

MAX_FRAME = 64 * 1024 * 1024
UNREAD_BYTES = 64 * 1024 * 1024
"""Of one process that does not read: then its connection ends."""
SWEEP_SECONDS = 1.0
AWAY = "the process that keeps what is shared went away"

_encoder = msgspec.msgpack.Encoder()
_asked = msgspec.msgpack.Decoder(tuple[int, str, list[Any]])
_said = msgspec.msgpack.Decoder(tuple[int, Any, Any])


class _Frames:
    """Frames out of what arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes) -> list[bytes]:
        """The frames that are whole now.

        Raises:
            ValueError: one is too large.
        """
        self._buffer += data
        found, at = [], 0
        while len(self._buffer) - at >= 4:
            size = int.from_bytes(self._buffer[at : at + 4], "big")
            if size > MAX_FRAME:
                raise ValueError(f"a frame has {size:,} bytes")
            if len(self._buffer) - at - 4 < size:
                break
            found.append(bytes(self._buffer[at + 4 : at + 4 + size]))
            at += 4 + size
        del self._buffer[:at]
        return found


def _frame(value: Any) -> bytes:
    content = _encoder.encode(value)
    return len(content).to_bytes(4, "big") + content


class _Served(asyncio.Protocol):
    """One process that asks."""

    def __init__(self, memory: Memory, all_open: set[_Served]) -> None:
        self._memory = memory
        self._open = all_open
        self._frames = _Frames()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._open.add(self)
        self._memory.alone.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        if not self._open:
            self._memory.alone.set()
        self._memory.unsubscribe(self._heard)

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.add(data):
                number, command, arguments = _asked.decode(frame)
                try:
                    self._say((number, None, self._do(command, arguments)))
                except Exception as exc:  # of Lua, whatever it is: who asked has to know
                    self._say((number, f"{type(exc).__name__}: {exc}", None))
        except (ValueError, msgspec.MsgspecError):
            self._transport.abort()

    def _do(self, command: str, arguments: list[Any]) -> Any:
        match command:
            case "subscribe":
                return self._memory.subscribe(arguments[0], self._heard)
            case "many":
                return [self._do(name, given) for name, given in arguments]
            case "ping":
                return True
            case "get" | "mget" | "set" | "delete" | "eval" | "publish" | "xadd" | "xrange" | "pexpire":
                return getattr(self._memory, command)(*arguments)
        raise ValueError(f"no command {command!r:.40}")

    def _heard(self, channel: bytes, message: bytes) -> None:
        self._say((0, channel, message))

    def _say(self, said: tuple[int, Any, Any]) -> None:
        if self._transport.get_write_buffer_size() > UNREAD_BYTES:
            self._transport.abort()
        else:
            self._transport.write(_frame(said))


@asynccontextmanager
async def serve_memory(path: Path, memory: Memory | None = None) -> AsyncIterator[Memory]:
    """Serve a memory on a Unix socket, whose folder keeps strangers out."""
    memory = memory or Memory()
    all_open: set[_Served] = set()
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Served(memory, all_open), str(path))

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            memory.sweep()

    sweeper = asyncio.create_task(sweep())
    try:
        yield memory
    finally:
        sweeper.cancel()
        server.close()
        for one in list(all_open):
            one.close()
        path.unlink(missing_ok=True)


class _Asking(asyncio.Protocol):
    """The connection of one process."""

    def __init__(self) -> None:
        self._frames = _Frames()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._transport: Any = None
        self.is_open = False
        self.heard: asyncio.Queue[bytes | None] = asyncio.Queue()
        """Messages of the channel that this connection is for; `None`: no more will come."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError(AWAY))
        self._waiting.clear()
        self.heard.put_nowait(None)

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.add(data):
            number, first, second = _said.decode(frame)
            if number == 0:
                self.heard.put_nowait(second)
                continue
            waiting = self._waiting.pop(number, None)
            if waiting is None or waiting.done():
                continue
            if first is not None:
                waiting.set_exception(ValueError(first))
            else:
                waiting.set_result(second)

    async def ask(self, command: str, *arguments: Any) -> Any:
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._transport.write(_frame((number, command, arguments)))
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        self._transport.abort()


class HostClient:
    """What `SharedStore` and throttled-py use of `redis.asyncio.Redis`, with its names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asking: _Asking | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> _Asking:
        """A connection of its own.

        Raises:
            OSError: nobody is there.
        """
        _, asking = await asyncio.get_running_loop().create_unix_connection(_Asking, str(self._path))
        return asking

    async def _ask(self, command: str, *arguments: Any) -> Any:
        asking = self._asking
        if asking is None or not asking.is_open:
            async with self._opening:
                asking = self._asking
                if asking is None or not asking.is_open:
                    asking = self._asking = await self.open()
        return await asking.ask(command, *arguments)

    def get(self, key: str) -> Awaitable[Any]:
        return self._ask("get", _key(key))

    def mget(self, keys: list[str]) -> Awaitable[Any]:
        return self._ask("mget", [_key(key) for key in keys])

    def set(self, key: str, value: bytes, px: int, nx: bool = False) -> Awaitable[Any]:
        return self._ask("set", _key(key), value, px, nx)

    def delete(self, *keys: str) -> Awaitable[Any]:
        return self._ask("delete", *[_key(key) for key in keys])

    def eval(self, script: str, count: int, *given: str | bytes | float) -> Awaitable[Any]:
        arguments = [_argument(one) for one in given]
        return self._ask("eval", script.encode(), arguments[:count], arguments[count:])

    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]:
        return lambda keys, args: self.eval(script, len(keys), *keys, *args)

    def publish(self, channel: str, message: bytes) -> Awaitable[Any]:
        return self._ask("publish", channel.encode(), message)

    def xrange(self, key: str, min: bytes, count: int) -> Awaitable[Any]:
        return self._ask("xrange", _key(key), min.lstrip(b"(-"), count)

    def ping(self) -> Awaitable[Any]:
        return self._ask("ping")

    def pipeline(self, transaction: bool = False) -> _Pipeline:
        return _Pipeline(self._ask)

    def pubsub(self, **_: Any) -> _Listener:
        return _Listener(self)

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.close()


class _Pipeline:
    """Several commands at one moment."""

    def __init__(self, ask: Callable[..., Awaitable[Any]]) -> None:
        self._ask = ask
        self._commands: list[tuple[str, list[Any]]] = []

    def xadd(self, key: str, entry: dict[bytes, bytes], maxlen: int, approximate: bool = True) -> None:
        self._commands.append(("xadd", [_key(key), entry, maxlen]))

    def pexpire(self, key: str, milliseconds: int) -> None:
        self._commands.append(("pexpire", [_key(key), milliseconds]))

    def execute(self) -> Awaitable[Any]:
        return self._ask("many", *self._commands)


class _Listener:
    """A connection on which a channel is heard."""

    def __init__(self, client: HostClient) -> None:
        self._client = client
        self._asking: _Asking | None = None

    async def subscribe(self, channel: str) -> None:
        self._asking = await self._client.open()
        await self._asking.ask("subscribe", channel.encode())
        self._subscribed = True

    async def get_message(self, timeout: float) -> dict[str, Any] | None:
        """The next message, or that it is heard from now on; `None`: none within so many seconds.

        Raises:
            ConnectionResetError: nothing is heard any more.
        """
        assert self._asking is not None
        if self._subscribed:
            self._subscribed = False
            return {"type": "subscribe"}
        try:
            async with asyncio.timeout(timeout):
                message = await self._asking.heard.get()
        except TimeoutError:
            return None
        if message is None:
            raise ConnectionResetError(AWAY)
        return {"type": "message", "data": message}

    async def ping(self) -> None:
        """Nothing: the end of a Unix socket is known at once."""

    async def aclose(self) -> None:
        if self._asking is not None:
            with contextlib.suppress(Exception):
                self._asking.close()


def _key(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _argument(value: str | bytes | float) -> bytes:
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else as_bytes(value)
