"""What goes over a hop: nobody without a key reads, writes or repeats it, and nobody exhausts who listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from toolscore.core.seal import KeyRing, new_key
from toolscore.replicas import channel as module
from toolscore.replicas.channel import SealedChannel, dial_sealed, listen_sealed

RING = KeyRing([b"k" * 32])
MAX = 1024 * 1024


class Listener:
    """What arrived on the channels that were opened."""

    def __init__(self) -> None:
        self.channels: list[SealedChannel] = []
        self.messages: list[bytes] = []
        self.closed: list[str] = []

    def opened(self, channel: SealedChannel) -> None:
        self.channels.append(channel)
        channel.take = self.messages.append
        channel.closed = self.closed.append


def run(check: Callable[[Listener, int], Awaitable[None]]) -> None:
    async def main() -> None:
        listener = Listener()
        async with listen_sealed("127.0.0.1:0", RING, MAX, listener.opened) as port:
            await check(listener, port)

    asyncio.run(main())


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.005)


def test_messages_of_all_sizes_arrive_whole_and_in_order() -> None:
    sent = [b"", b"x", b"y" * 70_000, b"z" * MAX, *(str(number).encode() for number in range(500))]

    async def check(listener: Listener, port: int) -> None:
        channel = await dial_sealed(f"127.0.0.1:{port}", RING, MAX)
        back: list[bytes] = []
        channel.take = back.append
        for message in sent:
            await channel.send(message)
        await until(lambda: len(listener.messages) == len(sent))
        assert listener.messages == sent
        for message in sent:
            await listener.channels[0].send(message)
        await until(lambda: len(back) == len(sent))
        assert back == sent
        channel.end("enough")
        await until(lambda: listener.closed)

    run(check)


def test_who_has_another_key_is_let_go() -> None:
    async def check(listener: Listener, port: int) -> None:
        other = KeyRing.read(new_key())
        with pytest.raises((OSError, TimeoutError)):
            await dial_sealed(f"127.0.0.1:{port}", other, MAX)
        assert not listener.channels

    run(check)


def test_what_was_heard_cannot_be_said_again() -> None:
    """All that a client once sent, in a new connection: the other side's number is another, and so is the key."""

    async def check(listener: Listener, port: int) -> None:
        heard = bytearray()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, to = await asyncio.open_connection("127.0.0.1", port)

            async def back() -> None:
                while data := await there.read(65536):
                    writer.write(data)

            answering = asyncio.create_task(back())
            while data := await reader.read(65536):
                heard.extend(data)
                to.write(data)
            answering.cancel()

        between = await asyncio.start_server(relay, "127.0.0.1", 0)
        channel = await dial_sealed(f"127.0.0.1:{between.sockets[0].getsockname()[1]}", RING, MAX)
        await channel.send(b"do it once")
        await until(lambda: listener.messages == [b"do it once"])
        assert b"do it once" not in heard
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bytes(heard))
        async with asyncio.timeout(10):
            while await reader.read(65536):
                pass
        assert listener.messages == [b"do it once"]
        assert len(listener.channels) == 1
        channel.end("enough")
        between.close()

    run(check)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"TSH1" + b"\0" * 20,
        b"TSH1" + RING.key_id + b"n" * 16 + b"\xff\xff\xff\xff",
        b"TSH1" + RING.key_id + b"n" * 16 + (40).to_bytes(4, "big") + b"q" * 40,
        b"TSH1" + RING.key_id + b"n" * 16 + (0).to_bytes(4, "big"),
    ],
    ids=["HTTP", "another key", "a huge length", "a false seal", "nothing"],
)
def test_a_stranger_is_cut_off(said: bytes) -> None:
    async def check(listener: Listener, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        async with asyncio.timeout(10):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1000)
        assert not listener.channels

    run(check)


def test_those_who_say_nothing_take_few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNKNOWN", 4)

    async def check(listener: Listener, port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        channel = await dial_sealed(f"127.0.0.1:{port}", RING, MAX)
        await channel.send(b"in")
        await until(lambda: listener.messages == [b"in"])
        ended = 0
        for reader, _ in silent:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.2):
                    ended += not await reader.read(1)
        assert ended >= 5
        for _, writer in silent:
            writer.close()
        channel.end("enough")

    run(check)
