"""MCP's own words, in both eras: revisions, methods, envelopes, and what a server says of itself.

Pure: reads and makes params and results; sends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property, lru_cache
from typing import Any

import msgspec
from msgspec import Raw

from toolscore import __version__
from toolscore.core.errors import InvalidRequest, UpstreamProtocolError
from toolscore.core.jsonrpc import INVALID_PARAMS, Params, RemoteError, decode, decode_object, encode, meta_of
from toolscore.upstreams.caller import CLIENT_FEATURES, Caller, ClientSide

__all__ = [
    "ACKNOWLEDGED",
    "BROADCAST",
    "CAPABILITY_OF",
    "CHANGED_LISTS",
    "CLIENT_INFO",
    "GATEWAY_KEY",
    "INPUT_METHODS",
    "LATEST_SESSION_VERSION",
    "LATEST_STATELESS_VERSION",
    "LISTED",
    "LISTS",
    "META",
    "OURSELVES",
    "SESSION_VERSIONS",
    "STATS_METHOD",
    "UNSUPPORTED_PROTOCOL_VERSION",
    "ServerInfo",
    "acknowledged_lists",
    "client_capabilities",
    "info_from_discover",
    "info_from_initialize",
    "initialize_params",
    "input_required",
    "questions",
    "read_object",
    "session_params",
    "speaks_stateless",
    "stateless_envelope",
]

SESSION_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LATEST_SESSION_VERSION = SESSION_VERSIONS[-1]
LATEST_STATELESS_VERSION = "2026-07-28"

STATS_METHOD = "toolscore/stats"
"""Our own servers answer it with their figures; those that do name it among their experimental capabilities."""

UNSUPPORTED_PROTOCOL_VERSION = -32022

GATEWAY_KEY = "toolscore/gateway"
OURSELVES = "it is this gateway itself: its tools would be listed under ever longer names"
CLIENT_INFO = {"name": "toolscore", "version": __version__}

META = "io.modelcontextprotocol/"

LISTS = {
    "tools": ("tools/list", "tools", "name"),
    "prompts": ("prompts/list", "prompts", "name"),
    "resources": ("resources/list", "resources", "uri"),
    "templates": ("resources/templates/list", "resourceTemplates", "uriTemplate"),
}
"""What a server lists: the method, the member of its answer, and the member of an entry that tells it from others."""

CAPABILITY_OF = {"tools": "tools", "prompts": "prompts", "resources": "resources", "templates": "resources"}

CHANGED_LISTS = {
    "notifications/tools/list_changed": ("tools",),
    "notifications/prompts/list_changed": ("prompts",),
    "notifications/resources/list_changed": ("resources", "templates"),
}
"""Which lists a notification says have changed."""

BROADCAST = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
    }
)
"""Notifications that are about the server, and not about a request."""

LISTED = ("tools", "prompts", "resources")
"""The features whose lists may change."""

ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
"""What a stateless server answers our own subscription with: it concerns no client."""

UI = {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}}
"""That clients may show a tool's own page (MCP Apps), as it is declared where several clients share a connection."""

INPUT_METHODS = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests that a server of the stateless era may answer with `input_required` (revision 2026-07-28, MRTR)."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a server said of itself when the connection was made.

    `implementation` is its `Implementation` object (name, version, icons, …), `capabilities` its `ServerCapabilities`.
    """

    protocol_version: str
    implementation: dict[str, Any] = {}
    instructions: str | None = None
    capabilities: dict[str, Any] = {}
    gateway: str | None = None
    """Which gateway it is, if it is one of ours (`Database.identity`)."""

    @property
    def name(self) -> str:
        return str(self.implementation.get("name", ""))

    @property
    def version(self) -> str:
        return str(self.implementation.get("version", ""))

    def declares(self, feature: str, flag: str) -> bool:
        """Whether the server says `flag: true` of a feature, such as `listChanged` of `tools`."""
        declared = self.capabilities.get(feature)
        return isinstance(declared, dict) and declared.get(flag) is True

    @cached_property
    def stateless(self) -> bool:
        return self.protocol_version not in SESSION_VERSIONS


def acknowledged_lists(params: Raw | None) -> list[str]:
    """The features (of `LISTED`) of whose changes a stateless server says that it tells."""
    try:
        members = decode(params) if params is not None else None
    except InvalidRequest:  # far more than anybody means to say
        return []
    notifications = members.get("notifications") if isinstance(members, dict) else None
    if not isinstance(notifications, dict):
        return []
    return [feature for feature in LISTED if notifications.get(f"{feature}ListChanged") is True]


def initialize_params(capabilities: Mapping[str, Any]) -> Params:
    return {"protocolVersion": LATEST_SESSION_VERSION, "capabilities": capabilities, "clientInfo": CLIENT_INFO}


def client_capabilities(features: Collection[str], side: ClientSide) -> dict[str, Any]:
    """What we declare to a server: that part of what its clients offer which it may ask for."""
    found = {name: side.offered[name] for name in features if name in side.offered}
    extensions = UI if side.is_shared else side.offered.get("extensions")
    return {**found, "extensions": extensions} if extensions else found


def info_from_initialize(answer: Raw) -> ServerInfo:
    """Read the answer to `initialize`.

    Raises:
        UpstreamProtocolError: not such an answer, or a revision that we do not speak.
    """
    body = read_object(answer, "initialize")
    version = body.get("protocolVersion")
    if version not in SESSION_VERSIONS:
        raise UpstreamProtocolError(
            f"the server speaks MCP revision {version!r}; this gateway speaks {', '.join(SESSION_VERSIONS)} "
            f"and {LATEST_STATELESS_VERSION}"
        )
    return _info(body, version, body.get("serverInfo"))


def info_from_discover(answer: Raw) -> ServerInfo:
    """Read the answer to `server/discover` (revision 2026-07-28)."""
    body = read_object(answer, "server/discover")
    versions = body.get("supportedVersions")
    if not isinstance(versions, list) or LATEST_STATELESS_VERSION not in versions:
        raise UpstreamProtocolError(
            f"the server speaks {versions!r}, none of which this gateway has in common with it without a session"
        )
    meta = body.get("_meta")
    implementation = meta.get("io.modelcontextprotocol/serverInfo") if isinstance(meta, dict) else None
    return _info(body, LATEST_STATELESS_VERSION, implementation)


def speaks_stateless(refusal: RemoteError) -> bool:
    """Whether a server that refused our revision names it among those that it speaks, so that it may be asked again."""
    data = refusal.error.get("data")
    supported = data.get("supported") if isinstance(data, dict) else None
    return (
        refusal.code == UNSUPPORTED_PROTOCOL_VERSION
        and isinstance(supported, list)
        and LATEST_STATELESS_VERSION in supported
    )


def _info(body: dict[str, Any], version: str, implementation: Any) -> ServerInfo:
    implementation = implementation if isinstance(implementation, dict) else {}
    capabilities = body.get("capabilities")
    instructions = body.get("instructions")
    meta = body.get("_meta")
    gateway = meta.get(GATEWAY_KEY) if isinstance(meta, dict) else None
    return ServerInfo(
        gateway=gateway if isinstance(gateway, str) else None,
        protocol_version=version,
        implementation=implementation,
        instructions=instructions if isinstance(instructions, str) else None,
        capabilities={
            name: member
            for name, member in (capabilities.items() if isinstance(capabilities, dict) else ())
            if isinstance(member, dict)  # each is an object; some servers say true
        },
    )


def read_object(answer: Raw, method: str) -> dict[str, Any]:
    try:
        body = decode(answer)
    except InvalidRequest as exc:
        raise UpstreamProtocolError(f"the answer to {method} is {exc}") from exc
    if not isinstance(body, dict):
        raise UpstreamProtocolError(f"the answer to {method} is {type(body).__name__}, not an object")
    return body


_VERSION = f"{META}protocolVersion"


def stateless_envelope(
    params: Params | None,
    version: str = LATEST_STATELESS_VERSION,
    caller: Caller | None = None,
    features: Collection[str] = tuple(CLIENT_FEATURES),
) -> Params:
    """The params with the `_meta` that each request of the stateless era carries (revision 2026-07-28, basic).

    A caller of the same era brings its own; for one of the session era we say what it declared when it came.

    Args:
        features: what the server may ask clients for.
    """
    if (params is None or "_meta" not in params) and (caller is None or not (caller.capabilities or caller.live)):
        return {**(params or {}), "_meta": _meta_of_nobody(version)}
    members = meta_of(params)
    members[_VERSION] = version
    members.setdefault(f"{META}clientInfo", CLIENT_INFO)
    members.setdefault(f"{META}clientCapabilities", caller.capabilities if caller is not None else {})
    if len(features) < len(CLIENT_FEATURES):
        offered = members[f"{META}clientCapabilities"]
        offered = decode(offered) if isinstance(offered, Raw) else offered
        if isinstance(offered, Mapping):
            kept = {name: value for name, value in offered.items() if name not in CLIENT_FEATURES or name in features}
            members[f"{META}clientCapabilities"] = kept
    if caller is not None and caller.live:
        members.setdefault(f"{META}logLevel", caller.log_level or "info")
    return {**(params or {}), "_meta": members}


@lru_cache(8)
def _meta_of_nobody(version: str) -> Raw:
    """The `_meta` for a caller that says nothing of itself."""
    return Raw(encode({_VERSION: version, f"{META}clientInfo": CLIENT_INFO, f"{META}clientCapabilities": {}}))


def session_params(params: Params | None) -> Params | None:
    """The params without the stateless era's envelope, which a server of the session era does not know.

    Raises:
        RemoteError: they go on with a request that such a server cannot have begun.
    """
    if not params:
        return params
    if "requestState" in params:
        raise RemoteError({"code": INVALID_PARAMS, "message": "requestState is not valid: make the request anew"})
    if "inputResponses" in params:
        params = {key: value for key, value in params.items() if key != "inputResponses"}
    if params.get("_meta") is None:
        return params
    kept = {key: value for key, value in meta_of(params).items() if not key.startswith("io.modelcontextprotocol/")}
    rest = {key: value for key, value in params.items() if key != "_meta"}
    return {**rest, "_meta": kept} if kept else rest


def input_required(result: Raw) -> dict[str, Raw] | None:
    """The members of an `InputRequiredResult`, `None` if the result is none."""
    try:
        if _kinds.decode(result).result_type != "input_required":
            return None
        return decode_object(result)
    except (msgspec.MsgspecError, UnicodeDecodeError, InvalidRequest) as exc:
        raise UpstreamProtocolError(f"the server answered nonsense: {exc}") from exc


class _Kind(msgspec.Struct, rename="camel"):
    result_type: Any = "complete"


_kinds = msgspec.json.Decoder(_Kind)


def questions(members: dict[str, Raw]) -> dict[str, tuple[str, Raw | None]]:
    """What a server asks: method and params, by its own keys."""
    try:
        asked = decode_object(members["inputRequests"]) if "inputRequests" in members else {}
        requests = {key: decode_object(request) for key, request in asked.items()}
        return {key: (str(decode(request["method"])), request.get("params")) for key, request in requests.items()}
    except (InvalidRequest, KeyError) as exc:
        raise UpstreamProtocolError(f"the server asks for input in a way that is no MCP: {exc}") from exc
