"""MCP over the transport of 2024-11-05: a stream of events tells where to POST, and brings the answers.

Found by `type: sse`, or where a server refuses what is POSTed to its address and answers a GET with such a stream, as
the specification has it for clients that speak to old servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog
from yarl import URL

from toolscore.core.errors import ToolScoreError, UpstreamProtocolError
from toolscore.core.jsonrpc import ConnectionLost, NotSent, RemoteError
from toolscore.core.models import UpstreamSpec, shown_url
from toolscore.core.peer import Peer
from toolscore.upstreams.caller import EVERYBODY, ClientSide, OnAsked
from toolscore.upstreams.connection import Connection, OnNotification, PeerConnection, SharedSession
from toolscore.upstreams.event_stream import MESSAGE, EventStream
from toolscore.upstreams.http import Unexpected, open_streamable_http
from toolscore.upstreams.http_client import (
    HttpClient,
    Unpacked,
    client_errors,
    plain_url,
    proxy_for,
    seconds_to_wait,
    tls_for,
)
from toolscore.upstreams.lean import LeanClient

__all__ = ["SseConnection", "open_http"]

log = structlog.get_logger(__name__)

ENDPOINT_SECONDS = 10.0
POST_SECONDS = 30.0
PING_SECONDS = 15.0
MAX_IGNORED_BYTES = 64 * 1024
OLD_REFUSALS = frozenset({400, 404, 405, 406, 410, 415, 422, 501})
"""With these an old server may refuse what is POSTed to the address of its stream; never with 401 or 403."""


class SseConnection(PeerConnection):
    """A connection over a stream and POSTs."""

    kind = "sse"


class _Line:
    """The two halves of the transport.

    Args:
        credentials: gives the entry's headers anew.
    """

    def __init__(
        self,
        spec: UpstreamSpec,
        session: HttpClient,
        shown: str,
        credentials: Callable[[], Mapping[str, str]] | None,
    ) -> None:
        assert spec.url is not None
        self._url, authorization = plain_url(spec.url)
        self._proxy = proxy_for(self._url)
        self._tls: Any = tls_for(spec) or True
        self._session = session
        self._authorization = authorization
        self._given = dict(spec.headers)
        self._credentials = credentials
        self._shown = shown
        self._target = self._url

    def stream(self) -> Any:
        """The request for the stream, as a context manager."""
        headers = {**self._authorization, **self._given, "Accept": "text/event-stream"}
        return self._session.get(self._url, headers=headers, allow_redirects=False, proxy=self._proxy, ssl=self._tls)

    def answer_to(self, place: str) -> None:
        """POST to this address from now on.

        Raises:
            UpstreamProtocolError: it is another host, which our headers are not for.
        """
        target = self._url.join(URL(place, encoded=True))
        if target.origin() != self._url.origin():
            raise UpstreamProtocolError(f"{self._shown} has us answer to another host, {shown_url(str(target))}")
        self._target = target

    async def send(self, message: bytes) -> None:
        """Send one message.

        Raises:
            ConnectionLost: it was refused. NotSent: nobody is there. OSError: it broke off.
        """
        status, said, wait = await self._post(message)
        if (
            status in (401, 403)
            and self._credentials is not None
            and (fresh := dict(self._credentials())) != self._given
        ):
            self._given = fresh
            status, said, wait = await self._post(message)
        if status in (401, 403):
            raise ConnectionLost(f"{self._shown} refused us ({said}): check its `headers`", sent=False, refused=True)
        if status in (429, 503):
            raise ConnectionLost(
                f"{self._shown} is busy ({said})", sent=False, refused=True, busy=True, retry_after=wait
            )
        if not 200 <= status < 300:
            # A mistake of the request's is found before anything is done; what else failed may have done its work.
            raise ConnectionLost(f"{self._shown} took no message: {said}", sent=not 400 <= status < 500)

    async def _post(self, message: bytes) -> tuple[int, str, float | None]:
        headers = {**self._authorization, **self._given, "Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(POST_SECONDS),
                self._session.post(
                    self._target, data=message, headers=headers, allow_redirects=False, proxy=self._proxy, ssl=self._tls
                ) as response,
            ):
                body = await response.content.read(MAX_IGNORED_BYTES)
                said = f"HTTP {response.status} {response.reason}: {body[:200].decode(errors='replace')}"
                return response.status, said, seconds_to_wait(response.headers.get("Retry-After"))
        except client_errors(name="ClientConnectorError") as exc:
            raise NotSent(f"cannot reach {self._shown}: {exc}") from exc
        except client_errors() as exc:
            raise ConnectionResetError(f"cannot reach {self._shown}: {exc}") from exc
        except TimeoutError:
            raise ConnectionResetError(f"{self._shown} took no message in {POST_SECONDS:g} s") from None


@asynccontextmanager
async def _open_sse(
    spec: UpstreamSpec,
    session: HttpClient,
    *,
    on_notification: OnNotification,
    max_message_bytes: int,
    side: ClientSide,
    on_asked: OnAsked,
    shown: str,
    credentials: Callable[[], Mapping[str, str]] | None,
) -> AsyncIterator[SseConnection]:
    """Open the stream and a session.

    Raises:
        ConnectionLost, RemoteError, UpstreamProtocolError.
    """
    line = _Line(spec, session, shown, credentials)
    try:
        async with line.stream() as response:
            if response.status in (401, 403):
                raise ConnectionLost(f"{shown} refused us (HTTP {response.status})", sent=False, refused=True)
            kind = response.headers.get("Content-Type", "").lower()
            if response.status != 200 or not kind.startswith("text/event-stream"):
                raise UpstreamProtocolError(f"{shown} answered HTTP {response.status} {kind} where a stream should be")
            make_peer = partial(Peer, line.send, on_junk=lambda _: None, lenient=True)
            connection = SseConnection(make_peer, on_notification, spec.client_features, side, on_asked)
            known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            stream = EventStream(Unpacked(response), max_message_bytes)
            tasks = [asyncio.ensure_future(_read(stream, line, connection, known, shown))]
            try:
                async with asyncio.timeout(ENDPOINT_SECONDS):
                    await known
                await connection.negotiate(probe=False)
                tasks.append(asyncio.ensure_future(_watch(connection)))
                yield connection
            except TimeoutError:
                raise UpstreamProtocolError(f"{shown} does not say where to answer") from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                connection.closed("the server was detached")
    except client_errors(OSError) as exc:
        raise ConnectionLost(f"cannot connect to {shown}: {exc or type(exc).__name__}", sent=False) from exc


async def _read(
    stream: EventStream, line: _Line, connection: SseConnection, known: asyncio.Future[None], shown: str
) -> None:
    """Take what comes on the stream, to its end."""
    reason = f"{shown} ended its stream"
    try:
        async for kind, data in stream.events():
            if kind == b"endpoint":
                line.answer_to(data.decode("utf-8", "replace").strip())
                if not known.done():
                    known.set_result(None)
            elif kind in MESSAGE:
                connection.peer.receive(data)
    except client_errors(OSError) as exc:
        reason = f"the stream from {shown} broke off: {type(exc).__name__}"
    except UpstreamProtocolError as exc:
        reason = exc.message
    if not known.done():
        known.set_exception(UpstreamProtocolError(reason))
    connection.closed(reason)


async def _watch(connection: SseConnection) -> None:
    """Notice that a server is gone that does not say so."""
    while True:
        await asyncio.sleep(PING_SECONDS)
        try:
            async with asyncio.timeout(PING_SECONDS):
                await connection.request("ping")
        except RemoteError:
            continue  # an answer is a sign of life
        except (ConnectionLost, UpstreamProtocolError, TimeoutError) as exc:
            if isinstance(exc, ConnectionLost) and exc.busy:
                continue
            if not (connection.in_flight and isinstance(exc, TimeoutError)):
                connection.closed(f"the server no longer answers: {exc or 'time-out'}")
                return


@asynccontextmanager
async def open_http(
    spec: UpstreamSpec,
    session: HttpClient,
    *,
    on_notification: OnNotification,
    max_message_bytes: int,
    probe: bool = True,
    side: ClientSide = EVERYBODY,
    on_asked: OnAsked = lambda unasked: None,
    shown: str,
    credentials: Callable[[], Mapping[str, str]] | None = None,
    shared: SharedSession | None = None,
    lean: LeanClient | None = None,
) -> AsyncIterator[Connection]:
    """Negotiate with a server over whichever of the HTTP transports it speaks. Arguments as `open_streamable_http`.

    Raises:
        ConnectionLost, RemoteError, UpstreamProtocolError: where both are refused, what the newer one was refused with.
    """
    common: dict[str, Any] = {
        "on_notification": on_notification, "max_message_bytes": max_message_bytes, "side": side, "on_asked": on_asked,
        "shown": shown, "credentials": credentials,
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        connection: Connection
        refusal: Unexpected | None = None
        if spec.type != "sse":
            try:
                opening = open_streamable_http(spec, session, probe=probe, shared=shared, lean=lean, **common)
                connection = await stack.enter_async_context(opening)
            except Unexpected as exc:
                if exc.http_status not in OLD_REFUSALS:
                    raise
                refusal = exc
        if spec.type == "sse" or refusal is not None:
            try:
                connection = await stack.enter_async_context(_open_sse(spec, session, **common))
            except (ConnectionLost, RemoteError, ToolScoreError):
                if refusal is not None:
                    raise refusal from None
                raise
        yield connection
