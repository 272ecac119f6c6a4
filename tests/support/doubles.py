"""Servers inside the test's own process: what the gateway calls in-process upstreams, made of functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Double", "text"]

Work = Callable[[dict[str, Any]], Any]


def text(value: Any, **more: Any) -> dict[str, Any]:
    """An MCP result with one text."""
    shown = value if isinstance(value, str) else json.dumps(value)
    return {"content": [{"type": "text", "text": shown}], "isError": False, **more}


class Double:
    """A server whose tools are functions: each takes the arguments and returns a text or a whole MCP result.

    Attributes:
        calls: what was called, in order: the tool's own name and the arguments.
        cancelled: names of tools whose work was cancelled.
    """

    name = "double"
    version = "1.0"

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.metas: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self._tools: dict[str, tuple[dict[str, Any], Work]] = {}

    def tool(self, name: str, work: Work, *, schema: dict[str, Any] | None = None, **more: Any) -> Double:
        """Offer a tool; `more` are further members of its definition, such as `annotations`."""
        definition = {"name": name, "description": f"does {name}", "inputSchema": schema or {"type": "object"}, **more}
        self._tools[name] = (definition, work)
        return self

    def list_tools(self) -> list[dict[str, Any]]:
        return [definition for definition, _ in self._tools.values()]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], *, meta: dict[str, Any] | None = None, progress: Any = None
    ) -> dict[str, Any]:
        self.calls.append((name, arguments))
        self.metas.append(dict(meta or {}))
        _, work = self._tools[name]
        try:
            found = work(arguments)
            if isinstance(found, Awaitable):
                found = await found
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return found if isinstance(found, dict) and "content" in found else text(found)
