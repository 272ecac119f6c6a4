"""Every error that a caller can meet, and what each is on the wire.

::

    ToolScoreError
    ├── InvalidRequest            400  malformed: not JSON, not the message that was expected
    ├── InvalidArguments          422  well-formed, but the arguments do not fit the tool's schema
    ├── Unauthenticated           401
    ├── Forbidden                 403
    ├── ToolNotFound              404  with the nearest names
    ├── ServerNotFound            404
    ├── MethodNotFound            404  a JSON-RPC method we do not have
    ├── Conflict                  409  a server id that is taken
    ├── PayloadTooLarge           413
    ├── RateLimited               429
    ├── InternalError             500  our own fault
    ├── UpstreamProtocolError     502  the upstream answered nonsense
    ├── InstallFailed             502  a server could not be installed; nothing of it is left
    ├── NotAllowedByPolicy        403  it may not be installed
    ├── Overloaded                503  a bounded queue is full
    ├── UpstreamUnavailable       503  the call certainly did not happen
    │   └── CircuitOpen           503  nor was it tried: the upstream keeps failing
    ├── UpstreamTimeout           504  no answer in time, and the tool may be called again
    └── OutcomeUnknown            504  the call may have happened; do not repeat it blindly

    SettingsError                      a settings file or variable is wrong: for whoever starts the gateway

A tool that ran and failed is a result (``is_error``), never one of these.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "CircuitOpen",
    "Conflict",
    "Forbidden",
    "InstallFailed",
    "InternalError",
    "InvalidArguments",
    "InvalidRequest",
    "MethodNotFound",
    "NotAllowedByPolicy",
    "OutcomeUnknown",
    "Overloaded",
    "PayloadTooLarge",
    "RateLimited",
    "ServerNotFound",
    "SettingsError",
    "ToolNotFound",
    "ToolScoreError",
    "Unauthenticated",
    "UpstreamProtocolError",
    "UpstreamTimeout",
    "UpstreamUnavailable",
]


class ToolScoreError(Exception):
    """A call failed. The message says what happened, to what, and what to do next.

    Args:
        message: one or two sentences for the caller.
        retry_after_seconds: how long to wait before another try, where that is known.
        suggestion: a way out, such as the names that the caller may have meant.
        data: facts for programs (JSON-serialisable), sent as `error.data` over JSON-RPC.
        upstream_error: the JSON-RPC error object that an upstream answered; MCP doors pass it on unchanged.
        transient: the trouble may be over in a moment, and making the same call again does no harm.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    rpc_code: ClassVar[int] = -32603
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        suggestion: str | None = None,
        data: dict[str, Any] | None = None,
        upstream_error: dict[str, Any] | None = None,
        transient: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.suggestion = suggestion
        self.data = data
        self.upstream_error = upstream_error
        self.transient = transient

    @property
    def text(self) -> str:
        """The message, and the way out where there is one; for those who read one line."""
        return f"{self.message}; {self.suggestion}" if self.suggestion else self.message

    def body(self) -> dict[str, Any]:
        """The `error` object of the REST envelope; `details` only where there are some."""
        body = self._members()
        return {**body, "details": self.data} if self.data else body

    def _members(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "retry_after_seconds": self.retry_after_seconds,
            "suggestion": self.suggestion,
        }

    def rpc_error(self) -> dict[str, Any]:
        """The `error` object of a JSON-RPC answer."""
        if self.upstream_error is not None:
            return self.upstream_error
        return {"code": self.rpc_code, "message": self.message, "data": {**self._members(), **(self.data or {})}}


class InvalidRequest(ToolScoreError):
    """Not JSON, or not the message that was expected."""

    code = "invalid_request"
    status = 400
    rpc_code = -32600


class InvalidArguments(ToolScoreError):
    """The arguments do not fit the tool's schema."""

    code = "invalid_arguments"
    status = 422
    rpc_code = -32602


class Unauthenticated(ToolScoreError):
    """No key, or a bad one."""

    code = "unauthenticated"
    status = 401
    rpc_code = -32005


class Forbidden(ToolScoreError):
    """The principal may not do this."""

    code = "forbidden"
    status = 403
    rpc_code = -32006


class ToolNotFound(ToolScoreError):
    """No tool of that name."""

    code = "tool_not_found"
    status = 404
    rpc_code = -32602


class ServerNotFound(ToolScoreError):
    """No server of that id."""

    code = "server_not_found"
    status = 404
    rpc_code = -32602


class MethodNotFound(ToolScoreError):
    """A JSON-RPC method or a path that this door does not have."""

    code = "invalid_request"
    status = 404
    rpc_code = -32601


class Conflict(ToolScoreError):
    """The server id is taken."""

    code = "conflict"
    status = 409
    rpc_code = -32602


class PayloadTooLarge(ToolScoreError):
    """A body or a frame is over its bound."""

    code = "payload_too_large"
    status = 413
    rpc_code = -32600


class RateLimited(ToolScoreError):
    """The caller has used its budget."""

    code = "rate_limited"
    status = 429
    rpc_code = -32007
    retryable = True


class InternalError(ToolScoreError):
    """Our own fault; the log has the traceback under the request id."""


class UpstreamProtocolError(ToolScoreError):
    """The upstream answered something that is not MCP, or too much of it."""

    code = "upstream_protocol_error"
    status = 502
    rpc_code = -32012


class InstallFailed(ToolScoreError):
    """`data`: the `step`, its `command` and the last lines of its `output`."""

    code = "install_failed"
    status = 502
    rpc_code = -32013


class NotAllowedByPolicy(ToolScoreError):
    """`data`: the `plan`, as somebody with the scope `admin` may approve it."""

    code = "not_allowed_by_policy"
    status = 403
    rpc_code = -32013


class Overloaded(ToolScoreError):
    """A bounded queue is full."""

    code = "overloaded"
    status = 503
    rpc_code = -32008
    retryable = True


class UpstreamUnavailable(ToolScoreError):
    """The upstream could not be reached: the call certainly did not happen."""

    code = "upstream_unavailable"
    status = 503
    rpc_code = -32010
    retryable = True


class CircuitOpen(UpstreamUnavailable):
    """The upstream kept failing and is left alone for a while: the call did not happen."""

    code = "circuit_open"


class UpstreamTimeout(ToolScoreError):
    """No answer in time from a tool that may safely be called again."""

    code = "upstream_timeout"
    status = 504
    rpc_code = -32011
    retryable = True


class OutcomeUnknown(ToolScoreError):
    """The call was sent and no answer came: it may have happened, so it must not be repeated blindly."""

    code = "outcome_unknown"
    status = 504
    rpc_code = -32011


class SettingsError(Exception):
    """A setting is wrong.

    Args:
        problems: one line each: the file, the line, what is wrong, what was expected.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
