"""The events socket as async Python: reconnects by itself, misses nothing, wakes whoever waits for a tool."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
from collections.abc import AsyncIterator, Collection, Coroutine
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from runtimes.client.rest import authorization, gateway_address
from runtimes.client.results import ToolScoreClientError

__all__ = ["RealTimeToolClient"]

T = TypeVar("T")

log = logging.getLogger(__name__)

EVENTS_PATH = "/api/v1/events/tools"
REFUSED = {401: "unauthenticated", 403: "forbidden"}
FAILURES_TOLD = 3
"""After so many in a row it is said, once, that nobody answers."""
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 15.0
QUEUE_EVENTS = 10_000
TOOL_EVENTS = ("tool_installed", "tool_updated", "tool_removed", "tool_disabled", "tool_enabled")


class RealTimeToolClient:
    """Follows a gateway's events. Use as `async with RealTimeToolClient() as client`.

    Keeps the list of tools (`tools`), up to date with what it hears. After a broken connection it dials again with
    back-off and jitter, and asks for what it missed since the last `seq` it saw.

    Args:
        url: of the gateway (`http://…`), or of its events socket (`ws://…`); `None`: as `TOOLSCORE_URL` says, else on
            this machine.
        events: only these types; `None`: all but those that must be asked for.
        api_key: from `toolscore keys create`; `None`: that of `TOOLSCORE_API_KEY`, if there is one.
        heartbeat_seconds: a ping this often; without an answer for as long again the connection is given up.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        events: Collection[str] | None = None,
        api_key: str | None = None,
        heartbeat_seconds: float = 20,
    ) -> None:
        self._url = _events_address(gateway_address(url))
        parts = urlsplit(self._url)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._headers = authorization(api_key)
        self._types = list(events) if events is not None else None
        self._heartbeat = heartbeat_seconds
        self.tools: dict[str, dict[str, Any]] = {}
        self._off: dict[str, dict[str, Any]] = {}
        """What is known of tools that were disabled meanwhile."""
        self.last_seq: int | None = None
        self.connections = 0
        """How often it has connected so far."""
        self._socket: ClientConnection | None = None
        self._connected = asyncio.Event()
        self._changed = asyncio.Condition()
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE_EVENTS)
        self._arrived = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)

    async def __aenter__(self) -> RealTimeToolClient:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def connected(self) -> None:
        """Wait until the gateway has said welcome.

        Raises:
            ToolScoreClientError: it never will: it refuses the key, or what was asked for.
        """
        if not self._connected.is_set():
            await self._or_end(self._connected.wait())

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Each event, in order, once. One consumer; what it leaves unread is bounded, the oldest goes first.

        Raises:
            ToolScoreClientError: as of `connected`.
        """
        while True:
            while self._queue.empty():  # and nothing is taken off before it is given out: a consumer may be cancelled
                self._arrived.clear()
                await self._or_end(self._arrived.wait())
            yield self._queue.get_nowait()

    async def wait_for_tool(self, wanted: str) -> dict[str, Any]:
        """Wait until a tool of this full name, own name, or capability is there, and return it. At once if it is.

        Raises:
            ToolScoreClientError: as of `connected`.
        """

        async def there() -> dict[str, Any]:
            async with self._changed:
                while (tool := self._find(wanted)) is None:
                    await self._changed.wait()
                return tool

        return await self._or_end(there())

    async def _or_end(self, wait: Coroutine[Any, Any, T]) -> T:
        """Wait for something, or for the end of all following."""
        waiting = asyncio.ensure_future(wait)
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if not self._task.cancelled():
                self._task.result()  # raises why it ended
            raise ToolScoreClientError("the client was closed", code="unreachable")
        finally:
            waiting.cancel()

    async def call(self, method: str, params: dict[str, Any] | None = None, *, timeout_seconds: float = 60) -> Any:
        """Run a command of the gateway (`get_stats`, `list_tools`, `get_tool`, `execute_tool`) over the socket.

        Raises:
            ToolScoreClientError: it failed, or the connection broke meanwhile (code `outcome_unknown`).
            TimeoutError.
        """
        async with asyncio.timeout(timeout_seconds):
            await self.connected()
            call_id = next(self._ids)
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._waiting[call_id] = answer
            try:
                await self._send({"type": "call", "id": call_id, "method": method, "params": params or {}})
                return await answer
            finally:
                self._waiting.pop(call_id, None)

    def _find(self, wanted: str) -> dict[str, Any] | None:
        if wanted in self.tools:
            return self.tools[wanted]
        for tool in self.tools.values():
            names = {tool.get("name"), *(capability.get("name") for capability in tool.get("capabilities") or ())}
            if wanted in names:
                return tool
        return None

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                async with connect(
                    self._address(),
                    additional_headers=self._headers,
                    ping_interval=self._heartbeat,
                    ping_timeout=self._heartbeat,
                    max_size=64 * 1024 * 1024,
                    compression=None,
                ) as socket:
                    self._socket = socket
                    await self._follow(socket)
                    failures = 0
            except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as exc:
                status = exc.response.status_code if isinstance(exc, InvalidStatus) else None
                if status in REFUSED:
                    raise ToolScoreClientError(
                        f"{self._shown} refuses us (HTTP {status}): check the key", code=REFUSED[status]
                    ) from exc
                failures = 0 if self._connected.is_set() else failures + 1
                if failures == FAILURES_TOLD:
                    log.warning("no gateway answers at %s, it is tried again and again: %s", self._shown, exc)
            finally:
                self._socket = None
                self._connected.clear()
                for answer in self._waiting.values():
                    if not answer.done():
                        error = ToolScoreClientError("the connection broke before the answer", code="outcome_unknown")
                        answer.set_exception(error)
            wait = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures, 20))
            await asyncio.sleep(wait * random.uniform(0.5, 1))

    async def _follow(self, socket: ClientConnection) -> None:
        async for message in socket:
            event = json.loads(message)
            match event.get("type"):
                case "welcome" | "tools_list":
                    if "tools" in event:
                        self.tools = {tool["tool_id"]: tool for tool in event["tools"]}
                    if event["type"] == "welcome":
                        if self.last_seq is not None and self.last_seq > event["seq"]:
                            self.last_seq = event["seq"]
                            return  # it lost its database and counts anew: dial again, and ask from there
                        self._welcomed(event)
                    await self._tell()
                case "error" if event.get("id") is None:  # what the address asks for cannot be had
                    raise _error(event)
                case "result" | "error":
                    self._answered(event)
                case "pong":
                    pass
                case "lagged":
                    self.last_seq = event["resume_from"]
                    return  # and dial again: what is told live must not come before what was missed
                case _:
                    await self._take(event)

    def _address(self) -> str:
        """Where to dial, with what is wanted: asked for after the welcome, it would come behind what is told live."""
        asked: dict[str, str] = {}
        if self._types is not None:
            asked["events"] = ",".join(sorted({*self._types, *TOOL_EVENTS}))  # these keep `tools` up to date
        if self.last_seq is not None:
            asked["since"] = str(self.last_seq)
        if not asked:
            return self._url
        return f"{self._url}{'&' if '?' in self._url else '?'}{urlencode(asked)}"

    def _welcomed(self, event: dict[str, Any]) -> None:
        if self.last_seq is None:
            self.last_seq = event["seq"]
        self.connections += 1
        self._connected.set()

    async def _take(self, event: dict[str, Any]) -> None:
        seq = event.get("seq")
        if seq is not None:
            if self.last_seq is not None and seq <= self.last_seq:
                return
            self.last_seq = seq
        tool_id = event.get("tool_id")
        if event["type"] in ("tool_installed", "tool_updated") and tool_id:
            self.tools[tool_id] = {**self.tools.get(tool_id, {}), **event, "enabled": True}
            await self._tell()
        elif event["type"] == "tool_removed" and tool_id:
            self.tools.pop(tool_id, None)
            self._off.pop(tool_id, None)
        elif event["type"] == "tool_disabled" and tool_id:
            self._off[tool_id] = self.tools.pop(tool_id, {})
        elif event["type"] == "tool_enabled" and tool_id:
            self.tools[tool_id] = {**event, **self._off.pop(tool_id, {}), "enabled": True}
            await self._tell()
        if self._types is not None and event["type"] not in self._types:
            return
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(event)
        self._arrived.set()

    def _answered(self, event: dict[str, Any]) -> None:
        answer = self._waiting.get(event.get("id") or 0)
        if answer is None or answer.done():
            return
        if event["type"] == "result":
            answer.set_result(event["result"])
            return
        answer.set_exception(_error(event))

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _send(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            raise ToolScoreClientError("the connection is being made again", code="unreachable", retryable=True)
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(json.dumps(message))


def _error(event: dict[str, Any]) -> ToolScoreClientError:
    error = event.get("error") or {}
    return ToolScoreClientError(
        error.get("message", "the command failed"),
        code=error.get("code", "internal_error"),
        retryable=bool(error.get("retryable")),
        retry_after_seconds=error.get("retry_after_seconds"),
        suggestion=error.get("suggestion"),
    )


def _events_address(url: str) -> str:
    """The address of the events socket of a gateway.

    Raises:
        ValueError: it is no address.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("ws", "wss"):
        return url
    if separator and scheme in ("http", "https"):
        return f"{scheme.replace('http', 'ws')}://{rest}{EVENTS_PATH}"
    raise ValueError(f"a gateway is at an address such as http://127.0.0.1:8082, found {url!r}")
