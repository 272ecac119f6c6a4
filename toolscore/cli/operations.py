"""Commands for operators: past calls and their replay, pins, known errors, kept results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from toolscore.cli.terminal import (
    AsJson,
    Url,
    answer_of,
    connected,
    first_line,
    list_by_default,
    print_json,
    print_table,
    print_text,
    say,
    segment,
)
from toolscore.core.plain import plain

__all__ = ["cache", "calls", "errors", "pins"]

calls = typer.Typer(help="What was called, by whom, and how it went; make it again.")
pins = typer.Typer(help="What tools are held to; look at a change and approve it.")
errors = typer.Typer(help="Patterns of errors, and what helped.")
cache = typer.Typer(help="Results that are given again.", no_args_is_help=True)

CallId = Annotated[str, typer.Argument(help="As `toolscore calls list` shows it.")]
ToolId = Annotated[str, typer.Argument(help="The tool's full name.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="From then on: 2026-11-21T10:00:00Z.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before then.")]
Tool = Annotated[str | None, typer.Option(help="Only calls of this tool.")]
Server = Annotated[str | None, typer.Option(help="Only calls of this server's tools.")]
Outcome = Annotated[str | None, typer.Option(help="`ok`, `tool_error`, or an error code.")]
Against = Annotated[str | None, typer.Option(metavar="SERVER", help="Another server with the same tools.")]
Confirm = Annotated[bool, typer.Option("--confirm", help="Also calls that may do something a second time.")]


@calls.command("list")
def list_calls(
    tool: Tool = None,
    server: Server = None,
    principal: Annotated[str | None, typer.Option(help="Only this caller's.")] = None,
    outcome: Outcome = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest first.")] = 30,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List past calls, the newest first."""
    given = {"tool_id": tool, "server_id": server, "principal": principal, "outcome": outcome, "since": since,
             "until": until, "limit": limit}  # fmt: skip
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/calls", params=_given(given)))["calls"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            call["call_id"],
            call["at"].replace("T", " ")[:19],
            call["tool_id"] if call["tool_id"] != "-" else f"{call['name']}?",
            call["principal"],
            call["outcome"],
            f"{call['duration_ms']:.1f}",
            call["cache"] or "",
            first_line(call["error"] or "", 60),
        )
        for call in found
    ]
    print_table(("call", "at (UTC)", "tool", "by", "outcome", "ms", "cache", "error"), rows, empty="no calls")


list_by_default(calls)


@calls.command("show")
def show(call_id: CallId, url: Url = None, as_json: AsJson = False) -> None:
    """Print one past call with its arguments and its result; of a run of code, the calls that it made as a tree."""
    with connected(url) as client:
        call = answer_of(client.get(f"/api/v1/calls/{segment(call_id)}"))
    if as_json or "calls" not in call:
        print_json(call)
        return
    print_text(_call_line(call))
    code = (call["arguments"] or {}).get("code")
    if isinstance(code, str):
        print_text("\n".join(f"│   {line}" for line in code.rstrip("\n").splitlines()))
    for inner in call["calls"]:
        print_text(f"├── {_call_line(inner)}")
    result = call["result"] or {}
    texts = [str(block.get("text", "")) for block in result.get("content") or [] if block.get("type") == "text"]
    shown = "\n".join(texts) or call["error"] or ""
    print_text("└── " + "\n    ".join(shown.rstrip("\n").splitlines() or ["(no output)"]))


def _call_line(call: dict[str, Any]) -> str:
    kept = f", kept ({call['cache']})" if call["cache"] else ""
    error = f": {first_line(call['error'], 100)}" if call["error"] else ""
    return f"{call['call_id']}  {call['tool_id']}  {call['outcome']}, {call['duration_ms']:.1f} ms{kept}{error}"


@calls.command("replay")
def replay(
    call_id: Annotated[str | None, typer.Argument(help="One call; without it, all that the options choose.")] = None,
    against: Against = None,
    confirm: Confirm = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Of a run of code: give it the results of then, and call no tool.")
    ] = False,
    tool: Tool = None,
    server: Server = None,
    outcome: Outcome = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make past calls again and show where the results differ. Exit code 1 if any does."""
    body: dict[str, Any] = _given({"against": against, "confirm": confirm or None, "offline": offline or None})
    if call_id is None:
        if not (yes or tool or server or outcome or since or until):
            _ask(f"make the newest {limit} calls of all tools again?")
        body |= _given({"tool_id": tool, "server_id": server, "outcome": outcome, "since": since, "until": until,
                        "limit": limit})  # fmt: skip
    with connected(url, timeout=None) as client:
        path = f"/api/v1/calls/{segment(call_id)}/replay" if call_id is not None else "/api/v1/calls/replay"
        found = answer_of(client.post(path, json=body))
    if as_json:
        print_json(found)
    elif call_id is not None:
        _print_replayed(found)
    else:
        for one in found["different"]:
            _print_replayed(one)
        for one in found["skipped"]:
            say(f"skipped {one['call_id']}: {one['reason']}")
        print(f"{found['replayed']} made again: {found['same']} the same, {len(found['different'])} different; "
              f"{len(found['skipped'])} skipped")  # fmt: skip
    same = found["same"] if call_id is not None else not found["different"]
    if not same:
        raise typer.Exit(1)


@calls.command("export")
def export(
    server: Annotated[str, typer.Argument(help="Whose calls.")],
    file: Annotated[Path, typer.Argument(help="Where to write them.")],
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the newest.")] = 1000,
    url: Url = None,
) -> None:
    """Write a recorded window to a file, which `python -m mcp_servers.recorded FILE` serves in the server's place."""
    params = _given({"server_id": server, "since": since, "until": until, "limit": limit})
    with connected(url, timeout=None) as client:
        found = answer_of(client.get("/api/v1/calls/export", params=params))
    try:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    except OSError as exc:
        say(f"{file} cannot be written: {exc}")
        raise typer.Exit(2) from None
    say(f"{len(found['calls'])} calls of {len(found['tools'])} tools are in {file}. To serve them offline:")
    entry = {f"{server}-recorded": {"command": "python", "args": ["-m", "mcp_servers.recorded", str(file)]}}
    print(json.dumps({"mcpServers": entry}, indent=2))


@pins.command("list")
def list_pins(
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Only those that wait for approval.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List what tools are held to."""
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/pins", params={"quarantined": quarantined}))["pins"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            pin["tool_id"],
            pin["pinned_at"].replace("T", " ")[:19],
            pin["pinned_by"] or "",
            f"QUARANTINED: {'; '.join(pin['reasons'])}" if pin["quarantined"] else "",
        )
        for pin in found
    ]
    print_table(("tool", "pinned (UTC)", "by", "state"), rows, empty="none" if quarantined else "no tools yet")
    if any(pin["quarantined"] for pin in found):
        say("`toolscore pins diff TOOL` shows what changed; `toolscore pins approve TOOL` takes it")


list_by_default(pins)


@pins.command("diff")
def diff(tool: ToolId, url: Url = None) -> None:
    """Show what a server says of a tool now, against what it is held to."""
    with connected(url) as client:
        pin = answer_of(client.get(f"/api/v1/pins/{segment(tool)}"))
    if not pin["quarantined"]:
        print_text(f"{tool} is what it was when it was pinned ({pin['pinned_at']}, {pin['pinned_by']})")
        return
    _print_change(pin)
    say(f"to take it: toolscore pins approve {tool} --definition {pin['held_hash'][:12]}")


@pins.command("approve")
def approve(
    tool: ToolId,
    definition: Annotated[
        str | None, typer.Option(metavar="HASH", help="The definition that was looked at, as `diff` names it.")
    ] = None,
    url: Url = None,
) -> None:
    """Take what a server says of a tool now: shows it, and asks. It can be called again at once."""
    with connected(url) as client:
        if definition is None:
            pin = answer_of(client.get(f"/api/v1/pins/{segment(tool)}"))
            definition = pin["held_hash"] or ""
            if pin["quarantined"]:
                _print_change(pin)
                if not sys.stdin.isatty():
                    say("nobody is there to ask: name the definition that you have looked at with --definition")
                    raise typer.Exit(2)
                typer.confirm("Take this definition?", abort=True)
        answer_of(client.post(f"/api/v1/pins/{segment(tool)}/approve", json={"definition_hash": definition or "-"}))
    say(f"{tool} can be called again")


@errors.command("list")
def list_errors(url: Url = None, as_json: AsJson = False) -> None:
    """List patterns of errors, the most frequent first, with what helped."""
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/errors"))["patterns"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(pattern["count"]),
            pattern["category"],
            first_line(pattern["template"], 80),
            "; ".join(f"{fix['text']} [{fix['fix_id']}]" for fix in pattern["fixes"]),
        )
        for pattern in found
    ]
    print_table(("times", "class", "pattern", "what helped"), rows, empty="no call has failed yet")


list_by_default(errors)


@errors.command("match")
def match(
    message: Annotated[str, typer.Argument(help="An error's message.")],
    tool: Annotated[str | None, typer.Option(help="The tool that gave it.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Say what is known of an error."""
    with connected(url) as client:
        found = answer_of(client.post("/api/v1/errors/match", json=_given({"message": message, "tool_id": tool})))
    if as_json:
        print_json(found)
        return
    seen = f"seen {found['count']} times" if found["count"] else "not seen before"
    print(plain(f"{found['category']}: {found['template']}  ({seen})"))
    if found["suggestion"]:
        print_text(f"  try: {found['suggestion']}  (confidence {found['confidence']})")
    for one in found["similar"]:
        print_text(f"  like: {first_line(one['template'])}  ({one['similarity']}, {one['count']} times)")


@errors.command("fix")
def fix(
    message: Annotated[str, typer.Argument(help="The error's message.")],
    text: Annotated[str, typer.Argument(help="What helps: comes back with every such error.")],
    tool: Annotated[str | None, typer.Option(help="Only for this tool.")] = None,
    url: Url = None,
) -> None:
    """Write down what helps against an error."""
    body = _given({"message": message, "text": text, "tool_id": tool})
    with connected(url) as client:
        found = answer_of(client.post("/api/v1/errors/fixes", json=body))
    say(
        f"fix {found['fix_id']} comes back with every such error; `toolscore errors forget {found['fix_id']}` ends that"
    )


@errors.command("forget")
def forget(fix_id: Annotated[str, typer.Argument(help="As `list` shows it.")], url: Url = None) -> None:
    """Forget a fix."""
    with connected(url) as client:
        answer_of(client.delete(f"/api/v1/errors/fixes/{segment(fix_id)}"))
    say(f"fix {fix_id} is forgotten")


@cache.command("clear")
def clear(tool: Tool = None, server: Server = None, url: Url = None) -> None:
    """Forget kept results: all, or one tool's or server's."""
    with connected(url) as client:
        found = answer_of(client.delete("/api/v1/cache", params=_given({"tool_id": tool, "server_id": server})))
    say(f"{found['forgotten']} results are forgotten")


def _ask(question: str) -> None:
    """Go on only if somebody says yes.

    Raises:
        typer.Exit: nobody does, or nobody is there.
    """
    if not sys.stdin.isatty():
        say(f"{question} Choose some (CALL_ID, --tool, --server, --outcome, --since, --until), or pass --yes")
        raise typer.Exit(2)
    if not typer.confirm(question):
        raise typer.Exit(1)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _print_replayed(one: dict[str, Any]) -> None:
    then, now = one["then"], one["now"]
    took = (
        f", {then['duration_ms']:.1f} ms then, {now['duration_ms']:.1f} now" if now["duration_ms"] is not None else ""
    )
    print_text(f"{one['tool_id']} ({then['call_id']}): {'the same' if one['same'] else 'DIFFERENT'}{took}")
    if then["outcome"] != now["outcome"]:
        print_text(
            f"  outcome: {then['outcome']} then, {now['outcome']} now{': ' + now['error'] if now['error'] else ''}"
        )
    if one["definition_changed"]:
        print("  the tool's definition has changed since")
    if one["result_was_redacted"]:
        print("  the recorded result was redacted: what differs may be that alone")
    if one.get("note"):
        print_text(f"  {one['note']}")
    _print_diff(one["difference"])


def _print_change(pin: dict[str, Any]) -> None:
    print_text(f"{pin['tool_id']}: {pin['change']} since {pin['since']}")
    for reason in pin["reasons"]:
        print(f"  - {plain(reason)}")
    _print_diff(pin["diff"])


def _print_diff(diff: str) -> None:
    """A unified diff, in colours where somebody looks."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in diff.splitlines():
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
        console.print(Text(f"  {plain(line)}", style=style))
