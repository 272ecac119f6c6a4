"""The first step: which tool a call means."""

from __future__ import annotations

from collections.abc import Awaitable

from toolscore.calls.deadline import Deadline
from toolscore.calls.model import Call
from toolscore.core.errors import ToolNotFound, UpstreamUnavailable
from toolscore.core.models import Sees
from toolscore.core.names import EXECUTOR, PYTHON
from toolscore.core.rules import LimitRules
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.upstreams import Upstream, UpstreamPool

__all__ = ["resolve"]


def resolve(
    call: Call, sees: Sees | None, library: UnifiedToolLibrary, upstreams: UpstreamPool, limits: LimitRules
) -> Awaitable[None] | None:
    """Find the tool; if its server has not listed any yet, wait until it has.

    Args:
        sees: says which tools exist for the caller; `None`: all.

    Returns:
        What to await, then it is found; `None`: it is found.

    Raises:
        ToolNotFound: with the nearest names.
        UpstreamUnavailable: the server that the name begins with does not run.
    """
    call.patience = call.timeout_seconds or limits.call_timeout_seconds
    if call.tool_id.startswith(PYTHON) and call.server_id is None and upstreams.find(PYTHON) is None:
        server, separator, name = call.tool_id.partition("__")
        if server == PYTHON:
            call.tool_id = f"{EXECUTOR}{separator}{name}"
    try:
        call.tool = call.target = library.resolve(call.tool_id, call.action, call.server_id, sees=sees)
    except ToolNotFound:
        server_id = call.server_id or upstreams.owner(call.tool_id)
        upstream = upstreams.find(server_id) if server_id is not None else None
        if upstream is None or library.of_server(upstream.server_id):
            raise
        return _resolve_when_up(call, sees, library, upstream)
    return None


async def _resolve_when_up(call: Call, sees: Sees | None, library: UnifiedToolLibrary, upstream: Upstream) -> None:
    try:
        with Deadline(call.patience):
            await upstream.wait_up()
    except TimeoutError:
        raise UpstreamUnavailable(
            f"server {upstream.server_id!r} is still starting after {call.patience:g} s: call again later"
        ) from None
    call.tool = call.target = library.resolve(call.tool_id, call.action, call.server_id, sees=sees)
