"""MCP over streamable HTTP, both eras, through one shared `aiohttp` session (a pooled `httpx` has a fifth of its pace).

Session era: `initialize`, then the session id in a header. Stateless era: every request carries its envelope and the
routing headers. A POST is answered with JSON or with an event stream; either way one answer comes back from here.

One module: a server may change its era under a connection, so both share one session, one listener and one way to read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import structlog
from msgspec import Raw
from multidict import CIMultiDict
from yarl import URL

from toolscore.core.errors import InvalidRequest, UpstreamProtocolError
from toolscore.core.jsonrpc import (
    METHOD_NOT_FOUND,
    ConnectionLost,
    Params,
    RemoteError,
    decode,
    decode_frame,
    error_frame,
    notification_frame,
    remote_error,
    request_frame,
    result_frame,
    with_progress_token,
)
from toolscore.core.models import UpstreamSpec, shown_url
from toolscore.upstreams.caller import EVERYBODY, Caller, ClientSide, InFlight, OnAsked
from toolscore.upstreams.connection import OnNotification, with_input
from toolscore.upstreams.event_stream import MAX_RETRY_SECONDS, EventStream
from toolscore.upstreams.headers import NAMED_METHODS, header_value, mirrored_arguments, param_headers
from toolscore.upstreams.protocol import (
    BROADCAST,
    LATEST_STATELESS_VERSION,
    ServerInfo,
    client_capabilities,
    info_from_discover,
    info_from_initialize,
    initialize_params,
    session_params,
    speaks_stateless,
    stateless_envelope,
)

__all__ = ["HttpConnection", "open_streamable_http"]

log = structlog.get_logger(__name__)

PING_SECONDS = 15
"""How often a server that keeps no stream open is asked whether it is still there."""

LISTEN_RETRY_SECONDS = 5
LOOK_SECONDS = 2.0

MAX_ROUTINGS = 10_000
MAX_ROUTED_NAME = 256
MAX_QUESTIONS = 64
"""Questions of one server that wait for its clients' answers at a time."""
MAX_IGNORED_BYTES = 64 * 1024
"""What is read of an answer that says nothing; the rest closes the connection."""

RESUME_TRIES = 5
"""How often in a row we come back to a stream that has nothing new."""
MIN_RETRY_SECONDS = 0.5


class HttpConnection:
    """One server behind one URL. Calls are independent requests; the pool keeps their sockets."""

    def __init__(
        self,
        spec: UpstreamSpec,
        session: aiohttp.ClientSession,
        on_notification: OnNotification,
        max_message_bytes: int,
        side: ClientSide = EVERYBODY,
        on_asked: OnAsked = lambda unasked: None,
        shown: str | None = None,
    ) -> None:
        assert spec.url is not None
        self._url = URL(spec.url)
        self._shown = shown or shown_url(spec.url)
        self._session = session
        self._on_notification = on_notification
        self._max = max_message_bytes
        self._headers = {
            **spec.headers,
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        self._features = spec.client_features
        self._forwarded = tuple(name.lower() for name in spec.forward_headers)
        self._declared = client_capabilities(spec.client_features, side)
        self._routings: dict[tuple[str, str], CIMultiDict[str]] = {}
        self._mirrored: dict[str, dict[tuple[str, ...], tuple[str, str]]] = {}
        self.requests = InFlight(spec.client_features, side.owner, on_asked)
        self._next_id = 0
        self._renewing = asyncio.Lock()
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._questions: dict[int, list[asyncio.Task[None]]] = {}
        self._suspected: asyncio.Task[None] | None = None
        self._last_event = ""
        self._retry_seconds: float | None = None
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.info = ServerInfo(protocol_version=LATEST_STATELESS_VERSION)
        self.in_flight = 0
        self.log_level: str | None = None

    async def negotiate(self, *, probe: bool = True) -> None:
        """Ask for the stateless era, which costs a server of the other one nothing, else open a session.

        Args:
            probe: ask for the stateless era at all.
        """
        settle = self._negotiate if probe else self._initialize
        try:
            await settle()
        except _Moved as moved:  # our headers go nowhere but to the host that they are for
            self._url = moved.target
            self._shown = shown_url(str(moved.target))
            await settle()

    async def _negotiate(self, *, again: bool = True) -> None:
        params = stateless_envelope({})
        headers = {**self._headers, "MCP-Protocol-Version": LATEST_STATELESS_VERSION, "Mcp-Method": "server/discover"}
        try:
            self.info = info_from_discover(await self._post("server/discover", params, headers, None))
            self._headers["MCP-Protocol-Version"] = self.info.protocol_version
            self._routings.clear()
        except _Moved:
            raise
        except (RemoteError, UpstreamProtocolError) as exc:
            if again and isinstance(exc, RemoteError) and speaks_stateless(exc):
                await self._negotiate(again=False)
            else:
                await self._initialize()

    async def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Raw:
        def send(again: Params | None) -> Awaitable[Raw]:
            return self._send(method, again, caller)

        return await with_input(send, self.info, method, params, caller, self.requests)

    async def _send(self, method: str, params: Params | None, caller: Caller | None) -> Raw:
        if self.info.stateless:
            params = stateless_envelope(params, self.info.protocol_version, caller, self._features)
            return await self._post(method, params, self._stateless_headers(method, params), caller)
        params = session_params(params)
        session_id = self._headers.get("Mcp-Session-Id")
        with self.requests.hold(caller):
            try:
                return await self._post(method, params, self._headers, caller)
            except _SessionGone:
                # The server refused before it did anything: a new session, and once more.
                async with self._renewing:
                    if self._headers.get("Mcp-Session-Id") == session_id:
                        await self._initialize()
                return await self._post(method, params, self._headers, caller)

    async def notify(self, method: str, params: Params | None = None) -> None:
        if not self.info.stateless:
            await self._send_aside(notification_frame(method, params))

    def learn_tools(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Note which arguments a stateless server wants in headers. Returns the tools that may be used."""
        if not self.info.stateless:
            return tools
        usable, self._mirrored = [], {}
        for tool in tools:
            try:
                mirrored = mirrored_arguments(tool.get("inputSchema"))
            except ValueError as exc:
                log.warning("a tool is left out", url=self._shown, tool=tool["name"], error=str(exc))
                continue
            if mirrored:
                self._mirrored[tool["name"]] = mirrored
            usable.append(tool)
        return usable

    def _stateless_headers(self, method: str, params: Params) -> MutableMapping[str, str]:
        member = NAMED_METHODS.get(method)
        name = params.get(member, "") if member else ""
        if isinstance(name, Raw):
            name = decode(name)
        headers = self._routing(method, name if isinstance(name, str) else "")
        mirrored = self._mirrored.get(name) if method == "tools/call" and self._mirrored else None
        if not mirrored:
            return headers
        arguments = params.get("arguments")
        return CIMultiDict(
            {**headers, **param_headers(mirrored, decode(arguments) if isinstance(arguments, Raw) else arguments)}
        )

    def _routing(self, method: str, name: str) -> CIMultiDict[str]:
        """The headers of a request of the stateless era; made once for each tool."""
        headers = self._routings.get((method, name))
        if headers is None:
            headers = CIMultiDict({**self._headers, "Mcp-Method": method})
            if name:
                headers["Mcp-Name"] = header_value(name)
            if method == "tools/call" and len(name) <= MAX_ROUTED_NAME:  # other names are the clients' to invent
                if len(self._routings) > MAX_ROUTINGS:
                    self._routings.clear()
                self._routings[method, name] = headers
        return headers

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)

    def close(self, reason: str) -> None:
        """The server cannot be reached. Idempotent; requests under way end by themselves."""
        if not self._closed.done():
            self._closed.set_result(reason)

    async def end_session(self) -> None:
        """Tell a server that keeps a session that we leave. Never raises."""
        for task in self._side_tasks:
            task.cancel()
        if "Mcp-Session-Id" in self._headers:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with (
                    asyncio.timeout(2),
                    self._session.delete(self._url, headers=self._headers, allow_redirects=False),
                ):
                    pass

    async def listen(self) -> None:
        """Keep the stream open on which the server tells what changed; without one, ask now and then if it lives."""
        streams = True
        while True:
            if streams:
                try:
                    streams = await self._listen_once()
                except (aiohttp.ClientError, OSError, InvalidRequest, UpstreamProtocolError) as exc:
                    log.debug("the stream for changes broke off", url=self._shown, error=str(exc))
            if streams and self._retry_seconds is not None:
                await asyncio.sleep(max(self._retry_seconds, MIN_RETRY_SECONDS))
                continue
            await asyncio.sleep(LISTEN_RETRY_SECONDS if streams else PING_SECONDS)
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self.request("server/discover" if self.info.stateless else "ping")
            except RemoteError:
                pass  # an answer is a sign of life
            except (ConnectionLost, UpstreamProtocolError, TimeoutError) as exc:
                if self.in_flight and isinstance(exc, TimeoutError):
                    continue  # busy with a call, as a server with one thread is
                self.close(f"the server no longer answers: {exc or 'time-out'}")
                return

    async def _listen_once(self) -> bool:
        """Read a session's own stream to its end. False where the server offers none."""
        if self.info.stateless:
            return False  # `subscriptions/listen` is a request like others
        headers = {**self._headers, "Accept": "text/event-stream"}
        if self._last_event:
            headers["Last-Event-ID"] = self._last_event
        async with self._session.get(self._url, headers=headers, allow_redirects=False) as response:
            if response.status != 200 or response.content_type != "text/event-stream":
                self._last_event = ""
                return False
            stream = EventStream(response.content, self._max)
            async for message in stream.messages():
                frame = decode_frame(message)
                if isinstance(frame.method, str):
                    self._take(frame.method, frame.params or None, frame.id, None)
                self._last_event = stream.last_id
            self._retry_seconds = stream.retry_seconds
        return True

    async def _initialize(self) -> None:
        """Open a session. Calls under way go on with the headers they began with."""
        fresh = {
            name: value
            for name, value in self._headers.items()
            if name not in ("Mcp-Session-Id", "MCP-Protocol-Version")
        }
        opening = {**fresh, "Mcp-Method": "initialize"}  # as a server of both eras may route by it
        self.info = info_from_initialize(
            await self._post("initialize", initialize_params(self._declared), opening, None)
        )
        if "Mcp-Session-Id" in opening:
            fresh["Mcp-Session-Id"] = opening["Mcp-Session-Id"]
        fresh["MCP-Protocol-Version"] = self.info.protocol_version
        body = notification_frame("notifications/initialized")
        async with self._session.post(self._url, data=body, headers=fresh, allow_redirects=False) as response:
            await response.content.read(MAX_IGNORED_BYTES)
        self._headers = fresh
        self.log_level = None

    def _suspect(self, reason: str) -> None:
        """One connection broke off. That may be its own trouble: the server is gone only if it takes no other."""
        if self._suspected is None or self._suspected.done():
            self._suspected = asyncio.create_task(self._look_for_server(reason))
            self._side_tasks.add(self._suspected)
            self._suspected.add_done_callback(self._side_tasks.discard)

    async def _look_for_server(self, reason: str) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                _, writer = await asyncio.open_connection(self._url.host, self._url.port)
        except (OSError, TimeoutError):
            self.close(reason)
        else:
            writer.close()

    async def _post(
        self,
        method: str,
        params: Params | None,
        headers: MutableMapping[str, str],
        caller: Caller | None,
    ) -> Raw:
        self._next_id += 1
        request_id = self._next_id
        if caller is not None and caller.wants_progress:
            params = with_progress_token(params, request_id)
        sent = headers
        if self._forwarded and caller is not None and caller.headers:
            given = {name: caller.headers[name] for name in self._forwarded if name in caller.headers}
            sent = CIMultiDict({**headers, **given})
        response: aiohttp.ClientResponse | None = None
        try:
            async with self._session.post(
                self._url, data=request_frame(request_id, method, params), headers=sent, allow_redirects=False
            ) as response:
                if method == "initialize" and "Mcp-Session-Id" in response.headers:
                    headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
                if response.headers.get("Content-Type", "").startswith("text/event-stream"):
                    return await self._read_stream(response, request_id, headers, caller)
                body = await self._read_body(response)
                return self._answer(response, body, request_id, "Mcp-Session-Id" in headers)
        except aiohttp.ClientConnectorError as exc:
            self.close(f"cannot connect to {self._shown}")
            raise ConnectionLost(
                f"cannot connect to {self._shown}: {exc.os_error.strerror or exc}", sent=False
            ) from exc
        except (aiohttp.ClientError, OSError) as exc:
            if isinstance(exc, aiohttp.ServerDisconnectedError | ConnectionError) and response is None:
                self._suspect(f"the server closed the connection: {exc}")
            raise ConnectionLost(f"the connection to {self._shown} broke off: {type(exc).__name__}", sent=True) from exc
        except asyncio.CancelledError:
            if not self.info.stateless and method != "initialize":  # stateless: closing the stream says it
                cancelled = {"requestId": request_id, "reason": "the caller went away or its time ran out"}
                task = asyncio.create_task(self.notify("notifications/cancelled", cancelled))
                self._side_tasks.add(task)
                task.add_done_callback(self._side_tasks.discard)
            raise
        finally:
            if self._questions and caller is not None:
                for question in self._questions.pop(id(caller), ()):
                    question.cancel()  # it was put for this request alone

    async def _send_aside(self, body: bytes) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with (
                asyncio.timeout(5),
                self._session.post(self._url, data=body, headers=self._headers, allow_redirects=False) as response,
            ):
                await response.content.read(MAX_IGNORED_BYTES)

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        if "Content-Encoding" in response.headers:
            raise UpstreamProtocolError(
                f"{self._shown} packs its answers, which we did not ask for: switch it off there"
            )
        if response.content_length is not None and response.content_length <= self._max:
            return await response.read()
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._max:
                raise UpstreamProtocolError(
                    f"the server answered more than the bound of {self._max:,} bytes: ask it for less, "
                    "or raise `limits.max_result_bytes`"
                )
        return bytes(body)

    def _answer(self, response: aiohttp.ClientResponse, body: bytes, request_id: int, in_session: bool) -> Raw:
        try:
            frame = decode_frame(body)
        except InvalidRequest:
            frame = None
        if frame is not None and isinstance(frame.result, Raw):
            self._check_id(response, frame.id, request_id)
            return frame.result
        if response.status == 404 and in_session:
            raise _SessionGone
        if frame is not None and isinstance(frame.error, Raw):
            self._check_id(response, frame.id, request_id)
            raise remote_error(frame.error)
        if response.status in (301, 302, 303, 307, 308):
            target = self._url.join(URL(response.headers.get("Location", "")))
            if target.origin() == self._url.origin() and target != self._url:
                raise _Moved(target)
            raise UpstreamProtocolError(
                f"{self._shown} redirects to {response.headers.get('Location', 'nowhere')}, another host: "
                "give the final address as `url`"
            )
        said = f"HTTP {response.status} {response.reason}: {body[:200].decode(errors='replace')}"
        if response.status in (401, 403):
            raise ConnectionLost(f"{self._shown} refused us ({said}): check its `headers`", sent=False)
        if response.status in (429, 503):
            raise ConnectionLost(f"{self._shown} is busy ({said})", sent=False)
        if response.status in (502, 504):
            raise ConnectionLost(f"a proxy before {self._shown} failed ({said})", sent=True)
        raise UpstreamProtocolError(f"{self._shown} answered {said}")

    def _check_id(self, response: aiohttp.ClientResponse, found: Any, request_id: int) -> None:
        """An answer to another request than ours came first: whoever is next on this connection must not get ours."""
        if found is not None and str(found) != str(request_id):
            response.close()
            raise UpstreamProtocolError(
                f"{self._shown} answered request {found!r:.40} on the connection of request {request_id}"
            )

    async def _read_stream(
        self,
        response: aiohttp.ClientResponse,
        request_id: int,
        headers: MutableMapping[str, str],
        caller: Caller | None,
    ) -> Raw:
        """The answer out of a stream of events; a server may end the stream and have us come back for the rest."""
        stream = EventStream(response.content, self._max)
        tries, seen = 0, ""
        while tries < RESUME_TRIES:
            try:
                answer = await self._answer_in(stream, request_id, caller)
            except (aiohttp.ClientError, ConnectionError):
                if self.info.stateless or not stream.last_id:
                    raise
                answer = None
            if answer is not None:
                return answer
            if self.info.stateless or not stream.last_id:
                break
            tries = tries + 1 if stream.last_id == seen else 0  # it may have us come back as long as it gets on
            seen = stream.last_id
            await asyncio.sleep(min(stream.retry_seconds or 1.0, MAX_RETRY_SECONDS))
            resume = CIMultiDict({**headers, "Accept": "text/event-stream", "Last-Event-ID": stream.last_id})
            async with self._session.get(self._url, headers=resume, allow_redirects=False) as resumed:
                if resumed.status != 200 or resumed.content_type != "text/event-stream":
                    break
                stream = EventStream(resumed.content, self._max, stream)
                answer = await self._answer_in(stream, request_id, caller)
                if answer is not None:
                    return answer
        raise ConnectionLost(f"{self._shown} ended its stream without an answer", sent=True)

    async def _answer_in(self, stream: EventStream, request_id: int, caller: Caller | None) -> Raw | None:
        async for message in stream.messages():
            try:
                frame = decode_frame(message)
            except InvalidRequest as exc:
                raise UpstreamProtocolError(f"{self._shown} sent an event that is {exc}") from exc
            if isinstance(frame.method, str):
                self._take(frame.method, frame.params or None, frame.id, caller)
            elif frame.id == request_id:
                if isinstance(frame.result, Raw):
                    return frame.result
                raise remote_error(frame.error if isinstance(frame.error, Raw) else Raw(b"null"))
        return None

    def _take(self, method: str, params: Raw | None, request_id: Any, caller: Caller | None) -> None:
        """A notification or a request of the server's; of too many at once the last are left unanswered.

        Args:
            caller: whose request's stream it came on.
        """
        if isinstance(request_id, int | str):
            if len(self._side_tasks) >= 2 * MAX_QUESTIONS:
                return
            full = sum(task.get_name().startswith("asked") for task in self._side_tasks) >= MAX_QUESTIONS
            task = asyncio.create_task(
                self._serve(method, params, request_id, caller, full), name=f"asked {request_id!r}"
            )
            self._side_tasks.add(task)
            task.add_done_callback(self._side_tasks.discard)
            if caller is not None:
                self._questions.setdefault(id(caller), []).append(task)
        elif method == "notifications/cancelled":
            self._taken_back(params)
        elif method in BROADCAST:
            self._on_notification(method, params)
        elif caller is not None:
            with contextlib.suppress(InvalidRequest):  # params that are no object
                caller.notify(method, params)
        elif not self.requests.tell(method, params):
            self._on_notification(method, params)

    def _taken_back(self, params: Raw | None) -> None:
        """The server wants no answer any more to something that it asked."""
        given = decode(params) if params is not None else None
        name = f"asked {given.get('requestId')!r}" if isinstance(given, dict) else ""
        for task in self._side_tasks:
            if task.get_name() == name:
                task.cancel()

    async def _serve(
        self, method: str, params: Raw | None, request_id: int | str, caller: Caller | None, full: bool
    ) -> None:
        try:
            if full:
                raise RemoteError({"code": -32000, "message": f"{MAX_QUESTIONS} questions wait for answers already"})
            body = result_frame(request_id, await self.requests.answer(method, params, caller))
        except RemoteError as exc:
            body = error_frame(request_id, exc.error)
        await self._send_aside(body)


class _Moved(UpstreamProtocolError):
    """The server has another address on the same host, such as one with a slash behind it."""

    def __init__(self, target: URL) -> None:
        super().__init__(f"the server redirects again, to {target}: give the final address as `url`")
        self.target = target


class _SessionGone(RemoteError):
    """The server does not know our session any more (404: streamable HTTP, session management)."""

    def __init__(self) -> None:
        super().__init__({"code": METHOD_NOT_FOUND, "message": "the server has forgotten the session"})


@asynccontextmanager
async def open_streamable_http(
    spec: UpstreamSpec,
    session: aiohttp.ClientSession,
    *,
    on_notification: OnNotification,
    max_message_bytes: int,
    probe: bool = True,
    side: ClientSide = EVERYBODY,
    on_asked: OnAsked = lambda unasked: None,
    shown: str | None = None,
) -> AsyncIterator[HttpConnection]:
    """Negotiate with a server and listen for its changes while open.

    Args:
        probe: ask for the stateless era first.
        side: for whom the session is opened.
        on_asked: told when the server asks something of its clients.
        shown: the address for messages, with references as they were written.

    Raises:
        ConnectionLost, RemoteError, UpstreamProtocolError.
    """
    connection = HttpConnection(spec, session, on_notification, max_message_bytes, side, on_asked, shown)
    await connection.negotiate(probe=probe)
    listener = asyncio.create_task(connection.listen())
    try:
        yield connection
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        connection.close("the server was detached")
        await connection.end_session()
