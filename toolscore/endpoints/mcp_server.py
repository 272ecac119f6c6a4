"""The gateway as an MCP server: the methods, whatever carries them, in both eras of the protocol.

`McpServer` answers for all tools under their full names (`/mcp`, the router), or for one server's tools under their own
(`/servers/{id}/mcp`). Definitions and results are relayed as raw JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Raw

from toolscore import __version__
from toolscore.errors import InvalidArguments, MethodNotFound, ToolNotFound
from toolscore.gateway import Gateway
from toolscore.jsonrpc import decode, decode_object, encode
from toolscore.models import LOCAL, Tool, ToolCall
from toolscore.upstreams.connection import LATEST_SESSION_VERSION, LATEST_STATELESS_VERSION, SESSION_VERSIONS

__all__ = ["LISTEN_TYPES", "McpServer", "Members", "progress_frame", "progress_token", "read_params"]

Members = dict[str, Any]

PAGE_TOOLS = 1000
"""Most clients want the whole list at once; a longer one comes in pages."""

LISTEN_TYPES = frozenset(
    {"tool_installed", "tool_updated", "tool_removed", "tool_quarantined", "server_up", "server_down"}
)
"""Events after which the list of tools is another one."""

META = "io.modelcontextprotocol/"

INSTRUCTIONS = (
    "ToolScore: one address for many MCP servers. Tools are named server__tool; a tool whose `_meta` says "
    "`toolscore/available: false` is known, but its server is not connected at the moment."
)


class McpServer:
    """MCP's methods over the gateway's pipeline. Holds no state of any client."""

    def __init__(self, gateway: Gateway, server_id: str | None = None) -> None:
        self._gateway = gateway
        self._server_id = server_id
        self._pages: dict[str, tuple[int, dict[str, Any]]] = {}
        self.info = {"name": server_id or "toolscore", "version": __version__}

    @property
    def _capabilities(self) -> dict[str, Any]:
        return {"tools": {"listChanged": True}}

    def initialize(self, params: Raw | None) -> dict[str, Any]:
        """Open a session: the client's revision where we speak it, else our newest (lifecycle: version negotiation)."""
        wanted = decode(params).get("protocolVersion") if params is not None else None
        result: dict[str, Any] = {
            "protocolVersion": wanted if wanted in SESSION_VERSIONS else LATEST_SESSION_VERSION,
            "capabilities": self._capabilities,
            "serverInfo": self.info,
        }
        if self._server_id is None:
            result["instructions"] = INSTRUCTIONS
        return result

    def discover(self) -> dict[str, Any]:
        """`server/discover` of the stateless era. We speak the session era too, and say so."""
        result: dict[str, Any] = {
            "supportedVersions": [LATEST_STATELESS_VERSION, *reversed(SESSION_VERSIONS)],
            "capabilities": self._capabilities,
            "ttlMs": 0,
            "cacheScope": "private",
        }
        if self._server_id is None:
            result["instructions"] = INSTRUCTIONS
        return result

    async def handle(
        self,
        method: str,
        params: Members,
        *,
        request_id: str,
        stateless: bool,
        on_progress: Callable[[Raw], None] | None = None,
    ) -> Any:
        """Answer one request, `initialize` and `subscriptions/listen` apart, which belong to the connection.

        Args:
            params: from `read_params`; taken apart here.

        Raises:
            ToolScoreError: on the wire its `rpc_error()`.
        """
        result: Any
        if method == "tools/call":
            result = await self.call_tool(params, request_id, on_progress)
        elif method == "tools/list":
            result = self.list_tools(params, stateless)
            if not stateless:
                return result
        elif method == "server/discover":
            result = self.discover()
        elif method == "ping" and not stateless:
            return {}
        else:
            raise MethodNotFound(f"method not found: {method}")
        return self._stateless(result) if stateless else result

    def _stateless(self, result: Any) -> Any:
        """Add what every result of the stateless era carries, unless the server said it already."""
        members: Members = dict(decode_object(result) if isinstance(result, Raw) else result)
        if isinstance(result, Raw) and "resultType" in members:
            return result
        members.setdefault("resultType", "complete")
        meta = members.get("_meta")
        known: Members = dict(decode_object(meta) if isinstance(meta, Raw) else meta or {})
        known.setdefault(f"{META}serverInfo", self.info)
        members["_meta"] = known
        return members

    def list_tools(self, params: Members, stateless: bool) -> dict[str, Any]:
        """A page of the library, encoded once for as long as the library stands."""
        cursor = decode(params["cursor"]) if "cursor" in params else None
        if cursor is not None and not isinstance(cursor, str):
            raise InvalidArguments(f"`cursor` must be a string, found {cursor!r:.80}")
        library = self._gateway.library
        generation, page = self._pages.get(cursor or "", (-1, {}))
        if generation != library.generation:
            tools, after = library.page(cursor=cursor, limit=PAGE_TOOLS, server_id=self._server_id)
            page = {"tools": Raw(encode([self._shown(tool) for tool in tools]))}
            if after is not None:
                page["nextCursor"] = after
            if len(self._pages) > 100:
                self._pages.clear()  # cursors are the client's to choose
            self._pages[cursor or ""] = (library.generation, page)
        return {**page, "ttlMs": 0, "cacheScope": "private"} if stateless else page

    def _shown(self, tool: Tool) -> dict[str, Any]:
        definition = tool.definition if self._server_id else {**tool.definition, "name": tool.tool_id}
        if not isinstance(definition.get("inputSchema"), dict):
            definition = {**definition, "inputSchema": {"type": "object"}}
        if not self._gateway.library.available(tool):
            meta = definition.get("_meta")
            known = meta if isinstance(meta, dict) else {}
            definition = {**definition, "_meta": {**known, "toolscore/available": False}}
        return definition

    async def call_tool(
        self, members: Members, request_id: str, on_progress: Callable[[Raw], None] | None = None
    ) -> Raw:
        """`tools/call`. Wrong arguments are a result with `isError`, as MCP asks; so the model can mend them."""
        name = decode(members.pop("name")) if "name" in members else None
        if not isinstance(name, str):
            raise InvalidArguments("tools/call needs `name`, the tool's name, as a string")
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
            return (await self._gateway.pipeline.call(call, LOCAL, on_progress=on_progress)).raw
        except ToolNotFound as exc:
            exc.message = f"{exc.message}; {exc.suggestion}" if exc.suggestion else exc.message
            raise
        except InvalidArguments as exc:
            if exc.upstream_error is not None:
                raise
            text = f"{exc.message}. {exc.suggestion[:1].upper()}{exc.suggestion[1:]}" if exc.suggestion else exc.message
            return Raw(encode({"content": [{"type": "text", "text": text}], "isError": True}))


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


def progress_token(members: Members) -> Raw | None:
    """The token under which a client wants to hear of progress."""
    meta = members.get("_meta")
    return meta.get("progressToken") if meta else None


def progress_frame(token: Raw, params: Raw) -> bytes:
    """A server's progress under the client's own token."""
    return encode(
        {
            "jsonrpc": "2.0",
            "method": "notifications/progress",
            "params": {**decode_object(params), "progressToken": token},
        }
    )
