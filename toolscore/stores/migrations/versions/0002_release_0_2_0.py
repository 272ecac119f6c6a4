"""What 0.2.0 has more: disabled servers and tools, calls that code made, where a call's time went.

Checkouts on the way to 0.2.0 made parts of this by themselves.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add tables and columns, each where it is missing."""
    there = sa.inspect(op.get_bind())
    if not there.has_table("switched_off"):
        op.create_table("switched_off", sa.Column("server_id", sa.String(128), primary_key=True))
    if not there.has_table("tools_off"):
        op.create_table("tools_off", sa.Column("tool_id", sa.String(64), primary_key=True))
    known = {column["name"] for column in there.get_columns("calls")}
    for name, kind in (("parent", sa.String(32)), ("queued_ms", sa.Float()), ("server_ms", sa.Float())):
        if name not in known:
            op.add_column("calls", sa.Column(name, kind))
    if "calls_by_parent" not in {index["name"] for index in there.get_indexes("calls")}:
        some = sa.text("parent IS NOT NULL")
        op.create_index("calls_by_parent", "calls", ["parent"], sqlite_where=some, postgresql_where=some)
    op.create_table("compatible", sa.Column("since", sa.String(8), primary_key=True))
    op.execute("INSERT INTO compatible (since) VALUES ('0001')")
