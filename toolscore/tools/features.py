"""What servers offer beside tools: prompts, resources and templates, their capabilities, and under which name each is
shown where all servers share one address. Kept, so that lists are whole while a server is away.

A resource keeps its URI; only where two servers have the same one does the later get a prefix.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec
import structlog

from toolscore.core.jsonrpc import decode, encode
from toolscore.core.names import MAX_LENGTH, tool_id
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database
from toolscore.stores.errors import StoreError
from toolscore.tools.mending import mended_entry
from toolscore.upstreams import ServerInfo

__all__ = ["KINDS", "LIST_CHANGED", "ChangeFeed", "FeatureIndex"]

log = structlog.get_logger(__name__)

LIST_CHANGED = {feature: f"notifications/{feature}/list_changed" for feature in ("tools", "prompts", "resources")}
"""What tells that a list has changed (MCP, list changed notifications)."""

KINDS = ("prompts", "resources", "templates")
PAGE = "ui://"
MAX_LINKS = 10_000
MAX_URI = 8192
MAX_TEMPLATE = 1024
MAX_TEMPLATES = 200
"""Of one server."""
MAX_EXPRESSIONS = 20

Entry = dict[str, Any]


class FeatureIndex:
    """The features of all servers. Use as `async with FeatureIndex(database) as features`.

    Reading is plain memory; writes go to the database in the background.
    """

    def __init__(self, database: Database, max_name: int = MAX_LENGTH) -> None:
        self._database = database
        self._max_name = max_name
        self.generation = 0
        """Another whenever an address or a name may be shown otherwise."""
        self._info: dict[str, ServerInfo] = {}
        self._entries: dict[str, dict[str, list[Entry]]] = {}
        self._prompts: dict[str, tuple[str, str]] = {}
        self._owners: dict[str, str] = {}
        self._shared: dict[str, str] = {}
        self._templates: dict[str, list[Any]] = {}
        self._links: OrderedDict[str, str] = OrderedDict()
        self.writes = WriteBehind("what servers offer")
        self._unsaved: dict[tuple[str, str], str | None] = {}

    async def __aenter__(self) -> FeatureIndex:
        for row in await self._database.load_features():
            if row["kind"] == "owners":
                self._owners = decode(row["content"].encode())
            elif row["kind"] == "info":
                self._info[row["server_id"]] = msgspec.json.decode(row["content"], type=ServerInfo)
            else:
                self._entries.setdefault(row["server_id"], {})[row["kind"]] = decode(row["content"].encode())
        await self.writes.__aenter__()
        self._index()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.writes.__aexit__(*exc)

    # Reading

    def info(self, server_id: str) -> ServerInfo | None:
        """What a server said of itself when it was last connected."""
        return self._info.get(server_id)

    def capabilities(self, server_id: str) -> dict[str, Any]:
        info = self._info.get(server_id)
        return info.capabilities if info is not None else {}

    def servers(self) -> list[str]:
        """All servers that were ever connected, in the order of their ids."""
        return sorted(self._info)

    def entries(self, server_id: str, kind: str) -> list[Entry]:
        """What a server listed last, as it came. `kind` is one of `KINDS`."""
        return self._entries.get(server_id, {}).get(kind, [])

    def shown(self, server_id: str, kind: str) -> Iterator[Entry]:
        """The same under the names of the common address."""
        for entry in map(mended_entry, self.entries(server_id, kind)):
            if kind == "prompts":
                yield {**entry, "name": tool_id(server_id, entry["name"], self._max_name)}
            else:
                member = "uri" if kind == "resources" else "uriTemplate"
                yield {**entry, member: self.shown_uri(server_id, entry[member])}

    def find_prompt(self, name: str) -> tuple[str, str] | None:
        """Server and own name of a prompt."""
        return self._prompts.get(name)

    def prompt_names(self) -> dict[str, str]:
        """The server of each prompt, by its full name."""
        return {name: server_id for name, (server_id, _) in self._prompts.items()}

    def shown_uri(self, server_id: str, uri: str) -> str:
        """A server's URI as it is shown: with a prefix where it is another's too."""
        owner = self._owners.get(uri) or self._links.get(uri)
        return uri if owner in (None, server_id) else _prefixed(server_id, uri)

    def note_link(self, server_id: str, uri: str) -> str:
        """A server has named a URI in a result. Returns how it is shown."""
        if uri not in self._owners and uri not in self._links:
            self._links[uri] = server_id
            if len(self._links) > MAX_LINKS:
                self._links.popitem(last=False)
        return self.shown_uri(server_id, uri)

    def find_resource(self, uri: str) -> tuple[str, str] | None:
        """Server and own URI of a resource (or of a template, spelled as it is listed)."""
        for server_id in self._info:
            for scheme in ("", PAGE):
                prefix = _prefixed(server_id, scheme)
                if uri.startswith(prefix):
                    return server_id, scheme + uri[len(prefix) :]
        owner = self._owners.get(uri) or self._links.get(uri)
        if owner is not None:
            return owner, uri
        if len(uri) <= MAX_URI:
            for server_id, matchers in self._templates.items():
                if any(matcher.is_valid(uri) for matcher in matchers):
                    return server_id, uri
        holders = [server_id for server_id in self.servers() if "resources" in self.capabilities(server_id)]
        return (holders[0], uri) if len(holders) == 1 else None

    # Writing

    def describe(self, server_id: str, info: ServerInfo) -> None:
        """Take what a server says of itself."""
        if self._info.get(server_id) != info:
            self._info[server_id] = info
            self._keep(server_id, "info", msgspec.json.encode(info).decode())

    def update(self, server_id: str, kind: str, entries: list[Entry]) -> bool:
        """Take what a server lists now. Whether that is new."""
        own = self._entries.setdefault(server_id, {})
        if own.get(kind, []) == entries:
            own.setdefault(kind, entries)
            return False
        own[kind] = entries
        self._index()
        self._keep(server_id, kind, encode(entries).decode())
        return True

    def forget(self, server_id: str, *, for_good: bool = True) -> None:
        """A server is gone; unless it is for good, what it offers is known again when it comes back."""
        self._info.pop(server_id, None)
        kinds = self._entries.pop(server_id, {})
        for uri in [uri for uri, owner in self._links.items() if owner == server_id]:
            del self._links[uri]
        self._index()
        for kind in ("info", *kinds) if for_good else ():
            self._keep(server_id, kind, None)

    def _index(self) -> None:
        """Names from lists. Whoever owns a URI keeps it while it lists it, whoever else comes."""
        self.generation += 1
        before, self._owners = self._owners, {}
        self._prompts = {}
        self._templates = {}
        for server_id in sorted(self._entries):
            lists = self._entries[server_id]
            for prompt in lists.get("prompts", []):
                self._prompts[tool_id(server_id, prompt["name"], self._max_name)] = (server_id, prompt["name"])
            self._templates[server_id] = [
                matcher
                for entry in lists.get("templates", [])[:MAX_TEMPLATES]
                if (matcher := _template_matcher(entry["uriTemplate"])) is not None
            ]
            for uri in self._own_uris(server_id):
                if before.get(uri) == server_id:
                    self._owners[uri] = server_id
        shared: dict[str, str] = {}
        for server_id in sorted(self._entries):
            for uri in self._own_uris(server_id):
                if self._owners.setdefault(uri, server_id) != server_id:
                    shared[uri] = self._owners[uri]
        if shared != self._shared:  # so that it is whose it was after a restart, too
            self._shared = shared
            self._keep("", "owners", encode(shared).decode())

    def _own_uris(self, server_id: str) -> Iterator[str]:
        lists = self._entries[server_id]
        yield from (entry["uri"] for entry in lists.get("resources", []))
        yield from (entry["uriTemplate"] for entry in lists.get("templates", []))

    def _keep(self, server_id: str, kind: str, content: str | None) -> None:
        self._unsaved[server_id, kind] = content
        self.writes.put(self._save)

    async def _save(self) -> None:
        """Write what changed last of each list. What a server changes meanwhile takes the place of what waits."""
        unsaved, self._unsaved = self._unsaved, {}
        try:
            if unsaved:
                await self._database.save_features(unsaved)
        except StoreError:
            self._unsaved = unsaved | self._unsaved
            raise


def _prefixed(server_id: str, uri: str) -> str:
    """A URI under a scheme of the server's own (RFC 3986: letters, digits, `+`, `-`, `.`); of a page (MCP Apps), which
    has to stay `ui://`, under such a host.
    """
    own = f"toolscore+{_host(server_id)}"
    return f"{PAGE}{own}/{uri.removeprefix(PAGE)}" if uri.startswith(PAGE) else f"{own}+{uri}"


@lru_cache(maxsize=2000)
def _host(server_id: str) -> str:
    """A server's id in such letters; of one that has others with what tells it from those that look like it now."""
    host = re.sub("[^a-z0-9.-]", "-", server_id.lower())
    return host if host == server_id else f"{host}-{hashlib.sha256(server_id.encode()).hexdigest()[:6]}"


_EXPRESSION = re.compile(r"\{([+#./;?&]?)[^{}]*\}")
_PART = {"": "[^/?#]+", "+": ".+", "#": "(#.*)?", ".": "(\\.[^/?#]*)?", "/": "(/[^?#]*)?", ";": "(;[^/?#]*)?",
         "?": "(\\?.*)?", "&": "(&.*)?"}  # fmt: skip


@lru_cache(maxsize=20_000)
def _template_matcher(template: str) -> Any:
    """What says in linear time whether a URI is one of a template (RFC 6570); `None` for a template that is none."""
    if len(template) > MAX_TEMPLATE:
        return None
    pattern, end = "^", 0
    expressions = list(_EXPRESSION.finditer(template))
    if len(expressions) > MAX_EXPRESSIONS:
        return None
    for expression in expressions:
        part = ".+" if expression[0].endswith("*}") and not expression[1] else _PART[expression[1]]  # spans slashes
        pattern += re.escape(template[end : expression.start()]) + part
        end = expression.end()
    pattern += re.escape(template[end:]) + "$"
    try:
        return jsonschema_rs.validator_for(
            {"type": "string", "pattern": pattern}, pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 17)
        )
    except (jsonschema_rs.ValidationError, ValueError):
        return None


Told = Callable[[str, str, msgspec.Raw | None], None]


class ChangeFeed:
    """Tells those who listen what servers announce: that a list has changed, that a resource has."""

    def __init__(self) -> None:
        self._listeners: dict[object, tuple[Told, Callable[[], None]]] = {}

    def listen(self, listener: Told, on_close: Callable[[], None]) -> Callable[[], None]:
        """Call `listener(server_id, method, params)` from now on. Returns what ends it. Listeners never wait.

        Args:
            on_close: called when nothing more will come.
        """
        key = object()
        self._listeners[key] = (listener, on_close)

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    def tell(self, server_id: str, method: str, params: msgspec.Raw | None = None) -> None:
        for listener, _ in list(self._listeners.values()):
            try:
                listener(server_id, method, params)
            except Exception:  # one listener's trouble is no server's, and no other listener's
                log.exception("telling a change failed", server=server_id, method=method)

    def lists_changed(self, server_id: str) -> None:
        """Tell that all that a server lists may be another now."""
        for method in LIST_CHANGED.values():
            self.tell(server_id, method)

    def close(self) -> None:
        """Tell those who listen that nothing more will come."""
        for _, on_close in list(self._listeners.values()):
            on_close()
