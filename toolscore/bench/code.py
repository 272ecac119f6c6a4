"""`toolscore bench code`: what a model reads and writes for a task, with direct calls and with code that calls tools.

Twenty tasks run with real servers. The calls that the code makes are those that a model would make directly, so both
ways are counted from the same run, by the journal: with direct calls the definitions of the tools, each call and each
result; with code the definition of `run_code`, the stubs of the same tools, the code, and what it printed.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Raw

from toolscore.app.compose import Gateway, open_gateway
from toolscore.app.files import Loaded
from toolscore.app.settings import Settings
from toolscore.bench.code_tasks import TASKS, Data, Task, make_data, text_of
from toolscore.bench.search import print_table
from toolscore.calls import Call
from toolscore.calls.code_run import RUN_CODE
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import LOCAL, UpstreamSpec
from toolscore.discovery.own_tools import DESCRIBE_TOOLS as DESCRIBE
from toolscore.discovery.own_tools import OWN_SERVER
from toolscore.embedding import LightEmbedder
from toolscore.upstreams import Caller

__all__ = ["entries", "run_code_bench"]

START_SECONDS = 180.0
"""The servers may have to be fetched first."""
STUB_TOKENS = 20_000
DESCRIBE_TOOLS = f"{OWN_SERVER}__{DESCRIBE}"


def entries(folder: Path) -> dict[str, UpstreamSpec]:
    """The servers, as their own pages say to run them; `uvx` and `npx` fetch them."""
    shop, memory = folder / "shop.db", folder / "memory.json"
    npm = "@modelcontextprotocol/server-"
    return {
        "time": UpstreamSpec(command="uvx", args=("mcp-server-time", "--local-timezone", "UTC")),
        "git": UpstreamSpec(command="uvx", args=("mcp-server-git",)),
        "sqlite": UpstreamSpec(command="uvx", args=("mcp-server-sqlite", "--db-path", str(shop))),
        "filesystem": UpstreamSpec(command="npx", args=("-y", f"{npm}filesystem", str(folder))),
        "memory": UpstreamSpec(command="npx", args=("-y", f"{npm}memory"), env={"MEMORY_FILE_PATH": str(memory)}),
    }


def run_code_bench(
    *,
    servers: Callable[[Path], dict[str, UpstreamSpec]] = entries,
    picture: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the tasks and count, print a table unless `quiet`, and return the figures.

    Args:
        servers: the entries of the five servers, for a folder with the data.
        picture: where to draw it; a PNG or SVG file.

    Returns:
        `once` and `turns`: tokens, `{direct, code, ratio}`, each read once, and with what is read again at every turn;
        `calls`; `tasks`: `{name, calls, right, once, turns}`.

    Raises:
        RuntimeError: a server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="toolscore-bench-") as name:
        folder = Path(name).resolve()
        data = make_data(folder / "data")
        report = asyncio.run(_measure(servers(folder / "data"), data, folder, quiet))
    if picture is not None:
        _draw(report, picture)
        report["picture"] = str(picture)
    if not quiet:
        rows = [_row(task["name"], task, "" if task["right"] else "WRONG") for task in report["tasks"]]
        heads = ("task", "calls", "direct", "code", "ratio", "direct, all turns", "code, all turns", "ratio", "")
        print_table(heads, rows, _row("all", report, ""))
        print("tokens that a model reads and writes: each once; and with what it reads again at every turn")
    return report


def _row(name: str, of: dict[str, Any], remark: str) -> tuple[str, ...]:
    figures = [f"{of[way][key]:,}" for way in ("once", "turns") for key in ("direct", "code", "ratio")]
    return (name, str(of["calls"]), *figures, remark)


async def _measure(servers: dict[str, UpstreamSpec], data: Data, folder: Path, quiet: bool) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import track

    settings = Settings.model_validate({
        "storage": {"data_dir": str(folder / "gateway")},
        "logging": {"level": "error"},
        "mcpServers": {name: spec.model_dump(exclude_defaults=True) for name, spec in servers.items()},
    })  # fmt: skip
    words = LightEmbedder()
    async with open_gateway(Loaded(settings, [], {}), watch=False) as gateway:
        await _started(gateway, set(servers))
        tasks = [
            await _run(gateway, task, data, words)
            for task in track(TASKS, "running", console=Console(stderr=True), transient=True, disable=quiet)
        ]
    report: dict[str, Any] = {"tasks": tasks, "calls": sum(task["calls"] for task in tasks)}
    for way in ("once", "turns"):
        direct, code = (sum(task[way][name] for task in tasks) for name in ("direct", "code"))
        report[way] = {"direct": direct, "code": code, "ratio": round(code / direct, 3)}
    return report


async def _started(gateway: Gateway, servers: set[str]) -> None:
    for server_id in servers:
        upstream = gateway.upstreams.find(server_id)
        assert upstream is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                await upstream.wait_up()
        except Exception as exc:
            raise RuntimeError(f"the server {server_id} does not start: {upstream.last_error or exc}") from exc


async def _run(gateway: Gateway, task: Task, data: Data, words: LightEmbedder) -> dict[str, Any]:
    code = text_of(task, data)
    arguments = {"code": code, "tools": list(task.servers), "timeout_seconds": 120}
    call = Call(RUN_CODE, Raw(encode(arguments)), caller=Caller(LOCAL), request_id=uuid.uuid4().hex)
    result = decode((await gateway.calls.call(call)).raw)
    text = "\n".join(block.get("text", "") for block in result["content"])
    found, _ = await gateway.journal.find(filters={"parent": call.call_id}, limit=1000)
    inner = await gateway.journal.with_bodies(found)
    used = [gateway.library.find(tool_id) for tool_id in sorted({one["tool_id"] for one in inner})]
    tools = [tool for tool in used if tool is not None]
    runner = gateway.library.find(RUN_CODE)
    assert runner is not None
    listed = sum(words.count(json.dumps(tool.definition)) for tool in tools)
    turns = []
    for one in inner:
        blocks = (one["result"] or {}).get("content") or []
        came = "\n".join(str(block.get("text", "")) for block in blocks) or str(one["error"])
        turns.append((_call(words, one["tool_id"], one["arguments"]), words.count(came)))
    describer = gateway.library.find(DESCRIBE_TOOLS)
    assert describer is not None
    stubs, _ = gateway.code.tools.described(tools, Caller(LOCAL), STUB_TOKENS)
    names = [tool.tool_id for tool in tools]
    own = sum(words.count(json.dumps(tool.definition)) for tool in (runner, describer))
    asked = (_call(words, DESCRIBE_TOOLS, {"names": names}), words.count(stubs))
    ran = (_call(words, RUN_CODE, arguments), words.count(text))
    right = not result.get("isError") and task.right(result["structuredContent"]["stdout"], data)
    counted: dict[str, Any] = {"name": task.name, "calls": len(inner), "right": right}
    for name, count in (("once", _once), ("turns", _over_turns)):
        direct, code_ = count(listed, turns), count(own, [asked, ran])
        counted[name] = {"direct": direct, "code": code_, "ratio": round(code_ / direct, 3)}
    return counted if right else {**counted, "said": text[-2000:]}


def _call(words: LightEmbedder, name: str, arguments: Any) -> int:
    return words.count(json.dumps({"name": name, "arguments": arguments}))


def _once(listed: int, turns: list[tuple[int, int]]) -> int:
    """Every token once, as if a model remembered what it has read."""
    return listed + sum(written + read for written, read in turns)


def _over_turns(listed: int, turns: list[tuple[int, int]]) -> int:
    """As a chat goes: before each call, and before the answer, a model reads all that there is so far."""
    total, so_far = 0, listed
    for written, read in turns:
        total += so_far + written
        so_far += written + read
    return total + so_far


def _draw(report: dict[str, Any], path: Path) -> None:
    """Two bars a task: what a model reads and writes, direct and with code."""
    from matplotlib.figure import Figure

    tasks = report["tasks"][::-1]
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    rows = range(len(tasks))
    axes.barh([row + 0.2 for row in rows], [task["turns"]["direct"] for task in tasks], 0.4, label="direct calls")
    axes.barh(
        [row - 0.2 for row in rows], [task["turns"]["code"] for task in tasks], 0.4, label="code that calls tools"
    )
    axes.set_yticks(list(rows), [f"{task['name']} ({task['calls']})" for task in tasks], fontsize="small")
    axes.set(
        xlabel="tokens that a model reads and writes over all turns", title="The same calls, two ways (calls a task)"
    )
    axes.set_xscale("log")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
