"""What the commands share: finding the settings, talking to a gateway that runs, and printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from toolscore.core.plain import escaped, plain

__all__ = [
    "BAD_SETTINGS",
    "DEFAULT_URL",
    "NO_DATABASE",
    "NO_GATEWAY",
    "PORT_TAKEN",
    "AsJson",
    "ConfigDir",
    "Url",
    "answer_of",
    "config_folder",
    "connected",
    "first_line",
    "print_json",
    "print_table",
    "print_text",
    "say",
]

NO_GATEWAY = 3
NO_DATABASE, PORT_TAKEN, BAD_SETTINGS = 69, 73, 78
"""Exit codes; the last three as in `sysexits.h`."""
SETTINGS_FILES = ("ports_config.yaml", "toolscore.yaml", "mcp_servers.json")
DEFAULT_URL = "http://127.0.0.1:8082"

Url = Annotated[str, typer.Option(envvar="TOOLSCORE_URL", help="Where the gateway answers.")]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="TOOLSCORE_CONFIG_DIR", help="Folder of the settings files; ./config if it exists."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def config_folder(given: Path | None) -> Path | None:
    """The folder of the settings files: the one that is given, or ./config; `None`: the embedded defaults.

    Raises:
        typer.Exit: there is no such folder.
    """
    if given is not None:
        if not given.is_dir():
            say(f"toolscore: there is no folder {given}: give the one with ports_config.yaml with --config")
            raise typer.Exit(2)
        return given
    local = Path("config")
    return local if any((local / name).is_file() for name in SETTINGS_FILES) else None


@contextmanager
def connected(url: str, timeout: float | None = 30) -> Iterator[Any]:
    import httpx

    try:
        key = os.environ.get("TOOLSCORE_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url, timeout=timeout, headers=headers) as client:
            yield client
    except httpx.TransportError as exc:
        say(f"no gateway answers at {url} ({exc}): start it with `toolscore serve`, or give --url")
        raise typer.Exit(NO_GATEWAY) from None


def answer_of(response: Any) -> Any:
    try:
        answer = response.json()
    except ValueError:
        say(f"{response.url} answered no JSON (HTTP {response.status_code}): is it a ToolScore gateway?")
        raise typer.Exit(NO_GATEWAY) from None
    if not answer.get("success"):
        error = answer.get("error") or {}
        say(f"{error.get('code', 'error')}: {error.get('message', answer)}")
        if error.get("suggestion"):
            say(error["suggestion"])
        raise typer.Exit(1)
    return answer["data"]


def first_line(text: str, width: int = 90) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= width else line[: width - 1] + "…"


def print_json(value: Any) -> None:
    print(escaped(json.dumps(value, indent=2, ensure_ascii=False)))


def print_text(text: str) -> None:
    """Print what a server or a caller wrote."""
    print(plain(text))


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, empty: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print(empty)
        return
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    # A pipe gets whole lines: nothing is cut to a width that is not there.
    columns_given = os.environ.get("COLUMNS", "")
    width = int(columns_given) if columns_given.isdigit() else None if sys.stdout.isatty() else 200
    Console(width=width).print(table)


def say(line: str) -> None:
    print(plain(line), file=sys.stderr, flush=True)
