"""Calls as they are read back: what cannot be read is left out, and is no hindrance to the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from toolscore.core.jsonrpc import MAX_PARTS
from toolscore.history.recording import new_call_id
from toolscore.history.rows import with_bodies
from toolscore.stores.database import open_database


def row(arguments: str) -> dict[str, Any]:
    none = dict.fromkeys(
        ("cache", "error", "arguments_body", "result", "result_body", "parent", "queued_ms", "server_ms")
    )
    texts = dict.fromkeys(("request_id", "principal", "tool_id", "server_id", "name", "definition_hash"), "x")
    return {**none, **texts, "call_id": new_call_id(), "at_ms": 0, "outcome": "invalid_arguments", "duration_ms": 1.0,
            "arguments": arguments, "redacted": 0}  # fmt: skip


def test_a_body_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    async def check() -> None:
        async with open_database(f"sqlite+aiosqlite:///{tmp_path}/x.db") as database:
            rows = [row('{"n":1}'), row('{"v":[' + "[]," * MAX_PARTS + "[]]}"), row('{"n":')]
            good, many, broken = await with_bodies(database, rows)
        assert good["arguments"] == {"n": 1}
        assert good["redacted"] == []
        for call, why in ((many, "parts"), (broken, "not JSON")):
            assert why in call["arguments"]["toolscore/left_out"]
            assert call["redacted"] == ["arguments"]

    asyncio.run(check())
