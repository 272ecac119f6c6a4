"""A whole gateway in the test's own process: temporary SQLite, in-process upstreams, no socket, no other process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from msgspec import Raw

from support.doubles import Double
from toolscore.app.compose import Gateway, open_gateway
from toolscore.app.files import Loaded
from toolscore.app.settings import Settings
from toolscore.calls import Call
from toolscore.core.jsonrpc import encode
from toolscore.core.models import LOCAL, Principal, ToolResult, UpstreamSpec
from toolscore.endpoints.app import create_app
from toolscore.upstreams import Caller

__all__ = ["MemoryGateway", "eventually", "in_memory_gateway"]

WAIT_SECONDS = 60.0
QUIET: dict[str, Any] = {
    "use_inprocess_python_executor": False,
    "mcp_servers": {"python_executor": {"auto_start": False}},  # it is waited for, and never comes
    "journal": {"enabled": False},  # its recorder is a process of its own
    "embeddings": {"mode": "light"},  # as where no extra is installed
}


async def eventually(what: Callable[[], Any], message: str = "") -> Any:
    """The first true value of `what`, asked at each turn of the loop; bounded."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (value := what()):
            await asyncio.sleep(0.002)
        return value


class MemoryGateway:
    """The open rooms, and short ways to use them.

    Attributes:
        http: a client of the HTTP door.
    """

    def __init__(self, rooms: Gateway, http: httpx.AsyncClient) -> None:
        self.rooms = rooms
        self.http = http

    async def add(self, server_id: str, server: Double, **entry: Any) -> Double:
        """Put a server behind the gateway, and wait until its tools are known."""
        name = f"double:{server_id.replace('-', '_')}"
        self.rooms.upstreams.provide(name, server)
        self.rooms.upstreams.add(server_id, UpstreamSpec(inprocess=name, **entry))
        await eventually(lambda: self.rooms.upstreams.get(server_id).state == "up")
        return server

    async def call(self, tool_id: str, principal: Principal = LOCAL, **arguments: Any) -> ToolResult:
        """Call a tool as a door does."""
        return await self.rooms.calls.call(self.make_call(tool_id, principal, **arguments))

    def make_call(self, tool_id: str, principal: Principal = LOCAL, **arguments: Any) -> Call:
        """A call as a door makes it."""
        return Call(tool_id, Raw(encode(arguments)), caller=Caller(principal), request_id="test")

    async def execute(self, tool_id: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """The whole envelope of a call over REST."""
        body = {"tool_id": tool_id, "parameters": parameters or {}, **more}
        return dict((await self.http.post("/execute_tool", json=body)).json())


@asynccontextmanager
async def in_memory_gateway(
    servers: Mapping[str, Double] | None = None, **settings: Any
) -> AsyncIterator[MemoryGateway]:
    """A gateway with these servers; `settings` are sections, such as `cache={"stale_seconds": 1}`."""
    with tempfile.TemporaryDirectory(prefix="toolscore-test-", dir=_memory_folder()) as folder:
        given = Settings(**{**QUIET, "storage": {"data_dir": folder}, **settings})
        async with open_gateway(Loaded(given, [], {}), watch=False) as rooms:
            transport = httpx.ASGITransport(create_app(rooms), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                gateway = MemoryGateway(rooms, http)
                for server_id, server in (servers or {}).items():
                    await gateway.add(server_id, server)
                rooms.watchdog.arm()
                yield gateway
                await rooms.close_calls(0)


def _memory_folder() -> str | None:
    """Where files cost nothing, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
