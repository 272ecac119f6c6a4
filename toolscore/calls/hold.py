"""The step that holds back a tool whose definition changed in a way that somebody must look at first."""

from __future__ import annotations

from toolscore.calls.model import Call
from toolscore.core.errors import Forbidden
from toolscore.core.models import Tool
from toolscore.tools.library import UnifiedToolLibrary

__all__ = ["hold", "hold_by_now"]

MAX_DIFF_LINES = 60


def hold(call: Call) -> None:
    """Refuse the call of a quarantined tool.

    Raises:
        Forbidden: with what changed, and how it is approved.
    """
    _refuse_held(call.target)


def hold_by_now(library: UnifiedToolLibrary, tool_id: str) -> None:
    """Refuse a call that has waited, if its tool is quarantined by now: its server may have come up meanwhile.

    Raises:
        Forbidden: as `hold`.
    """
    tool = library.find(tool_id)
    if tool is not None:
        _refuse_held(tool)


def _refuse_held(tool: Tool) -> None:
    held = tool.held
    if held is None:
        return
    tool_id, change = tool.tool_id, held.change
    raise Forbidden(
        f"{tool_id} is quarantined: its server says something else of it since {held.since} "
        f"({'; '.join(change.reasons) or change.kind}). It can be called again once an operator has approved "
        f"it (`toolscore pins approve {tool_id}`). What changed:\n{_first_lines(change.diff)}"
    )


def _first_lines(diff: str) -> str:
    lines = diff.splitlines()
    more = [f"… and {len(lines) - MAX_DIFF_LINES} more lines"] if len(lines) > MAX_DIFF_LINES else []
    return "\n".join([*lines[:MAX_DIFF_LINES], *more])
