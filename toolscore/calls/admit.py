"""When a call may go to its server: the caller's budget, a place at the server, and a circuit that is closed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from toolscore.access.limits import Turnstile
from toolscore.calls.breaker import Breaker, BreakerRules, BreakerState
from toolscore.core.errors import CircuitOpen
from toolscore.core.rules import ServerRules
from toolscore.history.events import EventLog
from toolscore.telemetry.metrics import Metrics
from toolscore.upstreams import Caller, Upstream

__all__ = ["Admission", "Circuits", "Places"]

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 600.0
"""For a call of another gateway, which ends it sooner when its caller's time is over."""


class Places:
    """The places for calls at each server, and the queues before them."""

    def __init__(self, rules: ServerRules) -> None:
        self._rules = rules
        self._turnstiles: dict[str, Turnstile] = {}

    def use(self, rules: ServerRules) -> None:
        """Give other numbers of places from now on."""
        self._rules = rules

    def forget(self, server_id: str) -> None:
        """A server is gone for good."""
        self._turnstiles.pop(server_id, None)

    def at(self, upstream: Upstream) -> Turnstile:
        """What a call passes on its way to a server: `enter` waits for a place, `leave` gives it back."""
        places = upstream.spec.max_concurrent or self._rules.max_concurrent
        turnstile = self._turnstiles.get(upstream.server_id)
        if turnstile is None:
            turnstile = Turnstile(upstream.server_id, places, self._rules.max_queued)
            self._turnstiles[upstream.server_id] = turnstile
        turnstile.resize(places, self._rules.max_queued)
        return turnstile

    @asynccontextmanager
    async def hold(self, upstream: Upstream, caller: Caller) -> AsyncIterator[None]:
        """Hold a place while the body runs, for a call that another gateway has admitted.

        Raises:
            Overloaded: too many wait.
        """
        turnstile = self.at(upstream)
        await turnstile.enter(caller, PATIENCE_SECONDS)
        began = time.perf_counter()
        try:
            yield
        finally:
            turnstile.leave(time.perf_counter() - began)


class Circuits:
    """A breaker for each server; tells when one opens or closes."""

    def __init__(self, rules: BreakerRules | None, metrics: Metrics, events: EventLog) -> None:
        self._rules = rules or BreakerRules()
        self._metrics = metrics
        self._events = events
        self._breakers: dict[str, Breaker] = {}

    def use(self, rules: BreakerRules) -> None:
        """Judge servers by other rules from now on; what was known of them is forgotten then."""
        if rules != self._rules:
            self._rules = rules
            self._breakers.clear()

    def forget(self, server_id: str) -> None:
        """A server is gone for good."""
        self._breakers.pop(server_id, None)

    def state(self, server_id: str) -> BreakerState:
        """Whether calls go to a server (`closed`), none do (`open`), or some find out (`half_open`)."""
        breaker = self._breakers.get(server_id)
        return breaker.state if breaker is not None else "closed"

    def admit(self, server_id: str) -> Admission:
        """Let a try of a call through to a server; `Admission.ended` takes how it went.

        Raises:
            CircuitOpen: it is not let through; with the time to wait.
        """
        breaker = self._breakers.get(server_id)
        if breaker is None:
            breaker = self._breakers[server_id] = Breaker(self._rules)
        if breaker.state != "closed":
            before = breaker.state
            wait = breaker.admit(time.monotonic())
            if wait is not None:
                raise CircuitOpen(
                    f"{server_id} kept failing and is left alone: come back in {wait:.1f} s",
                    retry_after_seconds=max(0.1, round(wait, 1)),
                )
            if breaker.state != before:
                self._tell(server_id, breaker)
        return Admission(self, server_id, breaker)

    def record(self, server_id: str, breaker: Breaker, epoch: int, well: bool | None) -> None:
        """Take how a try ended: well, badly, or in a way that says nothing (`None`)."""
        before = breaker.state
        breaker.record(well, time.monotonic(), epoch)
        if breaker.state != before:
            self._tell(server_id, breaker)

    def _tell(self, server_id: str, breaker: Breaker) -> None:
        log.warning("a circuit has changed", server=server_id, state=breaker.state)
        self._metrics.circuit(server_id, breaker.state)
        self._events.publish("circuit_changed", server_id=server_id, state=breaker.state)


class Admission:
    """Leave for one try of a call."""

    __slots__ = ("_breaker", "_circuits", "_epoch", "_server_id")

    def __init__(self, circuits: Circuits, server_id: str, breaker: Breaker) -> None:
        self._circuits = circuits
        self._server_id = server_id
        self._breaker = breaker
        self._epoch = breaker.epoch

    def ended(self, well: bool | None) -> None:
        """Take how the try ended: well, badly, or in a way that says nothing (`None`)."""
        self._circuits.record(self._server_id, self._breaker, self._epoch, well)
