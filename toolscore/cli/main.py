"""`toolscore`: run the gateway, and use one that runs.

Exit codes: 0 done; 1 the call failed or the tool reported an error; 2 wrong usage; 3 no gateway answers; 69 a service
the gateway needs is not to be had (its database); 73 a port is taken; 78 a setting is wrong (with `--strict-settings`).
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from toolscore import __version__

__all__ = ["main", "make_app"]

MODULES = {
    "serve": "serving", "tools": "using", "search": "using", "gap": "discovery", "install": "discovery",
    "uninstall": "discovery", "call": "using", "run": "run", "events": "using", "doctor": "serving",
    "migrate": "serving", "stdio": "stdio", "connect": "connect", "disconnect": "connect", "servers": "servers",
    "catalog": "discovery", "calls": "operations", "pins": "operations", "errors": "operations", "cache": "operations",
    "keys": "access", "policy": "access", "python": "python", "bench": "bench",
}  # fmt: skip
"""Each command, in the order of the help, and the module that has it under the same name."""


def main() -> None:
    """The console script."""
    make_app(next((one for one in sys.argv[1:] if not one.startswith("-")), None))()


def make_app(asked: str | None = None) -> typer.Typer:
    """The command line.

    Args:
        asked: the command that is to run: the modules of the others need not be loaded then.
    """
    app = typer.Typer(
        name="toolscore",
        help="One address for every tool an agent can use.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_version)
    for name in [asked] if asked in MODULES else MODULES:
        command: Any = getattr(import_module(f"toolscore.cli.{MODULES[name]}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """One address for every tool an agent can use."""
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
