"""What the gateway answers: results of tools and of code, and its refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["CodeResult", "ToolFailed", "ToolResult", "ToolScoreClientError"]


class ToolScoreClientError(Exception):
    """The gateway refused, or could not be reached.

    Attributes:
        code: the gateway's error code (`tool_not_found`, `outcome_unknown`, …), or `unreachable`.
        status: HTTP status, 0 where there was no answer.
        retryable: whether the same call may be made again.
        retry_after_seconds: how long to wait before, where the gateway said so.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int = 0,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        suggestion: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" + (f" ({suggestion})" if suggestion else ""))
        self.code = code
        self.message = message
        self.status = status
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.suggestion = suggestion


@dataclass(frozen=True)
class ToolResult:
    """What a tool answered.

    Attributes:
        content: MCP content blocks.
        is_error: the tool ran and failed.
        suggestion: what helped others whose call failed like this.
        age_seconds: of a result that was kept by the gateway; `None`: the tool has just made it.
    """

    call_id: str
    tool_id: str
    content: list[dict[str, Any]]
    structured_content: Any
    is_error: bool
    duration_ms: float
    suggestion: str | None = None
    age_seconds: float | None = None

    def raise_for_tool_error(self) -> ToolResult:
        """This result, if the tool did its work.

        Raises:
            ToolFailed: it ran and failed.
        """
        if self.is_error:
            raise ToolFailed(self)
        return self

    @property
    def text(self) -> str:
        """The text blocks, a line break between them."""
        return "\n".join(str(block.get("text", "")) for block in self.content if block.get("type") == "text")


@dataclass(frozen=True)
class CodeResult:
    """What came of code that calls tools.

    Attributes:
        call_id: of the run; `call` shows it with the calls that it made.
        result: `repr` of the last expression's value, or `None`.
        error: `type`, `message` and `traceback`; `None`: it went well.
        exit: `ok`, `error`, `timeout`, `memory`, `killed` or `output_limit`; `refused`: it did not run, and `text` says
            why.
        files: `path`, `size`, and where it came along `content` and `encoding` (`utf-8`, `base64`).
        calls, failed: that it made.
        text: all of that as a reader wants to see it.
    """

    call_id: str
    text: str
    stdout: str = ""
    stderr: str = ""
    result: str | None = None
    error: dict[str, str] | None = None
    exit: str = "ok"
    files: tuple[dict[str, Any], ...] = ()
    images: tuple[dict[str, Any], ...] = ()
    calls: int = 0
    failed: int = 0
    duration_ms: float = 0.0

    @property
    def is_error(self) -> bool:
        """Whether it did not run to its end."""
        return self.exit != "ok"


class ToolFailed(Exception):
    """A tool ran and reported an error.

    Attributes:
        result: what it said.
    """

    def __init__(self, result: ToolResult) -> None:
        super().__init__(f"{result.tool_id}: {result.text or 'it reported an error'}")
        self.result = result
