"""The commands that use a gateway that runs: `toolscore tools`, `search`, `call`, `events`."""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import typer

from toolscore.cli.saving import save_result, shown_block
from toolscore.cli.terminal import (
    NO_GATEWAY,
    AsJson,
    Url,
    answer_of,
    connected,
    first_line,
    print_json,
    print_table,
    print_text,
    say,
    segment,
)
from toolscore.core.names import EXECUTOR, PYTHON
from toolscore.core.plain import escaped, plain

__all__ = ["call", "events", "search", "tools"]


def tools(
    text: Annotated[str | None, typer.Argument(help="Only those with this text in name or description.")] = None,
    server: Annotated[str | None, typer.Option(help="Only this server's.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the tools."""
    found: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 1000}
    params |= {key: value for key, value in (("q", text), ("server_id", server)) if value}
    with connected(url) as client:
        while True:
            data = answer_of(client.get("/api/v1/tools", params=params))
            found += data["tools"]
            if not data["next_cursor"]:
                break
            params["cursor"] = data["next_cursor"]
        listed = [] if as_json else answer_of(client.get("/api/v1/servers"))["servers"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            tool["tool_id"],
            _arguments(tool["input_schema"]),
            first_line(tool["description"], 80),
            f"{tool['tokens_estimate']:,}",
            _state(tool),
        )
        for tool in found
    ]
    print_table(("tool", "arguments", "what it does", "tokens", "state"), rows, empty="no tools match")
    starting = [one["server_id"] for one in listed if one["state"] == "starting" and not one["tools"]]
    if starting:
        say(f"still starting, with tools to come: {', '.join(starting)}")


def search(
    query: Annotated[list[str], typer.Argument(help="The task, in words.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 5,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Find the tools for a task: `toolscore search what time is it in Tokyo`."""
    with connected(url, timeout=120) as client:
        data = answer_of(client.post("/api/v1/tools/search", json={"query": " ".join(query), "limit": limit}))
    found = data["tools"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            tool["tool_id"],
            _arguments(tool["input_schema"]),
            first_line(tool["description"], 70),
            f"{tool['relevance']:.2f}",
            f"{tool['score']:.2f}",
            _state(tool),
        )
        for tool in found
    ]
    columns = ("tool", "arguments", "what it does", "relevance", "score", "state")
    print_table(columns, rows, empty="no tool here has anything to do with it")
    if "hint" in data:
        say(data["hint"])


def call(
    tool: Annotated[str, typer.Argument(help="Full name, as `toolscore tools` shows it.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="VALUE is JSON where it parses, else text; @FILE: what is in the file (@-: in stdin; @@: a plain @).",
        ),
    ] = None,
    body: Annotated[
        str | None, typer.Option("--json", metavar="OBJECT", help="The arguments as a JSON object.")
    ] = None,
    action: Annotated[str | None, typer.Option(help="The tool's own name, where TOOL is a server.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Give up after this long.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask the server, even if a result is kept.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put the files and pictures of the result there. Nothing is overwritten."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print the whole answer as JSON.")] = False,
    url: Url = None,
) -> None:
    """Run a tool: `toolscore call time__get_current_time timezone=Asia/Tokyo`."""
    parameters: dict[str, Any] = {}
    if body is not None:
        try:
            parameters = json.loads(body)
            if not isinstance(parameters, dict):
                raise ValueError(f"found {first_line(body, 40)}")
        except ValueError as exc:
            say(f"--json takes a JSON object: {exc}")
            raise typer.Exit(2) from None
    pairs = [_pair(argument) for argument in arguments or []]
    request: dict[str, Any] = {"tool_id": tool, "parameters": parameters}
    request |= {key: value for key, value in (("action", action), ("timeout_seconds", timeout)) if value is not None}
    if fresh:
        request["cache"] = False
    with connected(url, timeout=None) as client:
        texts = _texts(client, tool, action) if pairs else set()
        parameters |= _values(pairs, texts)
        response = client.post("/execute_tool", json=request)
        if texts is None and response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY:  # its server was still starting
            meant = {**parameters, **_values(pairs, _texts(client, tool, action))}
            if meant != parameters:
                response = client.post("/execute_tool", json={**request, "parameters": meant})
    whole = save_result(response.json()["data"], save) if save is not None and response.is_success else True
    if raw:
        print_json(response.json())
        raise typer.Exit(0 if response.is_success and not response.json()["data"]["is_error"] else 1)
    data = answer_of(response)
    performance = response.json()["performance"]
    if performance["cache_hit"]:
        past = ", past its time: the server cannot be reached" if performance["stale"] else ""
        say(f"kept result, {performance['age_seconds']:g} s old{past} (--fresh asks the server)")
    for block in data["content"]:
        print_text(shown_block(block, saved=save is not None))
    if data["is_error"] or not whole:
        raise typer.Exit(1)


def events(
    types: Annotated[list[str] | None, typer.Argument(help="Only these types.")] = None,
    since: Annotated[int | None, typer.Option(metavar="SEQ", help="Begin behind this event.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Follow what changes, until Ctrl-C."""
    params: dict[str, Any] = {}
    if types:
        params["events"] = ",".join(types)
    if since is not None:
        params["since"] = since
    try:
        with (
            connected(url, timeout=None) as client,
            client.stream("GET", "/api/v1/events/stream", params=params) as response,
        ):
            if not response.is_success:
                response.read()
                answer_of(response)
            say(f"following {client.base_url}, Ctrl-C ends it")
            for line in response.iter_lines():
                if line.startswith("data: "):
                    print(escaped(line[6:]) if as_json else plain(_event_line(json.loads(line[6:]))), flush=True)
    except KeyboardInterrupt:
        return
    say("the gateway closed the stream")
    raise typer.Exit(NO_GATEWAY)


def _pair(argument: str) -> tuple[str, str]:
    """The key and the value of an argument, whose value may stand in a file.

    Raises:
        typer.Exit: it is none, or its file cannot be read.
    """
    key, separator, value = argument.partition("=")
    if not separator or not key:
        say(f"{argument!r} is no KEY=VALUE, such as timezone=UTC; a whole JSON object is given with --json")
        raise typer.Exit(2)
    if not argument.isprintable() and any("\ud800" <= character <= "\udfff" for character in argument):
        say(f"the argument {key!r} is not text in UTF-8")
        raise typer.Exit(2)
    if value.startswith("@@"):
        return key, value[1:]
    if value.startswith("@"):
        try:
            data = sys.stdin.buffer.read() if value == "@-" else Path(value[1:]).read_bytes()
            return key, data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not text in UTF-8"
            say(f"{key}: {value[1:]!r} cannot be read: {reason} (for a text that begins with @: {key}=@{value})")
            raise typer.Exit(2) from None
    return key, value


def _values(pairs: list[tuple[str, str]], texts: set[str] | None) -> dict[str, Any]:
    return {key: value if key in (texts or ()) else _json_or_text(value) for key, value in pairs}


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _texts(client: Any, tool: str, action: str | None) -> set[str] | None:
    """The arguments that are texts by a tool's schema, so that `code=42` is text where text is wanted; `None`: the tool
    is not known (yet).
    """
    server, separator, name = tool.partition("__")
    if server == PYTHON:  # which stands for the executor, unless a server has that id
        found = _texts_of(client, tool, action)
        return found if found is not None else _texts_of(client, f"{EXECUTOR}{separator}{name}", action)
    return _texts_of(client, tool, action)


def _texts_of(client: Any, tool: str, action: str | None) -> set[str] | None:
    listed = answer_of(client.get("/api/v1/tools", params={"server_id": tool, "limit": 1000}))["tools"]
    found = [entry for entry in listed if action in (None, entry["name"])]
    if not found:
        answer = client.get(f"/api/v1/tools/{segment(tool)}").json()
        found = [answer["data"]] if answer["success"] else []
    if len(found) != 1:
        return None
    schema = found[0]["input_schema"]
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return {key for key, given in (properties or {}).items() if _kinds(given) - {"null"} == {"string"}}


def _kinds(schema: Any) -> set[str]:
    """The types of JSON that a schema names."""
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type")
    kinds = {kind} if isinstance(kind, str) else {str(one) for one in kind} if isinstance(kind, list) else set()
    return kinds.union(*(_kinds(one) for one in schema.get("anyOf") or ()))


def _arguments(schema: Any) -> str:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    required = schema.get("required") or [] if isinstance(schema, dict) else []
    return ", ".join(name if name in required else f"{name}?" for name in properties or {})


def _state(tool: dict[str, Any]) -> str:
    return "" if tool["available"] else str(tool["server_state"])


def _event_line(event: dict[str, Any]) -> str:
    told = {
        key: value
        for key, value in event.items()
        if key not in ("type", "seq", "timestamp", "capabilities", "description", "tool_type", "name")
    }
    facts = "  ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in told.items())
    return f"{event['timestamp']}  {event.get('seq', '-')!s:>6}  {event['type']:<18} {first_line(facts, 160)}"
