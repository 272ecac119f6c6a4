"""The steps of a run: code is looked at, permitted, and run; also where something goes away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

from runtimes.client import CodeResult, ToolScoreClient, ToolScoreClientError
from runtimes.reasoning.conversation import Conversation
from runtimes.reasoning.events import CodeRun, CodeWritten, Output, Waiting
from runtimes.reasoning.prompt import clipped, references
from runtimes.reasoning.rules import Bounds
from runtimes.reasoning.trajectory import outcome

__all__ = ["Approve", "CodeSteps", "Permits"]

T = TypeVar("T")
Approve = Callable[[str, tuple[str, ...]], Awaitable[bool]]
"""Asks whether code may run: is given the code, and the tools in it that may change something."""

DESCRIBE = "toolscore__describe_tools"
RESET = "python-executor-mcp-server__python_session_reset"
POLL_SECONDS = 0.5
LATE_SECONDS = 5.0
"""How long the journal may take to have a call that was made."""
MAX_TRIES, MAX_RETRY_SECONDS = 4, 10.0
"""Of code that the gateway does not take just now."""


@dataclass(frozen=True)
class Permits:
    """Who permits tools that may change something: `approve`, but for those that a pattern of `allow` names."""

    approve: Approve
    allow: tuple[str, ...]


class CodeSteps:
    """Runs code, a step at a time, in one session of the sandbox.

    Args:
        run_id: of the session, and the beginning of the request ids by which the journal knows its steps.
        approved: tools that were approved before.

    Attributes:
        offered: tools that the model was shown → whether they only read.
    """

    def __init__(
        self,
        gateway: ToolScoreClient,
        talk: Conversation,
        run_id: str,
        bounds: Bounds,
        permits: Permits,
        approved: set[str],
    ) -> None:
        self._gateway = gateway
        self._talk = talk
        self._id = run_id
        self._bounds = bounds
        self._permits = permits
        self._approved = approved
        self._failed: dict[str, str] = {}
        """Code that failed: what came of it."""
        self.offered: dict[str, bool] = {}

    async def take(self, code: str) -> None:
        self._talk.steps += 1
        before = self._failed.get(_plain(code))
        if before is not None:
            self._talk.say("user", f"This very code failed before, and is not run again. It said then:\n{before}")
            return
        named = await self._named(code)
        changing = tuple(sorted(tool for tool, reads in named.items() if not reads))
        request_id = f"{self._id}-{self._talk.steps}-{secrets.token_hex(4)}"
        event = CodeWritten(step=self._talk.steps, code=code, changing=changing)
        self._talk.tell(event, keep=False)
        asked = [tool for tool in changing if tool not in self._approved and not self._is_allowed(tool)]
        if asked:
            if not await self._permits.approve(code, tuple(asked)):
                self._talk.say(
                    "user", f"The user does not let you call {', '.join(asked)}. Do it otherwise, or say CANNOT."
                )
                return
            self._approved.update(asked)
            self._talk.keep(type="approved", tools=asked)
        self._talk.keep(**{**event.body(), "request_id": request_id, "tools": sorted(named)})
        await self._run_it(code, request_id, sorted(named) if changing else None)

    def _is_allowed(self, tool_id: str) -> bool:
        return any(fnmatchcase(tool_id, pattern) for pattern in self._permits.allow)

    async def _named(self, code: str) -> dict[str, bool]:
        """The tools that code names → whether they only read."""
        found: dict[str, bool] = {}
        for path in sorted(references(code)):
            name = ".".join(path)
            if len(path) == 1 and name in self.offered:
                found[name] = self.offered[name]
                continue
            result = await self.patient(partial(self._gateway.execute, DESCRIBE, {"names": [name], "format": "json"}))
            if not result.is_error:  # one that does not exist says so when it is called
                for tool in result.structured_content["tools"]:
                    hints = tool["definition"].get("annotations") or {}
                    found[tool["tool_id"]] = hints.get("readOnlyHint") is True
        return found

    async def _run_it(self, code: str, request_id: str, tools: list[str] | None, tries: int = 1) -> None:
        def heard(event: dict[str, Any]) -> None:
            if event["event"] == "stdout":
                self._talk.tell(Output(kind="stdout", text=event["text"]), keep=False)
            elif event["event"] == "progress":
                self._talk.tell(Output(kind="progress", text=event["message"]), keep=False)

        try:
            result = await self._gateway.run_code(
                code, tools=tools, session_id=self._id, timeout_seconds=self._bounds.code_seconds, on_event=heard,
                request_id=request_id,
            )  # fmt: skip
        except ToolScoreClientError as exc:
            if exc.code in ("unreachable", "outcome_unknown"):
                await self._back(exc)
                await self._what_happened(code, request_id, tools)
                return
            if exc.code == "conflict":  # it goes on there, though we were cut off
                self._talk.tell(Waiting(what="the code, which still runs", seconds=self._bounds.code_seconds))
                found = await self._recorded(request_id, self._bounds.code_seconds + LATE_SECONDS)
                if found:
                    await self._take_over(code, found)
                    return
            if exc.retryable and tries < MAX_TRIES:
                await asyncio.sleep(min(exc.retry_after_seconds or 1.0, MAX_RETRY_SECONDS))
                await self._run_it(code, request_id, tools, tries + 1)
                return
            self._done(code, ok=False, text=str(exc), call_id=None, calls=0, duration_ms=0.0, ran=False)
            return
        self._done(
            code, ok=not result.is_error, text=_shown(result, self._bounds.output_tokens), call_id=result.call_id,
            calls=result.calls, duration_ms=result.duration_ms,
        )  # fmt: skip

    def _done(
        self, code: str, *, ok: bool, text: str, call_id: str | None, calls: int, duration_ms: float, ran: bool = True
    ) -> None:
        self._talk.calls += calls
        if ok:
            self._failed.clear()  # what it lacked may be there now
        elif ran:
            self._failed[_plain(code)] = clipped(text, 300)
        self._talk.tell(
            CodeRun(
                step=self._talk.steps, ok=ok, text=text, call_id=call_id, calls=calls, duration_ms=round(duration_ms, 1)
            )
        )
        self._talk.say("user", outcome(ok, text))

    async def end_session(self) -> None:
        """Give the session back: a principal has a few."""
        if self._talk.steps:
            with contextlib.suppress(ToolScoreClientError):
                await self._gateway.execute(RESET, {"session_id": self._id})

    # When something goes away

    async def patient(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the gateway, which may be restarted in the middle."""
        try:
            return await ask()
        except ToolScoreClientError as exc:
            if exc.code not in ("unreachable", "outcome_unknown"):
                raise
            await self._back(exc)
            return await ask()

    async def _back(self, error: ToolScoreClientError) -> None:
        """Wait until the gateway answers again.

        Raises:
            ToolScoreClientError: it does not.
        """
        seconds = self._bounds.gateway_seconds
        self._talk.tell(Waiting(what=f"the gateway ({error.message})", seconds=seconds))
        until = time.monotonic() + seconds
        while True:
            try:
                await self._gateway.health()
                return
            except ToolScoreClientError as exc:
                if time.monotonic() > until:
                    raise error from exc
            await asyncio.sleep(POLL_SECONDS)

    async def take_up(self, pending: dict[str, Any]) -> None:
        """Go on with a step whose code may have run when we were killed."""
        self._talk.steps = int(pending["step"])
        named = {str(tool): False for tool in pending.get("tools") or ()}
        tools = sorted(named) if pending.get("changing") else None
        await self._what_happened(str(pending["code"]), str(pending["request_id"]), tools)

    async def _what_happened(self, code: str, request_id: str, tools: list[str] | None) -> None:
        """Find out from the journal whether code ran whose answer never came; run it only if it did not."""
        found = await self._recorded(request_id, LATE_SECONDS)
        if not found:
            await self._run_it(code, request_id, tools)  # which the gateway refuses where it still runs
            return
        await self._take_over(code, found)

    async def _recorded(self, request_id: str, seconds: float) -> list[dict[str, Any]]:
        """The journal's record of a run, if it has one within this time."""
        until = time.monotonic() + seconds
        while True:
            found = await self.patient(lambda: self._gateway.calls(request_id=request_id, limit=1))
            if found or time.monotonic() > until:
                return found
            await asyncio.sleep(POLL_SECONDS)

    async def _take_over(self, code: str, found: list[dict[str, Any]]) -> None:
        """Take a run's result from the journal."""
        call = await self.patient(lambda: self._gateway.call(found[0]["call_id"]))
        inner = call.get("calls") or []
        structured = (
            (call["result"] or {}).get("structuredContent") if call["outcome"] in ("ok", "tool_error") else None
        )
        if structured is not None:
            blocks = call["result"].get("content") or []
            text = "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
            ok = structured["exit"] == "ok"
        elif call["outcome"] in ("ok", "tool_error"):
            ok = call["outcome"] == "ok"
            text = (
                "It ran to its end, and its output was too large to be kept: print less of it again."
                if ok
                else "It failed, and what it said was too large to be kept."
            )
        else:
            ok = False
            lines = [f"- {one['tool_id']}: {one['outcome']}" for one in inner]
            text = "The code was cut off, and its variables may be gone. " + (
                "These calls were made:\n" + "\n".join(lines) if lines else "It had made no call of a tool."
            )
        self._done(
            code, ok=ok, text=clipped(text, self._bounds.output_tokens), call_id=call["call_id"], calls=len(inner),
            duration_ms=call["duration_ms"],
        )  # fmt: skip


def _plain(code: str) -> str:
    """Code without what makes no difference."""
    return "\n".join(line.rstrip() for line in code.splitlines() if line.strip())


def _shown(result: CodeResult, tokens: int) -> str:
    """What a model is shown of a result."""
    parts = [result.text]
    if result.failed and not result.is_error:
        parts.append(f"({result.failed} of {result.calls} calls of tools failed, and the code went on.)")
    return clipped("\n".join(parts), tokens)
