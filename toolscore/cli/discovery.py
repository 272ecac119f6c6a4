"""The commands of discovery: `toolscore gap`, `install`, `uninstall`, `catalog`."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

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
)
from toolscore.cli.terminal import say as tell
from toolscore.core.names import reference_for
from toolscore.core.plain import plain

__all__ = ["catalog", "gap", "install", "uninstall"]

INSTALL_SECONDS = 1200

catalog = typer.Typer(help="The servers that the world offers, and those installed here.")

SIGN = {"sufficient": "yes", "unsure": "unsure", "gap": "no"}


def gap(
    task: Annotated[list[str], typer.Argument(help="The task, in words.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Can the tools here do a task? `toolscore gap post the weather in Oslo to Slack`. Exit code 1: no."""
    with connected(url, timeout=120) as client:
        analysis = answer_of(client.post("/api/v1/tools/analyze-gap", json={"task_description": " ".join(task)}))
    if as_json:
        print_json(analysis)
    else:
        _print_analysis(analysis)
    if analysis["verdict"] == "gap":
        raise typer.Exit(1)


def _print_analysis(analysis: dict[str, Any]) -> None:
    said = {
        "sufficient": "The tools here can do it",
        "unsure": "The tools here may do it: look at them first",
        "gap": "No tool here does it",
    }[analysis["verdict"]]
    print(f"{said} ({analysis['confidence']:.0%} sure).\n")
    rows = []
    for step in analysis["steps"]:
        tools = ", ".join(tool["tool_id"] for tool in step["tools"])
        if tools and step["verdict"] == "gap":
            tools = f"nearest: {tools}"
        sure = f"{SIGN[step['verdict']]} ({step['confidence']:.0%})"
        rows.append((first_line(step["step"], 60), sure, tools or "-"))
    print_table(("step", "covered", "tools"), rows, empty="no steps")
    for step in analysis["steps"]:
        lead = f"{first_line(step['step'], 40)}: " if len(analysis["steps"]) > 1 else ""
        needs = f"; needs: {', '.join(step['needs'])}" if step["needs"] else ""
        print_text(f"why: {lead}{plain(step['reason'] + needs)}")
    for one in analysis["missing"]:
        label = "missing" if analysis["verdict"] == "gap" else "maybe missing"
        print(f"{label}: {plain(one['capability'])}   keywords: {plain(' '.join(one['keywords']))}")
    if analysis["missing"]:
        words = " ".join(analysis["missing"][0]["keywords"]) or analysis["task_description"]
        print_text(f"\nFind a server for it:  toolscore catalog search {shlex.quote(words)}")


def install(
    name: Annotated[
        str, typer.Argument(help="As the catalog has it, or the part after its slash; @VERSION if wanted.")
    ],
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; a secret as NAME='${env:NAME}'.")] = None,
    argument: Annotated[list[str] | None, typer.Option("--arg", help="NAME=VALUE of its command line.")] = None,
    folder: Annotated[
        list[str] | None, typer.Option("--folder", metavar="PATH[:ro]", help="A folder that it may use; :ro to read.")
    ] = None,
    registry: Annotated[str | None, typer.Option(help="pypi, npm, oci or remote, where it has several.")] = None,
    server_id: Annotated[str | None, typer.Option("--as", help="Its id here; from its name if not given.")] = None,
    network: Annotated[bool, typer.Option("--network", help="Let it use the network.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Approve without being asked.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Install a server from the catalogs: fetched with hashes, confined, tested, then added. Or nothing at all."""
    at = name.rfind("@")
    wanted, version = (name[:at], name[at + 1 :]) if at > 0 else (name, None)
    body = {
        "name": wanted, "version": version, "registry": registry, "server_id": server_id, "network": network,
        "env": _pairs(env), "arguments": _pairs(argument), "folders": [_whole_path(one) for one in folder or ()],
    }  # fmt: skip
    with connected(url, timeout=INSTALL_SECONDS) as client:
        plan = answer_of(client.post("/api/v1/catalog/install", json={**body, "dry_run": True}))["plan"]
        if plan["installed"] and not as_json:
            print(f"{_with_version(plan['installed'])} is installed already: nothing done")
            return
        if not as_json:
            _print_plan(plan)
        if lacking := _lacking(plan):
            for line in lacking:
                tell(line)
            raise typer.Exit(2)
        approve = plan["allowed_by"] is None
        if approve and not yes:
            if not sys.stdin.isatty():
                tell("no rule allows it: approve it with --yes, or add a rule under discovery.install.allow")
                raise typer.Exit(1)
            typer.confirm("Install it?", abort=True)
        progress = _Progress(str(client.base_url), plan["server_id"], quiet=as_json)
        with progress:
            agreed = {**body, "name": plan["name"], "approve": approve, "digest": plan["digest"]}
            try:
                response = client.post("/api/v1/catalog/install", json=agreed)
            except KeyboardInterrupt:
                tell(f"\nthe gateway goes on installing it; once it is there: toolscore uninstall {plan['server_id']}")
                raise typer.Exit(130) from None
    if as_json and response.is_success:
        print_json(response.json()["data"])
        return
    if not response.is_success:
        _print_failure(response)
    done = answer_of(response)
    version = done["version"] or "its present version"
    print(f"\n{plain(done['name'])} {plain(version)} runs as `{done['server_id']}` ({done['seconds']:.1f} s).")
    for note in done["notes"]:
        print(f"  {plain(note)}")
    proof = done["proof"]
    if proof is None:
        print("  no tool was tried: none is read-only with arguments that can be inferred")
    else:
        ended = "ok" if proof["ok"] else "needs your account" if proof["needs_account"] else "failed"
        said = f": {plain(proof['said'])}" if proof["said"] else ""
        print(f"  tried {plain(proof['tool'])}: {ended}, {proof['duration_ms']:.0f} ms{said}")
    print("  tools: " + plain(", ".join(done["tools"])))


def _whole_path(folder: str) -> str:
    """A folder as seen from here, for a gateway that may run elsewhere on this machine."""
    path = folder.removesuffix(":ro")
    if not path:
        raise typer.BadParameter("--folder is empty: give a path, with :ro behind it to have it read only")
    return str(Path(path).expanduser().absolute()) + folder[len(path) :]


def _lacking(plan: dict[str, Any]) -> list[str]:
    """What must be given or mended before it can be installed, and how."""
    asks = {name: f" ({first_line(text, 80)})" for name, text in plan["asks"].items()}
    lines = []
    needed = [("--env", name, reference_for(name)) for name in plan["needs"]]
    needed += [("--arg", name, "VALUE") for name in plan["needs_arguments"]]
    for option, name, value in needed:
        given = shlex.quote(f"{plain(name)}={value}")
        lines.append(f"it needs {plain(name)}{asks.get(name, '')}: give {option} {given}")
    if plan["needs_folder"]:
        lines.append("it needs a folder to work on: give --folder PATH, or --folder PATH:ro to have it read only")
    if plan["obstacle"] is not None:
        lines.append(f"it cannot run here: {plain(plan['obstacle'])}")
    return lines


def _print_plan(plan: dict[str, Any]) -> None:
    newest = "" if plan["version"] or plan["kind"] == "remote" else " (its newest version)"
    print(f"{plain(plan['name'])}: {plan['kind']} {plain(plan['run'])}{newest}, as server `{plan['server_id']}`")
    sees = "sees its own files and what is said below" if plan["folders"] else "sees its own files alone"
    view = sees if plan["confined"] else "NOT confined"
    if plan["kind"] in ("oci", "remote"):
        view = "in a container, pinned to the digest that is pulled" if plan["kind"] == "oci" else "runs elsewhere"
    wants = " (it plainly needs one: give --network)" if plan["wants_network"] and not plan["network"] else ""
    print(f"  {view}; {'with' if plan['network'] else 'without'} network{wants}")
    if plan["note"]:
        print(f"  {plain(plan['note'])}")
    for folder in plan["folders"]:
        path = folder.removesuffix(":ro")
        print(f"  may {'read and write' if path == folder else 'read'} {plain(path)}")
    if plan["allowed_by"] is not None:
        print(f"  allowed by entry {plan['allowed_by'] + 1} of discovery.install.allow")
    for name, value in plan["sets"].items():
        print(f"  sets {plain(name)}={plain(value)}")
    for command in plan["commands"]:
        print(f"  $ {plain(shlex.join(command))}")


def _print_failure(response: Any) -> None:
    """The command that failed, and what it printed, before the error itself."""
    try:
        data = (response.json().get("error") or {}).get("details") or {}
    except ValueError:
        return
    if data.get("command"):
        tell(f"$ {shlex.join(data['command'])}")
    for line in data.get("output") or []:
        tell(f"  {line}")


class _Progress:
    """Shows the steps of an install as they are told, until it is left."""

    def __init__(self, url: str, server_id: str, *, quiet: bool) -> None:
        self._url = url
        self._server_id = server_id
        self._quiet = quiet
        self._done = threading.Event()
        self._connected = threading.Event()

    def __enter__(self) -> None:
        if not self._quiet:
            from rich.console import Console

            self._status = Console(stderr=True).status("starting …")
            self._status.start()
            threading.Thread(target=self._follow, daemon=True).start()
            self._connected.wait(2)  # or the first steps would go unseen

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if not self._quiet:
            self._status.stop()

    def _follow(self) -> None:
        import httpx

        try:
            with (
                connected(self._url, timeout=None) as client,
                client.stream("GET", "/api/v1/events/stream?events=install_progress") as stream,
            ):
                for line in stream.iter_lines():
                    self._connected.set()
                    if self._done.is_set():
                        return
                    if not line.startswith("data: "):
                        continue
                    event = json.loads(line[6:])
                    if event.get("server_id") == self._server_id:
                        self._status.update(plain(f"{event['step']}: {event['message']}"))
                        tell(f"  {event['step']:<9} {event['message']}")
        except (httpx.HTTPError, ValueError, typer.Exit):
            return  # only the display is gone


def uninstall(
    name: Annotated[str, typer.Argument(help="Its id here, or its name in the catalog.")],
    url: Url = None,
) -> None:
    """Remove a server that was installed, with all that belongs to it."""
    with connected(url, timeout=120) as client:
        gone = answer_of(client.delete(f"/api/v1/catalog/installed/{quote(name)}"))
    print(f"{_with_version(gone)} is gone: its tools, its files, its environment")


def _with_version(server: dict[str, Any]) -> str:
    return plain(f"{server['name']} {server['version'] or ''}".rstrip())


@catalog.command("search")
def search_catalog(
    query: Annotated[list[str], typer.Argument(help="A task or keywords.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 8,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Find a server in the catalogs: `toolscore catalog search send a message to slack`."""
    with connected(url, timeout=120) as client:
        found = answer_of(client.get("/api/v1/catalog/search", params={"q": " ".join(query), "limit": limit}))
    if as_json:
        print_json(found)
        return
    rows = []
    for one in found["servers"]:
        if one["installed_as"]:
            state = f"installed as {one['installed_as']}"
        else:
            state = (
                "allowed" if one["allowed"] and not one["obstacle"] else first_line(one["obstacle"] or "asks first", 40)
            )
            state = "cannot be installed" if one["plan"] is None else state
        rows.append((one["name"], first_line(one["description"], 60), _way(one), ", ".join(one["matched"]), state))
    columns = ("server", "what it does", "package", "matched", "state")
    print_table(columns, rows, empty="no server in the catalogs has it")
    for source in found["sources"]:
        if source["error"]:
            copy = "it was never reached, and is not among these"
            if source["age_seconds"] is not None:
                copy = f"its copy of {source['age_seconds'] / 3600:.1f} h ago was searched"
            tell(f"{source['name']} could not be asked ({first_line(source['error'], 60)}): {copy}")
    able = next((one for one in found["servers"] if one["plan"] and not one["plan"]["obstacle"]), None)
    if able is not None:
        print(f"Install one:  toolscore install {plain(able['name'])}")


def _way(server: dict[str, Any]) -> str:
    """How a server of a catalog is got."""
    if server["plan"]:
        return f"{server['plan']['kind']} {server['plan']['identifier']}"
    for package in server["packages"]:
        return f"{package['registry']} {package['identifier']}"
    for remote in server["remotes"]:
        return f"remote {remote['url']}"
    return "-"


@catalog.command("installed")
def installed(url: Url = None, as_json: AsJson = False) -> None:
    """What was installed here."""
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/catalog/installed"))["servers"]
    if as_json:
        print_json(found)
        return
    rows = [
        (one["server_id"], one["name"], f"{one['kind']} {one['identifier']}", one["version"], str(len(one["tools"])))
        for one in found
    ]
    print_table(("server", "name", "package", "version", "tools"), rows, empty="nothing was installed")


list_by_default(catalog, "installed")


@catalog.command("refresh")
def refresh(url: Url = None, as_json: AsJson = False) -> None:
    """Copy the registries now, and show how the catalogs stand."""
    with connected(url, timeout=INSTALL_SECONDS) as client:
        sources = answer_of(client.post("/api/v1/catalog/refresh"))["sources"]
    if as_json:
        print_json(sources)
        return
    rows = [
        (source["name"], source["kind"], str(source["servers"]), source["error"] or "ok") for source in sources
    ]  # fmt: skip
    print_table(("catalog", "kind", "servers", "state"), rows, empty="no catalogs are configured")


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            tell(f"expected NAME=VALUE, found {pair!r}")
            raise typer.Exit(2)
        pairs[name] = value
    return pairs
