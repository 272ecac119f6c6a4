"""When the gateway itself fails: the envelope, a 500, the request id for the log, and no word of what is inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from toolscore.app.gateway import Gateway, open_gateway
from toolscore.app.settings import Loaded, Settings
from toolscore.endpoints.app import create_app


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    settings = Settings(storage={"data_dir": str(folder)})  # type: ignore[arg-type]
    async with open_gateway(Loaded(settings, [], {})) as gateway:
        transport = httpx.ASGITransport(create_app(gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield gateway, client


def run(folder: Path, check: Callable[[Gateway, httpx.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(folder) as (gateway, client):
            await check(gateway, client)

    asyncio.run(main())


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a secret of the inside")


def test_a_bug_is_a_500_in_the_envelope_on_every_path(tmp_path: Path) -> None:
    async def check(gateway: Gateway, client: httpx.AsyncClient) -> None:
        gateway.pipeline.call = broken  # type: ignore[method-assign]
        gateway.pipeline.stats.snapshot = broken  # type: ignore[method-assign]
        body = {"tool_id": "x"}
        for response in (
            await client.post("/execute_tool", json=body, headers={"x-request-id": "r1"}),
            await client.get("/api/v1/stats", headers={"x-request-id": "r1"}),
        ):
            answer = response.json()
            assert response.status_code == 500
            assert answer["error"]["code"] == "internal_error"
            assert "r1" in answer["error"]["message"]
            assert answer["request_id"] == "r1"
            assert "secret" not in response.text

    run(tmp_path, check)


def test_a_bug_is_an_internal_error_over_mcp(tmp_path: Path) -> None:
    async def check(gateway: Gateway, client: httpx.AsyncClient) -> None:
        gateway.pipeline.call = broken  # type: ignore[method-assign]
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}
        response = await client.post("/mcp", json=request)
        assert response.json()["error"]["code"] == -32603
        assert "secret" not in response.text

    run(tmp_path, check)
