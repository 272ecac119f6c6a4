"""ErrorFirewall: a failure becomes a pattern and a class, similar ones are found, and what helped before comes back.

    message ─(mask, mine: drain3)─► pattern ─(rules)─► class
                                       ├─(vector)─► similar patterns
                                       └─► fixes: what was changed before a call succeeded that had failed so

Fixes are learned. When a call of the same caller to the same tool succeeds within minutes of a failure, the difference
between the two (arguments, or the tools called in between) is a fix of that pattern, and every later try of it counts
for or against. A fix is shown only while it beats what callers do without it: of the failures that it fits, each fourth
is told nothing, and how those go on is what it is measured by.

One module: patterns, open failures and fixes are one store, in which each goes when what it hangs on goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Raw
from pydantic import Field

from toolscore.core.clock import timestamp
from toolscore.core.errors import InvalidArguments, InvalidRequest, ToolNotFound
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.redaction import redact_json, redact_text
from toolscore.core.rules import Rules, Seconds
from toolscore.embedding import Embedder
from toolscore.history.fixes import Baseline, Fix, changes_between, says_already, worded
from toolscore.history.patterns import MASKS, Category, Pattern, categorise, plain
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database

__all__ = ["ErrorFirewall", "FirewallRules", "Match"]

log = structlog.get_logger(__name__)

MAX_MESSAGE = 1000
MAX_PATTERNS = 2000
MAX_FIXES = 5000
MAX_OPEN = 2000
MAX_STEPS = 16
MAX_ARGUMENT_BYTES = 16 * 1024
"""Calls with more are not compared: no small change mends them."""
MAX_CALLERS = 8
NEAR = 0.7
"""Cosine from which two patterns count as similar."""
CONTROL = 4
"""Of so many failures that a fix fits, one is not told of it."""


class FirewallRules(Rules):
    """What helped before when a call failed like this: `toolscore errors`."""

    enabled: bool = True
    window_seconds: Seconds = Field(300, description="a success within this of a failure is taken for its repair")
    min_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description="share of calls that succeed with a fix, less that of those that succeed without"
    )


class Match(msgspec.Struct, frozen=True):
    """What is known of an error."""

    pattern_id: str | None
    template: str
    category: Category
    count: int
    suggestion: str | None
    confidence: float | None
    fix_id: str | None
    similar: list[dict[str, Any]]


class _Failure(msgspec.Struct):
    """A failed call that may yet be mended."""

    pattern_id: str
    arguments: Any
    at: float
    steps: list[str]
    shown: str | None
    """The fix that its caller was told of."""


class ErrorFirewall:
    """Use as `async with ErrorFirewall(database, embedder) as firewall`. `failed` and `succeeded` cost microseconds.

    Args:
        clock: seconds since some moment.
    """

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        rules: FirewallRules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._embedder = embedder
        self.rules = rules or FirewallRules()
        self._patterns: dict[str, Pattern] = {}
        self._of_cluster: dict[int, str] = {}
        self._fixes: dict[str, dict[str, Fix]] = {}
        self._fix_count = 0
        self._baselines: OrderedDict[tuple[str, str], Baseline] = OrderedDict()
        self._vectors: dict[str, Any] = {}
        self._open: OrderedDict[tuple[str, str], _Failure] = OrderedDict()
        self._open_of: dict[str, set[str]] = {}
        self._miner: Any = None
        self._written: dict[str, int] = {}
        """Of each pattern the count that was written last: what came since is added to the kept one."""
        self.writes = WriteBehind("error patterns")

    def use(self, rules: FirewallRules) -> None:
        """Learn and advise by other rules from now on."""
        self.rules = rules

    async def __aenter__(self) -> ErrorFirewall:
        rows, fixes = await self._database.load_patterns()
        for row in rows[-MAX_PATTERNS:]:
            self._written[row["pattern_id"]] = row["count"]
            row["seen_by"] = decode(row["seen_by"].encode())
            self._patterns[row["pattern_id"]] = Pattern(**row)
        old = []
        for row in fixes:
            fix = msgspec.json.decode(row["content"], type=Fix)
            if fix.text is None and not fix.baseline.count:
                old.append(fix.fix_id)  # of before 0.2: with values out of calls
                continue
            self._fixes.setdefault(fix.pattern_id, {})[fix.fix_id] = fix
            self._fix_count += 1
            known = self._baselines.setdefault((fix.pattern_id, fix.tool_id), fix.baseline)
            if known.count < fix.baseline.count:
                self._baselines[fix.pattern_id, fix.tool_id] = fix.baseline
        await self.writes.__aenter__()
        if old:
            self.writes.put(lambda: self._database.save_patterns([], [], old))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.writes.__aexit__(*exc)

    # On the way of a call

    def failed(
        self, principal: str, tool_id: str, message: str, arguments: Raw, schema: dict[str, Any] | None = None
    ) -> Match | None:
        """Take a failed call, and say what helped before.

        Args:
            schema: of the tool's arguments: only of what it declares others may hear.
        """
        if not self.rules.enabled:
            return None
        message = redact_text(message[:MAX_MESSAGE])
        pattern = self._learn(message, principal)
        self._resolve(principal, tool_id, arguments, schema, mended=False)
        self._forget_late()
        if len(self._open) >= MAX_OPEN:
            self._forget_open(next(iter(self._open)))
        best = self._best(pattern, principal, tool_id, message)
        if best is not None and best.text is None:
            best.fitted += 1
            if best.fitted % CONTROL == 0:
                best = None
        shown = best.fix_id if best is not None and best.text is None else None
        self._open[principal, tool_id] = _Failure(pattern.pattern_id, _decoded(arguments), self._clock(), [], shown)
        self._open_of.setdefault(principal, set()).add(tool_id)
        return self._match(pattern, best)

    def succeeded(self, principal: str, tool_id: str, arguments: Raw, schema: dict[str, Any] | None = None) -> None:
        """Take a call that went well: it may have mended one that failed."""
        if not self._open or not self.rules.enabled:
            return
        if (principal, tool_id) in self._open:
            self._resolve(principal, tool_id, arguments, schema, mended=True)
        else:
            for other in self._open_of.get(principal, ()):
                failure = self._open[principal, other]
                if len(failure.steps) < MAX_STEPS and tool_id not in failure.steps:
                    failure.steps.append(tool_id)

    # Asked without a call

    async def match(self, message: str, principal: str, tool_id: str | None = None, *, operator: bool = False) -> Match:
        """What is known of an error message, with similar ones that this caller has met.

        Args:
            operator: who may know what was said to others.
        """
        message = redact_text(message[:MAX_MESSAGE])
        pattern = self._find(message)
        best = self._best(pattern, principal, tool_id, message) if pattern is not None else None
        if pattern is not None and best is None and not operator and principal not in pattern.seen_by:
            pattern = None  # what others' calls said is theirs
        exclude = pattern.pattern_id if pattern is not None else None
        similar = await self._similar(message, None if operator else principal, exclude)
        if pattern is not None:
            return msgspec.structs.replace(self._match(pattern, best), similar=similar)
        unknown = Match(
            pattern_id=None,
            template=message,
            category=categorise(message),
            count=0,
            suggestion=None,
            confidence=None,
            fix_id=None,
            similar=similar,
        )
        near = self._patterns[similar[0]["pattern_id"]] if similar else None
        if near is None or near.category != unknown.category:
            return unknown
        best = self._best(near, principal, tool_id, message)
        if best is None or best.text is None:
            return unknown  # what was learned of one error is no word on another
        return msgspec.structs.replace(
            unknown, suggestion=worded(best), confidence=similar[0]["similarity"], fix_id=best.fix_id
        )

    def write_fix(self, message: str, text: str, principal: str, tool_id: str | None = None) -> Fix:
        """Keep a fix of an error by hand, for everybody.

        Raises:
            InvalidArguments: without words.
        """
        if not text.strip() or len(text) > MAX_MESSAGE or not message.strip():
            raise InvalidArguments(f"a fix needs the error's `message` and a `text` of 1 to {MAX_MESSAGE} characters")
        pattern = self._learn(redact_text(message[:MAX_MESSAGE]), principal, happened=False)
        fix_id = _digest(pattern.pattern_id, tool_id or "", text)
        fix = Fix(fix_id=fix_id, pattern_id=pattern.pattern_id, tool_id=tool_id or "", text=text.strip(),
                  last_used=timestamp())  # fmt: skip
        self._put(fix)
        return fix

    def find_fix(self, fix_id: str) -> Fix | None:
        """A fix by its id."""
        return next((of_pattern[fix_id] for of_pattern in self._fixes.values() if fix_id in of_pattern), None)

    def remove_fix(self, fix_id: str) -> None:
        """Forget a fix.

        Raises:
            ToolNotFound: there is none.
        """
        self._remove([self._fix(fix_id)])

    def switch_fix(self, fix_id: str, *, off: bool) -> None:
        """Tell nobody of a fix, or tell of it again.

        Raises:
            ToolNotFound: there is none.
        """
        fix = self._fix(fix_id)
        fix.off = off
        self._put(fix)

    def _fix(self, fix_id: str) -> Fix:
        found = self.find_fix(fix_id)
        if found is None:
            raise ToolNotFound(f"no fix {fix_id!r}: GET /api/v1/errors lists them")
        return found

    def shown(self, limit: int = 100) -> list[dict[str, Any]]:
        """The patterns with their fixes, the most frequent first."""
        found = sorted(self._patterns.values(), key=lambda pattern: (-pattern.count, pattern.pattern_id))[:limit]
        return [
            {
                **{name: getattr(pattern, name) for name in ("pattern_id", "template", "category", "count",
                                                             "first_seen", "last_seen")},
                "fixes": [
                    {
                        "fix_id": fix.fix_id,
                        "tool_id": fix.tool_id or None,
                        "text": worded(fix),
                        "by_hand": fix.text is not None,
                        "worked": fix.worked,
                        "failed": fix.failed,
                        "shown": fix.shown,
                        "right": fix.right,
                        "without": msgspec.structs.asdict(fix.baseline),
                        "confidence": round(max(0.0, fix.gain), 3),
                        "is_shown": self._is_shown(fix),
                        "off": fix.off,
                    }
                    for fix in self._fixes.get(pattern.pattern_id, {}).values()
                ],
            }
            for pattern in found
        ]  # fmt: skip

    # Patterns

    def _mine(self) -> Any:
        """The template miner, with what was learned before."""
        if self._miner is None:
            from drain3 import TemplateMiner
            from drain3.masking import MaskingInstruction
            from drain3.template_miner_config import TemplateMinerConfig

            config = TemplateMinerConfig()
            config.drain_sim_th = 0.6
            config.drain_max_clusters = MAX_PATTERNS
            config.masking_instructions = [MaskingInstruction(pattern, mask) for pattern, mask in MASKS]
            self._miner = TemplateMiner(config=config)
            for pattern in self._patterns.values():
                found = self._miner.add_log_message(pattern.template)
                self._of_cluster.setdefault(found["cluster_id"], pattern.pattern_id)
        return self._miner

    def _find(self, message: str) -> Pattern | None:
        cluster = self._mine().match(" ".join(message.split()))
        return self._patterns.get(self._of_cluster.get(cluster.cluster_id, "")) if cluster is not None else None

    def _learn(self, message: str, principal: str, *, happened: bool = True) -> Pattern:
        message = message.replace("\0", "�")
        mined = self._mine().add_log_message(" ".join(message.split()) or "(no message)")
        template, cluster = mined["template_mined"], mined["cluster_id"]
        pattern = self._patterns.get(self._of_cluster.get(cluster, ""))
        now = timestamp()
        if pattern is None:
            if len(self._patterns) >= MAX_PATTERNS:
                self._forget_oldest_patterns()
            pattern = Pattern(
                # The same for all gateways on a database; of one that had another template once, its own.
                pattern_id=_digest(template, *([now] if _digest(template) in self._patterns else [])),
                template=template,
                category=categorise(message),
                count=0,
                first_seen=now,
                last_seen=now,
            )
            self._patterns[pattern.pattern_id] = pattern
            self._of_cluster[cluster] = pattern.pattern_id
        if happened:
            pattern.count += 1
            pattern.last_seen = now
        if pattern.template != template:
            pattern.template = template
            self._vectors.pop(pattern.pattern_id, None)
        if principal not in pattern.seen_by and len(pattern.seen_by) < MAX_CALLERS:
            pattern.seen_by.append(principal)
        if not happened or _worth_writing(pattern.count):
            seen_by, more = encode(pattern.seen_by).decode(), pattern.count - self._written.get(pattern.pattern_id, 0)
            row = {**msgspec.structs.asdict(pattern), "seen_by": seen_by, "count": more}
            self._written[pattern.pattern_id] = pattern.count
            self.writes.put(lambda: self._database.save_patterns([row], []))
        return pattern

    def _forget_oldest_patterns(self) -> None:
        """Make room: a tenth goes, with its fixes; the miner begins anew with what is left."""
        oldest = sorted(self._patterns.values(), key=lambda one: one.last_seen)[: MAX_PATTERNS // 10]
        for pattern in oldest:
            del self._patterns[pattern.pattern_id]
            self._written.pop(pattern.pattern_id, None)
            self._vectors.pop(pattern.pattern_id, None)
            self._remove(list(self._fixes.get(pattern.pattern_id, {}).values()))
        gone = [pattern.pattern_id for pattern in oldest]
        self.writes.put(lambda: self._database.delete_patterns(gone))
        known = set(self._patterns)
        self._of_cluster = {cluster: pattern for cluster, pattern in self._of_cluster.items() if pattern in known}

    async def _similar(self, message: str, principal: str | None, exclude: str | None) -> list[dict[str, Any]]:
        """The patterns nearest in meaning, that this caller has met; `None`: whoever has."""
        seen = [
            pattern
            for pattern in self._patterns.values()
            if pattern.pattern_id != exclude and (principal is None or principal in pattern.seen_by)
        ]
        if not seen:
            return []
        missing = [pattern for pattern in seen if pattern.pattern_id not in self._vectors]
        texts = [plain(message), *(plain(pattern.template) for pattern in missing)]
        vectors = await asyncio.to_thread(self._embedder.embed, texts)
        for pattern, vector in zip(missing, vectors[1:], strict=True):
            self._vectors[pattern.pattern_id] = vector
        near = [
            (float(vectors[0] @ self._vectors[one.pattern_id]), one) for one in seen if one.pattern_id in self._vectors
        ]
        near.sort(key=lambda pair: (-pair[0], pair[1].pattern_id))
        return [
            {"pattern_id": one.pattern_id, "template": one.template, "category": one.category, "count": one.count,
             "similarity": round(similarity, 3)}
            for similarity, one in near[:5]
            if similarity >= NEAR
        ]  # fmt: skip

    # Fixes

    def _match(self, pattern: Pattern, best: Fix | None) -> Match:
        return Match(
            pattern_id=pattern.pattern_id,
            template=pattern.template,
            category=pattern.category,
            count=pattern.count,
            suggestion=worded(best) if best is not None else None,
            confidence=round(best.gain, 3) if best is not None else None,
            fix_id=best.fix_id if best is not None else None,
            similar=[],
        )

    def _best(self, pattern: Pattern, principal: str, tool_id: str | None, message: str) -> Fix | None:
        """The fix that helps most, of those that help enough and say more than the error does."""
        found = [
            fix
            for fix in self._fixes.get(pattern.pattern_id, {}).values()
            if self._may_see(fix, principal, tool_id) and self._is_shown(fix) and not says_already(message, fix)
        ]
        return max(found, key=lambda fix: (fix.gain, fix.worked, fix.fix_id), default=None)

    def _is_shown(self, fix: Fix) -> bool:
        return not fix.off and fix.is_sure and fix.gain >= self.rules.min_confidence

    @staticmethod
    def _may_see(fix: Fix, principal: str, tool_id: str | None) -> bool:
        """By hand for everybody; else for the same tool, and steps for who made them."""
        if fix.text is not None:
            return fix.tool_id in ("", tool_id)
        if fix.steps and principal not in fix.callers:
            return False
        return fix.tool_id == tool_id

    def _resolve(
        self, principal: str, tool_id: str, arguments: Raw, schema: dict[str, Any] | None, *, mended: bool
    ) -> None:
        """Take how a failure went on: the next call of its caller to its tool."""
        failure = self._open.get((principal, tool_id))
        if failure is None:
            return
        if self._clock() - failure.at > self.rules.window_seconds:
            self._forget_open((principal, tool_id))
            return
        tried = self._tried(failure, principal, tool_id, arguments, schema, mended)
        self._went_on(failure, tool_id, tried, mended)
        self._forget_open((principal, tool_id), resolved=True)

    def _tried(
        self, failure: _Failure, principal: str, tool_id: str, arguments: Raw, schema: dict[str, Any] | None,
        mended: bool,
    ) -> Fix | None:  # fmt: skip
        """Count what was changed since the failure for or against itself. Returns it, if it can be said."""
        before, after = failure.arguments, _decoded(arguments)
        if not isinstance(before, dict) or not isinstance(after, dict):
            return None
        changes = changes_between(before, after, schema)
        if changes is None:
            return None
        steps = () if changes else tuple(failure.steps)
        fix_id = _digest(failure.pattern_id, tool_id, *changes, "steps", *steps)
        fix = self._fixes.get(failure.pattern_id, {}).get(fix_id)
        if fix is None:
            if not mended:
                return None  # what never helped is no fix
            fix = Fix(fix_id=fix_id, pattern_id=failure.pattern_id, tool_id=tool_id, changes=changes, steps=steps)
        if mended:
            fix.worked += 1
            if principal not in fix.callers and len(fix.callers) < MAX_CALLERS:
                fix.callers = (*fix.callers, principal)
        else:
            fix.failed += 1
        fix.last_used = timestamp()
        self._put(fix)
        return fix

    def _went_on(self, failure: _Failure, tool_id: str, tried: Fix | None, mended: bool) -> None:
        """Count how a failure went on for the fix that was shown, or for what is done without any."""
        of_pattern = self._fixes.get(failure.pattern_id, {})
        if failure.shown is not None:
            told = of_pattern.get(failure.shown)
            if told is not None:
                told.shown += 1
                told.shown_mended += mended
                told.right += mended and tried is told
                self._put(told)
            return
        key = (failure.pattern_id, tool_id)
        baseline = self._baselines.setdefault(key, Baseline())
        self._baselines.move_to_end(key)
        if len(self._baselines) > MAX_FIXES:
            self._baselines.popitem(last=False)
        baseline.count += 1
        baseline.mended += mended
        for fix in of_pattern.values():
            if fix.tool_id == tool_id and fix.text is None:
                fix.baseline = baseline
                if _worth_writing(baseline.count):
                    self._put(fix)

    def _put(self, fix: Fix) -> None:
        if fix.fix_id not in self._fixes.get(fix.pattern_id, {}):
            if self._fix_count >= MAX_FIXES:
                self._drop_oldest_fixes()  # which may be all that the pattern had
            self._fix_count += 1
        self._fixes.setdefault(fix.pattern_id, {})[fix.fix_id] = fix
        row = {"fix_id": fix.fix_id, "pattern_id": fix.pattern_id, "tool_id": fix.tool_id,
               "content": encode(fix).decode()}  # fmt: skip
        self.writes.put(lambda: self._database.save_patterns([], [row]))

    def _drop_oldest_fixes(self) -> None:
        """Make room: a tenth of what was learned goes, what was used longest ago first; what was written stays."""
        learned = [fix for of_pattern in self._fixes.values() for fix in of_pattern.values() if fix.text is None]
        learned.sort(key=lambda fix: fix.last_used)
        self._remove(learned[: max(1, MAX_FIXES // 10)])

    def _remove(self, fixes: list[Fix]) -> None:
        for fix in fixes:
            of_pattern = self._fixes[fix.pattern_id]
            del of_pattern[fix.fix_id]
            if not of_pattern:
                del self._fixes[fix.pattern_id]
            self._fix_count -= 1
        gone = [fix.fix_id for fix in fixes]
        if gone:
            self.writes.put(lambda: self._database.save_patterns([], [], gone))

    def _forget_late(self) -> None:
        """Failures that nobody has mended in time."""
        bound = self._clock() - self.rules.window_seconds
        while self._open and next(iter(self._open.values())).at < bound:
            self._forget_open(next(iter(self._open)))

    def _forget_open(self, key: tuple[str, str], *, resolved: bool = False) -> None:
        """A failure is over; one that nobody took up again was not mended."""
        failure = self._open.pop(key, None)
        if failure is not None:
            if not resolved:
                self._went_on(failure, key[1], None, mended=False)
            tools = self._open_of[key[0]]
            tools.discard(key[1])
            if not tools:
                del self._open_of[key[0]]


def _worth_writing(count: int) -> bool:
    """Whether a count that grows with each failure is written this time."""
    return count < 20 or count % 20 == 0


def _decoded(arguments: Raw) -> Any:
    """Arguments without secrets, to be compared later."""
    if memoryview(arguments).nbytes > MAX_ARGUMENT_BYTES:
        return None
    try:
        return decode(redact_json(arguments)[0])
    except InvalidRequest:
        return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
