"""The sessions of the Python executor: `toolscore python sessions`, `toolscore python end ID`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from toolscore.cli.terminal import AsJson, Url, answer_of, connected, list_by_default, print_json, print_table, say
from toolscore.core.names import EXECUTOR

__all__ = ["python"]


python = typer.Typer(help="Sessions of the Python executor: what keeps its variables.")


@python.command("sessions")
def sessions(url: Url = None, as_json: AsJson = False) -> None:
    """List your open sessions."""
    found = _ask(url, "python_sessions", {})["sessions"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one["session_id"],
            one["state"],
            datetime.fromtimestamp(one["opened"], UTC).strftime("%Y-%m-%d %H:%M:%S"),
            f"{one['ends_in_seconds']:.0f} s" if one["ends_in_seconds"] is not None else "",
            ", ".join(one["packages"]),
        )
        for one in found
    ]
    print_table(("session", "state", "opened (UTC)", "ends in", "packages"), rows, empty="no sessions")


list_by_default(python, "sessions")


@python.command("end")
def end(
    session_id: Annotated[str, typer.Argument(help="As `toolscore python sessions` shows it.")], url: Url = None
) -> None:
    """End a session: its variables and files are gone."""
    if not _ask(url, "python_session_reset", {"session_id": session_id})["existed"]:
        say(f"there was no session {session_id!r}")
        raise typer.Exit(1)
    say(f"session {session_id!r} was ended")


def _ask(url: str | None, action: str, parameters: dict[str, Any]) -> dict[str, Any]:
    body = {"tool_id": EXECUTOR, "action": action, "parameters": parameters}
    with connected(url) as client:
        data = answer_of(client.post("/execute_tool", json=body))
    if data["is_error"]:
        say(" ".join(str(block.get("text", "")) for block in data["content"]))
        raise typer.Exit(1)
    found: dict[str, Any] = data["structured_content"]
    return found
