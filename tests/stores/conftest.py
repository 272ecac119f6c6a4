"""Fixtures: a real Postgres, a real Redis."""

from support.engines import new_database, postgres_url, redis

__all__ = ["new_database", "postgres_url", "redis"]
