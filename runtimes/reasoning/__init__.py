"""A runtime that does a task in words: an LLM writes code that calls a gateway's tools, and looks at what came."""

from runtimes.reasoning.enhanced_runtime import EnhancedReasoningRuntime, Outcome
from runtimes.reasoning.events import (
    Answered,
    CodeRun,
    CodeWritten,
    Ended,
    Event,
    Missing,
    Output,
    Planned,
    Started,
    Summed,
    Thinking,
    ToolsOffered,
    Waiting,
)
from runtimes.reasoning.models import ChatModel, ModelError
from runtimes.reasoning.rules import Bounds, ModelRules

__all__ = [
    "Answered",
    "Bounds",
    "ChatModel",
    "CodeRun",
    "CodeWritten",
    "Ended",
    "EnhancedReasoningRuntime",
    "Event",
    "Missing",
    "ModelError",
    "ModelRules",
    "Outcome",
    "Output",
    "Planned",
    "Started",
    "Summed",
    "Thinking",
    "ToolsOffered",
    "Waiting",
]
