"""Whether a request was sent: what may have arrived is never said to have stayed here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from toolscore.core.jsonrpc import ConnectionLost, NotSent
from toolscore.core.peer import Peer


def ask(send: Callable[[bytes], Awaitable[None]]) -> ConnectionLost:
    async def run() -> ConnectionLost:
        peer = Peer(send)
        with pytest.raises(ConnectionLost) as caught:
            await peer.request("tools/call", {"name": "pay"})
        return caught.value

    return asyncio.run(run())


def test_what_breaks_while_it_is_written_may_have_arrived() -> None:
    async def breaks(_: bytes) -> None:
        raise ConnectionResetError("in the middle")

    async def stays(_: bytes) -> None:
        raise NotSent("there is nobody")

    assert ask(breaks).sent
    assert not ask(stays).sent


def test_one_whose_writing_is_given_up_is_cancelled_on_the_other_side() -> None:
    written: list[bytes] = []
    go = asyncio.Event()

    async def slow(message: bytes) -> None:
        written.append(message)
        if len(written) == 1:
            await go.wait()

    async def run() -> None:
        peer: Any = Peer(slow)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await peer.request("tools/call", {"name": "pay"})
        async with asyncio.timeout(10):
            while len(written) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert b"notifications/cancelled" in written[1]
