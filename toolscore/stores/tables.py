"""The tables, in one list. What their rows mean belongs to the rooms above; times are RFC 3339 UTC, or milliseconds."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

__all__ = [
    "bodies",
    "cached",
    "calls",
    "catalogs",
    "changes",
    "compatible",
    "events",
    "features",
    "fixes",
    "installs",
    "keys",
    "metadata",
    "patterns",
    "pins",
    "scores",
    "seals",
    "servers",
    "switched_off",
    "tools",
    "tools_off",
    "uses",
    "vectors",
]

metadata = MetaData()

compatible = Table(  # of one row: the oldest revision whose release can use this schema
    "compatible",
    metadata,
    Column("since", String(8), primary_key=True),
)

changes = Table(  # how often each part that gateways share was written
    "changes",
    metadata,
    Column("part", String(16), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

tools = Table(
    "tools",
    metadata,
    Column("tool_id", String(64), primary_key=True),
    Column("server_id", String(128), nullable=False),
    Column("name", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("definition_hash", String(64), nullable=False),
    Column("first_seen", String(32), nullable=False),
    Index("tools_by_server", "server_id"),
)

servers = Table(
    "servers",
    metadata,
    Column("server_id", String(128), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("attached_at", String(32), nullable=False),
)

switched_off = Table(
    "switched_off",
    metadata,
    Column("server_id", String(128), primary_key=True),
)

tools_off = Table(
    "tools_off",
    metadata,
    Column("tool_id", String(64), primary_key=True),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", String(12), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32)),
    Column("revoked_at", String(32)),
)

features = Table(
    "features",
    metadata,
    Column("server_id", String(128), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("content", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("type", String(64), nullable=False),
    Column("data", Text, nullable=False),
    Column("timestamp", String(32), nullable=False),
    Column("about", String(64)),  # the tool
    Index("events_by_about", "about", "seq"),
    sqlite_autoincrement=True,  # a number is never given twice, not even after its row was pruned
)

cached = Table(
    "cached",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("tool_id", String(64), nullable=False),
    Column("server_id", String(128), nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("stored_at", Float, nullable=False),
    Column("fresh_until", Float, nullable=False),
    Column("stale_until", Float, nullable=False),
    Index("cached_by_stale_until", "stale_until"),
)

calls = Table(
    "calls",
    metadata,
    Column("call_id", String(32), primary_key=True),  # begins with the time: its order is that of the calls
    Column("request_id", String(128), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("principal", Text, nullable=False),
    Column("tool_id", String(64), nullable=False),
    Column("server_id", String(128), nullable=False),
    Column("name", Text, nullable=False),
    Column("definition_hash", String(64), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("duration_ms", Float, nullable=False),
    Column("cache", String(8)),
    Column("error", Text),
    Column("arguments", Text),
    Column("arguments_body", String(64)),
    Column("result", Text),
    Column("result_body", String(64)),
    Column("redacted", Integer, nullable=False),
    Column("parent", String(32)),
    Column("queued_ms", Float),
    Column("server_ms", Float),
    Index("calls_by_tool", "tool_id", "call_id"),
    Index("calls_by_parent", "parent", sqlite_where=text("parent IS NOT NULL")),  # elsewhere: see `schema.py`
)

bodies = Table(
    "bodies",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("last_call", String(32), nullable=False),
    Index("bodies_by_last_call", "last_call"),
)

pins = Table(
    "pins",
    metadata,
    Column("server_id", String(128), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("definition", Text, nullable=False),
    Column("definition_hash", String(64), nullable=False),
    Column("pinned_at", String(32), nullable=False),
    Column("pinned_by", Text, nullable=False),
    Column("held", Text),
    Column("version", Integer, nullable=False, server_default="0"),
)

scores = Table(
    "scores",
    metadata,
    Column("tool_id", String(64), primary_key=True),
    Column("state", Text, nullable=False),
)

patterns = Table(
    "patterns",
    metadata,
    Column("pattern_id", String(32), primary_key=True),
    Column("template", Text, nullable=False),
    Column("category", String(32), nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("first_seen", String(32), nullable=False),
    Column("last_seen", String(32), nullable=False),
    Column("seen_by", Text, nullable=False),
)

fixes = Table(
    "fixes",
    metadata,
    Column("fix_id", String(32), primary_key=True),
    Column("pattern_id", String(32), nullable=False),
    Column("tool_id", String(64), nullable=False),
    Column("content", Text, nullable=False),
    Index("fixes_by_pattern", "pattern_id"),
)

seals = Table(  # of one row: the key by which gateways on one database seal what carries state
    "seals",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("key", Text, nullable=False),
)

vectors = Table(
    "vectors",
    metadata,
    Column("hash", String(32), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)

uses = Table(
    "uses",
    metadata,
    Column("use_id", String(32), primary_key=True),
    Column("principal", Text, nullable=False),
    Column("tool_id", String(64), nullable=False),
    Column("task", Text, nullable=False),
    Column("at", Float, nullable=False),
    Index("uses_by_tool", "tool_id"),
)

catalogs = Table(
    "catalogs",
    metadata,
    Column("source", String(255), primary_key=True),
    Column("fetched_at_ms", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

installs = Table(
    "installs",
    metadata,
    Column("server_id", String(128), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("record", Text, nullable=False),
    Column("installed_at", String(32), nullable=False),
)
