"""MCP over streamable HTTP, both eras, through one shared `aiohttp` session (a pooled `httpx` has a fifth of its pace).

Session era: `initialize`, then the session id in a header. Stateless era: every request carries its envelope and the
routing headers. A POST is answered with JSON or with an event stream; either way one answer comes back from here.

One module: a server may change its era under a connection, so both share one session, one listener and one way to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
from msgspec import Raw
from multidict import CIMultiDict
from yarl import URL

from toolscore.core.errors import InvalidRequest, UpstreamProtocolError
from toolscore.core.jsonrpc import (
    METHOD_NOT_FOUND,
    ConnectionLost,
    Frame,
    Params,
    RemoteError,
    RequestId,
    decode,
    decode_frames,
    error_frame,
    notification_frame,
    number_of,
    progress_token,
    remote_error,
    request_frame,
    result_frame,
    with_progress_token,
)
from toolscore.core.models import UpstreamSpec, shown_url
from toolscore.upstreams.caller import EVERYBODY, Caller, ClientSide, OnAsked
from toolscore.upstreams.connection import Hearing, OnNotification, SharedSession, with_input
from toolscore.upstreams.event_stream import MAX_RETRY_SECONDS, EventStream
from toolscore.upstreams.headers import NAMED_METHODS, header_value, mirrored_arguments, param_headers
from toolscore.upstreams.http_channel import Answer, BadAnswer
from toolscore.upstreams.http_client import (
    HttpClient,
    Unpacked,
    client_errors,
    plain_url,
    proxy_for,
    seconds_to_wait,
    tls_for,
    with_cookies,
)
from toolscore.upstreams.in_flight import InFlight
from toolscore.upstreams.lean import ConnectFailed, LeanClient
from toolscore.upstreams.protocol import (
    ACKNOWLEDGED,
    BROADCAST,
    LATEST_STATELESS_VERSION,
    LISTED,
    ServerInfo,
    acknowledged_lists,
    client_capabilities,
    info_from_discover,
    info_from_initialize,
    initialize_params,
    session_params,
    speaks_stateless,
    stateless_envelope,
)

if TYPE_CHECKING:
    import aiohttp

    Response = aiohttp.ClientResponse | Answer

__all__ = ["HttpConnection", "Unexpected", "open_streamable_http"]

log = structlog.get_logger(__name__)

PING_SECONDS = 15
"""How often a server that keeps no stream open is asked whether it is still there."""

PROBE_SECONDS = 1.5
"""How long a server may leave the question for the stateless era unanswered, before a session is opened."""
LISTEN_RETRY_SECONDS = 5.0
MAX_LISTEN_RETRY_SECONDS = 60.0
"""The stream for changes is opened again after so long, twice as long each time that it is refused."""
LOOK_SECONDS = 2.0
LIVES_SECONDS = 5.0
NO_SESSION = re.compile(
    r"not (?:been |yet )?initiali[sz]ed|before initiali[sz]ation"
    r"|(?:no(?: valid| such| active)?|invalid|unknown|expired|missing|bad|stale|unrecogni[sz]ed) (?:mcp[- ])?session"
    r"|session(?:[ -]?id)?(?: header)?(?: [\"'\w-]{8,80}[\"']?)? (?:is |was |has |are |does |could )?(?:be )?"
    r"(?:not |no longer |been )?"
    r"(?:found|invalid|unknown|expired|missing|required|terminated|closed|valid|exist|gone|known|recogni[sz]ed)",
    re.IGNORECASE,
)
"""How servers say that they do not know a session (any more), where the status alone does not."""

OPENING = frozenset({"initialize", "server/discover"})
MAX_ROUTINGS = 10_000
MAX_ROUTED_NAME = 256
MAX_QUESTIONS = 64
"""Questions of one server that wait for its clients' answers at a time."""
MAX_IGNORED_BYTES = 64 * 1024
"""What is read of an answer that says nothing; the rest closes the connection."""

RESUME_TRIES = 5
"""How often in a row we come back to a stream that has nothing new."""
MIN_RETRY_SECONDS = 0.5

ID_BITS = 24
"""Of the random part with which request ids begin in a session that several gateways have."""


class HttpConnection:
    """One server behind one URL. Calls are independent requests; the pool keeps their sockets."""

    elsewhere = False

    def __init__(
        self,
        spec: UpstreamSpec,
        session: HttpClient,
        on_notification: OnNotification,
        max_message_bytes: int,
        side: ClientSide = EVERYBODY,
        on_asked: OnAsked = lambda unasked: None,
        shown: str | None = None,
        credentials: Callable[[], Mapping[str, str]] | None = None,
        shared: SharedSession | None = None,
        lean: LeanClient | None = None,
    ) -> None:
        assert spec.url is not None
        self._url, authorization = plain_url(spec.url)
        self._proxy = proxy_for(self._url)
        self._lean = lean if self._proxy is None else None
        self._tls = tls_for(spec)
        self._cookies: dict[str, str] = {}
        self._credentials = credentials
        self._given = dict(spec.headers)
        self._shown = shown or shown_url(spec.url)
        self._session = session
        self._on_notification = on_notification
        self._max = max_message_bytes
        if any(name.lower() == "authorization" for name in spec.headers):
            authorization = {}
        self._headers = {
            **authorization,
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
        if shared is not None:
            self.requests.is_shared_elsewhere = lambda: self.session_id is not None and not shared.may_end()
        self._shared = shared
        # In a session that several gateways have, no two requests may have one id; below what JavaScript counts to.
        self._next_id = secrets.randbits(ID_BITS) << (52 - ID_BITS) if shared is not None else 0
        self._renewing = asyncio.Lock()
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._questions: dict[int, list[asyncio.Task[None]]] = {}
        self._suspected: asyncio.Task[None] | None = None
        self._generation = 0
        self._renewed = asyncio.Event()
        self._elsewhere: dict[int, asyncio.Future[Raw]] = {}
        self._progressing: dict[RequestId, Caller] = {}
        self._stray: str | None = None
        self._last_event = ""
        self._retry_seconds: float | None = None
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.info = ServerInfo(protocol_version=LATEST_STATELESS_VERSION)
        self.in_flight = 0
        self.log_level: str | None = None
        self.hears = False
        """Whether a session's own stream is open."""
        self.hearing = Hearing()
        self.on_renewed: Callable[[], None] = lambda: None
        """Called when another session has taken the place of one that the server had forgotten."""

    async def negotiate(self, *, probe: bool = True) -> None:
        """Ask for the stateless era, which costs a server of the other one nothing, else open a session.

        Args:
            probe: ask for the stateless era at all.
        """
        settle = self._negotiate if probe else self._initialize_or_negotiate
        try:
            await settle()
        except _Moved as moved:  # our headers go nowhere but to the host that they are for
            self._url = moved.target
            self._shown = shown_url(str(moved.target))
            await settle()

    async def _initialize_or_negotiate(self) -> None:
        try:
            await self._initialize()
        except _Moved:
            raise
        except (RemoteError, UpstreamProtocolError):  # it may have changed its era since it was asked
            if not await self._discover():
                raise

    async def _negotiate(self) -> None:
        if not await self._discover():
            await self._initialize()

    async def _discover(self, *, again: bool = True) -> bool:
        """Ask for the stateless era. Whatever else is answered, or nothing: false, and nothing is left behind."""
        params = stateless_envelope({})
        headers = {**self._headers, "MCP-Protocol-Version": LATEST_STATELESS_VERSION, "Mcp-Method": "server/discover"}
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                self.info = info_from_discover(await self._post("server/discover", params, headers, None))
            self._headers["MCP-Protocol-Version"] = self.info.protocol_version
            self._routings.clear()
            return True
        except _Moved:
            raise
        except RemoteError as exc:
            return again and speaks_stateless(exc) and await self._discover(again=False)
        except (UpstreamProtocolError, TimeoutError):
            return False
        except ConnectionLost as exc:
            if not exc.sent and not exc.refused:
                raise
            return False
        finally:
            stray, self._stray = self._stray, None
            if stray is not None and "Mcp-Session-Id" not in self._headers:
                self._aside(self._leave({**self._headers, "Mcp-Session-Id": stray}))

    def request(self, method: str, params: Params | None = None, *, caller: Caller | None = None) -> Awaitable[Raw]:
        send = self._ask if self.info.stateless else self._ask_in_session
        return with_input(lambda again: send(method, again, caller), self.info, method, params, caller, self.requests)

    async def _ask_in_session(self, method: str, params: Params | None, caller: Caller | None) -> Raw:
        params = session_params(params)
        generation = self._generation
        with self.requests.hold(caller):
            try:
                return await self._ask(method, params, caller)
            except _SessionGone as gone:  # the server refused before it did anything
                if gone.error is not None and await self._session_lives():
                    raise RemoteError(gone.error) from gone
                await self._renew(generation)
                return await self._ask(method, params, caller)

    async def _ask(self, method: str, params: Params | None, caller: Caller | None) -> Raw:
        """Ask; once more with fresh credentials, if it refuses those that we have and there are others."""
        try:
            return await self._ask_once(method, params, caller)
        except ConnectionLost as exc:
            if not exc.refused or exc.busy or not self._read_credentials():
                raise
        return await self._ask_once(method, params, caller)

    def _ask_once(self, method: str, params: Params | None, caller: Caller | None) -> Awaitable[Raw]:
        if not self.info.stateless:
            return self._post(method, params, self._headers, caller)
        params = stateless_envelope(params, self.info.protocol_version, caller, self._features)
        return self._post(method, params, self._stateless_headers(method, params), caller)

    def _read_credentials(self) -> bool:
        """Read what the entry's headers refer to again. Returns whether it is something else now."""
        if self._credentials is None:
            return False
        fresh = dict(self._credentials())
        if fresh == self._given:
            return False
        kept = {name: value for name, value in self._headers.items() if name not in self._given}
        self._headers, self._given = {**kept, **fresh}, fresh
        self._routings.clear()
        return True

    async def _session_lives(self) -> bool:
        """Whether the server still knows our session: what it refused was then the request itself."""
        try:
            async with asyncio.timeout(LIVES_SECONDS):
                await self._post("ping", None, self._headers, None)
        except _SessionGone:
            return False
        except (RemoteError, ConnectionLost, UpstreamProtocolError, TimeoutError):
            pass  # it says nothing of sessions
        return True

    async def _renew(self, generation: int) -> None:
        """Open another session, once for all who found that this one is gone."""
        async with self._renewing:
            if self._generation == generation:
                await self._initialize()
                self._renewed.set()
                self.on_renewed()

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
        if "Mcp-Session-Id" in self._headers and (self._shared is None or self._shared.may_end()):
            await self._leave(self._headers)

    async def _leave(self, headers: Mapping[str, str]) -> None:
        try:
            async with asyncio.timeout(2), self._exchange("DELETE", headers):
                pass
        except client_errors(OSError, TimeoutError):
            pass

    def _exchange(self, verb: str, headers: Mapping[str, str], data: bytes | None = None) -> Any:
        """One HTTP request, as a context manager that gives the response."""
        if self._cookies:
            headers = CIMultiDict({**headers, **self._cookies})
        if verb == "POST" and self._lean is not None and data is not None:
            return self._lean.post(self._url, headers, data, self._tls)
        return self._session.request(
            verb, self._url, data=data, headers=headers, allow_redirects=False, proxy=self._proxy, ssl=self._tls or True
        )

    def _keep_cookies(self, response: Response) -> None:
        """Return to the server what a balancer before it set, so that we come back to the same one."""
        fresh = with_cookies(self._cookies or {"Cookie": self._headers.get("Cookie", "")}, response.cookies)
        if fresh is not None:
            self._cookies = fresh

    async def listen(self) -> None:
        """Keep the stream open on which the server tells what changed, and notice when the server is gone."""
        tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._watch())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _watch(self) -> None:
        """Ask a server that keeps no stream open now and then whether it is there."""
        while not self._closed.done():
            await asyncio.sleep(PING_SECONDS)
            if not self.hears:
                await self._look_in()

    async def _look_in(self) -> None:
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self.request("server/discover" if self.info.stateless else "ping")
        except RemoteError:
            pass  # an answer is a sign of life
        except (ConnectionLost, UpstreamProtocolError, TimeoutError) as exc:
            busy = isinstance(exc, ConnectionLost) and exc.busy
            if not busy and not (self.in_flight and isinstance(exc, TimeoutError)):  # as a server with one thread is
                self.close(f"the server no longer answers: {exc or 'time-out'}")

    async def _follow(self) -> None:
        """Read the stream for changes, of whichever session there is, for as long as the server has one."""
        pause = LISTEN_RETRY_SECONDS
        while not self._closed.done():
            self._renewed.clear()
            reading = asyncio.ensure_future(self._listen_once())
            renewed = asyncio.ensure_future(self._renewed.wait())
            try:
                await asyncio.wait({reading, renewed}, return_when=asyncio.FIRST_COMPLETED)
                if renewed.done():
                    continue
                opened, offered = reading.result()
            except client_errors(
                OSError, ValueError, InvalidRequest, UpstreamProtocolError, ConnectionLost, RemoteError
            ) as exc:
                log.debug("the stream for changes broke off", url=self._shown, error=str(exc))
                opened, offered = self.hears, True
            finally:
                if self.hears:
                    self.hears = False
                    self.hearing.end()
                for task in (reading, renewed):
                    task.cancel()
                await asyncio.gather(reading, renewed, return_exceptions=True)
            if not offered:
                await self._renewed.wait()
                continue
            if opened and self._retry_seconds is not None:
                await asyncio.sleep(max(self._retry_seconds, MIN_RETRY_SECONDS))
                continue
            pause = LISTEN_RETRY_SECONDS if opened else min(2 * pause, MAX_LISTEN_RETRY_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._renewed.wait()
            if opened:
                await self._look_in()

    async def _listen_once(self) -> tuple[bool, bool]:
        """Read a session's own stream to its end. Returns whether there was one, and whether to ask again."""
        if self.info.stateless:
            return False, False  # `subscriptions/listen` is a request like others
        headers = {**self._headers, "Accept": "text/event-stream"}
        if self._last_event:
            headers["Last-Event-ID"] = self._last_event
        generation = self._generation
        async with self._exchange("GET", headers) as response:
            if response.status != 200 or not _is_stream(response):
                self._last_event = ""
                if response.status in (401, 403):
                    self._read_credentials()
                elif response.status in (400, 404) and "Mcp-Session-Id" in headers and not await self._session_lives():
                    await self._renew(generation)
                return False, response.status != 405
            self.hears = True
            self.hearing.begin(LISTED)
            stream = EventStream(Unpacked(response), self._max)
            async for message in stream.messages():
                for frame in self._frames(message):
                    self._take_frame(frame, None)
                self._last_event = stream.last_id
            self._retry_seconds = stream.retry_seconds
        return True, True

    @property
    def session_id(self) -> str | None:
        """Of the session, where the server has given one."""
        return self._headers.get("Mcp-Session-Id")

    async def _initialize(self) -> None:
        """Open a session, or join the one that other gateways have. Calls under way go on with the headers they began
        with.
        """
        gone = self.session_id
        known = await self._shared.known() if self._shared is not None else None
        if known is not None and known[0] != gone:
            self._join(*known)
            if await self._session_lives():
                return
            gone = known[0]
        await self._open_session()
        if self._shared is not None and self.session_id is not None:
            ours = dict(self._headers)
            counts = await self._shared.offer(self.session_id, self.info, gone)
            if counts[0] != self.session_id:
                self._join(*counts)
                self._aside(self._leave(ours))

    def _join(self, session_id: str, info: ServerInfo) -> None:
        self.info = info
        self._headers = {
            **self._headers, "Mcp-Session-Id": session_id, "MCP-Protocol-Version": info.protocol_version
        }  # fmt: skip
        self._last_event = ""
        self._generation += 1
        self.log_level = None

    async def _open_session(self) -> None:
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
        async with self._exchange("POST", fresh, notification_frame("notifications/initialized")) as response:
            await _ignored(response)
        self._headers = fresh
        self._last_event = ""
        self._generation += 1
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
                place = self._proxy or self._url
                _, writer = await asyncio.open_connection(place.host, place.port)
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
            self._progressing[request_id] = caller
        sent = self._with_callers(headers, caller)
        response: Response | None = None
        try:
            async with self._exchange("POST", sent, request_frame(request_id, method, params)) as response:
                opens = method in OPENING
                in_session = not (opens or self.info.stateless)
                if isinstance(response, Answer) and not opens and (plain := response.plain_body(self._max)) is not None:
                    return self._answer(response, plain, request_id, in_session, caller)
                if "Set-Cookie" in response.headers and sent is headers:  # else it may be of one client alone
                    self._keep_cookies(response)
                if opens and "Mcp-Session-Id" in response.headers:
                    if method == "initialize":
                        headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
                    else:
                        self._stray = response.headers["Mcp-Session-Id"]
                if response.status == 200 and _is_stream(response):
                    return await self._read_stream(response, request_id, sent, caller)
                body = await self._read_body(response)
                if response.status == 202 and self.hears and not body.strip():
                    return await self._answered_elsewhere(request_id)
                return self._answer(response, body, request_id, in_session, caller)
        except client_errors(ConnectFailed, name="ClientConnectorError") as exc:
            self.close(f"cannot connect to {self._shown}")
            raise ConnectionLost(f"cannot connect to {self._shown}: {_why(exc)}", sent=False) from exc
        except client_errors(OSError) as exc:
            if isinstance(exc, client_errors(ConnectionError, name="ServerDisconnectedError")) and response is None:
                self._suspect(f"the server closed the connection: {exc}")
            raise ConnectionLost(f"the connection to {self._shown} broke off: {type(exc).__name__}", sent=True) from exc
        except asyncio.CancelledError:
            if not self.info.stateless and method not in OPENING:  # stateless: closing the stream says it
                cancelled = {"requestId": request_id, "reason": "the caller went away or its time ran out"}
                self._aside(self._send_aside(notification_frame("notifications/cancelled", cancelled), caller))
            raise
        finally:
            self._progressing.pop(request_id, None)
            if self._questions and caller is not None:
                for question in self._questions.pop(id(caller), ()):
                    question.cancel()  # it was put for this request alone

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that nobody waits for."""
        task = asyncio.create_task(work)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)

    def _with_callers(self, headers: MutableMapping[str, str], caller: Caller | None) -> MutableMapping[str, str]:
        """Our headers, and those of a client's own that the server is given (`forward_headers`)."""
        if not self._forwarded or caller is None or not caller.headers:
            return headers
        return CIMultiDict(
            {**headers, **{name: caller.headers[name] for name in self._forwarded if name in caller.headers}}
        )

    async def _send_aside(self, body: bytes, caller: Caller | None = None) -> None:
        try:
            headers = self._with_callers(self._headers, caller)
            async with asyncio.timeout(5), self._exchange("POST", headers, body) as response:
                await _ignored(response)
        except client_errors(OSError, TimeoutError):
            pass

    async def _answered_elsewhere(self, request_id: int) -> Raw:
        """Wait for an answer that the server accepted to give on its own stream."""
        answer: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
        self._elsewhere[request_id] = answer
        try:
            return await answer
        finally:
            del self._elsewhere[request_id]

    async def _read_body(self, response: Response) -> bytes:
        length = response.content_length
        if length is not None and length <= self._max and "Content-Encoding" not in response.headers:
            return await response.read()
        body = bytearray()
        async for chunk in Unpacked(response).iter_any():
            body += chunk
            if len(body) > self._max:
                raise UpstreamProtocolError(
                    f"the server answered more than the bound of {self._max:,} bytes: ask it for less, "
                    "or raise `limits.max_result_bytes`"
                )
        return bytes(body)

    def _answer(
        self,
        response: Response,
        body: bytes,
        request_id: int,
        in_session: bool,
        caller: Caller | None,
    ) -> Raw:
        """The result in a body that is no stream.

        Raises:
            RemoteError, ConnectionLost, UpstreamProtocolError; _SessionGone, _Moved.
        """
        frame = None
        for one in self._frames(body):
            if not self._take_frame(one, caller) and (frame is None or _matches(one.id, request_id)):
                frame = one
        if frame is not None and isinstance(frame.result, Raw):
            self._check_id(response, frame.id, request_id)
            return frame.result
        error = frame.error if frame is not None and isinstance(frame.error, Raw) else None
        if in_session and response.status == 404 and error is None:
            raise _SessionGone
        if in_session and response.status in (200, 400, 404) and NO_SESSION.search(_said(body)):
            refusal = remote_error(error).error if error is not None else {"code": 0, "message": _said(body)}
            # With 200, or as the answer to this very request, it may be what the tool itself has to say.
            answers_us = frame is not None and _matches(frame.id, request_id)
            raise _SessionGone(refusal if response.status == 200 or answers_us else None)
        if error is not None and response.status not in (401, 403, 429, 503):
            assert frame is not None
            self._check_id(response, frame.id, request_id)
            raise remote_error(error)
        if response.status in (301, 302, 303, 307, 308):
            target = self._url.join(URL(response.headers.get("Location", "")))
            if target.origin() == self._url.origin() and target != self._url:
                raise _Moved(target)
            raise UpstreamProtocolError(
                f"{self._shown} redirects to {response.headers.get('Location', 'nowhere')}, another host: "
                "give the final address as `url`"
            )
        said = f"HTTP {response.status} {response.reason}: {_said(body)}"
        if response.status in (401, 403):
            raise ConnectionLost(f"{self._shown} refused us ({said}): check its `headers`", sent=False, refused=True)
        if response.status in (429, 503):
            wait = seconds_to_wait(response.headers.get("Retry-After"))
            raise ConnectionLost(
                f"{self._shown} is busy ({said})", sent=False, refused=True, busy=True, retry_after=wait
            )
        if response.status in (502, 504):
            raise ConnectionLost(f"a proxy before {self._shown} failed ({said})", sent=True)
        raise Unexpected(f"{self._shown} answered {said}", response.status)

    def _frames(self, message: bytes) -> list[Frame]:
        """The messages in a body or an event. What is none is skipped, as a line on a pipe would be."""
        try:
            return decode_frames(message) if message else []
        except InvalidRequest as exc:
            log.debug("a server sent what is no message", url=self._shown, error=exc.message)
            return []

    def _take_frame(self, frame: Frame, caller: Caller | None) -> bool:
        """Take what is no answer to the request at hand. Returns whether it was taken."""
        if isinstance(frame.method, str):
            self._take(frame.method, frame.params or None, frame.id, caller)
            return True
        waiting = self._elsewhere.get(number_of(frame.id)) if self._elsewhere else None
        if waiting is None or waiting.done():
            return False
        if isinstance(frame.result, Raw):
            waiting.set_result(frame.result)
        else:
            waiting.set_exception(remote_error(frame.error if isinstance(frame.error, Raw) else Raw(b"null")))
        return True

    def _check_id(self, response: Response, found: Any, request_id: int) -> None:
        """An answer to another request than ours came first: whoever is next on this connection must not get ours."""
        if not _matches(found, request_id) and isinstance(found, int | str):
            response.close()
            raise UpstreamProtocolError(
                f"{self._shown} answered request {found!r:.40} on the connection of request {request_id}"
            )

    async def _read_stream(
        self,
        response: Response,
        request_id: int,
        headers: MutableMapping[str, str],
        caller: Caller | None,
    ) -> Raw:
        """The answer out of a stream of events; a server may end the stream and have us come back for the rest."""
        stream = EventStream(Unpacked(response), self._max)
        tries, seen = 0, ""
        while tries < RESUME_TRIES:
            try:
                answer = await self._answer_in(stream, request_id, caller)
            except client_errors(BadAnswer, ConnectionError):
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
            try:
                async with self._exchange("GET", resume) as resumed:
                    if resumed.status != 200 or not _is_stream(resumed):
                        break
                    stream = EventStream(Unpacked(resumed), self._max, stream)
                    answer = await self._answer_in(stream, request_id, caller)
            except client_errors(BadAnswer, ConnectionError):
                continue  # it broke off once more
            if answer is not None:
                return answer
        raise ConnectionLost(f"{self._shown} ended its stream without an answer", sent=True)

    async def _answer_in(self, stream: EventStream, request_id: int, caller: Caller | None) -> Raw | None:
        async for message in stream.messages():
            for frame in self._frames(message):
                if self._take_frame(frame, caller) or not _matches(frame.id, request_id):
                    continue
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
        elif method == ACKNOWLEDGED:
            self.hearing.begin(acknowledged_lists(params))
        elif method == "notifications/progress" and caller is None:
            with contextlib.suppress(InvalidRequest):  # its token says whose it is
                token = progress_token(params) if params is not None else None
                caller = self._progressing.get(token) if token is not None else None
                if caller is not None:
                    caller.notify(method, params)
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
        await self._send_aside(body, caller)


class _Moved(UpstreamProtocolError):
    """The server has another address on the same host, such as one with a slash behind it."""

    def __init__(self, target: URL) -> None:
        super().__init__(f"the server redirects again, to {target}: give the final address as `url`")
        self.target = target


class Unexpected(UpstreamProtocolError):
    """An answer that is no MCP.

    Attributes:
        http_status: HTTP's.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.http_status = status


class _SessionGone(RemoteError):
    """The server does not know our session any more (404: streamable HTTP, session management).

    Attributes:
        error: what it said, where it may have meant something else; `None`: nothing else.
    """

    def __init__(self, error: dict[str, Any] | None = None) -> None:
        super().__init__(error or {"code": METHOD_NOT_FOUND, "message": "the server has forgotten the session"})
        self.error: Any = error


def _is_stream(response: Response) -> bool:
    return response.headers.get("Content-Type", "").lstrip().lower().startswith("text/event-stream")


async def _ignored(response: Response) -> None:
    """Read what a notification is answered with, unless that may never end."""
    if _is_stream(response):
        response.close()
    else:
        await response.content.read(MAX_IGNORED_BYTES)


def _why(exc: Any) -> str:
    """Why there is no connection: a `ConnectFailed`, or aiohttp's `ClientConnectorError`."""
    if isinstance(exc, ConnectFailed):
        return exc.reason
    if hasattr(exc, "certificate_error"):
        reason = getattr(exc.certificate_error, "verify_message", None) or exc.certificate_error
        return f"its certificate is not trusted ({reason}): name its authority with `ca_file`"
    return exc.os_error.strerror or str(exc)


def _said(body: bytes) -> str:
    return body[:200].decode(errors="replace")


def _matches(found: Any, request_id: int) -> bool:
    return bool(found == request_id or number_of(found) == request_id)


@asynccontextmanager
async def open_streamable_http(
    spec: UpstreamSpec,
    session: HttpClient,
    *,
    on_notification: OnNotification,
    max_message_bytes: int,
    probe: bool = True,
    side: ClientSide = EVERYBODY,
    on_asked: OnAsked = lambda unasked: None,
    shown: str | None = None,
    credentials: Callable[[], Mapping[str, str]] | None = None,
    shared: SharedSession | None = None,
    lean: LeanClient | None = None,
) -> AsyncIterator[HttpConnection]:
    """Negotiate with a server and listen for its changes while open.

    Args:
        probe: ask for the stateless era first.
        side: for whom the session is opened.
        on_asked: told when the server asks something of its clients.
        shown: the address for messages, with references as they were written.
        credentials: gives the entry's headers anew, with what their references stand for now.
        shared: the session that other gateways have with it.
        lean: makes the requests that are calls, where no proxy is between.

    Raises:
        ConnectionLost, RemoteError, UpstreamProtocolError.
    """
    connection = HttpConnection(
        spec, session, on_notification, max_message_bytes, side, on_asked, shown, credentials, shared, lean
    )
    await connection.negotiate(probe=probe)
    listener = asyncio.create_task(connection.listen())
    try:
        yield connection
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        connection.close("the server was detached")
        await connection.end_session()
