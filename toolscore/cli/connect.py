"""`toolscore connect` and `disconnect`: enter this gateway in the file of an MCP client, and take it out again."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from toolscore.cli.clients import CLIENTS, ENTRY, Client, clients
from toolscore.cli.edits import EditError, parsed, with_member, without_member
from toolscore.cli.terminal import Url, config_folder, connected, print_table, print_text, say
from toolscore.core.entries import translated
from toolscore.core.plain import plain

__all__ = ["connect", "disconnect"]

BACKUP = ".before-toolscore-"
"""Behind a file's name; what follows begins the SHA-256 of what was written then."""

Which = Annotated[str | None, typer.Argument(metavar="[CLIENT]", help=f"One of {', '.join(CLIENTS)}.")]
At = Annotated[Path | None, typer.Option("--file", help="The client's file, if it is not where it usually is.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def connect(
    client: Which = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print what to enter; change nothing.")] = False,
    take: Annotated[
        bool, typer.Option("--import", help="Take the client's other servers over: they run behind the gateway then.")
    ] = False,
    file: At = None,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Connect an MCP client to this gateway; without CLIENT, say which are here.

    The change of its file is shown first, the rest of the file stays as it is, and a backup is kept.
    """
    if client is None:
        _list()
        return
    known = _client(client)
    command = _command(url)
    if only_print or (known.file is None and file is None):
        _print_entry(known, command)
        return
    path = _file_of(known, file)
    before = _read(path)
    try:
        taken = _others(before or "", known) if take else {}
        after = _changed(before, known, command, taken)
    except EditError as exc:
        _by_hand(path, exc, known, command)
    if after == before:
        say(f"{known.name} is connected already ({path})")
        return
    _show(path, before or "", after)
    for name, entry in taken.items():
        print_text(f"{name} moves behind the gateway: {entry.get('command') or entry.get('url') or entry}")
    _confirm("Write it?", yes=yes)
    if taken:
        after = _changed(before, known, command, _attached(taken, url))
    if _read(path) != before:
        say(f"{path} has changed meanwhile: nothing was written. Try again")
        raise typer.Exit(1)
    if before is not None:
        _back_up(path, before, after)
    _write(path, after)
    say(f"{known.name} is connected: {known.again}. Back again: toolscore disconnect {client}")


def disconnect(client: Which = None, file: At = None, yes: Yes = False) -> None:
    """Take this gateway out of the file of an MCP client."""
    if client is None:
        _list()
        return
    known = _client(client)
    path = _file_of(known, file)
    current = _read(path)
    if current is None or _entry_in(current, known) is None:
        say(f"{known.name} is not connected ({path})")
        return
    backup = path.with_name(path.name + BACKUP + _mark(current))
    before: str | None
    back: list[str] = []
    try:
        if backup.exists():
            before = backup.read_bytes().decode("utf-8")
        elif current == with_member("", known.kind, (*known.root, ENTRY), _entry_in(current, known) or {}):
            before = None  # there was no file
        else:  # it was edited since
            before = without_member(current, known.kind, (*known.root, ENTRY))
            if (earlier := _last_backup(path)) is not None:
                backup = earlier
                before, back = _with_missing(before, earlier.read_bytes().decode("utf-8"), known)
    except (EditError, OSError, ValueError) as exc:
        say(f"{path} cannot be changed: {exc}. Take the server {ENTRY!r} out by hand")
        raise typer.Exit(1) from None
    _show(path, current, before or "")
    _confirm("Write it?" if before is not None else "Remove the file?", yes=yes)
    if before is None:
        path.unlink()
    else:
        _write(path, before)
        backup.unlink(missing_ok=True)
    if back:
        say(f"{', '.join(back)} stood there before, and {'is' if len(back) == 1 else 'are'} back")
    say(f"{known.name} is without {ENTRY} again: {known.again}")


def _client(name: str) -> Client:
    known = clients(Path.home())
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        say(f"no client {name!r} is known{f': did you mean {close[0]}?' if close else ''}. Known: {', '.join(known)}")
        say("For another one: toolscore connect claude-code --print shows what most of them take")
        raise typer.Exit(2)
    return known[name]


def _list() -> None:
    rows = []
    for name, client in clients(Path.home()).items():
        if client.file is None:
            state = "is entered in the program: toolscore connect cherry-studio"
        elif not _folder_of(client.file).is_dir():
            state = "not found"
        else:
            text = _read(client.file)
            state = "connected" if text is not None and _entry_in(text, client) is not None else "here, not connected"
        rows.append((name, state, str(client.file or "")))
    print_table(("client", "state", "file"), rows, empty="no clients")


def _file_of(client: Client, given: Path | None) -> Path:
    path = given or client.file
    if path is None:
        say(f"{client.name} keeps its servers in a store of its own: change them there")
        raise typer.Exit(2)
    path = path.expanduser().resolve()  # a link stays one
    here = path.parent if given else _folder_of(path)
    if not here.is_dir():
        say(f"{client.name} is not here: there is no folder {here}. Give its file with --file, or use --print")
        raise typer.Exit(2)
    return path


def _folder_of(path: Path) -> Path:
    """The folder that is there where the client is: it may not have made the last one for its settings yet."""
    return path.parent if path.parent.parent == Path.home() else path.parent.parent


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        say(f"{path} cannot be read: {exc}")
        raise typer.Exit(1) from None


def _entry_in(text: str, client: Client) -> dict[str, Any] | None:
    try:
        found = _servers_in(text, client).get(ENTRY)
    except EditError:
        return None
    return found if isinstance(found, dict) else None


def _command(url: str | None) -> list[str]:
    """What the client starts: this very program, and the gateway that is meant."""
    program = shutil.which("toolscore") or (sys.argv[0] if os.path.basename(sys.argv[0]) == "toolscore" else None)
    command = [os.path.abspath(program)] if program else [sys.executable, "-m", "toolscore"]
    command.append("stdio")
    given = url or os.environ.get("TOOLSCORE_URL")
    folder = os.environ.get("TOOLSCORE_CONFIG_DIR") or config_folder(None)
    if given:
        command += ["--url", given]
    elif folder:
        command += ["--config", os.path.abspath(folder)]
    if os.environ.get("TOOLSCORE_API_KEY"):
        say("Your key is not written into the file: give the client's entry the variable TOOLSCORE_API_KEY yourself")
    return command


def _print_entry(client: Client, command: list[str]) -> None:
    if client.file is not None:
        say(f"{client.name} reads {client.file}; enter there:")
    else:
        say(f"{client.name} has a page for its servers, which takes:")
    print(with_member("", client.kind, (*client.root, ENTRY), client.entry(command)), end="")


def _others(text: str, client: Client) -> dict[str, dict[str, Any]]:
    """The client's other servers that can run behind a gateway: as it writes them."""
    found = {}
    for name, entry in _servers_in(text, client).items():
        if name == ENTRY or not isinstance(entry, dict):
            continue
        spelled = translated(entry)
        if spelled.get("command") or spelled.get("url"):
            found[name] = entry
    if not found:
        say(f"{client.name} has no other server")
    return found


def _changed(before: str | None, client: Client, command: list[str], taken: Iterable[str]) -> str:
    """The client's file with us in it, and without what was taken over."""
    after = with_member(before or "", client.kind, (*client.root, ENTRY), client.entry(command))
    for name in taken:
        after = without_member(after, client.kind, (*client.root, name))
    return after


def _attached(servers: dict[str, dict[str, Any]], url: str | None) -> set[str]:
    """Add servers to the gateway that runs. Returns those that it took."""
    done = set()
    with connected(url) as gateway:
        for name, entry in servers.items():
            answer = gateway.post("/api/v1/servers", json={"server_id": name, **entry}).json()
            if answer.get("success"):
                done.add(name)
                say(f"{name} runs behind the gateway: toolscore servers show {name}")
            else:
                error = answer.get("error") or {}
                say(f"{name} stays where it is: {error.get('message', answer)}")
    return done


def _show(path: Path, before: str, after: str) -> None:
    colours = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"} if sys.stdout.isatty() else {}
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), str(path), "with this change", lineterm="")
    for line in lines:
        colour = colours.get(line[:1], "")
        print(f"{colour}{plain(line)}{colour and chr(27) + '[0m'}")


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        say("nobody is there to ask: pass --yes")
        raise typer.Exit(2)
    typer.confirm(question, abort=True)


def _by_hand(path: Path, error: EditError, client: Client, command: list[str]) -> NoReturn:
    say(f"{path} cannot be changed: {error}. Enter this by hand:")
    print(json.dumps({ENTRY: client.entry(command)}, indent=2))
    raise typer.Exit(1)


def _last_backup(path: Path) -> Path | None:
    """What was kept of a file that somebody has edited since it was connected."""
    found = [one for one in path.parent.glob(f"{glob.escape(path.name)}{BACKUP}*") if one.is_file()]
    return max(found, key=lambda one: one.stat().st_mtime, default=None)


def _with_missing(text: str, earlier: str, client: Client) -> tuple[str, list[str]]:
    """The text with the servers that stood there before they moved behind the gateway; and which these are.

    Raises:
        EditError.
    """
    then, now = (_servers_in(one, client) for one in (earlier, text))
    missing = [name for name in then if name not in now and name != ENTRY and isinstance(then[name], dict)]
    for name in missing:
        text = with_member(text, client.kind, (*client.root, name), then[name])
    return text, missing


def _servers_in(text: str, client: Client) -> dict[str, Any]:
    data: Any = parsed(text, client.kind)
    for key in client.root:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _back_up(path: Path, before: str, after: str) -> None:
    """Keep what was there beside the file. One of an earlier connection stays the one that is gone back to."""
    earlier = path.with_name(path.name + BACKUP + _mark(before))
    backup = path.with_name(path.name + BACKUP + _mark(after))
    try:
        if earlier.exists():
            earlier.rename(backup)
        else:
            shutil.copy2(path, backup)
    except OSError as exc:
        say(f"what stands in {path} cannot be kept ({exc}): nothing was written")
        raise typer.Exit(1) from None
    say(f"what was there is kept in {backup}")


def _write(path: Path, text: str) -> None:
    """Put a text in the place of a file at once, with its rights."""
    made: str | None = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as fresh:
            made = fresh.name
            fresh.write(text.encode())
        if path.exists():
            shutil.copymode(path, made)
        os.replace(made, path)
    except OSError as exc:
        if made is not None:
            os.unlink(made)
        say(f"{path} cannot be written: {exc}")
        raise typer.Exit(1) from None
