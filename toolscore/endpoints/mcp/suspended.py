"""Calls that wait for their client.

A client of the session era is asked live. One of the stateless era cannot be: its call to a server that asks live is
suspended, the client gets an `input_required` result with a sealed `requestState`, and its retry resumes the call.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Raw

from toolscore.core.errors import InvalidArguments, InvalidRequest, Overloaded
from toolscore.core.jsonrpc import decode, decode_object, encode
from toolscore.core.models import LOCAL, Principal
from toolscore.core.seal import BadSeal, KeyRing
from toolscore.endpoints.mcp.callers import StatelessCaller
from toolscore.upstreams import Caller
from toolscore.upstreams.protocol import input_required

__all__ = ["StatelessCalls"]

MAX_SUSPENDED = 1000
GATHER_SECONDS = 0.05
"""A question that a server puts so soon after another goes to the client together with it."""
MAX_GATHER_SECONDS = 0.5


class _Question:
    def __init__(self, method: str, params: Raw | None) -> None:
        self.request = {"method": method, "params": params if params is not None else {}}
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class _Call:
    """A call under way that may be suspended."""

    def __init__(self, caller: StatelessCaller, work: Awaitable[Any]) -> None:
        self.caller = caller
        self.questions: dict[str, _Question] = {}
        self._asked = asyncio.Event()
        self._count = 0
        caller.on_ask = self._ask
        self.task = asyncio.ensure_future(work)

    async def _ask(self, method: str, params: Raw | None) -> Any:
        self._count += 1
        key = f"{method.split('/', maxsplit=1)[0]}_{self._count}"
        question = self.questions[key] = _Question(method, params)
        self._asked.set()
        try:
            return await question.answer
        finally:
            self.questions.pop(key, None)

    async def outcome(self) -> Any:
        """The result; or the questions that stand between the client and it, as `inputRequests`."""
        while True:
            asked = asyncio.ensure_future(self._asked.wait())
            try:
                await asyncio.wait({self.task, asked}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                asked.cancel()
            if self.task.done():
                return self.task.result()
            await self._gather()
            if not self.task.done() and self.questions:
                self._asked.clear()
                self.caller.suspended = True
                return {key: question.request for key, question in self.questions.items()}
            self._asked.clear()

    async def _gather(self) -> None:
        """Wait until the server puts no more questions, or has ended."""
        seen, until = -1, time.monotonic() + MAX_GATHER_SECONDS
        while not self.task.done() and seen != self._count and time.monotonic() < until:
            seen = self._count
            await asyncio.wait({self.task}, timeout=GATHER_SECONDS)

    def answered(self, responses: Mapping[str, Raw]) -> None:
        """Give the server what the client answered; what was not answered is asked again.

        Raises:
            InvalidRequest: an answer that is no object.
        """
        for key, question in self.questions.items():
            value = responses.get(key)
            if value is not None and not question.answer.done():
                decode_object(value)
                question.answer.set_result(value)
        self.caller.suspended = False
        self._asked.set()


class StatelessCalls:
    """The calls of stateless clients that may have to wait for their client. Closed by whoever made it.

    Args:
        input_seconds: how long a client may take to come back.
        identity: what gateways have in common whose states this one can open; another's are for the server that they
            came from.
        instance: of this gateway, where it is one of several.
        elsewhere: goes on with a call that waits on another gateway: its instance, the caller, the method, the params.
    """

    def __init__(
        self,
        input_seconds: float,
        ring: KeyRing,
        identity: str,
        instance: str = "",
        elsewhere: Callable[[str, StatelessCaller, str, dict[str, Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self._ring = ring
        self._prefix = f"toolscore.{identity[:8]}."
        self._instance = instance
        self._elsewhere = elsewhere
        self._input_seconds = input_seconds
        self._suspended: dict[str, tuple[_Call, asyncio.TimerHandle]] = {}

    def close(self) -> None:
        """Give up the calls that wait."""
        for call, timer in self._suspended.values():
            timer.cancel()
            call.task.cancel()
        self._suspended.clear()

    def _opened(self, caller: Caller, params: dict[str, Any], method: str) -> dict[str, Any]:
        """The params of a request, with the server's own state out of the seal that we put on it."""
        state = params.get("requestState")
        if caller.principal is LOCAL or state is None or self._is_ours(params):
            return params
        name, subject, inner = self._unsealed(SERVERS, decode(state), SEALED_PREFIX)
        if name != caller.principal.name or subject != _about(method, params):
            raise _bad_state("it belongs to another request")
        return {**params, "requestState": Raw(encode(inner))}

    def _sealed(self, caller: Caller, about: str, result: Any) -> Any:
        """A result, with the server's own state bound to the caller: to the server we are all one client."""
        if caller.principal is LOCAL or not isinstance(result, Raw):
            return result
        members = input_required(result)
        if members is None or "requestState" not in members:
            return result
        token = self._seal(SERVERS, [caller.principal.name, about, decode(members["requestState"])])
        return Raw(encode({**members, "requestState": SEALED_PREFIX + token}))

    def _seal(self, purpose: str, value: list[Any]) -> str:
        return self._ring.seal(json.dumps([time.time(), *value]).encode(), purpose)

    def _unsealed(self, purpose: str, state: Any, prefix: str) -> list[Any]:
        try:
            sealed_at, *value = json.loads(self._ring.open(str(state).removeprefix(prefix), purpose))
            if time.time() > sealed_at + self._input_seconds + 1:
                raise ValueError
        except (BadSeal, ValueError, TypeError):
            raise _bad_state("it was changed, or has expired") from None
        return list(value)

    def _is_ours(self, params: Mapping[str, Any]) -> bool:
        """Whether a request resumes a call of ours (another's state is for the server it came from)."""
        state = params.get("requestState")
        return state is not None and memoryview(state).tobytes().startswith(f'"{self._prefix}'.encode())

    async def carry_out(
        self,
        caller: StatelessCaller,
        method: str,
        params: dict[str, Any],
        work: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Begin a call, or go on with the one that the request resumes.

        Args:
            params: of the request, as they came.
            work: makes the call with the params that it gets; may take them apart.

        Returns:
            The result, or an `InputRequiredResult` while the server asks.

        Raises:
            InvalidArguments: a state that is another caller's, another request's, was changed, has expired or was
                used already.
        """
        if self._is_ours(params):
            instance = self._unsealed(OURS, decode(params["requestState"]), self._prefix)[3]
            if instance != self._instance and self._elsewhere is not None:
                return await self._elsewhere(instance, caller, method, params)
            return await self.resume(caller, method, params)
        params = self._opened(caller, params, method)
        about = _about(method, params)
        return await self._outcome(_Call(caller, work(params)), about)

    async def resume(self, caller: StatelessCaller, method: str, params: Mapping[str, Any]) -> Any:
        """Go on with a call that waits here. Raises as `carry_out`."""
        about = _about(method, params)
        key, call = self._take(decode(params["requestState"]), about, caller.principal)
        call.caller.tell, call.caller.token = caller.tell, caller.token
        try:
            call.answered(decode_object(params["inputResponses"]) if "inputResponses" in params else {})
        except InvalidRequest as exc:
            self._suspend(call, key)  # until it expires, the client may do better
            raise InvalidArguments(f"inputResponses: {exc.message}") from exc
        return await self._outcome(call, about)

    async def _outcome(self, call: _Call, about: str) -> Any:
        try:
            outcome = await call.outcome()
        except asyncio.CancelledError:
            call.task.cancel()
            await asyncio.gather(call.task, return_exceptions=True)
            raise
        if call.task.done():
            return self._sealed(call.caller, about, outcome)
        if len(self._suspended) >= MAX_SUSPENDED:
            call.task.cancel()
            raise Overloaded(f"{MAX_SUSPENDED} calls wait for their clients", retry_after_seconds=30)
        call.caller.tell = lambda method, params: None  # nobody listens until the client comes back
        key = secrets.token_urlsafe(16)
        self._suspend(call, key)
        token = self._seal(OURS, [key, call.caller.principal.name, about, self._instance])
        return {
            "resultType": "input_required",
            "inputRequests": outcome,
            "requestState": self._prefix + token,
        }

    def _suspend(self, call: _Call, key: str) -> None:
        timer = asyncio.get_running_loop().call_later(self._input_seconds, self._expire, key)
        self._suspended[key] = (call, timer)

    def _expire(self, key: str) -> None:
        suspended = self._suspended.pop(key, None)
        if suspended is not None:
            suspended[0].task.cancel()

    def _take(self, state: Any, about: str, principal: Principal) -> tuple[str, _Call]:
        key, name, subject, _ = self._unsealed(OURS, state, self._prefix)
        if name != principal.name or subject != about:
            raise _bad_state("it belongs to another request")
        suspended = self._suspended.pop(key, None)
        if suspended is None:
            raise _bad_state("the call that it belongs to has ended")
        suspended[1].cancel()
        return key, suspended[0]


SEALED_PREFIX = "sealed."
OURS, SERVERS = "state", "state of a server"
"""What states are sealed for: a call that waits here; a server's own state, for its caller."""


def _bad_state(why: str) -> InvalidArguments:
    return InvalidArguments(f"requestState is not valid: {why}. Make the request anew, without it")


def _about(method: str, params: Mapping[str, Any]) -> str:
    """What makes two requests the same: method, name or URI, arguments."""
    parts = [decode(params[key]) for key in ("name", "uri", "arguments") if key in params]
    return hashlib.sha256(json.dumps([method, *parts], sort_keys=True).encode()).hexdigest()
