"""Scores: how well each tool has served so far, measured from live calls. Evidence fades, and little of it says little.

    score = success × (0.75 + 0.25 · latency) × (0.5 + 0.5 · conformance) × stability

Each part is a share between 0 and 1. Success starts at what tools achieve on average, and evidence pulls it away
from there; the other parts count only where the tool can be held to something: a latency class that it declares
(`_meta["toolscore/latency_class"]`), an `outputSchema`, a definition that changed. The arithmetic is pure: the clock is
an argument.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Literal

import msgspec
import structlog

from toolscore.core.models import Tool
from toolscore.core.rules import Rules
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database

__all__ = ["LATENCY_CLASSES", "Score", "ScoreRules", "Scores", "TrackRecord"]

log = structlog.get_logger(__name__)

HALF_LIFE_SECONDS = 7 * 86400.0
PRIOR_SUCCESS = 0.8
PRIOR_WEIGHT = 5.0
"""A new tool counts as if it had been called so often, with average success."""

LATENCY_CLASSES = {"instant": 0.1, "interactive": 1.0, "slow": 10.0, "batch": 300.0}
"""Seconds within which nine of ten answers should come."""
LATENCY_KEY = "toolscore/latency_class"

BLAMES = frozenset(
    {"upstream_unavailable", "upstream_timeout", "outcome_unknown", "upstream_protocol_error", "circuit_open"}
)
"""Outcomes that are the server's. Others (wrong arguments, a refusal, a caller that left) say nothing of the tool."""
TELLING = BLAMES | {"ok", "tool_error"}
TOOL_ERROR_WEIGHT = 0.5
"""A tool that says it failed may have been asked for what cannot be: half a failure."""
CHANGED_WEIGHT = {"compatible": 0.0, "breaking": 0.25, "suspicious": 0.5}
FLUSH_SECONDS = 5.0
SETTLED = 1e-4

Outcome = Literal["good", "bad", "tool_error"]


class TrackRecord(msgspec.Struct):
    """What was seen of one tool, each number fading by half in a week. `at`: seconds since 1970 of the last look."""

    at: float = 0.0
    good: float = 0.0
    bad: float = 0.0
    in_time: float = 0.0
    late: float = 0.0
    fitting: float = 0.0
    unfitting: float = 0.0
    changes: float = 0.0
    calls: int = 0

    def plus(self, other: TrackRecord) -> TrackRecord:
        """What both saw together, as of the later look of the two."""
        parts = [msgspec.structs.replace(one) for one in (self, other)]
        now = max(part.at for part in parts)
        for part in parts:
            part.fade(now)
        one, two = (msgspec.structs.asdict(part) for part in parts)
        return TrackRecord(**{name: one[name] + two[name] for name in one} | {"at": now})

    def fade(self, now: float) -> None:
        """Let time pass."""
        elapsed = now - self.at
        if elapsed <= 0:
            return
        left = 0.5 ** (elapsed / HALF_LIFE_SECONDS)
        for name in ("good", "bad", "in_time", "late", "fitting", "unfitting", "changes"):
            value = getattr(self, name) * left
            setattr(self, name, value if value > SETTLED else 0.0)
        self.at = now

    def add(self, outcome: str, now: float, *, in_time: bool | None = None, fits: bool | None = None) -> bool:
        """Take one call's end. Returns whether it says anything of the tool.

        Args:
            in_time: within the tool's own latency class; `None`: it has none.
            fits: whether the result is as the tool's `outputSchema` says; `None`: it has none, or there was no result.
        """
        if outcome not in TELLING:
            return False
        if now - self.at > 1.0:  # fading more often changes nothing that anybody could see
            self.fade(now)
        self.calls += 1
        if outcome == "ok":
            self.good += 1
        elif outcome == "tool_error":
            self.bad += TOOL_ERROR_WEIGHT
        else:
            self.bad += 1
        if in_time is not None:
            self.in_time += in_time
            self.late += not in_time
        if outcome == "upstream_protocol_error":
            fits = False
        if fits is not None:
            self.fitting += fits
            self.unfitting += not fits
        return True


class Score(msgspec.Struct, frozen=True):
    """A tool's score, and what it is made of."""

    value: float
    sample_size: float
    calls: int
    parts: dict[str, float | None]
    reasons: tuple[str, ...]


def score_of(evidence: TrackRecord, now: float, latency_class: str | None = None) -> Score:
    """The score that evidence makes."""
    seen = msgspec.structs.replace(evidence)
    seen.fade(now)
    size = seen.good + seen.bad
    success = (seen.good + PRIOR_SUCCESS * PRIOR_WEIGHT) / (size + PRIOR_WEIGHT)
    latency = _share(seen.in_time, seen.late)
    conformance = _share(seen.fitting, seen.unfitting)
    stability = 1 / (1 + seen.changes)
    value = success * stability
    reasons = []
    if not size:
        reasons.append(f"not called lately: it counts like an average tool ({PRIOR_SUCCESS:g})")
    else:
        reasons.append(f"{seen.good / size:.0%} of some {max(1, round(size))} calls succeeded (weighted by age)")
        if size < PRIOR_WEIGHT:
            reasons.append("few calls: its score is still near the average")
    if latency is not None:
        value *= 0.75 + 0.25 * latency
        if latency_class is not None:
            bound = LATENCY_CLASSES[latency_class]
            within = seen.in_time / (seen.in_time + seen.late)
            reasons.append(f"{within:.0%} of its answers came within {bound:g} s, as its class {latency_class!r} says")
    if conformance is not None:
        value *= 0.5 + 0.5 * conformance
        fitting = seen.fitting / (seen.fitting + seen.unfitting)
        if fitting < 1:
            reasons.append(f"{1 - fitting:.0%} of its results are not as its outputSchema says")
    if seen.changes > 0.01:
        reasons.append("its definition changed in a way that callers notice")
    parts = {
        "success": round(success, 4),
        "latency": round(latency, 4) if latency is not None else None,
        "conformance": round(conformance, 4) if conformance is not None else None,
        "stability": round(stability, 4),
    }
    return Score(round(value, 4), round(size, 2), seen.calls, parts, tuple(reasons))


def _share(yes: float, no: float) -> float | None:
    """A share, pulled towards all of it while there is little evidence."""
    return (yes + PRIOR_WEIGHT) / (yes + no + PRIOR_WEIGHT) if yes + no else None


class ScoreRules(Rules):
    """How well each tool serves, from live calls."""

    enabled: bool = True


class Scores:
    """All tools' evidence. Use as `async with Scores(database) as scores`.

    Kept every few seconds: a gateway that is killed forgets no more than that.
    """

    def __init__(self, database: Database, rules: ScoreRules | None = None) -> None:
        self._database = database
        self._rules = rules or ScoreRules()
        self._evidence: dict[str, TrackRecord] = {}
        self._fresh: dict[str, TrackRecord] = {}
        """What was seen since the last write: it is added to what stands in the database by then, also by others, and
        comes on top of the evidence until then."""
        self._timer: asyncio.TimerHandle | None = None
        self.writes = WriteBehind("scores")

    def use(self, rules: ScoreRules) -> None:
        """Measure by other rules from now on."""
        self._rules = rules

    async def __aenter__(self) -> Scores:
        for row in await self._database.load_scores():
            try:
                self._evidence[row["tool_id"]] = msgspec.json.decode(row["state"], type=TrackRecord)
            except msgspec.MsgspecError:
                log.warning("a tool's score cannot be read: it begins anew", tool=row["tool_id"])
        await self.writes.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._flush()
        await self.writes.__aexit__(*exc)

    def of(self, tool: Tool) -> Score:
        """A tool's score now."""
        seen, fresh = self._evidence.get(tool.tool_id), self._fresh.get(tool.tool_id)
        seen = seen.plus(fresh) if seen is not None and fresh is not None else seen or fresh or TrackRecord()
        return score_of(seen, time.time(), latency_class(tool))

    def add(self, tool: Tool, outcome: str, seconds: float, fits: bool | None) -> None:
        """Take how a call of a tool ended."""
        if not self._rules.enabled:
            return
        fresh = self._fresh.get(tool.tool_id) or TrackRecord()
        declared = latency_class(tool) if outcome == "ok" else None
        in_time = seconds <= LATENCY_CLASSES[declared] if declared is not None else None
        if fresh.add(outcome, time.time(), in_time=in_time, fits=fits):
            self._fresh[tool.tool_id] = fresh
            self._flush_soon()

    def changed(self, tool_id: str, kind: str) -> None:
        """A tool's definition is another.

        Args:
            kind: of the change (`Change.kind`).
        """
        weight = CHANGED_WEIGHT.get(kind)
        if weight:
            record = self._fresh.setdefault(tool_id, TrackRecord())
            record.fade(time.time())
            record.changes += weight
            self._flush_soon()

    def forget(self, tool_ids: list[str]) -> None:
        """Tools are gone for good."""
        known = [tool_id for tool_id in tool_ids if tool_id in self._evidence or tool_id in self._fresh]
        for tool_id in known:
            self._evidence.pop(tool_id, None)
            self._fresh.pop(tool_id, None)
        if known:
            self.writes.put(lambda: self._database.delete_scores(known))

    def _flush_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        fresh, self._fresh = self._fresh, {}
        for tool_id, record in fresh.items():
            seen = self._evidence.get(tool_id)
            self._evidence[tool_id] = record if seen is None else seen.plus(record)
        if fresh:
            self.writes.put(lambda: self._add_to_kept(fresh))

    async def _add_to_kept(self, fresh: dict[str, TrackRecord]) -> None:
        def added(tool_id: str, kept: str | None) -> str:
            record = fresh[tool_id]
            with contextlib.suppress(msgspec.MsgspecError):
                record = msgspec.json.decode(kept or "{}", type=TrackRecord).plus(record)
            return msgspec.json.encode(record).decode()

        for tool_id, state in (await self._database.change_scores(list(fresh), added)).items():
            if tool_id in self._evidence:
                self._evidence[tool_id] = msgspec.json.decode(state, type=TrackRecord)


def latency_class(tool: Tool) -> str | None:
    """The class that a tool declares, if it does."""
    meta: Any = tool.definition.get("_meta")
    declared = meta.get(LATENCY_KEY) if isinstance(meta, dict) else None
    return declared if isinstance(declared, str) and declared in LATENCY_CLASSES else None
