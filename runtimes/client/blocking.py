"""The REST API as plain Python, for programs without an event loop: the twin of `ToolScoreClient`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from runtimes.client.rest import ToolScoreClient
from runtimes.client.results import CodeResult, ToolResult

__all__ = ["BlockingToolScoreClient"]

P = ParamSpec("P")
T = TypeVar("T")


class BlockingToolScoreClient:
    """Calls tools of a gateway. Use as `with BlockingToolScoreClient() as client`; threads may share one.

    Its methods take, give and raise what those of `ToolScoreClient` do.

    Args:
        options: those of `ToolScoreClient`.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._client = ToolScoreClient(url, **options)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> BlockingToolScoreClient:
        self._portal = self._stack.enter_context(start_blocking_portal())
        opened: AbstractContextManager[ToolScoreClient] = self._portal.wrap_async_context_manager(self._client)
        self._stack.enter_context(opened)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        self._portal = None

    def _run(self, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._portal is None:
            raise RuntimeError("open the client first: with BlockingToolScoreClient() as client")
        return self._portal.call(lambda: method(*args, **kwargs))

    def execute(self, tool_id: str, parameters: dict[str, Any] | None = None, **options: Any) -> ToolResult:
        """Run a tool."""
        return self._run(self._client.execute, tool_id, parameters, **options)

    def tools(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """All tools."""

        async def all_of_them() -> list[dict[str, Any]]:
            return [tool async for tool in self._client.tools(**filters)]

        yield from self._run(all_of_them)

    def tool(self, tool_id: str) -> dict[str, Any]:
        """One tool, with its schema."""
        return self._run(self._client.tool, tool_id)

    def search(self, query: str, *, limit: int = 10) -> list[dict[str, Any]]:
        """The tools for a task, best first."""
        return self._run(self._client.search, query, limit=limit)

    def analyze_gap(self, task: str, *, context: str = "") -> dict[str, Any]:
        """Whether the tools here can do a task."""
        return self._run(self._client.analyze_gap, task, context=context)

    def request_capability(self, task: str, *, context: str = "") -> dict[str, Any]:
        """Get what is missing for a task."""
        return self._run(self._client.request_capability, task, context=context)

    def catalog(self, query: str, *, limit: int = 10) -> list[dict[str, Any]]:
        """Servers in the catalogs that fit a query."""
        return self._run(self._client.catalog, query, limit=limit)

    def install(self, name: str, **options: Any) -> dict[str, Any]:
        """Install a server of a catalog."""
        return self._run(self._client.install, name, **options)

    def installed(self) -> list[dict[str, Any]]:
        """The servers that were installed from a catalog."""
        return self._run(self._client.installed)

    def uninstall(self, name: str) -> None:
        """Remove a server that was installed."""
        self._run(self._client.uninstall, name)

    def calls(self, *, limit: int = 100, **filters: str) -> list[dict[str, Any]]:
        """Past calls, the newest first."""
        return self._run(self._client.calls, limit=limit, **filters)

    def call(self, call_id: str) -> dict[str, Any]:
        """One past call."""
        return self._run(self._client.call, call_id)

    def describe_tools(self, **options: Any) -> tuple[str, list[str]]:
        """Tools as a Python stub file, and the names that did not fit."""
        return self._run(self._client.describe_tools, **options)

    def run_code(self, code: str, **options: Any) -> CodeResult:
        """Run Python that calls tools."""
        return self._run(self._client.run_code, code, **options)

    def servers(self) -> list[dict[str, Any]]:
        """The servers behind the gateway."""
        return self._run(self._client.servers)

    def attach(self, server_id: str, **spec: Any) -> dict[str, Any]:
        """Add a server."""
        return self._run(self._client.attach, server_id, **spec)

    def detach(self, server_id: str) -> None:
        """Remove a server that was attached."""
        self._run(self._client.detach, server_id)

    def health(self) -> dict[str, Any]:
        """`status` and a check for each part."""
        return self._run(self._client.health)

    def stats(self) -> dict[str, Any]:
        """Figures."""
        return self._run(self._client.stats)
