"""The step that asks the tool's server: when there is a place, if its circuit is closed; again where that is safe."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from msgspec import Raw

from toolscore.calls.admit import Circuits, Places
from toolscore.calls.hold import hold_by_now
from toolscore.calls.model import Call
from toolscore.calls.relay import Relay
from toolscore.core.errors import OutcomeUnknown, UpstreamProtocolError, UpstreamTimeout, UpstreamUnavailable
from toolscore.core.rules import ServerRules
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.upstreams import Attempt, UpstreamPool

__all__ = ["Reach"]

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0
LEAST_SECONDS = 0.05
"""A try that has begun gets so long."""
MAX_WAIT_SECONDS = 5.0
"""How long a caller who gave no time waits for a server that said when to come back."""


class Reach:
    """Asks the servers of tools.

    Args:
        on_sending: told of each call that may change something, before its request is sent for the first time;
            returns what to await until then, or `None`.
    """

    def __init__(
        self,
        upstreams: UpstreamPool,
        relay: Relay,
        places: Places,
        circuits: Circuits,
        rules: ServerRules,
        on_sending: Callable[[Call], Awaitable[None] | None],
        library: UnifiedToolLibrary,
    ) -> None:
        self._upstreams = upstreams
        self._relay = relay
        self._places = places
        self._circuits = circuits
        self._on_sending = on_sending
        self._library = library
        self.use(rules)

    def use(self, rules: ServerRules) -> None:
        """Try again by other rules from now on."""
        self._retries = rules.retries

    async def reach(self, call: Call) -> Raw:
        """The server's result.

        Raises:
            Overloaded, CircuitOpen, UpstreamUnavailable, UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError,
            InvalidArguments.
        """
        upstream = self._upstreams.find(call.target.server_id)
        if upstream is None:
            raise UpstreamUnavailable(f"server {call.target.server_id!r} is not connected")
        turnstile = self._places.at(upstream)
        came = time.perf_counter()
        await turnstile.enter(call.caller, call.patience)
        began = time.perf_counter()
        call.queued = began - came
        try:
            try:
                return await self._try(call)
            except UpstreamUnavailable as exc:  # it did not happen, or may be made again: its message says which
                if not self._retries or not exc.transient:
                    raise
                if exc.retry_after_seconds is not None:
                    return await self._try_later(call, exc)
                return await self._try_again(call)
        finally:
            call.served = time.perf_counter() - began
            turnstile.leave(call.served)

    async def _try(self, call: Call) -> Raw:
        tool = call.target
        params: dict[str, Any] = {"name": tool.name, "arguments": call.arguments}
        if call.extra:
            params = {**call.extra, **params}
        admission = self._circuits.admit(tool.server_id)
        well: bool | None = None
        call.attempt = Attempt(partial(hold_by_now, self._library, tool.tool_id))
        try:
            if call.start is None and not tool.reads_only:
                noted = self._on_sending(call)
                if noted is not None:
                    await noted
            raw = await self._relay.relay(
                tool.server_id,
                "tools/call",
                params,
                what=tool.tool_id,
                caller=call.caller,
                timeout_seconds=_left(call),
                safe_to_repeat=tool.safe_to_repeat,
                attempt=call.attempt,
                call_id=call.call_id,
            )
            well = True
            return raw
        except (UpstreamUnavailable, UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError) as exc:
            if not call.attempt.of_caller:
                well = exc.upstream_error is not None  # an error of the server's own is an answer
            raise
        finally:
            admission.ended(well)

    async def _try_later(self, call: Call, error: UpstreamUnavailable) -> Raw:
        """Ask a server again when it said, if that is within the caller's time."""
        for _ in range(self._retries):
            wait = error.retry_after_seconds
            left = call.timeout_seconds - call.seconds if call.timeout_seconds else MAX_WAIT_SECONDS
            if not error.transient or wait is None or wait > left:
                break
            await asyncio.sleep(wait)
            try:
                return await self._try(call)
            except UpstreamUnavailable as exc:
                error = exc
        raise error

    async def _try_again(self, call: Call) -> Raw:
        """Ask again what certainly did not happen, or does no harm twice, with longer and longer pauses."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

        first = FIRST_RETRY_SECONDS
        wait = wait_exponential_jitter(multiplier=first, max=MAX_RETRY_SECONDS, jitter=first)
        await asyncio.sleep(random.uniform(first, 2 * first))
        again = AsyncRetrying(
            stop=stop_after_attempt(self._retries),
            wait=wait,
            retry=retry_if_exception(lambda exc: isinstance(exc, UpstreamUnavailable) and exc.transient),
            reraise=True,
        )
        return await again(self._try, call)


def _left(call: Call) -> float | None:
    """What is left of the time that a caller gives a call, all tries together; `None`: it gave none."""
    return max(LEAST_SECONDS, call.timeout_seconds - call.seconds) if call.timeout_seconds is not None else None
