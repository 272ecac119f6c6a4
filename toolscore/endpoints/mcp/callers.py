"""The clients behind requests, in both eras, and the calls that wait for them.

A client of the session era is asked live. One of the stateless era cannot be: its call to a server that asks live is
suspended, the client gets an `input_required` result with a sealed `requestState`, and its retry resumes the call.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Raw

from toolscore.core.errors import InvalidArguments, InvalidRequest, Overloaded
from toolscore.core.jsonrpc import INVALID_PARAMS, decode, decode_object, encode
from toolscore.core.models import LOCAL, Principal
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import NO_HEADERS
from toolscore.upstreams.protocol import (
    INPUT_METHODS,
    LATEST_STATELESS_VERSION,
    META,
    SESSION_VERSIONS,
    UNSUPPORTED_PROTOCOL_VERSION,
    input_required,
)

__all__ = [
    "ENVELOPE",
    "SessionCaller",
    "StatelessCaller",
    "StatelessCalls",
    "declared_capabilities",
    "envelope_error",
    "log_level_of",
    "may_wait",
]

Tell = Callable[[str, Any], None]
Ask = Callable[[str, Raw | None], Awaitable[Any]]

ENVELOPE = (f"{META}protocolVersion", f"{META}clientCapabilities")

MAX_SUSPENDED = 1000
GATHER_SECONDS = 0.01
"""Questions that a server puts within this time go to the client together."""


def declared_capabilities(params: Mapping[str, Any]) -> dict[str, Any]:
    """The `ClientCapabilities` in the envelope of a request of the stateless era."""
    meta = params.get("_meta") or {}
    value = decode(meta[f"{META}clientCapabilities"]) if f"{META}clientCapabilities" in meta else None
    return value if isinstance(value, dict) else {}


def envelope_error(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is wrong with the `_meta` of a request of the stateless era, whatever carries it. The error, or `None`."""
    meta = params.get("_meta") or {}
    missing = [key for key in ENVELOPE if key not in meta]
    if missing:
        return {"code": INVALID_PARAMS, "message": f"params._meta needs {' and '.join(missing)}"}
    version = decode(meta[ENVELOPE[0]])
    if not isinstance(version, str):
        return {"code": INVALID_PARAMS, "message": f"params._meta[{ENVELOPE[0]!r}] must be a string"}
    if version != LATEST_STATELESS_VERSION:
        return {
            "code": UNSUPPORTED_PROTOCOL_VERSION,
            "message": "Unsupported protocol version",
            "data": {"supported": [LATEST_STATELESS_VERSION, *reversed(SESSION_VERSIONS)], "requested": version},
        }
    return None


def log_level_of(params: Raw | None) -> Any:
    """The level of a `notifications/message`."""
    level = decode_object(params).get("level") if params is not None else None
    return decode(level) if level is not None else None


def may_wait(method: str, params: Mapping[str, Any], caller: StatelessCaller) -> bool:
    """Whether a call may have to be suspended: its client can be asked, so its server may ask it."""
    return method in INPUT_METHODS and ("requestState" in params or caller.can_be_asked)


class SessionCaller(Caller):
    """One request of a session.

    Args:
        home: the session itself, reached outside of any request.
        tell: takes a method and its params, on the way of this request.
        ask: puts a request to the client on the same way.
        token: under which the client wants to hear of progress.
        headers: of its HTTP request, those that some server is given.
    """

    live = True

    def __init__(
        self, home: Caller, tell: Tell, ask: Ask, token: Raw | None, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        super().__init__(home.principal, client=home.client, capabilities=home.capabilities, headers=headers)
        self.log_level = home.log_level
        self._home = home
        self._tell = tell
        self._ask = ask
        self._token = token
        self.wants_progress = token is not None

    @property
    def home(self) -> Caller:
        return self._home

    def notify(self, method: str, params: Raw | None) -> None:
        told = _addressed(self, method, params, self._token)
        if told is not None:
            self._tell(method, told)

    async def ask(self, method: str, params: Raw | None) -> Any:
        return await self._ask(method, params)


class StatelessCaller(Caller):
    """One request of a client of the stateless era, with what its retries bring.

    Args:
        params: from `read_params`.
        tell: takes a method and its params, on the response of this request.
        principal: who makes it.
        headers: of its HTTP request, those that some server is given.
    """

    stateless = True

    def __init__(
        self, params: Mapping[str, Any], tell: Tell, principal: Principal, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        super().__init__(principal, capabilities=declared_capabilities(params), headers=headers)
        meta = params.get("_meta") or {}
        level = decode(meta[f"{META}logLevel"]) if f"{META}logLevel" in meta else None
        self.log_level = level if isinstance(level, str) else None
        self.token: Raw | None = meta.get("progressToken")
        self.wants_progress = self.token is not None
        self.tell = tell
        self.on_ask: Ask | None = None

    def notify(self, method: str, params: Raw | None) -> None:
        told = _addressed(self, method, params, self.token)
        if told is not None:
            self.tell(method, told)

    async def ask(self, method: str, params: Raw | None) -> Any:
        if self.on_ask is None:
            return await super().ask(method, params)
        return await self.on_ask(method, params)


def _addressed(caller: Caller, method: str, params: Raw | None, token: Raw | None) -> Any:
    """The params of a notification as the client is to get them; `None` for one that it is not to get.

    Raises:
        InvalidRequest: params that are no object.
    """
    if method == "notifications/progress":
        if token is None or params is None:
            return None
        return {**decode_object(params), "progressToken": token}
    if method == "notifications/cancelled":
        return None  # of a question that was never put to this client
    if method == "notifications/message" and not caller.hears(log_level_of(params)):
        return None
    return params if params is not None else {}


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
            await asyncio.wait({self.task}, timeout=GATHER_SECONDS)
            if not self.task.done() and self.questions:
                self._asked.clear()
                self.caller.suspended = True
                return {key: question.request for key, question in self.questions.items()}
            self._asked.clear()

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
    """

    def __init__(self, input_seconds: float) -> None:
        from cryptography.fernet import Fernet  # 5 MB that most gateways never need

        self._fernet = Fernet(Fernet.generate_key())  # what is suspended ends with this process, and so may its seal
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
        name, subject, inner = self._unsealed(decode(state), SEALED_PREFIX)
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
        token = self._seal([caller.principal.name, about, decode(members["requestState"])])
        return Raw(encode({**members, "requestState": SEALED_PREFIX + token}))

    def _seal(self, value: list[Any]) -> str:
        return self._fernet.encrypt(json.dumps(value).encode()).decode()

    def _unsealed(self, state: Any, prefix: str) -> list[Any]:
        from cryptography.fernet import InvalidToken

        try:
            token = str(state).removeprefix(prefix).encode()
            if base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)) != token:
                raise ValueError  # something that decoding would have overlooked
            return list(json.loads(self._fernet.decrypt(token, ttl=int(self._input_seconds) + 1)))
        except (InvalidToken, ValueError, TypeError):
            raise _bad_state("it was changed, or has expired") from None

    @staticmethod
    def _is_ours(params: Mapping[str, Any]) -> bool:
        """Whether a request resumes a call of ours (another's state is for the server it came from)."""
        state = params.get("requestState")
        return state is not None and memoryview(state).tobytes().startswith(STATE_PREFIX)

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
            return await self._resume(caller, params, method)
        params = self._opened(caller, params, method)
        about = _about(method, params)
        return await self._outcome(_Call(caller, work(params)), about)

    async def _resume(self, caller: StatelessCaller, params: Mapping[str, Any], method: str) -> Any:
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
        token = self._seal([key, call.caller.principal.name, about])
        return {
            "resultType": "input_required",
            "inputRequests": outcome,
            "requestState": STATE_PREFIX[1:].decode() + token,
        }

    def _suspend(self, call: _Call, key: str) -> None:
        timer = asyncio.get_running_loop().call_later(self._input_seconds, self._expire, key)
        self._suspended[key] = (call, timer)

    def _expire(self, key: str) -> None:
        suspended = self._suspended.pop(key, None)
        if suspended is not None:
            suspended[0].task.cancel()

    def _take(self, state: Any, about: str, principal: Principal) -> tuple[str, _Call]:
        key, name, subject = self._unsealed(state, STATE_PREFIX[1:].decode())
        if name != principal.name or subject != about:
            raise _bad_state("it belongs to another request")
        suspended = self._suspended.pop(key, None)
        if suspended is None:
            raise _bad_state("the call that it belongs to has ended")
        suspended[1].cancel()
        return key, suspended[0]


SEALED_PREFIX = "sealed."
STATE_PREFIX = f'"toolscore.{secrets.token_hex(4)}.'.encode()
"""How a state of ours begins, as JSON; another gateway's is for the server that it came from."""


def _bad_state(why: str) -> InvalidArguments:
    return InvalidArguments(f"requestState is not valid: {why}. Make the request anew, without it")


def _about(method: str, params: Mapping[str, Any]) -> str:
    """What makes two requests the same: method, name or URI, arguments."""
    parts = [decode(params[key]) for key in ("name", "uri", "arguments") if key in params]
    return hashlib.sha256(json.dumps([method, *parts], sort_keys=True).encode()).hexdigest()
