"""The database: the same promises on SQLite and on a real Postgres."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import create_async_engine
from support import EXECUTOR, debian_package, free_port, odd, running_gateway, wait_for

from toolscore.stores import Database, open_database
from toolscore.stores.database import StoreError


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server of our own on loopback."""
    programs = debian_package("postgresql", "/usr/lib/postgresql/*/bin/initdb").parent
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="toolscore-postgres-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    port = free_port()
    try:
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "toolscore", "--auth=trust", "--no-sync"]
        subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=folder)
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"],
            user=user, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 30, "for Postgres")
        try:
            yield f"postgresql+asyncpg://toolscore@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'folder' / 'toolscore.db'}"
    return str(request.getfixturevalue("postgres_url"))


def tool(number: int, **more: Any) -> dict[str, Any]:
    return {
        "tool_id": f"s__t{number:05d}",
        "server_id": "s",
        "name": f"t{number}",
        "definition": '{"name": "ünïcode \\u0041"}',
        "definition_hash": "0" * 64,
        "first_seen": "2026-11-21T00:00:00.000Z",
        **more,
    }


def test_what_is_saved_is_there_again(url: str) -> None:
    async def run() -> None:
        async with open_database(url) as database:
            await database.save_tools([tool(number) for number in range(1500)], [])
            await database.save_tools([tool(3, definition="{}")], [tool(4)["tool_id"]])
            await database.save_server("a", '{"command": "x"}', "2026-11-21T00:00:00.000Z")
            await database.save_server("a", '{"command": "y"}', "2026-11-21T00:00:00.000Z")
        async with open_database(url) as database:
            tools = await database.load_tools()
            assert len(tools) == 1499
            assert [row["tool_id"] for row in tools] == sorted(row["tool_id"] for row in tools)
            assert next(row for row in tools if row["name"] == "t3")["definition"] == "{}"
            assert [row["spec"] for row in await database.load_servers()] == ['{"command": "y"}']
            await database.delete_server("a")
            assert await database.load_servers() == []
            await database.save_tools([], [row["tool_id"] for row in tools])
            assert await database.load_tools() == []
            await database.ping()

    asyncio.run(run())


def test_a_database_of_an_older_version_gets_the_columns_that_it_lacks(url: str) -> None:
    async def run() -> None:
        async with open_database(url):
            pass
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("DROP INDEX calls_by_parent")
            await connection.exec_driver_sql("ALTER TABLE calls DROP COLUMN parent")
        for _ in range(2):  # and once it has them, nothing is done
            async with open_database(url) as database:
                assert await database.read_calls({"parent": "x"}, limit=1) == []
        async with engine.begin() as connection:
            indexes = await connection.run_sync(lambda sync: inspect(sync).get_indexes("calls"))
        await engine.dispose()
        assert "calls_by_parent" in [index["name"] for index in indexes]

    asyncio.run(run())


def test_events_are_numbered_in_order_and_never_twice(url: str) -> None:
    async def append(database: Database, count: int) -> list[int]:
        rows = [
            {"type": "server_up", "data": f'{{"server_id": "{number}"}}', "timestamp": "t"} for number in range(count)
        ]
        return await database.append_events(rows)

    async def run() -> None:
        async with open_database(url) as database:
            first = await append(database, 300)
            assert first == list(range(first[0], first[0] + 300))
            read = await database.read_events(first[9], 5)
            assert [row["seq"] for row in read] == first[10:15]
            assert read[0]["data"] == '{"server_id": "10"}'
            await database.prune_events(0)
            assert await database.read_events(0, 10) == []
        async with open_database(url) as database:
            assert (await append(database, 1))[0] == first[-1] + 1

    asyncio.run(run())


def test_a_database_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    async def run() -> None:
        for url in ("postgresql+asyncpg://nobody@127.0.0.1:9/none", "sqlite+aiosqlite:////proc/none/toolscore.db"):
            with pytest.raises(StoreError, match="cannot open the database"):
                async with open_database(url):
                    pass

    asyncio.run(run())


def test_a_gateway_on_postgres_keeps_tools_and_events(postgres_url: str) -> None:
    with running_gateway({"alpha": odd("echo")}, start=False, python=True) as process:
        settings = process.config / "toolscore.yaml"
        settings.write_text(f"storage: {{database_url: '{postgres_url}'}}\n")
        process.start()
        process.wait_for_state("alpha", "up")
        assert process.text("alpha__echo", {"text": "hi"}) == "hi"
        wait_for(lambda: process.event_seen("server_up", server_id="alpha"))
        events = process.events()
        process.kill()
        process.start()
        assert process.events()[: len(events)] == events
        assert {tool["server_id"] for tool in process.get("/api/v1/tools")["tools"]} == {"alpha", EXECUTOR, "toolscore"}


def test_a_database_that_fails_at_run_time_costs_no_call(tmp_path: Path) -> None:
    """The file is locked by somebody else for longer than a write waits."""
    import sqlite3

    with running_gateway({"alpha": odd("echo")}, python=True) as process:
        process.wait_for_state("alpha", "up")
        wait_for(lambda: process.event_seen("server_up", server_id="alpha"))
        with sqlite3.connect(process.folder / "data" / "toolscore.db", isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            process.http.post("/api/v1/servers/alpha/restart")
            for number in range(20):
                assert process.text("alpha__echo", {"text": str(number)}) == str(number)
            wait_for(lambda: process.get("/health")["checks"]["events"]["status"] == "degraded", 20)
            other.execute("ROLLBACK")
        process.http.post("/api/v1/servers/alpha/restart")
        wait_for(lambda: process.get("/health")["status"] == "healthy", 20, "for recovery")
