"""One request to one server, and what became of it in our own errors."""

from __future__ import annotations

from typing import Any, NoReturn

from msgspec import Raw

from toolscore.calls.deadline import Deadline
from toolscore.core.errors import (
    InvalidArguments,
    OutcomeUnknown,
    Overloaded,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from toolscore.core.jsonrpc import INVALID_PARAMS, ConnectionLost, RemoteError, meta_of
from toolscore.core.rules import LimitRules
from toolscore.telemetry.tracing import NO_TRACING, Tracing
from toolscore.upstreams import Attempt, Caller, UpstreamPool
from toolscore.upstreams.caller import CALL_ID

__all__ = ["Relay"]

PRINCIPAL = "toolscore/principal"
SCOPES = "toolscore/scopes"
"""The members of `_meta` that tell our own servers who calls."""
MAX_WAIT_SECONDS = 86_400.0
"""A server that asks for more says nothing that anybody waits for."""


class Relay:
    """Puts requests to servers as they are."""

    def __init__(self, upstreams: UpstreamPool, limits: LimitRules, tracing: Tracing = NO_TRACING) -> None:
        self._upstreams = upstreams
        self._limits = limits
        self._tracing = tracing

    def use(self, limits: LimitRules) -> None:
        """Wait by other rules from now on."""
        self._limits = limits

    async def relay(
        self,
        server_id: str,
        method: str,
        params: dict[str, Any] | None,
        *,
        what: str,
        caller: Caller,
        timeout_seconds: float | None = None,
        safe_to_repeat: bool = True,
        attempt: Attempt | None = None,
        call_id: str | None = None,
    ) -> Raw:
        """Ask a server. Cancelling this cancels its work.

        Args:
            what: the name of what is asked for, for messages.
            caller: on whose behalf.
            timeout_seconds: `None`: the server's or the gateway's default.
            safe_to_repeat: whether asking twice does no more than asking once.
            attempt: notes whether the request was handed over.
            call_id: of the call that it belongs to.

        Raises:
            UpstreamUnavailable, UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError, InvalidArguments, Overloaded.
        """
        upstream = self._upstreams.find(server_id)
        if upstream is None:
            raise UpstreamUnavailable(f"server {server_id!r} is not connected")
        spec, attempt = upstream.spec, attempt or Attempt()
        usual = spec.call_timeout_seconds or self._limits.call_timeout_seconds
        seconds = timeout_seconds or usual
        with self._tracing.request(server_id, method, what) as span:
            known: dict[str, Any] = dict(span.carried())
            if spec.identify_callers:
                principal = caller.principal
                known |= {PRINCIPAL: principal.name, SCOPES: list(principal.scopes)}
                if call_id is not None:
                    known[CALL_ID] = call_id
            if known:
                params = {**(params or {}), "_meta": {**meta_of(params), **known}}
            try:
                with Deadline(seconds) as deadline:
                    caller.pause = deadline.paused
                    return await self._upstreams.request(server_id, method, params, caller=caller, attempt=attempt)
            except TimeoutError as exc:
                attempt.of_caller = seconds < usual
                waited = f"{what} gave no answer within {seconds:g} s"
                if not attempt.asked:
                    raise UpstreamUnavailable(f"{waited}: its server is {upstream.state}") from exc
                if safe_to_repeat:
                    raise UpstreamTimeout(
                        f"{waited}: it may be called again, or with a larger `timeout_seconds`"
                    ) from exc
                raise OutcomeUnknown(
                    f"{waited}, and it may have done its work: find out before you call it again"
                ) from exc
            except ConnectionLost as exc:
                # A process of ours ends with its connection. A server elsewhere may go on with what it was sent.
                attempt.over = not exc.sent or spec.command is not None
                attempt.of_caller = exc.refused and not exc.busy and bool(spec.credentials)
                _broke_off(exc, server_id, what, safe_to_repeat)
            except RemoteError as exc:
                _refused(exc, server_id, what)


def _broke_off(exc: ConnectionLost, server_id: str, what: str, safe_to_repeat: bool) -> NoReturn:
    if not exc.sent:
        # One that refused gets the same call again only if it said when.
        error = UpstreamUnavailable(
            f"{server_id} cannot be reached: {exc.reason}",
            transient=not exc.refused or exc.retry_after is not None,
            retry_after_seconds=exc.retry_after,
        )
        if exc.refused and not exc.busy:
            error.retryable = False
        raise error from exc
    if safe_to_repeat:
        raise UpstreamUnavailable(
            f"{server_id} went away during the call ({exc.reason}); {what} may safely be called again", transient=True
        ) from exc
    raise OutcomeUnknown(
        f"{server_id} went away during the call ({exc.reason}), and {what} may have done its work: "
        "find out before you call it again"
    ) from exc


def _refused(exc: RemoteError, server_id: str, what: str) -> NoReturn:
    refused = f"{server_id} refused the call of {what}: {exc}"
    if exc.code == Overloaded.rpc_code and (wait := _retry_after(exc)) is not None:
        raise Overloaded(exc.message, retry_after_seconds=wait) from exc
    if exc.code == UpstreamUnavailable.rpc_code:
        raise UpstreamUnavailable(exc.message, upstream_error=exc.error) from exc
    if exc.code == INVALID_PARAMS:
        raise InvalidArguments(refused, upstream_error=exc.error) from exc
    raise UpstreamProtocolError(refused, upstream_error=exc.error) from exc


def _retry_after(exc: RemoteError) -> float | None:
    """How long a server that is full asks us to wait."""
    data = exc.error.get("data")
    wait = data.get("retry_after_seconds") if isinstance(data, dict) else None
    return float(min(max(wait, 0), MAX_WAIT_SECONDS)) if isinstance(wait, int | float) else None
