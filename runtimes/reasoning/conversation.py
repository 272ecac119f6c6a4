"""What was said in a run so far, what it took, and who hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from runtimes.reasoning.events import Ended, Event, Summed
from runtimes.reasoning.models import Completion, estimate
from runtimes.reasoning.prompt import clipped
from runtimes.reasoning.rules import ModelRules
from runtimes.reasoning.trajectory import Trajectory, Writer

__all__ = ["Conversation"]

KEPT_STEPS = 2
"""Steps that are never summed up."""
MAX_TOLD = 2000
"""Characters of what else came of a step that is summed up."""


class Conversation:
    """The messages of a run, its events, and its figures. What happens is written before it is told.

    Args:
        past: a run to go on with.
        writer: keeps the run; `None`: nobody does.
        tell: hears of each event.
    """

    def __init__(
        self, past: Trajectory | None, model: ModelRules, writer: Writer | None, tell: Callable[[Event], None]
    ) -> None:
        past = past or Trajectory()
        self.messages = list(past.messages)
        self.steps = max((int(step["step"]) for step in past.steps), default=0)
        self.calls = sum(step["calls"] for step in past.steps)
        self.read, self.written, self.money = past.read, past.written, past.money
        self._model = model
        self._began = time.monotonic() - past.seconds
        self._writer = writer
        self._told = tell

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def tell(self, event: Event, *, keep: bool = True) -> None:
        """Tell of an event, and write it down unless it is a part of something that will be."""
        if keep:
            self.keep(**event.body())
        self._told(event)

    def keep(self, **line: Any) -> None:
        """Write a line that is no event."""
        if self._writer is not None:
            self._writer.write(line)

    def begin(self, messages: list[dict[str, str]]) -> None:
        """What the model is told from now on, in the place of all before."""
        self.messages = messages
        self.keep(type="messages", messages=messages)

    def say(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})
        self.keep(type="message", role=role, content=content)

    def count(self, completion: Completion) -> None:
        """Add what an answer took."""
        self.read += completion.read
        self.written += completion.written
        cost = self._model.price(completion.read, completion.written)
        self.money += cost
        self.keep(
            type="usage", read=completion.read, written=completion.written, money=cost, seconds=round(self.seconds, 3)
        )

    def end(self, reason: str, message: str) -> None:
        """The run is over."""
        self.tell(
            Ended(
                reason=reason, message=message, steps=self.steps, calls=self.calls, tokens_read=self.read,
                tokens_written=self.written, money=round(self.money, 6), seconds=round(self.seconds, 3),
            )
        )  # fmt: skip
        if self._writer is not None:
            self._writer.close()

    def fit(self) -> None:
        """Sum older steps up while what the model would read is over its bound."""
        most = self._model.context_tokens - self._model.max_answer_tokens
        while estimate(self.messages) > most and self.sum_up():
            pass

    def sum_up(self) -> bool:
        """Put one line in the place of each older step. Returns whether there was anything to sum up."""
        answers = [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]
        if len(answers) <= KEPT_STEPS or answers[0] < 2:
            return False
        lines = []
        for begins, ends in pairwise(answers[: -KEPT_STEPS + 1]):
            said, *came = (message["content"] for message in self.messages[begins:ends])
            outcome, *more = came or [""]
            first = next((line for line in outcome.splitlines() if line.strip()), "")
            lines.append(f"- {clipped(said, 20)!r}: {first[:200]}")
            lines += (text[:MAX_TOLD] for text in more)  # tools that had just come
        system, task, *told = self.messages[: answers[0]]
        summary = "Earlier steps, summed up (variables are still there):\n" + "\n".join(lines)
        task = {"role": "user", "content": f"{task['content']}\n\n{summary}"}
        self.begin([system, task, *told, *self.messages[answers[-KEPT_STEPS] :]])
        self.tell(Summed(steps=len(answers) - KEPT_STEPS))
        return True
