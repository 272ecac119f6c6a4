"""`toolscore-reason bench FOLDER`: how well a model does tasks with checkable answers, on real servers.

A folder has `tasks.json` (name, task, servers, check), `servers.json` (their `mcpServers` entries), and `data.py`,
which fills a folder with what the tasks are about. Each task gets data of its own, and the servers that it names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console
from rich.table import Table

from runtimes.client import ToolScoreClient, ToolScoreClientError
from runtimes.reasoning.enhanced_runtime import EnhancedReasoningRuntime, Outcome
from runtimes.reasoning.models import ChatModel
from runtimes.reasoning.rules import Bounds, ModelRules

__all__ = ["TASKS", "run_bench"]

TASKS = Path(__file__).parent / "tasks"
START_SECONDS = 120.0
PREFIX = "bench-"
"""Of the ids of the tasks' servers: the gateway may have others of their names."""
CHECKS = frozenset({"has", "matches", "now", "file", "text", "cannot"})


async def run_bench(
    folder: Path,
    model: ModelRules,
    *,
    gateway: str | None = None,
    only: tuple[str, ...] = (),
    keep: Path | None = None,
    bounds: Bounds | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Do the tasks of a folder, print a table unless `quiet`, and return the figures.

    Args:
        gateway: its address.
        only: names of tasks.
        keep: where the runs are kept.

    Returns:
        `tasks`: `{name, right, reason, answer, steps, calls, tokens, money, seconds}` of each; `right`, `count`, and
        the sums.

    Raises:
        ValueError: the folder has no tasks. ToolScoreClientError: no gateway, or one that takes no servers.
    """
    tasks, servers = _read(folder)
    chosen = [task for task in tasks if not only or task["name"] in only]
    if not chosen:
        raise ValueError(f"no such task: there are {', '.join(task['name'] for task in tasks)}")
    console = Console(stderr=True)
    done = []
    async with ToolScoreClient(gateway) as client, ChatModel(model) as chat:
        for number, task in enumerate(chosen, 1):
            if not quiet:
                console.print(f"[dim]{number}/{len(chosen)}[/] {task['name']} …", highlight=False)
            path = keep / f"{re.sub(r'[^a-z0-9]+', '-', task['name'].lower())}.jsonl" if keep is not None else None
            done.append(await _do(client, chat, task, servers, folder, gateway, bounds, path))
    report = {
        "model": model.name, "count": len(done), "right": sum(one["right"] for one in done),
        **{name: round(sum(one[name] for one in done), 4) for name in ("steps", "calls", "tokens", "money", "seconds")},
        "tasks": done,
    }  # fmt: skip
    if not quiet:
        _print(report)
    return report


def _read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
        servers = json.loads((folder / "servers.json").read_text(encoding="utf-8"))["mcpServers"]
        for task in tasks:
            if not task["check"] or not task["check"].keys() <= CHECKS or not set(task["servers"]) <= set(servers):
                raise ValueError(f"the task {task['name']!r} names a check or a server that there is not")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as exc:
        raise ValueError(f"{folder} has no tasks that can be read: {exc}") from exc
    return tasks, servers


async def _do(
    client: ToolScoreClient,
    chat: ChatModel,
    task: dict[str, Any],
    servers: dict[str, Any],
    folder: Path,
    gateway: str | None,
    bounds: Bounds | None,
    path: Path | None,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="toolscore-reason-") as name:
        data = Path(name).resolve()
        command = [sys.executable, "-I", str(folder / "data.py"), str(data)]
        await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        entries = {one: json.loads(json.dumps(servers[one]).replace("{folder}", str(data))) for one in task["servers"]}
        text = str(task["task"]).replace("{folder}", str(data))
        async with _attached(client, entries):
            async with EnhancedReasoningRuntime(chat, url=gateway, bounds=bounds, allow=("*",)) as runtime:
                outcome = await runtime.solve(text, trajectory=path)
        right = _is_right(task["check"], outcome, data)
    return {
        "name": task["name"], "right": right, "reason": outcome.reason, "answer": outcome.answer or outcome.message,
        "steps": outcome.steps, "calls": outcome.calls, "tokens": outcome.tokens_read + outcome.tokens_written,
        "money": outcome.money, "seconds": outcome.seconds,
    }  # fmt: skip


@contextlib.asynccontextmanager
async def _attached(client: ToolScoreClient, entries: dict[str, Any]) -> AsyncIterator[None]:
    """Have servers at the gateway while inside, beside those that it has. What is installed meanwhile goes again."""
    attached = []
    try:
        for server_id, entry in entries.items():
            await client.attach(f"{PREFIX}{server_id}", **entry)
            attached.append(f"{PREFIX}{server_id}")
        async with asyncio.timeout(START_SECONDS):
            for server_id in attached:
                while not [tool async for tool in client.tools(server_id=server_id)]:
                    await asyncio.sleep(0.1)
        before = {one["server_id"] for one in await client.installed()}
        yield
        for one in await client.installed():
            if one["server_id"] not in before:
                await client.uninstall(one["server_id"])
    finally:
        for server_id in attached:
            with contextlib.suppress(ToolScoreClientError):
                await client.detach(server_id)


def _is_right(check: dict[str, Any], outcome: Outcome, data: Path) -> bool:
    if check.get("cannot"):
        return bool(outcome.reason == "cannot")
    if outcome.reason != "answered" or outcome.answer is None:
        return False
    said = outcome.answer.lower()
    if not all(str(part).lower() in said for part in check.get("has", ())):
        return False
    if "matches" in check and not re.search(check["matches"], outcome.answer):
        return False
    if "now" in check:
        now = datetime.now(ZoneInfo(check["now"]))
        if not any((now - timedelta(minutes=ago)).strftime("%H:%M") in said for ago in range(3)):
            return False
    if "file" in check:
        path = data / str(check["file"])
        wanted = str(check["text"]).strip()
        return path.is_file() and wanted == path.read_text(encoding="utf-8").strip()
    return True


def _print(report: dict[str, Any]) -> None:
    table = Table("task", "", "steps", "calls", "tokens", "s", "answer", box=box.SIMPLE_HEAD)
    for column in table.columns[2:6]:
        column.justify = "right"
    for one in report["tasks"]:
        mark = "[green]right[/]" if one["right"] else f"[red]wrong[/] ({one['reason']})"
        answer = " ".join(str(one["answer"]).split())[:60].replace("[", "\\[")
        table.add_row(
            one["name"], mark, str(one["steps"]), str(one["calls"]), f"{one['tokens']:,}", f"{one['seconds']:.1f}",
            answer,
        )  # fmt: skip
    table.add_section()
    table.add_row(
        report["model"], f"{report['right']} of {report['count']}", str(report["steps"]), str(report["calls"]),
        f"{report['tokens']:,}", f"{report['seconds']:.1f}", "",
    )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)
