"""Fixtures: a real Postgres."""

from support.engines import new_database, postgres_url

__all__ = ["new_database", "postgres_url"]
