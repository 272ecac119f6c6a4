"""Code that calls tools: a run of Python in the sandbox, whose only door is the pipeline.

    run_code ──► CodeMode.run ──► executor: the code runs
                    CodeRun  ◄── a call of the code, on the connection that carries the run
                       └──► CallPipeline: policy, rates, cache, journal (its parent is the run) ──► the tool

A run has a token, which only the executor that runs it is told. The token is good on that connection, while the run's
request is under way there, and for nothing else (`upstreams/caller.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw

from toolscore.access.limits import RateLimits
from toolscore.calls.call import CallPipeline
from toolscore.calls.code_run import CodeRules, CodeRun
from toolscore.calls.code_tools import CodeTools, pattern_of
from toolscore.calls.relay import Relay
from toolscore.core.errors import (
    Forbidden,
    InvalidArguments,
)
from toolscore.core.jsonrpc import decode_object, encode, meta_of
from toolscore.core.names import EXECUTOR
from toolscore.upstreams import Caller

__all__ = ["RUN_META", "CodeMode"]

EXECUTE = "python_execute"
RUN_META = "toolscore/run"
"""The member of `_meta` that tells the executor of a run; and, in a result, what the run did."""
START_SECONDS = 30.0
"""How long a run waits for an executor that starts."""


class CodeMode:
    """Has code run that calls tools.

    Attributes:
        tools: as code sees them.
    """

    def __init__(
        self,
        calls: CallPipeline,
        relay: Relay,
        tools: CodeTools,
        rates: RateLimits,
        rules: CodeRules,
    ) -> None:
        self.tools = tools
        self._calls = calls
        self._relay = relay
        self._rates = rates
        self.use(rules)

    def use(self, rules: CodeRules) -> None:
        """Run by other rules from now on."""
        self._rules = rules

    async def run(self, given: Mapping[str, Any], caller: Caller, call_id: str, trace: Mapping[str, str]) -> Raw:
        """Run code in the sandbox. Cancelling this ends it, and the calls that it made.

        Args:
            given: `code`, and what else `python_execute` takes; `tools`: all that it may call.
            caller: the client that it is for.
            call_id: of the call that asked for it.
            trace: in which the calls of the code belong (members of `_meta`).

        Returns:
            MCP `CallToolResult` of the executor; its `_meta` says how many tools were called.

        Raises:
            Forbidden: the caller may not run Python. ToolNotFound: nothing here runs it.
            What a call of `python_execute` raises.
        """
        if not self.tools.library.of_server(EXECUTOR):
            await self.tools.wait_for_server(EXECUTOR, caller, START_SECONDS)
        sees = self.tools.permissions.sees(caller.principal)
        execute = self.tools.library.resolve(EXECUTE, None, EXECUTOR, sees=sees)
        arguments = dict(given)
        allowed = arguments.pop("tools", None)
        decision = self.tools.permissions.policy.decide(caller.principal, execute, arguments)
        if not decision.allowed:
            raise Forbidden(f"code runs as {execute.tool_id}, and {decision.reason}")
        await self._rates.take_of_tool(caller.principal, execute)
        most = execute.input_schema["properties"]["timeout_seconds"].get("maximum")
        if most is not None and arguments.get("timeout_seconds", 0) > most:
            raise InvalidArguments(
                f"`timeout_seconds` is at most {most:g} here (`python_executor.max_timeout_seconds`)"
            )
        patterns = tuple(pattern_of(name) for name in allowed) if allowed is not None else None
        for name, pattern in zip(allowed or (), patterns or (), strict=True):
            self.tools.check(name, pattern, caller)
        run = CodeRun(self.tools, self._calls, self._rules, caller, call_id, patterns, trace)
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
