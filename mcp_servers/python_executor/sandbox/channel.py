"""The channel of a child as code in it calls tools: a call is a frame, an answer another. Standard library only.

Nothing here is relied on: it runs in the same process as the code.
"""

import json
import os
import select
import threading
from collections.abc import Callable
from signal import ITIMER_REAL, setitimer
from typing import Any

from mcp_servers.python_executor.sandbox.wire import CALL, CALL_HEAD, CANCEL, CHANNEL, MAX_CALL_BYTES, REPLY, REPLY_HEAD

__all__ = ["Channel", "ToolError"]

LENGTH_BYTES = 4
KIND_AT = 4
READ_BYTES = 1 << 18
LEAST_SECONDS = 0.001
"""Of a clock: 0 would stop it."""


class ToolError(Exception):
    """A call of a tool that failed: the tool ran and said so (`code` is `tool_error`), or it was not called at all.

    Attributes:
        code: `tool_error`, `invalid_arguments`, `forbidden`, `upstream_timeout`, …
        message: what went wrong.
        suggestion: what helps, if that is known.
        retryable: whether the same call may succeed later.
        tool: which one was called.
    """

    def __init__(
        self, message: str, code: str = "tool_error", suggestion: "str | None" = None, retryable: bool = False,
        tool: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.message, self.code, self.suggestion, self.retryable, self.tool = (
            message, code, suggestion, retryable, tool,
        )  # fmt: skip

    def __str__(self) -> str:
        text = f"{self.message} ({self.suggestion})" if self.suggestion else self.message
        return f"{self.tool}: {text}" if self.code == "tool_error" else f"[{self.code}] {text}"


ToolError.__module__ = "__main__"  # where code finds it


def plain(value: object) -> object:
    """What JSON has no form for, in the form that tools expect."""
    for name in ("isoformat", "tolist", "item"):  # dates; arrays and numbers of numpy
        method = getattr(value, name, None)
        if callable(method):
            return method()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "__fspath__"):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} cannot be an argument: convert it to text, numbers, lists or dicts")


class Channel:
    """The calls of one run on the child's socket. Any thread may call; one of those that wait reads for all.

    Attributes:
        waiting: calls under way.
        rest: bytes that were read and belong to what comes next.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.rest = b""
        self._run = 0
        self._number = 0
        self._open = False
        self._at_once = 1
        self._slots: threading.BoundedSemaphore | None = None
        self._turn = threading.Condition(threading.Lock())
        self._writing = threading.Lock()
        self._reading = False
        self._replies: dict[int, bytes] = {}
        self._wake: tuple[int, int] | None = None

    def open(self, at_once: int) -> None:
        """A run begins, which may have so many calls under way."""
        self._run += 1
        self._at_once, self._slots = at_once, None
        self._replies.clear()
        self._open = True

    def close(self) -> None:
        """The run has ended: who still waits is told so, and nobody reads any more."""
        with self._writing:  # what is sent from now on would come after the answer
            self._open = False
        self.waiting = 0
        if self._number == 0:  # it called nothing
            return
        with self._turn:
            self._turn.notify_all()
            while self._reading and self._wake is not None:
                os.write(self._wake[1], b"x")
                self._turn.wait(0.05)

    def ask(self, request: "dict[str, Any]", what: str) -> "Any":
        """Ask, and wait for the answer.

        Raises:
            ToolError
        """
        with self.slots():
            return self.answer(self.send(request, what), what)

    def slots(self) -> "threading.BoundedSemaphore":
        if self._slots is None:
            self._slots = threading.BoundedSemaphore(self._at_once)
        return self._slots

    def send(self, request: "dict[str, Any]", what: str) -> int:
        """Ask, and return the number of the call."""
        try:
            body = json.dumps(request, allow_nan=False, default=plain).encode("utf-8", "backslashreplace")
        except (TypeError, ValueError, RecursionError) as exc:
            raise ToolError(str(exc), "invalid_arguments", tool=what) from None
        if len(body) > MAX_CALL_BYTES:
            raise ToolError(
                f"its arguments have {len(body):,} bytes, and at most {MAX_CALL_BYTES:,} are allowed",
                "payload_too_large", tool=what,
            )  # fmt: skip
        with self._writing:
            if not self._open:
                raise ToolError("the run has ended", "cancelled", tool=what)
            self._number = number = self._number % 0xFFFFFFFF + 1
            self.waiting += 1
            view = memoryview(CALL_HEAD.pack(CALL_HEAD.size - LENGTH_BYTES + len(body), CALL, number) + body)
            while view:
                view = view[os.write(CHANNEL, view[:READ_BYTES]) :]
        return number

    def cancel(self, number: int) -> None:
        """Say that nobody waits for a call any more; its answer then comes at once."""
        with self._writing:
            if self._open:
                os.write(CHANNEL, CALL_HEAD.pack(CALL_HEAD.size - LENGTH_BYTES, CANCEL, number))

    def answer(self, number: int, what: str) -> "Any":
        """Wait for the answer to a call."""
        run = self._run
        turn, replies = self._turn, self._replies
        with turn:
            while number not in replies:
                if not self._open or run != self._run:
                    raise ToolError("the run has ended", "cancelled", tool=what)
                if self._reading:
                    turn.wait()
                    continue
                self._reading = True
                turn.release()
                try:
                    frame = self._read()
                finally:
                    turn.acquire()
                    self._reading = False
                    turn.notify_all()
                if frame is not None:
                    _, _, came, seconds = REPLY_HEAD.unpack_from(frame)
                    setitimer(ITIMER_REAL, max(LEAST_SECONDS, seconds))
                    replies[came] = frame
            frame = replies.pop(number)
            self.waiting -= 1
        try:
            told = json.loads(frame[REPLY_HEAD.size :])
        except RecursionError:
            raise ToolError("its result is nested too deeply for Python's JSON", "upstream_protocol_error") from None
        error = told.get("error")
        if error is not None:
            raise ToolError(
                error.get("message", "it failed"), error.get("code", "tool_error"), error.get("suggestion"),
                bool(error.get("retryable")), what,
            )  # fmt: skip
        return told

    def _read(self) -> "bytes | None":
        """The next reply; `None` where the run has ended meanwhile."""
        if self._wake is None:
            self._wake = os.pipe()
        poll = select.poll()
        poll.register(CHANNEL, select.POLLIN)
        poll.register(self._wake[0], select.POLLIN)
        parts, got = [self.rest], len(self.rest)
        while True:
            if got >= LENGTH_BYTES:
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                length = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
                if got >= length:
                    self.rest = data[length:]
                    return data[:length]
                if len(parts) > 64:
                    parts = [data]
            ready = dict(poll.poll())
            if self._wake[0] in ready:
                os.read(self._wake[0], 64)
            if not self._open:
                self.rest = b"".join(parts)
                return None
            if CHANNEL in ready:
                data = os.read(CHANNEL, READ_BYTES)
                if not data:
                    os._exit(0)  # nobody is there any more
                parts.append(data)
                got += len(data)

    def after_replies(self, read: Callable[[], bytes]) -> bytes:
        """The beginning of what comes after the replies that nobody waits for any more.

        Args:
            read: returns more bytes.
        """
        data = self.rest
        while len(data) <= KIND_AT or data[KIND_AT] == REPLY:
            length = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
            if len(data) > KIND_AT and len(data) >= length:
                data = data[length:]
            else:
                data += read()
        return data
