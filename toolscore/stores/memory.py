"""What Redis does, as far as we use it, in the memory of a process: keys with an end, streams, channels, Lua.

What is kept is bounded: the oldest goes first.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec

__all__ = ["Memory", "as_bytes"]

MAX_BYTES = 256 * 1024 * 1024
MAX_KEYS = 500_000
MAX_SCRIPTS = 64
SWEPT = 20_000
"""Keys that are looked at in one sweep."""
KEY_BYTES = 200
"""What a key takes beside its name and its value, roughly."""

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
        arguments = [as_bytes(one) for one in given]
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


def as_bytes(value: Any) -> bytes:
    """A number as Redis writes it; bytes as they are."""
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
