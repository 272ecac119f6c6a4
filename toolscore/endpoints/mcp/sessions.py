"""The clients of the session era over HTTP, and what is kept of each."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter, OrderedDict
from typing import Any

from msgspec import Raw

from toolscore.app.compose import Gateway
from toolscore.core.errors import Overloaded
from toolscore.core.jsonrpc import (
    METHOD_NOT_FOUND,
    Frame,
    RemoteError,
    decode,
    notification_frame,
    remote_error,
    request_frame,
)
from toolscore.core.models import Principal
from toolscore.endpoints.mcp.conversation import Conversation
from toolscore.endpoints.mcp.listener import Listener
from toolscore.endpoints.mcp.params import Members
from toolscore.endpoints.mcp.server import McpServer
from toolscore.endpoints.mcp.sse import Stream

__all__ = ["Session", "Sessions"]

SWEEP_SECONDS = 60
RESUMABLE_SINCE = "2025-11-25"
"""From this revision on a stream begins with an event that has an id and no data: it can be resumed (SEP-1699)."""

REACH_SECONDS = 10.0
"""How long a question outside of any request waits for a stream to its client."""
KEPT_STREAMS = 16
KEPT_BYTES = 1024 * 1024
"""What a session keeps of streams that have ended; larger answers cannot be fetched again once they were sent."""


class Session(Conversation):
    """One client of the session era over HTTP.

    Args:
        server_id: of the address that it uses; `None` for `/mcp`.
        params: of its `initialize`.
        version: the revision that was agreed on.
    """

    def __init__(
        self,
        gateway: Gateway,
        server: McpServer,
        server_id: str | None,
        params: Members,
        version: str,
        principal: Principal,
    ) -> None:
        declared = decode(params["capabilities"]) if "capabilities" in params else None
        super().__init__(principal, declared if isinstance(declared, dict) else {})
        self.server = server
        self.server_id = server_id
        self.version = version
        self.resumable = version >= RESUMABLE_SINCE
        self.used = time.monotonic()
        self.calls: dict[Any, asyncio.Task[Any]] = {}
        self.asked: dict[str, asyncio.Future[Raw]] = {}
        self.own = Stream(0, self.resumable)
        self.streams: OrderedDict[int, Stream] = OrderedDict({0: self.own})
        self.listener = Listener(gateway, server, self, self.tell, self.own.end)
        self._input_seconds = gateway.settings.current.limits.input_seconds
        self._numbers = itertools.count(1)
        self._questions = itertools.count(1)

    @property
    def busy(self) -> bool:
        return bool(self.calls) or self.own.readers > 0

    def open_stream(self) -> Stream:
        """A stream for one response."""
        stream = Stream(next(self._numbers), self.resumable)
        self.streams[stream.number] = stream
        self.tidy()
        return stream

    def tidy(self) -> None:
        """Keep few of the streams that have ended, for clients that come back to them, and none for others."""
        ended = [stream for stream in self.streams.values() if stream.ended and not stream.readers]
        size = sum(stream.size for stream in ended)
        while ended and (len(ended) > KEPT_STREAMS or size > KEPT_BYTES or not self.resumable):
            oldest = ended.pop(0)
            size -= oldest.size
            del self.streams[oldest.number]

    def tell(self, method: str, params: Any) -> None:
        message = notification_frame(method, params)
        if params is None or method == "notifications/resources/updated":
            self.own.put_once(message)
        else:
            self.own.put(message)

    async def ask(self, method: str, params: Raw | None) -> Any:
        """Over the session's own stream, or the response of a request that is under way."""
        deadline = time.monotonic() + REACH_SECONDS
        while True:
            if self.own.readers:
                return await self.question(self.own, method, params)
            for stream in self.streams.values():
                if stream.readers and not stream.ended:
                    return await self.question(stream, method, params)
            if time.monotonic() > deadline:
                raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"the client keeps no stream open: {method}"})
            await asyncio.sleep(0.05)

    async def question(self, stream: Stream, method: str, params: Raw | None) -> Any:
        """Put a request to the client on one of its streams, and wait for its answer."""
        number = f"toolscore-{next(self._questions)}"
        answer = self.asked[number] = asyncio.get_running_loop().create_future()
        stream.put(request_frame(number, method, params))
        try:
            async with asyncio.timeout(self._input_seconds):
                return await answer
        except TimeoutError:
            cancelled = {"requestId": number, "reason": "it took too long"}
            stream.put(notification_frame("notifications/cancelled", cancelled))
            raise RemoteError({"code": -32603, "message": f"the client did not answer {method} in time"}) from None
        except asyncio.CancelledError:
            stream.put(notification_frame("notifications/cancelled", {"requestId": number}))
            raise
        finally:
            self.asked.pop(number, None)

    def answered(self, frame: Frame) -> None:
        """Take the client's answer to a question. One that nobody waits for is dropped."""
        answer = self.asked.get(str(frame.id))
        if answer is None or answer.done():
            return
        if isinstance(frame.error, Raw):
            answer.set_exception(remote_error(frame.error))
        elif isinstance(frame.result, Raw):
            answer.set_result(frame.result)

    def cancel(self, params: Raw | None) -> None:
        """Take `notifications/cancelled` of the client."""
        target = decode(params) if params is not None else None
        given = target.get("requestId") if isinstance(target, dict) else None
        task = self.calls.get(given) if isinstance(given, int | str) else None
        if task is not None:
            task.cancel()

    def end(self) -> None:
        """End what is under way, and the streams."""
        for task in self.calls.values():
            task.cancel()
        for stream in self.streams.values():
            stream.end()
        for answer in self.asked.values():
            if not answer.done():
                answer.set_exception(RemoteError({"code": -32600, "message": "the client has ended its session"}))
        if self.listener is not None:
            self.listener.close()
            self.listener = None  # it knows us: what knows one another waits for the collector


class Sessions:
    """The open sessions, the idlest first."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._of: Counter[str] = Counter()
        self._swept = time.monotonic()

    def open(
        self, server: McpServer, server_id: str | None, params: Members, version: str, principal: Principal
    ) -> str:
        """Open a session. Returns its id.

        Raises:
            Overloaded: too many are open, and all are busy.
        """
        self._make_room(principal)
        session_id = secrets.token_urlsafe(24)
        self._sessions[session_id] = Session(self._gateway, server, server_id, params, version, principal)
        self._of[principal.name] += 1
        return session_id

    def find(self, session_id: str, server_id: str | None, principal: Principal) -> Session | None:
        """The session of that id, if it is this principal's, at this address."""
        session = self._sessions.get(session_id)
        if session is None or session.server_id != server_id or session.principal.name != principal.name:
            return None
        session.used = time.monotonic()
        self._sessions.move_to_end(session_id)
        return session

    def end(self, session_id: str) -> None:
        """End a session that is open."""
        session = self._sessions.pop(session_id)
        self._of[session.principal.name] -= 1
        if not self._of[session.principal.name]:
            del self._of[session.principal.name]
        session.end()
        self._gateway.upstreams.client_gone(session)

    def _make_room(self, principal: Principal) -> None:
        limits = self._gateway.settings.current.limits
        if self._of[principal.name] >= limits.max_sessions_per_principal:
            own = (key for key, one in self._sessions.items() if one.principal.name == principal.name and not one.busy)
            idlest = next(own, None)
            if idlest is None:
                raise Overloaded(
                    f"{limits.max_sessions_per_principal} sessions of yours are open and in use: end one with DELETE",
                    retry_after_seconds=60,
                )
            self.end(idlest)
        bound, oldest_use = limits.max_sessions, time.monotonic() - limits.session_idle_seconds
        if len(self._sessions) >= bound or time.monotonic() > self._swept + SWEEP_SECONDS:
            self._swept = time.monotonic()
            quiet = [key for key, session in self._sessions.items() if not session.busy]
            for key in quiet:
                if self._sessions[key].used < oldest_use:
                    self.end(key)
            if len(self._sessions) >= bound and quiet and quiet[0] in self._sessions:
                self.end(quiet[0])  # the idlest makes room; its client opens another
        if len(self._sessions) >= bound:
            raise Overloaded(f"{bound} sessions are open: end one with DELETE, or wait", retry_after_seconds=60)
