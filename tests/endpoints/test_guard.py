"""What clients may make the HTTP port hold: silent ones, endless heads, answers that nobody reads, too many at once."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import select
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import uvicorn
from support import GatewayProcess, odd, running_gateway, wait_for

from toolscore.core.rules import LimitRules
from toolscore.endpoints.asgi import Receive, Scope, Send, send_json
from toolscore.endpoints.guard import ConnectionGuard

SETTINGS = """
limits:
  request_seconds: 1
  write_seconds: 2
  max_connections_per_address: 60
"""
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with running_gateway({"echo": odd("echo"), "large": odd("large")}, settings=SETTINGS) as process:
        process.wait_for_state("echo", "up")
        process.wait_for_state("large", "up")
        yield process


@contextlib.contextmanager
def connected(gateway: GatewayProcess, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=120) as connection:
        if sent:
            connection.sendall(sent)
        yield connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the gateway closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


def memory(gateway: GatewayProcess) -> int:
    return int(psutil.Process(gateway.pid).memory_info().rss)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /livez HT",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-a: ",
        b"POST /execute_tool HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
        b"POST /execute_tool HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{",
    ],
)
@pytest.mark.long
def test_who_does_not_send_a_whole_request_is_let_go(gateway: GatewayProcess, sent: bytes) -> None:
    with connected(gateway, sent) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 408 ")
    assert gateway.get("/health")


@pytest.mark.long
def test_a_connection_that_rests_between_two_requests_stays(gateway: GatewayProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.http_port, timeout=120)
    with contextlib.closing(connection):
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        resting = connection.sock
        assert select.select([resting], [], [], 3)[0] == [], "it was not closed"
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        assert connection.sock is resting


@pytest.mark.anyio
async def test_a_connection_that_rests_for_too_long_is_closed_and_one_that_is_served_is_not() -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            asked.set()
            await release.wait()
        await send_json(send, 200, b"{}")

    async def get(path: bytes, more: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\n\r\n" + more)
        return reader, writer

    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with ConnectionGuard(LimitRules) as guard:
            config = uvicorn.Config(
                app, http=guard.protocol, lifespan="off", log_config=None, timeout_keep_alive=1  # type: ignore[arg-type]
            )  # fmt: skip
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            slow, slow_writer = await get(b"/slow")
            await asked.wait()
            resting, resting_writer = await get(b"/")
            assert (await resting.read()).endswith(b"{}"), "read to the end: the gateway closed it"
            release.set()
            assert (await slow.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
            release.clear()
            asked.clear()
            begun, begun_writer = await get(b"/", b"GET ")  # and, below, the rest
            await begun.readuntil(b"{}")
            begun_writer.write(b"/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await asked.wait()
            another, another_writer = await get(b"/")
            assert (await another.read()).endswith(b"{}"), "so long it could have been taken for resting"
            release.set()
            assert (await begun.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
            for writer in (slow_writer, resting_writer, begun_writer, another_writer):
                writer.close()
            server.should_exit = True
            await serving


@pytest.mark.anyio
@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"])
async def test_a_refused_request_is_no_handshake(before: bytes) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "it would have become a WebSocket"
        await send_json(send, 200, b"{}")

    handshake = (
        b"GET /websocket HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n" + b"a: b\r\n" * 140 + b"\r\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with ConnectionGuard(LimitRules) as guard:
            config = uvicorn.Config(app, http=guard.protocol, ws="websockets-sansio", lifespan="off", log_config=None)  # type: ignore[arg-type]
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            if before:
                writer.write(before)
                await reader.readuntil(b"{}")
            writer.write(handshake)
            assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
            writer.close()
            async with asyncio.timeout(60):
                while server.server_state.connections:
                    await asyncio.sleep(0.01)
            server.should_exit = True
            await serving
    assert failures == []


@pytest.mark.parametrize("line", [b"a: b\r\n", b"x" * 8000])
def test_a_head_without_end_is_refused_and_not_kept(gateway: GatewayProcess, line: bytes) -> None:
    before = memory(gateway)
    with connected(gateway, b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-long: 1\r\n") as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(20 * MEGABYTE // len(line * 50)):
                connection.sendall(line * 50)
        with contextlib.suppress(ConnectionError):
            assert answer(connection)[:13] in (b"HTTP/1.1 431 ", b"")
    assert memory(gateway) - before < 20 * MEGABYTE


BEFORE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = b"POST /execute_tool HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (BEFORE + b"G", b"ET /livez HTTP/1.1\r\nx-long: 1" + b"x" * 8000),
        (BEFORE + b"GET /livez HTTP/1.1\r\n", b"a: b\r\n" * 1000),
        (CHUNKED + b"0\r\n", b"a: b\r\n" * 1000),
        (CHUNKED + b"0\r\na: ", b"x" * 8000),
        (CHUNKED + b"2;", b"x" * 8000),
    ],
)
def test_what_is_no_body_is_bounded_behind_another_request_and_behind_a_body(
    gateway: GatewayProcess, begun: bytes, piece: bytes
) -> None:
    before = memory(gateway)
    with connected(gateway, begun) as connection:
        if begun.startswith(BEFORE):  # the second head begins before the first answer
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        with contextlib.suppress(ConnectionError):
            for _ in range(20 * MEGABYTE // len(piece)):
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            assert answer(connection)[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b"")
    assert memory(gateway) - before < 10 * MEGABYTE


def test_a_large_body_and_the_next_request_behind_it_are_both_answered(gateway: GatewayProcess) -> None:
    body = json.dumps({"tool_id": "echo__echo", "parameters": {"text": "x" * 150_000}}).encode()
    ask = b"POST /execute_tool HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    last = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with connected(gateway, ask + last[:30]) as connection:
        connection.sendall(last[30:])
        assert answer(connection).count(b"HTTP/1.1 200 ") == 2


def test_a_head_just_over_the_bound_is_told_so(gateway: GatewayProcess) -> None:
    many = b"".join(b"x-%d: y\r\n" % number for number in range(200))
    for head in (many, b"x-long: " + b"y" * 70_000 + b"\r\n"):
        with connected(gateway, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n") as connection:
            assert b"128 headers" in answer(connection)
    fits = b"".join(b"x-%d: y\r\n" % number for number in range(100))
    with connected(gateway, b"GET /livez HTTP/1.1\r\nconnection: close\r\nhost: localhost\r\n" + fits + b"\r\n") as one:
        assert answer(one).startswith(b"HTTP/1.1 200 ")


LARGE = json.dumps({"tool_id": "large__echo", "parameters": {"text": str(12 * MEGABYTE)}}).encode()
ASK = b"POST /execute_tool HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(LARGE), LARGE)
"""More than the kernel takes of an answer that nobody reads."""


def held(gateway: GatewayProcess, ports: set[int]) -> int:
    """How many connections of these clients the gateway has."""
    found = psutil.Process(gateway.pid).net_connections()
    return sum(one.status == "ESTABLISHED" and bool(one.raddr) and one.raddr.port in ports for one in found)


@pytest.mark.long
def test_a_client_that_reads_nothing_is_cut_off(gateway: GatewayProcess) -> None:
    with connected(gateway, ASK) as connection:
        mine = {connection.getsockname()[1]}
        wait_for(lambda: held(gateway, mine) == 1)
        wait_for(lambda: held(gateway, mine) == 0, 120)


@pytest.mark.long
def test_answers_that_nobody_reads_are_bounded() -> None:
    settings = "limits: {write_seconds: 3600, max_unread_bytes: 41943040}"
    with running_gateway({"large": odd("large")}, settings=settings) as process, contextlib.ExitStack() as stack:
        process.wait_for_state("large", "up")
        clients = [stack.enter_context(connected(process, ASK)) for _ in range(12)]
        ports = {client.getsockname()[1] for client in clients}
        wait_for(lambda: process.get("/api/v1/stats")["calls_total"] == 12, 60)
        wait_for(lambda: held(process, ports) <= 4, 120, "for those over 40 MB to be cut")
        assert process.text("large__echo", {"text": "5"}) == "xxxxx", "others are served"
        assert held(process, ports) >= 1, "and who is within the bound is not cut"


def test_so_many_connections_and_no_more(gateway: GatewayProcess) -> None:
    request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connected(gateway, request)) for _ in range(50)]
        for connection in opened:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        more = [stack.enter_context(connected(gateway)) for _ in range(30)]
        assert {answer(connection)[:13] for connection in more} == {b"HTTP/1.1 408 ", b"HTTP/1.1 503 "}
    wait_for(lambda: gateway.http.get("/livez").status_code == 200)


@pytest.mark.parametrize("path", ["/execute_tool", "/mcp", "/api/v1/servers"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_bound_reaches_every_client(gateway: GatewayProcess, path: str, chunked: bool) -> None:
    def once(_: int) -> int:
        body = b"x" * (6 * MEGABYTE)
        data = iter([body[:MEGABYTE], body[MEGABYTE:]]) if chunked else body
        request = urllib.request.Request(gateway.url + path, data=data, headers={"content-type": "application/json"})
        try:
            return int(urllib.request.urlopen(request, timeout=120).status)
        except urllib.error.HTTPError as refused:
            return refused.code

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(once, range(9))) == [413] * 9


@pytest.mark.long
def test_requests_that_wait_for_their_turn_on_one_connection_are_bounded(gateway: GatewayProcess) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with connected(gateway, one * 50 + last) as connection:
        assert answer(connection).count(b"HTTP/1.1 200 OK") == 51
    before = memory(gateway)
    for _ in range(40):
        with connected(gateway, one * 5000 + last) as connection:
            assert answer(connection).count(b"HTTP/1.1 200 OK") <= 65
    assert memory(gateway) - before < 10 * MEGABYTE
