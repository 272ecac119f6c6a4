"""One call, from any door to its answer. The steps stand in the order of ARCHITECTURE.md 3:

resolve name → pin → validate arguments → authorise → cache → limits → breaker
             → upstream (again, if safe) → journal · score · metrics · error firewall
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType

from toolscore.access.limits import RateLimits, Turnstile
from toolscore.access.policy import Policy
from toolscore.calls.breaker import Breaker, BreakerRules, BreakerState
from toolscore.calls.cache import Cached, Keep, ResultCache, Slot
from toolscore.calls.deadline import Deadline
from toolscore.calls.stats import CallStats
from toolscore.calls.validation import check_arguments
from toolscore.core.errors import (
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
from toolscore.core.jsonrpc import INVALID_PARAMS, ConnectionLost, RemoteError, decode, decode_object, encode, meta_of
from toolscore.core.models import LOCAL, Principal, Tool, ToolCall, ToolResult
from toolscore.history.events import EventLog
from toolscore.history.firewall import ErrorFirewall
from toolscore.history.journal import Journal
from toolscore.history.recording import CallRecord, new_call_id
from toolscore.history.scores import Scores
from toolscore.telemetry.metrics import Metrics
from toolscore.telemetry.tracing import Tracing
from toolscore.tools.library import Sees, UnifiedToolLibrary
from toolscore.upstreams import Attempt, Caller, Upstream, UpstreamPool

__all__ = ["CallPipeline"]

log = structlog.get_logger(__name__)

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0
MAX_PRINCIPALS = 1000
MAX_KNOWN = 100_000
OPEN = Policy()
MAX_CHECKED_BYTES = 256 * 1024
"""A larger result is not held against its schema."""
MAX_MESSAGE = 2000
MAX_DIFF_LINES = 60
LEARNED_FROM = frozenset(
    {"invalid_arguments", "upstream_unavailable", "upstream_timeout", "outcome_unknown", "upstream_protocol_error"}
)
"""Errors that say something of the call; the others are about the caller, or about the moment."""
STAND_IN = (UpstreamUnavailable, UpstreamTimeout, Overloaded)
"""For these a result that is past its time may stand in."""
PRINCIPAL = "toolscore/principal"
SCOPES = "toolscore/scopes"
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
        cache: ResultCache,
        journal: Journal,
        scores: Scores,
        firewall: ErrorFirewall,
        tracing: Tracing | None = None,
        call_timeout_seconds: float = 60,
        policy: Policy = OPEN,
    ) -> None:
        self.cache = cache
        self.journal = journal
        self.scores = scores
        self.firewall = firewall
        self.tracing = tracing
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
        self.on_success: Callable[[str, str], None] = lambda principal, tool_id: None
        """Told of each call that went well."""
        self.stats = CallStats()
        self._active: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        self._closing = False
        metrics.in_flight.set_function(lambda: self.stats.in_flight)

    async def call(
        self, call: ToolCall, principal: Principal, *, caller: Caller | None = None, fresh: bool = False
    ) -> ToolResult:
        """Run a tool. Cancelling this cancels the server's work.

        Args:
            caller: the client, as far as the server may reach it while it works.
            fresh: past the cache, and nothing is learned from it.

        Raises:
            ToolNotFound, Forbidden, InvalidArguments, RateLimited, Overloaded, CircuitOpen, UpstreamUnavailable,
            UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError.
        """
        if self.tracing is None:
            return await self._call(call, principal, caller, fresh)
        with self.tracing.call(call, principal) as span:
            result = await self._call(call, principal, caller, fresh)
            span.ended(result)
            return result

    async def _call(self, call: ToolCall, principal: Principal, caller: Caller | None, fresh: bool) -> ToolResult:
        started, call_id = time.perf_counter(), new_call_id()
        task = asyncio.current_task()
        assert task is not None
        self._active.add(task)
        self.stats.in_flight += 1
        outcome, tool, result, error = "cancelled", None, None, None
        answered: Raw | None = None
        try:
            if self._closing:
                raise Overloaded("the gateway is shutting down: call again when it is back", retry_after_seconds=5)
            tool = await self._resolve(call, self.sees(principal))
            result = await self._steps(tool, call, principal, caller, started, call_id, fresh)
            outcome = "tool_error" if result.is_error else "ok"
            answered = result.raw
            if result.is_error:
                error = _text_of(result.content)
            if fresh:
                return result
            if error is not None:
                if (advice := self._advice(tool, call, principal, error)) is not None:
                    result = _with_suggestion(result, advice)
            else:
                self.firewall.succeeded(principal.name, tool.tool_id, call.arguments, _declared(tool))
                self.on_success(principal.name, tool.tool_id)
            return result
        except ToolScoreError as exc:
            outcome, error = exc.code, exc.message
            learns = outcome in LEARNED_FROM and not fresh
            if learns and tool is not None and (advice := self._advice(tool, call, principal, error)) is not None:
                exc.suggestion = f"{exc.suggestion}; {advice}" if exc.suggestion else advice
            raise
        except asyncio.CancelledError as exc:
            if task not in self._ended:
                raise
            task.uncancel()
            outcome = OutcomeUnknown.code
            error = f"the gateway was shut down during the call of {call.tool_id}, and it may have done its work"
            raise OutcomeUnknown(error) from exc
        finally:
            self._active.discard(task)
            self.stats.in_flight -= 1
            seconds = time.perf_counter() - started
            self._note(call, call_id, principal, tool, result, answered, outcome, error, seconds)

    def _advice(self, tool: Tool, call: ToolCall, principal: Principal, error: str) -> str | None:
        """What helped before when a call failed like this; the failure is learned from, too."""
        match = self.firewall.failed(principal.name, tool.tool_id, error, call.arguments, _declared(tool))
        return match.suggestion if match is not None else None

    def _note(
        self,
        call: ToolCall,
        call_id: str,
        principal: Principal,
        tool: Tool | None,
        result: ToolResult | None,
        answered: Raw | None,
        outcome: str,
        error: str | None,
        seconds: float,
    ) -> None:
        """Count a call that ended, and have it remembered."""
        # Names that do not exist are the caller's to choose: they must not become labels.
        server_id, name = (tool.server_id, tool.tool_id) if tool is not None else ("-", "-")
        level = result.cache_level if result is not None else None
        self.stats.add(name, outcome, seconds * 1000)
        self._metrics.call_finished(server_id, name, outcome, seconds, level)
        if tool is not None and level is None:
            self.scores.add(tool, outcome, seconds, self._fits(tool, result))
        self.journal.add(
            CallRecord(
                call_id=call_id,
                request_id=call.request_id,
                at_ms=int(time.time() * 1000 - seconds * 1000),
                principal=principal.name,
                tool_id=name,
                server_id=server_id,
                name=tool.name if tool is not None else call.tool_id[:200],
                definition_hash=tool.definition_hash if tool is not None else "",
                outcome=outcome,
                duration_ms=round(seconds * 1000, 3),
                error=error[:MAX_MESSAGE] if error else None,
                cache=("stale" if result.stale else level) if result is not None else None,
                arguments_bytes=memoryview(call.arguments).nbytes,
                result_bytes=memoryview(answered).nbytes if answered is not None else -1,
            ),
            call.arguments,
            answered,
        )
        if len(self._events.notifier) and self._events.notifier.wanted("call_finished"):
            self._events.tell(
                "call_finished",
                tool_id=name,
                server_id=server_id,
                outcome=outcome,
                duration_ms=round(seconds * 1000, 3),
                call_id=call_id,
                request_id=call.request_id,
                principal=principal.name,
            )

    def _fits(self, tool: Tool, result: ToolResult | None) -> bool | None:
        """Whether a result is as its tool's `outputSchema` says; `None`: there is nothing to hold it against."""
        if result is None or result.is_error or "outputSchema" not in tool.definition or result.input_required:
            return None
        if result.structured_content is None:
            return False
        validator = self._library.output_validator(tool)
        if validator is None or memoryview(result.structured_content).nbytes > MAX_CHECKED_BYTES:
            return None
        return bool(validator.is_valid(decode(result.structured_content)))

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

    def find(self, name: str, server_id: str, principal: Principal) -> Tool:
        """A server's tool by its own name, as a principal sees it.

        Raises:
            ToolNotFound: with the nearest names.
        """
        return self._library.resolve(name, None, server_id, sees=self.sees(principal))

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
        caller: Caller | None,
        started: float,
        call_id: str,
        fresh: bool,
    ) -> ToolResult:
        if tool.held is not None:
            change = tool.held.change
            raise Forbidden(
                f"{tool.tool_id} is quarantined: its server says something else of it since {tool.held.since} "
                f"({'; '.join(change.reasons) or change.kind}). It can be called again once an operator has approved "
                f"it (`toolscore pins approve {tool.tool_id}`). What changed:\n{_first_lines(change.diff)}"
            )
        check_arguments(tool, self._library.validator(tool), call.arguments)
        if self.policy.looks_at_arguments:
            decision = self.policy.decide(principal, tool, decode(call.arguments))
            if not decision.allowed:
                why = decision.reason or "a rule of the operator is against it"
                raise Forbidden(f"{principal.name!r} may not call {tool.tool_id} with these arguments: {why}")
        slot = None if fresh else self._slot(tool, call, principal, caller)
        found = await self.cache.look(slot) if slot is not None else None
        stale = False
        if found is not None and found.is_fresh:
            self.cache.count(found)
            raw = found.raw
        else:
            if not (principal is LOCAL or self.rates.is_open):
                await self.rates.take(principal, tool)
            if slot is None:
                raw, found = await self._reach(tool, call, principal, caller), None
            else:
                try:
                    limit = call.timeout_seconds or self.call_timeout_seconds
                    raw = await self.cache.once(slot, lambda: self._make(tool, call, principal, caller), limit)
                    self.cache.count(None)
                    found = None
                except STAND_IN:
                    if found is None or found.stale_until <= time.time():
                        raise
                    self.cache.count(found, stale=True)
                    raw, stale = _marked_stale(found), True
        result = _result(tool, raw, (time.perf_counter() - started) * 1000, call_id, found, stale)
        if result.input_required and (caller is None or not caller.stateless):
            raise InvalidRequest(
                f"{tool.tool_id} needs input of its user before it can go on: call it over MCP, with a client that asks"
            )
        return result

    def _slot(self, tool: Tool, call: ToolCall, principal: Principal, caller: Caller | None) -> Slot | None:
        """Where the result is kept; `None`: it depends on more than the call, or is not kept."""
        if call.extra is not None and call.extra.keys() - {"_meta"}:
            return None
        upstream = self._upstreams.find(tool.server_id)
        if upstream is None or upstream.habits.asks:  # each client may get an answer of its own
            return None
        spec = upstream.spec
        if spec.forward_headers and caller is not None and caller.headers:
            return None
        return self.cache.slot(tool, call.arguments, principal, spec.digest, own=bool(spec.credentials))

    async def _make(self, tool: Tool, call: ToolCall, principal: Principal, caller: Caller | None) -> tuple[Raw, Keep]:
        """Reach the server. The result, and whether it may be given again."""
        raw = await self._reach(tool, call, principal, caller)
        parsed = _parsed(tool, raw)
        upstream = self._upstreams.find(tool.server_id)
        asked = upstream is None or upstream.habits.asks  # just now, maybe
        if asked or parsed.result_type != "complete":
            return raw, "own"
        return raw, "shared" if parsed.is_error else "kept"

    async def _reach(self, tool: Tool, call: ToolCall, principal: Principal, caller: Caller | None) -> Raw:
        """Ask the server when there is a place, and again where that is safe."""
        turnstile = self._turnstile(tool.server_id)
        await turnstile.enter(caller, call.timeout_seconds or self.call_timeout_seconds)
        began = time.perf_counter()
        try:
            try:
                return await self._try(tool, call, principal, caller)
            except UpstreamUnavailable as exc:  # it did not happen, or may be made again: its message says which
                if not self.retries or not _may_pass(exc):
                    raise
                return await self._try_again(tool, call, principal, caller)
        finally:
            turnstile.leave(time.perf_counter() - began)

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
        if self.tracing is not None:
            with self.tracing.request(server_id, method, what) as span:
                params = {**(params or {}), "_meta": {**meta_of(params), **span.carried()}}
                return await self._relay(upstream, method, params, what, principal, caller, limit, safe_to_repeat)
        return await self._relay(upstream, method, params, what, principal, caller, limit, safe_to_repeat)

    async def _relay(
        self,
        upstream: Upstream,
        method: str,
        params: dict[str, Any] | None,
        what: str,
        principal: Principal,
        caller: Caller | None,
        limit: float,
        safe_to_repeat: bool,
    ) -> Raw:
        server_id = upstream.server_id
        if caller is None and upstream.spec.credentials:
            caller = Caller(principal)
        if upstream.spec.identify_callers:
            who = {PRINCIPAL: principal.name, SCOPES: list(principal.scopes)}
            params = {**(params or {}), "_meta": {**meta_of(params), **who}}
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


def _parsed(tool: Tool, raw: Raw) -> _CallResult:
    try:
        return _results.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise UpstreamProtocolError(f"{tool.server_id} answered the call of {tool.name} with nonsense: {exc}") from exc


def _result(tool: Tool, raw: Raw, duration_ms: float, call_id: str, found: Cached | None, stale: bool) -> ToolResult:
    parsed = _parsed(tool, raw)
    return ToolResult(
        tool=tool,
        raw=raw,
        content=parsed.content,
        structured_content=parsed.structured_content or None,
        is_error=parsed.is_error,
        input_required=parsed.result_type == "input_required",
        duration_ms=duration_ms,
        call_id=call_id,
        cache_level=found.level if found is not None else None,
        stale=stale,
    )


def _marked_stale(found: Cached) -> Raw:
    """A kept result that says how old it is: whoever reads it should know."""
    result = decode_object(found.raw)
    meta = meta_of({"_meta": result["_meta"]}) if "_meta" in result else {}
    meta["toolscore/stale"] = {"age_seconds": round(found.age, 1)}
    return Raw(encode({**result, "_meta": meta}))


def _with_suggestion(result: ToolResult, suggestion: str) -> ToolResult:
    """A failed tool's result with what helped before, where a model reads it."""
    try:
        content = msgspec.json.decode(result.content, type=list[Raw])
    except msgspec.ValidationError:
        return msgspec.structs.replace(result, suggestion=suggestion)
    content.append(Raw(encode({"type": "text", "text": f"Suggestion: {suggestion}"})))
    raw = Raw(encode({**decode_object(result.raw), "content": content}))
    return msgspec.structs.replace(result, raw=raw, content=Raw(encode(content)), suggestion=suggestion)


def _declared(tool: Tool) -> Collection[str]:
    """The names of a tool's arguments, by its schema."""
    properties = tool.input_schema.get("properties") if isinstance(tool.input_schema, dict) else None
    return properties.keys() if isinstance(properties, dict) else ()


def _first_lines(diff: str) -> str:
    lines = diff.splitlines()
    more = [f"… and {len(lines) - MAX_DIFF_LINES} more lines"] if len(lines) > MAX_DIFF_LINES else []
    return "\n".join([*lines[:MAX_DIFF_LINES], *more])


def _text_of(content: Raw) -> str:
    """The text of MCP content blocks."""
    blocks = decode(content)
    texts = (block.get("text") for block in blocks if isinstance(block, dict)) if isinstance(blocks, list) else ()
    return "\n".join(text for text in texts if isinstance(text, str))[:MAX_MESSAGE]
