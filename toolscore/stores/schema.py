"""Which schema a database has, and how it gets the one that this release needs.

Each change of `tables.py` is a migration in `migrations/versions/`, and migrations only add: a release works with the
schema of the next one, so that replicas of two releases run side by side. What nobody needs any more is dropped a
release later, by a migration that writes the oldest revision whose release can live with that into `compatible`.
"""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select, text

from toolscore.stores.tables import compatible, metadata

__all__ = ["HEAD", "SchemaBehind", "SchemaMismatch", "bring_up_to_date", "revision_of"]

MIGRATIONS = Path(__file__).parent / "migrations"
REVISIONS = sorted(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))
HEAD = REVISIONS[-1]
"""The revision that this release is made for."""
BEFORE_REVISIONS = REVISIONS[0]
"""What a database has that has tables and no revision."""
LOCK = 0x7001_5C03
"""Of Postgres, so that one process migrates while the others wait."""
LOCK_SECONDS = 120
"""How long they wait for it."""

_alembic_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


class SchemaMismatch(Exception):
    """The schema is not the one that this release needs; with what to do."""


class SchemaBehind(SchemaMismatch):
    """It is of an older release, or not there yet: a migration would do."""


def revision_of(connection: Connection) -> str | None:
    """The revision of a database; `None`: it is empty."""
    known = inspect(connection)
    if known.has_table("alembic_version"):
        revision = connection.execute(select(_alembic_version.c.version_num)).scalar()
        if revision is not None:
            return str(revision)
    return BEFORE_REVISIONS if known.has_table("tools") else None


def bring_up_to_date(connection: Connection, *, migrate: bool = True) -> str | None:
    """Have the schema that this release needs, inside the connection's transaction, one process at a time.

    Args:
        migrate: make tables and migrate; else only see that it can be used as it is.

    Returns:
        The revision that it had; `None`: it was empty.

    Raises:
        SchemaMismatch: it cannot be used.
    """
    before = revision_of(connection)
    if before == HEAD:
        return before
    if before is not None and before not in REVISIONS:
        _check_newer(connection, before)
        return before
    if not migrate:
        raise SchemaBehind(
            f"the database has {'no tables' if before is None else f'the schema {before}'}, this release needs the "
            f"schema {HEAD}: run `toolscore migrate`"
        )
    _lock(connection)
    before = revision_of(connection)  # another may have been at it
    if before is None:
        _name_conditions(connection.dialect.name)
        metadata.create_all(connection)
        _alembic_version.create(connection, checkfirst=True)
        connection.execute(_alembic_version.insert().values(version_num=HEAD))
        connection.execute(compatible.insert().values(since=BEFORE_REVISIONS))
    elif before != HEAD:
        _migrate(connection, before)
    return before


def _check_newer(connection: Connection, revision: str) -> None:
    """See whether this release can live with a schema that a newer one made."""
    since = connection.execute(select(compatible.c.since)).scalar() or revision
    if str(since) > HEAD:
        raise SchemaMismatch(
            f"a newer release has given the database the schema {revision}, which is not for releases before the "
            f"schema {since}, and this one is made for {HEAD}: update ToolScore"
        )


def _name_conditions(dialect: str) -> None:
    """Have an index's condition of SQLite hold in this dialect, too.

    A table that named its condition would have that dialect loaded by each start: 3 MB, and 60 ms.
    """
    for index in (index for table in metadata.tables.values() for index in table.indexes):
        condition = index.dialect_options["sqlite"]["where"]
        if condition is not None:
            index.dialect_options[dialect]["where"] = condition


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver begins nothing before a SELECT
        return
    deadline = time.monotonic() + LOCK_SECONDS
    while not connection.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK}).scalar():
        if time.monotonic() > deadline:
            raise SchemaMismatch(f"another process has been migrating the database for {LOCK_SECONDS} s")
        connection.execute(text("SELECT pg_sleep(0.1)"))


def _migrate(connection: Connection, before: str) -> None:
    from alembic import command  # 0.2 s, which hardly any start needs
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if not inspect(connection).has_table("alembic_version"):
        command.stamp(config, before)
    command.upgrade(config, "head")
