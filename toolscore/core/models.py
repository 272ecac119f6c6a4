"""The nouns: tools, results, upstreams, principals, events. Frozen; nothing here does I/O.

One module: every room speaks of them, and half of them name the other half.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toolscore.core.entries import translated

__all__ = [
    "AVAILABLE",
    "EVENT_TYPES",
    "LOCAL",
    "NOBODY",
    "Change",
    "Confinement",
    "Credentials",
    "Event",
    "Held",
    "Principal",
    "Sees",
    "ServerState",
    "Tool",
    "ToolResult",
    "UpstreamSpec",
    "definition_hash",
    "is_well",
    "shown_url",
]

ServerState = Literal["starting", "up", "idle", "down", "failed", "stopped"]
"""`idle`: not running, starts at the next call. `down`: gone, being restarted. `failed`: given up, see `last_error`."""
AVAILABLE: frozenset[ServerState] = frozenset({"up", "idle"})
"""Those of a server that can be called."""


def is_well(state: ServerState, last_error: str | None) -> bool:
    """Whether nobody needs to look at a server: it runs, may run, or starts for the first time since it was well."""
    return state in AVAILABLE or (state == "starting" and last_error is None)


NEVER_FORWARDED = frozenset(
    {
        "authorization", "connection", "content-length", "content-type", "cookie", "host", "accept", "mcp-method",
        "mcp-name", "mcp-protocol-version", "mcp-session-id", "last-event-id", "transfer-encoding", "upgrade",
        "x-api-key",
    }
)  # fmt: skip
"""Headers that say something about the connection to us, or prove to us who calls."""


def shown_url(url: str) -> str:
    """An address as it may be shown: without the user, the password and the query, which may be secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no address)"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")


def definition_hash(definition: dict[str, Any]) -> str:
    """SHA-256 of a tool's definition in canonical form (sorted keys, no blanks), as 64 hex digits."""
    canonical = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


class Credentials(BaseModel):
    """What a server is shown on behalf of some principals. Secrets stand elsewhere; here are references to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    headers: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _by_reference(self) -> Credentials:
        for name, value in {**self.headers, **self.env}.items():
            if "${env:" not in value and "${file:" not in value:
                raise ValueError(
                    f"`{name}` holds a value: credentials are given by reference, as ${{env:NAME}} or ${{file:/path}}"
                )
        return self


class Confinement(BaseModel):
    """What a server that we installed may see and use. Paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: str = Field(description="the only folder it may write to, beside a temporary one")
    read: tuple[str, ...] = Field((), description="folders it may read, beside the system's")
    folders: tuple[str, ...] = Field((), description="of others, that it was given; `:ro`: it may only read there")
    user: int = Field(0, ge=0, description="that it is where the gateway is root; 0: one of its own")
    network: bool = False
    memory_mb: Annotated[int, Field(ge=64)] = Field(2048, description="of data, each of its processes")
    processes: Annotated[int, Field(ge=1)] = Field(256, description="and threads, all together")


class UpstreamSpec(BaseModel):
    """How to reach one MCP server: an entry of `mcpServers`, with our own keys beside the ecosystem's.

    Exactly one of `command`, `url`, `inprocess` and `dialin` says the way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    command: str | None = Field(None, min_length=1, description="program of a stdio server, such as uvx or npx")
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict, description="added to the allow-listed environment")
    env_file: str | None = Field(None, description="a file of NAME=VALUE lines, read at each start; `env` comes first")
    cwd: str | None = None
    confine: Confinement | None = Field(None, description="run the command in a view of its own; Linux")

    url: str | None = Field(
        None,
        pattern=r"^(https?://|wss?://|ws\+unix://|\$\{)",
        description="address of a server that speaks MCP over streamable HTTP, or over a WebSocket",
    )
    headers: dict[str, str] = Field(default_factory=dict)
    ca_file: str | None = Field(
        None, description="a PEM file of authorities that its certificate may be of, beside the system's"
    )
    client_cert: str | None = Field(None, description="a PEM file that is shown to a server that asks who we are")
    client_key: str | None = Field(None, description="its private key, if that stands in a file of its own")
    public_only: bool = Field(False, description="never connect to a private address, whatever the name stands for")

    credentials: dict[str, Credentials] = Field(
        default_factory=dict,
        description="pattern of a principal's name → headers or env on its behalf; the first that fits",
    )
    forward_headers: tuple[str, ...] = Field((), description="headers of a client's HTTP request that the server gets")

    inprocess: str | None = Field(
        None, pattern=r"^[\w.]+:\w+$", description="module:factory of a server that runs inside the gateway"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that factory")

    dialin: bool = Field(False, description="the server connects to us; `command`, if given, only starts it")
    endpoint: str | None = Field(
        None, pattern=r"^ws(s|\+unix)?://", description="WebSocket that speaks toolscore.v1; we keep a connection to it"
    )
    capabilities: tuple[dict[str, Any], ...] = Field(
        (), description="the tools behind `endpoint`, as it registered them"
    )

    type: Literal["stdio", "http", "streamable-http", "sse", "websocket", "inprocess"] | None = None
    include_tools: tuple[str, ...] = Field(("*",), description="glob patterns of the tools that exist here")
    exclude_tools: tuple[str, ...] = Field((), description="glob patterns of those that do not")
    description: str = ""
    tags: tuple[str, ...] = ()
    disabled: bool = False
    lazy: bool = Field(False, description="start at the first call instead of with the gateway")
    idle_stop_seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="stop after this long without a call"
    )
    client_features: tuple[Literal["elicitation", "sampling", "roots"], ...] = Field(
        ("elicitation", "sampling", "roots"), description="what the server may ask its clients for"
    )
    instances: Literal["one", "each"] | None = Field(
        None,
        description="of several gateways that share a Redis, which start or connect to it: `one`, whom the others ask, "
        "or `each`; None: `one` of a command, `each` of all others",
    )
    sticky_argument: str | None = Field(
        None,
        description="calls with the same value of this argument go to the same instance, for each caller",
    )
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="calls at a time; None: the gateway's default"
    )
    identify_callers: bool = Field(False, description="send the caller's name in `_meta` as `toolscore/principal`")
    start_timeout_seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="None: the gateway's default")
    call_timeout_seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="None: the gateway's default")

    @model_validator(mode="before")
    @classmethod
    def _in_our_spelling(cls, data: Any) -> Any:
        return translated(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _one_way(self) -> UpstreamSpec:
        if self.dialin:
            ways = [self.url, self.inprocess, self.endpoint]
            if any(ways):
                raise ValueError("a server that dials in has no `url`, `inprocess` or `endpoint`")
            return self
        ways = [way for way in ("command", "url", "inprocess", "endpoint") if getattr(self, way)]
        if len(ways) != 1:
            found = " and ".join(f"`{way}`" for way in ways) if ways else "none of them"
            raise ValueError(
                f"give exactly one of `command` (stdio) and `url` (streamable HTTP or WebSocket), found {found}"
            )
        return self

    @model_validator(mode="after")
    def _confined_is_a_child(self) -> UpstreamSpec:
        if self.confine is not None and not self.command:
            raise ValueError("`confine` is for a server with a `command`")
        return self

    @model_validator(mode="after")
    def _tls_has_a_way(self) -> UpstreamSpec:
        if (self.ca_file or self.client_cert or self.client_key) and not (self.url or "").startswith(
            ("https", "wss", "$")
        ):
            raise ValueError("`ca_file`, `client_cert` and `client_key` are for servers with an https or wss `url`")
        if self.client_key and not self.client_cert:
            raise ValueError("`client_key` belongs to a `client_cert`, which is missing")
        return self

    @model_validator(mode="after")
    def _credentials_have_a_way(self) -> UpstreamSpec:
        for principal, given in self.credentials.items():
            if given.headers and not self.url:
                raise ValueError(f"credentials of {principal!r} hold headers: only a server with a `url` gets these")
            if given.env and not (self.command and not self.dialin):
                raise ValueError(f"credentials of {principal!r} hold env: only a server with a `command` gets these")
        if self.forward_headers and not (self.url or "").startswith(("http", "$")):
            raise ValueError("`forward_headers` is for servers with an HTTP `url`")
        kept = [name for name in self.forward_headers if name.lower() in NEVER_FORWARDED]
        if kept:
            raise ValueError(f"`forward_headers` cannot have {kept[0]!r}: it is the gateway's own")
        return self

    def __eq__(self, other: object) -> bool:
        """The order of the credentials counts: the first that fits is shown."""
        if not isinstance(other, UpstreamSpec):
            return NotImplemented
        return bool(super().__eq__(other)) and list(self.credentials) == list(other.credentials)

    __hash__ = None  # type: ignore[assignment]

    def offers(self, tool: str) -> bool:
        """Whether a tool of the server exists here, by its own name."""
        return any(fnmatchcase(tool, pattern) for pattern in self.include_tools) and not any(
            fnmatchcase(tool, pattern) for pattern in self.exclude_tools
        )

    def on_behalf_of(self, pattern: str) -> UpstreamSpec:
        """The entry with the credentials under a pattern."""
        given = self.credentials[pattern]
        return self.model_copy(update={"headers": {**self.headers, **given.headers}, "env": {**self.env, **given.env}})

    @cached_property
    def digest(self) -> str:
        """Of all that it says: a server that is reached otherwise may answer otherwise."""
        return hashlib.sha256(self.model_dump_json(exclude={"tags", "description"}).encode()).hexdigest()

    @property
    def instances_here(self) -> Literal["one", "each"]:
        """Which gateways have it, where several share a Redis. One that dials in is where it connected."""
        if self.dialin or self.inprocess:
            return "each"
        return self.instances or ("one" if self.command else "each")

    @cached_property
    def kind(self) -> Literal["stdio", "streamable_http", "inprocess", "websocket"]:
        """The way the calls go."""
        if self.dialin or self.endpoint or (self.url or "").startswith("ws"):
            return "websocket"
        if self.command:
            return "stdio"
        return "streamable_http" if self.url else "inprocess"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool's definition changed: what it means for callers, why, which members, and a diff to read."""

    kind: Literal["compatible", "breaking", "suspicious"]
    reasons: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    diff: str = ""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A definition that nobody is shown until somebody approves it."""

    definition: dict[str, Any]
    definition_hash: str
    change: Change
    since: str


class Tool(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One tool of one upstream.

    `tool_id` is the gateway's stable name; `name` is the upstream's own; `definition` is the upstream's
    object as it came (`name`, `description`, `inputSchema`, `annotations`, and fields we do not know).
    """

    tool_id: str
    server_id: str
    name: str
    definition: dict[str, Any]
    definition_hash: str
    first_seen: str
    tags: tuple[str, ...] = ()
    held: Held | None = None
    """It is quarantined: its server says something else of it now, and `definition` is the pinned one."""

    @property
    def description(self) -> str:
        text = self.definition.get("description")
        return text if isinstance(text, str) else ""

    @cached_property
    def input_schema(self) -> Any:
        return self.definition.get("inputSchema", {"type": "object"})

    @cached_property
    def annotations(self) -> dict[str, Any]:
        """What the tool says of itself (MCP tool annotations); empty where it says nothing."""
        hints = self.definition.get("annotations")
        return hints if isinstance(hints, dict) else {}

    @cached_property
    def reads_only(self) -> bool:
        """Whether it changes nothing, by its own word."""
        return self.annotations.get("readOnlyHint") is True

    @cached_property
    def safe_to_repeat(self) -> bool:
        """Whether calling it twice does no more than calling it once, by its own word."""
        hints = self.annotations
        return hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True


Sees = Callable[[Tool], bool]
"""Says which tools exist for somebody."""


class Principal(msgspec.Struct, frozen=True):
    """Who calls."""

    name: str
    scopes: tuple[str, ...] = ()


LOCAL = Principal("local", ("admin",))
"""Whoever reaches the gateway over loopback, where no keys are asked for."""


NOBODY = Principal("nobody")
"""Whoever asks for what is everybody's to see."""


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. `raw` is the upstream's whole result object (MCP `CallToolResult`) as it was sent."""

    tool: Tool
    raw: msgspec.Raw
    content: msgspec.Raw
    structured_content: msgspec.Raw | None
    is_error: bool
    duration_ms: float
    call_id: str
    """Of its record in the journal."""
    input_required: bool = False
    """Nothing was done yet: the server asks for input (MCP `InputRequiredResult`)."""
    cache_level: Literal["l1", "l2", "l3"] | None = None
    """Where it was kept; `None`: the server has just made it."""
    age_seconds: float | None = None
    """Since it was asked for, of one that was kept."""
    stale: bool = False
    """It stands in for one that could not be had."""
    suggestion: str | None = None
    """What helped others whose call failed like this."""


EVENT_TYPES = (
    "tool_installed", "tool_updated", "tool_removed", "tool_quarantined", "tool_released", "tool_disabled",
    "tool_enabled", "server_up", "server_down", "server_idle", "circuit_changed", "install_started",
    "install_progress", "install_failed", "gap_detected", "approval_needed", "approval_ended", "settings_applied",
    "settings_rejected", "stats_update", "call_finished", "lagged",
)  # fmt: skip
"""What `docs/wire.md` says of each."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something changed. `seq` is `None` for what is told and not kept (`stats_update`, `call_finished`)."""

    type: str
    data: dict[str, Any]
    timestamp: str
    seq: int | None = None

    def body(self) -> dict[str, Any]:
        """The event as it goes over the wire."""
        head: dict[str, Any] = {"type": self.type}
        if self.seq is not None:
            head["seq"] = self.seq
        return {**head, **self.data, "timestamp": self.timestamp}
