"""`python -m mcp_servers.recorded FILE`: serve over stdio what `toolscore calls export` wrote.

A call gets the answer that was recorded for the same tool with the same arguments. Several answers are given in their
order, and the last one from then on. A call that was never recorded gets an error that says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server

__all__ = ["Recording", "main"]


class Recording:
    """What was recorded of one server.

    Args:
        data: `{"server_id", "tools": [MCP Tool], "calls": [{"name", "arguments", "result"}]}`.

    Raises:
        ValueError: it is something else.
    """

    def __init__(self, data: Any) -> None:
        if not isinstance(data, dict) or not isinstance(data.get("tools"), list):
            raise ValueError("it is not what `toolscore calls export` writes")
        self.server_id = str(data.get("server_id", "recorded"))
        self.tools: list[dict[str, Any]] = data["tools"]
        self._answers: dict[tuple[str, str], list[Any]] = {}
        for call in data.get("calls", []):
            self._answers.setdefault(_key(call["name"], call["arguments"]), []).append(call["result"])

    def answer(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The result of a call (MCP `CallToolResult`)."""
        answers = self._answers.get(_key(name, arguments))
        if not answers:
            text = f"{name} was never called with these arguments while {self.server_id} was recorded"
            return {"content": [{"type": "text", "text": text}], "isError": True}
        found: dict[str, Any] = answers.pop(0) if len(answers) > 1 else answers[0]
        return found


def _key(name: str, arguments: Any) -> tuple[str, str]:
    return name, json.dumps(arguments or {}, sort_keys=True)


async def _serve(recording: Recording) -> None:
    async def list_tools(
        _ctx: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult.model_validate({"tools": recording.tools})

    async def call_tool(_ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult.model_validate(recording.answer(params.name, params.arguments or {}))

    server: Server[Any] = Server(f"{recording.server_id} (recorded)", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def main() -> None:
    """The command."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mcp_servers.recorded FILE   (FILE: from `toolscore calls export SERVER FILE`)")
    try:
        recording = Recording(json.loads(Path(sys.argv[1]).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        sys.exit(f"{sys.argv[1]} cannot be served: {exc}")
    anyio.run(_serve, recording)


if __name__ == "__main__":
    main()
