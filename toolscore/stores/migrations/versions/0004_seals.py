"""The key by which gateways on one database seal session ids and what they tell one another."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add it; a gateway without this has session ids of its own."""
    op.create_table(
        "seals",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
    )
