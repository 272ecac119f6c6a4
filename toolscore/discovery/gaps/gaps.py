"""ToolGapDetector: which steps of a task our tools cover, and what is missing for the rest."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Literal

import aiohttp
import msgspec
import structlog

from toolscore.core.errors import InvalidArguments, UpstreamUnavailable
from toolscore.core.models import Tool
from toolscore.discovery.gaps.evidence import (
    Background,
    Missing,
    Verdict,
    evidence,
    judge,
    keywords,
    load_model,
    says_something,
)
from toolscore.discovery.search.index import Doc, ExactVectors, Index, vector_text
from toolscore.discovery.search.search import Found, ToolSearch
from toolscore.embedding import Embedder, EmbeddingError
from toolscore.tools.library import Sees, UnifiedToolLibrary

__all__ = ["Analysis", "JudgeRules", "Step", "ToolGapDetector"]

log = structlog.get_logger(__name__)

MAX_TASK = 4000
MAX_STEPS = 6
MIN_STEP_WORDS = 3
COVERING = 3
SURE_STEP = 0.9
"""A step that is missing this surely makes the whole task unsure at best."""
KEPT_ANSWERS = 1000
MAX_ANSWER_TOKENS = 120
MAX_ANSWER_BYTES = 256 * 1024
SHOWN_TO_JUDGE = 8

Action = Literal["call", "look", "request-capability"]
ACTION: dict[Verdict, Action] = {"sufficient": "call", "unsure": "look", "gap": "request-capability"}

_STEP = re.compile(
    r"(?<=[.?!;])\s+|\n+|;\s*|,?\s+(?:and\s+then|and\s+also|and\s+after\s+that|then)\s+|,\s+and\s+", re.IGNORECASE
)


class Step(msgspec.Struct, frozen=True):
    """A part of a task.

    Attributes:
        confidence: how likely the verdict is right, 0 to 1.
        tools: that cover it, the best first; for a gap the nearest ones, none of which fits.
        judged_by: `model`, or the LLM that was asked.
    """

    text: str
    verdict: Verdict
    confidence: float
    tools: list[Found]
    missing: Missing | None
    judged_by: str


class Analysis(msgspec.Struct, frozen=True):
    """What our tools are to a task."""

    task: str
    verdict: Verdict
    confidence: float
    steps: list[Step]
    missing: list[Missing]
    recommended_action: Action
    judged_by: str


class JudgeRules(msgspec.Struct, frozen=True):
    """The OpenAI-compatible endpoint that may judge what the model is unsure of, and what that may cost.

    Attributes:
        url: up to and without `/chat/completions`; `None`: nobody is asked.
        timeout_seconds: of one answer; after it the model's word stands.
        per_hour: so many questions at most; the same one is asked once.
    """

    url: str | None = None
    name: str = ""
    key: str | None = None
    timeout_seconds: float = 5.0
    per_hour: int = 60


class _Ruling(msgspec.Struct):
    sufficient: bool
    missing: str = ""


class ToolGapDetector:
    """Says for each step of a task whether a tool covers it.

    Args:
        words: the light embedder, for single words.
        http: for the judge.
    """

    def __init__(
        self, library: UnifiedToolLibrary, search: ToolSearch, embedder: Embedder, words: Embedder,
        http: aiohttp.ClientSession, *, on_gap: Callable[[str, Analysis], None] = lambda principal, analysis: None,
    ) -> None:  # fmt: skip
        self._library = library
        self._search = search
        self._embedder = embedder
        self._words = words
        self._http = http
        self._on_gap = on_gap
        self._model = load_model(embedder.model)
        self._background: Background | None = None
        self._rulings: OrderedDict[str, _Ruling] = OrderedDict()
        self._asked: deque[float] = deque()
        self.rules = JudgeRules()

    async def analyze(
        self, task: str, *, context: str = "", principal: str, sees: Sees | None = None, announce: bool = True
    ) -> Analysis:
        """What our tools are to a task.

        Args:
            context: what a judge should know beside the task; the model reads the task alone.
            sees: which tools exist for the caller; `None`: all.
            announce: tell of a gap.

        Raises:
            InvalidArguments: no task. UpstreamUnavailable: no embeddings.
        """
        if not task.strip() or len(task) > MAX_TASK:
            raise InvalidArguments(f"`task_description` must be a task in words, of 1 to {MAX_TASK} characters")
        index = await self._search.index()
        if len(index) and index.vectors is None:
            raise UpstreamUnavailable("tasks cannot be analysed: texts cannot be embedded now (see the log)")
        try:
            raw = await asyncio.to_thread(self._evidence, task, index, sees)
        except EmbeddingError as exc:
            raise UpstreamUnavailable(f"tasks cannot be analysed: {exc}") from exc
        steps = [
            await self._with_judge(await self._step(*one, principal=principal, sees=sees), context) for one in raw[1:]
        ]
        whole = await self._step(*raw[0], principal=principal, sees=sees)
        if not steps:
            whole = await self._with_judge(whole, context)
            steps = [whole]
        verdict, confidence, judged_by = whole.verdict, whole.confidence, whole.judged_by
        if len(steps) > 1:
            gaps = [step for step in steps if step.verdict == "gap"]
            asked = [step.judged_by for step in steps if step.judged_by != "model"]
            if len(asked) == len(steps) or (asked and verdict == "unsure"):
                judged_by = asked[0]
                verdict = "gap" if gaps else "unsure" if any(s.verdict == "unsure" for s in steps) else "sufficient"
                confidence = min(step.confidence for step in gaps or steps)
            elif verdict == "sufficient" and any(step.confidence >= SURE_STEP for step in gaps):
                verdict = "unsure"
        missing = [step.missing for step in steps if step.missing is not None]
        if verdict == "gap" and not missing and whole.missing is not None:
            missing = [whole.missing]
        analysis = Analysis(
            task=task,
            verdict=verdict,
            confidence=round(confidence, 3),
            steps=steps,
            missing=missing,
            recommended_action=ACTION[verdict],
            judged_by=judged_by,
        )  # fmt: skip
        if verdict == "gap" and announce:
            self._on_gap(principal, analysis)
        return analysis

    def _evidence(self, task: str, index: Index, sees: Sees | None) -> list[tuple[str, list[float] | None, list[Tool]]]:
        """For the whole task and then for each step, if there are several: features and the nearest tools."""
        import numpy

        background = self._known_background()
        tools = [self._library.find(doc.key, sees) for doc in index.docs]
        places = numpy.array([number for number, tool in enumerate(tools) if tool is not None], numpy.int64)
        required = [len(tool.input_schema.get("required") or ()) if tool is not None else 0 for tool in tools]
        parts = steps_of(task)
        found: list[tuple[str, list[float] | None, list[Tool]]] = []
        for text in (task, *(parts if len(parts) > 1 else [])):
            if not len(places):
                found.append((text, None, []))
                continue
            seen = evidence(text, index, background, self._embedder, required, places)
            nearest = [tool for number in seen.best[:COVERING] if (tool := tools[number]) is not None]
            found.append((text, seen.features, nearest))
        return found

    async def _step(
        self, text: str, features: list[float] | None, nearest: list[Tool], *, principal: str, sees: Sees | None
    ) -> Step:
        verdict: Verdict = "gap"
        confidence = 1.0  # without a single tool it is certain
        tools: list[Found] = []
        if not says_something(text):
            verdict, confidence = "unsure", 0.5
        elif features is not None:
            verdict, confidence = judge(self._model, features)
            tools = await self._search.search(text, principal=principal, sees=sees, limit=COVERING, remember=False)
        return Step(text, verdict, round(confidence, 3), tools, self._missing(text, verdict), "model")

    async def fits(self, task: str, docs: list[Doc]) -> list[float]:
        """How likely each of these would do for a task, by what is said of it: for servers that are not ours yet."""
        return await asyncio.to_thread(self._fits, task, docs) if docs else []

    def _fits(self, task: str, docs: list[Doc]) -> list[float]:
        import numpy

        background = self._known_background()
        index = Index(docs, ExactVectors(self._embedder.embed([vector_text(doc) for doc in docs])))
        none = [0] * len(docs)
        return [
            self._model.probability(
                evidence(task, index, background, self._embedder, none, numpy.array([place])).features
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

    # An LLM, where one is configured

    async def _with_judge(self, step: Step, context: str) -> Step:
        """A step that the model is unsure of, as the judge sees it; as it was where nobody judges."""
        if step.verdict != "unsure" or self.rules.url is None:
            return step
        shown = [f"- {one.tool.tool_id}: {one.tool.description[:300]}" for one in step.tools[:SHOWN_TO_JUDGE]]
        question = (
            "Can at least one of these tools do the task as described? "
            'Answer with JSON only: {"sufficient": true or false, "missing": "what is missing, in a few words"}.'
            f"\n\nTask: {step.text}\nContext: {context[:1000] or 'none'}\nTools:\n" + "\n".join(shown)
        )
        ruling = self._rulings.get(question)
        if ruling is None:
            ruling = await self._ask(question)
            if ruling is None:
                return step
            self._rulings[question] = ruling
            if len(self._rulings) > KEPT_ANSWERS:
                self._rulings.popitem(last=False)
        verdict: Verdict = "sufficient" if ruling.sufficient else "gap"
        return msgspec.structs.replace(
            step,
            verdict=verdict,
            missing=self._missing(step.text, verdict, ruling.missing[:300]),
            judged_by=self.rules.name or "llm",
        )

    async def _ask(self, question: str) -> _Ruling | None:
        """The judge's word, `None` where it gave none within its bounds."""
        rules, now = self.rules, time.monotonic()
        while self._asked and now - self._asked[0] > 3600:
            self._asked.popleft()
        if len(self._asked) >= rules.per_hour:
            return None
        self._asked.append(now)
        assert rules.url is not None
        try:
            async with (
                asyncio.timeout(rules.timeout_seconds),
                self._http.post(
                    f"{rules.url.rstrip('/')}/chat/completions",
                    json={
                        "model": rules.name,
                        "messages": [{"role": "user", "content": question}],
                        "max_tokens": MAX_ANSWER_TOKENS,
                        "temperature": 0,
                    },
                    headers={"authorization": f"Bearer {rules.key}"} if rules.key else {},
                    allow_redirects=False,
                ) as response,
            ):
                response.raise_for_status()
                answer = json.loads(await response.content.read(MAX_ANSWER_BYTES))
            text = answer["choices"][0]["message"]["content"]
            return msgspec.json.decode(text[text.index("{") : text.rindex("}") + 1], type=_Ruling)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, IndexError, TypeError) as exc:
            log.warning("the judge of gaps did not answer", url=rules.url, error=f"{type(exc).__name__}: {exc}")
            return None


def steps_of(task: str) -> list[str]:
    """The steps that a task names one after another; the task itself where it is one."""
    parts = [part.strip(" ,;") for part in _STEP.split(task)]
    parts = [part for part in parts if len(part.split()) >= MIN_STEP_WORDS]
    return parts if 1 < len(parts) <= MAX_STEPS else [task]
