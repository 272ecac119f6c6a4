"""Code that calls tools: a run of Python in the sandbox, whose only door is the pipeline.

    run_code ──► CodeMode.run ──► executor: the code runs
                    CodeRun  ◄── a call of the code, on the connection that carries the run
                       └──► CallPipeline: policy, rates, cache, journal (its parent is the run) ──► the tool

A run has a token, which only the executor that runs it is told. The token is good on that connection, while the run's
request is under way there, and for nothing else (`upstreams/caller.py`).
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from msgspec import Raw
from pydantic import Field

from toolscore.access.permissions import Permissions
from toolscore.calls.call import CallPipeline
from toolscore.calls.deadline import Deadline
from toolscore.calls.model import Call
from toolscore.calls.relay import Relay
from toolscore.calls.resolve import EXECUTOR
from toolscore.core.errors import (
    Forbidden,
    InvalidArguments,
    InvalidRequest,
    PayloadTooLarge,
    ToolNotFound,
    ToolScoreError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from toolscore.core.jsonrpc import decode, decode_object, encode, meta_of
from toolscore.core.memo import Memo
from toolscore.core.models import Principal, Sees, Tool, ToolResult
from toolscore.core.names import nearest
from toolscore.core.rules import Bytes, Count, Rules
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.tools.stubs import NameSpace, arranged, identifier, matches, signature, stub_of, stubs, unwraps
from toolscore.upstreams import Caller, UpstreamPool
from toolscore.upstreams.caller import CodeReply

__all__ = ["RUN_CODE", "RUN_META", "CodeMode", "CodeRules", "CodeRun", "Recorded", "ReplayCaller"]

EXECUTE = "python_execute"
SEARCH = "toolscore__search_tools"
RUN_CODE = "toolscore__run_code"
RUN_META = "toolscore/run"
"""The member of `_meta` that tells the executor of a run; and, in a result, what the run did."""
START_SECONDS = 30.0
"""How long a run waits for an executor that starts."""
MAX_TEXT = 2000
MAX_SPACES = 100
EXPLAIN_TOKENS = 2000
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


class InnerCaller(Caller):
    """The client of a call that code makes: the one that the run is for, in whose name everything happens.

    It is asked as the client of the run is, in whichever era; while it is, all clocks of the run stand still.
    """

    live = True

    def __init__(self, run: CodeRun) -> None:
        outer = run.outer
        super().__init__(outer.principal, client=outer.client, capabilities=outer.capabilities, headers=outer.headers)
        self._run = run
        self.log_level = outer.log_level
        self.wants_progress = outer.wants_progress

    @property
    def home(self) -> Caller:
        return self._run.outer.home

    @property
    def suspended(self) -> bool:  # type: ignore[override]
        return self._run.outer.suspended

    def notify(self, method: str, params: Raw | None) -> None:
        if method == "notifications/progress":
            self._run.progressed(params)
        elif method != "notifications/cancelled":
            self._run.outer.notify(method, params)

    async def ask(self, method: str, params: Raw | None) -> Any:
        with self._run.asking():
            return await self._run.outer.ask(method, params)


class RunCaller(Caller):
    """The client of the request that has the code run."""

    def __init__(self, run: CodeRun) -> None:
        super().__init__(run.outer.principal, client=run.outer.client, headers=run.outer.headers)
        self.code = self._run = run
        self.wants_progress = run.outer.wants_progress

    def notify(self, method: str, params: Raw | None) -> None:
        self._run.outer.notify(method, params)


class Recorded:
    """Results that a run had before, for a replay of it: each is given once, in the order of the calls.

    Args:
        calls: as the journal gives them, with their bodies, the oldest first.
    """

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        self._left = list(calls)

    def take(self, tool: Tool, arguments: Raw) -> dict[str, Any]:
        """What the call of this tool with these arguments had.

        Raises:
            ToolNotFound: there was none, or its result was not kept.
        """
        given = decode(arguments)
        for position, one in enumerate(self._left):
            if one["tool_id"] == tool.tool_id and one["arguments"] == given:
                return self._left.pop(position)
        raise ToolNotFound(f"the run that is replayed did not call {tool.tool_id} with these arguments")


class ReplayCaller(Caller):
    """Who makes a run again.

    Args:
        recorded: results to give instead of calling tools; `None`: they are called.
    """

    def __init__(self, principal: Principal, recorded: Recorded | None) -> None:
        super().__init__(principal)
        self.recorded = recorded


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
        self, mode: CodeMode, rules: CodeRules, outer: Caller, call_id: str, allowed: tuple[str, ...] | None,
    ) -> None:  # fmt: skip
        self.token = secrets.token_urlsafe(24)
        self.outer = outer
        self.call_id = call_id
        self.at_once = rules.max_parallel
        self.calls = self.failed = self.bytes = 0
        self.over = False
        self._mode = mode
        self._rules = rules
        self._allowed = allowed
        self._replay = isinstance(outer, ReplayCaller)
        self._recorded = outer.recorded if isinstance(outer, ReplayCaller) else None
        self._under_way = 0
        self._steps = 0
        self._asking = 0
        self._asked_since = 0.0
        self._asked_seconds = 0.0
        self._clocks: dict[Deadline, Caller] = {}
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
        try:
            body = await self._do(call, seconds)
        except ToolScoreError as exc:
            if exc.code != "tool_error":
                self.failed += 1
            body = {
                "error": {
                    "code": exc.code,
                    "message": exc.message,
                    "suggestion": exc.suggestion,
                    "retryable": exc.retryable,
                }
            }
        return CodeReply(encode(body), self.asked_seconds, self.calls > self._rules.max_calls)

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
            return {"names": sorted(self._space.servers if server is None else self._server(server))}
        if do == "describe":
            return {"text": await self._described(path, server, seconds)}
        if do == "search" and isinstance(wanted.get("query"), str):
            return {"tools": await self._search(wanted["query"], wanted.get("limit", 5), seconds)}
        raise InvalidRequest(f"code can ask to call, list, describe and search, found {do!r:.40}")

    # Names

    @property
    def _space(self) -> NameSpace:
        return self._mode.space(self.outer)

    async def _found(self, path: list[str], seconds: float) -> Tool:
        tool = self._space.find(path)
        if tool is None and len(path) == 1 and (own := self._space.server(path[0])) is not None and len(own) == 1:
            tool = next(iter(own.values()))
        if tool is None and await self._mode.wait_for_server(path[0], self.outer, seconds):
            tool = self._space.find(path)
        if tool is None:
            wanted = ".".join(path)
            near = nearest(wanted, self._space.known()) or sorted(self._space.servers)[:5]
            raise ToolNotFound(f"no tool {wanted!r:.160}", suggestion=f"nearest: {', '.join(near)}" if near else None)
        return tool

    def _server(self, name: Any) -> dict[str, Tool]:
        own = self._space.server(name) if isinstance(name, str) else None
        if own is None:
            near = nearest(str(name), self._space.servers) or sorted(self._space.servers)[:5]
            raise ToolNotFound(f"no server {name!r:.160}", suggestion=f"nearest: {', '.join(near)}" if near else None)
        return own

    async def _described(self, path: list[str] | None, server: Any, seconds: float) -> str:
        if path is None:
            text, left = stubs(self._space, self._server(server).values(), EXPLAIN_TOKENS)
            return text + (f"\n\n# and {', '.join(left)}" if left else "")
        tool = await self._found(path, seconds)
        return stub_of(tool, self._space.name_of(tool).split(".", 1)[1], indent="")

    async def _search(self, query: str, limit: Any, seconds: float) -> list[dict[str, Any]]:
        tool = self._mode.library.find(SEARCH, self._mode.permissions.sees(self.outer.principal))
        if tool is None:
            raise ToolNotFound("tools cannot be searched here", suggestion="dir(tools) lists the servers")
        result = await self._through(tool, Raw(encode({"query": query, "limit": limit})), seconds)
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
            return self._again(self._recorded.take(tool, arguments), tool)
        result = await self._through(tool, arguments, seconds)
        if result.is_error:
            self.failed += 1
            return {"error": {"code": "tool_error", "message": _text(result), "suggestion": result.suggestion}}
        return {"result": result.raw, "unwrap": unwraps(tool)}

    def _again(self, recorded: dict[str, Any], tool: Tool) -> dict[str, Any]:
        self._count(tool)
        if recorded["outcome"] == "ok" and isinstance(recorded["result"], dict):
            return {"result": recorded["result"], "unwrap": unwraps(tool)}
        self.failed += 1
        return {"error": {"code": recorded["outcome"], "message": recorded["error"] or "its result was not kept"}}

    def _may(self, tool: Tool) -> None:
        """Raise `Forbidden` unless this run may call a tool. What the policy says comes later, as for any call."""
        if tool.tool_id == RUN_CODE:
            raise Forbidden("code that calls tools cannot run more of its kind: call the tools here")
        if self._allowed is not None:
            if _named(tool, self._allowed):
                return
            raise Forbidden(
                f"this run may call {', '.join(self._allowed)[:200]} alone, and not {tool.tool_id}",
                suggestion="name it in the run's `tools`",
            )
        if not tool.reads_only and not _named(tool, self._rules.changing_tools):
            raise Forbidden(
                f"{tool.tool_id} may change something, and code may call such tools only where the run names them",
                suggestion=f'run it with tools=["{tool.tool_id}", …], which are then all that it may call',
            )

    def _count(self, tool: Tool) -> None:
        self.calls += 1
        if self.calls > self._rules.max_calls:
            raise Forbidden(
                f"a run may call {self._rules.max_calls:,} tools (`code.max_calls`), and {tool.tool_id} is one more"
            )
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
            server_id=tool.server_id, parent=self.call_id, replay=self._replay,
        )  # fmt: skip
        self._under_way += 1
        clock = Deadline(seconds)
        try:
            with clock, self._clocked(clock, call.caller):
                result = await self._mode.calls.call(call)
        except TimeoutError as exc:
            raise UpstreamTimeout(f"the time of the run was over during the call of {tool.tool_id}") from exc
        finally:
            self._under_way -= 1
        self.bytes += memoryview(result.raw).nbytes
        return result

    # Clocks and progress

    @contextmanager
    def _clocked(self, clock: Deadline, caller: Caller) -> Iterator[None]:
        self._clocks[clock] = caller
        try:
            yield
        finally:
            del self._clocks[clock]

    @property
    def asked_seconds(self) -> float:
        """For how long the client of the run was asked, in all."""
        since = time.monotonic() - self._asked_since if self._asking else 0.0
        return self._asked_seconds + since

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The client is asked while the body runs: no clock of the run goes on."""
        with ExitStack() as stack:
            stack.enter_context(self.outer.pause())
            stack.enter_context(self.caller.pause())
            for clock in [*self._clocks]:
                stack.enter_context(clock.paused())
            if not self._asking:
                self._asked_since = time.monotonic()
            self._asking += 1
            try:
                yield
            finally:
                self._asking -= 1
                if not self._asking:
                    self._asked_seconds += time.monotonic() - self._asked_since

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
        """What the run did, for whoever reads its result."""
        return {"call_id": self.call_id, "calls": self.calls, "failed": self.failed}


@dataclass(frozen=True)
class _Seen:
    generation: int
    space: NameSpace


class CodeMode:
    """Has code run that calls tools."""

    def __init__(
        self,
        calls: CallPipeline,
        relay: Relay,
        library: UnifiedToolLibrary,
        upstreams: UpstreamPool,
        permissions: Permissions,
        rules: CodeRules,
    ) -> None:
        self.calls = calls
        self._upstreams = upstreams
        self.library = library
        self.permissions = permissions
        self._relay = relay
        self._spaces: Memo[Sees | None, _Seen] = Memo(MAX_SPACES)
        self.use(rules)

    def use(self, rules: CodeRules) -> None:
        """Run by other rules from now on."""
        self._rules = rules

    def space(self, caller: Caller) -> NameSpace:
        """The tools that a caller sees, as code names them; made anew when the library changes."""
        sees = self.permissions.sees(caller.principal)
        seen = self._spaces.get(sees)
        if seen is None or seen.generation != self.library.generation:
            tools = (tool for tool in self.library if sees is None or sees(tool))
            seen = self._spaces[sees] = _Seen(self.library.generation, NameSpace(tools))
        return seen.space

    async def wait_for_server(self, name: str, caller: Caller, seconds: float) -> bool:
        """Wait for a server that has not listed its tools yet, as any call would. Returns whether it has now.

        Raises:
            UpstreamUnavailable: it does not run.
        """
        for upstream in self._upstreams:
            named = name in (upstream.server_id, identifier(upstream.server_id)) or name.startswith(
                f"{upstream.server_id}__"
            )
            if not named or self.library.of_server(upstream.server_id):
                continue
            if not self.permissions.sees_server(caller.principal, upstream.server_id):
                return False
            try:
                with Deadline(seconds):
                    await upstream.wait_up()
            except TimeoutError:
                raise UpstreamUnavailable(f"server {upstream.server_id!r} still starts: call again later") from None
            return True
        return False

    async def run(self, given: Mapping[str, Any], caller: Caller, call_id: str) -> Raw:
        """Run code in the sandbox. Cancelling this ends it, and the calls that it made.

        Args:
            given: `code`, and what else `python_execute` takes; `tools`: all that it may call.
            caller: the client that it is for.
            call_id: of the call that asked for it.

        Returns:
            MCP `CallToolResult` of the executor; its `_meta` says how many tools were called.

        Raises:
            Forbidden: the caller may not run Python. ToolNotFound: nothing here runs it.
            What a call of `python_execute` raises.
        """
        if not self.library.of_server(EXECUTOR):
            await self.wait_for_server(EXECUTOR, caller, START_SECONDS)
        sees = self.permissions.sees(caller.principal)
        execute = self.library.resolve(EXECUTE, None, EXECUTOR, sees=sees)
        arguments = dict(given)
        allowed = arguments.pop("tools", None)
        decision = self.permissions.policy.decide(caller.principal, execute, arguments)
        if not decision.allowed:
            raise Forbidden(f"code runs as {execute.tool_id}, and {decision.reason}")
        patterns = tuple(_pattern(name) for name in allowed) if allowed is not None else None
        run = CodeRun(self, self._rules, caller, call_id, patterns)
        told = {"token": run.token, "at_once": run.at_once, "output": run.on_output is not None}
        params = {"name": EXECUTE, "arguments": arguments, "_meta": {RUN_META: told}}
        try:
            raw = await self._relay.relay(
                EXECUTOR, "tools/call", params, what=execute.tool_id, caller=run.caller, safe_to_repeat=False
            )
        finally:
            run.over = True
        members = decode_object(raw)
        meta = meta_of({"_meta": members["_meta"]}) if "_meta" in members else {}
        return Raw(encode({**members, "_meta": {**meta, RUN_META: run.meta()}}))

    def described(self, tools: list[Tool], caller: Caller, max_tokens: int) -> tuple[str, list[str]]:
        """A stub file of these tools within a budget, and the names of those that did not fit."""
        return stubs(self.space(caller), tools, max_tokens)

    def find(self, names: list[str], caller: Caller) -> list[Tool]:
        """The tools of these names or patterns, as code or as the gateway names them.

        Raises:
            ToolNotFound: a name that is none, with the nearest.
        """
        space = self.space(caller)
        found: dict[str, Tool] = {}
        for name in names:
            tool = space.find([name])
            own = [tool] if tool is not None else space.matching(_pattern(name))
            if not own:
                near = nearest(name, space.known()) or sorted(space.servers)[:5]
                raise ToolNotFound(f"no tool {name!r:.160}", suggestion=f"nearest: {', '.join(near)}" if near else None)
            found |= {one.tool_id: one for one in own}
        return list(found.values())


def _pattern(name: str) -> str:
    """A pattern of full names, of what somebody wrote: `time`, `time.*`, `time.get_current_time`, `time__*`."""
    if "__" in name:
        return name
    server, separator, tool = name.partition(".")
    return f"{server}__{tool}" if separator else f"{server}__*" if "*" not in name else name


def _named(tool: Tool, patterns: tuple[str, ...]) -> bool:
    return any(matches(tool, pattern) for pattern in patterns)


def _text(result: ToolResult) -> str:
    blocks = decode(result.content)
    texts = [str(block.get("text", "")) for block in blocks if isinstance(block, dict)]
    return "\n".join(text for text in texts if text)[:MAX_TEXT] or "the tool failed, and does not say why"
