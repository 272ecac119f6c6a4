"""One run of code that calls tools: what it may call, and each call that it makes.

It is answered through the pipeline as the client of the run, in whose name all of it happens.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from msgspec import Raw
from pydantic import Field

from toolscore.calls.call import CallPipeline
from toolscore.calls.code_callers import InnerCaller, ReplayCaller, RunCaller
from toolscore.calls.code_tools import CodeTools
from toolscore.calls.deadline import Deadline
from toolscore.calls.model import Call
from toolscore.core.errors import (
    Forbidden,
    InvalidArguments,
    InvalidRequest,
    PayloadTooLarge,
    ToolNotFound,
    ToolScoreError,
    UpstreamTimeout,
)
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Tool, ToolResult
from toolscore.core.names import nearest
from toolscore.core.rules import Bytes, Count, Rules
from toolscore.tools.stubs import NameSpace, arranged, signature, stub_of, stubs, unwraps
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import CodeReply

__all__ = ["RUN_CODE", "CodeRules", "CodeRun"]

SEARCH = "toolscore__search_tools"
RUN_CODE, CALL_TOOL = "toolscore__run_code", "toolscore__call_tool"
MAX_TEXT = 2000
EXPLAIN_TOKENS = 2000
MAX_OTHERS = 1000
"""What a run may ask for beside calls: names, descriptions, calls that are refused."""
MEMBERS = frozenset({"do", "tool", "server", "args", "kwargs", "query", "limit"})


class CodeRules(Rules):
    """What code that calls tools (`toolscore__run_code`) may do."""

    max_calls: Count = Field(1000, description="tools that one run may call")
    max_parallel: Count = Field(16, le=64, description="of them, at a time")
    max_result_bytes: Bytes = Field(64 * 1024 * 1024, description="of all their results together")
    changing_tools: tuple[str, ...] = Field(
        (),
        description="tools without readOnlyHint that every run may call: patterns such as memory__*; others only "
        "where the run's own `tools` names them",
    )


class CodeRun:
    """One run, and what its code may do and has done.

    Attributes:
        outer: the client that it is for.
        at_once: calls that the code may have under way.
        over: it has ended, and may do nothing more.
        calls, failed: that it made.
        bytes: of their results.
    """

    def __init__(
        self,
        tools: CodeTools,
        calls: CallPipeline,
        rules: CodeRules,
        outer: Caller,
        call_id: str,
        allowed: tuple[str, ...] | None,
        trace: Mapping[str, str],
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self.outer = outer
        self.call_id = call_id
        self.at_once = rules.max_parallel
        self.calls = self.failed = self.bytes = 0
        self.over = False
        self._tools = tools
        self._pipeline = calls
        self._rules = rules
        self._allowed = allowed
        self._extra = {"_meta": dict(trace)} if trace else None
        self._replay = isinstance(outer, ReplayCaller)
        self._recorded = outer.recorded if isinstance(outer, ReplayCaller) else None
        self._under_way = 0
        self._steps = 0
        self._asked = 0
        self._refused = False
        self._asking = 0
        self._reported = 0.0
        self._asked_since = 0.0
        self._asked_seconds = 0.0
        self._clocks: set[Deadline] = set()
        self._pauses = ExitStack()
        self.caller = RunCaller(self)

    # What the executor asks for

    @property
    def on_output(self) -> Callable[[str], None] | None:
        """Takes what the code writes to stdout while it runs; `None`: nobody wants it."""
        return self.outer.tell_output

    async def ask(self, call: bytes, seconds: float) -> CodeReply:
        """Answer a call of the code.

        Args:
            call: as the code wrote it: `{"do": "call", "tool": [server, tool], "args": […], "kwargs": {…}}`, or one
                of `list`, `describe` and `search`. Nothing about it is to be trusted.
            seconds: that the code has left.
        """
        self._asked += 1
        seconds += self.asked_seconds - self._reported  # whoever asks does not know yet that somebody is being asked
        try:
            if seconds <= 0:
                raise UpstreamTimeout("the time of the run is over")
            if self._asked > self._rules.max_calls + MAX_OTHERS:
                raise Forbidden(f"this run has asked for something {self._asked:,} times")
            body = await self._do(call, seconds)
        except ToolScoreError as exc:
            body = {
                "error": {
                    "code": exc.code,
                    "message": exc.message,
                    "suggestion": exc.suggestion,
                    "retryable": exc.retryable,
                }
            }
        over = self._refused or seconds <= 0 or self._asked > self._rules.max_calls + MAX_OTHERS
        self._reported = max(self._reported, self.asked_seconds)
        return CodeReply(encode(body), self.asked_seconds, over)

    async def _do(self, call: bytes, seconds: float) -> dict[str, Any]:
        if self.over:
            raise Forbidden("the run has ended")
        wanted = decode(call)
        if not isinstance(wanted, dict) or not wanted.keys() <= MEMBERS:
            raise InvalidRequest("a call of the code must be an object with `do`")
        do = wanted.get("do")
        path, server = wanted.get("tool"), wanted.get("server")
        if path is not None and not (
            isinstance(path, list) and 1 <= len(path) <= 2 and all(isinstance(part, str) for part in path)
        ):
            raise InvalidRequest("`tool` must be one or two names")
        if do == "call" and path is not None:
            args, kwargs = wanted.get("args", []), wanted.get("kwargs", {})
            if not isinstance(args, list) or not isinstance(kwargs, dict):
                raise InvalidRequest("`args` must be a list and `kwargs` an object")
            return await self._call(await self._found(path, seconds), args, kwargs, seconds)
        if do == "list":
            return {"names": self._names(server)}
        if do == "describe":
            return {"text": await self._described(path, server, seconds)}
        if do == "search" and isinstance(wanted.get("query"), str):
            return {"tools": await self._search(wanted["query"], wanted.get("limit", 5), seconds)}
        raise InvalidRequest(f"code can ask to call, list, describe and search, found {do!r:.40}")

    # Names

    def _is_named(self, tool: Tool, patterns: tuple[str, ...]) -> bool:
        return any(self._space.matches(tool, pattern) for pattern in patterns)

    @property
    def _space(self) -> NameSpace:
        return self._tools.space(self.outer)

    async def _found(self, path: list[str], seconds: float) -> Tool:
        tool = self._space.find(path)
        if tool is None and len(path) == 1 and (own := self._space.server(path[0])) is not None and len(own) == 1:
            tool = next(iter(own.values()))
        if tool is None and await self._tools.wait_for_server(path[0], self.outer, seconds):
            tool = self._space.find(path)
        if tool is None:
            wanted = ".".join(path)
            raise _missing("tool", wanted, self._space.known(), self._space.servers)
        return tool

    def _names(self, server: Any) -> list[str]:
        """The servers, or one's tools: those that the run may call, where it names them."""

        def named(tools: dict[str, Tool]) -> list[str]:
            allowed = self._allowed
            return [name for name, tool in tools.items() if allowed is None or self._is_named(tool, allowed)]

        if server is not None:
            return sorted(named(self._server(server)))
        return sorted(name for name, tools in self._space.servers.items() if named(tools))

    def _server(self, name: Any) -> dict[str, Tool]:
        own = self._space.server(name) if isinstance(name, str) else None
        if own is None:
            raise _missing("server", str(name), self._space.servers, self._space.servers)
        return own

    async def _described(self, path: list[str] | None, server: Any, seconds: float) -> str:
        if path is None:
            text, left = stubs(self._space, self._server(server).values(), EXPLAIN_TOKENS)
            return text + (f"\n\n# and {', '.join(left)}" if left else "")
        tool = await self._found(path, seconds)
        return stub_of(tool, self._space.name_of(tool).split(".", 1)[1], indent="")

    async def _search(self, query: str, limit: Any, seconds: float) -> list[dict[str, Any]]:
        tool = self._tools.library.find(SEARCH, self._tools.permissions.sees(self.outer.principal))
        if tool is None:
            raise ToolNotFound("tools cannot be searched here", suggestion="dir(tools) lists the servers")
        arguments = Raw(encode({"query": query, "limit": limit}))
        if self._recorded is not None:
            self._count(tool)
            kept = self._recorded.take(tool, arguments)
            found = ((kept["result"] or {}).get("structuredContent") or {}).get("tools", [])
        else:
            result = await self._through(tool, arguments, seconds)
            found = decode(result.structured_content or Raw(b"{}")).get("tools", [])
            if result.is_error:
                raise InvalidArguments(_text(result))
        tools = (self._space.find([one["tool_id"]]) for one in found)
        return [
            {"name": self._space.name_of(tool), "signature": signature(tool), "description": tool.description[:300]}
            for tool in tools
            if tool is not None
        ]

    # Calls

    async def _call(self, tool: Tool, args: list[Any], kwargs: dict[str, Any], seconds: float) -> dict[str, Any]:
        self._may(tool)
        arguments = Raw(encode(arranged(tool, args, kwargs)))
        if self._recorded is not None:
            self._count(tool)
            return self._again(self._recorded.take(tool, arguments), tool)
        result = await self._through(tool, arguments, seconds)
        if result.is_error:
            self.failed += 1
            return {"error": {"code": "tool_error", "message": _text(result), "suggestion": result.suggestion}}
        return {"result": result.raw, "unwrap": unwraps(tool)}

    def _again(self, recorded: dict[str, Any], tool: Tool) -> dict[str, Any]:
        if recorded["outcome"] == "ok" and isinstance(recorded["result"], dict):
            return {"result": recorded["result"], "unwrap": unwraps(tool)}
        self.failed += 1
        return {"error": {"code": recorded["outcome"], "message": recorded["error"] or "its result was not kept"}}

    def _may(self, tool: Tool) -> None:
        """Raise `Forbidden` unless this run may call a tool. What the policy says comes later, as for any call."""
        if tool.tool_id in (RUN_CODE, CALL_TOOL):
            raise Forbidden("code that calls tools cannot run more of its kind: call the tools here")
        if self._allowed is not None:
            if self._is_named(tool, self._allowed):
                return
            raise Forbidden(
                f"this run may call {', '.join(self._allowed)[:200]} alone, and not {tool.tool_id}",
                suggestion="name it in the run's `tools`",
            )
        if not tool.reads_only and not self._is_named(tool, self._rules.changing_tools):
            raise Forbidden(
                f"{tool.tool_id} may change something, and code may call such tools only where the run names them",
                suggestion=f'run it with tools=["{tool.tool_id}", …], which are then all that it may call',
            )

    def _count(self, tool: Tool) -> None:
        if self.calls >= self._rules.max_calls:
            self._refused = True
            raise Forbidden(
                f"a run may call {self._rules.max_calls:,} tools (`code.max_calls`), and {tool.tool_id} is one more"
            )
        self.calls += 1
        self._steps += 1
        if self.outer.wants_progress:
            self._tell(f"{self._space.name_of(tool)}: call {self.calls}")

    async def _through(self, tool: Tool, arguments: Raw, seconds: float) -> ToolResult:
        """Through the pipeline, as the run's own client."""
        self._count(tool)
        if self._under_way >= self.at_once:
            raise Forbidden(f"{self.at_once} calls of this run are under way (`code.max_parallel`): wait for one")
        if self.bytes >= self._rules.max_result_bytes:
            raise PayloadTooLarge(
                f"the results of this run have over {self._rules.max_result_bytes:,} bytes (`code.max_result_bytes`)"
            )
        call = Call(
            tool.name, arguments, caller=InnerCaller(self), request_id=f"{self.call_id}.{self.calls}",
            server_id=tool.server_id, parent=self.call_id, extra=self._extra, replay=self._replay,
        )  # fmt: skip
        self._under_way += 1
        clock = Deadline(seconds)
        try:
            with clock, self._clocked(clock):
                result = await self._pipeline.call(call)
        except TimeoutError as exc:
            raise UpstreamTimeout(f"the time of the run was over during the call of {tool.tool_id}") from exc
        except ToolScoreError:
            self.failed += 1
            raise
        finally:
            self._under_way -= 1
        self.bytes += memoryview(result.raw).nbytes
        if self.bytes > self._rules.max_result_bytes:
            raise PayloadTooLarge(
                f"{tool.tool_id} was called, and its result is over what this run may have: "
                f"{self._rules.max_result_bytes:,} bytes in all (`code.max_result_bytes`)"
            )
        return result

    # Clocks and progress

    @contextmanager
    def _clocked(self, clock: Deadline) -> Iterator[None]:
        self._clocks.add(clock)
        if self._asking:
            self._pauses.enter_context(clock.paused())
        try:
            yield
        finally:
            self._clocks.discard(clock)

    @property
    def asked_seconds(self) -> float:
        """For how long the client of the run was asked, in all."""
        since = time.monotonic() - self._asked_since if self._asking else 0.0
        return self._asked_seconds + since

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The client is asked while the body runs: no clock of the run goes on."""
        if not self._asking:
            self._asked_since = time.monotonic()
            for pause in (self.outer.pause, self.caller.pause, *(clock.paused for clock in self._clocks)):
                self._pauses.enter_context(pause())
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            if not self._asking:
                self._asked_seconds += time.monotonic() - self._asked_since
                self._pauses.close()

    def progressed(self, params: Raw | None) -> None:
        """An inner server tells how far it is: the client of the run hears it as progress of the run."""
        with contextlib.suppress(InvalidRequest):
            told = decode(params) if params is not None else {}
            message = told.get("message") if isinstance(told, dict) else None
            if isinstance(told, dict):
                done = f"{told.get('progress')}/{told['total']}" if told.get("total") else f"{told.get('progress')}"
                self._steps += 1
                self._tell(message if isinstance(message, str) and message else done)

    def _tell(self, message: str) -> None:
        update = {"progress": self._steps, "message": message[:MAX_TEXT]}
        self.outer.notify("notifications/progress", Raw(encode(update)))

    def meta(self) -> dict[str, Any]:
        """What the run did."""
        return {"call_id": self.call_id, "calls": self.calls, "failed": self.failed}


def _missing(what: str, wanted: str, known: Iterable[str], others: Iterable[str]) -> ToolNotFound:
    near = nearest(wanted, known) or sorted(others)[:5]
    return ToolNotFound(f"no {what} {wanted!r:.160}", suggestion=f"nearest: {', '.join(near)}" if near else None)


def _text(result: ToolResult) -> str:
    blocks = decode(result.content)
    texts = [str(block.get("text", "")) for block in blocks if isinstance(block, dict)]
    return "\n".join(text for text in texts if text)[:MAX_TEXT] or "the tool failed, and does not say why"
