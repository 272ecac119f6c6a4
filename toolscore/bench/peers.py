"""`toolscore bench peers`: other gateways and proxies beside this one, on the same server, in one run.

Each peer is installed once, pinned, into a folder of its own. All run at the same time and are loaded in turn, round
after round: neighbours on the machine come and go for all of them alike.

One module: a table of peers, and the one run that it is for.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from toolscore.bench.load import OWN_ID
from toolscore.bench.process import (
    ACCEPT,
    OPENING,
    PATIENCE_SECONDS,
    SESSIONS,
    command_of,
    configure,
    cpu_seconds,
    echo,
    free_port,
    listens,
    measure,
    serving,
    settle,
    stop,
    wait_for_servers,
)
from toolscore.dashboard.build import NotBuilt, node_and_npm
from toolscore.upstreams.process.last_words import cause_of

__all__ = ["PEERS", "Peer", "run_peers_bench"]

ROUNDS = 3
CONCURRENCY = (1, 16)
TEXT = "hello"
LONGER = (1, 5, 20)
"""So many times the usual time are peers loaded whose calls take longer than that."""
INSTALL_SECONDS = 600
OURS = "ToolScore"


class Backend(NamedTuple):
    """The server behind a peer: an address, or a command."""

    kind: str
    url: str
    command: Sequence[str]

    @property
    def entry(self) -> dict[str, Any]:
        """As an entry of `mcpServers`."""
        return {"url": self.url} if self.kind == "http" else {"command": self.command[0], "args": [*self.command[1:]]}


class Door(NamedTuple):
    """How a peer is called.

    Args:
        tool: the name of the tool there.
        body: what a call sends, where it is REST.
    """

    kind: str
    path: str
    tool: str = "echo"
    body: Mapping[str, Any] | None = None


class Peer(NamedTuple):
    """A gateway or proxy of others.

    Args:
        packages: pinned, as its registry (`pypi` or `npm`) writes them; the first names its folder.
        backends: what it can stand before.
        command: `(its folder, a folder for its files, port, backend)` → what starts it.
        env: what it needs beside ours.
        key: `(its folder)` → the value of `Authorization`, where it lets nobody in without.
        prepare: `(port, its key, backend)`, called until it raises nothing more.
    """

    name: str
    registry: str
    packages: Sequence[str]
    backends: Sequence[str]
    doors: Sequence[Door]
    command: Callable[[Path, Path, int, Backend], list[str]]
    env: Mapping[str, str] = {}
    key: Callable[[Path], str] | None = None
    prepare: Callable[[int, str, Backend], None] = lambda port, key, backend: None


def _mcpo(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    kind = ["--server-type", "streamable-http"] if backend.kind == "http" else []
    target = [backend.url] if backend.kind == "http" else backend.command
    return [str(home / "bin/mcpo"), "--host", "127.0.0.1", "--port", str(port), *kind, "--", *target]


def _mcp_hub(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    config = files / "servers.json"
    config.write_text(json.dumps({"mcpServers": {"echo": backend.entry}}))
    script = home / "node_modules/mcp-hub/dist/cli.js"
    return [node_and_npm()[0], str(script), "--port", str(port), "--config", str(config)]


def _supergateway(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    script = home / "node_modules/supergateway/dist/index.js"
    node, _ = node_and_npm()
    return [
        node, str(script), "--stdio", " ".join(backend.command), "--outputTransport", "streamableHttp", "--stateful",
        "--port", str(port), "--logLevel", "none",
    ]  # fmt: skip


def _mcp_proxy(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    return [str(home / "bin/mcp-proxy"), "--port", str(port), "--pass-environment", "--", *backend.command]


def _fastmcp(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    script = files / "proxy.py"
    script.write_text(
        "from fastmcp.server import create_proxy\n"
        f"create_proxy({ {'mcpServers': {'echo': backend.entry}}!r}).run(\n"
        f"    transport='http', host='127.0.0.1', port={port}, show_banner=False, log_level='ERROR')\n"
    )
    return [str(home / "bin/python"), str(script)]


def _contextforge(home: Path, files: Path, port: int, backend: Backend) -> list[str]:
    return [str(home / "bin/mcpgateway"), "--host", "127.0.0.1", "--port", str(port)]


FORGE_SECRET = secrets.token_hex(32)
FORGE_USER = "bench@example.com"
FORGE = {
    "JWT_SECRET_KEY": FORGE_SECRET, "AUTH_ENCRYPTION_SECRET": secrets.token_hex(32), "PLATFORM_ADMIN_EMAIL": FORGE_USER,
    "PLATFORM_ADMIN_PASSWORD": f"{secrets.token_hex(16)}aA1!", "BASIC_AUTH_PASSWORD": secrets.token_hex(16),
    "DATABASE_URL": "sqlite:///./forge.db", "CACHE_TYPE": "memory", "LOG_LEVEL": "ERROR",
    "MCPGATEWAY_UI_ENABLED": "false", "RATE_LIMITING_ENABLED": "false",
    "SSRF_ALLOW_LOCALHOST": "true", "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
}  # fmt: skip
"""What it does not start or let a server of this machine in without; its log is off, as everybody's."""


def _forge_key(home: Path) -> str:
    made = subprocess.run(
        [str(home / "bin/python"), "-m", "mcpgateway.utils.create_jwt_token", "--username", FORGE_USER, "--exp", "600",
         "--secret", FORGE_SECRET, "--admin"],
        capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS, env={**os.environ, **FORGE}, cwd=home,
    )  # fmt: skip
    return f"Bearer {made.stdout.split()[-1]}"


def _register(port: int, key: str, backend: Backend) -> None:
    """Tell ContextForge of the server, unless it knows its tools."""
    headers = {"content-type": "application/json", "authorization": key}
    base = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(urllib.request.Request(f"{base}/tools", headers=headers), timeout=30) as answer:  # noqa: S310
        if json.loads(answer.read()):
            return
    body = {"name": "echo", "url": backend.url, "transport": "STREAMABLEHTTP"}
    request = urllib.request.Request(f"{base}/gateways", json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30):  # noqa: S310
        raise OSError("it does not know its tools yet")


PEERS = (
    Peer(
        "mcpo", "pypi", ["mcpo==0.0.20", "mcp==1.30.0", "fastapi==0.128.0"], ("http", "stdio"),
        [Door("REST", "/echo", body={"text": TEXT})], _mcpo,
    ),
    Peer(
        "mcp-hub", "npm", ["mcp-hub@4.2.1"], ("http", "stdio"),
        [Door("REST", "/api/servers/tools",
              body={"server_name": "echo", "tool": "echo", "arguments": {"text": TEXT}})],
        _mcp_hub,
    ),
    Peer("supergateway", "npm", ["supergateway@4.0.0"], ("stdio",), [Door("MCP", "/mcp")], _supergateway),
    Peer("mcp-proxy", "pypi", ["mcp-proxy==0.13.0"], ("stdio",), [Door("MCP", "/mcp")], _mcp_proxy),
    Peer("FastMCP proxy", "pypi", ["fastmcp==4.2.3"], ("http", "stdio"), [Door("MCP", "/mcp")], _fastmcp),
    Peer(
        "ContextForge", "pypi", ["mcp-contextforge-gateway==1.0.7.post20260921"], ("http",),
        [Door("REST", "/rpc",
              body={"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                    "params": {"name": "echo-echo", "arguments": {"text": TEXT}}}),
         Door("MCP", "/mcp", "echo-echo")],
        _contextforge, FORGE, _forge_key, _register,
    ),
)  # fmt: skip


class Row(NamedTuple):
    """One thing that is measured."""

    peer: str
    door: str
    backend: str
    job: dict[str, Any]
    process: psutil.Process


def run_peers_bench(
    folder: Path,
    *,
    seconds: float = 6.0,
    only: Sequence[str] = (),
    picture: Path | None = None,
    quiet: bool = False,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Install what is missing, start everything, measure, print a table unless `quiet`, and return the figures.

    Args:
        folder: where peers are installed, a folder each; what is there is used.
        seconds: how long each is measured at each level, over all rounds.
        only: names of peers; empty for all.
        picture: where to draw calls a second; a PNG or SVG file.
        tell: told what is done.
    """
    left_out: dict[str, str] = {}
    rows: list[Row] = []
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toolscore-peers-")))
        port = free_port()
        stack.enter_context(echo("mcp", port))
        command = [sys.executable, "-m", "toolscore.bench.echo", "stdio", "0"]
        backends = [Backend(kind, f"http://127.0.0.1:{port}/mcp", command) for kind in ("http", "stdio")]
        tell(f"starting {OURS}")
        rows += stack.enter_context(_ours(backends))
        for peer in PEERS:
            if only and peer.name not in only:
                continue
            try:
                home = installed(peer, folder, tell)
            except InstallFailed as exc:
                left_out[peer.name] = str(exc)
                continue
            for backend in (one for one in backends if one.kind in peer.backends):
                tell(f"starting {peer.name} before a server over {backend.kind}")
                try:
                    rows += stack.enter_context(_started(peer, home, files / f"{peer.name}-{backend.kind}", backend))
                except StartFailed as exc:
                    left_out[f"{peer.name}, {backend.kind}"] = str(exc)
        results = _measured(rows, seconds, left_out, tell)
    report: dict[str, Any] = {
        "cores": os.cpu_count(),
        "seconds_each": seconds,
        "results": results,
        "left_out": left_out,
    }
    if picture is not None:
        _draw(results, picture)
        report["picture"] = str(picture)
    if not quiet:
        _print(report)
    return report


class InstallFailed(Exception):
    """A peer could not be installed."""


class StartFailed(Exception):
    """A peer did not come up."""


def installed(peer: Peer, folder: Path, tell: Callable[[str], None]) -> Path:
    """The folder of a peer, where it is installed unless it is there.

    Raises:
        InstallFailed: with the last line of what said so.
    """
    home = folder / peer.packages[0]
    done = home / ".installed"
    if done.is_file() and done.read_text() == "\n".join(peer.packages):
        return home
    tell(f"installing {' '.join(peer.packages)} into {home} (once)")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    uv = str(Path(sys.executable).with_name("uv"))
    if peer.registry == "npm":
        try:
            npm = node_and_npm()
        except NotBuilt as exc:
            raise InstallFailed(str(exc)) from exc
        options = ("--loglevel", "error", "--no-audit", "--no-fund", "--prefix", str(home))
        commands = [[*npm, "install", *options, *peer.packages]]
    else:
        commands = [
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(home)],
            [uv, "pip", "install", "--quiet", "--python", str(home / "bin/python"), *peer.packages],
        ]
    for command in commands:
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise InstallFailed(f"it could not be installed: {exc}") from exc
        if ended.returncode != 0:
            said = cause_of([*ended.stdout.splitlines(), *ended.stderr.splitlines()])
            raise InstallFailed(f"it could not be installed: {said}")
    done.write_text("\n".join(peer.packages))
    return home


@contextmanager
def _ours(backends: Sequence[Backend]) -> Iterator[list[Row]]:
    """This gateway, with everything on as installed, in front of both servers."""
    with tempfile.TemporaryDirectory(prefix="toolscore-bench-") as name:
        folder, port = Path(name), free_port()
        configure(folder, port, 0, {backend.kind: backend.entry for backend in backends})
        settle(folder, port)
        with serving(folder, port) as (process, _):
            wait_for_servers(f"http://127.0.0.1:{port}", len(backends) + 1)
            rows = []
            for backend in backends:
                tool = f"{backend.kind}__echo"
                for door in (
                    Door("REST", "/execute_tool", body={"tool_id": tool, "parameters": {"text": TEXT}}),
                    Door("MCP", "/mcp", tool),
                ):
                    job = _job(door, port)
                    rows.append(Row(OURS, door.kind, backend.kind, job, psutil.Process(process.pid)))
            yield rows


@contextmanager
def _started(peer: Peer, home: Path, files: Path, backend: Backend) -> Iterator[list[Row]]:
    """A peer before a server, from when its first call was answered.

    Raises:
        StartFailed: with what it said last.
    """
    files.mkdir()
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")} | dict(peer.env)
    log = open(files / "log", "w+b")  # noqa: SIM115 - closed below
    process = subprocess.Popen(
        peer.command(home, files, port, backend), env=environment, cwd=files, stdin=subprocess.DEVNULL, stdout=log,
        stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        key = peer.key(home) if peer.key is not None else ""
        jobs = [_job(door, port, {"authorization": key} if key else {}) for door in peer.doors]
        deadline, why = time.monotonic() + PATIENCE_SECONDS, "it does not listen"
        while True:
            try:
                if listens(port):
                    peer.prepare(port, key, backend)
                    for job in jobs:
                        measure(job, 1, 0.05)
                    break
            except (RuntimeError, OSError, urllib.error.URLError) as exc:
                why = str(exc)
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                ended = f"it ended ({process.returncode})" if process.returncode is not None else why
                raise StartFailed(f"{ended}: {cause_of(log.read().decode(errors='replace').splitlines()) or ''}")
            time.sleep(0.2)
        yield [
            Row(peer.name, door.kind, backend.kind, job, psutil.Process(process.pid))
            for door, job in zip(peer.doors, jobs, strict=True)
        ]
    finally:
        whole = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        stop(process, 10)
        for one in whole:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        log.close()


def _job(door: Door, port: int, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the load generator does at a door."""
    headers = dict(headers or {})
    job = {"name": door.path, "kind": "http", "port": port, "path": door.path, "headers": headers, "expect": TEXT}
    if door.body is not None:
        return {**job, "body": json.dumps(door.body)}
    headers |= {"accept": ACCEPT, "mcp-protocol-version": SESSIONS}
    call = {"name": door.tool, "arguments": {"text": TEXT}}
    body = {"jsonrpc": "2.0", "id": json.loads(OWN_ID), "method": "tools/call", "params": call}
    return {**job, "opening": OPENING, "body": json.dumps(body)}


def _own(process: psutil.Process) -> Iterator[psutil.Process]:
    """The processes of a peer just now: all of its own, and not the server that it stands before."""
    for one in (process, *process.children(recursive=True)):
        if command_of(one)[1:3] != ["-m", "toolscore.bench.echo"]:
            yield one


def _sum(process: psutil.Process, figure: Callable[[psutil.Process], float]) -> float:
    """A figure of all of a peer's processes, but of those that have just gone."""
    total = 0.0
    for one in _own(process):
        with suppress(psutil.NoSuchProcess):
            total += figure(one)
    return total


def _measured(
    rows: Sequence[Row], seconds: float, left_out: dict[str, str], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The figures of all rows: the median of the rounds."""
    found: dict[int, list[dict[str, Any]]] = {}
    for number in range(ROUNDS):
        tell(f"measuring, round {number + 1} of {ROUNDS}")
        for index, row in enumerate(rows):
            try:
                found.setdefault(index, []).append(_under_load(row, seconds / ROUNDS))
            except (RuntimeError, psutil.Error, subprocess.TimeoutExpired) as exc:
                left_out[f"{row.peer}, {row.door} to {row.backend}"] = f"under load: {exc}"
                found[index] = []
    return [
        {
            "peer": row.peer,
            "door": row.door,
            "backend": row.backend,
            **{key: statistics.median(one[key] for one in found[index]) for key in found[index][0]},
        }
        for index, row in enumerate(rows)
        if len(found[index]) == ROUNDS
    ]


def _under_load(row: Row, seconds: float) -> dict[str, float]:
    alone, _ = _load(row, CONCURRENCY[0], seconds)
    many, spent = _load(row, CONCURRENCY[1], seconds)
    return {
        "p50_ms": alone["p50_ms"],
        "calls_per_second": many["calls_per_second"],
        "p99_ms": many["p99_ms"],
        "cpu_ms": round(spent / max(1, many["made"]) * 1000, 4),
        "memory_mb": round(_sum(row.process, lambda one: float(one.memory_info().rss)) / 2**20, 1),
    }


def _load(row: Row, concurrency: int, seconds: float) -> tuple[dict[str, Any], float]:
    """The figures of a load, and the CPU seconds that it took the peer; loaded for longer where no call ended in time.

    Raises:
        RuntimeError: a call failed, or none ended.
    """
    for longer in LONGER:
        before = _sum(row.process, cpu_seconds)
        found = measure(row.job, concurrency, seconds * longer)
        if found["calls"]:
            return found, _sum(row.process, cpu_seconds) - before
    raise RuntimeError(f"none of {concurrency} calls at once ended within {seconds * LONGER[-1]:g} s")


def _times(results: Sequence[dict[str, Any]], row: dict[str, Any]) -> float | None:
    """Our calls a second on the same work, for each of a peer's."""
    for one in results:
        if one["peer"] == OURS and (one["door"], one["backend"]) == (row["door"], row["backend"]):
            return float(one["calls_per_second"] / row["calls_per_second"]) if row["calls_per_second"] else None
    return None


def _print(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        "", "door", "server", "p50 ms", "/s at 16", "p99 ms", "CPU ms", "MB", "ours", box=box.SIMPLE_HEAD, padding=0,
        title=f"{report['cores']} cores for all, {report['seconds_each']:g} s each",
    )  # fmt: skip
    for column in table.columns[3:]:
        column.justify = "right"
    for row in sorted(report["results"], key=lambda row: (row["door"], row["backend"], -row["calls_per_second"])):
        times = _times(report["results"], row)
        table.add_row(
            row["peer"], row["door"], row["backend"], f"{row['p50_ms']:.2f}", f"{row['calls_per_second']:,.0f}",
            f"{row['p99_ms']:.1f}", f"{row['cpu_ms']:.2f}", f"{row['memory_mb']:,.0f}",
            f"{times:.1f} x" if times and row["peer"] != OURS else "",
        )  # fmt: skip
    console.print(table)
    console.print(
        "All stand before the same echo server, and are loaded in turn. p50 is that of one\n"
        "caller; p99 and CPU (of all of a peer's processes, a call) are those of 16.\n"
        "The last column is how many calls a second ours does for each of theirs."
    )
    for name, why in report["left_out"].items():
        console.print(f"[red]left out:[/] {name}: {why}", soft_wrap=True, highlight=False)
    if "picture" in report:
        console.print(f"picture: {report['picture']}")


def _draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    kinds = sorted({(row["door"], row["backend"]) for row in results})
    figure = Figure(figsize=(8, 1 + 0.28 * (len(results) + 2 * len(kinds))), layout="constrained")
    shares = [sum((row["door"], row["backend"]) == kind for row in results) + 1 for kind in kinds]
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False, height_ratios=shares)[:, 0]
    for panel, kind in zip(panels, kinds, strict=True):
        rows = [row for row in results if (row["door"], row["backend"]) == kind]
        rows.sort(key=lambda row: row["calls_per_second"])
        colors = ["tab:blue" if row["peer"] == OURS else "silver" for row in rows]
        bars = panel.barh([row["peer"] for row in rows], [row["calls_per_second"] for row in rows], color=colors)
        panel.bar_label(bars, fmt="{:,.0f}", padding=3)
        panel.set_title(f"{kind[0]} to a server over {kind[1]}", loc="left", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("calls a second, 16 at once")
    panels[-1].margins(x=0.12)
    figure.savefig(path)
