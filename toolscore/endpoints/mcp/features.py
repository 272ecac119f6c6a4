"""MCP's methods about prompts, resources, templates and completion."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.core.errors import InvalidArguments
from toolscore.core.jsonrpc import decode, decode_object, encode
from toolscore.core.models import AVAILABLE
from toolscore.core.names import nearest
from toolscore.endpoints.mcp.links import link_shown, named_uris
from toolscore.endpoints.mcp.params import Members, cursor_of, text_of
from toolscore.endpoints.mcp.tools import PAGE_ENTRIES, unavailable
from toolscore.upstreams import Caller, Upstream
from toolscore.upstreams.protocol import CAPABILITY_OF, LISTS

__all__ = ["LIST_SECONDS", "FeatureMethods", "RelayTo", "at_most"]

LIST_SECONDS = 1.0
"""How long a list waits for the servers that must be asked for theirs; after that they are shown as last known."""
RESOURCE_NOT_FOUND = -32002


class RelayTo(Protocol):
    """Puts a request to a server, if its caller may see that server."""

    async def __call__(self, server_id: str, method: str, params: Members, caller: Caller, what: str = "") -> Raw: ...


class FeatureMethods:
    """What the servers of one address have beside tools.

    Args:
        server_id: the only server that is shown, under its own names; `None`: all, under full names.
        relay: puts a request to a server.
    """

    def __init__(self, gateway: Gateway, server_id: str | None, relay: RelayTo) -> None:
        self._gateway = gateway
        self._server_id = server_id
        self._relay = relay

    def shows(self, server_id: str, caller: Caller) -> bool:
        """Whether what a server has beside tools exists for a caller."""
        return self._gateway.permissions.sees_server(caller.principal, server_id)

    async def list_entries(self, kind: str, params: Members, caller: Caller) -> dict[str, Any]:
        """A page of prompts, resources or templates: of all servers whole, and none waits long for another."""
        features = self._gateway.features
        servers = [self._server_id] if self._server_id is not None else features.servers()
        holders = [
            server_id
            for server_id in servers
            if CAPABILITY_OF[kind] in features.capabilities(server_id) and self.shows(server_id, caller)
        ]
        upstreams = [upstream for server_id in holders if (upstream := self._gateway.upstreams.find(server_id))]
        await at_most(LIST_SECONDS, (upstream.read_anew(kind) for upstream in upstreams))
        entries: list[dict[str, Any]] = []
        for server_id in holders:
            found = features.entries(server_id, kind) if self._server_id else features.shown(server_id, kind)
            available = self._gateway.library.state(server_id) in AVAILABLE
            entries.extend(found if available else map(unavailable, found))
        cursor = cursor_of(params)
        try:
            start = int(cursor or 0)
        except ValueError:
            raise InvalidArguments(f"`cursor` {cursor!r:.80} is none of this list's") from None
        page: dict[str, Any] = {LISTS[kind][1]: entries[start : start + PAGE_ENTRIES]}
        if start + PAGE_ENTRIES < len(entries):
            page["nextCursor"] = str(start + PAGE_ENTRIES)
        return page

    async def get_prompt(self, params: Members, caller: Caller) -> Raw:
        name = text_of(params, "name", "prompts/get")
        found = self._gateway.features.find_prompt(name)
        if found is None or not self.shows(found[0], caller):
            names = self._gateway.features.prompt_names()
            known = nearest(name, (full for full, server_id in names.items() if self.shows(server_id, caller)))
            raise InvalidArguments(f"no prompt {name!r}" + (f"; nearest: {', '.join(known)}" if known else ""))
        server_id, own = found
        raw = await self._relay(server_id, "prompts/get", {**params, "name": own}, caller, name)
        if self._server_id is not None or b'"resource' not in memoryview(raw).tobytes():
            return raw
        members = decode_object(raw)
        messages = decode(members["messages"]) if "messages" in members else None
        blocks = [one.get("content") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
        changed = [block for block in blocks if link_shown(self._gateway.features, server_id, block)]
        return Raw(encode({**members, "messages": messages})) if changed else raw

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

    async def read_resource(self, params: Members, caller: Caller) -> Raw:
        uri = text_of(params, "uri", "resources/read")
        server_id, own = self._resource(uri, caller)
        raw = await self._relay(server_id, "resources/read", {**params, "uri": own}, caller, uri)
        if self._server_id is not None:
            return raw
        named = named_uris(raw)
        shown = [one and self._gateway.features.note_link(server_id, one) for one in named]
        if shown == named:
            return raw  # as nearly always: what may be megabytes was looked through for its addresses alone
        members = decode_object(raw)
        contents = decode(members["contents"])
        for content, one in zip(contents, shown, strict=True):
            if one is not None:
                content["uri"] = one
        return Raw(encode({**members, "contents": contents}))

    async def complete(self, params: Members, caller: Caller) -> Raw:
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


async def at_most(seconds: float, waits: Iterable[Awaitable[Any]]) -> None:
    """Wait for all, together no longer than this. What fails is logged where it fails."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
