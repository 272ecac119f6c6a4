"""Single tools that an operator disabled: they exist for nobody, also after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from toolscore.access.permissions import Permissions
from toolscore.core.clock import timestamp
from toolscore.core.models import Event, Tool
from toolscore.history.events import EventLog
from toolscore.stores.database import Database, caught_up, or_overloaded
from toolscore.tools.features import LIST_CHANGED, ChangeFeed

__all__ = ["ToolSwitches"]


class ToolSwitches:
    """Disables tools and enables them again; `permissions.off` has those that are."""

    def __init__(self, database: Database, permissions: Permissions, events: EventLog, changes: ChangeFeed) -> None:
        self._database = database
        self._permissions = permissions
        self._events = events
        self._changes = changes
        self._writing = asyncio.Lock()

    async def load(self) -> ToolSwitches:
        """Know of those that were disabled before. Returns itself.

        Raises:
            StoreError.
        """
        async with self._writing:  # what is written meanwhile may not be in what was read
            self._permissions.switch_off(await self._database.load_tools_off())
        return self

    async def read_again(self) -> None:
        """Take what another gateway on the same database disabled and enabled.

        Raises:
            StoreError.
        """
        before = self._permissions.off
        await self.load()
        for server_id in {tool_id.partition("__")[0] for tool_id in before ^ self._permissions.off}:
            self._changes.tell(server_id, LIST_CHANGED["tools"])

    async def switch(self, tool: Tool, *, off: bool) -> None:
        """Disable a tool, or enable it again.

        Raises:
            Overloaded: the database refuses the change.
        """
        await caught_up(self._database, self.read_again)
        about = {"tool_id": tool.tool_id, "name": tool.name, "server_id": tool.server_id}
        event = Event(type="tool_disabled" if off else "tool_enabled", data=about, timestamp=timestamp())
        async with self._writing:
            now = self._permissions.off
            if off == (tool.tool_id in now):
                return

            async def write(row: dict[str, Any] | None) -> None:
                await self._keep(tool.tool_id, off=off, event=row)
                self._permissions.switch_off(now | {tool.tool_id} if off else now - {tool.tool_id})

            await self._events.publish_with(write, event)
        self._changes.tell(tool.server_id, LIST_CHANGED["tools"])

    async def forget(self, tool_ids: Collection[str]) -> None:
        """Tools are gone: whoever comes under their names is another.

        Raises:
            Overloaded: the database refuses the change.
        """
        async with self._writing:
            gone = self._permissions.off.intersection(tool_ids)
            for tool_id in gone:
                await self._keep(tool_id, off=False)
            self._permissions.switch_off(self._permissions.off - gone)

    async def _keep(self, tool_id: str, *, off: bool, event: dict[str, Any] | None = None) -> None:
        with or_overloaded(f"tool {tool_id!r} was left as it is, since the database refuses the change"):
            await self._database.save_tool_off(tool_id, off, event)
