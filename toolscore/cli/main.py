"""`toolscore`: run the gateway, and use one that runs.

Exit codes: 0 done; 1 the call failed or the tool reported an error; 2 wrong usage; 3 no gateway answers; 69 a service
the gateway needs is not to be had (its database); 73 a port is taken; 78 a setting is wrong (with `--strict-settings`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from toolscore import __version__
from toolscore.cli.access import keys, policy
from toolscore.cli.bench import bench
from toolscore.cli.connect import connect, disconnect
from toolscore.cli.discovery import catalog, gap, install, uninstall
from toolscore.cli.operations import cache, calls, errors, pins
from toolscore.cli.python import python
from toolscore.cli.run import run
from toolscore.cli.servers import servers
from toolscore.cli.serving import doctor, migrate, serve
from toolscore.cli.stdio import stdio
from toolscore.cli.using import call, events, search, tools

__all__ = ["app", "main"]

app = typer.Typer(
    name="toolscore",
    help="One address for every tool an agent can use.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """The console script."""
    app()


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """One address for every tool an agent can use."""
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


for command in (
    serve, tools, search, gap, install, uninstall, call, run, events, doctor, migrate, stdio, connect, disconnect,
):  # fmt: skip
    app.command()(command)
for group, name in (
    (servers, "servers"), (catalog, "catalog"), (calls, "calls"), (pins, "pins"), (errors, "errors"),
    (cache, "cache"), (keys, "keys"), (policy, "policy"), (python, "python"), (bench, "bench"),
):  # fmt: skip
    app.add_typer(group, name=name)
