"""When the gateway itself fails: the envelope, a 500, the request id for the log, and no word of what is inside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import in_memory_gateway

pytestmark = pytest.mark.long


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a secret of the inside")


def test_a_bug_is_a_500_in_the_envelope_on_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with in_memory_gateway() as gateway:
            monkeypatch.setattr(gateway.rooms.calls, "call", broken)
            monkeypatch.setattr(gateway.rooms.notes.stats, "snapshot", broken)
            headers = {"x-request-id": "r1"}
            for response in (
                await gateway.http.post("/execute_tool", json={"tool_id": "x"}, headers=headers),
                await gateway.http.get("/api/v1/stats", headers=headers),
            ):
                answer = response.json()
                assert response.status_code == 500
                assert answer["error"]["code"] == "internal_error"
                assert "r1" in answer["error"]["message"]
                assert answer["request_id"] == "r1"
                assert "secret" not in response.text

    asyncio.run(check())


def test_a_bug_is_an_internal_error_over_mcp(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with in_memory_gateway() as gateway:
            monkeypatch.setattr(gateway.rooms.calls, "call", broken)
            request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}
            response = await gateway.http.post("/mcp", json=request)
            assert response.json()["error"]["code"] == -32603
            assert "secret" not in response.text

    asyncio.run(check())
