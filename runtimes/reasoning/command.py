"""`toolscore-reason "task"`: does a task with a gateway's tools and a model.

Exit codes: 0 answered; 1 not done (a bound, the model, the gateway); 2 wrong usage; 3 no gateway answers; 4 the model
says that it cannot be done; 130 stopped.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from runtimes.client import ToolScoreClientError
from runtimes.reasoning.enhanced_runtime import EnhancedReasoningRuntime
from runtimes.reasoning.events import Ended
from runtimes.reasoning.face import Face
from runtimes.reasoning.models import ChatModel
from runtimes.reasoning.rules import DEFAULT_KEY, DEFAULT_URL, Bounds, ModelRules, NoKey
from runtimes.reasoning.trajectory import TrajectoryError, as_chat, compared, read_trajectory

__all__ = ["app", "run"]

CODES = {"answered": 0, "cannot": 4, "gateway": 3, "stopped": 130}

Model = Annotated[str, typer.Option(envvar="TOOLSCORE_REASON_MODEL", help="The model, as the endpoint calls it.")]
Endpoint = Annotated[str, typer.Option(envvar="TOOLSCORE_REASON_URL", help="Of an API that speaks OpenAI's.")]
Key = Annotated[str, typer.Option(envvar="TOOLSCORE_REASON_KEY", help="Its place: ${env:NAME}, ${file:/path}.")]
Gateway = Annotated[str | None, typer.Option("--gateway", "--url", help="Its address; else TOOLSCORE_URL.")]
Temperature = Annotated[float | None, typer.Option(help="Of the model.")]
Seed = Annotated[int | None, typer.Option(help="Of the model.")]
Steps = Annotated[int, typer.Option(min=1, help="At most so many pieces of code.")]
Tokens = Annotated[int, typer.Option(min=1, help="At most so many tokens, read and written.")]
Seconds = Annotated[float, typer.Option(min=1, help="At most so long.")]
Money = Annotated[float | None, typer.Option(help="At most so much, by --prices.")]
Prices = Annotated[str, typer.Option(help="Of a million tokens, IN:OUT, such as 0.15:0.60.")]

app = typer.Typer(
    name="toolscore-reason", help=(__doc__ or "").split("\n", maxsplit=1)[0], add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
FOLDER = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "toolscore" / "runs"


def rules_of(
    model: str, endpoint: str, key: str, temperature: float | None, seed: int | None, prices: str
) -> ModelRules:
    """The model's rules.

    Raises:
        typer.Exit: the prices are none.
    """
    if not model:
        say("name a model with --model, or TOOLSCORE_REASON_MODEL")
        raise typer.Exit(2)
    try:
        cost_in, cost_out = (float(part) for part in prices.split(":"))
    except ValueError:
        say(f"--prices takes IN:OUT, such as 0.15:0.60, found {prices!r}")
        raise typer.Exit(2) from None
    try:
        return ModelRules(
            name=model, url=endpoint or DEFAULT_URL, key=key or DEFAULT_KEY, temperature=temperature, seed=seed,
            input_price=cost_in, output_price=cost_out,
        )  # fmt: skip
    except ValueError as exc:
        say(str(exc))
        raise typer.Exit(2) from None


@app.command("do", epilog="Other commands: toolscore-reason compare, export, bench.")
def do(
    words: Annotated[list[str] | None, typer.Argument(metavar="TASK", help="In words.")] = None,
    model: Model = "",
    endpoint: Endpoint = "",
    key: Key = "",
    gateway: Gateway = None,
    temperature: Temperature = None,
    seed: Seed = None,
    steps: Steps = 12,
    tokens: Tokens = 200_000,
    seconds: Seconds = 600.0,
    money: Money = None,
    prices: Prices = "0:0",
    yes: Annotated[bool, typer.Option("--yes", help="Ask nobody before a tool that may change something.")] = False,
    allow: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Ask nobody for these: memory__*.")] = None,
    install: Annotated[bool, typer.Option(help="Request tools that are missing.")] = True,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the run there, else with the others.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on with a run that stopped.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events, a line each.")] = False,
) -> None:
    """Do a task: `toolscore-reason "which of my repositories has open changes?"`."""
    past, task = None, " ".join(words or ()).strip()
    if resume is not None:
        try:
            past = read_trajectory(resume)
        except TrajectoryError as exc:
            say(str(exc))
            raise typer.Exit(2) from None
        if past.end is not None and past.end["reason"] in ("answered", "cannot"):
            say(f"that run has ended: {past.answer}")
            raise typer.Exit(2)
        if task:
            say(f"that run has its task: {past.task}")
            raise typer.Exit(2)
        model, endpoint, key = model or past.model, endpoint or past.endpoint, key or past.key
    elif save is not None and save.exists():
        say(f"{save} is there already: give another name, or go on with --resume {save}")
        raise typer.Exit(2)
    if past is None and not task:
        say('say what is to be done: toolscore-reason "what time is it in Tokyo?"')
        raise typer.Exit(2)
    rules = rules_of(model, endpoint, key, temperature, seed, prices)
    bounds = Bounds(steps=steps, tokens=tokens, seconds=seconds, money=money if money is not None else float("inf"))
    path = resume or save or FOLDER / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl"
    face = Face(str(path))

    async def go() -> int:
        code = 1
        async with (
            ChatModel(rules) as chat,
            EnhancedReasoningRuntime(
                chat, url=gateway, bounds=bounds, approve=face.approve, allow=("*",) if yes else tuple(allow or ()),
                install=install,
            ) as runtime,
        ):  # fmt: skip
            async for event in runtime.run(task, trajectory=path, resume=past):
                if as_json:
                    print(json.dumps(event.body()), flush=True)
                else:
                    face.show(event)
                if isinstance(event, Ended):
                    code = CODES.get(event.reason, 1)
        return code

    try:
        code = asyncio.run(go())
    except KeyboardInterrupt:
        say(f"stopped, and the code with it. Go on: toolscore-reason --resume {path}")
        code = 130
    except (NoKey, ImportError) as exc:
        say(str(exc))
        code = 2
    except (ToolScoreClientError, OSError, ValueError) as exc:
        say(str(exc))
        code = 1
    raise typer.Exit(code)


@app.command("compare")
def compare(one: Path, other: Path) -> None:
    """Show two runs beside one another."""
    from rich.console import Console
    from rich.table import Table

    try:
        rows = compared(read_trajectory(one), read_trajectory(other))
    except TrajectoryError as exc:
        say(str(exc))
        raise typer.Exit(2) from None
    table = Table("", one.name, other.name)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


@app.command("export")
def export(file: Path) -> None:
    """Print a run as chat messages for training, with secrets taken out."""
    try:
        print(json.dumps({"messages": as_chat(read_trajectory(file))}, ensure_ascii=False))
    except TrajectoryError as exc:
        say(str(exc))
        raise typer.Exit(2) from None


@app.command("bench")
def bench(
    folder: Annotated[Path | None, typer.Argument(help="Tasks; those that come along if not given.")] = None,
    model: Model = "",
    endpoint: Endpoint = "",
    key: Key = "",
    gateway: Gateway = None,
    temperature: Temperature = None,
    seed: Seed = None,
    prices: Prices = "0:0",
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these tasks.")] = None,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the runs there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model on tasks with checkable answers. Attaches their servers to the gateway, and takes them away."""
    from runtimes.reasoning.bench import TASKS, run_bench

    rules = rules_of(model, endpoint, key, temperature, seed, prices)
    try:
        report = asyncio.run(
            run_bench(folder or TASKS, rules, gateway=gateway, only=tuple(only or ()), keep=keep, quiet=as_json)
        )
    except (NoKey, ImportError, ToolScoreClientError, ValueError, OSError) as exc:
        say(str(exc))
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(report, indent=2))


def say(line: str) -> None:
    """Tell the person at the terminal."""
    typer.echo(line, err=True)


COMMANDS = ("compare", "export", "bench")


def run() -> None:
    """Run the command line; a task needs no command before it."""
    if len(sys.argv) < 2 or sys.argv[1] not in (*COMMANDS, "do"):
        sys.argv.insert(1, "do")
    app()
