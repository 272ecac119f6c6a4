"""Calls as the database has them, and as they are shown."""

from __future__ import annotations

import asyncio
from typing import Any

from toolscore.core.clock import timestamp_of
from toolscore.core.errors import InvalidRequest
from toolscore.core.jsonrpc import decode
from toolscore.history.recording import LEFT_OUT, unpacked
from toolscore.stores.database import Database

__all__ = ["shown", "with_bodies"]


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A call as REST shows it, without its bodies."""
    kept = ("call_id", "request_id", "principal", "tool_id", "server_id", "name", "definition_hash", "outcome",
            "duration_ms", "queued_ms", "server_ms", "cache", "error", "parent")  # fmt: skip
    return {
        **{name: row[name] for name in kept},
        "at": timestamp_of(row["at_ms"]),
        "redacted": [name for bit, name in ((1, "arguments"), (2, "result")) if row["redacted"] & bit],
    }


async def with_bodies(database: Database, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls as REST shows them, with their `arguments` and `result`. What cannot be read back is left out, and said to
    be `redacted`.

    Raises:
        StoreError.
    """
    hashes = {row[name] for row in rows for name in ("arguments_body", "result_body") if row[name]}
    contents = await database.read_bodies(hashes)
    return await asyncio.to_thread(lambda: [_whole(row, contents) for row in rows])  # they may be large


def _whole(row: dict[str, Any], contents: dict[str, bytes]) -> dict[str, Any]:
    call = shown(row)
    for name in ("arguments", "result"):
        content = contents.get(row[f"{name}_body"])
        try:
            if row[name] is not None:
                call[name] = decode(row[name].encode())
            else:
                call[name] = decode(unpacked(content)) if content is not None else None
        except InvalidRequest as exc:  # such as arguments that were refused for having too many parts
            call[name] = {LEFT_OUT: f"it cannot be read: {exc.message}"}
            call["redacted"] = sorted({*call["redacted"], name})
    return call
