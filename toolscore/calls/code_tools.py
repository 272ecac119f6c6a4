"""The tools as the code of somebody sees them: which there are, what they are called, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

from toolscore.access.permissions import Permissions
from toolscore.calls.deadline import Deadline
from toolscore.core.errors import ToolNotFound, UpstreamUnavailable
from toolscore.core.memo import Memo
from toolscore.core.models import Sees, Tool
from toolscore.core.names import nearest
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.tools.stubs import NameSpace, identifier, stubs
from toolscore.upstreams import Caller, UpstreamPool

__all__ = ["CodeTools", "pattern_of"]

MAX_SPACES = 100


@dataclass(frozen=True)
class _Seen:
    generation: int
    space: NameSpace


class CodeTools:
    """What code may find."""

    def __init__(self, library: UnifiedToolLibrary, upstreams: UpstreamPool, permissions: Permissions) -> None:
        self.library = library
        self.permissions = permissions
        self._upstreams = upstreams
        self._spaces: Memo[Sees | None, _Seen] = Memo(MAX_SPACES)

    def space(self, caller: Caller) -> NameSpace:
        """The tools that a caller sees, as code names them; made anew when the library changes."""
        sees = self.permissions.sees(caller.principal)
        seen = self._spaces.get(sees)
        if seen is None or seen.generation != self.library.generation:
            tools = (tool for tool in self.library if sees is None or sees(tool))
            seen = self._spaces[sees] = _Seen(self.library.generation, NameSpace(tools))
        return seen.space

    async def wait_for_server(self, name: str, caller: Caller, seconds: float) -> bool:
        """Wait for a server that has not listed its tools yet, as any call would. Returns whether it has now.

        Raises:
            UpstreamUnavailable: it does not run.
        """
        for upstream in self._upstreams:
            named = name in (upstream.server_id, identifier(upstream.server_id)) or name.startswith(
                f"{upstream.server_id}__"
            )
            if not named or self.library.of_server(upstream.server_id):
                continue
            if not self.permissions.sees_server(caller.principal, upstream.server_id):
                return False
            try:
                with Deadline(seconds):
                    await upstream.wait_up()
            except TimeoutError:
                raise UpstreamUnavailable(f"server {upstream.server_id!r} still starts: call again later") from None
            return True
        return False

    def check(self, name: str, pattern: str, caller: Caller) -> None:
        """See that a pattern may mean something: a tool, or a server that has not listed any yet.

        Raises:
            ToolNotFound: with the nearest names.
        """
        space = self.space(caller)
        if space.matching(pattern):
            return
        server = pattern.partition("__")[0]
        for upstream in self._upstreams:
            if server in (upstream.server_id, identifier(upstream.server_id)) and self.permissions.sees_server(
                caller.principal, upstream.server_id
            ):
                return
        near = nearest(name, [*space.known(), *space.servers]) or sorted(space.servers)[:5]
        raise ToolNotFound(
            f"`tools` names {name!r:.160}, and there is no such tool or server",
            suggestion=f"nearest: {', '.join(near)}" if near else None,
        )

    def names(self, tools: list[Tool], caller: Caller) -> list[str]:
        """What code calls these tools: `server.tool`."""
        space = self.space(caller)
        return [space.name_of(tool) for tool in tools]

    def described(self, tools: list[Tool], caller: Caller, max_tokens: int) -> tuple[str, list[str]]:
        """A stub file of these tools within a budget, and the names of those that did not fit."""
        return stubs(self.space(caller), tools, max_tokens)

    def tokens(self, tool: Tool) -> int:
        """What a tool's definition takes of a model's context, roughly."""
        return self.library.schemas.tokens(tool)

    def find(self, names: list[str], caller: Caller) -> list[Tool]:
        """The tools of these names or patterns, as code or as the gateway names them.

        Raises:
            ToolNotFound: a name that is none, with the nearest.
        """
        space = self.space(caller)
        found: dict[str, Tool] = {}
        for name in names:
            tool = space.find([name])
            own = [tool] if tool is not None else space.matching(pattern_of(name))
            if not own:
                near = nearest(name, space.known()) or sorted(space.servers)[:5]
                raise ToolNotFound(f"no tool {name!r:.160}", suggestion=f"nearest: {', '.join(near)}" if near else None)
            found |= {one.tool_id: one for one in own}
        return list(found.values())


def pattern_of(name: str) -> str:
    """A pattern of full names, of what somebody wrote: `time`, `time.*`, `time.get_current_time`, `time__*`."""
    server, separator, tool = name.partition(".")
    if separator:
        return f"{server}__{tool}"
    return name if "__" in name or "*" in name else f"{name}__*"
