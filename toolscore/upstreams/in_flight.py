"""The requests under way on one connection: whose question it is when the server asks, and who hears what it tells."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hmac import compare_digest
from typing import Any
from weakref import ref

from msgspec import Raw

from toolscore.core.errors import InvalidRequest
from toolscore.core.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, RemoteError, decode
from toolscore.upstreams.caller import (
    CODE_CALL,
    CODE_OUTPUT,
    ELICITED,
    Caller,
    Code,
    OnAsked,
    declared,
    required_capability,
)

__all__ = ["InFlight"]

ABANDONED_SECONDS = 60.0
"""How long a server may still ask on behalf of a request that was cancelled, before we take it that it has stopped."""
URL_ELICITATION_REQUIRED = -32042
MAX_ELICITATIONS = 1000
HOLD_SECONDS = 2.0
"""How long a server's question waits until the requests of all clients but one have ended."""


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
        self.is_shared_elsewhere: Callable[[], bool] = lambda: False
        """Whether other gateways have requests on the same session."""
        self._on_asked = on_asked
        self._features = frozenset(features)
        self._abandoned: dict[object, float] = {}
        self._requests: dict[object, Caller | None] = {}
        self._fewer = asyncio.Event()
        self._elicited: OrderedDict[str, ref[Caller]] = OrderedDict()
        """Which client was sent to an address, by `elicitationId`."""

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
        except RemoteError as exc:
            if exc.code == URL_ELICITATION_REQUIRED and caller is not None:
                self._note_elicitations(exc.error, caller)
            raise
        finally:
            if key not in self._abandoned:
                self._leave(key)

    def _note_elicitations(self, error: dict[str, Any], caller: Caller) -> None:
        """Note what a client was told to visit before it calls again."""
        data = error.get("data")
        asked = data.get("elicitations") if isinstance(data, dict) else None
        for one in asked[:MAX_ELICITATIONS] if isinstance(asked, list) else ():
            self._note_elicitation(one, caller)

    def _note_elicitation(self, asked: Any, caller: Caller) -> None:
        name = asked.get("elicitationId") if isinstance(asked, dict) else None
        if isinstance(name, str):
            self._elicited[name] = ref(caller.home)
            if len(self._elicited) > MAX_ELICITATIONS:
                self._elicited.popitem(last=False)

    def _elicitor(self, params: Raw | None) -> Caller | None:
        """The client that was sent to the address about which the server tells something; nobody is sent twice."""
        name = None
        with suppress(InvalidRequest):
            told = decode(params) if params is not None else None
            name = told.get("elicitationId") if isinstance(told, dict) else None
        known = self._elicited.pop(name, None) if isinstance(name, str) else None
        return known() if known is not None else None

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
        if self.is_shared_elsewhere():
            return self.owner  # it may be about a request that came in at another gateway
        found: Caller | None = None
        for caller in self._requests.values():
            if caller is None or (found is not None and found.client is not caller.client):
                return None
            found = caller
        return found or self.owner

    async def whose(self) -> Caller | None:
        """Whose question it is that came just now; `None` where that cannot be said."""
        deadline = asyncio.get_running_loop().time() + HOLD_SECONDS
        while (caller := self.only()) is None and any(self._requests.values()) and not self.is_shared_elsewhere():
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
        nobody = caller is None and not any(self._requests.values())
        self._on_asked(nobody and not self.is_shared_elsewhere())
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
        if method == "elicitation/create" and params is not None:
            with suppress(InvalidRequest):
                self._note_elicitation(decode(params), caller)
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
        if method == ELICITED:  # the call that asked for it is long over: its id says whose it was
            caller = self._elicitor(params)
            belongs = caller is not None
        else:
            belongs = bool(self._requests)
            caller = self.only() if belongs else None
        if caller is not None:
            with suppress(InvalidRequest):  # params that are no object
                caller.notify(method, params)
        return belongs
