"""What a database says that does not do what it should."""

from __future__ import annotations

__all__ = ["StoreError"]


class StoreError(Exception):
    """The database refused or cannot be reached."""
