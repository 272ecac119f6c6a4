"""`toolscore run FILE.py`: Python in the gateway's sandbox, which calls the gateway's tools."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from toolscore.cli.saving import make_folder, save_result, shown_block
from toolscore.cli.terminal import NO_GATEWAY, AsJson, Url, answer_of, connected, print_json, print_text, say
from toolscore.core.plain import plain

__all__ = ["run"]

SESSION_HELP = "Keep variables for later runs with the same id."


def run(
    file: Annotated[str, typer.Argument(metavar="FILE.py|-", help="The program; - reads it from stdin.")],
    tools: Annotated[
        list[str] | None,
        typer.Option("--tools", metavar="PATTERN", help="All that it may call: time,memory__*. Else what only reads."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="End it after this long.")] = None,
    session: Annotated[str | None, typer.Option(metavar="ID", help=SESSION_HELP)] = None,
    packages: Annotated[list[str] | None, typer.Option("--packages", metavar="NAME", help="It needs these.")] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", metavar="PATH", help="Put this file into its folder. Several times.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put its files and figures there. Nothing is overwritten."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Run Python that calls tools: `toolscore run report.py`. Prints what it prints, as it comes.

    In the code, `tools.SERVER.TOOL(argument=…)` calls a tool; `tools.search("what for")` finds one.
    """
    body: dict[str, Any] = {"code": _read(file)}
    given = {
        "tools": _split(tools), "timeout_seconds": timeout, "session_id": session, "packages": _split(packages),
        "files": [_packed(path) for path in files or ()] or None,
    }  # fmt: skip
    body |= {name: value for name, value in given.items() if value is not None}
    if save is not None:
        make_folder(save)
    try:
        with connected(url, timeout=None) as client:
            end = _run(client, body, quiet=as_json)
    except KeyboardInterrupt:
        say("stopped: the code was ended, and the calls that it made")
        raise typer.Exit(130) from None
    if as_json:
        print_json(end)
        raise typer.Exit(0 if end["success"] and not end["data"]["is_error"] else 1)
    if not end["success"]:
        say(f"{end['error']['code']}: {end['error']['message']}")
        if end["error"]["suggestion"]:
            say(end["error"]["suggestion"])
        raise typer.Exit(1)
    _show(end["data"], save)


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        say(f"{file} cannot be read: {getattr(exc, 'strerror', None) or 'it is not text in UTF-8'}")
        raise typer.Exit(2) from None


def _split(names: list[str] | None) -> list[str] | None:
    """Names, of which several may stand in one option with commas between them."""
    return [part.strip() for name in names for part in name.split(",") if part.strip()] if names else None


def _packed(path: Path) -> dict[str, str]:
    try:
        data = path.read_bytes()
    except OSError as exc:
        say(f"{path} cannot be read: {exc.strerror}")
        raise typer.Exit(2) from None
    return {"path": path.name, "content": base64.b64encode(data).decode(), "encoding": "base64"}


def _run(client: Any, body: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Run it; what it prints is printed meanwhile. Returns the last event, which has the answer's envelope."""
    headers = {"accept": "application/x-ndjson"}
    with client.stream("POST", "/api/v1/code/run", json=body, headers=headers) as response:
        if response.headers.get("content-type") != headers["accept"]:
            response.read()
            answer_of(response)
        for line in response.iter_lines():
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "end":
                return event
            if quiet:
                continue
            if event["event"] == "stdout":
                print(plain(event["text"]), end="", flush=True)
            elif event["event"] == "progress" and sys.stderr.isatty():
                say(f"\x1b[2m· {plain(event['message'])}\x1b[0m")
    say("the gateway went away before the code had ended: what it did is not known")
    raise typer.Exit(NO_GATEWAY)


def _show(data: dict[str, Any], save: Path | None) -> None:
    """Show what is not on the screen yet: stderr, the value, what went wrong, figures and files."""
    structured = data["structured_content"]
    if structured is None:  # the call itself was refused
        for block in data["content"]:
            say(shown_block(block, saved=False))
        raise typer.Exit(1)
    if structured["stdout"] and not structured["stdout"].endswith("\n"):
        print()
    if structured["stderr"]:
        say(structured["stderr"].rstrip("\n"))
    if structured["result"] is not None:
        print_text(structured["result"])
    for block in data["content"]:
        if block["type"] != "text":
            print_text(shown_block(block, saved=save is not None))
    whole = save_result(data, save) if save is not None else True
    if save is None and structured["files"]:
        names = ", ".join(f"{one['path']} ({one['size']:,} bytes)" for one in structured["files"])
        say(f"files: {names}; --save DIR keeps them")
    error, run = structured["error"], data["run"] or {}
    if run.get("calls") or error is not None:
        failed = f", {run['failed']} failed" if run.get("failed") else ""
        count = f"{run.get('calls', 0)} call{'s' * (run.get('calls', 0) != 1)} of tools{failed}"
        say(f"{count}: toolscore calls show {data['call_id']}")
    if error is not None:
        before, _, last = error["traceback"].rstrip("\n").rpartition("\n")
        text = error["traceback"] if error["message"] in error["traceback"] else ""
        say((text or f"{before if last.startswith(error['type']) else error['traceback']}\n"
             f"{error['type']}: {error['message']}").strip("\n"))  # fmt: skip
    if error is not None or not whole:
        raise typer.Exit(1)
