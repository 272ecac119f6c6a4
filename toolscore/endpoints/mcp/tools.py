"""MCP's methods about tools: listing and calling."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.calls import Call
from toolscore.core.errors import InvalidArguments, ToolNotFound
from toolscore.core.jsonrpc import decode, decode_object, encode
from toolscore.core.memo import Memo
from toolscore.core.models import Sees, Tool
from toolscore.discovery.own_tools import CALL_TOOL, OWN_SERVER
from toolscore.discovery.search.fitting import fitted
from toolscore.endpoints.mcp.links import link_shown
from toolscore.endpoints.mcp.params import Members, cursor_of, without_token
from toolscore.endpoints.mcp.task_ids import TaskIds
from toolscore.tools.mending import says_object, without_output
from toolscore.upstreams import Caller

__all__ = ["PAGE_ENTRIES", "ToolMethods", "unavailable"]

PAGE_ENTRIES = 1000
"""Most clients want the whole list at once; a longer one comes in pages."""
NO_ARGUMENTS = Raw(b"{}")
MAX_PAGES = 100
"""Pages that are kept encoded: cursors are the client's to choose."""


CACHE = "toolscore/cache"
"""In a request's `_meta`: `false` asks the server, even if a result is kept. In a result's: how old that is."""


class ToolMethods:
    """The tools of one address.

    Args:
        server_id: the only server that is shown, under its own names; `None`: all, under full names.
        task_ids: of the same address.
    """

    def __init__(self, gateway: Gateway, server_id: str | None, task_ids: TaskIds) -> None:
        self._gateway = gateway
        self._server_id = server_id
        self._task_ids = task_ids
        self._pages: Memo[tuple[Any, ...], tuple[int, dict[str, Any]]] = Memo(MAX_PAGES)
        self._listed: Memo[Sees | None, frozenset[str]] = Memo(MAX_PAGES)

    def list_tools(self, params: Members, caller: Caller) -> dict[str, Any]:
        """A page of the library, encoded once for as long as the library stands, for all who see the same."""
        self._gateway.upstreams.tools_are_listed()
        cursor = cursor_of(params)
        library = self._gateway.library
        sees = self._gateway.permissions.sees(caller.principal)
        discovery = self._gateway.settings.current.discovery
        features = self._gateway.features
        form = (caller.stateless, features.generation)
        key = (cursor or "", sees, discovery.list_tokens, discovery.always_listed, form)
        generation, page = self._pages.get(key, (-1, {}))
        if generation != library.generation:
            if discovery.list_tokens is not None and self._server_id is None:
                tools, after = self._fitted(discovery.list_tokens, discovery.always_listed, sees), None
            else:
                tools, after = library.page(cursor=cursor, limit=PAGE_ENTRIES, server_id=self._server_id, sees=sees)
            page = {"tools": Raw(encode([self._shown(tool, caller.stateless) for tool in tools]))}
            if after is not None:
                page["nextCursor"] = after
            if cursor is None or any(one.get("nextCursor") == cursor for _, one in self._pages.values()):
                self._pages[key] = (library.generation, page)  # a client may make up any number of other cursors
        return page

    def _fitted(self, budget: int, always: tuple[str, ...], sees: Sees | None) -> list[Tool]:
        """The tools that fit into a budget; the gateway's own among them, by which the others are found."""
        library, scores = self._gateway.library, self._gateway.scores
        tools = fitted(
            (tool for tool in library if sees is None or sees(tool)),
            budget,
            tokens=library.schemas.tokens,
            score=lambda tool: scores.of(tool).value,
            always=(f"{OWN_SERVER}__*", *always),
            before=self._listed.get(sees, frozenset()),
        )
        self._listed[sees] = frozenset(tool.tool_id for tool in tools)
        return tools

    def _shown(self, tool: Tool, stateless: bool) -> dict[str, Any]:
        if self._server_id:
            definition = tool.definition
            if not isinstance(definition.get("inputSchema"), dict):
                definition = {**definition, "inputSchema": {"type": "object"}}
        else:
            definition = {**self._gateway.library.schemas.mended(tool)[0], "name": tool.tool_id}
            if isinstance(definition.get("_meta"), dict):
                definition["_meta"] = self._with_its_page(tool.server_id, definition["_meta"])
        if not stateless and "outputSchema" in definition and not says_object(definition):
            definition = without_output(definition)
        return definition if self._gateway.library.available(tool) else unavailable(definition)

    def _with_its_page(self, server_id: str, meta: dict[str, Any]) -> dict[str, Any]:
        """A tool's `_meta`, in which the page that shows its results (MCP Apps) has the address that it has here."""
        features = self._gateway.features
        ui, flat = meta.get("ui"), meta.get("ui/resourceUri")
        if isinstance(ui, dict) and isinstance(ui.get("resourceUri"), str):
            meta = {**meta, "ui": {**ui, "resourceUri": features.note_link(server_id, ui["resourceUri"])}}
        if isinstance(flat, str):
            meta = {**meta, "ui/resourceUri": features.note_link(server_id, flat)}
        return meta

    async def call_tool(self, members: Members, caller: Caller, request_id: str) -> Raw:
        """`tools/call`. Wrong arguments are a result with `isError`, as MCP asks; so the model can mend them."""
        name = decode(members.pop("name")) if "name" in members else None
        if not isinstance(name, str):
            raise InvalidArguments("tools/call needs `name`, the tool's name, as a string")
        if name == f"{OWN_SERVER}__{CALL_TOOL}" and self._server_id is None:
            name = self._means(name, members, caller)
        arguments = members.pop("arguments", NO_ARGUMENTS)
        extra = without_token(members) or None
        call = Call(
            name,
            arguments,
            caller=caller,
            request_id=request_id,
            server_id=self._server_id,
            extra=extra,
            use_cache=extra is None or "_meta" not in extra or _takes_kept(extra["_meta"]),
        )
        try:
            result = await self._gateway.calls.call(call)
        except ToolNotFound as exc:
            exc.message = exc.text
            raise
        except InvalidArguments as exc:
            if exc.upstream_error is not None:
                raise
            text = f"{exc.message}. {exc.suggestion[:1].upper()}{exc.suggestion[1:]}" if exc.suggestion else exc.message
            return Raw(encode({"content": [{"type": "text", "text": text}], "isError": True}))
        raw, content = result.raw, memoryview(result.content)
        structured = result.structured_content
        if structured is not None and not caller.stateless and memoryview(structured)[:1].tobytes() != b"{":
            raw = _without_structure(raw, structured)
        if content.nbytes == 2:  # `[]`, as of what is no result yet but a task
            return self._task_ids.shown(result.tool.server_id, caller.principal, raw)
        if self._server_id is None and b'"resource' in content.tobytes():
            return self._links_shown(result.tool.server_id, raw)
        return raw

    def _means(self, name: str, members: Members, caller: Caller) -> str:
        """The tool that a call through `call_tool` is for, called as if the client had named it: progress, questions
        and cancellation go their usual way. Arguments that do not fit are left to the pipeline to refuse.
        """
        sees = self._gateway.permissions.sees(caller.principal)
        if self._gateway.library.find(name, sees) is None:
            return name
        given = decode(members.get("arguments", NO_ARGUMENTS))
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
        blocks = decode(members["content"])
        changed = [block for block in blocks if link_shown(self._gateway.features, server_id, block)]
        return Raw(encode({**members, "content": blocks})) if changed else raw


def _without_structure(raw: Raw, structured: Raw) -> Raw:
    """A result for a client of the session era, to which only an object is structured content; the value as a text, if
    the server gave none.
    """
    members = {name: member for name, member in decode_object(raw).items() if name != "structuredContent"}
    if decode(members.get("content", Raw(b"[]"))) == []:
        members["content"] = Raw(encode([{"type": "text", "text": bytes(structured).decode("utf-8", "replace")}]))
    return Raw(encode(members))


def _takes_kept(meta: dict[str, Raw]) -> bool:
    return CACHE not in meta or decode(meta[CACHE]) is not False


def unavailable(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a list, marked as one whose server is not there at the moment."""
    meta = entry.get("_meta")
    return {**entry, "_meta": {**(meta if isinstance(meta, dict) else {}), "toolscore/available": False}}
