"""One call, from any door to its answer: the steps, in the order in which a call passes them."""

from __future__ import annotations

import asyncio
from typing import Any

from toolscore.access.limits import RateLimits
from toolscore.access.permissions import Permissions
from toolscore.calls.authorise import authorise
from toolscore.calls.hold import hold
from toolscore.calls.lookup import KeptResults
from toolscore.calls.model import Call
from toolscore.calls.note import Notes
from toolscore.calls.reach import Reach
from toolscore.calls.resolve import resolve
from toolscore.calls.result import read_result
from toolscore.calls.underway import Underway
from toolscore.calls.validation import validate
from toolscore.core.errors import ToolScoreError
from toolscore.core.models import ToolResult
from toolscore.core.rules import LimitRules
from toolscore.telemetry.tracing import NO_TRACING, Tracing
from toolscore.tools.checking import Judge
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.upstreams import UpstreamPool

__all__ = ["CallPipeline"]


class CallPipeline:
    """Carries out calls. Every door ends in `call`."""

    def __init__(
        self,
        library: UnifiedToolLibrary,
        upstreams: UpstreamPool,
        *,
        permissions: Permissions,
        kept: KeptResults,
        rates: RateLimits,
        reach: Reach,
        notes: Notes,
        limits: LimitRules,
        judge: Judge,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._library = library
        self._upstreams = upstreams
        self._permissions = permissions
        self._kept = kept
        self._rates = rates
        self._reach = reach
        self._notes = notes
        self._limits = limits
        self._judge = judge
        self._tracing = tracing
        self.underway = Underway()

    def use(self, limits: LimitRules) -> None:
        """Wait by other rules from now on."""
        self._limits = limits

    async def call(self, call: Call) -> ToolResult:
        """Run a tool. Cancelling this cancels the server's work.

        Raises:
            ToolNotFound, Forbidden, InvalidArguments, InvalidRequest, RateLimited, Overloaded, CircuitOpen,
            UpstreamUnavailable, UpstreamTimeout, OutcomeUnknown, UpstreamProtocolError.
        """
        with self._tracing.call(call.tool_id, call.principal, call.request_id, call.extra) as span:
            result: ToolResult | None = None
            task: asyncio.Task[Any] | None = None
            self._notes.began(call)
            try:
                task = self.underway.enter()
                sees = self._permissions.sees(call.principal)
                starting = resolve(call, sees, self._library, self._upstreams, self._limits)
                if starting is not None:
                    await starting
                hold(call)
                await validate(call, self._library.schemas.validator(call.target), self._judge)
                authorise(call, self._permissions.policy)
                if self._kept.may_answer(call):
                    await self._kept.look_up(call)
                if call.answer is None:
                    await self._rates.take(call.principal, call.target)
                    await self._kept.fill(call, self._reach.reach)
                result = self._notes.answered(call, read_result(call))
                span.ended(result)
                return result
            except ToolScoreError as exc:
                self._notes.failed(call, exc)
                raise
            except Exception:
                call.outcome = ToolScoreError.code  # a mistake of ours
                raise
            except asyncio.CancelledError as exc:
                if not self.underway.was_ended(task):
                    raise
                raise self._notes.cut_off(call) from exc
            finally:
                if task is not None:
                    self.underway.leave(task)
                self._notes.ended(call, result)
