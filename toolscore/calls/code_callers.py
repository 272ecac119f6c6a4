"""Who stands behind a run of code: the clients of its calls, of the request that runs it, and of a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from toolscore.core.errors import ToolNotFound
from toolscore.core.jsonrpc import decode
from toolscore.core.models import Principal, Tool
from toolscore.upstreams import Caller

if TYPE_CHECKING:
    from toolscore.calls.code_run import CodeRun

__all__ = ["InnerCaller", "Recorded", "ReplayCaller", "RunCaller"]


class InnerCaller(Caller):
    """The client of a call that code makes: the one that the run is for, in whose name everything happens.

    It is asked as the client of the run is, in whichever era; while it is, all clocks of the run stand still.
    """

    live = True

    def __init__(self, run: CodeRun) -> None:
        outer = run.outer
        super().__init__(outer.principal, client=outer.client, capabilities=outer.capabilities, headers=outer.headers)
        self._run = run
        self.log_level = outer.log_level
        self.wants_progress = outer.wants_progress

    @property
    def home(self) -> Caller:
        return self._run.outer.home

    @property
    def suspended(self) -> bool:  # type: ignore[override]
        return self._run.outer.suspended

    def notify(self, method: str, params: Raw | None) -> None:
        if method == "notifications/progress":
            self._run.progressed(params)
        elif method != "notifications/cancelled":
            self._run.outer.notify(method, params)

    async def ask(self, method: str, params: Raw | None) -> Any:
        with self._run.asking():
            return await self._run.outer.ask(method, params)


class RunCaller(Caller):
    """The client of the request that has the code run."""

    def __init__(self, run: CodeRun) -> None:
        super().__init__(run.outer.principal, client=run.outer.client, headers=run.outer.headers)
        self.code = self._run = run
        self.wants_progress = run.outer.wants_progress

    def notify(self, method: str, params: Raw | None) -> None:
        self._run.outer.notify(method, params)


class Recorded:
    """Results that a run had before, for a replay of it: each is given once, in the order of the calls.

    Args:
        calls: as the journal gives them, with their bodies, the oldest first.
    """

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        self._left = list(calls)

    def take(self, tool: Tool, arguments: Raw) -> dict[str, Any]:
        """What the call of this tool with these arguments had.

        Raises:
            ToolNotFound: there was none, or its result was not kept.
        """
        given = decode(arguments)
        for position, one in enumerate(self._left):
            if one["tool_id"] == tool.tool_id and one["arguments"] == given:
                return self._left.pop(position)
        raise ToolNotFound(f"the run that is replayed did not call {tool.tool_id} with these arguments")


class ReplayCaller(Caller):
    """Who makes a run again.

    Args:
        recorded: results to give instead of calling tools; `None`: they are called.
    """

    def __init__(self, principal: Principal, recorded: Recorded | None) -> None:
        super().__init__(principal)
        self.recorded = recorded
