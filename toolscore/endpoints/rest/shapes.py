"""What each address takes and answers, field by field, for OpenAPI. A test holds real answers against it.

A shape says what `data` of the envelope is. Bodies that a route reads as a struct of its own are that struct.

One module: it is a list, whose entries are made of one another.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from toolscore.discovery.capability import Waiting
from toolscore.discovery.install.installer import Installed
from toolscore.discovery.install.plan import Plan
from toolscore.endpoints.rest.discovery import InstallRequest, Task
from toolscore.endpoints.rest.journal import ReplayRequest
from toolscore.endpoints.rest.keys import KeyRequest
from toolscore.history.firewall import Match
from toolscore.history.fixes import Baseline
from toolscore.history.scores import Score

__all__ = ["ANSWERS", "BODIES"]

State = Literal["starting", "up", "idle", "down", "failed", "stopped"]
Circuit = Literal["closed", "open", "half_open"]
Text = Annotated[str, Meta(description="RFC 3339, UTC")]
Schema = Annotated[Any, Meta(description="JSON Schema, as the server gave it")]


class Shape(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The base: nothing that is not named."""


class Result(Shape, kw_only=True):
    """What a tool answered."""

    call_id: Annotated[str, Meta(description="of its record in the journal")]
    tool_id: str
    content: Annotated[list[dict[str, Any]], Meta(description="MCP content blocks")]
    structured_content: dict[str, Any] | None
    is_error: Annotated[bool, Meta(description="the tool ran and failed")]
    suggestion: Annotated[str | UnsetType, Meta(description="what helped others")] = UNSET


class RunFigures(Shape, kw_only=True):
    """What a run of code did."""

    call_id: str
    calls: int
    failed: int


class CodeResult(Result, kw_only=True):
    """What came of code that calls tools."""

    run: RunFigures | None


class Tool(Shape, kw_only=True):
    """A tool of the library."""

    tool_id: str
    name: Annotated[str, Meta(description="the server's own")]
    server_id: str
    description: str
    input_schema: Schema
    output_schema: Schema
    annotations: dict[str, Any]
    tags: list[str]
    available: Annotated[bool, Meta(description="whether its server can be called now")]
    server_state: State
    circuit: Circuit
    quarantined: bool
    disabled: Annotated[bool, Meta(description="nobody sees it, but for admins who ask")]
    tokens_estimate: Annotated[int, Meta(description="about what a model reads to know it")]
    score: float


class FoundTool(Tool, kw_only=True):
    """A tool that fits a task."""

    relevance: Annotated[float, Meta(description="how well it fits")]
    rank: Annotated[float, Meta(description="what they are sorted by")]


class PinnedAt(Shape, kw_only=True):
    """Since when a tool is held to its definition, and by whose word."""

    pinned_at: Text
    pinned_by: str


class ChangeShape(Shape, kw_only=True):
    """How a definition changed."""

    change: Literal["compatible", "breaking", "suspicious"]
    reasons: list[str]
    changed: list[str]
    diff: str


class Window(Shape, kw_only=True):
    """Calls of a stretch of time; milliseconds are `null` without calls."""

    count: int
    errors: int
    avg_ms: float | None
    min_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class FullTool(Tool, kw_only=True):
    """One tool with all that is known of it."""

    score: Score  # type: ignore[assignment]
    pin: PinnedAt | None
    change: ChangeShape | None
    windows: Annotated[dict[str, Window], Meta(description="`5m` and `1h`")]
    definition: dict[str, Any]
    definition_hash: str
    first_seen: Text
    calls: int


class Tools(Shape, kw_only=True):
    """A page of the library."""

    tools: list[Tool]
    total_count: int
    next_cursor: str | None


class FoundTools(Shape, kw_only=True):
    """The tools for a task, best first."""

    tools: list[FoundTool]
    total_count: int
    hint: Annotated[str, Meta(description="what would find more")] | UnsetType = UNSET


class SearchBody(Shape, kw_only=True):
    """A task, and how many tools."""

    query: Annotated[str, Meta(min_length=1, max_length=4000)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 10


class Server(Shape, kw_only=True):
    """A server. One that was not started, for a mistake in its entry or because it is disabled, has less."""

    server_id: str
    kind: Literal["stdio", "streamable_http", "sse", "inprocess", "websocket"] | UnsetType | None = UNSET
    state: State
    tools: int | UnsetType = UNSET
    instances: int | UnsetType = UNSET
    calls_in_flight: int | UnsetType = UNSET
    restarts: int | UnsetType = UNSET
    circuit: Circuit | UnsetType = UNSET
    last_error: str | None
    next_try_at: Text | UnsetType | None = UNSET
    pid: int | UnsetType | None = UNSET
    runs_with: Annotated[str | UnsetType | None, Meta(description="an older SDK, beside it")] = UNSET
    mended: Annotated[dict[str, list[str]] | UnsetType, Meta(description="tool: what was mended")] = UNSET
    disabled: bool | UnsetType = UNSET
    up_since: Text | UnsetType | None = UNSET
    memory_bytes: Annotated[int | UnsetType | None, Meta(description="resident, of its processes")] = UNSET


class ServerInfo(Shape, kw_only=True):
    """What a server says of itself."""

    name: str
    version: str


class FullServer(Server, kw_only=True):
    """One server with all that is known of it. What only admins see is `null` for others."""

    description: str | UnsetType = UNSET
    command: str | UnsetType | None = UNSET
    args: list[str] | UnsetType | None = UNSET
    env_keys: list[str] | UnsetType | None = UNSET
    url: str | UnsetType | None = UNSET
    header_names: list[str] | UnsetType | None = UNSET
    credentials_of: list[str] | UnsetType | None = UNSET
    forward_headers: list[str] | UnsetType = UNSET
    endpoint: str | UnsetType | None = UNSET
    stderr: Annotated[list[str] | None, Meta(description="its last lines")]
    protocol_version: str | UnsetType | None = UNSET
    server_info: ServerInfo | UnsetType | None = UNSET
    tool_ids: list[str] | UnsetType = UNSET


class Servers(Shape, kw_only=True):
    """All servers."""

    servers: list[Server]
    total_count: int


class ServerId(Shape, kw_only=True):
    """The one that went."""

    server_id: str


class AttachBody(msgspec.Struct, kw_only=True):
    """A server to attach: its id, and the keys of an `mcpServers` entry (docs/settings.md)."""

    server_id: str
    command: str | UnsetType = UNSET
    args: list[str] | UnsetType = UNSET
    env: dict[str, str] | UnsetType = UNSET
    url: str | UnsetType = UNSET
    headers: dict[str, str] | UnsetType = UNSET


class MissingShape(Shape, kw_only=True):
    """A capability that no tool has."""

    capability: str
    keywords: list[str]


class Fit(Shape, kw_only=True):
    """How well a tool fits a step."""

    tool_id: str
    relevance: float
    score: float


Verdict = Literal["sufficient", "unsure", "gap"]


class StepShape(Shape, kw_only=True):
    """A step of a task."""

    step: str
    verdict: Verdict
    confidence: float
    tools: list[Fit]
    missing: MissingShape | None
    judged_by: str
    reason: Annotated[str, Meta(description="what the verdict rests on, and the tool that is meant")]
    needs: Annotated[list[str], Meta(description="arguments of that tool that the step does not give")]


class AnalysisShape(Shape, kw_only=True):
    """Whether the tools here do a task."""

    task_description: str
    verdict: Verdict
    sufficient: bool
    confidence: Annotated[float, Meta(description="how likely the verdict is right")]
    steps: list[StepShape]
    missing: list[MissingShape]
    recommended_action: Literal["call", "look", "request-capability"]
    judged_by: str


class PackageShape(Shape, kw_only=True):
    """A package of a server in a catalog."""

    registry: str | None
    identifier: str | None
    version: str | None
    transport: str | None


class RemoteShape(Shape, kw_only=True):
    """An address of a server in a catalog."""

    type: str | None
    url: str | None


class Need(Shape, kw_only=True):
    """A variable that a server needs."""

    name: str
    description: str | None
    secret: bool


class Candidate(Shape, kw_only=True):
    """A server in a catalog that may do."""

    name: str
    title: str | None
    description: str
    version: str | None
    source: str
    publisher: str | None
    publisher_checked: bool
    packages: list[PackageShape]
    remotes: list[RemoteShape]
    needs: list[Need]
    tools: list[str]
    repository: str | None
    licence: str | None
    popularity: float | None
    status: str | None
    updated_at: str | None
    relevance: float
    matched: list[str]
    nearest_tool: str | None
    confidence: float
    allowed: Annotated[bool, Meta(description="whether a rule allows it without approval")]
    obstacle: str | None
    plan: Plan | None
    install_with: str | None
    installed_as: str | UnsetType | None = UNSET


class FoundFor(Shape, kw_only=True):
    """A tool with what a call of it needs."""

    tool_id: str
    description: str
    input_schema: Schema
    relevance: float
    score: float
    rank: float


class Acquired(Shape, kw_only=True):
    """What came of a request for a capability."""

    status: Literal["sufficient", "unsure", "installed", "needs_approval", "failed", "not_found"]
    next: Annotated[str, Meta(description="what to do now, in words")]
    analysis: AnalysisShape
    installed: list[Installed]
    tools: list[FoundFor]
    candidates: list[Candidate]
    failures: list[Any]


class PlanShown(Shape, kw_only=True):
    """What an install would do; `digest` is what somebody approves."""

    server_id: str
    name: str
    kind: str
    identifier: str
    version: str | None
    commands: list[list[str]]
    run: str
    confined: bool
    network: bool
    folders: Annotated[list[str], Meta(description="that it may use beside its own; `:ro`: only read")]
    wants_network: Annotated[bool, Meta(description="it plainly needs one")]
    needs: Annotated[list[str], Meta(description="variables that must still be given")]
    needs_arguments: Annotated[list[str], Meta(description="of its command line, that must still be given")]
    asks: Annotated[dict[str, str], Meta(description="what the catalog says of what must still be given")]
    needs_folder: Annotated[bool, Meta(description="it has nothing to work on without one")]
    note: Annotated[str | None, Meta(description="what else whoever approves should know")]
    obstacle: Annotated[str | None, Meta(description="why it cannot run on this machine")]
    sets: dict[str, str]
    allowed_by: int | None
    digest: str
    installed: Installed | None


class Planned(Shape, kw_only=True):
    """The answer to a `dry_run`."""

    plan: PlanShown


class Source(Shape, kw_only=True):
    """A catalog."""

    name: str
    kind: str
    servers: int
    age_seconds: float | None
    error: str | None


class Candidates(Shape, kw_only=True):
    """Servers that may do."""

    servers: list[Candidate]
    total_count: int
    sources: list[Source]


class Sources(Shape, kw_only=True):
    """The catalogs."""

    sources: list[Source]


class InstalledServers(Shape, kw_only=True):
    """What was installed."""

    servers: list[Installed]
    total_count: int


class CallShape(Shape, kw_only=True):
    """A call in the journal."""

    call_id: str
    request_id: str
    at: Text
    principal: str
    tool_id: Annotated[str, Meta(description="`-` where it named no tool")]
    server_id: str
    name: str
    definition_hash: str
    outcome: Annotated[str, Meta(description="`ok`, `tool_error`, `cancelled`, or an error code")]
    duration_ms: float
    queued_ms: Annotated[float | None, Meta(description="waited for a place at the server; `null`: it went to none")]
    server_ms: Annotated[float | None, Meta(description="at the server, all tries together")]
    cache: Literal["l1", "l2", "l3", "stale"] | None
    error: str | None
    parent: Annotated[str | None, Meta(description="the run of code that made it")]
    redacted: Annotated[list[str], Meta(description="which of `arguments` and `result` are not kept as they were")]


class FullCall(CallShape, kw_only=True):
    """One call with its bodies; of a run of code also the calls that it made."""

    arguments: Any
    result: Any
    calls: list[CallShape] | UnsetType = UNSET


class Calls(Shape, kw_only=True):
    """A page of the journal, the newest first."""

    calls: list[CallShape]
    next_cursor: str | None


class Made(Shape, kw_only=True):
    """A call as it was, or as it is now."""

    call_id: str | None
    outcome: str
    result: Any
    error: str | None
    duration_ms: float | None


class Replayed(Shape, kw_only=True):
    """A past call made again."""

    tool_id: str
    same: bool
    difference: Annotated[str, Meta(description="a unified diff; empty where there is none")]
    note: str | None
    definition_changed: bool
    result_was_redacted: bool
    then: Made
    now: Made


class Skipped(Shape, kw_only=True):
    """A call that was not made again."""

    call_id: str
    reason: str


class ReplayedMany(Shape, kw_only=True):
    """Past calls made again."""

    replayed: int
    same: int
    different: list[Replayed]
    skipped: list[Skipped]


class Exported(Shape, kw_only=True):
    """A recorded window, as `python -m mcp_servers.recorded FILE` serves it."""

    server_id: str
    recorded_until: Text
    tools: list[dict[str, Any]]
    calls: list[dict[str, Any]]


class Pin(Shape, kw_only=True):
    """What a tool is held to, and of a quarantined one what its server says now."""

    tool_id: str
    server_id: str
    definition_hash: str
    pinned_at: Text
    pinned_by: str | None
    quarantined: bool
    since: Text | None
    held_hash: str | None
    change: Literal["compatible", "breaking", "suspicious"] | UnsetType = UNSET
    reasons: list[str] | UnsetType = UNSET
    changed: list[str] | UnsetType = UNSET
    diff: str | UnsetType = UNSET


class FullPin(Pin, kw_only=True):
    """One pin with the definitions; the one that waits is for admins."""

    definition: dict[str, Any]
    held_definition: dict[str, Any] | UnsetType = UNSET


class PinsShape(Shape, kw_only=True):
    """All pins."""

    pins: list[Pin]
    total_count: int


class ApproveBody(Shape, kw_only=True):
    """The `held_hash` that was looked at."""

    definition_hash: str


class KnownFix(Shape, kw_only=True):
    """What helped against an error, and how often."""

    fix_id: str
    tool_id: Annotated[str | None, Meta(description="`null`: for all tools")]
    text: str
    by_hand: bool
    worked: int
    failed: int
    shown: int
    right: Annotated[int, Meta(description="of those whom it was shown, who did so and succeeded")]
    without: Annotated[Baseline, Meta(description="how such failures go on where nothing is shown")]
    confidence: float
    is_shown: Annotated[bool, Meta(description="whether callers are told of it")]
    off: Annotated[bool, Meta(description="an operator has switched it off")]


class PatternShape(Shape, kw_only=True):
    """A kind of error."""

    pattern_id: str
    template: str
    category: str
    count: int
    first_seen: Text
    last_seen: Text
    fixes: list[KnownFix]


class PatternsShape(Shape, kw_only=True):
    """Patterns of errors, the most frequent first."""

    patterns: list[PatternShape]


class MatchBody(Shape, kw_only=True):
    """An error's message, and the tool that gave it."""

    message: str
    tool_id: str | None = None


class FixBody(Shape, kw_only=True):
    """What helps against an error; for one tool, or for all."""

    message: str
    text: str
    tool_id: str | None = None


class FixShape(Shape, kw_only=True):
    """A fix that was written down."""

    fix_id: str
    pattern_id: str
    text: str
    tool_id: str | None


class FixId(Shape, kw_only=True):
    """The one that is forgotten."""

    fix_id: str


class Forgotten(Shape, kw_only=True):
    """How many results."""

    forgotten: int


class Explained(Shape, kw_only=True):
    """Which rule decides."""

    allowed: bool
    rule: Annotated[int | None, Meta(description="its number, from 1")]
    rule_text: dict[str, Any] | None
    default: Literal["allow", "deny"]
    reason: str


class Key(Shape, kw_only=True):
    """An API key, without the key itself."""

    key_id: str
    name: Annotated[str, Meta(description="of the principal whose it is")]
    scopes: list[str]
    created_at: Text
    expires_at: Text | None
    revoked_at: Text | None


class Keys(Shape, kw_only=True):
    """All API keys, the oldest first."""

    keys: list[Key]
    total_count: int


class NewKey(Shape, kw_only=True):
    """A key that was made; it is not shown again."""

    key_id: str
    key: str
    name: str
    scopes: list[str]
    expires_at: Text | None


class KeyId(Shape, kw_only=True):
    """The one that is revoked."""

    key_id: str


class Setting(Shape, kw_only=True):
    """A setting in force."""

    key: Annotated[str, Meta(description="`limits.call_timeout_seconds`")]
    value: Annotated[Any, Meta(description="passwords in addresses are left out")]
    default: Any
    source: Literal["default", "file", "variable"]
    where: Annotated[str | None, Meta(description="`FILE:LINE`, or the variable's name")]
    needs_restart: Annotated[bool, Meta(description="a change counts at the next start only")]
    description: str


class SettingsShape(Shape, kw_only=True):
    """The settings in force."""

    settings: list[Setting]
    folder: str | None
    problems: Annotated[list[str], Meta(description="of the files as they are now: they are not in force then")]


class TopTool(Shape, kw_only=True):
    """A tool that is called much."""

    tool_id: str
    calls: int


class Stats(Shape, kw_only=True):
    """Figures."""

    calls_total: int
    calls_in_flight: int
    outcomes: dict[str, int]
    uptime_seconds: float
    windows: Annotated[dict[str, Window], Meta(description="`10s`, `1m`, `5m` and `1h`")]
    top_tools: list[TopTool] | UnsetType = UNSET
    cache: dict[str, int]
    journal: dict[str, int]
    tools_total: int
    servers: Annotated[dict[State, int], Meta(description="how many are in each state")]
    event_subscribers: int
    last_event_seq: int
    memory_bytes: int
    server_stats: dict[str, Any]


class Health(Shape, kw_only=True):
    """A check for each part."""

    status: Literal["healthy", "degraded"]
    unwell: Annotated[list[str], Meta(description="the parts that are not well")]
    checks: dict[str, Any]
    version: str
    uptime_seconds: float


class PastEvents(Shape, kw_only=True):
    """Events, the oldest first: each with `type`, `seq`, `timestamp` and members of its type."""

    events: list[dict[str, Any]]
    next_since: Annotated[int | None, Meta(description="goes on behind the last; `null`: there is no more")]


class Recent(Shape, kw_only=True):
    """The calls of a few seconds."""

    age_seconds: Annotated[float, Meta(description="how long ago they ended")]
    count: int
    outcomes: dict[str, int]
    cached: Annotated[int, Meta(description="results that were kept")]
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class RecentStats(Shape, kw_only=True):
    """Figures step by step, the oldest first; steps without calls are left out."""

    step_seconds: float
    points: list[Recent]


class Caller(Shape, kw_only=True):
    """Who asks."""

    principal: Annotated[str, Meta(description="`local`: whoever calls from this machine without a key")]
    scopes: list[str]
    version: Annotated[str, Meta(description="of the gateway")]


class Switched(Shape, kw_only=True):
    """A tool, and whether it is disabled now."""

    tool_id: str
    disabled: bool


class Approvals(Shape, kw_only=True):
    """Tasks that wait for an install to be approved, the oldest first."""

    approvals: list[Waiting]
    total_count: int


class ApprovalId(Shape, kw_only=True):
    """The one that is over."""

    approval_id: str


class Ready(Shape, kw_only=True):
    """It answers."""

    status: Literal["ready"]


class ExecuteBody(Shape, kw_only=True):
    """A call of a tool."""

    tool_id: Annotated[str, Meta(description="a full name, or a server id with `action`")]
    action: Annotated[str | None, Meta(description="the tool's own name on that server")] = None
    parameters: Annotated[dict[str, Any], Meta(description="the tool's arguments")] = {}
    timeout_seconds: Annotated[float, Meta(gt=0, le=3600)] | None = None
    session_id: Annotated[str | None, Meta(description="passed to the tool as its `session_id`")] = None
    cache: Annotated[bool, Meta(description="false: ask the server itself")] = True


class CodeBody(Shape, kw_only=True):
    """The arguments of `toolscore__run_code`."""

    code: str
    tools: Annotated[list[str] | UnsetType, Meta(description="all that it may call")] = UNSET
    timeout_seconds: Annotated[float, Meta(gt=0)] | UnsetType = UNSET
    session_id: str | UnsetType = UNSET
    packages: list[str] | UnsetType = UNSET
    files: list[dict[str, Any]] | UnsetType = UNSET


V1 = "/api/v1"
ANSWERS: dict[tuple[str, str], Any] = {
    ("post", "/execute_tool"): Result,
    ("post", f"{V1}/tools/execute"): Result,
    ("post", f"{V1}/code/run"): CodeResult,
    ("get", "/list_tools"): Tools,
    ("get", f"{V1}/tools"): Tools,
    ("post", f"{V1}/tools/search"): FoundTools,
    ("get", f"{V1}/tools/{{tool_id}}"): FullTool,
    ("post", f"{V1}/tools/analyze-gap"): AnalysisShape,
    ("post", f"{V1}/tools/request-capability"): Acquired,
    ("get", f"{V1}/servers"): Servers,
    ("post", f"{V1}/servers"): Server,
    ("get", f"{V1}/servers/{{server_id}}"): FullServer,
    ("delete", f"{V1}/servers/{{server_id}}"): ServerId,
    ("post", f"{V1}/servers/{{server_id}}/restart"): Server,
    ("post", f"{V1}/servers/{{server_id}}/disable"): Server,
    ("post", f"{V1}/servers/{{server_id}}/enable"): Server,
    ("get", f"{V1}/catalog/search"): Candidates,
    ("post", f"{V1}/catalog/refresh"): Sources,
    ("post", f"{V1}/catalog/install"): (Installed, Planned),
    ("get", f"{V1}/catalog/installed"): InstalledServers,
    ("delete", f"{V1}/catalog/installed/{{name}}"): Installed,
    ("get", f"{V1}/calls"): Calls,
    ("get", f"{V1}/calls/export"): Exported,
    ("get", f"{V1}/calls/{{call_id}}"): FullCall,
    ("post", f"{V1}/calls/replay"): ReplayedMany,
    ("post", f"{V1}/calls/{{call_id}}/replay"): Replayed,
    ("get", f"{V1}/pins"): PinsShape,
    ("get", f"{V1}/pins/{{tool_id}}"): FullPin,
    ("post", f"{V1}/pins/{{tool_id}}/approve"): Pin,
    ("get", f"{V1}/errors"): PatternsShape,
    ("post", f"{V1}/errors/match"): Match,
    ("post", f"{V1}/errors/fixes"): FixShape,
    ("delete", f"{V1}/errors/fixes/{{fix_id}}"): FixId,
    ("post", f"{V1}/errors/fixes/{{fix_id}}/disable"): FixId,
    ("post", f"{V1}/errors/fixes/{{fix_id}}/enable"): FixId,
    ("delete", f"{V1}/cache"): Forgotten,
    ("get", f"{V1}/policy/explain"): Explained,
    ("get", f"{V1}/keys"): Keys,
    ("get", f"{V1}/settings"): SettingsShape,
    ("post", f"{V1}/keys"): NewKey,
    ("delete", f"{V1}/keys/{{key_id}}"): KeyId,
    ("get", f"{V1}/stats"): Stats,
    ("get", f"{V1}/stats/recent"): RecentStats,
    ("get", f"{V1}/whoami"): Caller,
    ("get", f"{V1}/events"): PastEvents,
    ("post", f"{V1}/tools/{{tool_id}}/disable"): Switched,
    ("post", f"{V1}/tools/{{tool_id}}/enable"): Switched,
    ("get", f"{V1}/catalog/approvals"): Approvals,
    ("delete", f"{V1}/catalog/approvals/{{approval_id}}"): ApprovalId,
    ("get", "/health"): Health,
    ("get", "/livez"): Ready,
    ("get", "/readyz"): Ready,
}
"""What `data` is, by method and path; several: one of them."""

BODIES: dict[tuple[str, str], Any] = {
    ("post", "/execute_tool"): ExecuteBody,
    ("post", f"{V1}/tools/execute"): ExecuteBody,
    ("post", f"{V1}/code/run"): CodeBody,
    ("post", f"{V1}/tools/search"): SearchBody,
    ("post", f"{V1}/tools/analyze-gap"): Task,
    ("post", f"{V1}/tools/request-capability"): Task,
    ("post", f"{V1}/servers"): AttachBody,
    ("post", f"{V1}/catalog/install"): InstallRequest,
    ("post", f"{V1}/calls/replay"): ReplayRequest,
    ("post", f"{V1}/calls/{{call_id}}/replay"): ReplayRequest,
    ("post", f"{V1}/pins/{{tool_id}}/approve"): ApproveBody,
    ("post", f"{V1}/errors/match"): MatchBody,
    ("post", f"{V1}/errors/fixes"): FixBody,
    ("post", f"{V1}/keys"): KeyRequest,
}
"""What a request's body is."""
