"""One negotiated MCP connection to a server, whatever carries it: the interface, the handshake of both eras, listing.

`PeerConnection` is MCP over one duplex channel (stdio, WebSocket). HTTP and in-process servers have their own
`Connection`s beside this module.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import Raw

from toolscore import __version__
from toolscore.core.errors import InvalidRequest, UpstreamProtocolError
from toolscore.core.jsonrpc import (
    INVALID_PARAMS,
    ConnectionLost,
    Params,
    Peer,
    RemoteError,
    RequestId,
    decode,
    decode_object,
    encode,
    meta_of,
)
from toolscore.upstreams.caller import CLIENT_FEATURES, EVERYBODY, LOG_LEVELS, Caller, ClientSide, InFlight, OnAsked

__all__ = [
    "BROADCAST",
    "CAPABILITY_OF",
    "CLIENT_INFO",
    "INPUT_METHODS",
    "LATEST_SESSION_VERSION",
    "LATEST_STATELESS_VERSION",
    "LISTS",
    "META",
    "SESSION_VERSIONS",
    "STATS_METHOD",
    "UNSUPPORTED_PROTOCOL_VERSION",
    "Connection",
    "OnNotification",
    "PeerConnection",
    "ServerInfo",
    "client_capabilities",
    "ensure_log_level",
    "info_from_discover",
    "info_from_initialize",
    "initialize_params",
    "input_required",
    "read_list",
    "session_params",
    "speaks_stateless",
    "stateless_envelope",
    "with_input",
]

log = structlog.get_logger(__name__)

SESSION_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
LATEST_SESSION_VERSION = SESSION_VERSIONS[-1]
LATEST_STATELESS_VERSION = "2026-07-28"

STATS_METHOD = "toolscore/stats"
"""Our own servers answer it with their figures; those that do name it among their experimental capabilities."""

UNSUPPORTED_PROTOCOL_VERSION = -32022

CLIENT_INFO = {"name": "toolscore", "version": __version__}

MAX_PAGES = 200
MAX_ENTRIES = 20_000
"""Bounds on what one server may list: a broken paginator ends instead of filling the memory."""

OnNotification = Callable[[str, Raw | None], None]

META = "io.modelcontextprotocol/"

LISTS = {
    "tools": ("tools/list", "tools", "name"),
    "prompts": ("prompts/list", "prompts", "name"),
    "resources": ("resources/list", "resources", "uri"),
    "templates": ("resources/templates/list", "resourceTemplates", "uriTemplate"),
}
"""What a server lists: the method, the member of its answer, and the member of an entry that tells it from others."""

CAPABILITY_OF = {"tools": "tools", "prompts": "prompts", "resources": "resources", "templates": "resources"}

PROBE_SECONDS = 0.5
"""How long a server on a pipe may leave `server/discover` unanswered before `initialize` is sent behind it."""

INPUT_METHODS = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests that a server of the stateless era may answer with `input_required` (revision 2026-07-28, MRTR)."""

MAX_INPUT_ROUNDS = 10
STATE_ONLY_SECONDS = 0.1


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said of itself when the connection was made.

    `implementation` is its `Implementation` object (name, version, icons, …), `capabilities` its `ServerCapabilities`.
    """

    protocol_version: str
    implementation: dict[str, Any] = {}
    instructions: str | None = None
    capabilities: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return str(self.implementation.get("name", ""))

    @property
    def version(self) -> str:
        return str(self.implementation.get("version", ""))

    @property
    def stateless(self) -> bool:
        return self.protocol_version not in SESSION_VERSIONS


class Connection(Protocol):
    """A server that answers. Made and ended by whoever opened it; used by anybody."""

    info: ServerInfo
    in_flight: int
    log_level: str | None

    async def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Raw:
        """Ask and wait.

        Args:
            caller: on whose behalf; it hears of progress and log messages, and may be asked by the server.

        Raises:
            RemoteError: the server answered with an error.
            ConnectionLost: it is gone.
            UpstreamProtocolError: it answered nonsense, or too much.
        """
        ...

    async def notify(self, method: str, params: Params | None = None) -> None:
        """Tell the server something. Never raises."""
        ...

    async def wait_closed(self) -> str:
        """Wait for the end and say why."""
        ...


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
    members = meta_of(params)
    members[f"{META}protocolVersion"] = version
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


def _questions(members: dict[str, Raw]) -> dict[str, tuple[str, Raw | None]]:
    """What a server asks: method and params, by its own keys."""
    try:
        asked = decode_object(members["inputRequests"]) if "inputRequests" in members else {}
        requests = {key: decode_object(request) for key, request in asked.items()}
        return {key: (str(decode(request["method"])), request.get("params")) for key, request in requests.items()}
    except (InvalidRequest, KeyError) as exc:
        raise UpstreamProtocolError(f"the server asks for input in a way that is no MCP: {exc}") from exc


async def with_input(
    request: Callable[[Params | None], Awaitable[Raw]],
    info: ServerInfo,
    method: str,
    params: Params | None,
    caller: Caller | None,
    in_flight: InFlight,
) -> Raw:
    """Make a request. As often as a stateless server requires input, ask the client, if it can be asked live.

    Raises:
        RemoteError: the client refused, or the server goes on asking.
    """
    result = await request(params)
    if not info.stateless or caller is None or not caller.live or method not in INPUT_METHODS:
        return result
    params = params or {}
    for _ in range(MAX_INPUT_ROUNDS):
        members = input_required(result)
        if members is None:
            return result
        wanted = _questions(members)
        retry = {key: value for key, value in params.items() if key not in ("inputResponses", "requestState")}
        if "requestState" in members:
            retry["requestState"] = members["requestState"]
        if wanted:
            asking = [
                asyncio.ensure_future(in_flight.answer(method, params, caller)) for method, params in wanted.values()
            ]
            try:
                retry["inputResponses"] = dict(zip(wanted, await asyncio.gather(*asking), strict=True))
            finally:
                for question in asking:
                    question.cancel()  # after one refusal the others are pointless
        else:
            await asyncio.sleep(STATE_ONLY_SECONDS)
        result = await request(retry)
    raise RemoteError({"code": -32603, "message": f"the server asked for input {MAX_INPUT_ROUNDS} times over"})


class PeerConnection:
    """MCP over one duplex channel. Call `negotiate` once before anything else.

    Args:
        make_peer: makes the conversation, given what serves the server's requests and takes its notifications.
        features: what the server may ask clients for (keys of `CLIENT_FEATURES`).
        side: for whom this connection is.
        on_asked: told when the server asks something of its clients.
    """

    def __init__(
        self,
        make_peer: Callable[..., Peer],
        on_notification: OnNotification,
        features: Collection[str],
        side: ClientSide = EVERYBODY,
        on_asked: OnAsked = lambda unasked: None,
    ) -> None:
        self.peer = make_peer(on_request=self._asked, on_notification=self._notified)
        self.info = ServerInfo(protocol_version=LATEST_SESSION_VERSION)
        self.requests = InFlight(features, side.owner, on_asked)
        self.in_flight = 0
        self.log_level: str | None = None
        self._on_notification = on_notification
        self._features = features
        self._declared = client_capabilities(features, side)
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def negotiate(self, *, probe: bool = True) -> None:
        """Settle the protocol: the stateless era where the server has it, else a session.

        Args:
            probe: ask for the stateless era at all; there are servers that leave when the first message is not
                `initialize`.

        Raises:
            UpstreamProtocolError: no revision in common, or an answer that is not MCP.
        """
        if probe and await self._discover():
            return
        self.info = info_from_initialize(await self.peer.request("initialize", initialize_params(self._declared)))
        await self.peer.notify("notifications/initialized")

    async def _discover(self) -> bool:
        asking = asyncio.ensure_future(self.peer.request("server/discover", stateless_envelope({})))
        opening: asyncio.Future[Raw] | None = None
        try:
            await asyncio.wait({asking}, timeout=PROBE_SECONDS)
            if not asking.done():
                # Slow to start, or deaf to what it does not know: whichever it answers settles it.
                opening = asyncio.ensure_future(self.peer.request("initialize", initialize_params(self._declared)))
                await asyncio.wait({asking, opening}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                try:
                    self.info = info_from_discover(asking.result())
                    return True
                except (RemoteError, UpstreamProtocolError):
                    if opening is None:
                        return False
            assert opening is not None
            self.info = info_from_initialize(await opening)
            await self.peer.notify("notifications/initialized")
            return True
        finally:
            for future in (asking, opening):
                if future is not None:
                    future.cancel()
                    with contextlib.suppress(asyncio.CancelledError, RemoteError, ConnectionLost):
                        await future

    async def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Raw:
        def send(again: Params | None) -> Awaitable[Raw]:
            return self._send(method, again, caller)

        return await with_input(send, self.info, method, params, caller, self.requests)

    async def _send(self, method: str, params: Params | None, caller: Caller | None) -> Raw:
        if self.info.stateless:
            params = stateless_envelope(params, self.info.protocol_version, caller, self._features)
        else:
            params = session_params(params)
        progress = None
        if caller is not None and caller.wants_progress:

            def progress(update: Raw) -> None:
                with contextlib.suppress(InvalidRequest):
                    caller.notify("notifications/progress", update)

        if method == "subscriptions/listen":  # nobody's request in particular
            return await self.peer.request(method, params, on_progress=progress)
        with self.requests.hold(caller) as came:
            return await self.peer.request(method, params, on_progress=progress, on_late=came)

    async def notify(self, method: str, params: Params | None = None) -> None:
        await self.peer.notify(method, params)

    async def _asked(self, method: str, params: Raw | None, _request_id: RequestId) -> Any:
        return await self.requests.answer(method, params)

    def _notified(self, method: str, params: Raw | None) -> None:
        if method in BROADCAST or not self.requests.tell(method, params):
            self._on_notification(method, params)

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def closed(self, reason: str) -> None:
        """The channel ended. Idempotent."""
        self.peer.close(reason)
        if not self._closed.done():
            self._closed.set_result(reason)


BROADCAST = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
    }
)
"""Notifications that are about the server, and not about a request."""


def initialize_params(capabilities: Mapping[str, Any]) -> Params:
    return {"protocolVersion": LATEST_SESSION_VERSION, "capabilities": capabilities, "clientInfo": CLIENT_INFO}


def client_capabilities(features: Collection[str], side: ClientSide) -> dict[str, Any]:
    """What we declare to a server: that part of what its clients offer which it may ask for."""
    return {name: side.offered[name] for name in features if name in side.offered}


async def ensure_log_level(connection: Connection, level: str) -> None:
    """Have a server of the session era log from this level on; who wants less is spared the rest."""
    now = connection.log_level
    if level not in LOG_LEVELS or (now is not None and LOG_LEVELS.index(now) <= LOG_LEVELS.index(level)):
        return
    connection.log_level = level
    try:
        await connection.request("logging/setLevel", {"level": level})
    except RemoteError as exc:
        log.info("a server does not set its log level", level=level, error=str(exc))


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
    return ServerInfo(
        protocol_version=version,
        implementation=implementation,
        instructions=instructions if isinstance(instructions, str) else None,
        capabilities={
            name: member
            for name, member in (capabilities.items() if isinstance(capabilities, dict) else ())
            if isinstance(member, dict)  # each is an object; some servers say true
        },
    )


def _object(answer: Raw, method: str) -> dict[str, Any]:
    try:
        body = decode(answer)
    except InvalidRequest as exc:
        raise UpstreamProtocolError(f"the answer to {method} is {exc}") from exc
    if not isinstance(body, dict):
        raise UpstreamProtocolError(f"the answer to {method} is {type(body).__name__}, not an object")
    return body


async def read_list(connection: Connection, kind: str) -> list[dict[str, Any]]:
    """All entries of one list of a server, page after page. Entries without a name are left out, with a log line.

    Args:
        kind: a key of `LISTS`.

    Raises:
        RemoteError, ConnectionLost.
        UpstreamProtocolError: the answer is not such a list.
    """
    if CAPABILITY_OF[kind] not in connection.info.capabilities:
        return []
    method, member, name = LISTS[kind]
    found: dict[str, dict[str, Any]] = {}
    params: Params = {}
    for _ in range(MAX_PAGES):
        body = _object(await connection.request(method, params), method)
        page = body.get(member)
        if not isinstance(page, list):
            raise UpstreamProtocolError(f"the answer to {method} has no list of {member}")
        for entry in page:
            if not (isinstance(entry, dict) and isinstance(entry.get(name), str) and entry[name]):
                shown = encode(entry)[:200].decode(errors="replace")
                log.warning("an entry was left out of a list", method=method, without=name, entry=shown)
            elif len(found) < MAX_ENTRIES:
                found.setdefault(entry[name], entry)
        cursor = body.get("nextCursor")
        if not isinstance(cursor, str) or cursor == params.get("cursor") or len(found) >= MAX_ENTRIES:
            break
        params = {"cursor": cursor}
    return list(found.values())
