"""Small transactions to SQLite in one step: all of one or nothing, and none after the other is lost."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from toolscore.stores import direct
from toolscore.stores.direct import DirectWriter

INSERT = "INSERT INTO t (n) VALUES (?)"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")
    connection.close()
    return tmp_path / "x.db"


def numbers(file: Path) -> list[int]:
    connection = sqlite3.connect(file)
    found = [number for (number,) in connection.execute("SELECT n FROM t ORDER BY n")]
    connection.close()
    return found


def test_a_transaction_is_written_whole_or_not_at_all(file: Path) -> None:
    async def check() -> None:
        writer = DirectWriter(file)
        with pytest.raises(sqlite3.IntegrityError):
            await writer.write([(INSERT, [(1,), (2,)]), (INSERT, [(2,)])])
        assert numbers(file) == []
        await writer.write([(INSERT, [(3,)])])
        writer.close()
        assert numbers(file) == [3]

    asyncio.run(check())


def test_writes_at_the_same_time_are_all_written(file: Path) -> None:
    async def check() -> None:
        writer = DirectWriter(file)
        await asyncio.gather(*(writer.write([(INSERT, [(number,)])]) for number in range(50)))
        writer.close()
        assert numbers(file) == list(range(50))

    asyncio.run(check())


def test_a_file_that_another_has_locked_is_written_when_it_is_free(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "BUSY_TIMEOUT_SECONDS", 0)

    async def check() -> None:
        writer = DirectWriter(file)
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await writer.write([(INSERT, [(1,)])])
        other.execute("COMMIT")
        other.close()
        await writer.write([(INSERT, [(1,)])])
        writer.close()
        assert numbers(file) == [1]

    asyncio.run(check())
