"""The executor as an MCP server: one tool, `python_execute`, in MCP's own shapes.

`PythonExecutorServer` needs no SDK, so the gateway can call it in process; `serving.py` puts the SDK around it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mcp_servers.python_executor.engine import Outcome
from mcp_servers.python_executor.executor import Busy, Executor

__all__ = ["PythonExecutorServer", "create_server"]

MAX_CODE_CHARS = 10_000_000

OUTPUT_SCHEMA = {
    "type": "object",
    "properties": {
        "stdout": {"type": "string"},
        "stderr": {"type": "string"},
        "result": {"type": ["string", "null"], "description": "repr of the value of a last expression"},
        "error": {
            "type": ["object", "null"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "traceback": {"type": "string"},
            },
            "required": ["type", "message", "traceback"],
        },
        "duration_ms": {"type": "number"},
        "exit": {"enum": ["ok", "error", "timeout", "memory", "killed", "output_limit"]},
    },
    "required": ["stdout", "stderr", "result", "error", "duration_ms", "exit"],
}


class PythonExecutorServer:
    """Lists and calls tools. What a tool call can do wrong is in its result; nothing is raised for it."""

    name = "python-executor"
    version = "0.1.0"

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def list_tools(self) -> list[dict[str, Any]]:
        executor = self._executor
        return [
            {
                "name": "python_execute",
                "title": "Run Python",
                "description": (
                    "Run Python code in a fresh interpreter with the standard library. Returns what it prints and the "
                    "value of a last expression. Nothing is kept between calls."
                ),
                "inputSchema": {
                    "type": "object",
                    "properties": {
                        "code": {"type": "string", "maxLength": MAX_CODE_CHARS, "description": "the program"},
                        "input": {"type": "string", "description": "what input() reads"},
                        "timeout_seconds": {
                            "type": "number",
                            "exclusiveMinimum": 0,
                            "maximum": executor.max_timeout_seconds,
                            "description": f"ends the code after this long; {executor.timeout_seconds:g} if not given",
                        },
                    },
                    "required": ["code"],
                    "additionalProperties": False,
                },
                "outputSchema": OUTPUT_SCHEMA,
                "annotations": {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True},
            }
        ]

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run a tool. Cancelling this ends the code.

        Raises:
            KeyError: no such tool.
        """
        if name != "python_execute":
            raise KeyError(name)
        problem = _problem(arguments)
        if problem is not None:
            return _refused(problem)
        try:
            outcome = await self._executor.execute(
                arguments["code"],
                input=arguments.get("input", ""),
                timeout_seconds=arguments.get("timeout_seconds"),
            )
        except Busy as exc:
            return _refused(f"busy: {exc}")
        return {
            "content": [{"type": "text", "text": _text(outcome)}],
            "structuredContent": asdict(outcome),
            "isError": outcome.exit != "ok",
        }


def _problem(arguments: dict[str, Any]) -> str | None:
    """What is wrong with the arguments, for callers that did not check them against the schema."""
    unknown = arguments.keys() - {"code", "input", "timeout_seconds"}
    if unknown:
        return f"unknown argument {sorted(unknown)[0]!r}: expected code, input, timeout_seconds"
    for name in ("code", "input"):
        if not isinstance(arguments.get(name, ""), str):
            return f"`{name}` must be a string"
    if "code" not in arguments:
        return "`code` is missing"
    timeout = arguments.get("timeout_seconds", 1)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
        return "`timeout_seconds` must be a number above 0"
    return None


def _refused(message: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": message}], "isError": True}


def _text(outcome: Outcome) -> str:
    """What a reader wants to see: the output, the value, and what went wrong."""
    parts = [outcome.stdout]
    if outcome.stderr:
        parts.append(f"[stderr]\n{outcome.stderr}")
    if outcome.result is not None:
        parts.append(outcome.result)
    if outcome.error is not None:
        parts.append(outcome.error["traceback"] or f"{outcome.error['type']}: {outcome.error['message']}")
    return "\n".join(part.rstrip("\n") for part in parts if part) or "(no output)"


def create_server(**options: Any) -> PythonExecutorServer:
    """Make the server; the options are those of `Executor`."""
    return PythonExecutorServer(Executor(**options))
