"""The journal in a SQLite file: all of a transaction or nothing, none lost, and the same as SQLAlchemy's way."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolscore.stores import journal_file
from toolscore.stores.database import open_database
from toolscore.stores.errors import StoreError
from toolscore.stores.journal_file import JournalFile, open_journal
from toolscore.stores.rules import StoreRules
from toolscore.stores.tables import calls

pytestmark = pytest.mark.anyio


def row(call_id: str, **more: Any) -> dict[str, Any]:
    texts = dict.fromkeys([column.name for column in calls.columns], "x")
    return {**texts, "call_id": call_id, "at_ms": 1, "duration_ms": 1.5, "redacted": 0, "queued_ms": None,
            "server_ms": 0.5, "result": None, **more}  # fmt: skip


def body(name: str, last_call: str) -> dict[str, Any]:
    return {"hash": name, "content": b"\0z", "size": 2, "last_call": last_call}


@pytest.fixture
async def url(tmp_path: Path) -> str:
    url = f"sqlite+aiosqlite:///{tmp_path / 'with space' / 'x.db'}"
    async with open_journal(url):
        pass  # made with its tables, where there was nothing
    return url


@pytest.fixture
def file(url: str) -> Path:
    return Path(url.partition(":///")[2])


async def test_what_is_written_is_what_the_database_reads(url: str) -> None:
    async with open_journal(url) as journal, open_database(url) as database:
        assert isinstance(journal, JournalFile)
        rows = [row("a", result="1"), row("b", result="22", arguments=None), row("c")]
        await journal.append_calls(rows, [body("large", "c")])
        await journal.append_calls([row("c", outcome="ok")], [body("large", "d")])  # sent again
        found = await database.read_these_calls(["a", "b"])
        assert sorted(found, key=lambda one: one["call_id"]) == rows[:2]
        assert (await database.read_call("c") or {})["outcome"] == "ok"
        assert await database.read_bodies(["large"]) == {"large": b"\0z"}
        assert await journal.journal_size() == await database.journal_size() == (3, 1 + 1 + 2 + 1 + 2)
        assert await journal.nth_newest_call(1) == await database.nth_newest_call(1) == "b"
        assert await journal.nth_newest_call(3) is None
        assert await journal.prune_calls("c", "d") == 2
        assert await journal.journal_size() == (1, 3), "its body is still named"
        assert await journal.prune_calls("d", "e") == 1
        assert await database.journal_size() == (0, 0)


async def test_a_transaction_is_written_whole_or_not_at_all(url: str) -> None:
    async with open_journal(url) as journal:
        with pytest.raises(StoreError, match="NOT NULL"):
            await journal.append_calls([row("a"), row("b", outcome=None)], [body("large", "b")])
        assert await journal.journal_size() == (0, 0)
        await journal.append_calls([row("b")], [])
        assert (await journal.journal_size())[0] == 1


async def test_writes_at_the_same_time_are_all_written(url: str) -> None:
    async with open_journal(url) as journal:
        await asyncio.gather(*(journal.append_calls([row(f"{number}")], []) for number in range(50)))
        assert (await journal.journal_size())[0] == 50


async def test_a_file_that_another_has_locked_is_written_when_it_is_free(
    url: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file, "BUSY_TIMEOUT_SECONDS", 0)
    async with open_journal(url) as journal:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await journal.append_calls([row("a")], [])
        assert await journal.journal_size() == (0, 0), "reading goes on"
        other.execute("COMMIT")
        other.close()
        await journal.append_calls([row("a")], [])
        assert (await journal.journal_size())[0] == 1


async def test_a_file_that_went_is_an_error_and_not_made_anew(url: str, file: Path) -> None:
    async with open_journal(url) as journal:
        for one in file.parent.iterdir():
            one.unlink()
        with pytest.raises(StoreError, match="unable to open"):
            await journal.append_calls([row("a")], [])
        assert not file.exists()


async def test_the_schema_of_a_later_release_is_written_as_far_as_it_is_known(url: str, file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("ALTER TABLE calls ADD COLUMN region TEXT")
    connection.close()
    async with open_journal(url) as journal:
        await journal.append_calls([row("a")], [body("large", "a")])
        assert await journal.journal_size() == (1, 3)


async def test_the_schema_of_an_earlier_release_is_an_error(url: str, file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("ALTER TABLE calls DROP COLUMN server_ms")
    connection.close()
    async with open_journal(url) as journal:
        with pytest.raises(StoreError, match="server_ms"):
            await journal.append_calls([row("a")], [])


@pytest.mark.parametrize("name", ["100% a%20b", "what?", "ä #1"])
async def test_a_folder_of_any_name_has_the_database_of_both(tmp_path: Path, name: str) -> None:
    rules = StoreRules(data_dir=str(tmp_path / name))
    async with open_database(rules.url) as database, open_journal(rules.url) as journal:
        assert isinstance(journal, JournalFile)
        await journal.append_calls([row("a")], [])
        assert (await database.journal_size())[0] == 1
        assert (tmp_path / name / "toolscore.db").is_file()


async def test_a_database_in_memory_goes_the_usual_way() -> None:
    async with open_journal("sqlite+aiosqlite:///:memory:") as journal:
        assert not isinstance(journal, JournalFile)
        await journal.append_calls([row("a")], [])
        assert (await journal.journal_size())[0] == 1


def test_the_recorder_does_without_sqlalchemy() -> None:
    code = "import sys, toolscore.history.recorder; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
