"""`python -m mcp_servers.python_executor`: the executor by itself, and what examines and measures it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Run Python for agents, as an MCP server of its own.", add_completion=False, pretty_exceptions_enable=False
)

EX_UNAVAILABLE = 69
MIN_SECRET = 16
"""Characters: nobody guesses them."""


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    stdio: Annotated[bool, typer.Option("--stdio", help="Serve MCP over stdin and stdout.")] = False,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve MCP over HTTP at /mcp; all its callers are one principal."),
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Dial a router, or each behind a name: ws://HOST:8081/register, ws+unix:///path:/register.",
        ),
    ] = None,
    server_id: Annotated[str, typer.Option(help="The id to register under.")] = "python-executor-mcp-server",
    engine: Annotated[str, typer.Option(help="How code is isolated.")] = "fork",
    min_tier: Annotated[str, typer.Option(help="Refuse to run where the machine confines code less: A, B or C.")] = "C",
    timeout_seconds: Annotated[float, typer.Option(help="Time limit of a call that gives none.")] = 30,
    max_timeout_seconds: Annotated[float, typer.Option(help="The longest limit that a call may give.")] = 300,
    memory_mb: Annotated[int, typer.Option(help="Memory limit of a call.")] = 512,
    max_output_bytes: Annotated[int, typer.Option(help="Bound on stdout and on stderr.")] = 1024 * 1024,
    max_concurrent: Annotated[int, typer.Option(help="Calls that run at a time.")] = 16,
    max_queued: Annotated[int, typer.Option(help="Calls that may wait.")] = 256,
    grace_seconds: Annotated[
        float, typer.Option(help="With --connect: how long calls under way may take once it is told to end.")
    ] = 30,
    options: Annotated[
        str, typer.Option(metavar="JSON", help="More options, as under `python_executor` in toolscore.yaml.")
    ] = "{}",
) -> None:
    """Serve, unless a command is named."""
    if context.invoked_subcommand is not None:
        return
    if not (stdio or http or connect):
        _stop("choose at least one of --stdio, --http HOST:PORT and --connect URL, or see --help", 2)
    if http is not None and not http.rpartition(":")[2].isdigit():
        _stop(f"--http takes HOST:PORT, found {http!r}", 2)
    if connect is not None and not connect.startswith(("ws://", "wss://", "ws+unix://")):
        _stop(f"--connect takes the address of a router, such as ws://HOST:8081/register, found {connect!r}", 2)
    secret = os.environ.pop("TOOLSCORE_EXECUTOR_SECRET", "")
    if http is not None and len(secret) < MIN_SECRET:
        _stop(
            f"whoever reaches --http runs code: set TOOLSCORE_EXECUTOR_SECRET to {MIN_SECRET} characters or more, "
            "which callers then send as `Authorization: Bearer ...`",
            2,
        )
    from mcp_servers.python_executor.pool import SandboxUnavailable
    from mcp_servers.python_executor.server import create_server

    given: dict[str, Any] = {
        "engine": engine,
        "min_tier": min_tier,
        "timeout_seconds": timeout_seconds,
        "max_timeout_seconds": max_timeout_seconds,
        "memory_mb": memory_mb,
        "max_output_bytes": max_output_bytes,
        "max_concurrent": max_concurrent,
        "max_queued": max_queued,
    }
    try:
        server = create_server(**{**given, **_options(options)})
    except (ValueError, TypeError) as exc:
        _stop(f"wrong options: {exc}", 2)

    async def run() -> None:
        from mcp_servers.python_executor import serving

        leave = asyncio.Event()
        async with server:
            about = await server.stats()
            print(f"sandbox ready: engine {about['engine']}, tier {about.get('tier')}", file=sys.stderr, flush=True)
            jobs = []
            if stdio:
                jobs.append(serving.serve_stdio(server))
            if http is not None:
                host, _, port = http.rpartition(":")
                jobs.append(serving.serve_http(server, host or "127.0.0.1", int(port), secret))
            if connect is not None:
                jobs.append(serving.Dialling(server, connect, server_id, leave, grace_seconds).run())
            tasks = [asyncio.ensure_future(job) for job in jobs]
            loop = asyncio.get_running_loop()

            def asked() -> None:
                if connect is not None and not leave.is_set():
                    leave.set()  # asked again, it ends at once
                else:
                    for task in tasks:
                        task.cancel()

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, asked)
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            for task in done:
                if not task.cancelled():
                    task.result()

    try:
        asyncio.run(run())
    except SandboxUnavailable as exc:
        _stop(str(exc), EX_UNAVAILABLE)
    except OSError as exc:  # such as a port that is taken
        _stop(str(exc), 1)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    data_dir: Annotated[Path, typer.Option(help="Where a compiled helper is kept.")] = Path("data"),
    interpreter: Annotated[str | None, typer.Option(help="The sandbox's Python, if not this one.")] = None,
) -> None:
    """Try each layer of confinement on this machine, and say what it gives."""
    from mcp_servers.python_executor.doctor import examine, show

    found = asyncio.run(examine(data_dir, interpreter))
    if as_json:
        print(json.dumps(found))
    else:
        show(found)
    raise typer.Exit(0 if found["tier"] in "ABC" else 1)


@app.command()
def install(
    sets: Annotated[str, typer.Argument(metavar="JSON", help='Name to requirements: {"data": ["numpy", "pandas"]}.')],
    data_dir: Annotated[Path, typer.Option(help="The executor's data_dir.")] = Path("data"),
    interpreter: Annotated[str | None, typer.Option(help="The sandbox's Python, if not this one.")] = None,
) -> None:
    """Install package sets ahead, for an executor that will have no network. Give it the same sets and data_dir."""
    from mcp_servers.python_executor.interpreter import find_interpreter
    from mcp_servers.python_executor.packages import PackageSets, UnknownPackages

    wanted = _options(sets)
    if not all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in wanted.values()):
        _stop('expected lists of requirements, such as {"data": ["numpy", "pandas==2.*"]}', 2)
    folder = data_dir.absolute() / "python"
    packages = PackageSets(wanted, folder)
    try:
        python = find_interpreter(interpreter, folder)
    except OSError as exc:
        _stop(str(exc), 2)

    async def work() -> None:
        for name in wanted:
            print(f"installing {packages.describe()} ..." if len(wanted) == 1 else f"installing {name} ...", flush=True)
            at, _ = await packages.installed(name, python=python.command, version=python.version)
            print(f"{name}: {at}")

    try:
        asyncio.run(work())
    except UnknownPackages as exc:
        _stop(str(exc), 1)


Engines = Annotated[str, typer.Option(help="Which, separated by commas; all that run here if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, without a display.")]
MoreOptions = Annotated[str, typer.Option(metavar="JSON", help="Options of the executor.")]


@app.command()
def bench(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each throughput is measured.")] = 2.0,
    engines: Engines = "",
    samples: Annotated[int, typer.Option(min=0, help="Paced calls of each workload; 0: no latencies.")] = 150,
    levels: Annotated[str, typer.Option(help="Calls under way for throughput; empty: no throughput.")] = "1,4,16",
    soak: Annotated[int, typer.Option(help="Instead, make so many calls and watch what grows.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for benchmark_results.json and the picture.")] = None,
    options: MoreOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Measure the engines beside one another, on seven workloads."""
    from mcp_servers.python_executor.bench_report import run_bench, run_soak

    more = _options(options)
    if soak:
        result = _try(lambda: run_soak(soak, quiet=as_json, **more))
    else:
        numbers = [level.strip() for level in levels.split(",") if level.strip()]
        if not all(level.isdigit() and int(level) > 0 for level in numbers):
            _stop(f"--levels takes numbers above 0, such as 1,4,16; found {levels!r}", 2)
        result = _try(
            lambda: run_bench(
                seconds=seconds,
                engines=_names(engines),
                samples=samples,
                levels=[int(level) for level in numbers],
                output=output,
                quiet=as_json,
                **more,
            )
        )
    if as_json:
        print(json.dumps(result))


@app.command()
def isolation(engines: Engines = "", options: MoreOptions = "{}", as_json: AsJson = False) -> None:
    """Try what passes from one call to the next, for each engine, and print the matrix."""
    from mcp_servers.python_executor.isolation import run_isolation

    result = _try(lambda: run_isolation(engines=_names(engines), quiet=as_json, **_options(options)))
    if as_json:
        print(json.dumps(result))


def _names(engines: str) -> list[str]:
    from mcp_servers.python_executor.engine import ENGINES

    names = [name.strip() for name in engines.split(",") if name.strip()]
    for name in names:
        if name not in ENGINES:
            _stop(f"no engine {name!r}: there are {', '.join(ENGINES)}", 2)
    return names


def _options(text: str) -> dict[str, Any]:
    try:
        given: dict[str, Any] = json.loads(text)
        return {**given}
    except (ValueError, TypeError) as exc:
        _stop(f"expected a JSON object: {exc}", 2)


def _try(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    from mcp_servers.python_executor.pool import SandboxUnavailable

    try:
        return work()
    except SandboxUnavailable as exc:
        _stop(str(exc), EX_UNAVAILABLE)
    except TypeError as exc:
        _stop(f"wrong options: {str(exc).rpartition(') ')[2]}", 2)
    except (ValueError, OSError) as exc:  # options, or a folder that cannot be written
        _stop(str(exc), 2)


def _stop(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
