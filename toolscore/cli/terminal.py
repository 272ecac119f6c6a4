"""What the commands share: finding the settings, talking to a gateway that runs, and printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer
from typer.core import TyperGroup

from toolscore.core.hosts import is_loopback, local_host
from toolscore.core.places import user_config
from toolscore.core.plain import escaped, plain

__all__ = [
    "BAD_SETTINGS",
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
    "gateway_url",
    "list_by_default",
    "print_json",
    "print_table",
    "print_text",
    "say",
    "segment",
    "storage_of",
]

NO_GATEWAY = 3
NO_DATABASE, PORT_TAKEN, BAD_SETTINGS = 69, 73, 78
"""Exit codes; the last three as in `sysexits.h`."""
SETTINGS_FILES = (
    "ports_config.yaml", "toolscore.yaml", "mcp_servers.json", "mcp_servers.yaml", "mcp_servers.toml"
)  # fmt: skip
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8082
HTTP_SETTING = ("core_services", "toolscore_http")

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Where the gateway answers; else TOOLSCORE_URL, else as ports_config.yaml says (in TOOLSCORE_CONFIG_DIR, "
        "./config or ~/.config/toolscore).",
        show_default=False,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="TOOLSCORE_CONFIG_DIR",
        help="Folder of the settings files; else ./config, else ~/.config/toolscore.",
    ),
]
GAP = "  "
INDENT = "    "
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def storage_of(config: Path | None) -> Any:
    """The settings of the storage. Where a mistake may have data lie elsewhere, that is said, and the program ends."""
    from toolscore.app.files import load_settings

    loaded = load_settings(config_folder(config))
    if loaded.misplaced:
        say("toolscore: nothing was done, since data may lie elsewhere than these settings say. Mend first:")
        for problem in loaded.misplaced:
            say(f"  {problem}")
        raise typer.Exit(BAD_SETTINGS)
    return loaded.settings.storage


def config_folder(given: Path | None) -> Path | None:
    """The folder of the settings files: the one that is given, ./config, or the user's own; `None`: none is there, the
    embedded defaults hold.

    Raises:
        typer.Exit: there is no such folder.
    """
    if given is not None:
        if not given.is_dir():
            say(f"toolscore: there is no folder {given}: give the one with ports_config.yaml with --config")
            raise typer.Exit(2)
        return given
    for folder in (Path("config"), user_config()):
        if any((folder / name).is_file() for name in SETTINGS_FILES):
            return folder
    return None


def gateway_url(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Find the gateway that a command without `--url` means.

    Returns:
        Its address, and where that stands.
    """
    if given := environment.get("TOOLSCORE_URL"):
        return given, "TOOLSCORE_URL"
    place, source = _from_file(environment)
    place = {"host": DEFAULT_HOST, "port": DEFAULT_PORT, **place}
    for depth in range(len(HTTP_SETTING), 0, -1):  # TOOLSCORE_CORE_SERVICES may hold JSON, as any setting's variable
        name = "TOOLSCORE_" + "__".join(HTTP_SETTING[:depth]).upper()
        with suppress(ValueError, TypeError, KeyError):
            found = json.loads(environment.get(name, ""))
            for key in HTTP_SETTING[depth:]:
                found = found[key]
            place, source = {**place, **found}, name
            break
    for key in ("host", "port", "tls_cert"):
        name = "TOOLSCORE_" + "__".join((*HTTP_SETTING, key)).upper()
        if name in environment:
            place[key], source = environment[name], name
    host, port = str(place["host"]), str(place["port"])
    if not port.isdecimal() or not 0 < int(port) < 65536:
        say(f"{source} leaves the gateway's port open (port: {port}): give its address with --url or TOOLSCORE_URL")
        raise typer.Exit(2)
    scheme = "https" if place.get("tls_cert") else "http"
    return f"{scheme}://{local_host(host)}:{port}", source


def _from_file(environment: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The host and port of ports_config.yaml, and its path; empty where it has none, or is not to be read."""
    import yaml

    given = environment.get("TOOLSCORE_CONFIG_DIR")
    folder = Path(given) if given else config_folder(None)
    if folder is None:
        return {}, "the default"
    path = folder / SETTINGS_FILES[0]
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        for key in HTTP_SETTING:
            found = found[key]
        return {key: found[key] for key in ("host", "port", "tls_cert") if key in found}, str(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        return {}, "the default"


@contextmanager
def connected(url: str | None, timeout: float | None = 30) -> Iterator[Any]:
    """A client of the gateway. One that the caller did not name is named.

    Raises:
        typer.Exit: none answers.
    """
    import httpx

    if url is None:
        url, source = gateway_url()
        url = _with_scheme(url, source)
        say(f"gateway {url} ({source})")
    else:
        url = _with_scheme(url, "--url")
    key = os.environ.get("TOOLSCORE_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        say("TOOLSCORE_API_KEY is no key: it has a line break, or letters that no key has")
        raise typer.Exit(2)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url, timeout=timeout, headers=headers, verify=_trusted(url)) as client:
            yield client
    except httpx.InvalidURL as exc:
        say(f"{url} is no address ({exc}): one looks like http://{DEFAULT_HOST}:{DEFAULT_PORT}")
        raise typer.Exit(2) from None
    except httpx.TransportError as exc:
        say(f"no gateway answers at {url} ({exc}): start it with `toolscore serve`, or give --url")
        raise typer.Exit(NO_GATEWAY) from None


def _with_scheme(url: str, source: str) -> str:
    """An address with its scheme. Only one of this machine may do without: a key is not sent in clear text by default.

    Raises:
        typer.Exit: it has none, or one that is not HTTP's.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        return url
    with suppress(ValueError):
        if not separator and is_loopback(urlsplit(f"//{url}").hostname or ""):
            return f"http://{url}"
    say(f"{source} must begin with https:// (or http://, which sends your key in clear text), found {url}")
    raise typer.Exit(2)


def segment(name: str) -> str:
    """A name as one segment of an address: an id may have a `?` or a `#` in it."""
    return quote(name, safe="")


def _trusted(url: str) -> Any:
    """Which certificates count at an address: none are needed for plain HTTP, and reading them all takes 40 ms."""
    import ssl
    from urllib.request import getproxies

    plain_http = url.lower().startswith("http://") and not getproxies()  # a proxy may be reached over TLS
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain_http else True


def list_by_default(group: typer.Typer, name: str = "list") -> None:
    """Have a group of commands run the one that shows its list where none is named; what follows is for that one."""

    class Listing(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            asks_for_help = any(one in ctx.help_option_names for one in args)
            if not asks_for_help and (not args or args[0].startswith("-")):
                args = [name, *args]
            return super().parse_args(ctx, args)

    group.info.cls = Listing


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
    """Print a table. Where it is too wide, its widest columns stand below each row instead; nothing is cut.

    A pipe gets each row as one line, unless `COLUMNS` says how wide it is.
    """
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text

    if not rows:
        print(empty)
        return
    given = os.environ.get("COLUMNS", "")
    wide = int(given) if given.isdigit() else Console().width if sys.stdout.isatty() else sys.maxsize
    cells = [[" ".join(plain(cell).split()) for cell in row] for row in rows]
    beside = [at for at in range(len(columns)) if at == 0 or any(row[at] for row in cells)]
    width = {at: max(cell_len(text) for text in (columns[at], *(row[at] for row in cells))) for at in beside}
    below: list[int] = []
    while len(beside) > 1 and sum(width[at] + len(GAP) for at in beside) - len(GAP) > wide:
        widest = max(beside[1:], key=lambda at: width[at])
        beside.remove(widest)
        below.append(widest)

    def line(row: Sequence[str]) -> str:
        return GAP.join(set_cell_size(row[at], width[at]) for at in beside).rstrip()

    strong, faint = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{strong}{line(columns)}{faint}")
    for row in cells:
        print(line(row))
        for at in sorted(below):
            if row[at]:
                wrapped = Text(f"{columns[at]}: {row[at]}").wrap(Console(width=wide), wide - len(INDENT))
                print("\n".join(INDENT + part.plain.rstrip() for part in wrapped))


def say(line: str) -> None:
    print(plain(line), file=sys.stderr, flush=True)
