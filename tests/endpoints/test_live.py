"""Events: over the WebSocket with commands, and as server-sent events."""

from __future__ import annotations

import asyncio
import json
import socket as socketlib
from typing import Any

import pytest
from support import EXECUTOR, GatewayProcess, odd, running_gateway, wait_for
from websockets.asyncio.client import ClientConnection, connect

from toolscore.core.jsonrpc import encode
from toolscore.endpoints.asgi import one_line


async def receive(socket: ClientConnection, kind: str | None = None) -> Any:
    async with asyncio.timeout(10):
        while True:
            message = json.loads(await socket.recv())
            if kind is None or message["type"] == kind:
                return message


async def ask(socket: ClientConnection, message: dict[str, Any]) -> Any:
    await socket.send(json.dumps(message))
    while True:  # events of the start may come in between
        answer = await receive(socket)
        if answer["type"] in ("pong", "tools_list", "result", "error"):
            return answer


def test_the_socket_welcomes_answers_and_runs_commands(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with connect(gateway.events_url, max_size=None) as socket:
            welcome = await receive(socket)
            assert welcome["type"] == "welcome"
            assert welcome["total_count"] == len(welcome["tools"]) > 500
            assert set(welcome["tools"][0]) == {"tool_id", "name", "capabilities", "type", "enabled"}
            assert isinstance(welcome["seq"], int)
            assert (await ask(socket, {"type": "ping"}))["type"] == "pong"
            assert (await ask(socket, {"type": "get_tools"}))["type"] == "tools_list"
            stats = await ask(socket, {"type": "call", "id": 1, "method": "get_stats"})
            assert (stats["type"], stats["id"]) == ("result", 1)
            parameters = {"tool_id": "alpha__echo", "parameters": {"text": "hi"}}
            done = await ask(socket, {"type": "call", "id": 2, "method": "execute_tool", "params": parameters})
            assert done["result"]["content"][0]["text"] == "hi"
            tool = await ask(
                socket, {"type": "call", "id": 3, "method": "get_tool", "params": {"tool_id": "alpha__echo"}}
            )
            assert tool["result"]["input_schema"]["required"] == ["text"]
            page = await ask(socket, {"type": "call", "id": 4, "method": "list_tools", "params": {"limit": 3}})
            assert len(page["result"]["tools"]) == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("{", "not JSON"),
        ("[]", "type"),
        ('{"type": "sing"}', "unknown type 'sing'"),
        ('{"type": "subscribe", "events": "all"}', "list"),
        ('{"type": "subscribe", "since": "x"}', "seq"),
        ('{"type": "call", "id": 5, "method": "format_disk"}', "get_stats"),
        ('{"type": "call", "id": 5, "method": "get_tool", "params": {}}', "tool_id"),
        ('{"type": "call", "id": 5, "method": "get_tool", "params": []}', "params"),
    ],
)
def test_wrong_messages_get_an_error_and_the_socket_stays_open(
    gateway: GatewayProcess, message: str, said: str
) -> None:
    async def run() -> None:
        async with connect(gateway.events_url, max_size=None) as socket:
            await receive(socket, "welcome")
            await socket.send(message)
            answer = await receive(socket, "error")
            assert said in answer["error"]["message"]
            assert (await ask(socket, {"type": "ping"}))["type"] == "pong"

    asyncio.run(run())


def test_a_foreign_page_cannot_open_the_socket(gateway: GatewayProcess) -> None:
    async def run() -> None:
        with pytest.raises(Exception, match=r"403|1008|rejected"):
            async with connect(gateway.events_url, additional_headers={"Origin": "https://evil.example"}) as socket:
                await socket.recv()

    asyncio.run(run())


@pytest.mark.long
def test_events_come_in_order_with_what_happened_and_survive_a_restart() -> None:
    with running_gateway({"alpha": odd("echo")}, python=True) as process:
        process.wait_for_state("alpha", "up")
        wait_for(lambda: process.event_seen("server_up", server_id="alpha"))
        before = process.events()
        process.http.post("/api/v1/servers", json={"server_id": "beta", **odd("echo")})
        wait_for(lambda: process.event_seen("server_up", server_id="beta"))
        process.http.delete("/api/v1/servers/beta")
        process.stop()
        process.start()
        events = process.events()
        assert events[: len(before)] == before
        sequence = [event["seq"] for event in events]
        assert sequence == sorted(set(sequence))
        of_beta = [event["type"] for event in events if event.get("server_id") == "beta"]
        assert of_beta == ["tool_installed"] * 4 + ["server_up", "server_down", *["tool_removed"] * 4]
        installed = next(event for event in events if event.get("tool_id") == "beta__echo")
        assert installed["status"] == "ready"
        assert installed["capabilities"][0]["parameters"]["required"] == ["text"]


@pytest.mark.long
def test_a_subscriber_resumes_where_it_stopped_and_gets_only_what_it_asked_for() -> None:
    async def run(process: GatewayProcess) -> None:
        async with connect(process.events_url) as socket:
            seq = (await receive(socket, "welcome"))["seq"]
        for server_id in ("one", "two"):
            await asyncio.to_thread(process.http.post, "/api/v1/servers", json={"server_id": server_id, **odd("echo")})
            await asyncio.to_thread(process.wait_for_state, server_id, "up")
        # Written before the next connection opens, or it would hear of them before it chooses.
        await asyncio.to_thread(wait_for, lambda: process.event_seen("server_up", server_id="two"))
        async with connect(process.events_url) as socket:
            await receive(socket, "welcome")
            await socket.send(json.dumps({"type": "subscribe", "events": ["server_up"], "since": seq}))
            missed = [await receive(socket), await receive(socket)]
            assert [event["server_id"] for event in missed] == ["one", "two"]
            await asyncio.to_thread(process.http.post, "/api/v1/servers", json={"server_id": "three", **odd("echo")})
            live = await receive(socket)
            assert (live["type"], live["server_id"]) == ("server_up", "three")

    with running_gateway(python=True) as process:
        process.wait_for_state(EXECUTOR, "up")
        wait_for(lambda: process.event_seen("server_up", server_id=EXECUTOR))
        asyncio.run(run(process))


def test_stats_and_finished_calls_come_to_those_who_ask(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with connect(gateway.events_url, max_size=None) as socket:
            await receive(socket, "welcome")
            await socket.send(json.dumps({"type": "subscribe", "events": ["call_finished", "stats_update"]}))
            update = await receive(socket, "stats_update")
            assert update["payload"]["tools_total"] > 500
            assert "seq" not in update
            await asyncio.to_thread(gateway.text, "alpha__echo", {"text": "hi"})
            finished = await receive(socket, "call_finished")
            assert (finished["tool_id"], finished["outcome"]) == ("alpha__echo", "ok")

    asyncio.run(run())


@pytest.mark.long
def test_sse_resumes_from_the_last_event_id(gateway: GatewayProcess) -> None:
    events = gateway.events()
    with gateway.http.stream(
        "GET", "/api/v1/events/stream", headers={"last-event-id": str(events[-3]["seq"])}
    ) as stream:
        lines = stream.iter_lines()
        got = [line for line in (next(lines) for _ in range(10)) if line]
    assert f"id: {events[-2]['seq']}" in got
    assert f"id: {events[-1]['seq']}" in got
    assert f"id: {events[-3]['seq']}" not in got
    assert gateway.http.get("/api/v1/events/stream", headers={"last-event-id": "x"}).status_code == 400


@pytest.mark.long
def test_a_subscriber_that_reads_nothing_holds_nobody_up(gateway: GatewayProcess) -> None:
    """Its socket fills, its queue fills, its events are dropped; calls and other subscribers go on."""
    with socketlib.create_connection(("127.0.0.1", gateway.http_port)) as lazy:
        lazy.sendall(b"GET /api/v1/events/stream?events=call_finished HTTP/1.1\r\nhost: localhost\r\n\r\n")
        lazy.recv(16)
        for number in range(300):
            assert gateway.text("alpha__echo", {"text": str(number)}) == str(number)


ODD: list[Any] = [None, True, -1, 10**30, 1.5, float("1e300"), "", "²", "x" * 5000, [], [1], {}, {"a": 1}]


@pytest.mark.long
def test_odd_values_in_commands_are_refused_and_break_nothing(gateway: GatewayProcess) -> None:
    names = (
        "tool_id",
        "action",
        "parameters",
        "timeout_seconds",
        "cache",
        "limit",
        "cursor",
        "server_id",
        "q",
        "query",
    )

    async def run() -> None:
        async with connect(gateway.events_url, max_size=None) as socket:
            await receive(socket, "welcome")
            await socket.send(b"\x00\xff not text")
            assert (await receive(socket, "error"))["error"]["code"] == "invalid_request"
            await socket.send(json.dumps({"type": "ping"}).encode())
            await receive(socket, "pong")
            number = 0
            for method in ("list_tools", "search_tools", "get_tool", "execute_tool", "get_stats", ["x"], None):
                for name in names:
                    for value in ODD:
                        number += 1
                        params = {"tool_id": "alpha__echo", "query": "x", name: value}
                        command = {"type": "call", "id": number, "method": method, "params": params}
                        await socket.send(json.dumps(command))
                        answer = await receive(socket)
                        assert answer["id"] == number
                        assert answer.get("error", {}).get("code") != "internal_error", (method, name, value, answer)
            for since in (-1e30, -1, True, "1", 10**30):
                await socket.send(json.dumps({"type": "subscribe", "since": since}))
                assert (await receive(socket, "error"))["error"]["code"] == "invalid_request"

    asyncio.run(run())


@pytest.mark.parametrize("last", [b"\xb2", b"-1", b"9" * 40, b"x", b""])
def test_an_odd_last_event_id_is_refused(gateway: GatewayProcess, last: bytes) -> None:
    answer = gateway.http.get("/api/v1/events/stream", headers={b"last-event-id": last})
    assert answer.status_code == 400


@pytest.mark.parametrize("since", ["-1e30", "-1", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_odd_times_and_numbers_in_queries_break_nothing(gateway: GatewayProcess, since: str) -> None:
    for path in ("/api/v1/events/stream", "/api/v1/calls", "/api/v1/calls/export?server_id=alpha"):
        assert gateway.http.get(path, params={"since": since}).status_code < 500, path


def test_no_character_of_a_text_ends_a_line_of_json() -> None:
    value = {"text": "first\u2028second\u2029third\x85fourth\x0bfifth\nlast"}
    line = one_line(encode(value)).decode()
    assert line.splitlines() == [line]
    assert json.loads(line) == value
