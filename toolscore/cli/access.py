"""The commands about who may do what: `toolscore keys`, `toolscore policy`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from toolscore.cli.terminal import (
    NO_DATABASE,
    AsJson,
    ConfigDir,
    Url,
    answer_of,
    connected,
    gateway_url,
    list_by_default,
    print_json,
    print_table,
    say,
    storage_of,
)

__all__ = ["keys", "policy"]

MAX_DAYS = 36_500

keys = typer.Typer(help="Who may come in from elsewhere: API keys, kept as hashes.")
policy = typer.Typer(help="What callers may do: the rules under `policy` in toolscore.yaml.", no_args_is_help=True)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is: a name for the log and the rules.")],
    scope: Annotated[list[str] | None, typer.Option(help="What its owner may do; `admin` changes the gateway.")] = None,
    days: Annotated[
        float | None, typer.Option(min=0.01, max=MAX_DAYS, help="Good for so many days; for ever if not given.")
    ] = None,
    config: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once. A gateway that runs knows it within seconds."""
    from datetime import timedelta

    from toolscore.core.clock import now, timestamp

    expires_at = timestamp(now() + timedelta(days=days)) if days is not None else None
    key_id, key = _with_keys(config, lambda ring: ring.create(name, scope or [], expires_at))
    if as_json:
        print_json({"key_id": key_id, "key": key, "name": name, "scopes": scope or [], "expires_at": expires_at})
    else:
        print(key, flush=True)
        until = f"until {expires_at}" if expires_at else "without end"
        say(f"key {key_id} of {name}, {until}. It is not shown again.")
        say("Send it as `Authorization: Bearer …`; this command line takes it from TOOLSCORE_API_KEY.")
    _tell_whether_known(key, config)


@keys.command("list")
def list_keys(config: ConfigDir = None, as_json: AsJson = False) -> None:
    """List the keys, revoked ones too."""
    found = _with_keys(config, lambda ring: ring.list())
    if as_json:
        print_json(found)
        return
    rows = [
        (
            row["key_id"],
            row["name"],
            row["scopes"],
            row["created_at"][:10],
            f"revoked {row['revoked_at'][:10]}" if row["revoked_at"] else (row["expires_at"] or "good")[:10],
        )
        for row in found
    ]
    print_table(("key", "name", "scopes", "made", "state"), rows, empty="no keys: toolscore keys create NAME")


list_by_default(keys)


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], config: ConfigDir = None) -> None:
    """Make a key worthless. A gateway that runs knows it within seconds."""
    _with_keys(config, lambda ring: ring.revoke(key_id))
    say(f"key {key_id} is revoked")


@policy.command("explain")
def explain(
    principal: Annotated[str, typer.Argument(help="Who would call.")],
    tool: Annotated[str, typer.Argument(help="The tool's full name.")],
    arguments: Annotated[str | None, typer.Option("--json", metavar="OBJECT", help="The arguments.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="A scope that the principal has.")] = None,
    url: Url = None,
) -> None:
    """Say whether a call would be allowed, and which rule decides. Nothing is called."""
    params: dict[str, Any] = {"principal": principal, "tool_id": tool, "scope": scope or []}
    if arguments is not None:
        params["arguments"] = arguments
    with connected(url) as client:
        found = answer_of(client.get("/api/v1/policy/explain", params=params))
    decided = f"rule {found['rule']}: {json.dumps(found['rule_text'])}" if found["rule"] else "no rule is about it"
    print(f"{'allowed' if found['allowed'] else 'refused'}: {decided} (default: {found['default']})")
    if not found["allowed"]:
        raise typer.Exit(1)


def _tell_whether_known(key: str, config: Path | None) -> None:
    """Ask the gateway of the settings whether it knows a key that was just made: its data may lie elsewhere."""
    import httpx

    environment = {**os.environ, **({"TOOLSCORE_CONFIG_DIR": str(config)} if config is not None else {})}
    try:
        url, _ = gateway_url({name: value for name, value in environment.items() if name != "TOOLSCORE_URL"})
        answer = httpx.get(f"{url}/api/v1/servers", headers={"Authorization": f"Bearer {key}"}, timeout=5)
    except typer.Exit:
        return  # the settings name no port: there is nobody to ask
    except httpx.HTTPError:
        say(f"No gateway answers at {url}: one that starts with these settings, in this folder, knows the key.")
        return
    if answer.status_code == 401:
        say(f"BUT the gateway at {url} does not know it, since it keeps its keys elsewhere: make the key in the folder")
        say("where it was started, with its --config, or name its data folder in TOOLSCORE_STORAGE__DATA_DIR.")


def _with_keys(config: Path | None, work: Callable[[Any], Any]) -> Any:
    """Do something with the keys in the database of the settings, and say which that is."""
    import asyncio

    from toolscore.access.auth import KeyRing
    from toolscore.core.errors import ToolScoreError
    from toolscore.stores.database import open_database
    from toolscore.stores.errors import StoreError

    storage = storage_of(config)
    place = urlsplit(storage.database_url or "")
    say(f"keys in {f'{place.hostname}{place.path}' if storage.database_url else storage.folder / 'toolscore.db'}")

    async def run() -> Any:
        async with open_database(storage.url, migrate=storage.migrate) as database:
            return await work(KeyRing(database))

    try:
        return asyncio.run(run())
    except StoreError as exc:
        say(f"toolscore: {exc}. Check `storage` in toolscore.yaml")
        raise typer.Exit(NO_DATABASE) from None
    except ToolScoreError as exc:
        say(f"toolscore: {exc.message}")
        raise typer.Exit(1) from None
