"""What code in the sandbox calls tools with: `tools`, and `ToolError`. Standard library only.

    now = tools.time.get_current_time(timezone="Asia/Tokyo")
    rows = tools.parallel(*(tools.db.query.later(sql=q) for q in queries))

A call is a frame on the child's channel (`wire.CALL`); the server's side of it is `tool_calls.py`. Nothing here is
relied on: it runs in the same process as the code. Who may call what, and how often, is decided by who answers.
"""

import ast
import json
import os
import select
import threading
from collections.abc import Callable, Generator, Iterator
from signal import ITIMER_REAL, setitimer
from types import ModuleType
from typing import Any

from mcp_servers.python_executor.sandbox.wire import CALL, CALL_HEAD, CHANNEL, MAX_CALL_BYTES, REPLY, REPLY_HEAD

__all__ = ["AWAITED", "Channel", "Help", "ToolError", "Tools", "awaited", "let_await", "lift_asyncio"]

LENGTH_BYTES = 4
KIND_AT = 4
READ_BYTES = 1 << 18
LEAST_SECONDS = 0.001
"""Of a clock: 0 would stop it."""
AWAITED = "__toolscore_awaited"
"""The name under which code finds what makes a value awaitable."""


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
        told = json.loads(frame[REPLY_HEAD.size :])
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


def value_of(told: "dict[str, Any]") -> "Any":
    """A tool's result as a Python value: its structured content; else its text, parsed if that is JSON."""
    result = told.get("result") or {}
    structured = result.get("structuredContent")
    if structured is not None:
        return structured["result"] if told.get("unwrap") and "result" in structured else structured
    values = [_of_block(block, True) for block in result.get("content") or []]
    return values[0] if len(values) == 1 else values or None


def text_of(told: "dict[str, Any]") -> str:
    """A tool's result as the text that it sent."""
    blocks = (told.get("result") or {}).get("content") or []
    return "\n".join(block.get("text", "") for block in blocks if block.get("type") == "text")


def _of_block(block: "dict[str, Any]", parse: bool) -> "Any":
    if block.get("type") != "text":
        return block
    text = block.get("text", "")
    try:
        return json.loads(text) if parse else text
    except ValueError:
        return text


class Tool:
    """One tool. Call it with its arguments by name; `help(tool)` tells them."""

    __slots__ = ("_channel", "_path")

    def __init__(self, channel: Channel, path: "tuple[str, ...]") -> None:
        self._channel, self._path = channel, path

    def __call__(self, /, *args: "Any", **kwargs: "Any") -> "Any":
        return value_of(self._channel.ask(self._request(args, kwargs), self._name()))

    def later(self, /, *args: "Any", **kwargs: "Any") -> "Later":
        """The call, to be made by `tools.parallel`, or awaited."""
        return Later(self._channel, self._request(args, kwargs), self._name())

    def text(self, /, *args: "Any", **kwargs: "Any") -> str:
        """Call it, and return the text of its result as it came."""
        return text_of(self._channel.ask(self._request(args, kwargs), self._name()))

    def raw(self, /, *args: "Any", **kwargs: "Any") -> "Any":
        """Call it, and return MCP's `CallToolResult`."""
        return self._channel.ask(self._request(args, kwargs), self._name()).get("result")

    def _request(self, args: "tuple[Any, ...]", kwargs: "dict[str, Any]") -> "dict[str, Any]":
        return {"do": "call", "tool": self._path, "args": args, "kwargs": kwargs}

    def _name(self) -> str:
        return ".".join(self._path)

    def __repr__(self) -> str:
        return f"<tool {self._name()}: help(tools.{self._name()}) shows its arguments>"


class Later:
    """A call that is to be made: for `tools.parallel`, or to be awaited."""

    def __init__(self, channel: Channel, request: "dict[str, Any]", what: str) -> None:
        self._channel, self.request, self.what = channel, request, what

    def result(self) -> "Any":
        """Make the call now."""
        return value_of(self._channel.ask(self.request, self.what))

    def __await__(self) -> "Generator[Any, None, Any]":
        import asyncio

        return asyncio.to_thread(self.result).__await__()

    def __repr__(self) -> str:
        return f"<a call of {self.what} that was not made yet: await it, or give it to tools.parallel>"


class Server:
    """The tools of one server."""

    __slots__ = ("_channel", "_name")

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel, self._name = channel, name

    def __getattr__(self, name: str) -> Tool:
        if name.startswith("__"):
            raise AttributeError(name)
        return Tool(self._channel, (self._name, name))

    def __dir__(self) -> "Iterator[str]":
        return iter(self._channel.ask({"do": "list", "server": self._name}, self._name)["names"])

    def __call__(self, /, *args: "Any", **kwargs: "Any") -> "Any":
        return Tool(self._channel, (self._name,))(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tools of {self._name}: {', '.join(self.__dir__())}>"


class Tools:
    """All tools that this run may call: `tools.SERVER.TOOL(argument=…)`.

    `tools.search("what for")` finds some, `help(tools.SERVER.TOOL)` explains one, and
    `tools.parallel(tools.a.b.later(…), …)` makes several calls at once. A call that fails raises `ToolError`.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Server:
        if name.startswith("__"):
            raise AttributeError(name)
        return Server(self._channel, name)

    def __getitem__(self, name: str) -> Tool:
        return Tool(self._channel, (name,))

    def __dir__(self) -> "Iterator[str]":
        return iter([*self._channel.ask({"do": "list"}, "tools")["names"], "parallel", "search"])

    def __repr__(self) -> str:
        return f"<tools: {', '.join(self.__dir__())}>"

    def search(self, query: str, limit: int = 5) -> "Any":
        """Find tools for a task: a list of dicts with `name` (as code calls it), `description` and `signature`."""
        return self._channel.ask({"do": "search", "query": query, "limit": limit}, "search")["tools"]

    def parallel(self, *calls: "Any", return_exceptions: bool = False) -> "list[Any]":
        """Make calls at the same time, and return their values in order.

        Args:
            calls: what `tool.later(…)` gave; or one list of them.
            return_exceptions: put a `ToolError` in the place of a value; else the first is raised once all have ended.
        """
        if len(calls) == 1 and not isinstance(calls[0], Later):
            calls = tuple(calls[0])
        channel, slots = self._channel, self._channel.slots()
        values: list[Any] = [None] * len(calls)
        running: list[tuple[int, int]] = []

        def finish(position: int, number: int) -> None:
            try:
                values[position] = value_of(channel.answer(number, calls[position].what))
            except ToolError as exc:
                values[position] = exc
            finally:
                slots.release()

        for position, call in enumerate(calls):
            if not isinstance(call, Later):  # a value already
                values[position] = call
                continue
            while not slots.acquire(blocking=not running):
                finish(*running.pop(0))
            try:
                running.append((position, channel.send(call.request, call.what)))
            except ToolError as exc:
                slots.release()
                values[position] = exc
        for one in running:
            finish(*one)
        if not return_exceptions:
            for value in values:
                if isinstance(value, ToolError):
                    raise value
        return values

    def explain(self, tool: "Any") -> "str | None":
        """The signature and the description of a tool, or the names of a server's; `None` for anything else."""
        if isinstance(tool, Tool):
            return str(self._channel.ask({"do": "describe", "tool": tool._path}, tool._name())["text"])
        if isinstance(tool, Server):
            return str(self._channel.ask({"do": "describe", "server": tool._name}, tool._name)["text"])
        if tool is self:
            return f"{Tools.__doc__}\n{self!r}"
        return None


class Help:
    """`help`, which knows tools too."""

    def __init__(self, tools: Tools, python: "Any") -> None:
        self._tools, self._python = tools, python

    def __call__(self, *things: "Any") -> None:
        text = self._tools.explain(things[0]) if things else Tools.__doc__
        if text is None:
            self._python(*things)
        else:
            print(text)

    def __repr__(self) -> str:
        return "Type help(tools.SERVER.TOOL) for a tool, help(object) for anything else."


class _Awaits(ast.NodeTransformer):
    def visit_Await(self, node: "ast.Await") -> "ast.AST":
        self.generic_visit(node)
        name = ast.copy_location(ast.Name(AWAITED, ast.Load()), node.value)
        node.value = ast.copy_location(ast.Call(name, [node.value], []), node.value)
        return node


async def _itself(value: "Any") -> "Any":
    return value


def awaited(value: "Any") -> "Any":
    """What may be awaited as it is; anything else as an awaitable that has it as its value."""
    return value if hasattr(value, "__await__") else _itself(value)


def let_await(tree: "ast.AST") -> None:
    """Let code await what is no awaitable, as the value of a call that was made already."""
    ast.fix_missing_locations(_Awaits().visit(tree))


def lift_asyncio(asyncio: "ModuleType") -> None:
    """Let `gather`, `wait_for`, `create_task` and `TaskGroup` take such values, too."""
    tasks = asyncio.tasks
    if getattr(tasks, "lifted", False):
        return
    tasks.lifted = True

    def lifted(value: "Any") -> "Any":
        if asyncio.isfuture(value) or asyncio.iscoroutine(value):
            return value
        return _wait_for(value) if hasattr(value, "__await__") else _itself(value)

    def lifting(inner: "Any", first: int, last: "int | None") -> "Any":
        def call(*args: "Any", **kwargs: "Any") -> "Any":
            values = list(args)
            values[first:last] = map(lifted, values[first:last])
            return inner(*values, **kwargs)

        return call

    for name, last in (("gather", None), ("wait_for", 1), ("shield", 1), ("ensure_future", 1), ("create_task", 1)):
        setattr(asyncio, name, lifting(getattr(tasks, name), 0, last))
    group = getattr(asyncio, "TaskGroup", None)
    if group is not None:
        group.create_task = lifting(group.create_task, 1, 2)


async def _wait_for(value: "Any") -> "Any":
    return await value
