"""A judge of gaps: an LLM that is asked about the steps that the gap model is unsure of, within bounds."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec
import structlog
from pydantic import Field

from toolscore.core.rules import HttpUrl, Places, Rules, Seconds
from toolscore.discovery.bounded_json import request_json
from toolscore.discovery.search.search import Found
from toolscore.upstreams.http_client import HttpClient
from toolscore.upstreams.process.spawn import CommandNotFound
from toolscore.upstreams.references import resolved_text

__all__ = ["Judge", "JudgeRules", "Ruling"]

log = structlog.get_logger(__name__)

HOUR_SECONDS = 3600.0
RULINGS_KEPT = 1000
MAX_ANSWER_TOKENS = 120
"""The answer is a small JSON object; a model may say a few words around it."""
MAX_ANSWER_BYTES = 256 * 1024
SHOWN_TOOLS = 8
SHOWN_DESCRIPTION = 300
SHOWN_CONTEXT = 1000

QUESTION = """\
Can at least one of these tools do the task as described? \
Answer with JSON only: {{"sufficient": true or false, "missing": "what is missing, in a few words"}}.

Task: {task}
Context: {context}
Tools:
{tools}"""


class JudgeRules(Rules):
    """An LLM that may judge what the gap model is unsure of."""

    url: HttpUrl | None = Field(
        None, description="of an endpoint that speaks OpenAI's API, without /chat/completions; null: no LLM is asked"
    )
    model: str = Field("", description="its name there")
    key: str | None = Field(None, description="by reference: ${env:OPENAI_API_KEY} or ${file:/path}")
    timeout_seconds: Seconds = Field(5.0, description="of an answer; without one the gap model decides")
    per_hour: Places = Field(60, description="questions at most")


class Ruling(msgspec.Struct, frozen=True):
    """A judge's answer.

    Attributes:
        sufficient: whether a tool can do the task.
        missing: what is missing, in a few words.
    """

    sufficient: bool
    missing: str = ""


class Judge:
    """Asks the LLM. The same question is asked once.

    Args:
        http: for the endpoint.
    """

    def __init__(self, http: HttpClient, rules: JudgeRules | None = None) -> None:
        self._http = http
        self._rules = rules or JudgeRules()
        self._rulings: OrderedDict[str, Ruling] = OrderedDict()
        self._asked: deque[float] = deque()
        """When the questions of the last hour were asked."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._rules.model or "llm"

    def use(self, rules: JudgeRules) -> None:
        """Put other rules in force; rulings of another model are forgotten."""
        if (rules.url, rules.model) != (self._rules.url, self._rules.model):
            self._rulings.clear()
        self._rules = rules

    async def ruling(self, task: str, context: str, tools: Sequence[Found]) -> Ruling | None:
        """Judge whether tools can do a task. Never raises.

        Args:
            context: what matters beside the task.
            tools: the best first; the first 8 are shown to the judge.

        Returns:
            `None`: there is no judge, it gave no ruling, or the questions of this hour are used up.
        """
        if self._rules.url is None:
            return None
        shown = [f"- {one.tool.tool_id}: {one.tool.description[:SHOWN_DESCRIPTION]}" for one in tools[:SHOWN_TOOLS]]
        question = QUESTION.format(task=task, context=context[:SHOWN_CONTEXT] or "none", tools="\n".join(shown))
        ruling = self._rulings.get(question)
        if ruling is None:
            ruling = await self._ask(self._rules.url, question)
            if ruling is not None:
                self._rulings[question] = ruling
                if len(self._rulings) > RULINGS_KEPT:
                    self._rulings.popitem(last=False)
        return ruling

    async def _ask(self, url: str, question: str) -> Ruling | None:
        now = time.monotonic()
        while self._asked and now - self._asked[0] > HOUR_SECONDS:
            self._asked.popleft()
        if len(self._asked) >= self._rules.per_hour:
            return None
        self._asked.append(now)
        key = _resolved(self._rules.key)
        try:
            answer = await request_json(
                self._http,
                f"{url.rstrip('/')}/chat/completions",
                post={
                    "model": self._rules.model,
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": MAX_ANSWER_TOKENS,
                    "temperature": 0,
                },
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout_seconds=self._rules.timeout_seconds,
                max_bytes=MAX_ANSWER_BYTES,
            )
            text = answer["choices"][0]["message"]["content"]
            return msgspec.json.decode(text[text.index("{") : text.rindex("}") + 1], type=Ruling)
        except (OSError, TimeoutError, ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            log.warning("the judge of gaps did not answer", url=url, error=f"{type(exc).__name__}: {exc}")
            return None


def _resolved(reference: str | None) -> str | None:
    """The key that a reference stands for; `None`, and a line in the log, where there is none."""
    try:
        return resolved_text(reference) if reference is not None else None
    except CommandNotFound as exc:
        log.error("the key of the judge of gaps cannot be read", error=str(exc))
        return None
