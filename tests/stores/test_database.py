"""The database: the same promises on SQLite and on a real Postgres."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from support import EXECUTOR, odd, running_gateway, toolscore, wait_for

from toolscore.stores.database import Database, TakenError, open_database
from toolscore.stores.errors import StoreError
from toolscore.stores.schema import HEAD
from toolscore.stores.tables import metadata

pytestmark = pytest.mark.long

OLD = Path(__file__).parent / "old"
"""How earlier releases made their tables."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'toolscore.db'}"
    new_database: Callable[[], str] = request.getfixturevalue("new_database")
    return new_database()


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
            if database.shared:  # another gateway may have attached it
                with pytest.raises(TakenError):
                    await database.save_server("a", '{"command": "y"}', "2026-11-21T00:00:00.000Z")
                await database.delete_server("a")
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


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def as_of_0_1_0(url: str) -> None:
    """Have the tables of release 0.1.0, and a tool and a key in them."""
    kind = make_url(url).get_backend_name()
    async with connected(url) as connection:
        for statement in (OLD / f"0_1_0_{kind}.sql").read_text().split(";\n"):
            if statement.strip():
                await connection.exec_driver_sql(statement)
        await connection.exec_driver_sql("INSERT INTO tools VALUES ('s__t', 's', 't', '{}', '0', 'then')")
        await connection.exec_driver_sql("INSERT INTO keys VALUES ('k', 'ada', 'h', '[]', 'then', NULL, NULL)")


def test_a_database_of_the_first_release_is_migrated_whole(url: str) -> None:
    """It ends with the very schema that an empty one gets."""

    def difference(sync: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata))

    async def run() -> None:
        await as_of_0_1_0(url)
        for had in ("0001", HEAD):  # and once it has it, nothing is done
            async with open_database(url) as database:
                assert database.had == had
                assert [row["tool_id"] for row in await database.load_tools()] == ["s__t"]
                assert [row["name"] for row in await database.load_keys()] == ["ada"]
                assert await database.read_calls({"parent": "x"}, limit=1) == []
        async with connected(url) as connection:
            assert await connection.run_sync(difference) == []

    asyncio.run(run())


def test_an_index_of_parents_has_the_calls_that_have_one(url: str) -> None:
    async def run() -> None:
        async with open_database(url), connected(url) as connection:
            made = (
                "SELECT sql FROM sqlite_master WHERE name"
                if "sqlite" in url
                else "SELECT indexdef FROM pg_indexes WHERE indexname"
            )
            text = (await connection.exec_driver_sql(f"{made} = 'calls_by_parent'")).scalar_one()
            assert "parent is not null" in str(text).lower()

    asyncio.run(run())


def test_what_a_checkout_on_the_way_to_the_next_release_made_is_migrated(url: str) -> None:
    async def run() -> None:
        await as_of_0_1_0(url)
        async with connected(url) as connection:
            await connection.exec_driver_sql("ALTER TABLE calls ADD COLUMN parent VARCHAR(32)")
            await connection.exec_driver_sql("CREATE TABLE tools_off (tool_id VARCHAR(64) PRIMARY KEY)")
            await connection.exec_driver_sql("INSERT INTO tools_off VALUES ('s__t')")
        async with open_database(url) as database:
            assert await database.load_tools_off() == {"s__t"}

    asyncio.run(run())


@pytest.mark.parametrize("old", [False, True], ids=["empty", "old"])
def test_many_that_open_a_database_at_once_migrate_it_once(url: str, old: bool) -> None:
    """Processes, as replicas are."""
    if old:
        asyncio.run(as_of_0_1_0(url))
    script = (
        "import asyncio, sys; from toolscore.stores.database import open_database\n"
        "async def run():\n"
        "    async with open_database(sys.argv[1]) as database: print(database.had, await database.load_tools_off())\n"
        "asyncio.run(run())"
    )
    command = [sys.executable, "-c", script, url]
    replicas = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(5)
    ]
    said = [one.communicate(timeout=180)[0].strip() for one in replicas]
    first = "0001 set()" if old else "None set()"
    assert sorted(said) == sorted([first] + [f"{HEAD} set()"] * 4)


def test_a_replica_says_what_to_do_about_a_schema_that_is_not_its_own(url: str) -> None:
    async def run() -> None:
        with pytest.raises(
            StoreError, match=f"no tables, this release needs the schema {HEAD}: run `toolscore migrate`"
        ):
            async with open_database(url, migrate=False):
                pass
        async with open_database(url):
            pass
        async with connected(url) as connection:
            await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
        async with open_database(url, migrate=False) as database:
            assert database.had == "0999", "a newer release only adds"
        async with connected(url) as connection:
            await connection.exec_driver_sql("UPDATE compatible SET since = '0998'")
        with pytest.raises(
            StoreError, match=r"a newer release has given the database the schema 0999.*update ToolScore"
        ):
            async with open_database(url):
                pass

    asyncio.run(run())


def test_it_is_migrated_from_the_command_line(tmp_path: Path) -> None:
    def migrate() -> str:
        done = toolscore("migrate", env={**os.environ, "TOOLSCORE_STORAGE__DATA_DIR": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    asyncio.run(as_of_0_1_0(f"sqlite+aiosqlite:///{tmp_path / 'toolscore.db'}"))
    assert f"had the schema 0001, and has {HEAD} now" in migrate()
    assert f"has the schema {HEAD} already" in migrate()


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


def test_a_gateway_on_postgres_keeps_tools_and_events(new_database: Callable[[], str]) -> None:
    with running_gateway({"alpha": odd("echo")}, start=False, python=True) as process:
        settings = process.config / "toolscore.yaml"
        settings.write_text(f"storage: {{database_url: '{new_database()}'}}\n")
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
            wait_for(lambda: process.get("/health")["checks"]["events"]["status"] == "degraded", 60)
            other.execute("ROLLBACK")
        process.http.post("/api/v1/servers/alpha/restart")
        wait_for(lambda: process.get("/health")["status"] == "healthy", 60, "for recovery")
