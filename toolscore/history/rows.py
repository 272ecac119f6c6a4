"""Calls as the database has them, and as they are shown."""

from __future__ import annotations

from typing import Any

from toolscore.core.clock import timestamp_of
from toolscore.core.jsonrpc import decode
from toolscore.history.recording import unpacked
from toolscore.stores import Database

__all__ = ["bodies", "shown"]


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A call as REST shows it, without its bodies."""
    kept = ("call_id", "request_id", "principal", "tool_id", "server_id", "name", "definition_hash", "outcome",
            "duration_ms", "queued_ms", "server_ms", "cache", "error", "parent")  # fmt: skip
    return {
        **{name: row[name] for name in kept},
        "at": timestamp_of(row["at_ms"]),
        "redacted": [name for bit, name in ((1, "arguments"), (2, "result")) if row["redacted"] & bit],
    }


async def bodies(database: Database, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The `arguments` and the `result` of each call, by its id.

    Raises:
        StoreError.
    """
    hashes = {row[name] for row in rows for name in ("arguments_body", "result_body") if row[name]}
    contents = await database.read_bodies(hashes)

    def value(row: dict[str, Any], name: str) -> Any:
        if row[name] is not None:
            return decode(row[name].encode())
        content = contents.get(row[f"{name}_body"])
        return decode(unpacked(content)) if content is not None else None

    return {row["call_id"]: {name: value(row, name) for name in ("arguments", "result")} for row in rows}
