"""UnifiedToolLibrary: which tools exist, on which server, under which name. Persisted, so they are listed at once after
a restart, marked offline until their server is back.

Decides nothing about who may call them, and does not call them.

One module: which tools there are, which are held back and what is told of them goes by the same few maps, and must not
come apart.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec
import structlog

from toolscore.core.clock import now, timestamp
from toolscore.core.errors import InvalidRequest, ToolNotFound
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.memo import Memo
from toolscore.core.models import AVAILABLE, Change, Sees, ServerState, Tool, UpstreamSpec
from toolscore.core.names import MAX_LENGTH, nearest, tool_id
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database
from toolscore.tools.pins import Pins
from toolscore.tools.schemas import Schemas, is_usable

__all__ = ["UnifiedToolLibrary", "change_fields", "event_fields"]

log = structlog.get_logger(__name__)

MAX_SHOWN = 128
MAX_GONE = 1000
"""Characters of a name that a message repeats."""


def event_fields(tool: Tool) -> dict[str, Any]:
    """A tool as events show it (docs/wire.md)."""
    return {
        "tool_id": tool.tool_id,
        "name": tool.name,
        "description": tool.description,
        "capabilities": [
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
        ],
        "tool_type": "mcp_server",
        "server_id": tool.server_id,
    }


def _identity(tool: Tool) -> dict[str, Any]:
    return {"tool_id": tool.tool_id, "name": tool.name, "server_id": tool.server_id}


def change_fields(change: Change) -> dict[str, Any]:
    """A change of a definition, as events and REST show it."""
    return {
        "change": change.kind,
        "reasons": list(change.reasons),
        "changed": list(change.changed),
        "diff": change.diff,
    }


class UnifiedToolLibrary:
    """The tools. Use as `async with UnifiedToolLibrary(…) as library`.

    Reading is plain memory; writes go to the database in the background, in order.

    Args:
        pins: judges what servers say of their tools. trusted: servers that are ours, and say what they like.
        publish: `(event_type, **data)`, told of each tool that came, changed or went.
    """

    def __init__(
        self,
        database: Database,
        pins: Pins,
        *,
        trusted: Collection[str] = (),
        publish: Callable[..., None] = lambda *_, **__: None,
        max_name: int = MAX_LENGTH,
    ) -> None:
        self._max_name = max_name
        self._trusted = frozenset(trusted)
        self._database = database
        self.pins = pins
        self._publish = publish
        self._tools: dict[str, Tool] = {}
        self._gone: Memo[str, Tool] = Memo(MAX_GONE)
        self._away: dict[str, dict[str, Tool]] = {}
        """Of servers that left the configuration, and may come back."""
        self._by_server: dict[str, dict[str, Tool]] = {}
        self._order: list[str] = []
        self._state: dict[str, ServerState] = {}
        self.schemas = Schemas()
        self.writes = WriteBehind("tools")
        self.texts_generation = 0
        """Grows with each change of what the list says: what was made from that is good while it stands."""
        self._state_changes = 0

    @property
    def generation(self) -> int:
        """Grows also with each change of a server's state."""
        return self.texts_generation + self._state_changes

    async def __aenter__(self) -> UnifiedToolLibrary:
        renamed: list[tuple[Tool, Tool]] = []
        for row in await self._database.load_tools():
            pin = self.pins.find(row["server_id"], row["name"])
            tool = Tool(
                tool_id=row["tool_id"],
                server_id=row["server_id"],
                name=row["name"],
                definition=decode(row["definition"].encode()),
                definition_hash=row["definition_hash"],
                first_seen=row["first_seen"],
                held=pin.held if pin is not None else None,
            )
            if len(tool.tool_id) > self._max_name:  # which has been set lower since
                old = tool
                tool = msgspec.structs.replace(old, tool_id=tool_id(old.server_id, old.name, self._max_name))
                renamed.append((old, tool))
            self._put(tool)
        await self.writes.__aenter__()
        if renamed:
            self._save([new for _, new in renamed], [old for old, _ in renamed])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.writes.__aexit__(*exc)

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        return (self._tools[key] for key in self._order)

    # Reading

    def find(self, key: str, sees: Sees | None = None) -> Tool | None:
        tool = self._tools.get(key)
        return tool if tool is not None and (sees is None or sees(tool)) else None

    def last_known(self, tool_id: str) -> Tool | None:
        """A tool, or what one was that went a while ago: whether a caller may hear that it went."""
        return self._tools.get(tool_id) or self._gone.get(tool_id)

    def resolve(
        self, key: str, action: str | None = None, server_id: str | None = None, *, sees: Sees | None = None
    ) -> Tool:
        """The tool that a caller means.

        Args:
            key: a full name; or a server id, with the tool's own name in `action` (or a server with one tool only);
                or, with `server_id`, the tool's own name.
            sees: says which tools exist for the caller; `None`: all.

        Raises:
            ToolNotFound: with the nearest names.
        """
        if server_id is not None:
            own = self._seen(server_id, sees)
            tool = own.get(key)
            if tool is None:
                raise self._not_found(f"server {server_id!r} has no tool {_shown(key)}", key, own)
            return tool
        tool = self.find(key, sees)
        if tool is not None and action in (None, "", tool.name, key):
            return tool
        own = self._seen(key, sees)
        if own:
            if action:
                tool = own.get(action) or next((t for t in own.values() if t.tool_id == action), None)
                if tool is None:
                    raise self._not_found(f"server {key!r} has no tool {_shown(action)}", action, own)
                return tool
            if len(own) == 1:
                return next(iter(own.values()))
            raise self._not_found(f"{key!r} is a server: name one of its tools in `action`", key, own)
        if tool is not None:
            raise ToolNotFound(f"{key!r} is a tool of its own and has no action {_shown(action)}: leave `action` out")
        raise self._not_found(
            f"no tool {_shown(key)}",
            key,
            self._tools if sees is None else {tool.tool_id: tool for tool in self if sees(tool)},
        )

    def _seen(self, server_id: str, sees: Sees | None) -> dict[str, Tool]:
        own = self._by_server.get(server_id, {})
        return own if sees is None else {name: tool for name, tool in own.items() if sees(tool)}

    def _not_found(self, message: str, wanted: str, known: dict[str, Tool]) -> ToolNotFound:
        names = nearest(wanted, known) or sorted(known)[:5]
        none = "there is none that you may call" if self._tools else "no tools are known yet: add a server"
        suggestion = f"nearest: {', '.join(names)}" if names else none
        return ToolNotFound(message, suggestion=suggestion)

    def state(self, server_id: str) -> ServerState:
        """The state of a tool's server as the library was told; `down` until it was."""
        return self._state.get(server_id, "down")

    def available(self, tool: Tool) -> bool:
        """Whether a call would reach it now (an idle server starts for it)."""
        return self._state.get(tool.server_id) in AVAILABLE

    def of_server(self, server_id: str) -> list[Tool]:
        """The tools of one server, in the server's own order."""
        return list(self._by_server.get(server_id, {}).values())

    def page(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        server_id: str | None = None,
        tag: str | None = None,
        text: str | None = None,
        sees: Sees | None = None,
    ) -> tuple[list[Tool], str | None]:
        """A page of the list, ordered by `tool_id`, and the cursor of the next.

        A cursor names the last tool of its page, so the order stands when tools come and go in between.

        Raises:
            InvalidRequest: a limit below 1.
        """
        if limit is not None and limit < 1:
            raise InvalidRequest(f"`limit` must be at least 1, found {limit}")
        start = bisect.bisect_right(self._order, cursor) if cursor else 0
        found: list[Tool] = []
        needle = text.casefold() if text else None
        for key in self._order[start:]:
            tool = self._tools[key]
            if server_id is not None and tool.server_id != server_id:
                continue
            if tag is not None and tag not in tool.tags:
                continue
            if sees is not None and not sees(tool):
                continue
            if needle and needle not in tool.tool_id.casefold() and needle not in tool.description.casefold():
                continue
            if limit is not None and len(found) == limit:
                return found, found[-1].tool_id
            found.append(tool)
        return found, None

    def count(self, sees: Sees | None = None) -> int:
        """How many tools there are for somebody."""
        return len(self._tools) if sees is None else sum(1 for tool in self if sees(tool))

    # Writing

    async def prepare(self, server_id: str, definitions: list[dict[str, Any]]) -> None:
        """Judge beside the loop what a server lists now, if it is much; `update` then takes it at once."""
        if server_id not in self._trusted:
            await self.pins.prepare(server_id, definitions, lambda: self._names_beside(server_id))

    def update(self, server_id: str, spec: UpstreamSpec, definitions: list[dict[str, Any]]) -> None:
        """Take what a server lists now, as far as the pins let it; what it lists no more is removed."""
        before = dict(self._by_server.get(server_id, {}))
        verdicts = self.pins.review(
            server_id,
            [definition for definition in definitions if is_usable(server_id, definition)],
            lambda: self._names_beside(server_id),
            trusted=spec.identify_callers and server_id in self._trusted,
        )
        away = self._away.pop(server_id, {})
        own: dict[str, Tool] = {}
        upserts: list[Tool] = []
        for name, verdict in verdicts.items():
            old = before.get(name)
            if old is not None and old.definition_hash == verdict.definition_hash:
                own[name] = (
                    old
                    if (old.tags, old.held) == (spec.tags, verdict.held)
                    else msgspec.structs.replace(old, tags=spec.tags, held=verdict.held)
                )
                continue
            seen = old or away.get(name)
            own[name] = Tool(
                tool_id=old.tool_id if old else tool_id(server_id, name, self._max_name),
                server_id=server_id,
                name=name,
                definition=verdict.definition,
                definition_hash=verdict.definition_hash,
                first_seen=seen.first_seen if seen else timestamp(now()),
                tags=spec.tags,
                held=verdict.held,
            )
            upserts.append(own[name])
        for name, tool in list(own.items()):
            holder = self._tools.get(tool.tool_id)
            if holder is not None and (holder.server_id, holder.name) != (server_id, name):
                log.error("a tool's name is taken by another's: it is left out", tool=tool.tool_id, server=server_id)
                del own[name]
                upserts = [upsert for upsert in upserts if upsert.name != name]
        removed = [tool for name, tool in before.items() if name not in own]
        marked = any(before[name].held != tool.held for name, tool in own.items() if name in before)
        for tool in removed:
            self._remove(tool)
        for tool in own.values():
            self._put(tool)
        self._by_server[server_id] = own
        if upserts or removed:
            self._save(upserts, removed)
        if upserts or removed or marked:
            self.texts_generation += 1
        for tool in upserts:
            old = before.get(tool.name)
            change = verdicts[tool.name].change
            if old is None:
                warned = {"warnings": list(change.reasons)} if change is not None else {}
                status = "quarantined" if tool.held is not None else "ready"
                self._publish("tool_installed", **event_fields(tool), status=status, **warned)
            elif not verdicts[tool.name].newly_held:
                self._tell_updated(old, tool, change)
        for name, tool in own.items():
            if tool.held is not None and verdicts[name].newly_held:
                self._publish("tool_quarantined", **_identity(tool), **change_fields(tool.held.change))
            elif name in before and before[name].held is not None and tool.held is None:
                self._publish("tool_released", **_identity(tool), reason="its server took the change back")
        for tool in removed:
            self._publish("tool_removed", **_identity(tool))

    def approve(self, tool: Tool, by: str, seen: str) -> Tool:
        """Show and call the tool as its server describes it now.

        Args:
            seen: hash of the definition that was looked at.

        Raises:
            Conflict: it is not quarantined, or says something else by now.
        """
        change = tool.held.change if tool.held is not None else None
        pin = self.pins.approve(tool.server_id, tool.name, by, seen)
        approved = msgspec.structs.replace(
            tool, definition=pin.definition, definition_hash=pin.definition_hash, held=None
        )
        self._put(approved)
        self.texts_generation += 1
        self._save([approved], [])
        self._tell_updated(tool, approved, change, approved_by=by)
        return approved

    def _tell_updated(self, old: Tool, tool: Tool, change: Change | None, **more: Any) -> None:
        changed = sorted(
            key for key in {*old.definition, *tool.definition} if old.definition.get(key) != tool.definition.get(key)
        )
        told = change_fields(change) if change is not None else {}
        self._publish("tool_updated", **event_fields(tool), **{**told, "changed": changed}, **more)

    def _names_beside(self, server_id: str) -> set[str]:
        """Names of other servers' tools; not those that this one has, too."""
        own = self._by_server.get(server_id, {})
        names = {name for tool in self if tool.server_id != server_id for name in (tool.tool_id, tool.name)}
        return names - own.keys() - {tool.tool_id for tool in own.values()}

    def set_state(self, server_id: str, state: ServerState) -> None:
        """Note whether a server's tools can be called."""
        if self._state.get(server_id) != state:
            self._state[server_id] = state
            self._state_changes += 1

    def forget(self, server_id: str, *, for_good: bool = True) -> None:
        """Remove a server's tools.

        Args:
            for_good: else they are known again when the server comes back.
        """
        own = self._by_server.pop(server_id, {})
        removed = list(own.values())
        self._away.pop(server_id, None)
        if removed and not for_good:
            self._away[server_id] = own
        self._state.pop(server_id, None)
        for tool in removed:
            self._remove(tool)
        self.texts_generation += 1
        if removed and for_good:
            self._save([], removed)
        for tool in removed:
            self._publish("tool_removed", **_identity(tool))

    def servers(self) -> set[str]:
        """The ids of all servers that have tools here."""
        return set(self._by_server)

    def _put(self, tool: Tool) -> None:
        if tool.tool_id not in self._tools:
            bisect.insort(self._order, tool.tool_id)
            self.schemas.expect(len(self._order))
        self._tools[tool.tool_id] = tool
        self._by_server.setdefault(tool.server_id, {})[tool.name] = tool

    def _remove(self, tool: Tool) -> None:
        self._gone[tool.tool_id] = tool
        if self._tools.pop(tool.tool_id, None) is not None:
            del self._order[bisect.bisect_left(self._order, tool.tool_id)]

    def _save(self, upserts: list[Tool], removed: list[Tool]) -> None:
        kept = ("tool_id", "server_id", "name", "definition_hash", "first_seen")
        rows = [
            {**{name: getattr(tool, name) for name in kept}, "definition": encode(tool.definition).decode()}
            for tool in upserts
        ]
        gone = [tool.tool_id for tool in removed]
        self.writes.put(lambda: self._database.save_tools(rows, gone))


def _shown(name: str | None) -> str:
    return repr(name if name is None or len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…")
