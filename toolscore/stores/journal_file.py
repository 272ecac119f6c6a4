"""The journal in a SQLite file, for the process that writes it: without SQLAlchemy, which is half of its memory.

And in one step, thirty times a second: through SQLAlchemy and aiosqlite each write is four ways to a thread and back,
at ten times the CPU of the writing itself.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

from toolscore.stores.errors import StoreError

__all__ = ["JournalFile", "JournalStore", "open_journal", "prepare"]

BUSY_TIMEOUT_SECONDS = 5
"""How long a write waits for another process's lock before it fails."""

Rows = Sequence[dict[str, Any]]
T = TypeVar("T")


def prepare(connection: Any) -> None:
    """Set up a new connection to SQLite, of whatever driver."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")  # safe against a killed process; a power cut may cost the last moment
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}")
    cursor.close()


class JournalStore(Protocol):
    """A database, for whoever writes the journal. Raises `StoreError` from every method."""

    async def append_calls(self, rows: Rows, large: Rows) -> None:
        """Write calls, and the large bodies that they name, each once."""
        ...

    async def journal_size(self) -> tuple[int, int]:
        """How many calls are kept, and the bytes of their bodies."""
        ...

    async def nth_newest_call(self, offset: int) -> str | None:
        """The `call_id` that so many calls are newer than."""
        ...

    async def prune_calls(self, before: str, bodies_before: str) -> int:
        """Forget the calls before this one, and large bodies that none since `bodies_before` named."""
        ...


class JournalFile:
    """A `JournalStore` in a file that has its tables. Reading and pruning do not hold up what is appended."""

    def __init__(self, file: Path) -> None:
        self._appending = _Connection(file)
        self._pruning = _Connection(file)
        self._upserts: dict[str, tuple[str, list[str]]] = {}

    async def append_calls(self, rows: Rows, large: Rows) -> None:
        def append(connection: sqlite3.Connection) -> None:
            for table, key, of_table in (("bodies", "hash", large), ("calls", "call_id", rows)):
                if of_table:
                    statement, order = self._upsert(table, key, of_table[0])
                    connection.executemany(statement, [tuple(row[name] for name in order) for row in of_table])

        await self._appending.do(append)

    def _upsert(self, table: str, key: str, row: dict[str, Any]) -> tuple[str, list[str]]:
        """The statement that writes rows like this, once or twice the same, and the columns in its order. Others that
        the table has, as that of a later release may, are left alone.
        """
        known = self._upserts.get(table)
        if known is None:
            into = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608 - our words
            others = ", ".join(f"{name} = excluded.{name}" for name in row if name != key)
            known = self._upserts[table] = (f"{into} ON CONFLICT ({key}) DO UPDATE SET {others}", list(row))
        return known

    async def journal_size(self) -> tuple[int, int]:
        def measure(connection: sqlite3.Connection) -> tuple[int, int]:
            number, small = connection.execute(
                "SELECT count(*), sum(coalesce(length(arguments), 0) + coalesce(length(result), 0)) FROM calls"
            ).fetchone()
            (large,) = connection.execute("SELECT sum(size) FROM bodies").fetchone()
            return number, (small or 0) + (large or 0)

        return await self._pruning.do(measure)

    async def nth_newest_call(self, offset: int) -> str | None:
        statement = "SELECT call_id FROM calls ORDER BY call_id DESC LIMIT 1 OFFSET ?"
        found = await self._pruning.do(lambda connection: connection.execute(statement, (offset,)).fetchone())
        return str(found[0]) if found is not None else None

    async def prune_calls(self, before: str, bodies_before: str) -> int:
        def prune(connection: sqlite3.Connection) -> int:
            gone = connection.execute("DELETE FROM calls WHERE call_id < ?", (before,)).rowcount
            connection.execute("DELETE FROM bodies WHERE last_call < ?", (bodies_before,))
            return gone

        return await self._pruning.do(prune)

    def close(self) -> None:
        """Close, once what is under way has ended."""
        self._appending.close()
        self._pruning.close()


class _Connection:
    """A connection of its own to a file that is there, opened when it is needed and after each error anew."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction, in a thread. If it is cancelled, it may be carried out all the same.

        Raises:
            StoreError: nothing of it was written.
        """
        try:
            return await asyncio.to_thread(self._do, work)
        except sqlite3.Error as exc:
            raise StoreError(str(exc)) from exc

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _connected(self._file, check_same_thread=False)
                    prepare(self._connection)
                with self._connection:
                    return work(self._connection)
            except BaseException:
                self._close()
                raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        with self._lock:
            self._close()


@asynccontextmanager
async def open_journal(url: str) -> AsyncIterator[JournalStore]:
    """Open a database to write the journal.

    Args:
        url: as of `open_database`, which makes or migrates what is missing.

    Raises:
        StoreError: it cannot be opened.
    """
    file = _file_of(url)
    if file is None or not await asyncio.to_thread(_has_journal, file):
        from toolscore.stores.database import open_database

        async with open_database(url) as database:
            if file is None:
                yield database
                return
    journal = JournalFile(file)
    try:
        yield journal
    finally:
        await asyncio.to_thread(journal.close)


def _file_of(url: str) -> Path | None:
    """The file of a SQLite database; `None`: it is in memory, has options of its own, or is another database."""
    kind, _, path = url.partition(":///")
    is_file = kind.startswith("sqlite") and path not in ("", ":memory:") and "?" not in path
    return Path(unquote(path)) if is_file else None  # as SQLAlchemy reads it


def _has_journal(file: Path) -> bool:
    try:
        with closing(_connected(file)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return False
    return {"calls", "bodies"} <= tables


def _connected(file: Path, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, **options)
    return connection  # to a file that was there
