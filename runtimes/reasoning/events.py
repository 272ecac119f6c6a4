"""What happens during a run, as it happens. Each event is also a line of `--json` and of the trajectory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

__all__ = [
    "Answered",
    "CodeRun",
    "CodeWritten",
    "Ended",
    "Event",
    "Missing",
    "Output",
    "Planned",
    "Started",
    "Summed",
    "Thinking",
    "ToolsOffered",
    "Waiting",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened."""

    type: ClassVar[str] = ""

    def body(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"type": self.type, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A run begins, or goes on where an earlier one stopped (`resumed`: after so many steps). `key` is a reference."""

    type: ClassVar[str] = "started"
    run_id: str
    task: str
    model: str
    endpoint: str
    key: str
    resumed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """The gap analysis: for each step of the task a verdict (`sufficient`, `unsure`, `gap`) and the tools for it."""

    type: ClassVar[str] = "planned"
    verdict: str
    steps: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """Something is waited for: a tool that is being installed, a model that is busy, a gateway that is away."""

    type: ClassVar[str] = "waiting"
    what: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Missing(Event):
    """No tool does a step, and none could be had; `reason` says why, and who may change that."""

    type: ClassVar[str] = "missing"
    step: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ToolsOffered(Event):
    """The model is shown these tools from now on; `arrived`: they came during the run."""

    type: ClassVar[str] = "tools_offered"
    names: tuple[str, ...]
    arrived: bool = False


@dataclass(frozen=True, kw_only=True)
class Thinking(Event):
    """A part of the model's answer."""

    type: ClassVar[str] = "thinking"
    text: str


@dataclass(frozen=True, kw_only=True)
class CodeWritten(Event):
    """The model wrote code, which runs next; `changing`: the tools in it that may change something."""

    type: ClassVar[str] = "code_written"
    step: int
    code: str
    changing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Output(Event):
    """What the code prints (`stdout`), or does (`progress`: a tool is called)."""

    type: ClassVar[str] = "output"
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CodeRun(Event):
    """Code ran to its end. `text` is what the model is shown of it; `call_id` finds it in the gateway's journal."""

    type: ClassVar[str] = "code_run"
    step: int
    ok: bool
    text: str
    call_id: str | None
    calls: int
    duration_ms: float


@dataclass(frozen=True, kw_only=True)
class Summed(Event):
    """The context was too long: so many older steps were summed up."""

    type: ClassVar[str] = "summed"
    steps: int


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """The model's final answer; `possible` is false where it says that the task cannot be done."""

    type: ClassVar[str] = "answered"
    text: str
    possible: bool


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """The run is over.

    Attributes:
        reason: `answered`, `cannot`, `steps`, `tokens`, `seconds`, `money`, `model_form`, `model`, `gateway`,
            `refused`, `failed` or `stopped`.
        message: the reason in words.
    """

    type: ClassVar[str] = "ended"
    reason: str
    message: str
    steps: int
    calls: int
    tokens_read: int
    tokens_written: int
    money: float
    seconds: float
