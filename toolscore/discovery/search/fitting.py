"""A list of tools that fits into what a model may spend on it: the rest is found by searching."""

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
    """Those that are always listed, then those listed before, then the best by measured score, within a budget.

    What is listed stays listed as long as it fits, and the order is that of the names: a model's prompt cache holds
    while no tool comes or goes.

    Args:
        budget: tokens; what is always listed is listed in any case.
        always: patterns of tool ids.
        before: ids that were listed last.
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
