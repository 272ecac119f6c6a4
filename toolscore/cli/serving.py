"""`toolscore serve` and `toolscore doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toolscore import __version__
from toolscore.cli.terminal import (
    BAD_SETTINGS,
    NO_DATABASE,
    PORT_TAKEN,
    AsJson,
    ConfigDir,
    config_folder,
    print_json,
    print_table,
    say,
    storage_of,
)
from toolscore.core.hosts import local_host

__all__ = ["doctor", "migrate", "serve"]

MAX_WORKERS = 64


def serve(
    config: ConfigDir = None,
    strict_settings: Annotated[
        bool, typer.Option("--strict-settings", help="Refuse to start when a setting is wrong.")
    ] = False,
    while_used: Annotated[
        bool,
        typer.Option("--while-used", help="End also when nobody uses it any more (`toolscore stdio` starts it so)."),
    ] = False,
    workers: Annotated[
        str, typer.Option("--workers", help="Processes that serve together, on one port: a number, or auto.")
    ] = "1",
) -> None:
    """Run the gateway until Ctrl-C."""
    import gc

    gc.disable()  # until `_started`: what is loaded stays, and walking it again and again took a sixth of a start
    from toolscore.telemetry.logs import configure_logging  # isort: skip  (before whatever logs: it keeps structlog small)

    import asyncio
    import os
    from functools import partial

    import uvloop

    from toolscore.app.files import load_settings
    from toolscore.core.errors import SettingsError
    from toolscore.endpoints import AddressInUse
    from toolscore.endpoints import serve as serve_doors
    from toolscore.stores.errors import StoreError

    count = _count_of_workers(workers)
    if count > 1 and while_used:
        raise typer.BadParameter("--while-used is for a gateway of one process: leave out --workers")
    if count > 1:  # one Python executor for all, which outlives each of them
        os.environ.setdefault("TOOLSCORE_USE_INPROCESS_PYTHON_EXECUTOR", "false")
    config = config_folder(config)
    loaded = load_settings(config)
    if count == 1:  # else each process has a log of its own: a thread would not live through a fork
        configure_logging(loaded.settings.logging.level, loaded.settings.logging.format)
    for problem in loaded.problems:
        say(f"settings: {problem}")
    if loaded.unguarded:
        say("toolscore: not started, since more would be allowed than these settings say. Mend first:")
        for problem in loaded.unguarded:
            say(f"  {problem}")
        raise typer.Exit(BAD_SETTINGS)
    for remark in loaded.remarks:
        say(f"settings, for your information: {remark}")
    if loaded.problems and strict_settings:
        raise typer.Exit(BAD_SETTINGS)
    try:
        runner = partial(asyncio.Runner, loop_factory=uvloop.new_event_loop)
        started = partial(_started, config=config, workers=count)
        if count > 1:
            from toolscore.endpoints.workers import run_workers

            if code := run_workers(loaded, config, count, started, runner):
                raise typer.Exit(code)
            return
        with runner() as running:
            running.run(serve_doors(loaded, config, started, while_used=while_used))
    except AddressInUse as exc:
        say(f"toolscore: {exc}")
        raise typer.Exit(PORT_TAKEN) from None
    except SettingsError as exc:
        say(f"toolscore: {exc}")
        raise typer.Exit(BAD_SETTINGS) from None
    except StoreError as exc:
        say(f"toolscore: {exc}. Check `storage` in toolscore.yaml")
        raise typer.Exit(NO_DATABASE) from None


def _count_of_workers(given: str) -> int:
    import os

    if given == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or not 1 <= int(given) <= MAX_WORKERS:
        raise typer.BadParameter(f"--workers takes a number from 1 to {MAX_WORKERS}, or auto; not {given!r}")
    return int(given)


def _started(gateway: Any, config: Path | None, workers: int, first: bool = True) -> None:
    import gc

    if first:
        _banner(gateway, config, workers)
    # What stands now stays: keep the collector from walking it again and again under load.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def _banner(gateway: Any, config: Path | None, workers: int) -> None:
    services = gateway.settings.current.core_services
    http, router = services.toolscore_http, services.toolscore_mcp
    base = http.local_url
    live = base.replace("http", "ws", 1)
    code = '{"tool_id": "python-executor-mcp-server__python_execute", "parameters": {"code": "sum(range(101))"}}'
    unix = f"\n               {router.unix_socket}  (Unix socket)" if router.unix_socket else ""
    servers = ", ".join(
        upstream.server_id if upstream.state == "up" else f"{upstream.server_id} ({upstream.state})"
        for upstream in gateway.upstreams
    )
    shared = f"\n  Workers      {workers}, on the same ports" if workers > 1 else ""
    example, hint = [f"curl -s {base}/execute_tool -H 'content-type: application/json'", f"-d '{code}'"], ""
    current = gateway.settings.current
    if not (current.is_local and current.access.local_without_key):
        example.insert(1, '-H "authorization: Bearer $TOOLSCORE_API_KEY"')
        hint = " (with a key: `toolscore keys create NAME` makes one)"
    command = " \\\n    ".join(example)
    problems = len(gateway.reload.problems)
    settings = str(config or "embedded defaults: there is no ./config here, and no ~/.config/toolscore")
    if problems:
        settings += (
            f", with {problems} mistake{'s' if problems > 1 else ''} (see above): refused values have their defaults"
        )
    print(
        f"""ToolScore {__version__} is ready.

  Dashboard    {base}/   (in a browser: tools, servers, calls, what needs you)
  REST         {base}/api/v1/tools   (more: {base}/docs)
  MCP          {base}/mcp   (one server alone: {base}/servers/ID/mcp)
  MCP router   ws://{local_host(router.host)}:{router.port}{router.endpoint}{unix}
  Events       {live}/api/v1/events/tools   ({base}/api/v1/events/stream)
  Health       {base}/health
  Settings     {settings}
  Data         {gateway.settings.current.storage.folder}
  Servers      {servers}{shared}

Try a call{hint}:

  {command}

Ctrl-C ends it and everything it started.
""",
        flush=True,
    )


def migrate(config: ConfigDir = None) -> None:
    """Bring the database's schema up to this release. A start does it, too, unless `storage.migrate` is false."""
    import asyncio

    from toolscore.stores.database import open_database
    from toolscore.stores.errors import StoreError
    from toolscore.stores.schema import HEAD
    from toolscore.telemetry.logs import configure_logging

    configure_logging("error", "console")
    storage = storage_of(config)

    async def run() -> str | None:
        async with open_database(storage.url) as database:
            return database.had

    try:
        had = asyncio.run(run())
    except StoreError as exc:
        say(f"toolscore: {exc}. Check `storage` in toolscore.yaml")
        raise typer.Exit(NO_DATABASE) from None
    if had is None:
        print(f"The database was empty: it has the schema {HEAD} now.")
    elif had == HEAD:
        print(f"The database has the schema {HEAD} already.")
    elif had > HEAD:
        print(f"The database has the schema {had} of a newer release, with which this one (schema {HEAD}) works, too.")
    else:
        print(f"The database had the schema {had}, and has {HEAD} now.")


def doctor(config: ConfigDir = None, as_json: AsJson = False) -> None:
    """Say what is installed, which ports are free, which servers start, and how to mend what does not."""
    import asyncio

    from toolscore.app.doctor import examine
    from toolscore.telemetry.logs import configure_logging

    configure_logging("error", "console")
    findings = asyncio.run(examine(config_folder(config), progress=None if as_json else say))
    if as_json:
        print_json([{"check": f.check, "ok": f.ok, "found": f.found, "mend": f.mend} for f in findings])
    else:
        rows = [("ok" if f.ok else "WRONG", f.check, f.found, "" if f.ok else f.mend or "") for f in findings]
        print_table(("", "check", "found", "to mend it"), rows, empty="nothing to check")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
