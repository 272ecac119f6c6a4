"""The runtime: finds tools for a task, has a model write code that calls them, runs it, and goes on until it is done.

It uses a gateway as any program does, over REST (`ToolScoreClient`) and the events socket (`RealTimeToolClient`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from runtimes.client import RealTimeToolClient, ToolFailed, ToolScoreClient, ToolScoreClientError
from runtimes.reasoning.conversation import Conversation
from runtimes.reasoning.events import Answered, Ended, Event, Missing, Planned, Started, Thinking, ToolsOffered, Waiting
from runtimes.reasoning.models import ChatModel, Completion, ModelError
from runtimes.reasoning.prompt import SYSTEM, Answer, FormError, read_answer, task_message
from runtimes.reasoning.rules import Bounds
from runtimes.reasoning.steps import Approve, CodeSteps, Permits
from runtimes.reasoning.trajectory import Trajectory, Writer

__all__ = ["EnhancedReasoningRuntime", "Outcome"]

MAX_OFFERED = 100
RESUMABLE = frozenset({"model", "gateway", "stopped", "steps", "tokens", "seconds", "money"})
"""Ends after which a run may go on: its variables are kept, for as long as the gateway keeps them."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        answer: the model's; `None`: there is none, and `reason` and `message` say why.
        possible: false where the model says that the task cannot be done.
    """

    answer: str | None
    possible: bool
    reason: str
    message: str
    steps: int
    calls: int
    tokens_read: int
    tokens_written: int
    money: float
    seconds: float


class _Over(Exception):
    """The run ends."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def _nobody(code: str, tools: tuple[str, ...]) -> bool:
    """Nobody is there to be asked."""
    return False


class EnhancedReasoningRuntime:
    """Does tasks. Use as `async with EnhancedReasoningRuntime(model) as runtime`; the model's owner closes it.

    Args:
        model: writes the code.
        url, api_key: of the gateway; `None`: as `TOOLSCORE_URL` and `TOOLSCORE_API_KEY` say.
        bounds: what a run may take.
        approve: is asked before code runs that names tools which may change something; without it they are refused.
        allow: patterns of tools for which nobody is asked, such as `memory__*`; `*`: none is asked for.
        install: whether a tool that is missing is requested. The gateway's policy decides what may be installed.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        url: str | None = None,
        api_key: str | None = None,
        bounds: Bounds | None = None,
        approve: Approve = _nobody,
        allow: Sequence[str] = (),
        install: bool = True,
    ) -> None:
        self.model = model
        self.bounds = bounds or Bounds()
        self.permits = Permits(approve, tuple(allow))
        self.install = install
        self.gateway = ToolScoreClient(url, api_key=api_key)
        self.events = RealTimeToolClient(url, api_key=api_key, events=["tool_installed", "tool_removed"])
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> EnhancedReasoningRuntime:
        await self._stack.enter_async_context(self.gateway)
        await self._stack.enter_async_context(self.events)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(
        self, task: str, *, trajectory: Path | None = None, resume: Trajectory | None = None
    ) -> AsyncIterator[Event]:
        """Do a task, and tell what happens. The last event is `Ended`, unless this is cancelled; then the code is ended
        with the calls that it made.

        Args:
            task: in words.
            trajectory: the file to write the run to.
            resume: a run to go on with, from its last whole step; `task` is that one's.

        Raises:
            OSError: the trajectory cannot be written.
        """
        heard: asyncio.Queue[Event | None] = asyncio.Queue()
        run = _Run(self, resume.task if resume is not None else task, trajectory, resume, heard.put_nowait)

        async def work() -> None:
            try:
                await run.go()
            finally:
                heard.put_nowait(None)

        working = asyncio.create_task(work())
        try:
            while (event := await heard.get()) is not None:
                yield event
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def solve(self, task: str, **options: Any) -> Outcome:
        """Do a task, and return how it ended."""
        answer: Answered | None = None
        end: Ended | None = None
        async for event in self.run(task, **options):
            if isinstance(event, Answered):
                answer = event
            elif isinstance(event, Ended):
                end = event
        assert end is not None
        return Outcome(
            answer.text if answer is not None else None,
            answer.possible if answer is not None else False,
            end.reason, end.message, end.steps, end.calls, end.tokens_read, end.tokens_written, end.money, end.seconds,
        )  # fmt: skip


class _Run:
    """One task."""

    def __init__(
        self,
        runtime: EnhancedReasoningRuntime,
        task: str,
        path: Path | None,
        resumed: Trajectory | None,
        tell: Callable[[Event], None],
    ) -> None:
        self._runtime = runtime
        self._gateway = runtime.gateway
        self._model = runtime.model
        self._bounds = runtime.bounds
        self._task = task
        self._past = resumed
        self._id = resumed.run_id if resumed is not None else f"run-{secrets.token_hex(6)}"
        self._talk = Conversation(resumed, self._model.rules, Writer(path) if path is not None else None, tell)
        self._code = CodeSteps(
            self._gateway, self._talk, self._id, self._bounds, runtime.permits,
            set(resumed.approved) if resumed is not None else set(),
        )  # fmt: skip

    # The run

    async def go(self) -> None:
        try:
            try:
                async with asyncio.timeout(max(0.001, self._bounds.seconds - self._talk.seconds)):
                    await self._work()
            except TimeoutError:
                raise _Over("seconds", f"the run took over {self._bounds.seconds:g} s") from None
            except ModelError as exc:
                raise _Over("model", f"the model gave no answer: {exc}") from exc
            except ToolScoreClientError as exc:
                if exc.code in ("unreachable", "outcome_unknown"):
                    raise _Over("gateway", f"the gateway is away: {exc.message}") from exc
                raise _Over("refused", f"the gateway refuses: {exc}") from exc
        except _Over as exc:
            if exc.reason not in RESUMABLE:
                await self._code.end_session()
            self._talk.end(exc.reason, str(exc))
        except asyncio.CancelledError:
            self._talk.end("stopped", "it was stopped")
            raise
        except Exception as exc:  # our own fault: whoever listens hears of the end all the same
            self._talk.end("failed", f"the runtime failed: {exc!r}")
            raise

    async def _work(self) -> None:
        past = self._past
        self._talk.tell(
            Started(
                run_id=self._id, task=self._task, model=self._model.rules.name,
                endpoint=self._model.rules.url, key=self._model.rules.key,
                resumed=len(past.steps) if past is not None else None,
            )
        )  # fmt: skip
        if past is None or not self._talk.messages:
            await self._begin()
        elif past.pending is not None:
            await self._code.take_up(past.pending)
        elif self._talk.messages[-1]["role"] == "assistant":
            await self._act(self._talk.messages[-1]["content"], "stop")
        while True:
            await self._offer_what_came()
            completion = await self._ask()
            await self._act(completion.text, completion.finish)

    async def _begin(self) -> None:
        """Plan: is there a tool for each step, and what do they look like?"""
        await self._gateway.health()  # where none runs at all, nobody waits for it
        analysis = await self._code.patient(lambda: self._gateway.analyze_gap(self._task))
        steps = tuple(
            {
                "step": step["step"],
                "verdict": step["verdict"],
                "tools": [tool["tool_id"] for tool in step["tools"]][:3],
            }
            for step in analysis["steps"]
        )
        self._talk.tell(Planned(verdict=analysis["verdict"], steps=steps))
        missing = []
        names: list[str] = []
        for step in steps:
            if step["verdict"] == "gap":
                came, why = await self._acquire(step["step"])
                names += came or step["tools"]
                if not came:
                    missing.append(f"{step['step']}: {why}")
                    self._talk.tell(Missing(step=step["step"], reason=why))
            else:
                names += step["tools"]
        stubs = await self._describe(list(dict.fromkeys(names))[:MAX_OFFERED], query=self._task)
        first = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": task_message(self._task, stubs, missing)},
        ]
        self._talk.begin(first)

    async def _acquire(self, step: str) -> tuple[list[str], str]:
        """Have a missing tool installed, if the gateway's policy lets us. Returns its tools, and why there are none."""
        if not self._runtime.install:
            return [], "this run installs nothing"
        seconds = self._bounds.install_seconds
        self._talk.tell(Waiting(what=f"a tool for: {step}", seconds=seconds))
        try:
            async with asyncio.timeout(seconds):
                acquired = await self._gateway.request_capability(step)
                tools = [str(tool["tool_id"]) for tool in acquired["tools"]]
                if acquired["status"] == "installed":
                    for tool_id in tools[:1]:  # the gateway has told the others then, too
                        await self._runtime.events.wait_for_tool(tool_id)
                    return tools, ""
        except TimeoutError:
            return [], f"it did not come within {seconds:g} s"
        except ToolScoreClientError as exc:
            if exc.code in ("unreachable", "outcome_unknown"):
                raise
            return [], str(exc)
        if acquired["status"] in ("sufficient", "unsure"):
            return tools, str(acquired["next"])
        return [], str(acquired["next"])

    async def _describe(self, names: list[str], query: str | None, *, arrived: bool = False) -> str:
        """The tools as stubs; the model is shown them from now on."""
        wanted: dict[str, Any] = {"max_tokens": self._bounds.stub_tokens}
        if names:
            wanted["names"] = names
        if query is not None:
            wanted["query"] = query[:4000]
        try:
            result = await self._code.patient(lambda: self._gateway.execute("toolscore__describe_tools", wanted))
            found = result.raise_for_tool_error().structured_content
        except ToolFailed:  # one of them has gone
            return ""
        fresh = {tool["tool_id"]: bool(tool["read_only"]) for tool in found["tools"]}
        self._code.offered |= fresh
        if fresh:
            self._talk.tell(ToolsOffered(names=tuple(tool["name"] for tool in found["tools"]), arrived=arrived))
        return str(found["stubs"])

    async def _offer_what_came(self) -> None:
        """Show the model tools that were installed meanwhile."""
        came = [
            tool_id
            for tool_id, tool in self._runtime.events.tools.items()
            if tool.get("type") == "tool_installed" and tool_id not in self._code.offered
        ]
        if not came:
            return
        stubs = await self._describe(came[:MAX_OFFERED], None, arrived=True)
        self._code.offered |= dict.fromkeys(came, False)  # also those that are gone again: they are not asked for twice
        if stubs:
            self._talk.say("user", f"Tools that have just come:\n```python\n{stubs}\n```")

    # The model

    async def _ask(self) -> Completion:
        """An answer of the model, within the bounds."""
        for _ in range(3):
            self._check()
            self._talk.fit()
            self._model.on_wait = lambda what, seconds: self._talk.tell(Waiting(what=what, seconds=seconds))
            try:
                completion = await self._model.complete(
                    self._talk.messages, lambda text: self._talk.tell(Thinking(text=text), keep=False)
                )
            except ModelError as exc:
                if exc.kind != "too_long" or not self._talk.sum_up():
                    raise
                continue
            self._talk.count(completion)
            self._talk.say("assistant", completion.text or "(nothing)")
            return completion
        raise ModelError("too_long", "the task and its last steps do not fit into the model's context")

    def _check(self) -> None:
        bounds, talk = self._bounds, self._talk
        if talk.read + talk.written >= bounds.tokens:
            raise _Over("tokens", f"it took over {bounds.tokens:,} tokens")
        if talk.money >= bounds.money:
            raise _Over("money", f"it cost over {bounds.money:g}")

    async def _act(self, text: str, finish: str) -> None:
        """Do what an answer asks for. One that has not the form is mended by asking once."""
        try:
            answer = read_answer(text, finish)
        except FormError as exc:
            self._talk.say("user", str(exc))
            completion = await self._ask()
            try:
                answer = read_answer(completion.text, completion.finish)
            except FormError as again:
                raise _Over(
                    "model_form", f"the model does not answer in the form that it was asked for: {again}"
                ) from again
        if answer.final is not None:
            self._answered(answer)
        assert answer.code is not None
        if self._talk.steps >= self._bounds.steps:
            raise _Over("steps", f"it took {self._bounds.steps} steps without an end")
        await self._code.take(answer.code)

    def _answered(self, answer: Answer) -> None:
        assert answer.final is not None
        self._talk.tell(Answered(text=answer.final, possible=answer.possible))
        raise _Over("answered" if answer.possible else "cannot", answer.final)
