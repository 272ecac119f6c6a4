"""One call, from any door to its answer. The steps stand in the order of ARCHITECTURE.md 3:

    resolve name → validate arguments → authorise → (cache) → limits → breaker
                 → upstream (again, if safe) → (journal · score) · metrics

Those in brackets are rooms of their own; each joins with a line in `_steps`.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter, deque
from typing import Any

import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType

from toolscore.errors import (
    CircuitOpen,
    Forbidden,
    InvalidArguments,
    InvalidRequest,
    OutcomeUnknown,
    Overloaded,
    ToolNotFound,
    ToolScoreError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from toolscore.events import EventLog
from toolscore.jsonrpc import INVALID_PARAMS, ConnectionLost, RemoteError, decode, meta_of
from toolscore.library import Sees, UnifiedToolLibrary
from toolscore.metrics import Metrics
from toolscore.models import LOCAL, Principal, Tool, ToolCall, ToolResult
from toolscore.pipeline.breaker import Breaker, BreakerRules, BreakerState
from toolscore.pipeline.deadline import Deadline
from toolscore.pipeline.limits import RateLimits, Turnstile
from toolscore.pipeline.policy import Policy
from toolscore.pipeline.validation import check_arguments
from toolscore.upstreams import Attempt, Caller, UpstreamPool

__all__ = ["CallPipeline", "CallStats"]

log = structlog.get_logger(__name__)

RECENT_CALLS = 1000
FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0
MAX_PRINCIPALS = 1000
MAX_KNOWN = 100_000
OPEN = Policy()
PRINCIPAL = "toolscore/principal"
"""The member of `_meta` that tells our own servers who calls."""


class _CallResult(msgspec.Struct, rename="camel"):
    """What we need to know of an MCP `CallToolResult`; the rest stays raw."""

    content: Raw = Raw(b"[]")
    structured_content: Raw | UnsetType = UNSET
    is_error: bool = False
    result_type: str = "complete"


_results = msgspec.json.Decoder(_CallResult)


class _Sight:
    """One principal's view under one policy, remembered tool by tool."""

    def __init__(self, policy: Policy, principal: Principal) -> None:
        self._policy = policy
        self._principal = principal
        self._known: dict[tuple[str, str], bool] = {}

    def sees(self, tool: Tool) -> bool:
        key = (tool.tool_id, tool.definition_hash)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[key] = self._policy.sees(self._principal, tool).allowed
        return known


class CallStats:
    """Counts since the start, and the latency of the last thousand calls."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.tools: Counter[str] = Counter()
        self.in_flight = 0
        self.started = time.monotonic()
        self._recent_ms: deque[float] = deque(maxlen=RECENT_CALLS)

    def add(self, tool: str, outcome: str, milliseconds: float) -> None:
        self.outcomes[outcome] += 1
        self.tools[tool] += 1
        self._recent_ms.append(milliseconds)

    def snapshot(self) -> dict[str, Any]:
        """The figures for `/api/v1/stats`; latencies in milliseconds, `None` before the first call."""
        recent = sorted(self._recent_ms)
        cuts = statistics.quantiles(recent, n=100, method="inclusive") if len(recent) > 1 else None
        only = recent[0] if recent else None
        return {
            "calls_total": self.outcomes.total(),
            "calls_in_flight": self.in_flight,
            "outcomes": dict(self.outcomes),
            "uptime_seconds": round(time.monotonic() - self.started, 3),
            "recent": {
                "count": len(recent),
                "p50_ms": round(cuts[49], 3) if cuts else only,
                "p95_ms": round(cuts[94], 3) if cuts else only,
                "p99_ms": round(cuts[98], 3) if cuts else only,
            },
            "top_tools": [{"tool_id": name, "calls": count} for name, count in self.tools.most_common(10)],
        }


class CallPipeline:
    """Carries out calls. Every door ends in `call`.

    Args:
        call_timeout_seconds: for calls and servers that set none.
        policy: what callers may do.
    """

    def __init__(
        self,
        library: UnifiedToolLibrary,
        upstreams: UpstreamPool,
        *,
        metrics: Metrics,
        events: EventLog,
        call_timeout_seconds: float = 60,
        policy: Policy = OPEN,
    ) -> None:
        self._library = library
        self._upstreams = upstreams
        self._metrics = metrics
        self._events = events
        self.call_timeout_seconds = call_timeout_seconds
        self.policy = policy
        self.retries = 2
        self.rates = RateLimits(None, {})
        self.max_concurrent, self.max_queued = 256, 1000
        self._turnstiles: dict[str, Turnstile] = {}
        self.breaker_rules = BreakerRules()
        self._breakers: dict[str, Breaker] = {}
        self._seen_at = policy
        self._seen: dict[Principal, Sees] = {}
        self.stats = CallStats()
        self._active: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        self._closing = False
        metrics.in_flight.set_function(lambda: self.stats.in_flight)

    async def call(self, call: ToolCall, principal: Principal, *, caller: Caller | None = None) -> ToolResult:
        """Run a tool. Cancelling this cancels the server's work.

        Args:
            caller: the client, as far as the server may reach it while it works.

        Raises:
            ToolNotFound, InvalidArguments, UpstreamUnavailable, UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError.
        """
        started = time.perf_counter()
        task = asyncio.current_task()
        assert task is not None
        self._active.add(task)
        self.stats.in_flight += 1
        outcome, tool = "cancelled", None
        try:
            if self._closing:
                raise Overloaded("the gateway is shutting down: call again when it is back", retry_after_seconds=5)
            tool = await self._resolve(call, self.sees(principal))
            result = await self._steps(tool, call, principal, started, caller)
            outcome = "tool_error" if result.is_error else "ok"
            return result
        except ToolScoreError as exc:
            outcome = exc.code
            raise
        except asyncio.CancelledError as exc:
            if task not in self._ended:
                raise
            task.uncancel()
            outcome = OutcomeUnknown.code
            raise OutcomeUnknown(
                f"the gateway was shut down during the call of {call.tool_id}, and it may have done its work"
            ) from exc
        finally:
            self._active.discard(task)
            seconds = time.perf_counter() - started
            self.stats.in_flight -= 1
            # Names that do not exist are the caller's to choose: they must not become labels.
            server_id, name = (tool.server_id, tool.tool_id) if tool is not None else ("-", "-")
            self.stats.add(name, outcome, seconds * 1000)
            self._metrics.call_finished(server_id, outcome, seconds)
            if len(self._events.notifier) and self._events.notifier.wanted("call_finished"):
                self._events.tell(
                    "call_finished",
                    tool_id=name,
                    server_id=server_id,
                    outcome=outcome,
                    duration_ms=round(seconds * 1000, 3),
                    request_id=call.request_id,
                    principal=principal.name,
                )

    async def close(self, seconds: float) -> None:
        """Take no more calls, let those under way finish for so long, and end the others: their callers are told."""
        self._closing = True
        if self._active:
            log.info("waiting for calls to finish; a second Ctrl-C ends them", calls=len(self._active), seconds=seconds)
            await asyncio.wait(set(self._active), timeout=seconds)
        for task in self._active:
            self._ended.add(task)
            task.cancel()

    def sees(self, principal: Principal) -> Sees | None:
        """What says which tools exist for a principal; `None`: all do."""
        if self.policy.is_open:
            return None
        if self._seen_at is not self.policy:
            self._seen_at, self._seen = self.policy, {}
        sight = self._seen.get(principal)
        if sight is None:
            if len(self._seen) >= MAX_PRINCIPALS:
                self._seen.clear()
            sight = self._seen[principal] = _Sight(self.policy, principal).sees
        return sight

    def _turnstile(self, server_id: str) -> Turnstile:
        """A server's places for calls."""
        turnstile = self._turnstiles.get(server_id)
        if turnstile is None:
            turnstile = self._turnstiles[server_id] = Turnstile(server_id, self.max_concurrent, self.max_queued)
        upstream = self._upstreams.find(server_id)
        own = upstream.spec.max_concurrent if upstream is not None else None
        turnstile.places, turnstile.queue = own or self.max_concurrent, self.max_queued
        return turnstile

    def use_breaker_rules(self, rules: BreakerRules) -> None:
        """Judge servers by other rules from now on; what was known of them is forgotten."""
        self.breaker_rules = rules
        self._breakers.clear()

    def _admitted(self, server_id: str) -> Breaker:
        """The server's breaker, which lets this call through.

        Raises:
            CircuitOpen: it does not; with the time to wait.
        """
        breaker = self._breakers.get(server_id)
        if breaker is None:
            breaker = self._breakers[server_id] = Breaker(self.breaker_rules)
        if breaker.state != "closed":
            before = breaker.state
            wait = breaker.admit(time.monotonic())
            if wait is not None:
                raise CircuitOpen(
                    f"{server_id} kept failing and is left alone: come back in {wait:.1f} s",
                    retry_after_seconds=max(0.1, round(wait, 1)),
                )
            if breaker.state != before:
                self._tell_circuit(server_id, breaker)
        return breaker

    def _judge(self, server_id: str, breaker: Breaker, epoch: int, well: bool | None) -> None:
        before = breaker.state
        breaker.record(well, time.monotonic(), epoch)
        if breaker.state != before:
            self._tell_circuit(server_id, breaker)

    def _tell_circuit(self, server_id: str, breaker: Breaker) -> None:
        log.warning("a circuit has changed", server=server_id, state=breaker.state)
        self._metrics.circuit(server_id, breaker.state)
        self._events.publish("circuit_changed", server_id=server_id, state=breaker.state)

    def circuit(self, server_id: str) -> BreakerState:
        """Whether calls go to a server (`closed`), none do (`open`), or some find out (`half_open`)."""
        breaker = self._breakers.get(server_id)
        return breaker.state if breaker is not None else "closed"

    def forget(self, server_id: str) -> None:
        """A server is gone for good."""
        self._turnstiles.pop(server_id, None)
        self._breakers.pop(server_id, None)

    async def _resolve(self, call: ToolCall, sees: Sees | None) -> Tool:
        """The tool; if its server has not listed any yet, wait until it has.

        Raises:
            ToolNotFound: with the nearest names.
            UpstreamUnavailable: the server that the name begins with does not run.
        """
        try:
            return self._library.resolve(call.tool_id, call.action, call.server_id, sees=sees)
        except ToolNotFound:
            server_id = call.server_id or self._upstreams.owner(call.tool_id)
            upstream = self._upstreams.find(server_id) if server_id is not None else None
            if upstream is None or self._library.of_server(upstream.server_id):
                raise
            limit = call.timeout_seconds or self.call_timeout_seconds
            try:
                with Deadline(limit):
                    await upstream.wait_up()
            except TimeoutError:
                raise UpstreamUnavailable(
                    f"server {upstream.server_id!r} is still starting after {limit:g} s: call again later"
                ) from None
            return self._library.resolve(call.tool_id, call.action, call.server_id, sees=sees)

    async def _steps(
        self,
        tool: Tool,
        call: ToolCall,
        principal: Principal,
        started: float,
        caller: Caller | None,
    ) -> ToolResult:
        check_arguments(tool, self._library.validator(tool), call.arguments)
        if self.policy.looks_at_arguments:
            decision = self.policy.decide(principal, tool, decode(call.arguments))
            if not decision.allowed:
                why = decision.reason or "a rule of the operator is against it"
                raise Forbidden(f"{principal.name!r} may not call {tool.tool_id} with these arguments: {why}")
        if not (principal is LOCAL or self.rates.is_open):
            await self.rates.take(principal, tool)
        turnstile = self._turnstile(tool.server_id)
        await turnstile.enter(caller, call.timeout_seconds or self.call_timeout_seconds)
        began = time.perf_counter()
        try:
            try:
                raw = await self._try(tool, call, principal, caller)
            except UpstreamUnavailable as exc:  # it did not happen, or may be made again: its message says which
                if not self.retries or not _may_pass(exc):
                    raise
                raw = await self._try_again(tool, call, principal, caller)
        finally:
            turnstile.leave(time.perf_counter() - began)
        result = _result(tool, raw, (time.perf_counter() - started) * 1000)
        if result.input_required and (caller is None or not caller.stateless):
            raise InvalidRequest(
                f"{tool.tool_id} needs input of its user before it can go on: call it over MCP, with a client that asks"
            )
        return result

    async def _try(self, tool: Tool, call: ToolCall, principal: Principal, caller: Caller | None) -> Raw:
        """Ask the server once, if its breaker lets us, and tell the breaker how it went."""
        breaker = self._admitted(tool.server_id)
        epoch = breaker.epoch
        well: bool | None = None
        try:
            raw = await self._ask(tool, call, principal, caller)
            well = True
            return raw
        except (UpstreamUnavailable, UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError) as exc:
            well = exc.upstream_error is not None  # an error of the server's own is an answer
            raise
        finally:
            self._judge(tool.server_id, breaker, epoch, well)

    async def _try_again(self, tool: Tool, call: ToolCall, principal: Principal, caller: Caller | None) -> Raw:
        """Ask again what certainly did not happen, or does no harm twice, with longer and longer pauses."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

        wait = wait_exponential_jitter(initial=FIRST_RETRY_SECONDS, max=MAX_RETRY_SECONDS, jitter=FIRST_RETRY_SECONDS)
        await asyncio.sleep(random.uniform(FIRST_RETRY_SECONDS, 2 * FIRST_RETRY_SECONDS))
        again = AsyncRetrying(
            stop=stop_after_attempt(self.retries), wait=wait, retry=retry_if_exception(_may_pass), reraise=True
        )
        return await again(self._try, tool, call, principal, caller)

    async def _ask(self, tool: Tool, call: ToolCall, principal: Principal, caller: Caller | None) -> Raw:
        params: dict[str, Any] = {"name": tool.name, "arguments": call.arguments}
        if call.extra:
            params = {**call.extra, **params}
        return await self.relay(
            tool.server_id,
            "tools/call",
            params,
            what=tool.tool_id,
            principal=principal,
            caller=caller,
            timeout_seconds=call.timeout_seconds,
            safe_to_repeat=tool.safe_to_repeat,
        )

    async def relay(
        self,
        server_id: str,
        method: str,
        params: dict[str, Any] | None,
        *,
        what: str,
        principal: Principal,
        caller: Caller | None = None,
        timeout_seconds: float | None = None,
        safe_to_repeat: bool = True,
    ) -> Raw:
        """Put one request to a server, as it is. Errors say what became of it.

        Args:
            what: the name of what is asked for, for messages.
            safe_to_repeat: whether asking twice does no more than asking once.

        Raises:
            UpstreamUnavailable, UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError, InvalidArguments, Overloaded.
        """
        upstream = self._upstreams.find(server_id)
        if upstream is None:
            raise UpstreamUnavailable(f"server {server_id!r} is not connected")
        limit = timeout_seconds or upstream.spec.call_timeout_seconds or self.call_timeout_seconds
        if upstream.spec.identify_callers:
            params = {**(params or {}), "_meta": {**meta_of(params), PRINCIPAL: principal.name}}
        attempt = Attempt()
        try:
            with Deadline(limit) as deadline:
                if caller is not None:
                    caller.pause = deadline.paused
                return await self._upstreams.request(server_id, method, params, caller=caller, attempt=attempt)
        except TimeoutError as exc:
            waited = f"{what} gave no answer within {limit:g} s"
            if not attempt.asked:
                raise UpstreamUnavailable(f"{waited}: its server is {upstream.state}") from exc
            if safe_to_repeat:
                raise UpstreamTimeout(f"{waited}: it may be called again, or with a larger `timeout_seconds`") from exc
            raise OutcomeUnknown(f"{waited}, and it may have done its work: find out before you call it again") from exc
        except ConnectionLost as exc:
            if not exc.sent:
                raise UpstreamUnavailable(f"{server_id} cannot be reached: {exc.reason}") from exc
            if safe_to_repeat:
                raise UpstreamUnavailable(
                    f"{server_id} went away during the call ({exc.reason}); {what} may safely be called again"
                ) from exc
            raise OutcomeUnknown(
                f"{server_id} went away during the call ({exc.reason}), and {what} may have done its work: "
                "find out before you call it again"
            ) from exc
        except RemoteError as exc:
            refused = f"{server_id} refused the call of {what}: {exc}"
            if exc.code == Overloaded.rpc_code and (wait := _retry_after(exc)) is not None:
                raise Overloaded(exc.message, retry_after_seconds=wait) from exc
            if exc.code == UpstreamUnavailable.rpc_code:
                raise UpstreamUnavailable(exc.message, upstream_error=exc.error) from exc
            if exc.code == INVALID_PARAMS:
                raise InvalidArguments(refused, upstream_error=exc.error) from exc
            raise UpstreamProtocolError(refused, upstream_error=exc.error) from exc


def _may_pass(exc: BaseException) -> bool:
    """Whether a failure may be over in a moment, and the call was not carried out or may be twice."""
    if not isinstance(exc, UpstreamUnavailable) or isinstance(exc, CircuitOpen) or exc.upstream_error is not None:
        return False
    return isinstance(exc.__cause__, ConnectionLost)  # not one that is known to be down: its server was waited for


def _retry_after(exc: RemoteError) -> float | None:
    """How long a server that is full asks us to wait."""
    data = exc.error.get("data")
    wait = data.get("retry_after_seconds") if isinstance(data, dict) else None
    return float(wait) if isinstance(wait, int | float) else None


def _result(tool: Tool, raw: Raw, duration_ms: float) -> ToolResult:
    try:
        parsed = _results.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise UpstreamProtocolError(f"{tool.server_id} answered the call of {tool.name} with nonsense: {exc}") from exc
    return ToolResult(
        tool=tool,
        raw=raw,
        content=parsed.content,
        structured_content=parsed.structured_content or None,
        is_error=parsed.is_error,
        input_required=parsed.result_type == "input_required",
        duration_ms=duration_ms,
    )
