"""Uninstalling where the database refuses it: nothing is said to be gone that is not."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec
import pytest
from servers.registries import server_source
from support import in_memory_gateway

from toolscore.core.models import UpstreamSpec
from toolscore.discovery import Installed
from toolscore.discovery.install.place import MARKER
from toolscore.stores.errors import StoreError


def test_what_cannot_be_removed_is_there_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with in_memory_gateway() as gateway:
            rooms, address = gateway.rooms, "/api/v1/catalog/installed/weather"
            installed = Installed("weather", "org.nobody/weather", "pypi", "weather", "1.0", [])
            row = {"server_id": "weather", "name": installed.name, "installed_at": "2026-01-01T00:00:00Z"}
            await rooms.database.save_install({**row, "record": msgspec.json.encode(installed).decode()})
            await rooms.installer.read_again()
            place = rooms.settings.current.storage.folder / "servers" / "weather"
            place.mkdir(parents=True, exist_ok=True)
            (place / MARKER).touch()
            (place / "server.py").write_text(server_source("weather") + "\nmain()\n")
            spec = UpstreamSpec(command=sys.executable, args=(str(place / "server.py"),))
            await rooms.servers.attach("weather", spec)
            await asyncio.wait_for(rooms.upstreams.get("weather").wait_up(), 60)

            async def full(*_: Any) -> None:
                raise StoreError("disk full")

            with monkeypatch.context() as broken:
                broken.setattr(rooms.database, "delete_install", full)
                broken.setattr(rooms.database, "delete_server", full)
                answer = await gateway.http.delete(address)
                assert answer.status_code == 503
                assert rooms.upstreams.get("weather").state == "up"
                assert (place / "server.py").is_file()
            answer = await gateway.http.delete(address)
            assert answer.json()["success"], answer.text
            assert rooms.upstreams.find("weather") is None
            assert not place.exists()
            assert await rooms.database.load_installs() == []
            assert (await gateway.http.delete(address)).status_code == 404

    asyncio.run(run())
