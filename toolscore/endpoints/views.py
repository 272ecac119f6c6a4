"""What doors show of tools, servers, results, pins and figures: one shape for each, whichever door shows it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from toolscore.access.auth import ADMIN
from toolscore.app.compose import Gateway
from toolscore.calls.result import text_of
from toolscore.core.clock import timestamp_of
from toolscore.core.errors import InvalidArguments
from toolscore.core.models import NOBODY, Principal, Sees, Tool, ToolResult, shown_url
from toolscore.tools.library import change_fields
from toolscore.upstreams import Upstream

__all__ = [
    "failure_text",
    "found_tools",
    "kept_fields",
    "memory_by_family",
    "pin_fields",
    "result_fields",
    "server_fields",
    "stats_fields",
    "tool_fields",
]


MAX_DEPTH = 100
MAX_SAID = 300
"""Characters of a failure that stand in a message."""


def result_fields(result: ToolResult) -> dict[str, Any]:
    """A call's result as REST shows it."""
    data: dict[str, Any] = {
        "call_id": result.call_id,
        "tool_id": result.tool.tool_id,
        "content": result.content,
        "structured_content": result.structured_content,
        "is_error": result.is_error,
    }
    if result.suggestion is not None:
        data["suggestion"] = result.suggestion
    return data


def kept_fields(result: ToolResult) -> dict[str, Any] | None:
    """What is told of a result that was kept; `None`: its server has just made it."""
    if result.cache_level is None or result.age_seconds is None:
        return None
    return {"cache_level": result.cache_level, "age_seconds": round(result.age_seconds, 1), "stale": result.stale}


def failure_text(result: ToolResult) -> str:
    """What a tool that failed said, on one line."""
    said = " ".join(text_of(result.content).split())
    if not said:
        return "the tool reported an error"
    return f"the tool reported an error: {said[:MAX_SAID]}{'…' if len(said) > MAX_SAID else ''}"


def tool_fields(gateway: Gateway, tool: Tool, *, full: bool = False) -> dict[str, Any]:
    """A tool as REST shows it."""
    fields: dict[str, Any] = {
        "tool_id": tool.tool_id,
        "name": tool.name,
        "server_id": tool.server_id,
        "description": tool.description,
        "input_schema": tool.input_schema,
        "output_schema": tool.definition.get("outputSchema"),
        "annotations": tool.annotations,
        "tags": list(tool.tags),
        "available": gateway.library.available(tool),
        "server_state": gateway.library.state(tool.server_id),
        "circuit": gateway.circuits.state(tool.server_id),
        "quarantined": tool.held is not None,
        "disabled": tool.tool_id in gateway.permissions.off,
        "tokens_estimate": gateway.library.schemas.tokens(tool),
        "score": gateway.scores.of(tool).value,
    }
    if full:
        pin = gateway.pins.find(tool.server_id, tool.name)
        fields |= {
            "score": msgspec.structs.asdict(gateway.scores.of(tool)),
            "pin": {"pinned_at": pin.pinned_at, "pinned_by": pin.pinned_by} if pin is not None else None,
            "change": change_fields(tool.held.change) if tool.held is not None else None,
            "windows": gateway.notes.stats.of_tool(tool.tool_id),
            "definition": tool.definition,
            "definition_hash": tool.definition_hash,
            "first_seen": tool.first_seen,
            "calls": gateway.notes.stats.tools.get(tool.tool_id, 0),
        }
    return fields


async def found_tools(gateway: Gateway, params: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """The tools for a task, ranked, each ready to be called.

    Args:
        params: `query`, and `limit` if given.

    Raises:
        InvalidArguments: they are something else.
    """
    query, limit = params.get("query"), params.get("limit", 10)
    if not isinstance(query, str) or not isinstance(limit, int) or isinstance(limit, bool):
        raise InvalidArguments("`query` must be a text, and `limit` a number", suggestion='{"query": "…", "limit": 10}')
    found = await gateway.search.search(
        query, principal=principal.name, sees=gateway.permissions.sees(principal), limit=limit
    )
    tools = [
        {**tool_fields(gateway, one.tool), "relevance": one.relevance, "score": one.score, "rank": one.rank}
        for one in found
    ]
    hint = gateway.search.hint(query)
    return {"tools": tools, "total_count": len(tools), **({"hint": hint} if hint else {})}


OPERATORS_OWN = ("command", "args", "env_keys", "header_names", "credentials_of", "stderr")
"""How a server is started and what it says is for the operator's eyes."""


def server_fields(gateway: Gateway, upstream: Upstream, principal: Principal, *, full: bool = False) -> dict[str, Any]:
    """A server as REST shows it. Values of `env` and `headers` stay here: they may be secrets."""
    spec, sees = upstream.spec, gateway.permissions.sees(principal)
    connection = upstream.connections[0] if upstream.connections else None
    fields: dict[str, Any] = {
        "server_id": upstream.server_id,
        "kind": getattr(connection, "kind", spec.kind),
        "state": upstream.state,
        "tools": len(gateway.library.of_server(upstream.server_id)),
        "instances": len(upstream.connections),
        "calls_in_flight": upstream.in_flight,
        "restarts": upstream.restarts,
        "circuit": gateway.circuits.state(upstream.server_id),
        "last_error": upstream.last_error,
        "next_try_at": _moment(upstream.next_try_at),
        "pid": upstream.pid,
        "up_since": upstream.up_since,
        "runs_with": "mcp<2" if upstream.runs is not upstream.spec else None,
        "mended": _mended(gateway, upstream.server_id, sees),
    }
    if full:
        fields |= {
            "description": spec.description,
            "command": spec.command,
            "args": list(spec.args),
            "env_keys": sorted(spec.env),
            "url": shown_url(spec.url) if spec.url else None,
            "header_names": sorted(spec.headers),
            "credentials_of": list(spec.credentials),
            "forward_headers": list(spec.forward_headers),
            "endpoint": shown_url(spec.endpoint) if spec.endpoint else None,
            "stderr": list(upstream.stderr),
            "memory_bytes": None,
            "protocol_version": connection.info.protocol_version if connection else None,
            "server_info": {"name": connection.info.name, "version": connection.info.version} if connection else None,
            "tool_ids": [
                tool.tool_id for tool in gateway.library.of_server(upstream.server_id) if sees is None or sees(tool)
            ],
        }
        if ADMIN not in principal.scopes:
            fields |= dict.fromkeys(OPERATORS_OWN)
    return fields


def _moment(unix_seconds: float | None) -> str | None:
    return timestamp_of(int(unix_seconds * 1000)) if unix_seconds is not None else None


def _mended(gateway: Gateway, server_id: str, sees: Sees | None) -> dict[str, list[str]]:
    """The tools that are shown otherwise than the server lists them, and what was mended."""
    library = gateway.library
    return {
        tool.name: told
        for tool in library.of_server(server_id)
        if (sees is None or sees(tool)) and (told := library.schemas.mended(tool)[1])
    }


def memory_by_family(pids: Collection[int]) -> dict[int, int]:
    """Resident memory of these processes and all below them, by one look at all processes of the machine. Blocks."""
    import psutil  # 1 MB, once somebody asks

    parents, sizes = {}, {}
    for process in psutil.process_iter(["ppid", "memory_info"]):
        memory = process.info["memory_info"]
        if memory is not None:
            parents[process.pid], sizes[process.pid] = process.info["ppid"], memory.rss
    found = dict.fromkeys(pids, 0)
    for pid, size in sizes.items():
        above, steps = pid, 0
        while above in parents and above not in found and steps < MAX_DEPTH:
            above, steps = parents[above], steps + 1
        if above in found:
            found[above] += size
    return found


def stats_fields(gateway: Gateway, principal: Principal | None) -> dict[str, Any]:
    """The figures of `/api/v1/stats` and of `stats_update`, with no tool that this principal does not see.

    Args:
        principal: `None`: whoever listens; no tools then, unless all may see all.
    """
    sees = gateway.permissions.sees(principal if principal is not None else NOBODY)
    who = principal if principal is not None else NOBODY
    states: dict[str, int] = {}
    for upstream in gateway.upstreams:
        if gateway.shows_server(who, upstream.server_id):
            states[upstream.state] = states.get(upstream.state, 0) + 1
    figures = gateway.notes.stats.snapshot()
    if principal is None:
        if not gateway.permissions.policy.is_open:
            del figures["top_tools"]
    elif sees is not None:
        figures["top_tools"] = [one for one in figures["top_tools"] if gateway.library.find(one["tool_id"], sees)]
    now = gateway.summed.now()
    return {
        **figures,
        "calls_in_flight": int(now["calls_in_flight"]),
        "cache": {name: int(now[f"cache_{name}"]) for name in (*gateway.cache.hits, "misses")},
        "journal": {"written": int(now["journal_written"]), "lost": int(now["journal_lost"])},
        "tools_total": gateway.library.count(sees),
        "servers": states,
        "event_subscribers": int(now["event_subscribers"]),
        "last_event_seq": gateway.events.last_seq,
        "memory_bytes": int(now["memory_bytes"]),
        "server_stats": {
            server_id: one for server_id, one in gateway.figures.latest.items() if gateway.shows_server(who, server_id)
        },
    }


def pin_fields(gateway: Gateway, tool: Tool) -> dict[str, Any]:
    """A pin as REST shows it."""
    pin = gateway.pins.find(tool.server_id, tool.name)
    return {
        "tool_id": tool.tool_id,
        "server_id": tool.server_id,
        "definition_hash": tool.definition_hash,
        "pinned_at": pin.pinned_at if pin is not None else tool.first_seen,
        "pinned_by": pin.pinned_by if pin is not None else None,
        "quarantined": tool.held is not None,
        "since": tool.held.since if tool.held is not None else None,
        "held_hash": tool.held.definition_hash if tool.held is not None else None,
        **(change_fields(tool.held.change) if tool.held is not None else {}),
    }
