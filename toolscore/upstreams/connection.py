"""One negotiated MCP connection to a server, whatever carries it: the interface, and MCP over one duplex channel.

`PeerConnection` serves stdio and WebSockets. HTTP and in-process servers have `Connection`s of their own beside this
module.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

import structlog
from msgspec import Raw

from toolscore.core.errors import InvalidRequest, UpstreamProtocolError
from toolscore.core.jsonrpc import ConnectionLost, Params, RemoteError, RequestId, decode, decode_object, encode
from toolscore.core.peer import Peer
from toolscore.upstreams.caller import EVERYBODY, LOG_LEVELS, Caller, ClientSide, OnAsked
from toolscore.upstreams.in_flight import InFlight
from toolscore.upstreams.protocol import (
    ACKNOWLEDGED,
    BROADCAST,
    INPUT_METHODS,
    LATEST_SESSION_VERSION,
    LISTED,
    ServerInfo,
    acknowledged_lists,
    client_capabilities,
    info_from_discover,
    info_from_initialize,
    initialize_params,
    input_required,
    questions,
    session_params,
    stateless_envelope,
)

__all__ = [
    "Connection",
    "Hearing",
    "OnNotification",
    "PeerConnection",
    "SharedSession",
    "ensure_log_level",
    "with_input",
]

log = structlog.get_logger(__name__)

OnNotification = Callable[[str, Raw | None], None]

PROBE_SECONDS = 0.5
"""How long a server on a pipe may leave `server/discover` unanswered before `initialize` is sent behind it."""

MAX_INPUT_ROUNDS = 10
STATE_ONLY_SECONDS = 0.1


class Hearing:
    """Of which lists (features of a server, such as `tools`) a connection is told now when they change.

    Attributes:
        on_more: called when it is told of more than before: what changed until then went by unheard.
        begun: set by each `begin`.
    """

    def __init__(self, features: Collection[str] = ()) -> None:
        self.features = frozenset(features)
        self.on_more: Callable[[], None] = lambda: None
        self.begun = asyncio.Event()

    def begin(self, features: Collection[str]) -> None:
        """It is told of these from now on, and of no others."""
        before, self.features = self.features, frozenset(features)
        self.begun.set()
        if self.features - before:
            self.on_more()

    def end(self) -> None:
        """It is told of nothing any more."""
        self.features = frozenset()


class SharedSession(Protocol):
    """The session that several gateways have with one server, as one: what the server keeps in it, all see."""

    async def known(self) -> tuple[str, ServerInfo] | None:
        """The id of the session that another has opened, and what the server said then."""
        ...

    async def offer(self, session_id: str, info: ServerInfo, instead_of: str | None) -> tuple[str, ServerInfo]:
        """A session was opened. Returns the one that counts: another gateway may have been quicker.

        Args:
            instead_of: the id of the one that the server has forgotten.
        """
        ...

    def may_end(self) -> bool:
        """Whether nobody else has it."""
        ...


class Connection(Protocol):
    """A server that answers. Made and ended by whoever opened it; used by anybody."""

    info: ServerInfo
    in_flight: int
    log_level: str | None
    hearing: Hearing
    elsewhere: bool
    """Whether it leads to another gateway, which has the server."""

    def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Awaitable[Raw]:
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


def with_input(
    request: Callable[[Params | None], Awaitable[Raw]],
    info: ServerInfo,
    method: str,
    params: Params | None,
    caller: Caller | None,
    in_flight: InFlight,
) -> Awaitable[Raw]:
    """Make a request. As often as a stateless server requires input, ask the client, if it can be asked live.

    Raises:
        RemoteError (awaiting it): the client refused, or the server goes on asking.
    """
    if not info.stateless or caller is None or not caller.live or method not in INPUT_METHODS:
        return request(params)
    return _in_rounds(request, params, caller, in_flight)


async def _in_rounds(
    request: Callable[[Params | None], Awaitable[Raw]], params: Params | None, caller: Caller, in_flight: InFlight
) -> Raw:
    result = await request(params)
    params = params or {}
    for _ in range(MAX_INPUT_ROUNDS):
        members = input_required(result)
        if members is None:
            return result
        wanted = questions(members)
        retry = {key: value for key, value in params.items() if key not in ("inputResponses", "requestState")}
        if "requestState" in members:
            retry["requestState"] = members["requestState"]
        if wanted:
            asking = [
                asyncio.ensure_future(in_flight.answer(method, _with_id(method, params), caller))
                for method, params in wanted.values()
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


def _with_id(method: str, params: Raw | None) -> Raw | None:
    """A stateless server's question as a session's client takes it: to send it to an address needs an id there."""
    if method != "elicitation/create" or params is None:
        return params
    members = decode_object(params)
    if "elicitationId" in members or "mode" not in members or decode(members["mode"]) != "url":
        return params
    return Raw(encode({**members, "elicitationId": uuid.uuid4().hex}))


class PeerConnection:
    """MCP over one duplex channel. Call `negotiate` once before anything else.

    Args:
        make_peer: makes the conversation, given what serves the server's requests and takes its notifications.
        features: what the server may ask clients for (keys of `CLIENT_FEATURES`).
        side: for whom this connection is.
        on_asked: told when the server asks something of its clients.
    """

    elsewhere = False

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
        self.hearing = Hearing(LISTED)
        self.instance: str | None = None
        """The name of an instance that dialled in, if it gave one: it has the same at each gateway."""
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
        if method == ACKNOWLEDGED:
            self.hearing.begin(acknowledged_lists(params))
            return
        if method in BROADCAST or not self.requests.tell(method, params):
            self._on_notification(method, params)

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def closed(self, reason: str) -> None:
        """The channel ended. Idempotent."""
        self.peer.close(reason)
        if not self._closed.done():
            self._closed.set_result(reason)


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
