"""What a run of the runtime is told: which model, and its bounds."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = ["DEFAULT_KEY", "DEFAULT_URL", "Bounds", "ModelRules", "NoKey"]

REFERENCE = re.compile(r"\$\{(?:env:(\w+)|file:([^}]+))\}")
DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_KEY = "${env:OPENAI_API_KEY}"


class NoKey(ValueError):
    """A reference to a key stands for nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelRules:
    """A model behind an endpoint that speaks OpenAI's chat completions API.

    Attributes:
        url: of the endpoint: OpenAI's, or that of vLLM, Ollama, LM Studio, a gateway; Anthropic's compatible one too.
        name: of the model, as the endpoint calls it.
        key: a reference, `${env:OPENAI_API_KEY}` or `${file:/path}`. Where nobody names one and that variable is not
            set, none is shown; OpenAI's own endpoint wants it.
        temperature, seed: sent if they are given.
        max_answer_tokens: of one answer.
        context_tokens: that the model reads at most; older steps are summed up before.
        input_price, output_price: of a million tokens, in whatever currency `Bounds.money` has.
        timeout_seconds: without a byte of the answer.
        tries: of one request, where another may help; pauses grow between them.
    """

    name: str
    url: str = DEFAULT_URL
    key: str = DEFAULT_KEY
    temperature: float | None = None
    seed: int | None = None
    max_answer_tokens: int = 4096
    context_tokens: int = 60_000
    input_price: float = 0.0
    output_price: float = 0.0
    timeout_seconds: float = 120.0
    tries: int = 4

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/\s]", self.url):
            raise ValueError(f"an endpoint is at an address such as {DEFAULT_URL}, found {self.url!r}")

    def secret(self) -> str:
        """The key itself.

        Raises:
            NoKey: it is no reference, or stands for nothing.
        """
        found = REFERENCE.fullmatch(self.key)
        if found is None:
            raise NoKey("give the key as a reference: ${env:NAME} or ${file:/path}")
        name, path = found.groups()
        if name is not None:
            value = os.environ.get(name, "")
            if not value and (self.key != DEFAULT_KEY or self.url == DEFAULT_URL):
                raise NoKey(f"set {name}: the key for {self.url} stands there")
            return value or "none"
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(10_000).strip()
        except OSError as exc:
            raise NoKey(f"{path} cannot be read: {exc.strerror}") from exc

    def price(self, read: int, written: int) -> float:
        """What so many tokens cost."""
        return (read * self.input_price + written * self.output_price) / 1e6


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one run may take. The first that is met ends it, and is named in how it ended.

    Attributes:
        steps: pieces of code. tokens: read and written by the model. seconds: wall-clock. money: by the model's prices.
        code_seconds: of one piece of code.
        stub_tokens: of the tools that are shown.
        output_tokens: of what a model is shown of one step.
        install_seconds: how long a tool that is being installed is waited for.
        gateway_seconds: how long a gateway that went away is waited for.
    """

    steps: int = 12
    tokens: int = 200_000
    seconds: float = 600.0
    money: float = float("inf")
    code_seconds: float = 60.0
    stub_tokens: int = 3000
    output_tokens: int = 2000
    install_seconds: float = 90.0
    gateway_seconds: float = 60.0
