"""The clients behind requests, in both eras."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from msgspec import Raw

from toolscore.core.errors import InvalidRequest
from toolscore.core.jsonrpc import INVALID_PARAMS, decode, decode_object
from toolscore.core.models import Principal
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import NO_HEADERS
from toolscore.upstreams.protocol import (
    INPUT_METHODS,
    LATEST_STATELESS_VERSION,
    META,
    SESSION_VERSIONS,
    UNSUPPORTED_PROTOCOL_VERSION,
)

__all__ = [
    "ENVELOPE",
    "Ask",
    "Envelope",
    "SessionCaller",
    "StatelessCaller",
    "envelope_of",
    "log_level_of",
    "may_wait",
]

Tell = Callable[[str, Any], None]
Ask = Callable[[str, Raw | None], Awaitable[Any]]

ENVELOPE = (f"{META}protocolVersion", f"{META}clientCapabilities")
_LOG_LEVEL = f"{META}logLevel"
KNOWN, FEW_BYTES = 256, 1024
"""So many different envelopes are known again, of no more bytes each."""
NOT_PASSED_ON = frozenset({"notifications/cancelled", "notifications/tasks/status"})
"""Of a question that was never put to this client; of a task by its server's own id: clients ask for it (`tasks/get`).
"""


class Envelope(NamedTuple):
    """What the `_meta` of a request of the stateless era says of its client. Many requests share one: change nothing.

    Attributes:
        version: the revision that it speaks.
        capabilities: its `ClientCapabilities`.
        log_level: from which on it hears logs; `None`: it hears none.
        error: what is wrong with it all, a JSON-RPC error; `None`: nothing.
    """

    version: Any
    capabilities: dict[str, Any]
    log_level: str | None
    error: dict[str, Any] | None


def envelope_of(params: Mapping[str, Any]) -> Envelope:
    """The envelope of a request of the stateless era, whatever carries it.

    Args:
        params: from `read_params`.
    """
    meta = params.get("_meta") or {}
    version, offered = meta.get(ENVELOPE[0]), meta.get(ENVELOPE[1])
    if version is None or offered is None:
        missing = " and ".join(key for key in ENVELOPE if key not in meta)
        return Envelope(None, {}, None, {"code": INVALID_PARAMS, "message": f"params._meta needs {missing}"})
    version, offered, level = bytes(version), bytes(offered), bytes(meta.get(_LOG_LEVEL, b"null"))
    read = _known_envelope if len(version) + len(offered) + len(level) <= FEW_BYTES else _envelope
    return read(version, offered, level)


def _envelope(version: bytes, offered: bytes, level: bytes) -> Envelope:
    """What these mean, which are JSON."""
    try:
        revision, capabilities, log_level = decode(version), decode(offered), decode(level)
    except InvalidRequest as exc:
        return Envelope(None, {}, None, {"code": INVALID_PARAMS, "message": f"params._meta cannot be read: {exc}"})
    return Envelope(
        revision,
        capabilities if isinstance(capabilities, dict) else {},
        log_level if isinstance(log_level, str) else None,
        _wrong_with(revision),
    )


_known_envelope = lru_cache(KNOWN)(_envelope)


def _wrong_with(version: Any) -> dict[str, Any] | None:
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
        principal: who makes it: another key of the same name may have other scopes than the one that opened the
            session; `None`: whoever did.
    """

    live = True

    def __init__(
        self,
        home: Caller,
        tell: Tell,
        ask: Ask,
        token: Raw | None,
        headers: Mapping[str, str] = NO_HEADERS,
        principal: Principal | None = None,
    ) -> None:
        super().__init__(
            principal or home.principal, client=home.client, capabilities=home.capabilities, headers=headers
        )
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
        envelope: of these.
        tell: takes a method and its params, on the response of this request.
        principal: who makes it.
        headers: of its HTTP request, those that some server is given.
    """

    stateless = True

    def __init__(
        self,
        params: Mapping[str, Any],
        envelope: Envelope,
        tell: Tell,
        principal: Principal,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(principal, capabilities=envelope.capabilities, headers=headers)
        self.log_level = envelope.log_level
        self.token: Raw | None = (params.get("_meta") or {}).get("progressToken")
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
    if method in NOT_PASSED_ON:
        return None
    if method == "notifications/message" and not caller.hears(log_level_of(params)):
        return None
    return params if params is not None else {}
