"""`open_gateway`: opens the rooms in order, closes them in reverse, applies reloads. The doors come on top of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from msgspec import Raw

from toolscore.access.auth import OUR_KEY, Authenticator, KeyRing, TokenRules, is_loopback
from toolscore.access.limits import Rate, RateLimits
from toolscore.access.policy import Policy, Rule
from toolscore.app.settings import (
    NEEDS_RESTART,
    Loaded,
    Settings,
    SettingsHub,
    database_url,
    differences,
    load_settings,
    watch_files,
)
from toolscore.calls import CallPipeline
from toolscore.calls.breaker import BreakerRules
from toolscore.calls.cache import CacheRules, ResultCache
from toolscore.core.errors import Conflict, InvalidArguments, InvalidRequest, ToolScoreError, UpstreamUnavailable
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode, encode
from toolscore.core.models import Principal, ServerState, ToolCall, UpstreamSpec, timestamp
from toolscore.discovery import (
    Analysis,
    CapabilityBroker,
    IndexRules,
    Installer,
    MCPSearchTool,
    Proof,
    ToolGapDetector,
    ToolSearch,
)
from toolscore.discovery.own_tools import OWN_SERVER, OwnTools
from toolscore.embedding import Embedder, LightEmbedder, RemoteEmbedder, SemanticEmbedder
from toolscore.history.events import EventLog
from toolscore.history.firewall import ErrorFirewall, FirewallRules
from toolscore.history.journal import Journal
from toolscore.history.recording import JournalRules, Order
from toolscore.history.scores import Scores
from toolscore.stores import Database, SharedStore, open_database, open_shared
from toolscore.stores.database import StoreError
from toolscore.telemetry.metrics import Metrics
from toolscore.telemetry.tracing import open_tracing
from toolscore.tools.features import ChangeFeed, FeatureIndex
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.tools.pins import PinRules, Pins
from toolscore.upstreams import ServerInfo, UpstreamPool
from toolscore.upstreams.connection import CAPABILITY_OF, STATS_METHOD
from toolscore.upstreams.process.confine import OWN_PORTS
from toolscore.upstreams.process.spawn import CommandNotFound, child_environment, resolve_command
from toolscore.upstreams.references import resolved_text

__all__ = ["EXECUTOR_ID", "LIST_CHANGED", "Gateway", "executor_command", "open_gateway", "token_rules"]

log = structlog.get_logger(__name__)

EXECUTOR_ID = "python-executor-mcp-server"
LIST_CHANGED = {feature: f"notifications/{feature}/list_changed" for feature in ("tools", "prompts", "resources")}
OWN_TOOLS = "toolscore.discovery.own_tools:OwnTools"
OWN_TOOLS_TIMEOUT_SECONDS = 1200.0
"""An install may take its time."""

SERVER_STATS_SECONDS = 0.5
SERVER_STATS_TIMEOUT_SECONDS = 1.0


class Gateway:
    """The open rooms, and what changes them while they are open."""

    def __init__(
        self,
        *,
        settings: SettingsHub,
        database: Database,
        events: EventLog,
        library: UnifiedToolLibrary,
        features: FeatureIndex,
        changes: ChangeFeed,
        auth: Authenticator,
        upstreams: UpstreamPool,
        pipeline: CallPipeline,
        metrics: Metrics,
        search: ToolSearch,
        gaps: ToolGapDetector,
        catalog: MCPSearchTool,
        shared: SharedStore | None,
        config_dir: Path | None,
        settings_problems: list[str],
        broken_servers: dict[str, str],
    ) -> None:
        self.settings = settings
        self.database = database
        self.events = events
        self.library = library
        self.features = features
        self.changes = changes
        self.auth = auth
        self.keys = KeyRing(database)
        self.upstreams = upstreams
        self.pipeline = pipeline
        self.metrics = metrics
        self.search = search
        self.gaps = gaps
        self.catalog = catalog
        self.shared = shared
        self.config_dir = config_dir
        self.settings_problems = settings_problems
        self.broken_servers = broken_servers
        self.started = time.monotonic()
        self.server_stats: dict[str, dict[str, Any]] = {}
        self._server_stats_at = 0.0
        self.installer = Installer(
            Path(settings.current.storage.data_dir).absolute() / "servers",
            database,
            upstreams,
            attach=self._attach,
            detach=self._detach,
            tools_of=lambda server_id: [tool.tool_id for tool in library.of_server(server_id)],
            on_proved=self._proved,
            publish=events.publish,
            reserved={OWN_SERVER, EXECUTOR_ID},
            rules=settings.current.discovery.install,
        )
        self.broker = CapabilityBroker(gaps, search, catalog, self.installer)

    def _proved(self, server_id: str, proof: Proof) -> None:
        tool = next((tool for tool in self.library.of_server(server_id) if tool.name == proof.tool), None)
        if tool is not None:
            self.pipeline.scores.add(tool, "ok" if proof.ok else "tool_error", proof.duration_ms / 1000, proof.fits)

    def own_tools(self) -> OwnTools:
        """What agents may ask of the gateway itself, as tools."""

        async def call(tool_id: str, arguments: dict[str, Any], who: Principal) -> dict[str, Any]:
            made = ToolCall(tool_id=tool_id, arguments=Raw(encode(arguments)), request_id=uuid.uuid4().hex)
            result: dict[str, Any] = decode((await self.pipeline.call(made, who)).raw)
            return result

        return OwnTools(self.search, self.gaps, self.broker, sees=self.pipeline.sees, call=call)

    async def refresh_server_stats(self) -> None:
        """Ask the servers that keep figures for them, at most twice a second; one that is slow keeps its last."""
        if time.monotonic() - self._server_stats_at < SERVER_STATS_SECONDS:
            return
        self._server_stats_at = time.monotonic()
        keepers = {
            upstream.server_id: upstream.connections[0]
            for upstream in self.upstreams
            if upstream.spec.identify_callers  # ours: what others say would stand in our metrics unchecked
            and upstream.connections
            and _keeps_stats(upstream.connections[0].info.capabilities)
        }
        self.server_stats = {server_id: self.server_stats.get(server_id, {}) for server_id in keepers}

        async def ask(server_id: str) -> None:
            with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError, TimeoutError, ValueError):
                async with asyncio.timeout(SERVER_STATS_TIMEOUT_SECONDS):
                    said = decode(await keepers[server_id].request(STATS_METHOD))
                if isinstance(said, dict):
                    self.server_stats[server_id] = said

        await asyncio.gather(*map(ask, keepers))
        self.metrics.server_stats = self.server_stats

    def forget(self, server_id: str) -> None:
        """Drop what is known of a server that is gone for good."""
        gone = [tool.tool_id for tool in self.library.of_server(server_id)]
        self.library.forget(server_id)
        self.pipeline.scores.forget(gone)
        self.search.forget(gone)
        self.pipeline.cache.invalidate(server_id=server_id)
        self.features.forget(server_id)
        self.pipeline.forget(server_id)

    async def reload(self) -> bool:
        """Read the settings again and put them in force; at any problem the old stay. Returns whether they changed."""
        loaded = load_settings(self.config_dir)
        try:
            if loaded.problems:
                raise _Rejected("; ".join(loaded.problems))
            changed = await self.apply(loaded.settings)
        except _Rejected as exc:
            log.error("settings rejected", reason=str(exc))
            self.events.publish("settings_rejected", reason=str(exc))
            self.settings_problems = [f"the files were changed and rejected: {exc}"]
            return False
        self.settings_problems, self.broken_servers = [], self_references(loaded.settings)
        if changed:
            log.info("settings applied", changed=changed)
            self.events.publish("settings_applied", changed=changed)
        return bool(changed)

    async def apply(self, new: Settings) -> list[str]:
        """Put new settings in force: servers that changed are swapped, those that did not are not touched.

        Returns:
            The dotted paths that changed.

        Raises:
            _Rejected: nothing was changed.
        """
        old = self.settings.current
        new = _with_bound_ports(new, old)
        changed = differences(old, new)
        frozen = sorted(path for path in changed if path.split(".")[0] in NEEDS_RESTART)
        if frozen:
            raise _Rejected(f"{', '.join(frozen)}: needs a restart; nothing was changed")
        before, after = configured_servers(old), configured_servers(new)
        for server_id in after.keys() - before.keys():
            if self.upstreams.find(server_id) is not None:
                raise _Rejected(f"server id {server_id!r} is taken by a server that was attached: detach it first")
        swapped: list[str] = []
        try:
            for server_id in sorted(before.keys() & after.keys()):
                if before[server_id] != after[server_id] and self.upstreams.find(server_id) is not None:
                    await self.upstreams.replace(server_id, after[server_id])
                    swapped.append(server_id)
        except UpstreamUnavailable as exc:
            for server_id in swapped:
                await self.upstreams.replace(server_id, before[server_id])
            raise _Rejected(exc.message) from exc
        for server_id in sorted(before.keys() - after.keys()):
            await self._drop(server_id)
        for server_id in sorted(after.keys() - before.keys()):
            try:
                self.upstreams.add(server_id, after[server_id])
            except Conflict as exc:  # attached while we waited for the others
                self.broken_servers[server_id] = exc.message
                log.error("a configured server is left out", server=server_id, reason=exc.message)
        self.pipeline.call_timeout_seconds = new.limits.call_timeout_seconds
        self.pipeline.retries = new.servers.retries
        self.pipeline.max_concurrent = new.servers.max_concurrent
        self.pipeline.max_queued = new.servers.max_queued
        if new.breaker != old.breaker:
            self.pipeline.use_breaker_rules(breaker_rules(new))
        if new.rates != old.rates:
            self.pipeline.rates = rates_of(new, self.shared)
        if new.cache != old.cache:
            self.pipeline.cache.use(CacheRules(**new.cache.model_dump()))
        self.library.pins.rules = PinRules(**new.pins.model_dump())
        self.pipeline.journal.use(JournalRules(**new.journal.model_dump()))
        self.pipeline.scores.enabled = new.scores.enabled
        self.pipeline.firewall.rules = FirewallRules(**new.firewall.model_dump())
        self.gaps.use(new.discovery.judge)
        self.catalog.use(new.discovery.catalog)
        self.installer.use(new.discovery.install)
        if new.policy != old.policy:
            self.pipeline.policy = policy_of(new)
            for method in LIST_CHANGED.values():  # what a client sees may be other things
                for server_id in self.features.servers():
                    self.changes.tell(server_id, method)
        self.upstreams.start_timeout_seconds = new.servers.start_timeout_seconds
        self.upstreams.max_start_failures = new.servers.max_start_failures
        self.upstreams.drain_seconds = new.servers.drain_seconds
        self.upstreams.max_message_bytes = new.limits.max_result_bytes
        return self.settings.swap(new)

    async def attach(self, server_id: str, spec: UpstreamSpec) -> None:
        """Add a server at run time; it is there again after a restart.

        Raises:
            Conflict, InvalidRequest.
        """
        if self.installer.holds(server_id):
            raise Conflict(f"server id {server_id!r} belongs to a server that was installed: choose another")
        await self._attach(server_id, spec)

    async def _attach(self, server_id: str, spec: UpstreamSpec) -> None:
        if not server_id or len(server_id) > 128 or "/" in server_id:
            raise InvalidRequest(f"a server id has 1 to 128 characters and no slash, found {server_id!r:.160}")
        if _is_ourselves(spec, self.settings.current):
            raise InvalidRequest(OURSELVES)
        if spec.command:
            try:
                resolve_command(spec.command, child_environment(spec.command, spec.env))
            except CommandNotFound as exc:
                raise InvalidArguments(f"server {server_id!r} cannot be started: {exc}") from exc
        if spec.inprocess:
            raise InvalidRequest("servers inside the gateway's process are a matter of its configuration files")
        if server_id in self.broken_servers:
            raise Conflict(f"server id {server_id!r} stands in mcp_servers.json, with a mistake: mend it there")
        self.upstreams.add(server_id, spec)
        try:
            await self.database.save_server(server_id, spec.model_dump_json(exclude_defaults=True), timestamp())
        except StoreError as exc:
            log.error("an attached server cannot be stored: it is gone after a restart", error=str(exc))

    async def detach(self, server_id: str) -> None:
        """Remove a server that was attached or installed at run time, with all that belongs to it.

        Raises:
            ServerNotFound; Conflict: it belongs to the configuration.
        """
        if self.installer.holds(server_id):
            await self.installer.uninstall(server_id)
        else:
            await self._detach(server_id)

    async def _detach(self, server_id: str) -> None:
        self.upstreams.get(server_id)
        if server_id in configured_servers(self.settings.current):
            raise Conflict(f"server {server_id!r} belongs to the configuration: remove it from mcp_servers.json")
        try:
            await self.database.delete_server(server_id)
        except StoreError as exc:
            log.error("a detached server cannot be removed from the database", error=str(exc))
        await self._drop(server_id)
        self.library.pins.forget(server_id)  # whoever comes under its name is another

    async def _drop(self, server_id: str) -> None:
        def forget() -> None:  # before the id is free for another
            self.forget(server_id)
            self.metrics.server_gone(server_id)

        await self.upstreams.remove(server_id, forget)


class _Rejected(Exception):
    """New settings cannot be put in force."""


def _with_bound_ports(new: Settings, running: Settings) -> Settings:
    """Port 0 means any free port: what was bound stands for it."""
    services = {}
    for name in ("toolscore_http", "toolscore_mcp"):
        service = getattr(new.core_services, name)
        if service.port == 0:
            service = service.model_copy(update={"port": getattr(running.core_services, name).port})
        services[name] = service
    return new.model_copy(update={"core_services": new.core_services.model_copy(update=services)})


OURSELVES = "it is this gateway itself: its tools would be listed under ever longer names"


def _is_ourselves(spec: UpstreamSpec, settings: Settings) -> bool:
    try:
        url = urlsplit(spec.url or "")
        return is_loopback(url.hostname or "") and url.port == settings.core_services.toolscore_http.port
    except ValueError:  # a reference stands where the port should be
        return False


def self_references(settings: Settings) -> dict[str, str]:
    """The entries that point at this gateway, as in a file shared with the gateway's own clients."""
    return {server_id: OURSELVES for server_id, spec in settings.upstreams.items() if _is_ourselves(spec, settings)}


def configured_servers(settings: Settings) -> dict[str, UpstreamSpec]:
    """The servers that the settings ask for, our own Python executor among them."""
    servers = {
        server_id: spec
        for server_id, spec in settings.upstreams.items()
        if not spec.disabled and not _is_ourselves(spec, settings)
    }
    servers.setdefault(EXECUTOR_ID, _executor_spec(settings))
    if settings.discovery.mcp_tools and OWN_SERVER in servers:
        log.warning("the gateway's own tools give way to a configured server of their name", server=OWN_SERVER)
    elif settings.discovery.mcp_tools:
        servers[OWN_SERVER] = UpstreamSpec(
            inprocess=OWN_TOOLS, identify_callers=True, call_timeout_seconds=OWN_TOOLS_TIMEOUT_SECONDS,
            max_concurrent=1000, description="finding tools, and getting those that are missing",
        )  # fmt: skip
    return servers


def _keeps_stats(capabilities: dict[str, Any]) -> bool:
    experimental = capabilities.get("experimental")
    return isinstance(experimental, dict) and STATS_METHOD in experimental


def executor_command(*arguments: str) -> list[str]:
    """What starts our Python executor as a program of its own."""
    return [sys.executable, "-m", "mcp_servers.python_executor", *arguments]


def _executor_spec(settings: Settings) -> UpstreamSpec:
    options = {**settings.python_executor.model_dump(), "data_dir": str(Path(settings.storage.data_dir).absolute())}
    # the executor's own time limit shall strike before ours
    call_timeout = settings.python_executor.max_timeout_seconds + 10
    if settings.use_inprocess_python_executor:
        return UpstreamSpec(
            inprocess="mcp_servers.python_executor.server:create_server",
            options=options,
            call_timeout_seconds=call_timeout,
            identify_callers=True,
            tags=("python",),
        )
    router, service = settings.core_services.toolscore_mcp, settings.mcp_servers.python_executor
    if not service.auto_start:
        return UpstreamSpec(dialin=True, call_timeout_seconds=call_timeout, identify_callers=True, tags=("python",))
    if router.unix_socket:
        url = f"ws+unix://{Path(router.unix_socket).absolute()}:/register"
    else:
        host = "127.0.0.1" if router.host in ("0.0.0.0", "") else router.host  # noqa: S104
        url = f"ws://{f'[{host}]' if ':' in host else host}:{router.port}/register"
    command, *args = executor_command("--connect", url, "--server-id", EXECUTOR_ID)
    if service.port is not None:
        args += ["--http", f"{service.host}:{service.port}"]
    args += ["--options", json.dumps(options)]
    return UpstreamSpec(
        dialin=True,
        command=command,
        args=tuple(args),
        env={"TOOLSCORE_API_KEY": OUR_KEY},
        call_timeout_seconds=call_timeout,
        start_timeout_seconds=20,
        identify_callers=True,
        tags=("python",),
    )


def policy_of(settings: Settings) -> Policy:
    """The operator's rules, as the pipeline takes them."""
    return Policy([Rule(**rule.model_dump()) for rule in settings.policy.rules], settings.policy.default)


def rates_of(settings: Settings, shared: SharedStore | None) -> RateLimits:
    """What callers may use in a minute, as the pipeline takes it."""
    rates = settings.rates
    everywhere = Rate(rates.per_minute, rates.burst) if rates.per_minute else None
    of_tools = {name: Rate(rate.per_minute, rate.burst) for name, rate in rates.tools.items()}
    return RateLimits(everywhere, of_tools, shared, settings.storage.redis_url)


def embedder_of(settings: Settings) -> Embedder:
    """What makes vectors of texts."""
    chosen = settings.embeddings
    if chosen.mode == "semantic":
        return SemanticEmbedder()
    if chosen.mode == "endpoint":
        assert chosen.url is not None
        return RemoteEmbedder(chosen.url, chosen.model, _secret(chosen.key))
    return LightEmbedder()


def _secret(reference: str | None) -> str | None:
    """What a reference stands for; `None` with a line in the log where it stands for nothing."""
    try:
        return resolved_text(reference) if reference is not None else None
    except CommandNotFound as exc:
        log.error("a key is not to be had", error=str(exc))
        return None


def breaker_rules(settings: Settings) -> BreakerRules:
    """When a server is left alone, as the pipeline takes it."""
    return BreakerRules(**settings.breaker.model_dump())


def token_rules(settings: Settings) -> TokenRules | None:
    """Which tokens of an authorization server count."""
    tokens = settings.access.tokens
    return TokenRules(**tokens.model_dump()) if tokens is not None else None


@asynccontextmanager
async def open_gateway(loaded: Loaded, *, config_dir: Path | None = None, watch: bool = True) -> AsyncIterator[Gateway]:
    """Open everything below the doors.

    Args:
        loaded: settings with the ports as bound.
        config_dir: watched for changes; `None`: settings stay as they are.

    Raises:
        StoreError: the database cannot be opened.
    """
    settings = loaded.settings
    services = settings.core_services
    OWN_PORTS.update({services.toolscore_http.port, services.toolscore_mcp.port})
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(database_url(settings)))
        events = await stack.enter_async_context(
            EventLog(
                database,
                keep_events=settings.events.keep,
                queue_events=settings.events.queue,
                on_event=metrics.event,
            )
        )
        shared = await stack.enter_async_context(open_shared(settings.storage.redis_url))
        changes = ChangeFeed()
        pins = await stack.enter_async_context(Pins(database, PinRules(**settings.pins.model_dump())))
        scores = await stack.enter_async_context(Scores(database))
        scores.enabled = settings.scores.enabled

        def publish(event: str, **data: Any) -> None:
            events.publish(event, **data)
            if event == "tool_updated" and "change" in data:
                scores.changed(data["tool_id"], data["change"])
            elif event == "tool_removed":
                metrics.tools_gone([data["tool_id"]])
            changes.tell(data["server_id"], "notifications/tools/list_changed")

        library = await stack.enter_async_context(
            UnifiedToolLibrary(database, pins, trusted=[EXECUTOR_ID, OWN_SERVER], publish=publish)
        )
        features = await stack.enter_async_context(FeatureIndex(database))

        metrics.tools.set_function(lambda: len(library))

        def tools_listed(server_id: str, spec: UpstreamSpec, tools: list[dict[str, Any]]) -> None:
            library.update(server_id, spec, tools)

        def state_changed(server_id: str, state: ServerState, reason: str | None) -> None:
            library.set_state(server_id, state)
            metrics.server_up(server_id, state in ("up", "idle"))
            if state == "up":
                events.publish("server_up", server_id=server_id)
            elif state in ("down", "failed", "stopped"):
                events.publish("server_down", server_id=server_id, state=state, reason=reason)
            for method in LIST_CHANGED.values():  # what they show as available is another
                changes.tell(server_id, method)

        def described(server_id: str, info: ServerInfo) -> None:
            features.describe(server_id, info)

        def listed(server_id: str, kind: str, entries: list[dict[str, Any]]) -> None:
            if features.update(server_id, kind, entries):
                changes.tell(server_id, LIST_CHANGED[CAPABILITY_OF[kind]])

        upstreams = await stack.enter_async_context(
            UpstreamPool(
                on_tools=tools_listed,
                on_info=described,
                on_list=listed,
                on_notification=changes.tell,
                on_state=state_changed,
                on_restart=metrics.server_restarted,
                has_tools=lambda server_id: bool(library.of_server(server_id)),
                start_timeout_seconds=settings.servers.start_timeout_seconds,
                max_start_failures=settings.servers.max_start_failures,
                max_message_bytes=settings.limits.max_result_bytes,
                drain_seconds=settings.servers.drain_seconds,
            )
        )
        cache = ResultCache(database, shared, CacheRules(**settings.cache.model_dump()))
        order = Order(
            rules=JournalRules(**settings.journal.model_dump()),
            database_url=database_url(settings),
            log_level=settings.logging.level,
            log_format=settings.logging.format,
        )
        journal = Journal(database, [sys.executable, "-m", "toolscore.history.recorder"], order)
        embedder, words = embedder_of(settings), LightEmbedder()
        hidden = frozenset({OWN_SERVER})
        index_rules = IndexRules(index=settings.embeddings.index, milvus_uri=settings.embeddings.milvus_uri)
        search = await stack.enter_async_context(ToolSearch(library, scores, database, embedder, hidden, index_rules))
        catalog = await stack.enter_async_context(
            MCPSearchTool(database, embedder, upstreams.http, settings.discovery.catalog, index_rules)
        )

        def gap_found(principal: str, analysis: Analysis) -> None:
            missing = [{"capability": one.capability, "keywords": one.keywords} for one in analysis.missing]
            events.publish("gap_detected", principal=principal, confidence=analysis.confidence, missing=missing)

        gaps = ToolGapDetector(
            library, search, embedder, words, upstreams.http, on_gap=gap_found, rules=settings.discovery.judge
        )
        firewall = ErrorFirewall(database, words, FirewallRules(**settings.firewall.model_dump()))
        pipeline = CallPipeline(
            library,
            upstreams,
            metrics=metrics,
            events=events,
            cache=await stack.enter_async_context(cache),
            journal=await stack.enter_async_context(journal),
            scores=scores,
            firewall=await stack.enter_async_context(firewall),
            tracing=stack.enter_context(open_tracing(settings.tracing.endpoint)),
            call_timeout_seconds=settings.limits.call_timeout_seconds,
            policy=policy_of(settings),
        )
        pipeline.on_success = search.succeeded
        pipeline.rates = rates_of(settings, shared)
        pipeline.use_breaker_rules(breaker_rules(settings))
        pipeline.retries = settings.servers.retries
        pipeline.max_concurrent = settings.servers.max_concurrent
        pipeline.max_queued = settings.servers.max_queued
        gateway = Gateway(
            settings=SettingsHub(settings),
            database=database,
            events=events,
            library=library,
            features=features,
            changes=changes,
            auth=Authenticator(
                database,
                tokens=token_rules(settings),
                fetch=upstreams.fetch_json,
                local_without_key=settings.access.local_without_key,
            ),
            upstreams=upstreams,
            pipeline=pipeline,
            metrics=metrics,
            search=search,
            gaps=gaps,
            catalog=catalog,
            shared=shared,
            config_dir=config_dir,
            settings_problems=loaded.problems,
            broken_servers={**loaded.broken_servers, **self_references(settings)},
        )
        upstreams.inside[OWN_TOOLS] = gateway.own_tools()
        await stack.enter_async_context(gateway.installer)
        servers = configured_servers(settings)
        for row in await database.load_servers():
            servers.setdefault(row["server_id"], UpstreamSpec.model_validate_json(row["spec"]))
        if not loaded.problems:  # a file with a mistake says nothing of what it does not name
            for server_id in {*library.servers(), *features.servers()} - servers.keys() - loaded.broken_servers.keys():
                gateway.forget(server_id)
        for server_id, spec in servers.items():
            upstreams.add(server_id, spec)
        for problem in loaded.problems:
            log.error("a setting was refused", problem=problem)
            events.publish("settings_rejected", reason=problem)
        if watch and config_dir is not None and config_dir.is_dir():
            await stack.enter_async_context(watch_files(config_dir, gateway.reload))
        yield gateway
