"""What must survive a restart: tools, attached servers, events. SQLite by default (WAL), Postgres by its URL.

Plain rows in, plain rows out; what they mean belongs to the rooms above.

One module: it is a list of queries, each of a few lines, and every one goes through the same transaction.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import Table, delete, event, func, insert, literal_column, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from toolscore.core.errors import Overloaded
from toolscore.stores.engine import AsyncEngine, create_async_engine
from toolscore.stores.errors import StoreError
from toolscore.stores.journal_file import prepare
from toolscore.stores.schema import SchemaBehind, SchemaMismatch, bring_up_to_date
from toolscore.stores.tables import (
    bodies,
    cached,
    calls,
    catalogs,
    changes,
    events,
    features,
    fixes,
    installs,
    keys,
    patterns,
    pins,
    scores,
    seals,
    servers,
    switched_off,
    tools,
    tools_off,
    uses,
    vectors,
)

__all__ = ["Database", "OldSchemaError", "TakenError", "caught_up", "open_database", "or_overloaded"]

MAX_VARIABLES = 500
"""Below SQLite's bound on variables in a statement."""

STATEMENT_SECONDS = 20
"""A database that hangs must not hold up what waits for it for ever."""
CHANGE_SECONDS = 5
"""For a change of a few rows that somebody waits for."""


CHANNEL = "toolscore"
"""On which Postgres tells of writes."""
SHARED_PARTS = ("events", "servers", "tools_off", "pins", "keys", "installs", "scores")
LISTEN_CHECK_SECONDS = 1.0
IDENTITY = "identity"
SEAL = "first"


class OldSchemaError(StoreError):
    """The database has the schema of an older release, or none, and was not to be migrated."""


class TakenError(Exception):
    """Another gateway has given this id to something else."""


async def caught_up(database: Database, read_again: Callable[[], Awaitable[None]]) -> None:
    """Read again what another gateway may have changed a moment ago, before it is changed here: else what is asked for
    would be held against what was. What the database does not say now it will refuse to take.
    """
    if database.shared:
        with suppress(StoreError):
            await read_again()


@contextmanager
def or_overloaded(what: str, retry_after_seconds: int = 1) -> Iterator[None]:
    """Tell a caller that something is not done now, `what` and the reason, since the database refuses it.

    Raises:
        Overloaded: in the place of `StoreError`.
    """
    try:
        yield
    except StoreError as exc:
        raise Overloaded(f"{what}: {exc}", retry_after_seconds=retry_after_seconds) from exc


class Database:
    """The tables above. Every method is one transaction.

    Args:
        had: the revision of its schema when it was opened; `None`: it was empty.
        shared: whether several gateways write to it; `None`: to Postgres they may.

    Attributes:
        tells: whether the database itself tells those who listen that somebody wrote.
        on_write: told that a part was written which gateways share, where the database does not tell.

    Raises:
        StoreError: from every method.
    """

    def __init__(self, engine: AsyncEngine, had: str | None = None, shared: bool | None = None) -> None:
        self.had = had
        self._engine = engine
        self.tells = engine.dialect.name == "postgresql"
        self.shared = self.tells if shared is None else shared
        self.on_write: Callable[[], None] = lambda: None
        self._own: dict[str, set[int]] = {part: set() for part in SHARED_PARTS}
        self._upserts: dict[str, tuple[str, tuple[str, ...]]] = {}

    async def check_writable(self) -> None:
        """Make a write that changes nothing.

        Raises:
            StoreError: it is refused.
        """
        async with self._transaction() as connection:
            await connection.execute(delete(cached).where(cached.c.key == ""))

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
            await self._delete_in(connection, tools.c.tool_id, gone)
            if upserts:
                await connection.execute(insert(tools), list(upserts))

    async def load_keys(self) -> list[dict[str, Any]]:
        """All API keys, revoked ones too, the oldest first."""
        return await self._read(select(keys).order_by(keys.c.created_at, keys.c.key_id))

    async def save_key(self, row: Mapping[str, Any]) -> None:
        """Keep a new API key: its hash, never itself."""
        async with self._transaction("keys") as connection:
            await connection.execute(insert(keys).values(**row))

    async def revoke_key(self, key_id: str, moment: str) -> bool:
        """Mark a key as revoked. Whether there was one."""
        statement = update(keys).where((keys.c.key_id == key_id) & keys.c.revoked_at.is_(None))
        async with self._transaction("keys") as connection:
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
        """Keep a server that was attached at run time.

        Raises:
            TakenError: another one was attached under its id.
        """
        async with self._transaction("servers") as connection:
            if self.shared:
                of_id = select(servers.c.spec).where(servers.c.server_id == server_id)
                if (await connection.execute(of_id)).scalar() not in (None, spec):
                    raise TakenError(server_id)
            await connection.execute(delete(servers).where(servers.c.server_id == server_id))
            await connection.execute(insert(servers).values(server_id=server_id, spec=spec, attached_at=attached_at))

    async def delete_server(self, server_id: str) -> None:
        """Forget an attached server, and that it was disabled. Its tools are the library's to remove."""
        async with self._transaction("servers") as connection:
            for table in (servers, switched_off):
                await connection.execute(delete(table).where(table.c.server_id == server_id))

    async def load_switched_off(self) -> set[str]:
        """The ids of the servers that were disabled at run time."""
        return {row["server_id"] for row in await self._read(select(switched_off))}

    async def save_switched_off(self, server_id: str, off: bool) -> None:
        """Keep that a server is disabled, or is not any more."""
        async with self._transaction("servers") as connection:
            await connection.execute(delete(switched_off).where(switched_off.c.server_id == server_id))
            if off:
                await connection.execute(insert(switched_off).values(server_id=server_id))

    async def load_tools_off(self) -> set[str]:
        """The ids of the tools that were disabled."""
        return {row["tool_id"] for row in await self._read(select(tools_off))}

    async def save_tool_off(self, tool_id: str, off: bool, event: dict[str, Any] | None) -> None:
        """Keep that a tool is disabled, or is not any more, and the event that says so."""
        async with self._transaction("tools_off", *([] if event is None else ["events"])) as connection:
            await connection.execute(delete(tools_off).where(tools_off.c.tool_id == tool_id))
            if off:
                await connection.execute(insert(tools_off).values(tool_id=tool_id))
            if event is not None:
                await connection.execute(insert(events).values(**event))

    async def append_events(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        """Add events and return their numbers, in order; with several gateways, also in the order of their commits.

        Args:
            rows: what several gateways tell `about` a tool is kept once: one that says what the newest event about its
                tool says is left out, and gets no number.
        """
        statement = insert(events).returning(events.c.seq, sort_by_parameter_order=True)
        async with self._transaction("events") as connection:
            fresh = await self._untold(connection, rows) if self.shared else list(rows)
            return list((await connection.execute(statement, fresh)).scalars()) if fresh else []

    async def _untold(self, connection: Any, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        abouts: set[str] = {row["about"] for row in rows if row.get("about") is not None}
        last = select(func.max(events.c.seq)).where(events.c.about.in_(abouts)).group_by(events.c.about)
        found = await connection.execute(select(events).where(events.c.seq.in_(last)))
        newest = {row.about: (row.type, row.data) for row in found}
        fresh = []
        for one in rows:
            told_about, said = one.get("about"), (one["type"], one["data"])
            if told_about is None or newest.get(told_about) != said:
                fresh.append(one)
            if told_about is not None:
                newest[told_about] = said
        return fresh

    async def read_events(self, since: int, limit: int) -> list[dict[str, Any]]:
        """The events behind `since`, oldest first."""
        return await self._read(select(events).where(events.c.seq > since).order_by(events.c.seq).limit(limit))

    async def oldest_seq(self) -> int:
        """The number of the oldest event that is kept, 0 where there is none."""
        rows = await self._read(select(func.min(events.c.seq).label("seq")))
        return int(rows[0]["seq"] or 0)

    async def last_seq(self) -> int:
        """The number of the newest event, 0 where there is none."""
        rows = await self._read(select(func.max(events.c.seq).label("seq")))
        return int(rows[0]["seq"] or 0)

    async def prune_events(self, keep: int) -> None:
        """Keep the newest `keep` events."""
        async with self._transaction() as connection:
            newest = (await connection.execute(select(func.max(events.c.seq)))).scalar() or 0
            await connection.execute(delete(events).where(events.c.seq <= newest - keep))

    # Results that may be given again

    async def load_cached_keys(self) -> list[dict[str, Any]]:
        """Key, tool, server, size in bytes and end of each kept result, the oldest first."""
        size = func.length(cached.c.result).label("size")
        columns = (cached.c.key, cached.c.tool_id, cached.c.server_id, cached.c.stale_until, size)
        return await self._read(select(*columns).order_by(cached.c.stored_at))

    async def load_cached(self, key: str) -> dict[str, Any] | None:
        """One kept result."""
        rows = await self._read(select(cached).where(cached.c.key == key))
        return rows[0] if rows else None

    async def expired_cached(self, now: float, limit: int) -> list[str]:
        """Keys of results that are of no use any more."""
        rows = await self._read(select(cached.c.key).where(cached.c.stale_until < now).limit(limit))
        return [row["key"] for row in rows]

    async def forget_cached(self, server_id: str | None = None) -> None:
        """Forget all results, or those of a server."""
        which = delete(cached) if server_id is None else delete(cached).where(cached.c.server_id == server_id)
        async with self._transaction() as connection:
            await connection.execute(which)

    async def save_cached(self, rows: Sequence[dict[str, Any]], removed: Collection[str]) -> None:
        """Keep results, and forget others (by key)."""
        async with self._transaction() as connection:
            await self._delete_in(connection, cached.c.key, removed)
            await self._upsert(connection, cached, rows)

    # The journal

    async def append_calls(self, rows: Sequence[dict[str, Any]], large: Sequence[dict[str, Any]]) -> None:
        """Write calls, and the large bodies that they name, each once."""
        async with self._transaction() as connection:  # a record may be sent twice, never kept twice
            await self._upsert(connection, bodies, large)
            await self._upsert(connection, calls, rows)

    async def read_calls(
        self,
        filters: Mapping[str, Any],
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        before: str | None = None,
        limit: int,
    ) -> list[dict[str, Any]]:
        """Calls whose columns equal `filters`, the newest first; those before the `call_id` that a page ended with."""
        statement = select(calls).order_by(calls.c.call_id.desc()).limit(limit)
        for column, value in filters.items():
            statement = statement.where(calls.c[column] == value)
        if since_ms is not None:
            statement = statement.where(calls.c.at_ms >= since_ms)
        if until_ms is not None:
            statement = statement.where(calls.c.at_ms < until_ms)
        if before is not None:
            statement = statement.where(calls.c.call_id < before)
        return await self._read(statement)

    async def read_call(self, call_id: str) -> dict[str, Any] | None:
        """One call."""
        rows = await self._read(select(calls).where(calls.c.call_id == call_id))
        return rows[0] if rows else None

    async def read_these_calls(self, call_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Calls by their ids, the newest first."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(call_ids), MAX_VARIABLES):
            some = calls.c.call_id.in_(call_ids[start : start + MAX_VARIABLES])
            found += await self._read(select(calls).where(some).order_by(calls.c.call_id.desc()))
        return found

    async def read_bodies(self, hashes: Collection[str]) -> dict[str, bytes]:
        """Large bodies by their hashes."""
        found: dict[str, bytes] = {}
        wanted = list(hashes)
        for start in range(0, len(wanted), MAX_VARIABLES):
            some = bodies.c.hash.in_(wanted[start : start + MAX_VARIABLES])
            rows = await self._read(select(bodies.c.hash, bodies.c.content).where(some))
            found |= {row["hash"]: row["content"] for row in rows}
        return found

    async def journal_size(self) -> tuple[int, int]:
        """How many calls are kept, and the bytes of their bodies."""
        of_calls = func.coalesce(func.length(calls.c.arguments), 0) + func.coalesce(func.length(calls.c.result), 0)
        small = await self._read(select(func.count().label("n"), func.sum(of_calls).label("size")).select_from(calls))
        large = await self._read(select(func.sum(bodies.c.size).label("size")))
        return int(small[0]["n"]), int(small[0]["size"] or 0) + int(large[0]["size"] or 0)

    async def nth_newest_call(self, offset: int) -> str | None:
        """The `call_id` that so many calls are newer than."""
        rows = await self._read(select(calls.c.call_id).order_by(calls.c.call_id.desc()).offset(offset).limit(1))
        return str(rows[0]["call_id"]) if rows else None

    async def prune_calls(self, before: str, bodies_before: str) -> int:
        """Forget the calls before this one, and large bodies that none since `bodies_before` named."""
        async with self._transaction() as connection:
            gone = await connection.execute(delete(calls).where(calls.c.call_id < before))
            await connection.execute(delete(bodies).where(bodies.c.last_call < bodies_before))
            return int(gone.rowcount)

    # What was seen of tools

    async def load_pins(self) -> list[dict[str, Any]]:
        """The definitions that tools are held to."""
        return await self._read(select(pins).order_by(pins.c.server_id, pins.c.name))

    async def save_pins(self, rows: Sequence[dict[str, Any]], forgotten_server: str | None = None) -> None:
        """Write pins, each if nobody wrote the version in it before; those of `forgotten_server` go first."""
        async with self._transaction("pins") as connection:
            if forgotten_server is not None:
                await connection.execute(delete(pins).where(pins.c.server_id == forgotten_server))
            await self._upsert(connection, pins, rows, version=pins.c.version)

    async def delete_pins(self, server_id: str, names: Collection[str]) -> None:
        """Forget pins of tools that a server lists no more."""
        async with self._transaction("pins") as connection:
            await self._delete_in(connection, pins.c.name, names, pins.c.server_id == server_id)

    async def load_scores(self) -> list[dict[str, Any]]:
        """What the scores are made of, as JSON for each tool."""
        return await self._read(select(scores))

    async def change_scores(self, tool_ids: Sequence[str], change: Callable[[str, str | None], str]) -> dict[str, str]:
        """Write what the scores of tools are made of, out of what stands there; nobody writes in between.

        Args:
            change: makes the new JSON of a tool out of the kept one; `None`: there is none.

        Returns:
            What was written.
        """
        async with self._transaction("scores") as connection:
            if not self.shared:  # else it has written already, and others wait
                await connection.exec_driver_sql("BEGIN IMMEDIATE")  # else what is read may be old by the write
            kept: dict[str, str] = {}
            for start in range(0, len(tool_ids), MAX_VARIABLES):
                some = scores.c.tool_id.in_(tool_ids[start : start + MAX_VARIABLES])
                kept |= {row.tool_id: row.state for row in await connection.execute(select(scores).where(some))}
            written = {tool_id: change(tool_id, kept.get(tool_id)) for tool_id in tool_ids}
            rows = [{"tool_id": tool_id, "state": state} for tool_id, state in written.items()]
            await self._upsert(connection, scores, rows)
            return written

    async def delete_scores(self, tool_ids: Collection[str]) -> None:
        """Forget what the scores of tools are made of."""
        async with self._transaction("scores") as connection:
            await self._delete_in(connection, scores.c.tool_id, tool_ids)

    async def load_patterns(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Patterns of errors, the oldest first, and the fixes known of them."""
        return (
            await self._read(select(patterns).order_by(patterns.c.first_seen, patterns.c.pattern_id)),
            await self._read(select(fixes)),
        )

    async def save_patterns(
        self,
        of_patterns: Sequence[dict[str, Any]],
        of_fixes: Sequence[dict[str, Any]],
        removed_fixes: Collection[str] = (),
    ) -> None:
        """Write patterns of errors and fixes.

        Args:
            of_patterns: `count` is what is added to the kept one.
        """
        async with self._transaction() as connection:
            await self._delete_in(connection, fixes.c.fix_id, removed_fixes)
            await self._upsert(connection, patterns, of_patterns, added=patterns.c.count)
            await self._upsert(connection, fixes, of_fixes)

    async def delete_patterns(self, pattern_ids: Collection[str]) -> None:
        """Forget patterns of errors."""
        async with self._transaction() as connection:
            await self._delete_in(connection, patterns.c.pattern_id, pattern_ids)

    # Search

    async def load_vectors(self, model: str, hashes: Sequence[str]) -> dict[str, bytes]:
        """Vectors of texts, by their hashes."""
        found: dict[str, bytes] = {}
        for start in range(0, len(hashes), MAX_VARIABLES):
            some = (vectors.c.model == model) & vectors.c.hash.in_(hashes[start : start + MAX_VARIABLES])
            rows = await self._read(select(vectors.c.hash, vectors.c.vector).where(some))
            found |= {row["hash"]: row["vector"] for row in rows}
        return found

    async def save_vectors(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep vectors of texts."""
        async with self._transaction() as connection:
            await self._upsert(connection, vectors, rows)

    async def load_catalog(self, source: str) -> tuple[bytes, int] | None:
        """The last copy of a catalog, compressed, and when it was made (ms since 1970)."""
        rows = await self._read(select(catalogs).where(catalogs.c.source == source))
        return (bytes(rows[0]["content"]), int(rows[0]["fetched_at_ms"])) if rows else None

    async def save_catalog(self, source: str, content: bytes, fetched_at_ms: int) -> None:
        """Keep a copy of a catalog."""
        async with self._transaction() as connection:
            row = {"source": source, "content": content, "fetched_at_ms": fetched_at_ms}
            await self._upsert(connection, catalogs, [row])

    async def load_installs(self) -> list[dict[str, Any]]:
        """What was installed, the oldest first."""
        return await self._read(select(installs).order_by(installs.c.installed_at))

    async def save_install(self, row: dict[str, Any]) -> None:
        """Note that a server was installed."""
        async with self._transaction("installs") as connection:
            await self._upsert(connection, installs, [row])

    async def delete_install(self, server_id: str) -> None:
        """Note that it is gone."""
        async with self._transaction("installs") as connection:
            await connection.execute(delete(installs).where(installs.c.server_id == server_id))

    async def load_uses(self) -> list[dict[str, Any]]:
        """Tasks that tools were good for, the oldest first."""
        return await self._read(select(uses).order_by(uses.c.at))

    async def save_use(self, row: dict[str, Any]) -> None:
        """Keep a task that a tool was good for."""
        async with self._transaction() as connection:
            await self._upsert(connection, uses, [row])

    async def delete_use(self, use_id: str) -> None:
        """Forget one task."""
        async with self._transaction() as connection:
            await connection.execute(delete(uses).where(uses.c.use_id == use_id))

    async def delete_uses(self, tool_ids: Collection[str]) -> None:
        """Forget all tasks of tools."""
        async with self._transaction() as connection:
            await self._delete_in(connection, uses.c.tool_id, tool_ids)

    # What other gateways wrote

    async def identity(self) -> str:
        """What all gateways on this database are together, and no other is: a number that the first one drew."""
        dialect = import_module(f"sqlalchemy.dialects.{self._engine.dialect.name}")
        drawn = dialect.insert(changes).values(part=IDENTITY, number=secrets.randbelow(2**62))
        async with self._transaction() as connection:
            await connection.execute(drawn.on_conflict_do_nothing())
            number = select(changes.c.number).where(changes.c.part == IDENTITY)
            return f"{(await connection.execute(number)).scalar_one():016x}"

    async def seal_key(self, drawn: str) -> str:
        """The key that all gateways on this database seal with: the first one that was drawn."""
        dialect = import_module(f"sqlalchemy.dialects.{self._engine.dialect.name}")
        async with self._transaction() as connection:
            keep = dialect.insert(seals).values(name=SEAL, key=drawn)
            await connection.execute(keep.on_conflict_do_nothing())
            return str((await connection.execute(select(seals.c.key).where(seals.c.name == SEAL))).scalar_one())

    async def change_numbers(self) -> dict[str, int]:
        """How often each part was written."""
        return {row["part"]: int(row["number"]) for row in await self._read(select(changes))}

    def take_own(self, part: str, until: int) -> int:
        """How many numbers of a part, up to this one, are of our own writing; each is counted once."""
        own = self._own.get(part, set())
        taken = {number for number in own if number <= until}
        own -= taken
        return len(taken)

    async def listen(self, heard: Callable[..., None]) -> None:
        """Hear that somebody wrote, for as long as the connection lasts. Only of a database that tells.

        Raises:
            StoreError: it cannot be opened.
        """
        try:
            async with self._engine.connect() as connection:
                driver = (await connection.get_raw_connection()).driver_connection
                assert driver is not None
                await driver.add_listener(CHANNEL, heard)
                while not driver.is_closed():
                    await asyncio.sleep(LISTEN_CHECK_SECONDS)
        except (SQLAlchemyError, OSError) as exc:
            raise StoreError(str(getattr(exc, "orig", None) or exc)) from exc

    async def _count(self, connection: Any, part: str) -> int:
        """Give a part its next number: whoever writes it, too, waits for our commit."""
        dialect = import_module(f"sqlalchemy.dialects.{self._engine.dialect.name}")
        statement = dialect.insert(changes).values(part=part, number=1)
        one_more = {"number": changes.c.number + 1}
        statement = statement.on_conflict_do_update(index_elements=["part"], set_=one_more).returning(changes.c.number)
        return int((await connection.execute(statement)).scalar_one())

    async def _upsert(
        self, connection: Any, table: Table, rows: Sequence[Mapping[str, Any]], version: Any = None, added: Any = None
    ) -> None:
        """Write whole rows, in the place of those with the same key.

        Args:
            version: a column: a row takes the place of one whose version is one less, and of no other.
            added: a column whose number is added to the one that is there.
        """
        if not rows:
            return
        known = self._upserts.get(table.name)
        if known is None:
            dialect = import_module(f"sqlalchemy.dialects.{self._engine.dialect.name}")
            statement = dialect.insert(table).values({column.name: None for column in table.columns})
            key = [column.name for column in table.primary_key]
            others = {
                column.name: statement.excluded[column.name]
                for column in table.columns
                if column.name not in (*key, "first_seen")
            }
            if added is not None:
                others[added.name] = added + statement.excluded[added.name]
            where = None if version is None else version == statement.excluded[version.name] - literal_column("1")
            statement = statement.on_conflict_do_update(index_elements=key, set_=others, where=where)
            compiled = statement.compile(dialect=self._engine.dialect)
            known = self._upserts[table.name] = (str(compiled), tuple(compiled.positiontup or ()))
        sql, order = known  # straight to the driver: SQLAlchemy would look at each value of each row
        await connection.exec_driver_sql(sql, [tuple(row[name] for name in order) for row in rows])

    @staticmethod
    async def _delete_in(connection: Any, column: Any, values: Collection[str], *also: Any) -> None:
        """Delete the rows with one of these values of which `also` is true, too."""
        wanted = list(values)
        for start in range(0, len(wanted), MAX_VARIABLES):
            some = column.in_(wanted[start : start + MAX_VARIABLES])
            await connection.execute(delete(column.table).where(some, *also))

    async def _read(self, statement: Any) -> list[dict[str, Any]]:
        async with self._transaction() as connection:
            return [dict(row) for row in (await connection.execute(statement)).mappings()]

    @asynccontextmanager
    async def _transaction(self, *parts: str) -> AsyncIterator[Any]:
        """One transaction.

        Args:
            parts: what is written, where gateways share it: they are told.
        """
        numbers: dict[str, int] = {}
        seconds = CHANGE_SECONDS if parts and self.shared else STATEMENT_SECONDS
        try:
            async with asyncio.timeout(seconds), self._engine.begin() as connection:
                for part in parts if self.shared else ():
                    number = numbers[part] = await self._count(connection, part)
                    self._own[part].add(number)  # at once: the commit may be seen before we hear of it
                    if self.tells:
                        await connection.execute(select(func.pg_notify(CHANNEL, part)))
                yield connection
        except BaseException as exc:
            for part, number in numbers.items():
                self._own[part].discard(number)  # another may get it
            if isinstance(exc, TimeoutError):
                raise StoreError(f"the database did not answer within {seconds} s") from exc
            if isinstance(exc, SQLAlchemyError | OSError):
                raise StoreError(str(getattr(exc, "orig", None) or exc)) from exc
            raise
        if numbers and not self.tells:
            self.on_write()


@asynccontextmanager
async def open_database(url: str, *, migrate: bool = True, shared: bool | None = None) -> AsyncIterator[Database]:
    """Open the database, making file and tables where they are missing, and migrating those of an older release.

    Args:
        url: SQLAlchemy's form: `sqlite+aiosqlite:///path`, `postgresql+asyncpg://…`.
        migrate: make and migrate tables; else they must be there.
        shared: as of `Database`.

    Raises:
        StoreError: it cannot be opened.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        path = Path(str(parsed.database))
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.parent.chmod(0o700)  # whatever the umask; one that was there is not ours to close
            # Specifications of attached servers may hold secrets: for the owner's eyes only.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as exc:
            raise StoreError(f"cannot open the database file {path}: {exc}") from exc
    engine = create_async_engine(url)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", lambda connection, _: prepare(connection))
    try:
        try:
            async with engine.begin() as connection:
                had = await connection.run_sync(lambda sync: bring_up_to_date(sync, migrate=migrate))
        except SchemaBehind as exc:
            raise OldSchemaError(str(exc)) from exc
        except SchemaMismatch as exc:
            raise StoreError(str(exc)) from exc
        except (SQLAlchemyError, OSError) as exc:
            reason = getattr(exc, "orig", None) or exc
            raise StoreError(f"cannot open the database {parsed.render_as_string()}: {reason}") from exc
        yield Database(engine, had, shared)
    finally:
        await engine.dispose()
