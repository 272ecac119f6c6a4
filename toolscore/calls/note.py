"""The last step: a call that ended is counted, recorded and learned from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from toolscore.calls.model import Call
from toolscore.calls.result import text_of, with_suggestion
from toolscore.calls.stats import CallStats
from toolscore.core.clock import milliseconds
from toolscore.core.errors import InvalidArguments, OutcomeUnknown, ToolScoreError
from toolscore.core.jsonrpc import decode
from toolscore.core.models import Tool, ToolResult
from toolscore.history.events import EventLog
from toolscore.history.firewall import ErrorFirewall
from toolscore.history.journal import CUT_OFF, Journal
from toolscore.history.recording import CallRecord
from toolscore.history.scores import Scores
from toolscore.telemetry.metrics import Metrics
from toolscore.tools.library import UnifiedToolLibrary

__all__ = ["Notes"]

MAX_CHECKED_BYTES = 256 * 1024
"""A larger result is not held against its schema."""
MAX_MESSAGE = 2000
MAX_NAME = 200
LEARNED_FROM = frozenset(
    {"invalid_arguments", "upstream_unavailable", "upstream_timeout", "outcome_unknown", "upstream_protocol_error"}
)
"""Errors that say something of the call; the others are about the caller, or about the moment."""


class Notes:
    """Everything that is remembered of calls.

    Args:
        on_success: `(principal, tool_id)`, told of each call that went well.
    """

    def __init__(
        self,
        library: UnifiedToolLibrary,
        *,
        metrics: Metrics,
        events: EventLog,
        journal: Journal,
        scores: Scores,
        firewall: ErrorFirewall,
        on_success: Callable[[str, str], None] = lambda principal, tool_id: None,
    ) -> None:
        self._library = library
        self._metrics = metrics
        self._events = events
        self._journal = journal
        self._scores = scores
        self._firewall = firewall
        self._on_success = on_success
        self.stats = CallStats()
        metrics.in_flight.set_function(lambda: self.stats.in_flight)

    def began(self, call: Call) -> None:
        """Take a call that has just begun. Needs an `ended`."""
        self.stats.in_flight += 1

    def sending(self, call: Call) -> Awaitable[None] | None:
        """Take a call that may change something and is about to be sent: a kill from now on leaves a record of it.

        Returns:
            What to await for that; `None`: it is so.
        """
        call.record = record = _record(call)
        record.outcome, record.error = OutcomeUnknown.code, CUT_OFF
        call.start = self._journal.begin(record, call.arguments)
        return self._journal.kept(call.start) if call.start is not None else None

    def answered(self, call: Call, result: ToolResult) -> ToolResult:
        """Take a call that was answered. Returns the result, with advice if the tool failed and some is known."""
        call.outcome = "tool_error" if result.is_error else "ok"
        if result.is_error:
            call.error = text_of(result.content)
        if call.replay:
            return result
        if call.error is not None:
            advice = self._advice(call, call.error)
            return with_suggestion(result, advice) if advice is not None else result
        tool_id = call.target.tool_id
        self._firewall.succeeded(call.principal.name, tool_id, call.arguments, _schema(call.target))
        self._on_success(call.principal.name, tool_id)
        return result

    def failed(self, call: Call, error: ToolScoreError) -> None:
        """Take a call that failed; the error gets advice if some is known."""
        call.outcome, call.error = error.code, error.message
        own = error.code == InvalidArguments.code and error.upstream_error is None  # the schema's word says it all
        if call.outcome in LEARNED_FROM and not own and not call.replay and call.tool is not None:
            advice = self._advice(call, error.message)
            if advice is not None:
                error.suggestion = f"{error.suggestion}; {advice}" if error.suggestion else advice

    def cut_off(self, call: Call) -> OutcomeUnknown:
        """Take a call that the gateway's own end cut off. Returns what its caller is told."""
        message = f"the gateway was shut down during the call of {call.tool_id}, and it may have done its work"
        call.outcome, call.error = OutcomeUnknown.code, message
        return OutcomeUnknown(message)

    def ended(self, call: Call, result: ToolResult | None) -> None:
        """Count a call, however it ended, and have it recorded. Never waits."""
        self.stats.in_flight -= 1
        tool, seconds = call.tool, call.seconds
        record = call.record or _record(call)
        server_id, name = record.server_id, record.tool_id
        level = call.kept.level if result is not None and call.kept is not None else None
        self.stats.add(name, call.outcome, seconds * 1000, kept=level is not None)
        self._metrics.call_finished(server_id, name, call.outcome, seconds, level)
        if tool is not None and level is None and not call.replay:
            self._scores.add(tool, call.outcome, seconds, self._fits(tool, result))
        answer = call.answer if result is not None else None
        record.outcome = call.outcome
        record.error = call.error[:MAX_MESSAGE] if call.error else None
        record.duration_ms = milliseconds(seconds)
        if level is not None:
            record.cache = "stale" if call.is_stale else level
        if answer is not None:
            record.result_bytes = memoryview(answer).nbytes
        if call.queued is not None:
            record.queued_ms = milliseconds(call.queued)
        if call.served is not None:
            record.server_ms = milliseconds(call.served)
        self._journal.add(record, call.arguments, answer, call.start)
        if len(self._events.notifier) and self._events.notifier.wanted("call_finished"):
            self._events.tell(
                "call_finished",
                tool_id=name,
                server_id=server_id,
                outcome=call.outcome,
                duration_ms=record.duration_ms,
                call_id=call.call_id,
                request_id=call.request_id,
                principal=call.principal.name,
                **({"parent": call.parent} if call.parent is not None else {}),
            )

    def _advice(self, call: Call, error: str) -> str | None:
        """What helped before when a call failed like this; the failure is learned from, too."""
        tool = call.target
        match = self._firewall.failed(call.principal.name, tool.tool_id, error, call.arguments, _schema(tool))
        return match.suggestion if match is not None else None

    def _fits(self, tool: Tool, result: ToolResult | None) -> bool | None:
        """Whether a result is as its tool's `outputSchema` says; `None`: there is nothing to hold it against."""
        if result is None or result.is_error or "outputSchema" not in tool.definition or result.input_required:
            return None
        if result.structured_content is None:
            return False
        compiled = self._library.schemas.output_validator(tool)
        size = memoryview(result.structured_content).nbytes
        if compiled is None or size > MAX_CHECKED_BYTES:
            return None
        value = decode(result.structured_content)
        return bool(compiled.validator.is_valid(value)) if compiled.is_quick(value, size) else None


def _record(call: Call) -> CallRecord:
    """What is known of a call before it ends. Names that do not exist are the caller's to choose: they
    must not become ids, nor labels.
    """
    tool = call.tool
    known = ("-", "-", call.tool_id[:MAX_NAME], "")
    if tool is not None:
        known = (tool.tool_id, tool.server_id, tool.name, tool.definition_hash)
    return CallRecord(
        call.call_id,
        call.request_id,
        call.at_ms,
        call.principal.name,
        *known,
        call.outcome,
        0.0,
        arguments_bytes=call.arguments_bytes,
        parent=call.parent,
    )


def _schema(tool: Tool) -> dict[str, Any] | None:
    return tool.input_schema if isinstance(tool.input_schema, dict) else None
