"""The client of the hot path, against servers that say exactly what stands here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.coroutines import running
from yarl import URL

from toolscore.core.errors import InvalidRequest
from toolscore.upstreams import http_channel, lean
from toolscore.upstreams.event_stream import EventStream
from toolscore.upstreams.http_channel import Answer, BadAnswer, HttpChannel
from toolscore.upstreams.lean import ConnectFailed, LeanClient

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Scripted:
    """A server that answers each request with the next of its answers; `None`: it closes the connection."""

    def __init__(self, *answers: bytes | list[bytes] | None, closes: bool = False, repeat: bool = False) -> None:
        self.answers = list(answers)
        self.closes = closes
        self.repeat = repeat
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = 0
        self.open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(size))
                answer = self.answers[0] if self.repeat else self.answers.pop(0)
                for piece in answer if isinstance(answer, list) else [answer]:
                    if piece:
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                if answer is None or self.closes:
                    break
        self.ended += 1
        writer.close()


@asynccontextmanager
async def scripted(
    *answers: bytes | list[bytes] | None, closes: bool = False, repeat: bool = False
) -> AsyncIterator[tuple[Scripted, LeanClient, URL]]:
    script = Scripted(*answers, closes=closes, repeat=repeat)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp?a=b%2Fc", encoded=True)
    async with LeanClient("test/1") as client:
        yield script, client, url
    server.close()
    for writer in list(script.open):
        writer.close()


async def posted(client: LeanClient, url: URL, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    async with client.post(url, headers or {}, b"{}") as answer:
        return answer.status, await answer.read()


@running
async def test_what_is_sent() -> None:
    async with scripted(OK) as (script, client, url):
        said = await posted(
            client, url, {"Accept": "a/b", "X-Name": "ä", "Content-Length": "99", "connection": "close"}
        )
        assert said == (200, b"hi")
    head, _, body = script.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /mcp?a=b%2Fc HTTP/1.1", b"Host: " + f"127.0.0.1:{url.port}".encode(), b"Accept: a/b",
        "X-Name: ä".encode(), b"User-Agent: test/1", b"Content-Length: 2",
    ]  # fmt: skip
    assert body == b"{}"


@pytest.mark.parametrize("name", ["X-A", "X A", "X\r\nY", ""], ids=["value", "space", "break", "empty"])
@running
async def test_no_header_becomes_two(name: str) -> None:
    async with scripted() as (script, client, url):
        with pytest.raises(InvalidRequest):
            client.post(url, {name: "a\r\nEvil: 1" if name == "X-A" else "a"}, b"{}")
    assert script.connections == 0


@running
async def test_a_connection_is_kept() -> None:
    async with scripted(OK, repeat=True) as (script, client, url):
        for _ in range(5):
            assert await posted(client, url) == (200, b"hi")
        assert script.connections == 1
        await asyncio.gather(*(posted(client, url) for _ in range(4)))
        assert 2 <= script.connections <= 5


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", 200, b"to the end"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", 200, b"to the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", 200, b"hi"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhimore", 200, b"hi"),
    ],
    ids=["close", "1.0", "1.0 to the end", "to the end", "two answers", "more"],
)
@running
async def test_a_connection_is_given_up(answer: bytes, status: int, body: bytes) -> None:
    async with scripted(answer, OK, closes=True) as (script, client, url):
        assert await posted(client, url) == (status, body)
        assert await posted(client, url) == (200, b"hi")
        assert script.connections == 2


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\nT: r\r\n\r\n", 200, b"hi"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", 202, b""),
        (b"HTTP/1.1 404\r\nContent-Length: 2\r\n\r\nno", 404, b"no"),
        (b"HTTP/1.1 299 Of  our own\r\nContent-Length: 0\r\n\r\n", 299, b""),
    ],
    ids=["chunked", "informations", "no content", "accepted", "no reason", "odd reason"],
)
@running
async def test_an_answer_is_read_and_its_connection_kept(answer: bytes, status: int, body: bytes) -> None:
    async with scripted([answer[at : at + 1] for at in range(len(answer))], answer, OK) as (script, client, url):
        for _ in range(2):
            assert await posted(client, url) == (status, body)
        assert await posted(client, url) == (200, b"hi")
        assert script.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
        b"HTTP/1.1 20",
        None,
    ],
    ids=["ssh", "many headers", "a long header", "two lengths", "a negative length", "a short body", "a short chunk",
         "another protocol", "informations without end", "half a head", "nothing"],
)  # fmt: skip
@running
async def test_what_is_no_answer_is_an_error_and_ends_the_connection(answer: bytes | None) -> None:
    async with scripted(answer, closes=True) as (script, client, url):
        with pytest.raises((BadAnswer, ConnectionError)):
            await posted(client, url)
        script.answers.append(OK)
        assert await posted(client, url) == (200, b"hi")
        assert script.connections == 2


@running
async def test_a_folded_header_is_one_or_refused() -> None:
    async with scripted(b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nhi", closes=True) as (
        _,
        client,
        url,
    ):
        with contextlib.suppress(BadAnswer):
            assert await posted(client, url) == (200, b"hi")


@running
async def test_a_connection_that_the_server_closed_is_not_written_to() -> None:
    async with scripted(OK, OK, OK) as (script, client, url):
        assert await posted(client, url) == (200, b"hi")
        for writer in list(script.open):
            writer.close()
        while not script.ended:
            await asyncio.sleep(0.01)
        assert await posted(client, url) == (200, b"hi")
        assert script.connections == 2


@running
async def test_the_end_of_an_idle_connection_is_noticed_before_the_loop_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(OK, OK) as (script, client, url):
        assert await posted(client, url) == (200, b"hi")
        connection = next(iter(client._idle.values()))[0]
        assert connection.is_fit
        (writer,) = script.open
        sock = writer.get_extra_info("socket")
        sock.shutdown(1)  # the end is in our kernel now, and the loop has not run since
        assert not connection.is_fit
        assert await posted(client, url) == (200, b"hi")
        assert script.connections == 2


@running
async def test_an_idle_connection_is_let_go_before_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "KEEPALIVE_SECONDS", 0.1)
    async with scripted(OK, repeat=True) as (script, client, url):
        await posted(client, url)
        while script.ended == 0:
            await asyncio.sleep(0.02)
        await posted(client, url)
        assert script.connections == 2


@running
async def test_giving_up_closes_the_connection() -> None:
    async with scripted([]) as (script, client, url):
        posting = asyncio.ensure_future(posted(client, url))
        while not script.requests:
            await asyncio.sleep(0.01)
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting
        while not script.ended:
            await asyncio.sleep(0.01)
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
    async with scripted(body) as (script, client, url):
        async with client.post(url, {}, b"{}") as answer:
            assert answer.status == 200
        while not script.ended:
            await asyncio.sleep(0.01)


@running
async def test_a_stream_is_read_as_it_comes_and_no_faster_than_it_is_read() -> None:
    pieces = [b"%x\r\n%s\r\n" % (65536, b"x" * 65536) for _ in range(200)]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with scripted([head, *pieces, b"0\r\n\r\n"]) as (_, client, url):
        async with client.post(url, {}, b"{}") as answer:
            await asyncio.sleep(0.3)
            connection = answer._connection
            assert sum(map(len, connection.chunks)) < http_channel.HIGH_BYTES + 512 * 1024
            size = 0
            async for piece in answer.content.iter_any():
                size += len(piece)
            assert size == 200 * 65536


@pytest.mark.parametrize("size", [1_000_000, 1_060_000, 1_200_000, 3_000_000])
def test_a_connection_is_read_again_after_a_large_answer(size: int) -> None:
    """As the gateway runs it: uvloop gives several reads in one turn."""

    async def run() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        async with scripted(answer, repeat=True) as (script, client, url):
            for _ in range(20):
                status, body = await posted(client, url)
                assert (status, len(body)) == (200, size)
            assert script.connections <= 20

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(run(), 60))


@running
async def test_trailers_without_end_are_an_error() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: "
    async with scripted([head, *[b"x" * 60_000] * 20]) as (_, client, url):
        with pytest.raises((BadAnswer, ConnectionError)):
            await posted(client, url)


@running
async def test_a_given_host_takes_the_place_of_the_addresses_own() -> None:
    async with scripted(OK) as (script, client, url):
        await posted(client, url, {"host": "town.example"})
    assert script.requests[0].count(b"ost: ") == 1
    assert b"\r\nHost: town.example\r\n" in script.requests[0]


@running
async def test_where_nobody_is_nothing_was_sent() -> None:
    async with LeanClient("test/1") as client:
        with pytest.raises(ConnectFailed):
            await posted(client, URL("http://127.0.0.1:1/"))
        with pytest.raises(ConnectFailed):
            await posted(client, URL("http://no-such-host.invalid/"))


@running
async def test_cookies_and_lengths_are_as_the_head_says() -> None:
    cookies = b"Set-Cookie: a=1; Path=/\r\nset-cookie: b=2\r\nSet-Cookie: \xff;;=\r\n"
    head = b"HTTP/1.1 200 OK\r\n" + cookies + b"Content-Length: 2\r\n\r\nhi"
    async with scripted(head) as (_, client, url), client.post(url, {}, b"{}") as answer:
        assert {name: one.value for name, one in answer.cookies.items()} == {"a": "1", "b": "2"}
        assert (answer.content_length, answer.reason, answer.headers["SET-COOKIE"]) == (2, "OK", "a=1; Path=/")
        assert await answer.read(1) == b"h"


BODIES = st.lists(st.binary(min_size=1, max_size=200), max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies=BODIES, chunked=st.booleans(), cuts=st.lists(st.integers(1, 400), max_size=30))
@pytest.mark.long
def test_however_it_is_cut_an_answer_is_the_same(bodies: list[bytes], chunked: bool, cuts: list[int]) -> None:
    whole = b"".join(bodies)
    if chunked:
        said = b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + said
    else:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole
    assert fed(answer, cuts) == (200, whole)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(junk=st.binary(max_size=300), cuts=st.lists(st.integers(1, 100), max_size=10), keep=st.integers(0, 45))
@pytest.mark.long
def test_whatever_comes_there_is_an_end(junk: bytes, cuts: list[int], keep: int) -> None:
    with contextlib.suppress(OSError):
        status, body = fed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhallo"[:keep] + junk, cuts)
        assert 200 <= status <= 999
        assert len(body) <= 300 + 45


def fed(answer: bytes, cuts: list[int]) -> tuple[int, bytes]:
    """What is made of these bytes, cut so, and then the end."""

    class Nowhere(asyncio.Transport):
        def write(self, data: Any) -> None: ...
        def abort(self) -> None: ...
        def close(self) -> None: ...
        def is_closing(self) -> bool:
            return False

        def pause_reading(self) -> None: ...
        def resume_reading(self) -> None: ...

    async def run() -> tuple[int, bytes]:
        connection = HttpChannel()
        connection.transport = Nowhere()
        head = connection.ask(b"")
        at = 0
        for cut in [*cuts, len(answer)]:
            if at < len(answer) and not connection.is_closed:
                connection.data_received(answer[at : at + cut])
            at += cut
        connection.connection_lost(None)
        await head
        return connection.status, await Answer(connection).read()

    return asyncio.run(run())


def test_a_line_that_does_not_end_is_looked_through_once() -> None:
    class Pieces:
        async def iter_any(self) -> AsyncIterator[bytes]:
            yield b"data: " + b"x" * 12 * 1024 * 1024
            for _ in range(30_000):
                yield b"y"
            yield b"\n\n"

    async def main() -> None:
        async with asyncio.timeout(30):  # looked through anew with each piece it takes minutes
            (message,) = [message async for message in EventStream(Pieces(), 16 * 1024 * 1024).messages()]
        assert len(message) == 12 * 1024 * 1024 + 30_000

    asyncio.run(main())


def test_an_event_that_broke_off_is_asked_for_again() -> None:
    class Pieces:
        async def iter_any(self) -> AsyncIterator[bytes]:
            yield b"id: 1\ndata: whole\n\nid: 2\ndata: bro"
            raise ConnectionResetError

    async def main() -> None:
        stream, came = EventStream(Pieces(), 1000), []

        async def read() -> None:
            async for message in stream.messages():
                came.append(message)

        with pytest.raises(ConnectionResetError):
            await read()
        assert (came, stream.last_id) == ([b"whole"], "1")

    asyncio.run(main())
