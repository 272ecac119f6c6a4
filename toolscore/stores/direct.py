"""Small transactions to SQLite in one step: the journal's, thirty times a second.

Through SQLAlchemy and aiosqlite each is four ways to a thread and back, at ten times the CPU of the writing itself.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["DirectWriter", "prepare"]

BUSY_TIMEOUT_SECONDS = 5
"""How long a write waits for another process's lock before it fails."""


def prepare(connection: Any) -> None:
    """Set up a new connection to SQLite, of whatever driver."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")  # safe against a killed process; a power cut may cost the last moment
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}")
    cursor.close()


class DirectWriter:
    """A connection of its own to a database file, opened at the first write."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    async def write(self, statements: Sequence[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
        """One transaction: each statement for each of its rows. If it is cancelled, it is carried out all the same.

        Raises:
            sqlite3.Error: nothing of it was written.
        """
        await asyncio.to_thread(self._write, statements)

    def _write(self, statements: Sequence[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = sqlite3.connect(self._file, check_same_thread=False)
                    prepare(self._connection)
                with self._connection:
                    for statement, rows in statements:
                        self._connection.executemany(statement, rows)
            except BaseException:
                self._close()  # whatever it is, the next write begins anew
                raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close, once a write under way has ended."""
        with self._lock:
            self._close()
