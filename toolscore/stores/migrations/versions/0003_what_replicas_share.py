"""What several gateways on one database need: how often each part was written, whose event it is, pins by version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add them; a gateway of 0.2.0 without this writes no numbers, and its changes are seen at the next ones."""
    op.create_table(
        "changes",
        sa.Column("part", sa.String(16), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.add_column("events", sa.Column("about", sa.String(64)))
    op.create_index("events_by_about", "events", ["about", "seq"])
    op.add_column("pins", sa.Column("version", sa.Integer, nullable=False, server_default="0"))
