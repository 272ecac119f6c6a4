"""The gateway's own tools, for agents: find a tool, call it, notice that none fits, ask for what is missing.

A server inside the gateway, listed and called like any other (`toolscore__search_tools`): what holds for other calls
holds for these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from toolscore import __version__
from toolscore.core.errors import InvalidArguments, ToolScoreError
from toolscore.core.models import LOCAL, Principal

__all__ = ["CALL_TOOL", "OWN_SERVER", "OwnTools"]

OWN_SERVER = "toolscore"
CALL_TOOL = "call_tool"

TASK = {"type": "string", "minLength": 1, "maxLength": 4000, "description": "the task, in plain words"}
TASK_AND_CONTEXT = {
    "type": "object",
    "properties": {
        "task_description": TASK,
        "context": {"type": "string", "maxLength": 4000, "description": "what else matters"},
    },
    "required": ["task_description"],
    "additionalProperties": False,
}
READ_ONLY = {"readOnlyHint": True, "openWorldHint": False}

TOOLS: list[dict[str, Any]] = [
    {
        "name": "search_tools",
        "title": "Search tools",
        "description": "Find the tools for a task, among all that this gateway has (more than are listed). Returns "
        "them ranked, each with its full input schema: call the one that fits next.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "query": TASK,
                "limit": {"type": "integer", "minimum": 1, "maximum": 50, "default": 5},
            },
            "required": ["query"],
            "additionalProperties": False,
        },
        "annotations": READ_ONLY,
    },
    {
        "name": CALL_TOOL,
        "title": "Call a tool",
        "description": "Call a tool that is not in your list, by the tool_id that search_tools gave.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "tool_id": {"type": "string", "description": "full name, such as time__get_current_time"},
                "parameters": {"type": "object", "description": "its arguments, as its schema asks", "default": {}},
            },
            "required": ["tool_id"],
            "additionalProperties": False,
        },
    },
    {
        "name": "analyze_gap",
        "title": "Is there a tool for it?",
        "description": "Say whether the tools here can do a task: for each of its steps sufficient, unsure or gap, "
        "with a measured confidence, the tools that cover it, and which capability is missing.",
        "inputSchema": TASK_AND_CONTEXT,
        "annotations": READ_ONLY,
    },
    {
        "name": "request_capability",
        "title": "Get what is missing",
        "description": "Where no tool here fits a task: look for a server that has one, install it if the operator's "
        "policy allows that, test it, and return its tools, ready to be called. Otherwise it says who may allow what. "
        "May take a minute.",
        "inputSchema": TASK_AND_CONTEXT,
        "annotations": {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": True, "openWorldHint": True},
    },
]  # fmt: skip

Progress = Callable[[float, float | None, str], None]
Work = Callable[[dict[str, Any], Principal, Callable[[str, str], None]], Awaitable[dict[str, Any]]]


class OwnTools:
    """An in-process server. `work`: what each tool does, by its name."""

    name = "toolscore"
    version = __version__

    def __init__(self, work: dict[str, Work]) -> None:
        self._work = work

    def list_tools(self) -> list[dict[str, Any]]:
        return TOOLS

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        meta: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The result as text and as a structure; what goes wrong is said in the result, for the model to mend.

        Raises:
            KeyError: no such tool.
        """
        work = self._work[name]
        steps = 0

        def tell(step: str, message: str) -> None:
            nonlocal steps
            steps += 1
            if progress is not None:
                progress(float(steps), None, f"{step}: {message}")

        try:
            return await work(arguments, _principal(meta or {}), tell)
        except ToolScoreError as exc:
            text = f"{exc.message}. {exc.suggestion}" if exc.suggestion else exc.message
            return {"content": [{"type": "text", "text": text}], "isError": True}


def _principal(meta: dict[str, Any]) -> Principal:
    """Who calls, as the pipeline says it."""
    name, scopes = meta.get("toolscore/principal"), meta.get("toolscore/scopes")
    if not isinstance(name, str) or not isinstance(scopes, list):
        raise InvalidArguments("nobody says who calls")
    found = Principal(name, tuple(map(str, scopes)))
    return LOCAL if found == LOCAL else found
