"""The clients behind requests, in both eras."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Raw

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
    "SessionCaller",
    "StatelessCaller",
    "declared_capabilities",
    "envelope_error",
    "log_level_of",
    "may_wait",
]

Tell = Callable[[str, Any], None]
Ask = Callable[[str, Raw | None], Awaitable[Any]]

ENVELOPE = (f"{META}protocolVersion", f"{META}clientCapabilities")


NOT_PASSED_ON = frozenset({"notifications/cancelled", "notifications/tasks/status"})
"""Of a question that was never put to this client; of a task by its server's own id: clients ask for it (`tasks/get`).
"""


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
    if method in NOT_PASSED_ON:
        return None
    if method == "notifications/message" and not caller.hears(log_level_of(params)):
        return None
    return params if params is not None else {}
