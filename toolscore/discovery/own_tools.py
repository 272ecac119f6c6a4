"""The gateway's own tools, for agents: find a tool, call it, notice that none fits, get what is missing.

They are a server inside the gateway, listed and called like any other (`toolscore__search_tools`). So policy, limits
and the journal apply to them as to every tool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from msgspec import Raw

from toolscore import __version__
from toolscore.core.errors import InvalidArguments, ToolScoreError
from toolscore.core.jsonrpc import encode
from toolscore.core.models import LOCAL, Principal, Sees, Tool
from toolscore.discovery.capability import CapabilityBroker
from toolscore.discovery.gaps.detector import ToolGapDetector
from toolscore.discovery.install.prove import Tell
from toolscore.discovery.search.search import ToolSearch
from toolscore.discovery.views import acquired_fields, analysis_fields, found_fields
from toolscore.telemetry.tracing import CARRIED
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import CALL_ID

__all__ = ["CALL_TOOL", "DESCRIBE_TOOLS", "OWN_SERVER", "OwnTools"]

OWN_SERVER = "toolscore"
SEARCH_TOOLS = "search_tools"
CALL_TOOL = "call_tool"
ANALYZE_GAP = "analyze_gap"
REQUEST_CAPABILITY = "request_capability"
DESCRIBE_TOOLS = "describe_tools"
RUN_CODE = "run_code"

DEFAULT_LIMIT = 5
MAX_FOUND = 20
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
MAX_NAMES = 100
MAX_LEFT_OUT = 20
DEFAULT_TOKENS = 2000
MAX_TOKENS = 20_000
MAX_CODE_CHARS = 10_000_000
"""The executor's own bounds are the same; what it offers beyond these arguments depends on its settings."""
NAMES = {
    "type": "array",
    "maxItems": MAX_NAMES,
    "items": {"type": "string", "minLength": 1, "maxLength": 200},
}

TOOLS: list[dict[str, Any]] = [
    {
        "name": SEARCH_TOOLS,
        "title": "Search tools",
        "description": "Find the tools for a task, among all that this gateway has (more than are listed). Returns "
        "them ranked, each with its full input schema: call the one that fits next.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "query": TASK,
                "limit": {"type": "integer", "minimum": 1, "maximum": 50, "default": DEFAULT_LIMIT},
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
        "name": ANALYZE_GAP,
        "title": "Is there a tool for it?",
        "description": "Say whether the tools here can do a task: for each of its steps sufficient, unsure or gap, "
        "with a measured confidence, the tools that cover it, and which capability is missing.",
        "inputSchema": TASK_AND_CONTEXT,
        "annotations": READ_ONLY,
    },
    {
        "name": REQUEST_CAPABILITY,
        "title": "Get what is missing",
        "description": "Where no tool here fits a task: look for a server that has one, install it if the operator's "
        "policy allows that, test it, and return its tools, ready to be called. Otherwise it says who may allow what. "
        "May take a minute.",
        "inputSchema": TASK_AND_CONTEXT,
        "annotations": {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": True, "openWorldHint": True},
    },
    {
        "name": DESCRIBE_TOOLS,
        "title": "Describe tools as Python",
        "description": "Show tools as the Python functions that code in run_code calls: typed signatures and what they "
        "do, within a budget of tokens. Name the tools, or say what they are for.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "names": {**NAMES, "description": "full names or patterns, such as time__get_current_time, db__*"},
                "query": {**TASK, "description": "the task; the tools that fit it best are described"},
                "format": {"enum": ["python", "json"], "default": "python", "description": "json: their schemas"},
                "max_tokens": {"type": "integer", "minimum": 100, "maximum": MAX_TOKENS, "default": DEFAULT_TOKENS},
            },
            "additionalProperties": False,
        },
        "annotations": READ_ONLY,
    },
    {
        "name": RUN_CODE,
        "title": "Run code that calls tools",
        "description": "Run Python in a sandbox where `tools` calls this gateway's tools: many calls cost one, and "
        "only what is printed comes back. `r = tools.time.get_current_time(timezone='UTC')`; "
        "`rs = tools.parallel(*(tools.db.query.later(sql=q) for q in qs))`; `tools.search('what for')`; "
        "`help(tools.db.query)`. Values are dicts, lists, texts. A call that fails raises ToolError (code, message, "
        "suggestion, retryable).",
        "inputSchema": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "maxLength": MAX_CODE_CHARS, "description": "the program"},
                "tools": {
                    **NAMES,
                    "description": "all that it may call: memory__*, time. Else what is marked read-only",
                },
                "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "description": "then it is ended"},
                "session_id": {
                    "type": "string", "minLength": 1, "maxLength": 200,
                    "description": "keep variables and files for later calls",
                },
                "packages": {"type": "array", "items": {"type": "string"}, "description": "as in python_execute"},
                "files": {
                    "type": "array",
                    "description": "put into the working folder first: path, content, encoding (utf-8, base64)",
                    "items": {"type": "object"},
                },
            },
            "required": ["code"],
            "additionalProperties": False,
        },
        "annotations": {
            "readOnlyHint": False, "destructiveHint": True, "idempotentHint": False, "openWorldHint": True,
        },
    },
]  # fmt: skip

Progress = Callable[[float, float | None, str], None]
"""Is told how far a call is, of how much, and a message."""
SeesOf = Callable[[Principal], Sees | None]
"""Which tools exist for a caller; `None`: all."""
Call = Callable[[str, dict[str, Any], Principal], Awaitable[dict[str, Any]]]
"""Calls a tool by its id, with arguments, for a caller; gives an MCP `CallToolResult`; may raise `ToolScoreError`."""


RunCode = Callable[[dict[str, Any], Caller, str, dict[str, str]], Awaitable[Raw]]
"""Runs code that calls tools, for a caller, as part of the call of this id, in this trace; gives an MCP
`CallToolResult`; may raise `ToolScoreError`."""


class CodeSight(Protocol):
    """Knows tools as code sees them."""

    def find(self, names: list[str], caller: Caller) -> list[Tool]:
        """The tools of these names or patterns; may raise `ToolNotFound`."""
        ...

    def names(self, tools: list[Tool], caller: Caller) -> list[str]:
        """What code calls these tools."""
        ...

    def described(self, tools: list[Tool], caller: Caller, max_tokens: int) -> tuple[str, list[str]]:
        """A stub file of tools, and the names of those that did not fit."""
        ...

    def tokens(self, tool: Tool) -> int:
        """What a tool's definition takes of a model's context, roughly."""
        ...


class OwnTools:
    """A server inside the gateway's process.

    Args:
        sees: which tools exist for a caller.
        call: calls a tool for a caller.
        code: knows tools as code sees them.
        run: runs code that calls tools.
    """

    name = "toolscore"
    takes_callers = True
    version = __version__

    def __init__(
        self,
        search: ToolSearch,
        gaps: ToolGapDetector,
        broker: CapabilityBroker,
        *,
        sees: SeesOf,
        call: Call,
        code: CodeSight,
        run: RunCode,
    ) -> None:
        self._search = search
        self._gaps = gaps
        self._broker = broker
        self._sees = sees
        self._call = call
        self._code = code
        self._run = run
        self._work: dict[str, Callable[[dict[str, Any], Principal, Tell], Awaitable[dict[str, Any]]]] = {
            SEARCH_TOOLS: self._search_tools,
            CALL_TOOL: self._call_tool,
            ANALYZE_GAP: self._analyze_gap,
            REQUEST_CAPABILITY: self._request_capability,
        }

    def list_tools(self) -> list[dict[str, Any]]:
        """List the tools, as MCP does."""
        return TOOLS

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        meta: dict[str, Any] | None = None,
        progress: Progress | None = None,
        caller: Caller | None = None,
    ) -> dict[str, Any] | Raw:
        """Call one of the tools.

        Args:
            arguments: they fit the tool's schema.
            meta: `_meta` of the request, in which the pipeline says who calls.
            progress: is told each step of a long call.
            caller: the client that it is for.

        Returns:
            An MCP `CallToolResult`; a call that failed is a result with `isError`, for the model to correct.

        Raises:
            KeyError: no such tool.
        """
        meta = meta or {}
        if name in (RUN_CODE, DESCRIBE_TOOLS):
            caller = caller or Caller(_principal(meta))
            try:
                if name == RUN_CODE:
                    trace = {key: str(meta[key]) for key in CARRIED if key in meta}
                    return await self._run(arguments, caller, str(meta.get(CALL_ID, "")), trace)
                return await self._describe_tools(arguments, caller)
            except ToolScoreError as exc:
                return _failed(exc)
        work = self._work[name]
        steps = 0

        def tell(step: str, message: str) -> None:
            nonlocal steps
            steps += 1
            if progress is not None:
                progress(float(steps), None, f"{step}: {message}")

        try:
            return await work(arguments, _principal(meta), tell)
        except ToolScoreError as exc:
            return _failed(exc)

    async def _search_tools(self, given: dict[str, Any], who: Principal, _: Tell) -> dict[str, Any]:
        limit = given.get("limit", DEFAULT_LIMIT)
        found = await self._search.search(given["query"], principal=who.name, sees=self._sees(who), limit=limit)
        hint = self._search.hint(given["query"])
        return _result({"tools": [found_fields(one) for one in found], **({"hint": hint} if hint else {})})

    async def _call_tool(self, given: dict[str, Any], who: Principal, _: Tell) -> dict[str, Any]:
        tool_id = given["tool_id"]
        if tool_id.startswith(f"{OWN_SERVER}__{CALL_TOOL}"):
            raise InvalidArguments(f"{tool_id} calls other tools: name one of these in `tool_id`")
        return await self._call(tool_id, given.get("parameters") or {}, who)

    async def _describe_tools(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        names, query = given.get("names"), given.get("query")
        if not names and not query:
            raise InvalidArguments("give `names`, the tools to describe, or `query`, what they are for")
        tools = self._code.find(names, caller) if names else []
        if query:
            who = caller.principal
            found = await self._search.search(query, principal=who.name, sees=self._sees(who), limit=MAX_FOUND)
            known = {tool.tool_id for tool in tools}
            tools += [one.tool for one in found if one.tool.tool_id not in known]
        most = given.get("max_tokens", DEFAULT_TOKENS)
        if given.get("format") == "json":
            described: list[dict[str, Any]] = []
            room = most
            for one in tools:
                room -= self._code.tokens(one)
                if room < 0 and described:
                    break
                described.append({"tool_id": one.tool_id, "definition": one.definition})
            rest = [one.tool_id for one in tools[len(described) :]]
            return _result({"tools": described, **({"left_out": _few(rest)} if rest else {})})
        text, left = self._code.described(tools, caller, most)
        if left:
            text += f"\n\n# not described, for want of room: {', '.join(_few(left))}"
        names = self._code.names(tools, caller)
        shown = [
            {"tool_id": tool.tool_id, "name": name, "read_only": tool.reads_only}
            for tool, name in zip(tools, names, strict=True)
            if name not in left
        ]
        structured: dict[str, Any] = {"stubs": text, "left_out": _few(left), "tools": shown}
        return {"content": [{"type": "text", "text": text}], "structuredContent": structured}

    async def _analyze_gap(self, given: dict[str, Any], who: Principal, _: Tell) -> dict[str, Any]:
        analysis = await self._gaps.analyze(
            given["task_description"], context=given.get("context", ""), principal=who.name, sees=self._sees(who)
        )
        return _result(analysis_fields(analysis))

    async def _request_capability(self, given: dict[str, Any], who: Principal, tell: Tell) -> dict[str, Any]:
        acquired = await self._broker.request(
            given["task_description"], context=given.get("context", ""), principal=who.name, sees=self._sees(who),
            on_progress=tell,
        )  # fmt: skip
        return _result(acquired_fields(acquired))


def _few(names: list[str]) -> list[str]:
    """Names as they are told to a model, which asked for few words."""
    more = len(names) - MAX_LEFT_OUT
    return [*names[:MAX_LEFT_OUT], f"and {more} more"] if more > 0 else names


def _failed(exc: ToolScoreError) -> dict[str, Any]:
    text = f"{exc.message}. {exc.suggestion}" if exc.suggestion else exc.message
    return {"content": [{"type": "text", "text": text}], "isError": True}


def _result(fields: dict[str, Any]) -> dict[str, Any]:
    """Make an MCP result: the structure, and the same as text for clients that read no structures."""
    return {"content": [{"type": "text", "text": encode(fields).decode()}], "structuredContent": fields}


def _principal(meta: dict[str, Any]) -> Principal:
    """Read who calls from the `_meta` that the pipeline adds."""
    name, scopes = meta.get("toolscore/principal"), meta.get("toolscore/scopes")
    if not isinstance(name, str) or not isinstance(scopes, list):
        raise InvalidArguments("nobody says who calls")
    found = Principal(name, tuple(map(str, scopes)))
    return LOCAL if found == LOCAL else found
