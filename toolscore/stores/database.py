"""What must survive a restart: tools, attached servers, events. SQLite by default (WAL), Postgres by its URL.

Plain rows in, plain rows out; what they mean belongs to the rooms above.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

__all__ = ["Database", "StoreError", "open_database"]

BUSY_TIMEOUT_SECONDS = 5
"""How long a write waits for another process's lock before it fails."""

STATEMENT_SECONDS = 20
"""A database that hangs must not hold up what waits for it for ever."""

metadata = MetaData()

tools = Table(
    "tools",
    metadata,
    Column("tool_id", String(64), primary_key=True),
    Column("server_id", String(128), nullable=False),
    Column("name", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("definition_hash", String(64), nullable=False),
    Column("first_seen", String(32), nullable=False),
    Index("tools_by_server", "server_id"),
)

servers = Table(
    "servers",
    metadata,
    Column("server_id", String(128), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("attached_at", String(32), nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", String(12), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32)),
    Column("revoked_at", String(32)),
)

features = Table(
    "features",
    metadata,
    Column("server_id", String(128), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("content", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("type", String(64), nullable=False),
    Column("data", Text, nullable=False),
    Column("timestamp", String(32), nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, not even after its row was pruned
)


class StoreError(Exception):
    """The database refused or cannot be reached."""


class Database:
    """The tables above. Every method is one transaction.

    Raises:
        StoreError: from every method.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def ping(self) -> None:
        """Answer if the database does."""
        await self._read(select(func.count()).select_from(servers))

    async def load_tools(self) -> list[dict[str, Any]]:
        """All tools, in the order in which they are listed."""
        return await self._read(select(tools).order_by(tools.c.tool_id))

    async def save_tools(self, upserts: Sequence[dict[str, Any]], removed: Sequence[str]) -> None:
        """Write new and changed tools and forget removed ones (by `tool_id`)."""
        gone = [*removed, *(row["tool_id"] for row in upserts)]
        async with self._transaction() as connection:
            for start in range(0, len(gone), 500):  # below SQLite's bound on variables in a statement
                await connection.execute(delete(tools).where(tools.c.tool_id.in_(gone[start : start + 500])))
            if upserts:
                await connection.execute(insert(tools), list(upserts))

    async def load_keys(self) -> list[dict[str, Any]]:
        """All API keys, revoked ones too, the oldest first."""
        return await self._read(select(keys).order_by(keys.c.created_at, keys.c.key_id))

    async def save_key(self, row: Mapping[str, Any]) -> None:
        """Keep a new API key: its hash, never itself."""
        async with self._transaction() as connection:
            await connection.execute(insert(keys).values(**row))

    async def revoke_key(self, key_id: str, moment: str) -> bool:
        """Mark a key as revoked. Whether there was one."""
        statement = update(keys).where((keys.c.key_id == key_id) & keys.c.revoked_at.is_(None))
        async with self._transaction() as connection:
            return bool((await connection.execute(statement.values(revoked_at=moment))).rowcount)

    async def load_features(self) -> list[dict[str, Any]]:
        """What servers offer beside tools: JSON of each kind of each server."""
        return await self._read(select(features).order_by(features.c.server_id, features.c.kind))

    async def save_features(self, contents: Mapping[tuple[str, str], str | None]) -> None:
        """Write the JSON of `(server_id, kind)`; `None` removes it."""
        async with self._transaction() as connection:
            for (server_id, kind), content in contents.items():
                row = (features.c.server_id == server_id) & (features.c.kind == kind)
                await connection.execute(delete(features).where(row))
                if content is not None:
                    values = {"server_id": server_id, "kind": kind, "content": content}
                    await connection.execute(insert(features).values(**values))

    async def load_servers(self) -> list[dict[str, Any]]:
        """The servers that were attached at run time."""
        return await self._read(select(servers).order_by(servers.c.server_id))

    async def save_server(self, server_id: str, spec: str, attached_at: str) -> None:
        """Keep a server that was attached at run time."""
        async with self._transaction() as connection:
            await connection.execute(delete(servers).where(servers.c.server_id == server_id))
            await connection.execute(insert(servers).values(server_id=server_id, spec=spec, attached_at=attached_at))

    async def delete_server(self, server_id: str) -> None:
        """Forget an attached server. Its tools are the library's to remove."""
        async with self._transaction() as connection:
            await connection.execute(delete(servers).where(servers.c.server_id == server_id))

    async def append_events(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        """Add events and return their numbers, in order."""
        statement = insert(events).returning(events.c.seq, sort_by_parameter_order=True)
        async with self._transaction() as connection:
            return list((await connection.execute(statement, list(rows))).scalars())

    async def read_events(self, since: int, limit: int) -> list[dict[str, Any]]:
        """The events behind `since`, oldest first."""
        return await self._read(select(events).where(events.c.seq > since).order_by(events.c.seq).limit(limit))

    async def last_seq(self) -> int:
        """The number of the newest event, 0 where there is none."""
        rows = await self._read(select(func.max(events.c.seq).label("seq")))
        return int(rows[0]["seq"] or 0)

    async def prune_events(self, keep: int) -> None:
        """Keep the newest `keep` events."""
        async with self._transaction() as connection:
            newest = (await connection.execute(select(func.max(events.c.seq)))).scalar() or 0
            await connection.execute(delete(events).where(events.c.seq <= newest - keep))

    async def _read(self, statement: Any) -> list[dict[str, Any]]:
        async with self._transaction() as connection:
            return [dict(row) for row in (await connection.execute(statement)).mappings()]

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        try:
            async with asyncio.timeout(STATEMENT_SECONDS), self._engine.begin() as connection:
                yield connection
        except TimeoutError as exc:
            raise StoreError(f"the database did not answer within {STATEMENT_SECONDS} s") from exc
        except (SQLAlchemyError, OSError) as exc:
            raise StoreError(str(getattr(exc, "orig", None) or exc)) from exc


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Open the database, making file and tables where they are missing.

    Args:
        url: SQLAlchemy's form: `sqlite+aiosqlite:///path`, `postgresql+asyncpg://…`.

    Raises:
        StoreError: it cannot be opened.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        path = Path(str(parsed.database))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Specifications of attached servers may hold secrets: for the owner's eyes only.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as exc:
            raise StoreError(f"cannot open the database file {path}: {exc}") from exc
    engine = create_async_engine(url)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    try:
        try:
            async with engine.begin() as connection:
                await connection.run_sync(metadata.create_all)
        except (SQLAlchemyError, OSError) as exc:
            reason = getattr(exc, "orig", None) or exc
            raise StoreError(f"cannot open the database {parsed.render_as_string()}: {reason}") from exc
        yield Database(engine)
    finally:
        await engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")  # safe against a killed process; a power cut may cost the last moment
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}")
    cursor.close()
