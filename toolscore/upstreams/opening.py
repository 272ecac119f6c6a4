"""Opening a connection to a server, whichever way its entry names; the same for a start, a lane and a trial."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from msgspec import Raw

from toolscore.core.models import UpstreamSpec, shown_url
from toolscore.core.rules import LimitRules
from toolscore.upstreams.caller import EVERYBODY, ClientSide, OnAsked
from toolscore.upstreams.connection import OnNotification, SharedSession
from toolscore.upstreams.http_client import HttpClient, http_session, lean_client
from toolscore.upstreams.inprocess import InProcessServer, open_inprocess
from toolscore.upstreams.process.spawn import CommandNotFound
from toolscore.upstreams.references import resolved
from toolscore.upstreams.sse import open_http
from toolscore.upstreams.stdio import open_stdio
from toolscore.upstreams.websocket import open_endpoint, open_websocket

__all__ = ["Dialer"]


def ignored(method: str, params: Raw | None) -> None:
    """Take a notification that nobody wants."""


class Dialer:
    """Opens connections. Use as `async with Dialer(…) as dialer`; holds the HTTP clients that they share.

    Args:
        own_ports: where the gateway listens; a confined server with a network is kept off them.
    """

    def __init__(self, own_ports: Collection[int] = (), limits: LimitRules | None = None) -> None:
        self._own_ports = tuple(sorted(own_ports))
        self._limits = limits or LimitRules()
        self._inside: dict[str, InProcessServer] = {}

    async def __aenter__(self) -> Dialer:
        self._stack = AsyncExitStack()
        self.http = await self._stack.enter_async_context(http_session())
        self.http_public = await self._stack.enter_async_context(http_session(public_only=True))
        self._lean = await self._stack.enter_async_context(lean_client())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def use(self, limits: LimitRules) -> None:
        """Open connections with other bounds from now on; those that are open keep theirs."""
        self._limits = limits

    def provide(self, factory: str, server: InProcessServer) -> None:
        """Use this server wherever an entry's `inprocess` names `factory`, instead of making one."""
        self._inside[factory] = server

    def http_for(self, spec: UpstreamSpec) -> HttpClient:
        """The HTTP client for a server: one that reaches public addresses alone where no other was approved."""
        return self.http_public if spec.public_only else self.http

    def open(
        self,
        server_id: str,
        given: UpstreamSpec,
        *,
        side: ClientSide = EVERYBODY,
        probe: bool = True,
        on_notification: OnNotification = ignored,
        on_asked: OnAsked = lambda unasked: None,
        stderr_into: Callable[[Any], None] = lambda lines: None,
        shared: SharedSession | None = None,
    ) -> AbstractAsyncContextManager[Any]:
        """A context manager that connects to a server and yields the `Connection`; leaving it ends all it started.

        Args:
            given: the entry, with references where it has some.
            side: for whom the connection is made.
            probe: ask for the stateless era first.
            on_notification: gets the method and the params of what the server tells no request in particular.
            on_asked: told when the server asks something of its clients.
            stderr_into: gets the (live) deque of a process's last stderr lines.
            shared: the session that other gateways have with it.

        Raises:
            CommandNotFound: a reference stands for nothing.
        """
        spec = resolved(given if side.credentials is None else given.on_behalf_of(side.credentials))
        max_bytes = self._limits.max_result_bytes
        probe = probe and side.is_shared
        common: dict[str, Any] = {
            "on_notification": on_notification,
            "max_message_bytes": max_bytes,
            "side": side,
            "on_asked": on_asked,
        }
        if spec.command:
            return open_stdio(spec, stderr_into=stderr_into, probe=probe, own_ports=self._own_ports, **common)
        if spec.url and spec.url.startswith("ws"):
            return open_websocket(spec, probe=probe, **common)
        if spec.url:
            shown = shown_url(given.url or "")

            def credentials() -> Mapping[str, str]:
                with contextlib.suppress(CommandNotFound):
                    return resolved(given if side.credentials is None else given.on_behalf_of(side.credentials)).headers
                return spec.headers  # it stands for nothing any more: the old one is refused, and says so

            http = self.http_for(spec)
            lean = None if spec.public_only else self._lean
            return open_http(
                spec, http, probe=probe, shown=shown, credentials=credentials, shared=shared, lean=lean, **common
            )
        if spec.endpoint:
            return open_endpoint(server_id, spec, max_message_bytes=max_bytes)
        return open_inprocess(spec, on_notification=on_notification, ready=self._inside)
