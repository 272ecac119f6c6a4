"""The clients against a real gateway: calls, errors, and events across a restart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import EXECUTOR, GatewayProcess, eventually, odd, running_gateway

from runtimes.client import RealTimeToolClient, ToolScoreClient, ToolScoreClientError


def test_tools_are_listed_called_and_inspected(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with ToolScoreClient(gateway.url) as client:
            assert len([tool async for tool in client.tools(server_id="many")]) == 500
            assert len([tool async for tool in client.tools()]) > 500
            result = await client.execute("alpha__echo", {"text": "hi"})
            assert (result.text, result.is_error) == ("hi", False)
            assert (await client.execute(EXECUTOR, {"code": "1/0"}, action="python_execute")).is_error
            assert (await client.tool("alpha__echo"))["server_id"] == "alpha"
            assert (await client.health())["status"] == "healthy"
            assert (await client.stats())["calls_total"] >= 2
            assert "alpha" in {server["server_id"] for server in await client.servers()}

    asyncio.run(run())


def test_errors_are_typed(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with ToolScoreClient(gateway.url) as client:
            with pytest.raises(ToolScoreClientError, match="alpha__echo") as missing:
                await client.execute("alpha__ecko")
            assert (missing.value.code, missing.value.status, missing.value.retryable) == ("tool_not_found", 404, False)
        async with ToolScoreClient("http://127.0.0.1:9") as client:
            with pytest.raises(ToolScoreClientError) as unreachable:
                await client.health()
            assert unreachable.value.code == "unreachable"

    asyncio.run(run())


@pytest.mark.long
def test_servers_are_attached_and_detached() -> None:
    async def run(process: GatewayProcess) -> None:
        async with ToolScoreClient(process.url) as client:
            await client.attach("new", **odd("echo"))
            await asyncio.to_thread(process.wait_for_state, "new", "up")
            assert (await client.execute("new__echo", {"text": "hi"})).text == "hi"
            await client.detach("new")
            with pytest.raises(ToolScoreClientError):
                await client.detach("new")

    with running_gateway(journal=True, python=True) as process:
        asyncio.run(run(process))


@pytest.mark.long
def test_whoever_waits_for_a_tool_is_woken() -> None:
    async def run(process: GatewayProcess) -> None:
        async with RealTimeToolClient(process.events_url) as client:
            async with asyncio.timeout(20):
                await client.connected()
                assert (await client.wait_for_tool("python_execute"))["tool_id"] == f"{EXECUTOR}__python_execute"
                waiting = asyncio.create_task(client.wait_for_tool("late__echo"))
                await asyncio.sleep(0)
                assert not waiting.done()
                await asyncio.to_thread(process.http.post, "/api/v1/servers", json={"server_id": "late", **odd("echo")})
                assert (await waiting)["server_id"] == "late"
                result = await client.call("execute_tool", {"tool_id": "late__echo", "parameters": {"text": "hi"}})
                assert result["content"][0]["text"] == "hi"
                with pytest.raises(ToolScoreClientError, match="no method"):
                    await client.call("no_such")

    with running_gateway(journal=True, python=True) as process:
        process.wait_for_state(EXECUTOR, "up")
        asyncio.run(run(process))


@pytest.mark.long
def test_nothing_is_missed_across_a_restart_of_the_gateway() -> None:
    async def run(process: GatewayProcess) -> None:
        seen: list[dict[str, Any]] = []

        async def follow(client: RealTimeToolClient) -> None:
            async for event in client.events():
                seen.append(event)

        async with RealTimeToolClient(process.events_url, events=["server_up"]) as client:
            async with asyncio.timeout(240):  # a start on a busy machine, and up to 15 s until the client tries again
                await client.connected()
                following = asyncio.create_task(follow(client))
                process.kill()
                process.servers({"while_away": odd("echo")})
                await asyncio.to_thread(process.start)
                await asyncio.to_thread(process.wait_for_state, "while_away", "up")
                while not any(event["server_id"] == "while_away" for event in seen):
                    await asyncio.sleep(0.02)
                assert client.connections == 2
                assert "while_away__echo" in client.tools
                following.cancel()
        sequence = [event["seq"] for event in seen]
        assert sequence == sorted(set(sequence))

    with running_gateway(journal=True, python=True) as process:
        process.wait_for_state(EXECUTOR, "up")
        asyncio.run(run(process))


@pytest.mark.long
def test_that_nobody_answers_is_said_once_and_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with RealTimeToolClient("ws://ada:secret@127.0.0.1:9/events?key=secret"):
            await eventually(lambda: caplog.messages)
            await asyncio.sleep(0)

    asyncio.run(run())
    (said,) = caplog.messages
    assert "no gateway answers at ws://127.0.0.1:9/events" in said
    assert "secret" not in said


def test_a_failed_tool_comes_with_what_helped() -> None:
    async def run(process: GatewayProcess) -> None:
        async with ToolScoreClient(process.url) as client:
            broken = {"code": "1 / 0"}
            failed = await client.execute(EXECUTOR, broken, action="python_execute")
            assert (failed.is_error, failed.suggestion) == (True, None)
            fix = {"message": failed.text, "text": "divide by something else"}
            assert (await asyncio.to_thread(process.http.post, "/api/v1/errors/fixes", json=fix)).status_code == 201
            failed = await client.execute(EXECUTOR, broken, action="python_execute")
            assert failed.is_error
            assert "divide by something else" in (failed.suggestion or "")

    with running_gateway(python=True) as process:
        process.wait_for_state(EXECUTOR, "up")
        asyncio.run(run(process))


def test_a_request_that_may_have_been_carried_out_is_not_called_unreachable() -> None:
    async def run() -> None:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        async with server, ToolScoreClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            with pytest.raises(ToolScoreClientError) as unknown:
                await client.execute("a__b")
            assert (unknown.value.code, unknown.value.retryable) == ("outcome_unknown", False)
            with pytest.raises(ToolScoreClientError) as looked:
                await client.health()
            assert looked.value.retryable

    asyncio.run(run())


def test_who_follows_events_misses_none_and_hears_why_there_are_none(gateway: GatewayProcess) -> None:
    async def run() -> None:
        path = "/api/v1/tools/beta__echo"
        wanted = ("tool_disabled", "tool_enabled")
        async with asyncio.timeout(120), RealTimeToolClient(gateway.url, events=wanted) as client:
            await client.connected()
            seen: list[dict[str, Any]] = []

            async def follow() -> None:
                async for event in client.events():
                    seen.append(event)

            following = asyncio.create_task(follow())
            for step in ("disable", "enable"):
                await asyncio.to_thread(gateway.http.post, f"{path}/{step}")
                while not seen or seen[-1]["type"] != f"tool_{step}d":
                    await asyncio.sleep(0.01)
            client.last_seq = seen[0]["seq"] - 1  # as if both had been missed
            socket = client._socket
            assert socket is not None
            await socket.close()
            while len(seen) < 4:
                await asyncio.sleep(0.01)
            assert [event["seq"] for event in seen[2:4]] == [event["seq"] for event in seen[:2]]
            following.cancel()
        async with asyncio.timeout(120), RealTimeToolClient(gateway.url, events=["tool_instaled"]) as client:
            with pytest.raises(ToolScoreClientError, match="nearest: tool_installed"):
                async for _ in client.events():
                    pass
            with pytest.raises(ToolScoreClientError):
                await client.wait_for_tool("never")

    asyncio.run(run())
