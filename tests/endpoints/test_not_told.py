"""What the doors keep to themselves, and what they do not take in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from support.memory import MemoryGateway, in_memory_gateway

from toolscore.core.seal import new_key

SECRET = "sk-somebodys-own"


def run(check: Callable[[MemoryGateway], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def whole() -> None:
        async with in_memory_gateway(**settings) as gateway:
            await check(gateway)

    asyncio.run(whole())


def test_settings_that_are_secrets_are_not_shown() -> None:
    async def check(gateway: MemoryGateway) -> None:
        answer = await gateway.http.get("/api/v1/settings")
        assert SECRET not in answer.text
        shown = {one["key"]: one["value"] for one in answer.json()["data"]["settings"]}
        assert shown["embeddings.key"] == "(not shown)"
        assert shown["embeddings.mode"] == "light"

    run(check, embeddings={"key": SECRET, "mode": "light"})


def test_seal_keys_are_not_shown() -> None:
    from toolscore.app.in_force import in_force
    from toolscore.app.settings import Settings

    key = new_key()
    found = in_force(Settings(storage={"seal_keys": key}), None)
    assert {one["key"]: one["value"] for one in found}["storage.seal_keys"] == "(not shown)"
    assert key not in str(found)


def test_the_address_of_a_websocket_server_is_shown_without_its_secrets() -> None:
    async def check(gateway: MemoryGateway) -> None:
        url = f"ws://somebody:{SECRET}@127.0.0.1:1/mcp?token={SECRET}"
        for server_id, member in (("one", "endpoint"), ("two", "url")):
            attached = await gateway.http.post("/api/v1/servers", json={"server_id": server_id, member: url})
            assert attached.status_code == 201, attached.text
        for server_id in ("one", "two"):
            upstream = gateway.rooms.upstreams.get(server_id)
            async with asyncio.timeout(30):
                while upstream.last_error is None:
                    await asyncio.sleep(0.01)
            assert "ws://127.0.0.1:1/mcp" in upstream.last_error
            answer = await gateway.http.get(f"/api/v1/servers/{server_id}")
            assert answer.status_code == 200
            assert SECRET not in answer.text
        assert SECRET not in (await gateway.http.get("/health")).text

    run(check)


def test_an_open_page_takes_no_body() -> None:
    async def check(gateway: MemoryGateway) -> None:
        for path in ("/ui", "/", "/livez"):
            answer = await gateway.http.post(path, content=b"x" * 100)
            assert (path, answer.status_code) in (("/ui", 405), ("/", 405), ("/livez", 405))

    run(check)


def test_only_a_single_run_is_made_again_offline() -> None:
    async def check(gateway: MemoryGateway) -> None:
        answer = await gateway.http.post("/api/v1/calls/replay", json={"server_id": "a", "offline": True})
        assert answer.status_code == 422
        assert "single run of code" in answer.text

    run(check)
