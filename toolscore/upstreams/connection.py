"""One negotiated MCP connection to a server, whatever carries it: the interface, the handshake of both eras, listing.

`PeerConnection` is MCP over one duplex channel (stdio, WebSocket). HTTP and in-process servers have their own
`Connection`s beside this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import Raw

from toolscore import __version__
from toolscore.errors import InvalidRequest, UpstreamProtocolError
from toolscore.jsonrpc import METHOD_NOT_FOUND, Params, Peer, RemoteError, RequestId, decode, encode, meta_of

__all__ = [
    "CLIENT_INFO",
    "LATEST_SESSION_VERSION",
    "LATEST_STATELESS_VERSION",
    "SESSION_VERSIONS",
    "STATS_METHOD",
    "Connection",
    "OnNotification",
    "PeerConnection",
    "ServerInfo",
    "answer_server",
    "info_from_discover",
    "info_from_initialize",
    "initialize_params",
    "list_tools",
    "session_params",
    "stateless_envelope",
]

log = structlog.get_logger(__name__)

SESSION_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LATEST_SESSION_VERSION = SESSION_VERSIONS[-1]
LATEST_STATELESS_VERSION = "2026-07-28"

STATS_METHOD = "toolscore/stats"
"""Our own servers answer it with their figures; those that do name it among their experimental capabilities."""

UNSUPPORTED_PROTOCOL_VERSION = -32022

CLIENT_INFO = {"name": "toolscore", "version": __version__}

MAX_TOOL_PAGES = 200
MAX_TOOLS = 20_000
"""Bounds on what one server may list: a broken paginator ends instead of filling the memory."""

OnNotification = Callable[[str, Raw | None], None]


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said of itself when the connection was made."""

    protocol_version: str
    name: str = ""
    version: str = ""
    instructions: str | None = None
    capabilities: dict[str, Any] = {}

    @property
    def stateless(self) -> bool:
        return self.protocol_version not in SESSION_VERSIONS


class Connection(Protocol):
    """A server that answers. Made and ended by whoever opened it; used by anybody."""

    info: ServerInfo
    in_flight: int

    async def request(
        self, method: str, params: Params | None = None, *, on_progress: Callable[[Raw], None] | None = None
    ) -> Raw:
        """Ask and wait.

        Raises:
            RemoteError: the server answered with an error.
            ConnectionLost: it is gone.
            UpstreamProtocolError: it answered nonsense, or too much.
        """
        ...

    async def wait_closed(self) -> str:
        """Wait for the end and say why."""
        ...


def stateless_envelope(params: Params | None, version: str = LATEST_STATELESS_VERSION) -> Params:
    """The params with the `_meta` that each request of the stateless era carries (revision 2026-07-28, basic)."""
    members = meta_of(params)
    members.setdefault("io.modelcontextprotocol/protocolVersion", version)
    members.setdefault("io.modelcontextprotocol/clientInfo", CLIENT_INFO)
    members.setdefault("io.modelcontextprotocol/clientCapabilities", {})
    return {**(params or {}), "_meta": members}


def session_params(params: Params | None) -> Params | None:
    """The params without the stateless era's envelope, which a server of the session era does not know."""
    if not params or params.get("_meta") is None:
        return params
    kept = {key: value for key, value in meta_of(params).items() if not key.startswith("io.modelcontextprotocol/")}
    rest = {key: value for key, value in params.items() if key != "_meta"}
    return {**rest, "_meta": kept} if kept else rest


class PeerConnection:
    """MCP over one duplex channel. Call `negotiate` once before anything else."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.info = ServerInfo(protocol_version=LATEST_SESSION_VERSION)
        self.in_flight = 0
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def negotiate(self) -> None:
        """Settle the protocol: `initialize` first, which nearly all servers know, else `server/discover`.

        Raises:
            UpstreamProtocolError: no revision in common, or an answer that is not MCP.
        """
        try:
            answer = await self.peer.request("initialize", initialize_params())
        except RemoteError as refusal:
            if refusal.code not in (METHOD_NOT_FOUND, UNSUPPORTED_PROTOCOL_VERSION):
                raise
            discovered = await self.peer.request("server/discover", stateless_envelope({}))
            self.info = info_from_discover(discovered)
            return
        self.info = info_from_initialize(answer)
        await self.peer.notify("notifications/initialized")

    async def request(
        self, method: str, params: Params | None = None, *, on_progress: Callable[[Raw], None] | None = None
    ) -> Raw:
        if self.info.stateless:
            params = stateless_envelope(params, self.info.protocol_version)
        else:
            params = session_params(params)
        return await self.peer.request(method, params, on_progress=on_progress)

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def closed(self, reason: str) -> None:
        """The channel ended. Idempotent."""
        self.peer.close(reason)
        if not self._closed.done():
            self._closed.set_result(reason)


async def answer_server(method: str, _params: Raw | None, _request_id: RequestId) -> Any:
    """Serve what a server may ask of any client. We declare no client capability, so nothing else may come."""
    if method == "ping":
        return {}
    raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"method not found: {method}"})


def initialize_params() -> Params:
    return {"protocolVersion": LATEST_SESSION_VERSION, "capabilities": {}, "clientInfo": CLIENT_INFO}


def info_from_initialize(answer: Raw) -> ServerInfo:
    """Read the answer to `initialize`.

    Raises:
        UpstreamProtocolError: not such an answer, or a revision that we do not speak.
    """
    body = _object(answer, "initialize")
    version = body.get("protocolVersion")
    if version not in SESSION_VERSIONS:
        raise UpstreamProtocolError(
            f"the server speaks MCP revision {version!r}; this gateway speaks {', '.join(SESSION_VERSIONS)} "
            f"and {LATEST_STATELESS_VERSION}"
        )
    return _info(body, version, body.get("serverInfo"))


def info_from_discover(answer: Raw) -> ServerInfo:
    """Read the answer to `server/discover` (revision 2026-07-28)."""
    body = _object(answer, "server/discover")
    versions = body.get("supportedVersions")
    if not isinstance(versions, list) or LATEST_STATELESS_VERSION not in versions:
        raise UpstreamProtocolError(
            f"the server speaks {versions!r}, none of which this gateway has in common with it without a session"
        )
    meta = body.get("_meta")
    implementation = meta.get("io.modelcontextprotocol/serverInfo") if isinstance(meta, dict) else None
    return _info(body, LATEST_STATELESS_VERSION, implementation)


def _info(body: dict[str, Any], version: str, implementation: Any) -> ServerInfo:
    implementation = implementation if isinstance(implementation, dict) else {}
    capabilities = body.get("capabilities")
    instructions = body.get("instructions")
    return ServerInfo(
        protocol_version=version,
        name=str(implementation.get("name", "")),
        version=str(implementation.get("version", "")),
        instructions=instructions if isinstance(instructions, str) else None,
        capabilities=capabilities if isinstance(capabilities, dict) else {},
    )


def _object(answer: Raw, method: str) -> dict[str, Any]:
    try:
        body = decode(answer)
    except InvalidRequest as exc:
        raise UpstreamProtocolError(f"the answer to {method} is {exc}") from exc
    if not isinstance(body, dict):
        raise UpstreamProtocolError(f"the answer to {method} is {type(body).__name__}, not an object")
    return body


async def list_tools(connection: Connection) -> list[dict[str, Any]]:
    """All tools of a server, page after page. Entries that are no tools are left out, with a log line.

    Raises:
        UpstreamProtocolError: the answer is not a list of tools.
    """
    if "tools" not in connection.info.capabilities:
        return []
    found: dict[str, dict[str, Any]] = {}
    params: Params = {}
    for _ in range(MAX_TOOL_PAGES):
        body = _object(await connection.request("tools/list", params), "tools/list")
        page = body.get("tools")
        if not isinstance(page, list):
            raise UpstreamProtocolError("the answer to tools/list has no list of tools")
        for tool in page:
            if not (isinstance(tool, dict) and isinstance(tool.get("name"), str) and tool["name"]):
                log.warning("a tool without a name was left out", tool=encode(tool)[:200].decode(errors="replace"))
            elif len(found) < MAX_TOOLS:
                found.setdefault(tool["name"], tool)
        cursor = body.get("nextCursor")
        if not isinstance(cursor, str) or cursor == params.get("cursor") or len(found) >= MAX_TOOLS:
            break
        params = {"cursor": cursor}
    return list(found.values())
