"""Fixtures: keys without a command line, and the rooms of discovery without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import GatewayProcess, bearer, wait_for

from toolscore.access.auth import KeyRing
from toolscore.core.models import UpstreamSpec
from toolscore.discovery import ToolSearch
from toolscore.embedding import Embedder
from toolscore.history.scores import Scores
from toolscore.stores.database import Database, open_database
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.tools.pins import Pins


@pytest.fixture(scope="session")
def new_key() -> Callable[[GatewayProcess, str], str]:
    """Makes a key of a running gateway, as `toolscore keys create NAME` does, and waits until it counts."""

    def make(process: GatewayProcess, name: str) -> str:
        async def create() -> str:
            async with open_database(f"sqlite+aiosqlite:///{process.folder / 'data' / 'toolscore.db'}") as database:
                return (await KeyRing(database).create(name, ()))[1]

        key = asyncio.run(create())
        wait_for(lambda: process.http.get("/api/v1/servers", headers=bearer(key)).status_code != 401, 60, "for its key")
        return key

    return make


class Rooms(NamedTuple):
    """What finding a tool takes."""

    database: Database
    library: UnifiedToolLibrary
    search: ToolSearch

    def list_tools(self, server_id: str, **descriptions: str) -> None:
        """Have a server list these tools: `name="description"`."""
        tools = [
            {"name": name, "description": said, "inputSchema": {"type": "object"}}
            for name, said in descriptions.items()
        ]  # fmt: skip
        self.library.update(server_id, UpstreamSpec(command="none"), tools)


Opening = Callable[[Embedder], AbstractAsyncContextManager[Rooms]]


@pytest.fixture
def open_rooms(tmp_path: Path) -> Opening:
    """Opens the rooms on a database that stays when they are closed, as a gateway's does."""

    @asynccontextmanager
    async def opened(embedder: Embedder) -> AsyncIterator[Rooms]:
        async with AsyncExitStack() as stack:
            enter: Any = stack.enter_async_context
            database = await enter(open_database(f"sqlite+aiosqlite:///{tmp_path / 'toolscore.db'}"))
            pins, scores = await enter(Pins(database)), await enter(Scores(database))
            library = await enter(UnifiedToolLibrary(database, pins))
            yield Rooms(database, library, await enter(ToolSearch(library, scores, database, embedder)))

    return opened
