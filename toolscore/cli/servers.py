"""The servers behind a gateway: `toolscore servers`, and the commands below it that change or show one."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any

import typer

from toolscore.cli.terminal import (
    AsJson,
    Url,
    answer_of,
    connected,
    print_json,
    print_table,
    print_text,
    say,
    segment,
)
from toolscore.core.plain import plain

__all__ = ["servers"]

servers = typer.Typer(help="List the servers behind the gateway; add, remove, restart one, and look at it.")

Name = Annotated[str, typer.Argument(metavar="ID", help="As `toolscore servers` shows it.")]
Pairs = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="May be given several times.")]


@servers.callback(invoke_without_command=True)
def list_servers(context: typer.Context, url: Url = None, as_json: AsJson = False) -> None:
    """List the servers behind the gateway; add, remove, restart one, and look at it."""
    if context.invoked_subcommand is not None:
        return
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/servers"))["servers"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            server["server_id"],
            server["kind"] or "?",
            "disabled" if server.get("disabled") else server["state"],
            str(server["tools"]),
            str(server["calls_in_flight"]),
            str(server["restarts"]),
            server["last_error"] or _remarks(server),
        )
        for server in found
    ]
    print_table(("server", "kind", "state", "tools", "in flight", "restarts", "remarks"), rows, empty="no servers")


@servers.command("add", context_settings={"allow_interspersed_args": False})
def add(
    name: Annotated[str, typer.Argument(metavar="ID", help="What it is to be called.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND ARG...]", help="What starts it, if it is a program.")
    ] = None,
    address: Annotated[str | None, typer.Option("--at", metavar="URL", help="Where it is, if it runs already.")] = None,
    env: Pairs = None,
    header: Pairs = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
) -> None:
    """Add a server: `toolscore servers add time uvx mcp-server-time`. It is there again after a restart.

    Options stand before ID. Secrets are given by reference: --env TOKEN='${env:TOKEN}'.
    """
    if (address is None) == (not command):
        say("give either what starts it (toolscore servers add ID COMMAND …), or where it is (--at URL)")
        raise typer.Exit(2)
    if command and (command[0] == "--at" or "://" in command[0]):
        given = next((one for one in command if "://" in one), "URL")
        say(f"an address is given before the ID: toolscore servers add --at {given} {name}")
        raise typer.Exit(2)
    body: dict[str, Any] = {"server_id": name}
    if command:
        body |= {"command": command[0], "args": command[1:]}
    else:
        body["url"] = address
    body |= {key: value for key, value in (("env", _pairs(env)), ("headers", _pairs(header))) if value}
    shown = shlex.join(command) if command else str(address)
    print_text(f"{name} {'runs' if command else 'is at'}: {shown}")
    if command and not yes:
        say("It runs with your rights, on the gateway's machine.")
        if not sys.stdin.isatty():
            say("nobody is there to ask: pass --yes")
            raise typer.Exit(2)
        typer.confirm("Add it?", abort=True)
    with connected(url) as client:
        answer_of(client.post("/api/v1/servers", json=body))
    say(f"{name} is being started: toolscore servers show {name}")


@servers.command("remove")
def remove(name: Name, url: Url = None) -> None:
    """Remove a server that was added. One of mcp_servers.json is removed there."""
    with connected(url) as client:
        answer_of(client.delete(f"/api/v1/servers/{segment(name)}"))
    say(f"{name} is gone, with its tools")


@servers.command("restart")
def restart(name: Name, url: Url = None) -> None:
    """Start a server again, now."""
    with connected(url) as client:
        answer_of(client.post(f"/api/v1/servers/{segment(name)}/restart"))
    say(f"{name} is being restarted: toolscore servers show {name}")


@servers.command("disable")
def disable(name: Name, url: Url = None) -> None:
    """Stop a server until it is enabled: nobody is shown its tools."""
    with connected(url) as client:
        answer_of(client.post(f"/api/v1/servers/{segment(name)}/disable"))
    say(f"{name} is disabled, its tools are gone. Back again: toolscore servers enable {name}")


@servers.command("enable")
def enable(name: Name, url: Url = None) -> None:
    """Start a server that was disabled."""
    with connected(url) as client:
        answer_of(client.post(f"/api/v1/servers/{segment(name)}/enable"))
    say(f"{name} is being started: toolscore servers show {name}")


@servers.command("show")
def show(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Say all that is known of a server."""
    with connected(url) as client:
        server = answer_of(client.get(f"/api/v1/servers/{segment(name)}"))
    if as_json:
        print_json(server)
        return
    for key, value in server.items():
        if value not in (None, "", [], {}) and key != "stderr":
            print(plain(f"{key:<18}{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"))


@servers.command("logs")
def logs(name: Name, url: Url = None) -> None:
    """Print the last lines that a server's process wrote beside the protocol."""
    with connected(url) as client:
        server = answer_of(client.get(f"/api/v1/servers/{segment(name)}"))
    for line in server["stderr"] or []:
        print_text(line)
    if not server["stderr"]:
        say("it has written nothing" if server.get("kind") == "stdio" else "only servers that are programs write lines")


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for pair in given or []:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            say(f"{pair!r} is no NAME=VALUE")
            raise typer.Exit(2)
        pairs[name] = value
    return pairs


def _remarks(server: dict[str, Any]) -> str:
    mended = server.get("mended") or {}
    remarks = [f"runs with {server['runs_with']}"] if server.get("runs_with") else []
    return "; ".join([*remarks, *(f"{name} is shown mended: {', '.join(told)}" for name, told in mended.items())])
