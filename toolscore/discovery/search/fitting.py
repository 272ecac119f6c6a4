"""A list of tools that is short enough for a model's context; the other tools are found by searching."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase

from toolscore.core.models import Tool

__all__ = ["fitted"]


def fitted(
    tools: Iterable[Tool],
    budget: int,
    *,
    tokens: Callable[[Tool], int],
    score: Callable[[Tool], float],
    always: Collection[str] = (),
    before: Collection[str] = (),
) -> list[Tool]:
    """Choose the tools to list within a budget: first those of `always`, then those of `before`, then by score.

    A listed tool stays listed as long as it fits, and the order is by name. So a model's prompt cache stays valid as
    long as no tool is added or removed.

    Args:
        budget: tokens; tools of `always` are listed even beyond it.
        tokens: what listing a tool costs.
        score: of a tool; larger is better.
        always: patterns of tool ids.
        before: ids of the tools that were listed last.

    Returns:
        The tools to list, by name.
    """
    given = list(tools)
    kept = [tool for tool in given if any(fnmatchcase(tool.tool_id, pattern) for pattern in always)]
    chosen = {tool.tool_id for tool in kept}
    spent = sum(tokens(tool) for tool in kept)
    rest = [tool for tool in given if tool.tool_id not in chosen]
    rest.sort(key=lambda tool: (tool.tool_id not in before, -score(tool), tool.tool_id))
    for tool in rest:
        cost = tokens(tool)
        if spent + cost <= budget:
            kept.append(tool)
            spent += cost
    return sorted(kept, key=lambda tool: tool.tool_id)
