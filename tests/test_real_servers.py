"""Real MCP servers that others wrote, from PyPI and npm, over stdio, through every door."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from support import EXECUTOR, SERVERS, GatewayProcess, running_gateway
from websockets.asyncio.client import connect

NPM = SERVERS / "npm" / "node_modules" / ".bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a git repository, a file and a database."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "hello.txt").write_text("hello from a file\n")
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "A first commit"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    with sqlite3.connect(folder / "planets.db") as database:
        database.execute("create table planets (name text, moons integer)")
        database.execute("insert into planets values ('Mars', 2)")
    return folder


@pytest.fixture(scope="module")
def real(folder: Path) -> Iterator[GatewayProcess]:
    node = str(SERVERS / "node")
    servers = {
        "time": {"command": str(SERVERS / "current/bin/mcp-server-time"), "args": ["--local-timezone", "UTC"]},
        "git": {"command": str(SERVERS / "current/bin/mcp-server-git"), "args": ["--repository", str(folder)]},
        "sqlite": {
            "command": str(SERVERS / "sdk1/bin/mcp-server-sqlite"),
            "args": ["--db-path", str(folder / "planets.db")],
        },
        "everything": {"command": node, "args": [str(NPM / "mcp-server-everything"), "stdio"]},
        "filesystem": {"command": node, "args": [str(NPM / "mcp-server-filesystem"), str(folder)]},
    }
    with running_gateway(servers, journal=True, python=True) as process:
        for server_id in (*servers, EXECUTOR):
            process.wait_for_state(server_id, "up", seconds=60)
        yield process


def calls(folder: Path) -> list[tuple[str, dict[str, Any], str]]:
    return [
        ("time__get_current_time", {"timezone": "Asia/Tokyo"}, "+09:00"),
        ("git__git_log", {"repo_path": str(folder)}, "A first commit"),
        ("sqlite__read_query", {"query": "select moons from planets"}, "2"),
        ("everything__echo", {"message": "is there anybody"}, "is there anybody"),
        ("filesystem__read_text_file", {"path": str(folder / "hello.txt")}, "hello from a file"),
        (f"{EXECUTOR}__python_execute", {"code": "print('hello from', 'Python')"}, "hello from Python"),
    ]


@pytest.mark.long
def test_each_answers_over_rest(real: GatewayProcess, folder: Path) -> None:
    for tool_id, parameters, expected in calls(folder):
        assert expected in real.text(tool_id, parameters), tool_id


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_each_answers_over_mcp_in_both_eras(real: GatewayProcess, folder: Path, mode: str) -> None:
    async def run() -> None:
        async with Client(f"{real.url}/mcp", mode=mode) as client:
            listed = {tool.name for tool in (await client.list_tools()).tools}
            for tool_id, parameters, expected in calls(folder):
                assert tool_id in listed
                result = await client.call_tool(tool_id, parameters)
                assert expected in "".join(getattr(block, "text", "") for block in result.content), tool_id

    asyncio.run(run())


def test_each_answers_over_the_router(real: GatewayProcess, folder: Path) -> None:
    async def run() -> None:
        async with connect(real.router_url, max_size=None) as socket:
            for tool_id, parameters, expected in calls(folder):
                frame = {"type": "execute_tool", "request_id": tool_id, "tool_id": tool_id, "parameters": parameters}
                await socket.send(json.dumps(frame))
                answer = json.loads(await socket.recv())
                assert answer["success"], answer
                assert expected in answer["result"]["content"][0]["text"]

    asyncio.run(run())


def test_content_of_other_kinds_and_structured_content_pass(real: GatewayProcess) -> None:
    content = real.execute("everything__get-tiny-image")["data"]["content"]
    image = next(block for block in content if block["type"] == "image")
    assert image["mimeType"] == "image/png"
    assert image["data"].startswith("iVBOR")
    weather = real.execute("everything__get-structured-content", {"location": "New York"})["data"]
    assert {"temperature", "conditions"} <= set(weather["structured_content"])


@pytest.mark.long
def test_progress_of_a_real_server_reaches_the_client(real: GatewayProcess) -> None:
    async def run() -> list[float]:
        seen: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        async with Client(f"{real.url}/mcp", mode="legacy") as client:
            await client.call_tool(
                "everything__trigger-long-running-operation", {"duration": 1, "steps": 4}, progress_callback=progress
            )
        return seen

    assert asyncio.run(run()) == [1, 2, 3, 4]


def test_a_tool_that_fails_is_a_result_not_an_error(real: GatewayProcess) -> None:
    answer = real.execute("filesystem__read_text_file", {"path": "/etc/passwd"})
    assert answer["success"] is True
    assert answer["data"]["is_error"] is True
    assert "denied" in answer["data"]["content"][0]["text"]


def test_wrong_arguments_never_reach_the_server(real: GatewayProcess) -> None:
    answer = real.execute("time__get_current_time", {"zone": "Asia/Tokyo"})
    assert answer["error"]["code"] == "invalid_arguments"
    assert '"timezone" is a required property' in answer["error"]["message"]
