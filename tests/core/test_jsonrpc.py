"""The codec and the peer."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec import Raw

from toolscore.core.errors import InvalidRequest
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode, decode_frame, decode_object, encode
from toolscore.core.peer import Peer


def test_what_is_not_read_passes_unchanged() -> None:
    members = decode_object(b'{"a": 1.50, "b": 123456789012345678901234567890, "c": {"d" : [ ]}}')
    assert encode(members) == b'{"a":1.50,"b":123456789012345678901234567890,"c":{"d" : [ ]}}'


def test_lone_surrogates_and_nan_are_read_as_the_standard_library_writes_them() -> None:
    assert decode(json.dumps({"a": "x\ud800y", "b": float("nan")}).encode()) == {"a": "x\ufffdy", "b": None}
    frame = decode_frame(json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"a": "\udfff"}}).encode())
    assert isinstance(frame.result, Raw)
    assert decode(frame.result) == {"a": "\ufffd"}
    assert decode(encode({"a": "\ud800"})) == {"a": "\ufffd"}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 50_000, b"nonsense", b"[]", b"7"])
def test_what_is_no_message_is_refused_not_raised_through(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_frame(data)


def pair() -> tuple[Peer, Peer]:
    """Two peers, each feeding the other."""
    peers: list[Peer] = []

    async def to_server(message: bytes) -> None:
        peers[1].receive(message)

    async def to_client(message: bytes) -> None:
        peers[0].receive(message)

    async def serve(method: str, params: Raw | None, _request_id: object) -> object:
        if method == "wait":
            await asyncio.sleep(1000)
        if method == "fail":
            raise ValueError("a bug")
        if method == "refuse":
            raise RemoteError({"code": 1, "message": "no"})
        return {"method": method, "params": params}

    peers.append(Peer(to_server))
    peers.append(Peer(to_client, on_request=serve, max_in_flight=2))
    return peers[0], peers[1]


def test_requests_are_answered_refused_and_bounded() -> None:
    async def run() -> None:
        client, server = pair()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        assert decode(await client.request("hello", {"a": 1})) == {"method": "hello", "params": {"a": 1}}
        with pytest.raises(RemoteError, match="no"):
            await client.request("refuse")
        with pytest.raises(RemoteError) as failed:
            await client.request("fail")
        assert failed.value.code == -32603
        assert "a bug" not in failed.value.message
        waiting = [asyncio.ensure_future(client.request("wait")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RemoteError) as full:
            await client.request("hello")
        assert full.value.code == -32008
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        for _ in range(5):
            await asyncio.sleep(0)
        assert decode(await client.request("hello"))["method"] == "hello", "cancelling frees the place"
        client.close("gone")
        with pytest.raises(ConnectionLost, match="gone") as lost:
            await waiting[1]
        assert lost.value.sent
        with pytest.raises(ConnectionLost) as unsent:
            await client.request("hello")
        assert not unsent.value.sent
        server.close("gone")

    asyncio.run(run())
