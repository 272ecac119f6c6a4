"""What one client hears of changes: of lists, and of resources that it watches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.core.errors import InvalidArguments, InvalidRequest, MethodNotFound, ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode, decode_object
from toolscore.core.models import Principal
from toolscore.core.tasks import TaskSet
from toolscore.endpoints.mcp.params import Members, text_of
from toolscore.endpoints.mcp.server import McpServer
from toolscore.tools.features import LIST_CHANGED
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import ELICITED

__all__ = ["Listener", "open_listener", "watch_resource"]

MAX_WATCHED = 1000
LIST_OF = {method: feature for feature, method in LIST_CHANGED.items()}
TO_ALL = frozenset({"notifications/message", ELICITED})
"""What a server may say to nobody in particular."""


class _Watched(NamedTuple):
    server_id: str
    uri: str
    """As the server has it."""
    counted: object | None
    """What `Upstream.watch` returned."""


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
        self._watched: dict[str, _Watched] = {}
        self._changing = asyncio.Lock()
        self._closed = False
        self._stop = gateway.changes.listen(self._changed, on_close)

    @property
    def watched(self) -> list[str]:
        """The URIs of what is watched."""
        return list(self._watched)

    async def watch(self, uri: str) -> None:
        """Hear of a resource's changes.

        Raises:
            ToolScoreError: it cannot be.
        """
        async with self._changing:
            if uri in self._watched or self._closed:
                return
            if len(self._watched) >= MAX_WATCHED:
                raise InvalidRequest(f"{MAX_WATCHED} resources are watched: unsubscribe from some")
            upstream, at_server = self._server.resolve_uri(uri, self._caller)
            try:
                counted = await upstream.watch(at_server, self._caller)
            except RemoteError as exc:
                raise InvalidArguments(f"{upstream.server_id} does not watch {uri}", upstream_error=exc.error) from exc
            except ConnectionLost as exc:
                raise InvalidArguments(f"{upstream.server_id} cannot be reached: {exc.reason}") from exc
            watched = _Watched(upstream.server_id, at_server, counted)
            if self._closed:  # the client left meanwhile
                _closing.start(self._unwatch(watched))
            else:
                self._watched[uri] = watched

    async def unwatch(self, uri: str) -> None:
        """Hear of it no more."""
        async with self._changing:
            watched = self._watched.pop(uri, None)
            if watched is not None:
                await self._unwatch(watched)

    async def _unwatch(self, watched: _Watched) -> None:
        upstream = self._upstreams.find(watched.server_id)
        if upstream is not None:
            await upstream.unwatch(watched.uri, self._caller, watched.counted)

    def close(self) -> None:
        """Hear of nothing. Idempotent. Servers are told in the background: the client need not wait for them."""
        self._stop()
        self._closed = True
        for watched in self._watched.values():
            _closing.start(self._unwatch(watched))
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
        for watched in self._watched.values():
            if watched.server_id == server_id and (uri == watched.uri or uri.startswith(f"{watched.uri.rstrip('/')}/")):
                self._tell("notifications/resources/updated",
                           {**members, "uri": self._server.shown_uri(server_id, uri)})  # fmt: skip
                return


_closing = TaskSet()


async def watch_resource(server: McpServer, listener: Listener | None, method: str, params: Members) -> None:
    """Carry out `resources/subscribe` or `resources/unsubscribe` of a session.

    Raises:
        ToolScoreError: it cannot be.
    """
    if listener is None or "resources" not in server.capabilities:
        raise MethodNotFound(f"method not found: {method}: no server here has resources")
    uri = text_of(params, "uri", method)
    await (listener.watch(uri) if method == "resources/subscribe" else listener.unwatch(uri))


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
