"""Alembic reads this: the connection is the one that `toolscore/stores/schema.py` hands over."""

from __future__ import annotations

from alembic import context

from toolscore.stores.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)  # batch: SQLite changes a column by copying its table
context.run_migrations()
