"""What a person sees of a run: the plan, the model's words, code, calls, results, as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import threading
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.syntax import Syntax

from runtimes.reasoning.events import (
    Answered,
    CodeRun,
    CodeWritten,
    Ended,
    Event,
    Missing,
    Output,
    Planned,
    Started,
    Summed,
    Thinking,
    ToolsOffered,
    Waiting,
)

__all__ = ["Face"]

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MARKS = {"sufficient": "[green]✓[/]", "unsure": "[yellow]?[/]", "gap": "[red]✗[/]"}
MAX_SHOWN_TOOLS = 12


def plain(text: str) -> str:
    """A text that cannot steer a terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class Face:
    """Shows events on a terminal, and asks. The answer goes to stdout, all else to stderr."""

    def __init__(self, trajectory: str | None) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._trajectory = trajectory
        self._thinking = False

    def show(self, event: Event) -> None:
        """Show one event."""
        if self._thinking and not isinstance(event, Thinking):
            self._console.print()
            self._thinking = False
        SHOWN[type(event)](self, event)

    def _line(self, text: str, **style: Any) -> None:
        self._console.print(text, **style)

    def _started(self, event: Started) -> None:
        again = f", going on after step {event.resumed}" if event.resumed is not None else ""
        self._line(f"[bold]{escape(plain(event.task))}[/]\n[dim]{escape(event.model)}, {event.run_id}{again}[/]\n")

    def _planned(self, event: Planned) -> None:
        self._line("[dim]the steps, and whether a tool fits: ✓ yes, ? perhaps, ✗ none for sure[/]")
        for step in event.steps:
            tools = ", ".join(step["tools"]) or "no tool"
            self._line(f" {MARKS.get(step['verdict'], '?')} {escape(plain(step['step']))}  [dim]{escape(tools)}[/]")

    def _waiting(self, event: Waiting) -> None:
        self._line(f"[dim]… waiting for {escape(plain(event.what))}, at most {event.seconds:.1f} s[/]")

    def _missing(self, event: Missing) -> None:
        self._line(f"[red]missing[/] {escape(plain(event.step))}: {escape(plain(event.reason))}")

    def _tools_offered(self, event: ToolsOffered) -> None:
        shown = ", ".join(event.names[:MAX_SHOWN_TOOLS])
        more = f" and {len(event.names) - MAX_SHOWN_TOOLS} more" if len(event.names) > MAX_SHOWN_TOOLS else ""
        self._line(f"[dim]{'new tools' if event.arrived else 'tools'}: {escape(shown)}{more}[/]\n")

    def _thought(self, event: Thinking) -> None:
        self._thinking = True
        self._console.print(escape(plain(event.text)), style="italic", end="")

    def _code_written(self, event: CodeWritten) -> None:
        title = f"step {event.step}"
        if event.changing:
            title += f" · may change something: {', '.join(event.changing)}"
        code = Syntax(plain(event.code), "python", word_wrap=True)
        self._console.print(Panel(code, title=escape(title), title_align="left"))

    def _output(self, event: Output) -> None:
        if event.kind == "progress":
            self._line(f"[dim]· {escape(plain(event.text))}[/]")

    def _code_run(self, event: CodeRun) -> None:
        mark = "[green]ran[/]" if event.ok else "[red]failed[/]"
        calls = f", {event.calls} calls of tools" if event.calls else ""
        self._line(f"{mark} [dim]in {event.duration_ms:.0f} ms{calls}[/]")
        self._line(escape(plain(event.text)).rstrip("\n"), style="default" if event.ok else "red")
        self._line("")

    def _summed(self, event: Summed) -> None:
        self._line(f"[yellow]the context was too long: {event.steps} older steps were summed up[/]")

    def _answered(self, event: Answered) -> None:
        if not event.possible:
            self._line("[yellow]it cannot be done:[/]")
        print(plain(event.text), flush=True)

    def _ended(self, event: Ended) -> None:
        if event.reason not in ("answered", "cannot"):
            self._line(f"[red]{escape(plain(event.message))}[/]")
        money = f", {event.money:.4f}" if event.money else ""
        self._line(
            f"[dim]{event.steps} steps, {event.calls} calls of tools, {event.tokens_read:,} tokens read and "
            f"{event.tokens_written:,} written{money}, {event.seconds:.1f} s[/]"
        )
        if self._trajectory is not None:
            again = f"; go on: toolscore-reason --resume {self._trajectory}"
            stopped = event.reason not in ("answered", "cannot")
            self._line(f"[dim]kept in {escape(self._trajectory)}{escape(again) if stopped else ''}[/]")

    async def approve(self, code: str, tools: tuple[str, ...]) -> bool:
        """Ask whether code may call tools that may change something. Nobody there: no."""
        if not sys.stdin.isatty():
            self._line(f"[yellow]not allowed: {escape(', '.join(tools))} (--yes, or --allow PATTERN)[/]")
            return False
        question = f"Let it call {', '.join(tools)}? [y/N] "
        said = await self._answer_to(question)
        return said.strip().lower() in ("y", "yes")

    async def _answer_to(self, question: str) -> str:
        """What somebody types. In a thread that nothing waits for: a run may end before it has been answered."""
        loop = asyncio.get_running_loop()
        typed: asyncio.Future[str] = loop.create_future()

        def answer(said: str) -> None:
            if not typed.done():
                typed.set_result(said)

        def read() -> None:
            try:
                said = self._console.input(escape(question))
            except (EOFError, OSError):
                said = ""
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(answer, said)

        threading.Thread(target=read, name="question", daemon=True).start()
        return await typed


SHOWN: dict[type[Event], Any] = {
    Started: Face._started, Planned: Face._planned, Waiting: Face._waiting, Missing: Face._missing,
    ToolsOffered: Face._tools_offered, Thinking: Face._thought, CodeWritten: Face._code_written,
    Output: Face._output, CodeRun: Face._code_run, Summed: Face._summed, Answered: Face._answered, Ended: Face._ended,
}  # fmt: skip
