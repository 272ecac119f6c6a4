"""The tables of release 0.1.0, which made them itself."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: a database without a revision that has tables has these."""
