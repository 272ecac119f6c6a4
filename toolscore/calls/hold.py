"""The step that holds back a tool whose definition changed in a way that somebody must look at first."""

from __future__ import annotations

from toolscore.calls.model import Call
from toolscore.core.errors import Forbidden

__all__ = ["hold"]

MAX_DIFF_LINES = 60


def hold(call: Call) -> None:
    """Refuse the call of a quarantined tool.

    Raises:
        Forbidden: with what changed, and how it is approved.
    """
    held = call.target.held
    if held is None:
        return
    tool_id, change = call.target.tool_id, held.change
    raise Forbidden(
        f"{tool_id} is quarantined: its server says something else of it since {held.since} "
        f"({'; '.join(change.reasons) or change.kind}). It can be called again once an operator has approved "
        f"it (`toolscore pins approve {tool_id}`). What changed:\n{_first_lines(change.diff)}"
    )


def _first_lines(diff: str) -> str:
    lines = diff.splitlines()
    more = [f"… and {len(lines) - MAX_DIFF_LINES} more lines"] if len(lines) > MAX_DIFF_LINES else []
    return "\n".join([*lines[:MAX_DIFF_LINES], *more])
