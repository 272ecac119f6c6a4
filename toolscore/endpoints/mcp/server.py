"""The gateway as an MCP server: the methods, whatever carries them, in both eras of the protocol.

`McpServer` answers for all servers at once, under full names (`/mcp`, the router), or for one of them under its own
(`/servers/{id}/mcp`). Definitions, params and results are relayed as raw JSON; only names and URIs that are shown
differently are rewritten.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Raw

from toolscore import __version__
from toolscore.app.gateway import LIST_CHANGED, Gateway
from toolscore.calls.deadline import Deadline
from toolscore.core.errors import InvalidArguments, InvalidRequest, MethodNotFound, ToolNotFound, ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode, decode_object, encode
from toolscore.core.models import Principal, Tool, ToolCall
from toolscore.core.names import nearest
from toolscore.discovery.own_tools import CALL_TOOL, OWN_SERVER
from toolscore.discovery.search.fitting import fitted
from toolscore.tools.library import Sees
from toolscore.upstreams import Caller, Upstream
from toolscore.upstreams.caller import LOG_LEVELS
from toolscore.upstreams.protocol import (
    CAPABILITY_OF,
    LATEST_SESSION_VERSION,
    LATEST_STATELESS_VERSION,
    LISTS,
    META,
    SESSION_VERSIONS,
)

__all__ = [
    "MISSING_CLIENT_CAPABILITY",
    "WATCHING",
    "Listener",
    "McpServer",
    "Members",
    "open_listener",
    "read_params",
    "watch_resource",
]

Members = dict[str, Any]

PAGE_ENTRIES = 1000
"""Most clients want the whole list at once; a longer one comes in pages."""

LIST_SECONDS = 1.0
"""How long a list waits for the servers that must be asked for theirs; after that they are shown as last known."""

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
TASK_METHODS = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})

KIND_OF = {method: kind for kind, (method, _, _) in LISTS.items()}
MAX_METHOD = 200
RESOURCE_NOT_FOUND = -32002
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
        self._pages: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
        self._listed: dict[Sees | None, frozenset[str]] = {}

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
            if isinstance(extensions, dict) and TASKS in extensions:
                found["extensions"] = {TASKS: {}}
        return found

    async def initialize(self, params: Members) -> dict[str, Any]:
        """Open a session: the client's revision where we speak it, else our newest (lifecycle: version negotiation)."""
        wanted = decode(params["protocolVersion"]) if "protocolVersion" in params else None
        await self._known()
        result: dict[str, Any] = {
            "protocolVersion": wanted if wanted in SESSION_VERSIONS else LATEST_SESSION_VERSION,
            "capabilities": self.capabilities,
            "serverInfo": self.info,
        }
        return self._with_instructions(result)

    async def _discover(self) -> dict[str, Any]:
        """`server/discover` of the stateless era. We speak the session era too, and say so."""
        await self._known()
        versions = [LATEST_STATELESS_VERSION, *reversed(SESSION_VERSIONS)]
        return self._with_instructions({"supportedVersions": versions, "capabilities": self.capabilities})

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

    async def handle(self, method: str, params: Members, caller: Caller, *, request_id: str) -> Any:
        """Answer one request, `initialize` and `subscriptions/listen` apart, which belong to the connection.

        Args:
            params: from `read_params`; taken apart here.

        Raises:
            ToolScoreError: on the wire its `rpc_error()`.
        """
        if not caller.stateless:
            return await self._handle(method, params, caller, request_id)
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
            return self._stateless(method, await self._handle(method, params, caller, request_id))
        except asyncio.CancelledError:
            if not missing or task is None or task.uncancel():
                raise
            needed = f"the server needs a client with {next(iter(missing[0]))}"
            data = {"requiredCapabilities": missing[0]}
            error = {"code": MISSING_CLIENT_CAPABILITY, "message": needed, "data": data}
            raise InvalidRequest(needed, upstream_error=error) from None

    async def _handle(self, method: str, params: Members, caller: Caller, request_id: str) -> Any:
        if method == "tools/call":
            return await self._call_tool(params, caller, request_id)
        if method == "tools/list" and (self._server_id is None or "tools" in self.capabilities):
            return self._list_tools(params, caller)
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
            return await self._list(kind, params, caller)
        if method in WATCHING:
            raise InvalidRequest(f"{method} needs a session: initialize first")
        if method == "logging/setLevel":
            self._need("logging", method)
            return await self._set_level(params, caller)
        if method.startswith("resources/"):
            self._need("resources", method)
        if self._server_id is not None and method not in STATELESS_ONLY:
            return await self._relay(self._server_id, method, params, caller)
        if method == "prompts/get":
            return await self._get_prompt(params, caller)
        if method == "resources/read":
            return await self._read_resource(params, caller)
        if method == "completion/complete":
            return await self._complete(params, caller)
        if method in TASK_METHODS and TASKS in self.capabilities.get("extensions", {}):
            server_id, _, task_id = _text(params, "taskId", method).partition("/")
            if TASKS not in (self._gateway.features.capabilities(server_id).get("extensions") or {}):
                raise InvalidArguments(f"no task {server_id!r} was begun here: its id is server/task")
            return _task_shown(server_id, await self._relay(server_id, method, {**params, "taskId": task_id}, caller))
        raise MethodNotFound(f"method not found: {method}")

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
        return self._gateway.pipeline.policy.sees_server(caller.principal, server_id)

    async def _relay(self, server_id: str, method: str, params: Members, caller: Caller, what: str = "") -> Raw:
        if not self.shows(server_id, caller):
            raise MethodNotFound(f"method not found: {method}")
        meta = params.get("_meta")
        if meta is not None:
            meta.pop("progressToken", None)  # the client's own: the connection to the server sets another
        return await self._gateway.pipeline.relay(
            server_id,
            method,
            params or None,
            what=what or method,
            principal=caller.principal,
            caller=caller,
            safe_to_repeat=method in ("prompts/get", "resources/read", "completion/complete"),
        )

    # Tools

    def _list_tools(self, params: Members, caller: Caller) -> dict[str, Any]:
        """A page of the library, encoded once for as long as the library stands, for all who see the same."""
        cursor = _cursor(params)
        library = self._gateway.library
        sees = self._gateway.pipeline.sees(caller.principal)
        discovery = self._gateway.settings.current.discovery
        key = (cursor or "", sees, discovery.list_tokens, discovery.always_listed)
        generation, page = self._pages.get(key, (-1, {}))
        if generation != library.generation:
            if discovery.list_tokens is not None and self._server_id is None:
                tools, after = self._fitted(discovery.list_tokens, discovery.always_listed, sees), None
            else:
                tools, after = library.page(cursor=cursor, limit=PAGE_ENTRIES, server_id=self._server_id, sees=sees)
            page = {"tools": Raw(encode([self._shown(tool) for tool in tools]))}
            if after is not None:
                page["nextCursor"] = after
            if len(self._pages) > 100:
                self._pages.clear()  # cursors are the client's to choose
            self._pages[key] = (library.generation, page)
        return page

    def _fitted(self, budget: int, always: tuple[str, ...], sees: Sees | None) -> list[Tool]:
        """The tools that fit into a budget; the gateway's own among them, by which the others are found."""
        library, scores = self._gateway.library, self._gateway.pipeline.scores
        if len(self._listed) > 100:
            self._listed.clear()
        tools = fitted(
            (tool for tool in library if sees is None or sees(tool)),
            budget,
            tokens=library.tokens,
            score=lambda tool: scores.of(tool).value,
            always=(f"{OWN_SERVER}__*", *always),
            before=self._listed.get(sees, frozenset()),
        )
        self._listed[sees] = frozenset(tool.tool_id for tool in tools)
        return tools

    def _shown(self, tool: Tool) -> dict[str, Any]:
        definition = tool.definition if self._server_id else {**tool.definition, "name": tool.tool_id}
        if not isinstance(definition.get("inputSchema"), dict):
            definition = {**definition, "inputSchema": {"type": "object"}}
        return definition if self._gateway.library.available(tool) else _unavailable(definition)

    async def _call_tool(self, members: Members, caller: Caller, request_id: str) -> Raw:
        """`tools/call`. Wrong arguments are a result with `isError`, as MCP asks; so the model can mend them."""
        name = decode(members.pop("name")) if "name" in members else None
        if not isinstance(name, str):
            raise InvalidArguments("tools/call needs `name`, the tool's name, as a string")
        if name == f"{OWN_SERVER}__{CALL_TOOL}" and self._server_id is None:
            name = self._means(name, members, caller)
        meta = members.get("_meta")
        if meta is not None:
            meta.pop("progressToken", None)  # the client's own: the connection to the server sets another
        call = ToolCall(
            tool_id=name,
            arguments=members.pop("arguments", Raw(b"{}")),
            request_id=request_id,
            extra=members or None,
            server_id=self._server_id,
        )
        try:
            result = await self._gateway.pipeline.call(call, caller.principal, caller=caller)
        except ToolNotFound as exc:
            exc.message = f"{exc.message}; {exc.suggestion}" if exc.suggestion else exc.message
            raise
        except InvalidArguments as exc:
            if exc.upstream_error is not None:
                raise
            text = f"{exc.message}. {exc.suggestion[:1].upper()}{exc.suggestion[1:]}" if exc.suggestion else exc.message
            return Raw(encode({"content": [{"type": "text", "text": text}], "isError": True}))
        if self._server_id is None:
            content = memoryview(result.content).tobytes()
            if content == b"[]":
                return _task_shown(result.tool.server_id, result.raw)
            if b'"resource' in content:
                return self._links_shown(result.tool.server_id, result.raw)
        return result.raw

    def _means(self, name: str, members: Members, caller: Caller) -> str:
        """The tool that a call through `call_tool` is for, called as if the client had named it: progress, questions
        and cancellation go their usual way. Arguments that do not fit are left to the pipeline to refuse.
        """
        sees = self._gateway.pipeline.sees(caller.principal)
        if self._gateway.library.find(name, sees) is None:
            return name
        given = decode(members.get("arguments", Raw(b"{}")))
        if not isinstance(given, dict) or not given.keys() <= {"tool_id", "parameters"}:
            return name
        tool_id, parameters = given.get("tool_id"), given.get("parameters", {})
        if not isinstance(tool_id, str) or tool_id == name or not isinstance(parameters, dict):
            return name
        members["arguments"] = Raw(encode(parameters))
        return tool_id

    def _links_shown(self, server_id: str, raw: Raw) -> Raw:
        """A result with the URIs of its resources as they are shown here."""
        members = decode_object(raw)
        blocks: list[Any] = []
        changed = False
        for block in decode(members["content"]):
            holder = block.get("resource") if block.get("type") == "resource" else block
            if block.get("type") in ("resource", "resource_link") and isinstance(holder, dict):
                uri = holder.get("uri")
                if isinstance(uri, str):
                    shown = self._gateway.features.note_link(server_id, uri)
                    changed |= shown != uri
                    holder["uri"] = shown
            blocks.append(block)
        return Raw(encode({**members, "content": blocks})) if changed else raw

    # Prompts, resources, completion

    async def _list(self, kind: str, params: Members, caller: Caller) -> dict[str, Any]:
        """A page of prompts, resources or templates: of all servers whole, and none waits long for another."""
        features = self._gateway.features
        servers = [self._server_id] if self._server_id is not None else features.servers()
        holders = [
            server_id
            for server_id in servers
            if CAPABILITY_OF[kind] in features.capabilities(server_id) and self.shows(server_id, caller)
        ]
        upstreams = [upstream for server_id in holders if (upstream := self._gateway.upstreams.find(server_id))]
        await _at_most(LIST_SECONDS, (upstream.read_anew(kind) for upstream in upstreams))
        entries: list[dict[str, Any]] = []
        for server_id in holders:
            found = features.entries(server_id, kind) if self._server_id else features.shown(server_id, kind)
            available = self._gateway.library.state(server_id) in ("up", "idle")
            entries.extend(found if available else map(_unavailable, found))
        cursor = _cursor(params)
        try:
            start = int(cursor or 0)
        except ValueError:
            raise InvalidArguments(f"`cursor` {cursor!r:.80} is none of this list's") from None
        page: dict[str, Any] = {LISTS[kind][1]: entries[start : start + PAGE_ENTRIES]}
        if start + PAGE_ENTRIES < len(entries):
            page["nextCursor"] = str(start + PAGE_ENTRIES)
        return page

    async def _get_prompt(self, params: Members, caller: Caller) -> Raw:
        name = _text(params, "name", "prompts/get")
        found = self._gateway.features.find_prompt(name)
        if found is None or not self.shows(found[0], caller):
            names = self._gateway.features.prompt_names()
            known = nearest(name, (full for full, server_id in names.items() if self.shows(server_id, caller)))
            raise InvalidArguments(f"no prompt {name!r}" + (f"; nearest: {', '.join(known)}" if known else ""))
        server_id, own = found
        return await self._relay(server_id, "prompts/get", {**params, "name": own}, caller, name)

    def _resource(self, uri: str, caller: Caller) -> tuple[str, str]:
        found = self._gateway.features.find_resource(uri)
        if found is None or not self.shows(found[0], caller):
            error = {
                "code": -32602 if caller.stateless else RESOURCE_NOT_FOUND,
                "message": f"Resource not found: {uri}",
                "data": {"uri": uri},
            }
            raise InvalidArguments(f"resource not found: {uri}", upstream_error=error)
        return found

    async def _read_resource(self, params: Members, caller: Caller) -> Raw:
        uri = _text(params, "uri", "resources/read")
        server_id, own = self._resource(uri, caller)
        raw = await self._relay(server_id, "resources/read", {**params, "uri": own}, caller, uri)
        if own == uri:
            return raw
        members = decode_object(raw)
        contents = decode(members["contents"]) if "contents" in members else []
        for content in contents:
            if isinstance(content, dict) and isinstance(content.get("uri"), str):
                content["uri"] = self._gateway.features.shown_uri(server_id, content["uri"])
        return Raw(encode({**members, "contents": contents}))

    async def _complete(self, params: Members, caller: Caller) -> Raw:
        self._need("completions", "completion/complete")
        ref = decode(params["ref"]) if "ref" in params else None
        if not isinstance(ref, dict):
            raise InvalidArguments("completion/complete needs `ref`, an object")
        if ref.get("type") == "ref/prompt":
            found = self._gateway.features.find_prompt(str(ref.get("name")))
            if found is None or not self.shows(found[0], caller):
                raise InvalidArguments(f"no prompt {ref.get('name')!r}")
            server_id, ref["name"] = found
        else:
            server_id, ref["uri"] = self._resource(str(ref.get("uri")), caller)
        return await self._relay(server_id, "completion/complete", {**params, "ref": ref}, caller)

    def resolve_uri(self, uri: str, caller: Caller) -> tuple[Upstream, str]:
        """The server of a resource that a client wants to hear of, and the server's own URI.

        Raises:
            InvalidArguments, ServerNotFound.
        """
        server_id, own = (self._server_id, uri) if self._server_id is not None else self._resource(uri, caller)
        if not self.shows(server_id, caller):
            raise InvalidArguments(f"no resource {uri!r}")
        return self._gateway.upstreams.get(server_id), own

    def shown_uri(self, server_id: str, uri: str) -> str:
        return uri if self._server_id is not None else self._gateway.features.shown_uri(server_id, uri)

    # Logging

    async def _set_level(self, params: Members, caller: Caller) -> dict[str, Any]:
        level = _text(params, "level", "logging/setLevel")
        if level not in LOG_LEVELS:
            raise InvalidArguments(f"`level` must be one of {', '.join(LOG_LEVELS)}, found {level!r:.80}")
        caller.home.log_level = caller.log_level = level
        await _at_most(
            LIST_SECONDS,
            (upstream.hear(level) for upstream in self._gateway.upstreams if self.covers(upstream.server_id)),
        )
        return {}


class Listener:
    """What one client hears of changes: a session, or one stream of `subscriptions/listen`.

    Args:
        tell: takes a method and its params (`None` or a dict); never waits.
        on_close: called when the gateway shuts down.
        wanted: features whose lists matter, of `LIST_CHANGED`; `None`: all that are advertised.
        messages: whether it also hears what servers say to nobody in particular, such as log messages.
    """

    def __init__(
        self,
        gateway: Gateway,
        server: McpServer,
        caller: Caller,
        tell: Callable[[str, Any], None],
        on_close: Callable[[], None],
        *,
        wanted: Iterable[str] | None = None,
        messages: bool = True,
    ) -> None:
        self._server = server
        self._caller = caller
        self._tell = tell
        self._wanted = frozenset(wanted if wanted is not None else LIST_CHANGED)
        self._messages = messages
        self._upstreams = gateway.upstreams
        self._watched: dict[str, tuple[str, str]] = {}
        self._stop = gateway.changes.listen(self._changed, on_close)

    async def watch(self, uri: str) -> None:
        """Hear of a resource's changes.

        Raises:
            ToolScoreError: it cannot be.
        """
        if uri in self._watched:
            return
        if len(self._watched) >= MAX_WATCHED:
            raise InvalidRequest(f"{MAX_WATCHED} resources are watched: unsubscribe from some")
        upstream, own = self._server.resolve_uri(uri, self._caller)
        try:
            await upstream.watch(own, self._caller)
        except RemoteError as exc:
            raise InvalidArguments(f"{upstream.server_id} does not watch {uri}", upstream_error=exc.error) from exc
        except ConnectionLost as exc:
            raise InvalidArguments(f"{upstream.server_id} cannot be reached: {exc.reason}") from exc
        self._watched[uri] = (upstream.server_id, own)

    async def unwatch(self, uri: str) -> None:
        """Hear of it no more."""
        watched = self._watched.pop(uri, None)
        upstream = self._upstreams.find(watched[0]) if watched is not None else None
        if watched is not None and upstream is not None:
            await upstream.unwatch(watched[1], self._caller)

    def close(self) -> None:
        """Hear of nothing. Idempotent. Servers are told in the background: the client need not wait for them."""
        self._stop()
        for server_id, own in self._watched.values():
            upstream = self._upstreams.find(server_id)
            if upstream is not None:
                task = asyncio.create_task(upstream.unwatch(own, self._caller))
                _closing.add(task)
                task.add_done_callback(_closing.discard)
        self._watched.clear()

    def _changed(self, server_id: str, method: str, params: Raw | None) -> None:
        if not (self._server.covers(server_id) and self._server.shows(server_id, self._caller)):
            return
        feature = LIST_OF.get(method)
        if feature is not None:
            if feature in self._wanted and feature in self._server.capabilities:
                self._tell(method, None)
        elif method == "notifications/resources/updated":
            self.resource_updated(server_id, params)
        elif self._messages and method in TO_ALL:
            self._caller.home.notify(method, params)

    def resource_updated(self, server_id: str, params: Raw | None) -> None:
        """A server told of a change: pass it on if it is of a resource that is watched, or of a part of one."""
        members: Members = dict(decode_object(params)) if params is not None else {}
        uri = decode(members["uri"]) if "uri" in members else None
        if not isinstance(uri, str):
            return
        for holder, own in self._watched.values():
            if holder == server_id and (uri == own or uri.startswith(f"{own.rstrip('/')}/")):
                self._tell("notifications/resources/updated",
                           {**members, "uri": self._server.shown_uri(server_id, uri)})  # fmt: skip
                return


_closing: set[asyncio.Task[None]] = set()


async def watch_resource(listener: Listener, method: str, params: Members) -> None:
    """Carry out `resources/subscribe` or `resources/unsubscribe` of a session.

    Raises:
        ToolScoreError: it cannot be.
    """
    uri = _text(params, "uri", method)
    await (listener.watch(uri) if method == "resources/subscribe" else listener.unwatch(uri))


MAX_WATCHED = 1000
LIST_OF = {method: feature for feature, method in LIST_CHANGED.items()}
TO_ALL = frozenset({"notifications/message", "notifications/elicitation/complete"})
"""What a server may say to nobody in particular."""


async def open_listener(
    gateway: Gateway,
    server: McpServer,
    params: Members,
    meta: dict[str, Any],
    tell: Callable[[str, dict[str, Any]], None],
    on_close: Callable[[], None],
    principal: Principal,
) -> Listener:
    """Serve `subscriptions/listen` (2026-07-28): acknowledge what will be told, then tell it.

    Args:
        params: the request's.
        meta: stands in each notification, so that the client can tell the stream.
    """
    wanted = decode(params["notifications"]) if "notifications" in params else {}
    wanted = wanted if isinstance(wanted, dict) else {}
    features = [feature for feature in LIST_CHANGED if wanted.get(f"{feature}ListChanged") is True]
    features = [feature for feature in features if feature in server.capabilities]
    honored: dict[str, Any] = {f"{feature}ListChanged": True for feature in features}
    acknowledged = False
    early: list[str] = []

    def told(method: str, changed: dict[str, Any] | None) -> None:
        if acknowledged:
            tell(method, {**(changed or {}), "_meta": meta})
        elif changed is None:
            early.append(method)

    caller = Caller(principal)
    listener = Listener(gateway, server, caller, told, on_close, wanted=features, messages=False)
    uris = wanted.get("resourceSubscriptions")
    try:
        for uri in uris[:MAX_WATCHED] if isinstance(uris, list) else ():
            with contextlib.suppress(ToolScoreError):
                await listener.watch(str(uri))
                honored.setdefault("resourceSubscriptions", []).append(uri)
    except BaseException:  # the client left meanwhile
        listener.close()
        raise
    tell("notifications/subscriptions/acknowledged", {"notifications": honored, "_meta": meta})
    acknowledged = True
    for method in early:
        told(method, None)
    return listener


def _task_shown(server_id: str, raw: Raw) -> Raw:
    """A result that is a task (or is none), with the task's id as it is shown where all servers are: `server/task`."""
    members = decode_object(raw)
    if "taskId" not in members:
        return raw
    return Raw(encode({**members, "taskId": f"{server_id}/{decode(members['taskId'])}"}))


def _unavailable(entry: dict[str, Any]) -> dict[str, Any]:
    meta = entry.get("_meta")
    return {**entry, "_meta": {**(meta if isinstance(meta, dict) else {}), "toolscore/available": False}}


async def _at_most(seconds: float, waits: Iterable[Any]) -> None:
    """Wait for all, together no longer than this. What fails is logged where it fails."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _cursor(params: Members) -> str | None:
    cursor = decode(params["cursor"]) if "cursor" in params else None
    if cursor is not None and not isinstance(cursor, str):
        raise InvalidArguments(f"`cursor` must be a string, found {cursor!r:.80}")
    return cursor


def _text(params: Members, member: str, method: str) -> str:
    value = decode(params[member]) if member in params else None
    if not isinstance(value, str):
        raise InvalidArguments(f"{method} needs `{member}`, a string")
    return value


def read_params(params: Raw | None) -> Members:
    """A request's params, each member raw; `_meta`, where there is one, as a dict of raw members.

    Raises:
        InvalidRequest: params or `_meta` is no object.
    """
    if params is None:
        return {}
    members: Members = dict(decode_object(params))
    if "_meta" in members:
        if bytes(members["_meta"]) == b"null":
            del members["_meta"]
        else:
            members["_meta"] = decode_object(members["_meta"])
    return members
