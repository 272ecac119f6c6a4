"""ToolGapDetector: which steps of a task our tools cover, and what is missing for the others.

The gap model decides by the evidence (`evidence.py`). A judge, if one is set, decides what the model is unsure of.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from toolscore.core.errors import InvalidArguments, UpstreamUnavailable
from toolscore.core.models import Sees, Tool
from toolscore.core.words import raw_words
from toolscore.discovery.gaps.evidence import (
    FILLERS,
    Background,
    Missing,
    Verdict,
    asked_for,
    evidence_for,
    keywords,
    load_model,
    says_something,
    verdict_of,
)
from toolscore.discovery.gaps.general import Covered, GeneralTools
from toolscore.discovery.gaps.judge import Judge, JudgeRules
from toolscore.discovery.gaps.reasons import needs_of, reason_for
from toolscore.discovery.search.index import Doc, ExactVectors, Index, vector_text, without_runs
from toolscore.discovery.search.search import Found, ToolSearch
from toolscore.embedding import Embedder, EmbeddingError
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.upstreams.http_client import HttpClient

__all__ = ["Analysis", "Step", "ToolGapDetector", "steps_of"]

MAX_TASK = 4000
MAX_STEPS = 6
MIN_STEP_WORDS = 3
COVERING = 3
"""Tools shown for each step."""
CEILING = 0.75
"""No verdict is said to be surer where there are tools: on sources that the model was not fitted on, its surest 70 %
were right in four of five, whatever it made of them."""
MAX_MISSING = 300
"""Characters of what a judge says is missing."""

VERBS = frozenset(
    """add analyze append archive ask assign book build buy calculate call cancel change chart check clear close compare
    compress compute convert copy count crawl create decode delete deploy describe disable download draft draw edit
    email enable encode enrich execute explain export extract fetch fill filter find fork format generate get give
    import insert inspect install invite list load log look make mark measure merge modify monitor move notify open
    order pay place play plan plot post predict print publish pull push put query read recommend record remind remove
    rename render replace reply report request reserve reset resize restart restore resume retrieve reverse run save
    scan schedule scrape search sell send set share show sort split start stop store submit subscribe suggest summarize
    tell test text track transcribe transfer translate turn update upgrade upload validate verify visit watch
    write""".split()
)
"""What tools do, by the first words of the names of ten thousand real ones, and of tasks."""
ASKING = frozenset("what when where which who whose why how is are was were does do did".split())

Action = Literal["call", "look", "request-capability"]
ACTION: dict[Verdict, Action] = {"sufficient": "call", "unsure": "look", "gap": "request-capability"}

_STEP = re.compile(
    r"(?<=[.?!;])\s+|\n+|;\s*|,?\s+(?:and\s+then|and\s+also|and\s+after\s+that|then)\s+|,\s+and\s+", re.IGNORECASE
)


class Step(msgspec.Struct, frozen=True):
    """A part of a task.

    Attributes:
        confidence: how likely the verdict is right, 0 to 1.
        tools: the tools that cover it, the best first; for a gap the nearest tools, of which none fits.
        missing: `None`: nothing is missing.
        judged_by: `model`, or the name of the LLM that judged it.
        reason: what the verdict rests on, in words.
        needs: arguments of the best tool that the step does not give, as far as that can be told; none for a gap.
    """

    text: str
    verdict: Verdict
    confidence: float
    tools: list[Found]
    missing: Missing | None
    judged_by: str
    reason: str
    needs: list[str]


class Analysis(msgspec.Struct, frozen=True):
    """How well our tools cover a task.

    Attributes:
        confidence: how likely the verdict is right, 0 to 1.
        judged_by: `model`, or the name of the LLM that judged it.
    """

    task: str
    verdict: Verdict
    confidence: float
    steps: list[Step]
    missing: list[Missing]
    recommended_action: Action
    judged_by: str


class _Seen(NamedTuple):
    """A text, what the gap model says of it, the nearest tool, and the general tool that does it where that one does
    not; neither where there are no tools.
    """

    text: str
    verdict: Verdict
    confidence: float
    nearest: Tool | None
    covered: Covered | None


class ToolGapDetector:
    """Says for each step of a task whether a tool covers it.

    Args:
        words: the light embedder, for single words.
        http: for the judge.
        on_gap: is told `(principal, analysis)` of each gap.
        rules: of the judge.
    """

    def __init__(
        self, library: UnifiedToolLibrary, search: ToolSearch, embedder: Embedder, words: Embedder,
        http: HttpClient, *, on_gap: Callable[[str, Analysis], None] = lambda principal, analysis: None,
        rules: JudgeRules | None = None,
    ) -> None:  # fmt: skip
        self._library = library
        self._search = search
        self._embedder = embedder
        self._words = words
        self._judge = Judge(http, rules)
        self._on_gap = on_gap
        self._model = load_model(embedder.model)
        self._background: Background | None = None
        self._general: GeneralTools | None = None

    def use(self, rules: JudgeRules) -> None:
        """Put other rules of the judge in force."""
        self._judge.use(rules)

    async def analyze(
        self, task: str, *, context: str = "", principal: str, sees: Sees | None = None, announce: bool = True
    ) -> Analysis:
        """Say how well our tools cover a task.

        Args:
            task: 1 to 4000 characters.
            context: what else matters, for the judge; the gap model reads the task only.
            sees: which tools exist for the caller; `None`: all.
            announce: whether `on_gap` is told of a gap.

        Raises:
            InvalidArguments: no task. UpstreamUnavailable: texts cannot be embedded now.
        """
        if not task.strip() or len(task) > MAX_TASK:
            raise InvalidArguments(f"`task_description` must be a task in words, of 1 to {MAX_TASK} characters")
        index = await self._search.index(whole=True)
        if len(index) and index.vectors is None:
            raise UpstreamUnavailable("tasks cannot be analysed: texts cannot be embedded now (see the log)")
        try:
            raw = await asyncio.to_thread(self._evidence, task, index, sees)
        except EmbeddingError as exc:
            raise UpstreamUnavailable(f"tasks cannot be analysed: {exc}") from exc
        steps = [
            await self._with_judge(await self._step(one, principal=principal, sees=sees), context) for one in raw[1:]
        ]
        whole = await self._step(raw[0], principal=principal, sees=sees)
        if not steps:
            whole = await self._with_judge(whole, context)
            steps = [whole]
        verdict, confidence, judged_by = _of_all(whole, steps)
        missing = [step.missing for step in steps if step.missing is not None]
        if verdict == "gap" and not missing and whole.missing is not None:
            missing = [whole.missing]
        analysis = Analysis(
            task=task,
            verdict=verdict,
            confidence=_said(confidence, whole.tools),
            steps=[msgspec.structs.replace(step, confidence=_said(step.confidence, step.tools)) for step in steps],
            missing=missing,
            recommended_action=ACTION[verdict],
            judged_by=judged_by,
        )  # fmt: skip
        if verdict == "gap" and announce:
            self._on_gap(principal, analysis)
        return analysis

    def _evidence(self, task: str, index: Index, sees: Sees | None) -> list[_Seen]:
        """Of the whole task, and then of each step if there are several."""
        import numpy

        background = self._known_background()
        tools = [self._library.find(doc.key, sees) for doc in index.docs]
        places = numpy.array([number for number, tool in enumerate(tools) if tool is not None], numpy.int64)
        parts = steps_of(task)
        found: list[_Seen] = []
        here = [tool for tool in tools if tool is not None]
        general = self._general = self._general or GeneralTools(self._embedder, background, self._model)
        for text in (task, *(parts if len(parts) > 1 else [])):
            if not len(places):
                found.append(_Seen(text, "gap", 1.0, None, None))
                continue
            asked = asked_for(text, self._embedder)
            seen = evidence_for(text, index, background, self._embedder, places, asked)
            verdict, confidence = verdict_of(self._model, seen.features)
            covered = general.covering(text, here, asked) if verdict != "sufficient" else None
            found.append(_Seen(text, verdict, confidence, tools[seen.best[0]], covered))
        return found

    async def _step(self, seen: _Seen, *, principal: str, sees: Sees | None) -> Step:
        text, verdict, confidence, nearest, covered = seen
        tools: list[Found] = []
        if not says_something(text):
            verdict, confidence, covered = "unsure", 0.5, None
        elif nearest is not None:
            tools = await self._search.search(text, principal=principal, sees=sees, limit=COVERING, remember=False)
        if covered is not None:
            reason = f"{covered.tool.tool_id} can do it ({covered.ability})"
            first = self._search.scored(covered.tool, round(covered.confidence, 4))
            tools = [first, *(one for one in tools if one.tool is not covered.tool)][:COVERING]
            return Step(text, "sufficient", round(covered.confidence, 3), tools, None, "model", reason, [])
        return Step(
            text, verdict, round(confidence, 3), tools, self._missing(text, verdict), "model",
            reason_for(text, verdict, nearest, self._known_background()),
            needs_of(text, nearest) if nearest is not None and verdict != "gap" else [],
        )  # fmt: skip

    async def fits(self, task: str, docs: list[Doc]) -> list[float]:
        """Estimate whether servers that are not ours yet can do a task, by their descriptions.

        Args:
            docs: one for each server.

        Returns:
            A probability for each.
        """
        return await asyncio.to_thread(self._fits, task, docs) if docs else []

    def _fits(self, task: str, docs: list[Doc]) -> list[float]:
        import numpy

        background = self._known_background()
        index = Index(docs, ExactVectors(self._embedder.embed([vector_text(doc) for doc in docs])))
        return [
            self._model.probability(
                evidence_for(task, index, background, self._embedder, numpy.array([place])).features
            )
            for place in range(len(docs))
        ]

    def _known_background(self) -> Background:
        if self._background is None:
            self._background = Background(self._embedder, self._words)
        return self._background

    def _missing(self, text: str, verdict: Verdict, capability: str = "") -> Missing | None:
        if verdict == "sufficient":
            return None
        assert self._background is not None
        return Missing(capability or f"a tool to: {text.strip().rstrip('.')}", keywords(text, self._background))

    async def _with_judge(self, step: Step, context: str) -> Step:
        """Replace an unsure verdict by the judge's, if it gives one."""
        ruling = await self._judge.ruling(step.text, context, step.tools) if step.verdict == "unsure" else None
        if ruling is None:
            return step
        verdict: Verdict = "sufficient" if ruling.sufficient else "gap"
        return msgspec.structs.replace(
            step,
            verdict=verdict,
            missing=self._missing(step.text, verdict, ruling.missing[:MAX_MISSING]),
            judged_by=self._judge.name,
            reason=f"{self._judge.name} says so",
            needs=step.needs if verdict == "sufficient" else [],
        )


def _said(confidence: float, tools: list[Found]) -> float:
    """How sure a verdict is said to be; only that there is no tool at all is certain."""
    return 1.0 if confidence == 1.0 and not tools else round(min(confidence, CEILING), 3)


def _of_all(whole: Step, steps: list[Step]) -> tuple[Verdict, float, str]:
    """Verdict, confidence and judge of a task.

    Args:
        whole: the task as one step.
        steps: its steps; one: the task itself.
    """
    if len(steps) == 1:
        return whole.verdict, whole.confidence, whole.judged_by
    gaps = [step for step in steps if step.verdict == "gap"]
    judges = [step.judged_by for step in steps if step.judged_by != "model"]
    if len(judges) == len(steps) or (judges and whole.verdict == "unsure"):
        unsure = any(step.verdict == "unsure" for step in steps)
        verdict: Verdict = "gap" if gaps else "unsure" if unsure else "sufficient"
        return verdict, min(step.confidence for step in gaps or steps), judges[0]
    if whole.verdict == "sufficient" and gaps:  # nobody is told that a task can be done of which a part cannot
        return "unsure", whole.confidence, whole.judged_by
    return whole.verdict, whole.confidence, whole.judged_by


def steps_of(task: str) -> list[str]:
    """Split a task into the steps that it names one after another.

    Returns:
        2 to 6 steps; else the task itself, as one.
    """
    rough = [part.strip(" ,;") for part in _STEP.split(without_runs(task))]
    parts = [part for whole in rough for part in _at_and(whole)]
    parts = [part for part in parts if len(part.split()) >= MIN_STEP_WORDS]
    return parts if 1 < len(parts) <= MAX_STEPS else [task]


def _at_and(part: str) -> list[str]:
    """Split at each "and" that stands between two orders: `find a flight and book it`, not `copy and paste rules`."""
    found = [part]
    while True:
        halves = re.split(r"\s+and\s+", found[-1], maxsplit=1, flags=re.IGNORECASE)
        if len(halves) < 2 or not (_orders(halves[0]) or _asks(halves[0])) or not _orders(halves[1]):
            return found
        before = raw_words(halves[0])
        if len(before) < MIN_STEP_WORDS or before[-1] in VERBS:  # "the pull and push requests" are two nouns
            return found
        found[-1:] = halves


def _orders(text: str) -> bool:
    """Whether a text begins with what somebody is to do."""
    return next((word for word in raw_words(text) if word not in FILLERS or word in VERBS), "") in VERBS


def _asks(text: str) -> bool:
    return bool(ASKING.intersection(raw_words(text)[:1]))
