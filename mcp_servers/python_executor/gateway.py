"""The gateway at the other end of a connection, as it answers the tools that code calls.

A call is a JSON-RPC request of ours on the connection that brought the code. It is written and read here, beside the
SDK, whose own way of asking costs a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

__all__ = ["RUN_META", "Gateway"]

RUN_META = "toolscore/run"
"""The member of a request's `_meta` that tells of a run whose code may call tools."""
CALL, OUTPUT = "toolscore/code/call", "toolscore/code/output"
MAX_AT_ONCE = 48
"""Calls of all runs: a gateway serves so many requests of one connection at a time."""


class NoAnswer(Exception):
    """The gateway refused, or is gone."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The gateway's answer to a call."""

    body: bytes
    asked_seconds: float
    over: bool


class Gateway:
    """Asks the gateway over the connection that it came by.

    Args:
        send: writes one message.
    """

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self._send = send
        self._prefix = f"code-{secrets.token_hex(4)}-"
        self._mark = f'"{self._prefix}'
        self._number = 0
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def asker(self, told: Any) -> RemoteAsker | None:
        """Who answers the calls of a run, of what the request's `_meta` tells; `None`: its code has no tools."""
        if not isinstance(told, dict) or not isinstance(told.get("token"), str):
            return None
        at_once = told.get("at_once")
        return RemoteAsker(
            self, told["token"], at_once if isinstance(at_once, int) and 1 <= at_once <= 64 else 16,
            bool(told.get("output")),
        )  # fmt: skip

    def takes(self, message: str) -> bool:
        """Whether a message answers a request of ours; it is taken then."""
        if self._mark not in message[:400] and self._mark not in message[-400:]:
            return False
        try:
            frame = json.loads(message)
        except ValueError:
            return False
        if not isinstance(frame, dict) or not isinstance(frame.get("id"), str) or "method" in frame:
            return False
        if not frame["id"].startswith(self._prefix):
            return False
        waiting = self._waiting.pop(frame["id"], None)
        if waiting is not None and not waiting.done():
            waiting.set_result(frame)
        return True

    async def ask(self, token: str, call: bytes, seconds: float) -> Answered:
        """Have a call answered. Cancelling this cancels it there.

        Raises:
            NoAnswer: it was refused, or the connection ended. TimeoutError: there was no place for it in time.
        """
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            await self._places.acquire()
        try:
            seconds -= time.monotonic() - began
            self._number += 1
            request_id = f"{self._prefix}{self._number}"
            answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            self._waiting[request_id] = answer
            params = {"token": token, "call": call.decode("utf-8", "replace"), "seconds_left": round(seconds, 3)}
            try:
                await self._send(json.dumps({"jsonrpc": "2.0", "id": request_id, "method": CALL, "params": params}))
                frame = await answer
            except asyncio.CancelledError:
                self._tell("notifications/cancelled", {"requestId": request_id, "reason": "the code has ended"})
                raise
            finally:
                self._waiting.pop(request_id, None)
        finally:
            self._places.release()
        result = frame.get("result")
        if not isinstance(result, dict) or not isinstance(result.get("reply"), str):
            error = frame.get("error")
            raise NoAnswer(str(error.get("message")) if isinstance(error, dict) else "the gateway answered nonsense")
        asked = result.get("asked_seconds")
        return Answered(
            result["reply"].encode(), float(asked) if isinstance(asked, int | float) else 0.0, bool(result.get("over"))
        )

    def wrote(self, token: str, text: str) -> None:
        """Tell the gateway what the code wrote. Never waits."""
        self._tell(OUTPUT, {"token": token, "text": text})

    def _tell(self, method: str, params: dict[str, Any]) -> None:
        message = json.dumps({"jsonrpc": "2.0", "method": method, "params": params})
        self._later(self._quietly(message))

    async def _quietly(self, message: str) -> None:
        with contextlib.suppress(Exception):  # the connection is gone
            await self._send(message)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """The connection has ended: nobody answers any more."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(NoAnswer("the gateway is gone"))


class RemoteAsker:
    """Who answers the calls of one run: a gateway at the end of a connection."""

    def __init__(self, gateway: Gateway, token: str, at_once: int, output: bool) -> None:
        self._gateway = gateway
        self._token = token
        self._output = output
        self.at_once = at_once

    @property
    def on_output(self) -> Callable[[str], None] | None:
        return self._wrote if self._output else None

    def _wrote(self, text: str) -> None:
        self._gateway.wrote(self._token, text)

    async def ask(self, call: bytes, seconds: float) -> Answered:
        return await self._gateway.ask(self._token, call, seconds)
