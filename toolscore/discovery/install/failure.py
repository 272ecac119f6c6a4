"""How a step of an install fails, and the error that whoever asked for the install gets."""

from __future__ import annotations

from collections.abc import Sequence

from toolscore.core.errors import Conflict, InstallFailed, InvalidArguments, NotAllowedByPolicy, ToolScoreError
from toolscore.discovery.install.plan import Plan
from toolscore.upstreams.process.last_words import cause_of, hint_for

__all__ = ["OUTPUT_LINES", "StepFailed", "as_error"]

OUTPUT_LINES = 30
"""Enough of a command's output to see why it failed."""


class StepFailed(Exception):
    """A step failed.

    Args:
        command: that failed, if it was one.
        output: what the command printed; its last lines are kept.
    """

    def __init__(self, message: str, command: Sequence[str] = (), output: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.command = list(command)
        self.output = list(output)[-OUTPUT_LINES:]


def as_error(exc: Exception, step: str, plan: Plan) -> ToolScoreError:
    """Make the error that callers get of whatever ended an install."""
    if isinstance(exc, Conflict | NotAllowedByPolicy | InvalidArguments):
        return exc
    command, output = (exc.command, exc.output) if isinstance(exc, StepFailed) else ([], [])
    cause = cause_of(output)
    said = f"; it said: {cause}" if cause else ""
    return InstallFailed(
        f"{plan.name} could not be installed (step `{step}`): {str(exc) or type(exc).__name__}{said}. "
        "Nothing of it is left",
        suggestion=hint_for(cause),
        data={"step": step, "command": command, "output": output},
    )
