"""The client behind a request, as a server may reach it through us; and whose a server's own request is.

Servers of the session era ask their clients (`elicitation/create`, `sampling/createMessage`, `roots/list`) and log to
them. Over HTTP such a message comes on the stream of the call that it belongs to. On a pipe it says nothing of the
kind: there it belongs to the only client whose requests are under way, and where there are several, to none. Nothing
is guessed: a question that reached another's user would be worse than one that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from msgspec import Raw

from toolscore.core.errors import InvalidRequest
from toolscore.core.jsonrpc import METHOD_NOT_FOUND, RemoteError, decode
from toolscore.core.models import NOBODY, Principal

__all__ = [
    "CALL_ID",
    "CLIENT_FEATURES",
    "CODE_CALL",
    "CODE_OUTPUT",
    "ELICITED",
    "EVERYBODY",
    "LOG_LEVELS",
    "NO_HEADERS",
    "OTHER_GATEWAY",
    "Caller",
    "ClientSide",
    "Code",
    "CodeReply",
    "OnAsked",
    "client_named",
    "declared",
    "required_capability",
]

LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""RFC 5424, least severe first (MCP, logging)."""

CLIENT_FEATURES: dict[str, dict[str, Any]] = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "roots": {"listChanged": True},
}
"""What clients may offer to servers, as we declare it in the name of those who will."""


@dataclass(frozen=True)
class ClientSide:
    """For whom a connection to a server is made.

    Attributes:
        offered: the `ClientCapabilities` to declare.
        owner: the only client that uses it, reached outside of its requests too; `None`: several share it.
        credentials: the pattern of those principals on whose behalf it is made; `None`: on nobody's.
    """

    offered: Mapping[str, Any]
    owner: Caller | None = None
    credentials: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether it is made like the server's first, for whoever comes."""
        return self.owner is None and self.offered is CLIENT_FEATURES


EVERYBODY = ClientSide(CLIENT_FEATURES)

OnAsked = Callable[[bool], None]

CALL_ID = "toolscore/call_id"
"""The member of `_meta` that tells our own servers which call a request belongs to."""
CODE_CALL, CODE_OUTPUT = "toolscore/code/call", "toolscore/code/output"
"""What an executor sends on the connection on which it runs code: the code calls a tool, the code wrote something."""


class CodeReply(NamedTuple):
    """The answer to a call of code.

    Attributes:
        body: JSON, for the code.
        asked_seconds: for how long somebody was asked during the run so far; the code's clock stood still meanwhile.
        over: the code may call nothing more.
    """

    body: bytes
    asked_seconds: float
    over: bool


class Code(Protocol):
    """Code that is run for a caller, and may call tools meanwhile.

    Attributes:
        token: what the executor shows with each call. at_once: calls that the code may have under way.
    """

    token: str
    at_once: int

    @property
    def on_output(self) -> Callable[[str], None] | None:
        """Takes what the code writes while it runs; `None`: nobody wants it."""
        ...

    async def ask(self, call: bytes, seconds: float) -> CodeReply:
        """Answer a call of the code, which has so many seconds left."""
        ...


ELICITED = "notifications/elicitation/complete"
"""A client has been where a server sent it (MCP, elicitation in URL mode)."""

NO_HEADERS: Mapping[str, str] = {}


def _unheard(required: dict[str, Any]) -> None:
    """Nobody wants to hear what a server needed."""


class Caller:
    """One request's client. This base class cannot be reached: the caller over REST, or none at all.

    Attributes:
        principal: on whose behalf it calls.
        capabilities: what the client declared (MCP `ClientCapabilities`).
        log_level: the least severe level it wants to hear of.
        live: whether `ask` reaches the client while its request is under way (session era).
        stateless: a client of the stateless era: it is asked by an `input_required` result instead.
        suspended: the request waits until such a client comes back.
        hopped: the request came from another gateway: it goes to no third one.
        pause: makes the request's own clock stand still while its client is asked.
        headers: of its HTTP request, those that some server is given (`forward_headers`), in lower case.
        refused: told of the `ClientCapabilities` that a server needed and the client did not declare.
        code: that the request has run; `None`: it is any other.
        tell_output: takes what code that is run for it writes; `None`: it hears of that at the end.
    """

    hopped = False
    code: Code | None = None
    tell_output: Callable[[str], None] | None = None
    live = False
    stateless = False
    suspended = False
    wants_progress = False
    log_level: str | None = None

    def __init__(
        self,
        principal: Principal = NOBODY,
        *,
        client: object | None = None,
        capabilities: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        self.principal = principal
        self._client = client
        self.capabilities: Mapping[str, Any] = capabilities if capabilities is not None else {}
        self.headers = headers
        self.pause: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.refused: Callable[[dict[str, Any]], None] = _unheard

    @property
    def client(self) -> object:
        """The same object for all requests of one client; of one that is nobody's, the request itself."""
        return self if self._client is None else self._client  # kept as `self`, it would wait for the collector

    @property
    def home(self) -> Caller:
        """The client outside of this request, where there is a way to it."""
        return self

    @property
    def can_be_asked(self) -> bool:
        return not CLIENT_FEATURES.keys().isdisjoint(self.capabilities)

    def notify(self, method: str, params: Raw | None) -> None:
        """Tell the client something that belongs to its request. Never waits."""

    def announce(self, server_id: str, method: str, params: Raw | None) -> None:
        """Pass on what a server says on the client's own connection, and not about a request. Never waits."""

    async def ask(self, method: str, params: Raw | None) -> Any:
        """Put a server's question to the client.

        Raises:
            RemoteError: the client's refusal, or ours.
        """
        raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"this call's client cannot be asked: {method}"})

    def hears(self, level: object) -> bool:
        """Whether the client wants log messages of this level."""
        if self.log_level is None:
            return not self.stateless
        if level not in LOG_LEVELS or self.log_level not in LOG_LEVELS:
            return True
        return LOG_LEVELS.index(str(level)) >= LOG_LEVELS.index(self.log_level)


class _Client:
    """A client, wherever its requests come in."""

    def __init__(self, name: str) -> None:
        self.shared_name = name


_clients: WeakValueDictionary[str, _Client] = WeakValueDictionary()


def client_named(name: str) -> object:
    """The same object for each use of a name, for as long as anybody has it (`Caller.client`)."""
    client = _clients.get(name)
    if client is None:
        client = _clients[name] = _Client(name)
    return client


class _Gateway(Caller):
    """A gateway that asks for itself."""

    hopped = True


OTHER_GATEWAY = _Gateway()
"""Whoever asks for what this gateway has itself, on behalf of no client."""


def required_capability(method: str, params: Raw | None) -> dict[str, Any]:
    """The `ClientCapabilities` that a server's request needs; empty for one that needs none."""
    if method == "roots/list":
        return {"roots": {}}
    if method not in ("sampling/createMessage", "elicitation/create"):
        return {}
    try:
        body = decode(params) if params is not None else {}
    except InvalidRequest:
        body = {}
    body = body if isinstance(body, dict) else {}
    if method == "sampling/createMessage":
        return {"sampling": {"tools": {}} if "tools" in body or "toolChoice" in body else {}}
    return {"elicitation": {"url": {}} if body.get("mode") == "url" else {}}


def declared(capabilities: Mapping[str, Any], required: Mapping[str, Any]) -> bool:
    """Whether a client has what is required. `elicitation: {}` means forms (MCP, elicitation: capabilities); of
    `sampling`, tools are an offer of their own.
    """
    for feature, modes in required.items():
        offered = capabilities.get(feature)
        if offered is None:
            return False
        if feature == "elicitation" and isinstance(offered, Mapping):
            if "url" in modes and "url" not in offered:
                return False
            if "url" not in modes and offered and "form" not in offered:
                return False
        if feature == "sampling" and "tools" in modes and not (isinstance(offered, Mapping) and "tools" in offered):
            return False
    return True
