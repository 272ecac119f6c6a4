"""The client behind a request, as a server may reach it through us; and whose a server's own request is.

Servers of the session era ask their clients (`elicitation/create`, `sampling/createMessage`, `roots/list`) and log to
them. Over HTTP such a message comes on the stream of the call that it belongs to. On a pipe it says nothing of the
kind: there it belongs to the only client whose requests are under way, and where there are several, to none. Nothing
is guessed: a question that reached another's user would be worse than one that is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, NamedTuple, Protocol

from msgspec import Raw

from toolscore.core.errors import InvalidRequest
from toolscore.core.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, RemoteError, decode
from toolscore.core.models import NOBODY, Principal

__all__ = [
    "CALL_ID",
    "CLIENT_FEATURES",
    "CODE_CALL",
    "CODE_OUTPUT",
    "EVERYBODY",
    "LOG_LEVELS",
    "NO_HEADERS",
    "Caller",
    "ClientSide",
    "Code",
    "CodeReply",
    "InFlight",
    "OnAsked",
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


ABANDONED_SECONDS = 60.0
"""How long a server may still ask on behalf of a request that was cancelled, before we take it that it has stopped."""

NO_HEADERS: Mapping[str, str] = {}

HOLD_SECONDS = 2.0
"""How long a server's question waits until the requests of all clients but one have ended."""


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
        pause: makes the request's own clock stand still while its client is asked.
        headers: of its HTTP request, those that some server is given (`forward_headers`), in lower case.
        refused: told of the `ClientCapabilities` that a server needed and the client did not declare.
        code: that the request has run; `None`: it is any other.
        tell_output: takes what code that is run for it writes; `None`: it hears of that at the end.
    """

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
        return any(feature in self.capabilities for feature in CLIENT_FEATURES)

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


def required_capability(method: str, params: Raw | None) -> dict[str, Any]:
    """The `ClientCapabilities` that a server's request needs; empty for one that needs none."""
    if method == "sampling/createMessage":
        return {"sampling": {}}
    if method == "roots/list":
        return {"roots": {}}
    if method == "elicitation/create":
        try:
            body = decode(params) if params is not None else {}
        except InvalidRequest:
            body = {}
        return {"elicitation": {"url": {}} if isinstance(body, dict) and body.get("mode") == "url" else {}}
    return {}


def declared(capabilities: Mapping[str, Any], required: Mapping[str, Any]) -> bool:
    """Whether a client has what is required. `elicitation: {}` means forms (MCP, elicitation: capabilities)."""
    for feature, modes in required.items():
        offered = capabilities.get(feature)
        if offered is None:
            return False
        if feature == "elicitation" and isinstance(offered, Mapping):
            if "url" in modes and "url" not in offered:
                return False
            if "url" not in modes and offered and "form" not in offered:
                return False
    return True


class InFlight:
    """The requests under way on one connection.

    Args:
        features: what the server may ask its clients for (keys of `CLIENT_FEATURES`).
        owner: the client whose own this connection is; `None` for one that all share.
        on_asked: told when the server asks something of its clients, and whether while no client waited for it.
    """

    def __init__(
        self, features: Iterable[str], owner: Caller | None = None, on_asked: OnAsked = lambda unasked: None
    ) -> None:
        self.owner = owner
        self._on_asked = on_asked
        self._features = frozenset(features)
        self._abandoned: dict[object, float] = {}
        self._requests: dict[object, Caller | None] = {}
        self._fewer = asyncio.Event()

    @contextmanager
    def hold(self, caller: Caller | None) -> Iterator[Callable[[], None]]:
        """A request is under way while the body runs. Cancelled, it counts for a while longer: nobody waits for it
        any more, but its server may still be at it, and ask.

        Yields:
            To be called if the answer comes after all.
        """
        key = object()
        self._requests[key] = caller
        try:
            yield lambda: self._leave(key)
        except asyncio.CancelledError:
            self._abandoned[key] = asyncio.get_running_loop().time() + ABANDONED_SECONDS
            raise
        finally:
            if key not in self._abandoned:
                self._leave(key)

    def _leave(self, key: object) -> None:
        self._requests.pop(key, None)
        self._abandoned.pop(key, None)
        self._fewer.set()

    def _tidy(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._abandoned and next(iter(self._abandoned.values())) < now:
            self._leave(next(iter(self._abandoned)))

    def free_for(self, caller: Caller) -> bool:
        """Whether nobody else's request is under way, so that a question could only be this caller's."""
        self._tidy()
        return all(other is not None and other.client is caller.client for other in self._requests.values())

    def only(self) -> Caller | None:
        """A caller of the only client that has requests under way here."""
        self._tidy()
        found: Caller | None = None
        for caller in self._requests.values():
            if caller is None or (found is not None and found.client is not caller.client):
                return None
            found = caller
        return found or self.owner

    async def whose(self) -> Caller | None:
        """Whose question it is that came just now; `None` where that cannot be said."""
        deadline = asyncio.get_running_loop().time() + HOLD_SECONDS
        while (caller := self.only()) is None and any(self._requests.values()):
            self._fewer.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._fewer.wait()
            except TimeoutError:
                return None
        return caller

    async def answer(self, method: str, params: Raw | None, caller: Caller | None = None) -> Any:
        """Answer a server's request.

        Args:
            caller: whose it is, where the transport says so.

        Raises:
            RemoteError: what the server is told instead.
        """
        if method == "ping":
            return {}
        if method == CODE_CALL:
            return await self._code_calls(params)
        required = required_capability(method, params)
        if not self._features.issuperset(required):
            raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"the gateway was told not to pass on {method}"})
        self._on_asked(caller is None and not any(self._requests.values()))
        if caller is None:
            caller = await self.whose()
        if caller is None:
            if method == "roots/list":
                return {"roots": []}  # asked on behalf of nobody, as servers do when they start
            why = "several clients are calling at the moment" if self._requests else "no client is waiting"
            raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"{method} can be put to nobody: {why}"})
        if not declared(caller.capabilities, required):
            caller.refused(required)
            feature = next(iter(required))
            raise RemoteError({"code": METHOD_NOT_FOUND, "message": f"the client does not support {feature}: {method}"})
        with caller.pause():
            return await caller.ask(method, params)

    def _code(self, shown: Any) -> Code:
        """The code that is run by a request under way on this connection, and whose token is shown.

        Raises:
            RemoteError: there is none.
        """
        token = shown.get("token") if isinstance(shown, dict) else None
        for caller in self._requests.values():
            run = caller.code if caller is not None else None
            if (
                run is not None
                and isinstance(token, str)
                and compare_digest(run.token.encode(), token.encode("utf-8", "replace"))
            ):
                return run
        raise RemoteError({"code": INVALID_PARAMS, "message": "no code with this token runs here"})

    async def _code_calls(self, params: Raw | None) -> dict[str, Any]:
        shown = decode(params) if params is not None else {}
        run = self._code(shown)
        call, seconds = shown.get("call"), shown.get("seconds_left")
        if not isinstance(call, str) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise RemoteError({"code": INVALID_PARAMS, "message": "expected `call`, a string, and `seconds_left`"})
        reply = await run.ask(call.encode("utf-8", "surrogatepass"), float(seconds))
        return {"reply": reply.body.decode(), "asked_seconds": reply.asked_seconds, "over": reply.over}

    def _code_wrote(self, params: Raw | None) -> None:
        with suppress(InvalidRequest, RemoteError):
            shown = decode(params) if params is not None else {}
            tell = self._code(shown).on_output
            if tell is not None and isinstance(shown.get("text"), str):
                tell(shown["text"])

    def tell(self, method: str, params: Raw | None) -> bool:
        """Hand a notification to the client that it belongs to. False where it belongs to no request."""
        if method == CODE_OUTPUT:
            self._code_wrote(params)
            return True
        self._tidy()
        if not self._requests:
            return False
        caller = self.only()
        if caller is not None:
            with suppress(InvalidRequest):  # params that are no object
                caller.notify(method, params)
        return True
