"""What code in the sandbox calls tools with: `tools`, and `ToolError`. Standard library only.

    now = tools.time.get_current_time(timezone="Asia/Tokyo")
    rows = tools.parallel(*(tools.db.query.later(sql=q) for q in queries))

A call is a frame on the child's channel (`wire.CALL`); the server's side of it is `tool_calls.py`. Nothing here is
relied on: it runs in the same process as the code. Who may call what, and how often, is decided by who answers.
"""

import ast
import json
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import Any

from mcp_servers.python_executor.sandbox.channel import Channel, ToolError

__all__ = ["AWAITED", "Help", "Tools", "awaited", "let_await", "lift_asyncio"]

AWAITED = "__toolscore_awaited__"
"""The name under which code finds what makes a value awaitable."""


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
        value = json.loads(text, parse_constant=_no_json) if parse else text
        if isinstance(value, (int, float)) and not isinstance(value, bool) and json.dumps(value) != text.strip():
            return text  # a number that Python would write otherwise, such as 1.10, is more than a number
    except (ValueError, RecursionError):
        return text
    return value


def _no_json(name: str) -> "Any":
    raise ValueError(f"{name} is no JSON")


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
        return self._wait().__await__()

    async def _wait(self) -> "Any":
        import asyncio
        import threading

        channel, numbers = self._channel, []
        sending, given_up = threading.Lock(), threading.Event()

        def call() -> "Any":
            with channel.slots():
                with sending:
                    if given_up.is_set():  # while it waited for a place: it is not to be made any more
                        return None
                    numbers.append(channel.send(self.request, self.what))
                return value_of(channel.answer(numbers[0], self.what))

        try:
            return await asyncio.to_thread(call)
        except asyncio.CancelledError:
            with sending:
                given_up.set()
            for number in numbers:
                channel.cancel(number)
            raise

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

        try:
            return self._parallel(calls, values, running, finish, return_exceptions)
        except BaseException:
            for _, number in running:
                channel.cancel(number)
            raise

    def _parallel(
        self, calls: "Any", values: "list[Any]", running: "list[tuple[int, int]]", finish: "Any", keep_errors: bool
    ) -> "list[Any]":
        channel, slots = self._channel, self._channel.slots()

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
        while running:
            finish(*running.pop(0))
        if not keep_errors:
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
