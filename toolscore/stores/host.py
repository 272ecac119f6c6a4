"""What the processes of one machine share that have no Redis: the commands of it that we use, in the memory of one of
them, over a Unix socket. Lua runs there as it does in Redis, so that nothing above knows which of the two it has.

    process ── [number, command, arguments] ──► host
            ◄── [number, error, value], or [0, channel, message] for who listens ──

A frame is its length (4 bytes, big endian), and MessagePack. What is kept is bounded: the oldest goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["HostClient", "Memory", "serve_memory"]

MAX_BYTES = 256 * 1024 * 1024
MAX_KEYS = 500_000
MAX_SCRIPTS = 64
MAX_FRAME = 64 * 1024 * 1024
UNREAD_BYTES = 64 * 1024 * 1024
"""Of one process that does not read: then its connection ends."""
SWEEP_SECONDS = 1.0
SWEPT = 20_000
"""Keys that are looked at in one sweep."""
KEY_BYTES = 200
"""What a key takes beside its name and its value, roughly."""
AWAY = "the process that keeps what is shared went away"

_encoder = msgspec.msgpack.Encoder()
_asked = msgspec.msgpack.Decoder(tuple[int, str, list[Any]])
_said = msgspec.msgpack.Decoder(tuple[int, Any, Any])

Hash = dict[bytes, bytes]
Stream = list[tuple[bytes, dict[bytes, bytes]]]


class _Kept:
    __slots__ = ("size", "until", "value")

    def __init__(self, value: bytes | Hash | Stream, until: float, size: int) -> None:
        self.value, self.until, self.size = value, until, size


class Memory:
    """Keys, with an end each, and channels. Every command is one moment.

    Args:
        max_bytes: of all that is kept; what was written longest ago goes first.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max = max_bytes
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = 0
        self._number = 0
        self._listeners: dict[bytes, set[Callable[[bytes, bytes], None]]] = {}
        self._scripts: dict[bytes, Any] = {}
        self._lua: Any = None
        self._sweeping: Iterator[bytes] = iter(())
        self.alone = asyncio.Event()
        """Set while no process is connected."""
        self.alone.set()

    def get(self, key: bytes) -> bytes | None:
        """The bytes of a key."""
        value = self._value(key)
        return value if isinstance(value, bytes) else None

    def mget(self, keys: list[bytes]) -> list[bytes | None]:
        """The bytes of several keys."""
        return [self.get(key) for key in keys]

    def set(self, key: bytes, value: bytes, px: float | None = None, nx: bool = False) -> bool | None:
        """Keep bytes, for so many milliseconds. `nx`: only where there are none; returns whether it did."""
        if nx and self._value(key) is not None:
            return None
        self._put(key, value, len(value), math.inf if px is None else time.monotonic() + px / 1000)
        return True

    def delete(self, *keys: bytes) -> int:
        """Forget keys. Returns how many there were."""
        return sum(self._drop(key) for key in keys)

    def pexpire(self, key: bytes, milliseconds: float) -> int:
        """Keep a key for so long from now on."""
        kept = self._kept.get(key)
        if kept is None or self._value(key) is None:
            return 0
        kept.until = time.monotonic() + milliseconds / 1000
        return 1

    def hset(self, key: bytes, member: bytes, value: bytes) -> int:
        """Set a member of a hash."""
        found = self._hash(key)
        new = member not in found
        found[member] = value
        self._put(key, found, sum(len(one) + len(found[one]) for one in found), self._until(key))
        return int(new)

    def hdel(self, key: bytes, *members: bytes) -> int:
        """Forget members of a hash."""
        found = self._hash(key)
        gone = [found.pop(member) for member in members if member in found]
        if not found:
            self._drop(key)
        return len(gone)

    def hkeys(self, key: bytes) -> list[bytes]:
        """The members of a hash."""
        return list(self._hash(key))

    def hgetall(self, key: bytes) -> list[bytes]:
        """Members and values of a hash, in turn."""
        return [one for pair in self._hash(key).items() for one in pair]

    def xadd(self, key: bytes, entry: dict[bytes, bytes], maxlen: int) -> bytes:
        """Add an entry to a stream, of which so many are kept. Returns its id."""
        value = self._value(key)
        stream: Stream = value if isinstance(value, list) else []
        self._number += 1
        stream.append((b"%020d-0" % self._number, entry))
        size = self._kept[key].size if value is not None else 0
        size += sum(len(name) + len(entry[name]) for name in entry)
        for _ in range(len(stream) - maxlen):
            _, gone = stream.pop(0)
            size -= sum(len(name) + len(gone[name]) for name in gone)
        self._put(key, stream, size, self._until(key))
        return stream[-1][0]

    def xrange(self, key: bytes, after: bytes, count: int) -> Stream:
        """Entries of a stream, those behind the one with this id."""
        value = self._value(key)
        stream: Stream = value if isinstance(value, list) else []
        return [one for one in stream if one[0] > after][:count]

    def publish(self, channel: bytes, message: bytes) -> int:
        """Tell all who listen to a channel. Returns how many they are."""
        listeners = list(self._listeners.get(channel, ()))
        for heard in listeners:
            heard(channel, message)
        return len(listeners)

    def subscribe(self, channel: bytes, heard: Callable[[bytes, bytes], None]) -> None:
        """Hear what is published on a channel: `heard(channel, message)`."""
        self._listeners.setdefault(channel, set()).add(heard)

    def unsubscribe(self, heard: Callable[[bytes, bytes], None]) -> None:
        """Hear nothing any more. Idempotent."""
        for listeners in self._listeners.values():
            listeners.discard(heard)

    def time(self) -> list[bytes]:
        """Seconds and microseconds since 1970."""
        microseconds = time.time_ns() // 1000
        return [b"%d" % (microseconds // 1_000_000), b"%d" % (microseconds % 1_000_000)]

    def eval(self, script: bytes, keys: list[bytes], arguments: list[bytes]) -> Any:
        """What a Lua script makes of keys.

        Raises:
            Exception: whatever Lua makes of it.
        """
        if self._lua is None:
            self._lua = _lua(self._from_lua)
        lua = self._lua
        function = self._scripts.get(script)
        if function is None:
            if len(self._scripts) >= MAX_SCRIPTS:
                raise ValueError("too many scripts")
            function = self._scripts[script] = lua.eval(b"function(KEYS, ARGV)\n" + script + b"\nend")
        return _answer(function(lua.table_from(keys), lua.table_from(arguments)))

    def _from_lua(self, command: bytes, *given: Any) -> Any:
        arguments = [_as_bytes(one) for one in given]
        match command.lower():
            case b"set":
                options = [one.lower() for one in arguments[2::2]]
                named = dict(zip(options, arguments[3::2], strict=True))
                px = float(named[b"px"]) if b"px" in named else float(named[b"ex"]) * 1000 if b"ex" in named else None
                return self.set(arguments[0], arguments[1], px)
            case b"get":
                found = self.get(arguments[0])
                return found if found is not None else False
            case b"del":
                return self.delete(*arguments)
            case b"pexpire":
                return self.pexpire(arguments[0], float(arguments[1]))
            case b"hset":
                return self.hset(*arguments)
            case b"hdel":
                return self.hdel(*arguments)
            case b"hkeys":
                return self._lua.table_from(self.hkeys(*arguments))
            case b"hgetall":
                return self._lua.table_from(self.hgetall(*arguments))
            case b"time":
                return self._lua.table_from(self.time())
        raise ValueError(f"a script asks for {command!r}")

    def sweep(self) -> None:
        """Forget some of what has ended; by and by all of it."""
        found = list(islice(self._sweeping, SWEPT))
        if not found:
            self._sweeping = iter(list(self._kept))
        for key in found:
            self._value(key)

    def _hash(self, key: bytes) -> Hash:
        value = self._value(key)
        return value if isinstance(value, dict) else {}

    def _value(self, key: bytes) -> bytes | Hash | Stream | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until <= time.monotonic():
            self._drop(key)
            return None
        return kept.value

    def _until(self, key: bytes) -> float:
        kept = self._kept.get(key)
        return kept.until if kept is not None else math.inf

    def _put(self, key: bytes, value: bytes | Hash | Stream, size: int, until: float) -> None:
        self._drop(key)
        self._kept[key] = _Kept(value, until, size)
        self._bytes += size + len(key) + KEY_BYTES
        while self._bytes > self._max or len(self._kept) > MAX_KEYS:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> bool:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.size + len(key) + KEY_BYTES
        return kept is not None


def _lua(call: Callable[..., Any]) -> Any:
    from lupa.lua51 import LuaRuntime  # as Redis has it

    lua = LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
    lua.globals()[b"redis"] = lua.table_from({b"call": call})

    def decoded(text: bytes) -> Any:
        return lua.table_from([_of_json(one) for one in msgspec.json.decode(text, type=list[Any])])

    lua.globals()[b"cjson"] = lua.table_from({b"decode": decoded})
    return lua


def _of_json(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value if isinstance(value, bool | int | float) else False


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return b"%d" % value if float(value).is_integer() else b"%.17g" % value


def _answer(value: Any) -> Any:
    """As Redis answers: numbers as whole ones, tables as lists that end at the first hole."""
    if value is None or value is False:
        return None
    if isinstance(value, bytes):
        return value
    if isinstance(value, int | float):
        return int(value)
    found: list[Any] = []
    while (one := value[len(found) + 1]) is not None:
        found.append(_answer(one))
    return found


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

    def set(self, key: str, value: bytes, px: int) -> None:
        self._commands.append(("set", [_key(key), value, px]))

    def delete(self, *keys: str) -> None:
        self._commands.append(("delete", [_key(key) for key in keys]))

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
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else _as_bytes(value)
