"""A chat model over OpenAI's API, by its own client: streaming, with what goes wrong told apart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtimes.reasoning.rules import ModelRules

__all__ = ["ChatModel", "Completion", "ModelError", "estimate"]

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
MAX_ANSWER_CHARS = 400_000
OPTIONAL = ("stream_options", "seed")
"""What may be left out: it changes what we know, and not what was asked for."""
RIGHT = "is the address right? It usually ends in /v1"
CHARACTERS_PER_TOKEN = 3.6
TOO_LONG = (
    "context_length",
    "context length",
    "maximum context",
    "too many tokens",
    "prompt is too long",
    "context window",
)


class ModelError(Exception):
    """The model gave no answer.

    Attributes:
        kind: `unreachable`, `refused` (the key or the model is wrong), `rate_limited`, `failed` (its own fault),
            `too_long` (the context), `nonsense`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        finish: `stop`, `length` (it was cut off), `tool_calls`, …
        read, written: tokens, as the endpoint counts them; an estimate where it does not.
    """

    text: str
    finish: str
    read: int
    written: int


def estimate(messages: list[dict[str, str]]) -> int:
    """About how many tokens messages have."""
    return round(sum(len(message["content"]) + 16 for message in messages) / CHARACTERS_PER_TOKEN)


class ChatModel:
    """Use as `async with ChatModel(rules) as model`.

    Args:
        on_wait: is told before a pause: why, and its seconds.

    Raises:
        NoKey: the key's reference stands for nothing.
        ImportError: the package `openai` is not installed.
    """

    def __init__(self, rules: ModelRules, on_wait: Callable[[str, float], None] = lambda what, seconds: None) -> None:
        try:
            import openai
        except ImportError as exc:
            raise ImportError("the runtime needs openai's client: pip install 'toolscore[reasoning]'") from exc
        self._openai = openai
        self.rules = rules
        self.on_wait = on_wait
        given = {"temperature": rules.temperature, "seed": rules.seed, "max_tokens": rules.max_answer_tokens}
        self._options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._options["stream_options"] = {"include_usage": True}
        self._client = openai.AsyncOpenAI(
            api_key=rules.secret(), base_url=rules.url, timeout=rules.timeout_seconds, max_retries=0
        )

    async def __aenter__(self) -> ChatModel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def complete(self, messages: list[dict[str, str]], on_text: Callable[[str], None]) -> Completion:
        """Ask for an answer. Where another try may help there is one, after a pause that grows or that was asked for.

        Args:
            on_text: is told each part as it comes; what a try that failed had told is void.

        Raises:
            ModelError
        """
        pause = FIRST_PAUSE
        for attempt in range(1, self.rules.tries + 1):
            try:
                return await self._once(messages, on_text)
            except self._openai.APIError as exc:
                error, wait = self._read(exc)
            except ModelError as exc:
                error, wait = exc, None
            if error.kind in ("refused", "too_long") or attempt == self.rules.tries:
                raise error
            seconds = min(LONGEST_PAUSE, wait if wait is not None else pause * random.uniform(0.7, 1.3))
            self.on_wait(f"the model ({error})", seconds)
            await asyncio.sleep(seconds)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    async def _once(self, messages: list[dict[str, str]], on_text: Callable[[str], None]) -> Completion:
        rules = self.rules
        stream = await self._opened(messages)
        kind = stream.response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            await stream.close()
            raise ModelError("refused", f"{rules.url} answers {kind or 'something'} and no chat: {RIGHT}")
        parts: list[str] = []
        size, finish, usage = 0, "", None
        try:
            async for chunk in stream:
                usage = getattr(chunk, "usage", None) or usage
                for choice in chunk.choices or ():
                    finish = choice.finish_reason or finish
                    text = choice.delta.content if choice.delta is not None else None
                    if isinstance(text, str) and text and size < MAX_ANSWER_CHARS:
                        size += len(text)
                        parts.append(text)
                        on_text(text)
                if size >= MAX_ANSWER_CHARS:
                    finish = "length"
                    break
        except (ValueError, TypeError, AttributeError, KeyError) as exc:  # lines that are no chunks
            raise ModelError("nonsense", f"the endpoint's answer cannot be read: {exc}") from exc
        finally:
            await stream.close()
        if not parts and not finish:
            raise ModelError("nonsense", "the endpoint sent an empty answer")
        text = "".join(parts)
        read = usage.prompt_tokens if usage is not None else estimate(messages)
        written = usage.completion_tokens if usage is not None else round(len(text) / CHARACTERS_PER_TOKEN)
        return Completion(text, finish or "length", read, written)

    async def _opened(self, messages: list[dict[str, str]]) -> Any:
        """Open the stream of an answer. An option that the endpoint does not know is left out from then on."""
        while True:
            try:
                create: Any = self._client.chat.completions.create
                return await create(model=self.rules.name, messages=messages, stream=True, **self._options)
            except self._openai.BadRequestError as exc:
                said = str(exc)
                unknown = next((name for name in OPTIONAL if name in said and name in self._options), None)
                if "max_completion_tokens" in said and "max_tokens" in self._options:  # models that reason first
                    self._options["max_completion_tokens"] = self._options.pop("max_tokens")
                elif unknown is not None:
                    del self._options[unknown]
                else:
                    raise

    def _read(self, exc: Exception) -> tuple[ModelError, float | None]:
        """What an error of the client means, and how long the endpoint asks to wait."""
        openai = self._openai
        if isinstance(exc, openai.APITimeoutError):
            return ModelError("failed", f"no answer within {self.rules.timeout_seconds:g} s"), None
        if isinstance(exc, openai.APIConnectionError):
            return ModelError("unreachable", f"{self.rules.url} cannot be reached: {exc.__cause__!r}"), None
        status = getattr(exc, "status_code", None)
        said = str(getattr(exc, "message", exc))[:500]
        if any(words in said.lower() for words in TOO_LONG):
            return ModelError("too_long", said), None
        if status == 429:
            wait = str(exc.response.headers.get("retry-after", "")) if isinstance(exc, openai.APIStatusError) else ""
            return ModelError("rate_limited", said), _seconds(wait)
        if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409):
            helps = f" ({RIGHT})" if status in (404, 405) else ""
            return ModelError("refused", f"{self.rules.url} refuses (HTTP {status}): {said}{helps}"), None
        return ModelError("failed", f"HTTP {status}: {said}" if status else said), None


def _seconds(text: str) -> float | None:
    """The seconds of a `Retry-After`; `None` where it is a date, or nonsense."""
    try:
        return min(max(0.0, float(text)), LONGEST_PAUSE)
    except ValueError:
        return None
