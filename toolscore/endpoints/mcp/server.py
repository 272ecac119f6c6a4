"""The gateway as an MCP server: the methods, whatever carries them, in both eras of the protocol.

`McpServer` answers for all servers at once, under full names (`/mcp`, the router), or for one of them under its own
(`/servers/{id}/mcp`). Definitions, params and results are relayed as raw JSON; only names and URIs that are shown
differently are rewritten.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from msgspec import Raw

from toolscore import __version__
from toolscore.app.compose import Gateway
from toolscore.calls.deadline import Deadline
from toolscore.core.errors import InvalidArguments, InvalidRequest, MethodNotFound, ToolScoreError
from toolscore.core.jsonrpc import decode, decode_object, encode
from toolscore.core.models import LOCAL
from toolscore.endpoints.mcp.features import LIST_SECONDS, FeatureMethods, at_most
from toolscore.endpoints.mcp.params import Members, text_of, without_token
from toolscore.endpoints.mcp.task_ids import TaskIds
from toolscore.endpoints.mcp.tools import ToolMethods
from toolscore.upstreams import Caller, Upstream
from toolscore.upstreams.caller import LOG_LEVELS
from toolscore.upstreams.protocol import (
    CAPABILITY_OF,
    GATEWAY_KEY,
    LATEST_SESSION_VERSION,
    LATEST_STATELESS_VERSION,
    LISTS,
    META,
    SESSION_VERSIONS,
)

__all__ = ["MISSING_CLIENT_CAPABILITY", "WATCHING", "McpServer"]

START_SECONDS = 15.0
"""How long a client of one server waits for that server to come up, so that it can be told what there is."""

WATCHING = frozenset({"resources/subscribe", "resources/unsubscribe"})
SESSION_ONLY = frozenset({"initialize", "ping", "logging/setLevel"}) | WATCHING
STATELESS_ONLY = frozenset({"server/discover", "subscriptions/listen"})

CACHEABLE = frozenset(
    {"server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"}
)
"""Methods whose results say for how long they hold (revision 2026-07-28, caching)."""

TASKS = "io.modelcontextprotocol/tasks"
UI = "io.modelcontextprotocol/ui"
TASK_METHODS = frozenset({"tasks/get", "tasks/update", "tasks/cancel", "tasks/result"})

KIND_OF = {method: kind for kind, (method, _, _) in LISTS.items()}
MAX_METHOD = 200
MISSING_CLIENT_CAPABILITY = -32021

INSTRUCTIONS = (
    "ToolScore: one address for many MCP servers. Tools and prompts are named server__name; one whose `_meta` says "
    "`toolscore/available: false` is known, but its server is not connected at the moment."
)


class McpServer:
    """MCP's methods over the gateway's pipeline. Holds no state of any client."""

    def __init__(self, gateway: Gateway, server_id: str | None = None) -> None:
        self._gateway = gateway
        self._server_id = server_id
        self._whose = {GATEWAY_KEY: gateway.upstreams.identity}
        self._task_ids = TaskIds(gateway.ring, server_id)
        self._tools = ToolMethods(gateway, server_id, self._task_ids)
        self._features = FeatureMethods(gateway, server_id, self._relay)

    # What there is

    def covers(self, server_id: str) -> bool:
        """Whether this address shows a server."""
        return self._server_id in (None, server_id)

    @property
    def info(self) -> dict[str, Any]:
        """The `Implementation` to show: one server's own, as it gave it."""
        known = self._gateway.features.info(self._server_id) if self._server_id is not None else None
        if known is not None and known.implementation:
            return known.implementation
        return {"name": self._server_id or "toolscore", "version": __version__}

    @property
    def capabilities(self) -> dict[str, Any]:
        """`ServerCapabilities`: what the servers have, and no more."""
        features = self._gateway.features
        if self._server_id is not None:
            own = dict(features.capabilities(self._server_id))
            if "tools" in own or not own:
                own["tools"] = {"listChanged": True}
            return own
        found: dict[str, Any] = {"tools": {"listChanged": True}}
        for server_id in features.servers():
            offered = features.capabilities(server_id)
            for feature in ("prompts", "resources"):
                if feature in offered:
                    found.setdefault(feature, {})["listChanged"] = True
            if isinstance(offered.get("resources"), dict) and offered["resources"].get("subscribe"):
                found["resources"]["subscribe"] = True
            for feature in ("completions", "logging"):
                if feature in offered:
                    found[feature] = {}
            extensions = offered.get("extensions")
            if isinstance(extensions, dict):
                for name in (TASKS, UI):
                    if name in extensions:
                        found.setdefault("extensions", {})[name] = {}
        return found

    async def initialize(self, params: Members) -> dict[str, Any]:
        """Open a session: the client's revision where we speak it, else our newest (lifecycle: version negotiation)."""
        wanted = decode(params["protocolVersion"]) if "protocolVersion" in params else None
        await self._known()
        result: dict[str, Any] = {
            "protocolVersion": wanted if wanted in SESSION_VERSIONS else LATEST_SESSION_VERSION,
            "capabilities": self.capabilities,
            "serverInfo": self.info,
            "_meta": self._whose,
        }
        return self._with_instructions(result)

    async def _discover(self) -> dict[str, Any]:
        """`server/discover` of the stateless era. We speak the session era too, and say so."""
        await self._known()
        versions = [LATEST_STATELESS_VERSION, *reversed(SESSION_VERSIONS)]
        return self._with_instructions(
            {"supportedVersions": versions, "capabilities": self.capabilities, "_meta": self._whose}
        )

    def _with_instructions(self, result: dict[str, Any]) -> dict[str, Any]:
        instructions: str | None = INSTRUCTIONS
        if self._server_id is not None:
            known = self._gateway.features.info(self._server_id)
            instructions = known.instructions if known is not None else None
        return {**result, "instructions": instructions} if instructions else result

    async def _known(self) -> None:
        """Wait, for a while, until the one server has said what it has."""
        if self._server_id is None or self._gateway.features.info(self._server_id) is not None:
            return
        upstream = self._gateway.upstreams.find(self._server_id)
        if upstream is not None:
            with contextlib.suppress(TimeoutError, ToolScoreError), Deadline(START_SECONDS):
                await upstream.wait_up()

    # Requests

    def handle(self, method: str, params: Members, caller: Caller, *, request_id: str) -> Coroutine[Any, Any, Any]:
        """Answer one request, `initialize` and `subscriptions/listen` apart, which belong to the connection.

        Args:
            params: from `read_params`; taken apart here.

        Raises:
            ToolScoreError (awaiting it): on the wire its `rpc_error()`.
        """
        if caller.stateless:
            return self._handle_stateless(method, params, caller, request_id)
        return self._carry_out(method, params, caller, request_id)

    def _carry_out(self, method: str, params: Members, caller: Caller, request_id: str) -> Coroutine[Any, Any, Any]:
        if method == "tools/call":
            return self._tools.call_tool(params, caller, request_id)
        return self._handle(method, params, caller)

    async def _handle_stateless(self, method: str, params: Members, caller: Caller, request_id: str) -> Any:
        if method in SESSION_ONLY:
            raise MethodNotFound(f"method not found: {method}")
        task = asyncio.current_task()
        missing: list[dict[str, Any]] = []

        def refused(required: dict[str, Any]) -> None:
            # A server of the session era asked what this client cannot be asked: the request cannot go on.
            missing.append(required)
            if task is not None and len(missing) == 1:
                task.cancel()

        caller.refused = refused
        try:
            return self._stateless(method, await self._carry_out(method, params, caller, request_id))
        except asyncio.CancelledError:
            if not missing or task is None or task.uncancel():
                raise
            needed = f"the server needs a client with {next(iter(missing[0]))}"
            data = {"requiredCapabilities": missing[0]}
            error = {"code": MISSING_CLIENT_CAPABILITY, "message": needed, "data": data}
            raise InvalidRequest(needed, upstream_error=error) from None

    async def _handle(self, method: str, params: Members, caller: Caller) -> Any:
        if method == "tools/list" and (self._server_id is None or "tools" in self.capabilities):
            return self._tools.list_tools(params, caller)
        if method == "server/discover" and caller.stateless:
            return await self._discover()
        if method == "ping":
            return {}
        if not (method.isascii() and method.isprintable() and len(method) <= MAX_METHOD):
            raise MethodNotFound(f"method not found: {method[:80]!r}")
        await self._known()
        kind = KIND_OF.get(method)
        if kind is not None:
            self._need(CAPABILITY_OF[kind], method)
            return await self._features.list_entries(kind, params, caller)
        if method in WATCHING:
            raise InvalidRequest(f"{method} needs a session: initialize first")
        if method == "logging/setLevel":
            self._need("logging", method)
            return await self._set_level(params, caller)
        if method.startswith("resources/"):
            self._need("resources", method)
        if method in TASK_METHODS and (self._server_id is not None or TASKS in self.capabilities.get("extensions", {})):
            return await self._ask_of_task(method, params, caller)
        if method == "tasks/list" and caller.principal != LOCAL:
            raise MethodNotFound("method not found: tasks/list: a server tells the tasks of all callers")
        if self._server_id is not None and method not in STATELESS_ONLY:
            return await self._relay(self._server_id, method, params, caller)
        if method == "prompts/get":
            return await self._features.get_prompt(params, caller)
        if method == "resources/read":
            return await self._features.read_resource(params, caller)
        if method == "completion/complete":
            self._need("completions", method)
            return await self._features.complete(params, caller)
        raise MethodNotFound(f"method not found: {method}")

    async def _ask_of_task(self, method: str, params: Members, caller: Caller) -> Raw:
        shown = text_of(params, "taskId", method)
        server_id, task_id = self._task_ids.meant(shown, caller.principal)
        if self._server_id is None and TASKS not in (
            self._gateway.features.capabilities(server_id).get("extensions") or {}
        ):
            raise InvalidArguments(f"no task {server_id!r:.200} was begun here: its id is server/task")
        result = await self._relay(server_id, method, {**params, "taskId": Raw(encode(task_id))}, caller)
        return self._task_ids.told(result, task_id, shown)

    def _need(self, feature: str, method: str) -> None:
        if feature not in self.capabilities:
            raise MethodNotFound(f"method not found: {method}: no server here has {feature}")

    def _stateless(self, method: str, result: Any) -> Any:
        """Add what every result of the stateless era carries, unless the server said it already."""
        members: Members = dict(decode_object(result) if isinstance(result, Raw) else result)
        if isinstance(result, Raw) and "resultType" in members:
            return result
        members.setdefault("resultType", "complete")
        if method in CACHEABLE:
            members.setdefault("ttlMs", 0)
            members.setdefault("cacheScope", "private")
        meta = members.get("_meta")
        known: Members = dict(decode_object(meta) if isinstance(meta, Raw) else meta or {})
        known.setdefault(f"{META}serverInfo", self.info)
        members["_meta"] = known
        return members

    def shows(self, server_id: str, caller: Caller) -> bool:
        """Whether what a server has beside tools exists for a caller."""
        return self._features.shows(server_id, caller)

    def resolve_uri(self, uri: str, caller: Caller) -> tuple[Upstream, str]:
        """The server of a resource that a client wants to hear of, and the server's own URI.

        Raises:
            InvalidArguments, ServerNotFound.
        """
        return self._features.resolve_uri(uri, caller)

    def shown_uri(self, server_id: str, uri: str) -> str:
        """A server's URI as this address shows it."""
        return self._features.shown_uri(server_id, uri)

    async def _relay(self, server_id: str, method: str, params: Members, caller: Caller, what: str = "") -> Raw:
        if not self.shows(server_id, caller):
            raise MethodNotFound(f"method not found: {method}")
        return await self._gateway.relay.relay(
            server_id,
            method,
            without_token(params) or None,
            what=what or method,
            caller=caller,
            safe_to_repeat=method in ("prompts/get", "resources/read", "completion/complete"),
        )

    # Logging

    async def _set_level(self, params: Members, caller: Caller) -> dict[str, Any]:
        level = text_of(params, "level", "logging/setLevel")
        if level not in LOG_LEVELS:
            raise InvalidArguments(f"`level` must be one of {', '.join(LOG_LEVELS)}, found {level!r:.80}")
        caller.home.log_level = caller.log_level = level
        await at_most(
            LIST_SECONDS,
            (upstream.hear(level) for upstream in self._gateway.upstreams if self.covers(upstream.server_id)),
        )
        return {}
