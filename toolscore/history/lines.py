"""The log's lines of calls."""

from __future__ import annotations

from typing import Any

import msgspec

from toolscore.core.clock import timestamp_of

__all__ = ["console_line", "json_line"]

_IN_LINE = ("outcome", "duration_ms", "principal", "request_id", "cache", "error")


def console_line(row: dict[str, Any]) -> str:
    """As structlog writes them, at a tenth of its cost."""
    facts = " ".join(
        f"{name}={value if not isinstance(value, str) or value.isalnum() else repr(value[:200])}"
        for name in _IN_LINE
        if (value := row[name]) is not None
    )
    return f"{_moment(row)} [info     ] call                           tool={row['tool_id']} {facts}\n"


def json_line(row: dict[str, Any]) -> str:
    """For machines."""
    facts = {name: row[name] for name in _IN_LINE if row[name] is not None}
    line = {"event": "call", "tool": row["tool_id"], **facts, "level": "info", "timestamp": _moment(row)}
    return msgspec.json.encode(line).decode() + "\n"


def _moment(row: dict[str, Any]) -> str:
    return timestamp_of(row["at_ms"] + int(row["duration_ms"]))
