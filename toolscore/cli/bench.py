"""`toolscore bench …`: the benchmarks. They are imported when they are run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from toolscore.cli.terminal import AsJson, print_json, say

__all__ = ["bench"]

Picture = Annotated[Path | None, typer.Option(help="Draw it, too: a PNG or SVG file.")]

bench = typer.Typer(help="Measure, as ratios against a floor in the same run.", no_args_is_help=True)


@bench.command("gateway")
def bench_gateway(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each of some 30 measurements takes.")] = 2.0,
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Instead, what each step of it costs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the gateway on this machine, against a bare FastAPI echo in the same run."""
    from toolscore.bench.gateway import run_gateway_bench
    from toolscore.bench.pipeline import run_pipeline_bench

    result = (run_pipeline_bench if pipeline else run_gateway_bench)(seconds=seconds, quiet=as_json)
    if as_json:
        print_json(result)


@bench.command("replicas")
def bench_replicas(
    seconds: Annotated[float, typer.Option(min=0.3, help="How long each load takes, over all rounds.")] = 6.0,
    as_json: AsJson = False,
) -> None:
    """Measure several gateways on a Postgres, a Redis and haproxy of their own, on this machine."""
    from toolscore.bench.replicas import run_replicas_bench
    from toolscore.bench.rig import ProgramMissing

    try:
        result = run_replicas_bench(seconds=seconds, quiet=as_json, tell=lambda what: say(f"{what} ..."))
    except ProgramMissing as exc:
        say(str(exc))
        raise typer.Exit(69) from exc
    if as_json:
        print_json(result)


@bench.command("workers")
def bench_workers(
    workers: Annotated[int, typer.Option(min=2, max=64, help="How many processes.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.3, help="How long each load takes, over all rounds.")] = 6.0,
    as_json: AsJson = False,
) -> None:
    """Measure a gateway of several processes on one port (`serve --workers`) against one process."""
    from toolscore.bench.workers import run_workers_bench

    result = run_workers_bench(workers=workers, seconds=seconds, quiet=as_json, tell=lambda what: say(f"{what} ..."))
    if as_json:
        print_json(result)


@bench.command("peers")
def bench_peers(
    peers: Annotated[list[str] | None, typer.Argument(help="Names of peers; without any, all.")] = None,
    folder: Annotated[Path, typer.Option(help="Where they are installed, once.", show_default=True)] = Path(
        "~/.cache/toolscore/peers"
    ),
    seconds: Annotated[float, typer.Option(min=0.3, help="How long each load takes, over all rounds.")] = 6.0,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Measure other gateways and proxies beside this one, on the same server; installs them first."""
    from toolscore.bench.peers import PEERS, run_peers_bench

    names = [peer.name for peer in PEERS]
    for name in peers or ():
        if name not in names:
            raise typer.BadParameter(f"no peer {name!r}; there are {', '.join(names)}")
    _drawable(picture)
    result = run_peers_bench(
        folder.expanduser(), seconds=seconds, only=peers or (), picture=picture, quiet=as_json,
        tell=lambda what: say(f"{what} ..."),
    )  # fmt: skip
    if as_json:
        print_json(result)


@bench.command("rig")
def bench_rig(
    count: Annotated[int, typer.Option(min=1, max=20, help="How many gateways.")] = 3,
) -> None:
    """Start several gateways on a Postgres, a Redis and haproxy of their own, and stop it all at Ctrl-C."""
    from toolscore.bench.rig import ProgramMissing, run_rig

    try:
        run_rig(count, say)
    except ProgramMissing as exc:
        say(str(exc))
        raise typer.Exit(69) from exc


Half = Annotated[str, typer.Option(help="`even` or `odd`: tune on one half, check on the other.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many questions a set.")]
Mode = Annotated[str, typer.Option(help="What makes vectors: `light`, `multilingual` or `semantic`.")]


@bench.command("search")
def bench_search(
    folders: Annotated[list[Path], typer.Argument(help="Sets: folders with tools.jsonl and queries.jsonl.")],
    half: Half = "all",
    limit: Limit = None,
    mode: Mode = "light",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well the right tool is found, on labelled sets."""
    from toolscore.bench.search import run_search_bench

    result = _measured(
        folders, half, mode, picture, lambda embedder: run_search_bench(
            folders, half=half, limit=limit, picture=picture, quiet=as_json, embedder=embedder
        ),
    )  # fmt: skip
    if as_json:
        print_json(result)


@bench.command("gaps")
def bench_gaps(
    folders: Annotated[
        list[Path], typer.Argument(help="Sets: folders with tools.jsonl, and gap.jsonl or queries.jsonl.")
    ],
    half: Half = "all",
    limit: Limit = None,
    mode: Mode = "light",
    picture: Picture = None,
    fit: Annotated[Path | None, typer.Option(help="Fit the model on these sets first, into this file.")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Judge each source of sets by a model that is fitted on the others.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well a missing tool is noticed, on labelled sets."""
    from toolscore.bench.gaps import run_gap_bench

    result = _measured(
        folders, half, mode, picture, lambda embedder: run_gap_bench(
            folders, half=half, limit=limit, fit_into=fit, held_out=held_out, picture=picture, quiet=as_json,
            embedder=embedder,
        ),
    )  # fmt: skip
    if as_json:
        print_json(result)


@bench.command("code")
def bench_code(
    channel: Annotated[bool, typer.Option("--channel", help="Instead, what an inner call costs.")] = False,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Count what a model reads and writes for 20 tasks, with direct calls and with code. Fetches five servers."""
    from toolscore.bench.code import run_code_bench
    from toolscore.bench.code_channel import run_channel_bench

    if channel:
        figures = run_channel_bench(quiet=as_json)
        if as_json:
            print_json(figures)
        return
    try:
        result = run_code_bench(picture=_drawable(picture), quiet=as_json)
    except RuntimeError as exc:
        say(str(exc))
        raise typer.Exit(1) from None
    if as_json:
        print_json(result)
    if not all(task["right"] for task in result["tasks"]):
        raise typer.Exit(1)


@bench.command("fixes")
def bench_fixes(
    file: Annotated[
        Path | None, typer.Argument(help="A journal, as `toolscore calls export` writes it; else a simulated one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the simulated journal.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how often a suggestion of the error firewall is what helped, on a journal that is replayed."""
    import asyncio

    from toolscore.bench.fixes import read_export, run_fixes_bench, simulated

    try:
        journal = read_export(file) if file is not None else simulated(seed)
    except (OSError, ValueError) as exc:
        say(f"{file} cannot be replayed: {exc}")
        raise typer.Exit(2) from None
    found = asyncio.run(run_fixes_bench(journal))
    if as_json:
        print_json(found)
        return
    print(f"{found['calls']} calls, {found['failures']} failed, {found['mended']} of these were mended in time")
    if found["precision"] is None:
        print("nothing was suggested: no fix beat what callers do without one")
    else:
        print(f"suggested {found['shown']} times, right {found['right']} times: {found['precision']:.0%}")


def _drawable(picture: Path | None) -> Path | None:
    """The picture's file, if it is one.

    Raises:
        typer.Exit: it cannot be written, or is no picture.
    """
    if picture is not None and (picture.suffix not in (".png", ".svg", ".pdf") or not picture.parent.is_dir()):
        say(f"--picture takes a .png, .svg or .pdf file in a folder that exists, found {picture}")
        raise typer.Exit(2)
    return picture


def _measured(folders: list[Path], half: str, mode: str, picture: Path | None, run: Callable[[Any], Any]) -> Any:
    from toolscore.embedding import EmbeddingError, LightEmbedder, MultilingualEmbedder, SemanticEmbedder

    if half not in ("all", "even", "odd"):
        say(f"--half takes `even`, `odd` or `all`, found {half!r}")
        raise typer.Exit(2)
    embedders = {"light": LightEmbedder, "multilingual": MultilingualEmbedder, "semantic": SemanticEmbedder}
    if mode not in embedders:
        say(f"--mode takes {', '.join(f'`{one}`' for one in embedders)}, found {mode!r}")
        raise typer.Exit(2)
    _drawable(picture)
    try:
        return run(embedders[mode]())
    except (FileNotFoundError, ValueError, KeyError) as exc:
        say(f"{folders[0]} cannot be measured: {exc}")
        raise typer.Exit(2) from None
    except EmbeddingError as exc:
        say(str(exc))
        raise typer.Exit(2) from None


@bench.command("executor")
def bench_executor(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each throughput is measured.")] = 2.0,
    engines: Annotated[str, typer.Option(help="Which, separated by commas; all that run here if not given.")] = "",
    samples: Annotated[int, typer.Option(min=0, help="Paced calls of each workload.")] = 150,
    output: Annotated[Path, typer.Option(help="Folder for benchmark_results.json and the picture.")] = Path(),
    soak: Annotated[int, typer.Option(min=0, help="Instead, make so many calls and watch what grows.")] = 0,
    interpreter: Annotated[str | None, typer.Option(help="The sandbox's Python, if not this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the Python executor's engines beside one another, and through the gateway."""
    from toolscore.bench.executor import run_executor_bench

    code = run_executor_bench(
        seconds=seconds, engines=engines, samples=samples, output=output, soak=soak, interpreter=interpreter,
        quiet=as_json,
    )  # fmt: skip
    raise typer.Exit(code)


@bench.command("isolation")
def bench_isolation(
    engines: Annotated[str, typer.Option(help="Which, separated by commas; all that run here if not given.")] = "",
    as_json: AsJson = False,
) -> None:
    """Try what passes from one call of the Python executor to the next, and print the matrix."""
    from toolscore.app.executor import executor_command

    command = executor_command("isolation", "--engines", engines, *(["--json"] if as_json else []))
    raise typer.Exit(subprocess.run(command, check=False).returncode)
