"""`open_gateway`: makes the rooms in reading order, hands each what it needs, and closes them in reverse.

One module: it is the list of all rooms.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from msgspec import Raw

from toolscore.access.auth import Authenticator
from toolscore.access.limits import RateLimits
from toolscore.access.permissions import Permissions
from toolscore.app.executor import EXECUTOR_ID
from toolscore.app.files import Loaded, watch_files
from toolscore.app.reload import Reload
from toolscore.app.servers import OWN_TOOLS, Servers, self_references
from toolscore.app.settings import Settings, SettingsHub
from toolscore.app.sharing import follow_others
from toolscore.app.summed import Summed
from toolscore.app.switches import ToolSwitches
from toolscore.app.worker import Worker
from toolscore.calls.admit import Circuits, Places
from toolscore.calls.cache import ResultCache
from toolscore.calls.call import CallPipeline
from toolscore.calls.code import CodeMode
from toolscore.calls.code_tools import CodeTools
from toolscore.calls.lookup import KeptResults
from toolscore.calls.model import Call
from toolscore.calls.note import Notes
from toolscore.calls.reach import Reach
from toolscore.calls.relay import Relay
from toolscore.calls.replay import Replay
from toolscore.core.errors import Conflict, ServerNotFound
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import AVAILABLE, Principal, ServerState, UpstreamSpec
from toolscore.core.seal import KeyRing
from toolscore.discovery import (
    Analysis,
    CapabilityBroker,
    Installer,
    MCPSearchTool,
    Proof,
    ToolGapDetector,
    ToolSearch,
)
from toolscore.discovery.own_tools import OWN_SERVER, OwnTools
from toolscore.discovery.search.search import LEARNED, SEARCHED
from toolscore.embedding import LightEmbedder, embedder_for
from toolscore.history.events import EventLog
from toolscore.history.firewall import ErrorFirewall
from toolscore.history.journal import Journal
from toolscore.history.recording import Order
from toolscore.history.scores import Scores
from toolscore.replicas import Replicas, open_replicas
from toolscore.stores.database import Database, caught_up, open_database
from toolscore.stores.keys import open_ring
from toolscore.stores.redis import SharedStore, open_shared
from toolscore.stores.tail import Tail
from toolscore.telemetry.metrics import Metrics
from toolscore.telemetry.tracing import open_tracing
from toolscore.telemetry.watchdog import Watchdog
from toolscore.tools.checking import Judge
from toolscore.tools.features import KINDS, LIST_CHANGED, ChangeFeed, FeatureIndex
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.tools.pins import Pins
from toolscore.upstreams import Caller, Upstream, UpstreamPool
from toolscore.upstreams.figures import ServerFigures
from toolscore.upstreams.protocol import CAPABILITY_OF
from toolscore.upstreams.references import secret_of

__all__ = ["Gateway", "open_gateway"]

log = structlog.get_logger(__name__)

RECORDER = (sys.executable, "-m", "toolscore.history.recorder")


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The open rooms, for the doors.

    Attributes:
        identity: what the gateways of one database have in common.
        worker: which of several processes it is; `None`: it is one.
        started: when it was opened, by `time.monotonic()`.
    """

    settings: SettingsHub
    reload: Reload
    servers: Servers
    database: Database
    shared: SharedStore | None
    ring: KeyRing
    identity: str
    replicas: Replicas | None
    worker: Worker | None
    metrics: Metrics
    watchdog: Watchdog
    events: EventLog
    auth: Authenticator
    permissions: Permissions
    switches: ToolSwitches
    rates: RateLimits
    upstreams: UpstreamPool
    figures: ServerFigures
    library: UnifiedToolLibrary
    features: FeatureIndex
    changes: ChangeFeed
    pins: Pins
    scores: Scores
    journal: Journal
    firewall: ErrorFirewall
    cache: ResultCache
    circuits: Circuits
    notes: Notes
    summed: Summed
    relay: Relay
    calls: CallPipeline
    code: CodeMode
    replay: Replay
    search: ToolSearch
    gaps: ToolGapDetector
    catalog: MCPSearchTool
    installer: Installer
    broker: CapabilityBroker
    started: float

    def shows_server(self, principal: Principal, server_id: str) -> bool:
        """Whether a server exists for a principal: some tool of it does, or what it has beside tools."""
        sees = self.permissions.sees(principal)
        if sees is None:
            return True
        tools = self.library.of_server(server_id)
        if any(sees(tool) for tool in tools):
            return True
        if not self.permissions.sees_server(principal, server_id):
            return False
        off = self.permissions.off
        return all(tool.tool_id in off for tool in tools) or any(
            self.features.entries(server_id, kind) for kind in KINDS
        )

    def find_server(self, principal: Principal, server_id: str) -> Upstream:
        """A server that exists for a principal.

        Raises:
            ServerNotFound: with the ids of those that do.
        """
        upstream = self.upstreams.find(server_id)
        if upstream is None or not self.shows_server(principal, server_id):
            ids = (one.server_id for one in self.upstreams)
            known = ", ".join(sorted(name for name in ids if self.shows_server(principal, name))) or "none"
            raise ServerNotFound(f"no server {server_id!r:.160}", suggestion=f"servers: {known}")
        return upstream

    async def look_whether_stored_again(self) -> None:
        """What could not be stored, and waits no more, is over if the database takes a write (what was lost stays
        counted).

        Raises:
            StoreError: it does not.
        """
        rooms = (self.library, self.pins, self.scores, self.firewall, self.search)
        over = [room.writes for room in rooms if room.writes.error and room.writes.idle]
        if not (over or self.cache.store_error or self.events.store_error):
            return
        await self.database.check_writable()
        for writes in over:
            writes.error = None
        self.cache.store_error = self.events.store_error = None

    async def attach(self, server_id: str, spec: UpstreamSpec) -> None:
        """Add a server at run time; it is there again after a restart.

        Raises:
            Conflict, InvalidRequest, InvalidArguments.
        """
        if self.installer.holds(server_id):
            raise Conflict(f"server id {server_id!r} belongs to a server that was installed: choose another")
        await self.servers.attach(server_id, spec)

    async def detach(self, server_id: str) -> None:
        """Remove a server that was attached or installed at run time, with all that belongs to it.

        Raises:
            ServerNotFound; Conflict: it belongs to the configuration.
        """
        await caught_up(self.database, self.installer.read_again)
        own = {tool.tool_id for tool in self.library.of_server(server_id)}
        if server_id in self.servers.off:  # its tools are in no list
            own |= {tool_id for tool_id in self.permissions.off if self._was_of(tool_id, server_id)}
        if self.installer.holds(server_id):
            await self.installer.uninstall(server_id)
        else:
            await self.servers.detach(server_id)
        await self.switches.forget(own)

    def _was_of(self, tool_id: str, server_id: str) -> bool:
        """Whether a tool that is in no list is called as those of a server are, and as those of no other."""
        longer = self.upstreams.owner(tool_id)
        return tool_id.startswith(f"{server_id}__") and (longer is None or len(longer) <= len(server_id))

    async def close_calls(self, seconds: float) -> None:
        """Take on nothing more: give up what waits for clients, undo installs, let calls finish for so long."""
        self.changes.close()
        await self.installer.stop()
        if self.worker is not None:  # all of them end: nobody takes over what this one has
            began = time.monotonic()
            await self.calls.underway.close(seconds)
            self.worker.loads.gone(self.worker.number)
            await self.worker.loads.all_gone(seconds - (time.monotonic() - began))
            return
        hops = self.replicas.leave(seconds) if self.replicas is not None else asyncio.sleep(0)
        await asyncio.gather(hops, self.calls.underway.close(seconds))


@asynccontextmanager
async def open_gateway(
    loaded: Loaded,
    *,
    config_dir: Path | None = None,
    watch: bool = True,
    hold: bool = False,
    worker: Worker | None = None,
) -> AsyncIterator[Gateway]:
    """Open everything below the doors.

    Args:
        loaded: settings with the ports as bound.
        config_dir: where the settings were read; `None`: they are the embedded defaults.
        watch: reload when a file there changes.
        hold: start no server until `upstreams.opened` is set.
        worker: which of the processes it is that are this gateway together; `None`: it is one.

    Raises:
        StoreError: the database cannot be opened.
    """
    settings = loaded.settings
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        hub = SettingsHub(settings)
        metrics = Metrics()
        watchdog = await enter(Watchdog(metrics.stalled))
        loop = asyncio.get_running_loop()
        metrics.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        metrics.busiest.set_function(lambda: watchdog.busiest_seconds)

        # What survives, and what replicas share
        several = True if worker is not None else None
        database = await enter(open_database(settings.storage.url, migrate=settings.storage.migrate, shared=several))
        shared = await enter(open_shared(settings.storage.redis_url, worker.host if worker is not None else None))
        tail = await enter(Tail(database))
        identity = await database.identity()
        ring = await open_ring(secret_of(settings.storage.seal_keys), database, settings.storage.folder)
        largest = settings.limits.max_result_bytes + settings.limits.max_body_bytes
        replicas = await enter(open_replicas(shared, identity, ring, largest, one_address=worker is not None))

        def tell(kind: str, **members: Any) -> None:
            if replicas is not None:
                replicas.members.tell(kind, **members)

        def hear(kind: str, heard: Callable[[dict[str, Any]], None]) -> None:
            if replicas is not None:
                replicas.members.on(kind, heard)

        database.on_write = lambda: tell("written")
        hear("written", tail.told)

        # What happened
        events = await enter(EventLog(database, settings.events, on_event=metrics.event))
        scores = await enter(Scores(database, settings.scores))
        words = LightEmbedder()
        firewall = await enter(ErrorFirewall(database, words, settings.firewall))
        order = Order(
            database_url=settings.storage.url, log_level=settings.logging.level, log_format=settings.logging.format
        )
        recorder = worker.recorder if worker is not None else RECORDER
        journal = await enter(Journal(database, recorder, order, settings.journal, settings.storage.folder / "journal"))

        # Which tools there are
        changes = ChangeFeed()
        pins = await enter(Pins(database, settings.pins))

        def tool_changed(event: str, **data: Any) -> None:
            events.publish(event, **data)
            if event == "tool_updated" and "change" in data:
                scores.changed(data["tool_id"], data["change"])
            elif event == "tool_removed":
                metrics.tools_gone([data["tool_id"]])
            changes.tell(data["server_id"], LIST_CHANGED["tools"])

        library = await enter(
            UnifiedToolLibrary(database, pins, trusted=[EXECUTOR_ID, OWN_SERVER], publish=tool_changed,
                               max_name=settings.names.max_length)
        )  # fmt: skip
        metrics.tools.set_function(lambda: len(library))
        features = await enter(FeatureIndex(database, settings.names.max_length))

        # The ways to them
        def state_changed(server_id: str, state: ServerState, reason: str | None) -> None:
            was, now = library.state(server_id) in AVAILABLE, state in AVAILABLE
            library.set_state(server_id, state)
            metrics.server_up(server_id, now)
            if state == "up":
                events.publish("server_up", server_id=server_id)
            elif state == "idle":
                if replicas is None:  # else another gateway may have it up
                    events.publish("server_idle", server_id=server_id)
            elif state in ("down", "failed", "stopped"):
                events.publish("server_down", server_id=server_id, state=state, reason=reason)
            if state != "idle" or not was:
                changes.lists_changed(server_id)  # what they show as available is another

        def listed(server_id: str, kind: str, entries: list[dict[str, Any]]) -> None:
            if features.update(server_id, kind, entries):
                changes.tell(server_id, LIST_CHANGED[CAPABILITY_OF[kind]])

        cache = await enter(ResultCache(database, shared, settings.cache))

        def tools_came(server_id: str, spec: UpstreamSpec, tools: list[dict[str, Any]]) -> None:
            library.update(server_id, spec, tools)
            cache.expect(library.of_server(server_id))

        upstreams = await enter(
            UpstreamPool(
                on_tools=tools_came,
                before_tools=library.prepare,
                on_info=features.describe,
                on_list=listed,
                on_notification=changes.tell,
                on_state=state_changed,
                on_restart=metrics.server_restarted,
                has_tools=lambda server_id: bool(library.of_server(server_id)),
                rules=settings.servers,
                limits=settings.limits,
                own_ports=settings.core_services.own_ports,
                identity=identity,
                owners=replicas.owners if replicas is not None else None,
                hold=hold,
            )
        )
        figures = ServerFigures(upstreams, metrics.show_servers)

        # Who may call
        auth = Authenticator(database, settings.access, fetch=upstreams.fetch_json)
        permissions = Permissions(settings.policy)
        switches = await ToolSwitches(database, permissions, events, changes).load()
        rates = RateLimits(settings.rates, shared)

        # Finding tools
        embeddings = settings.embeddings
        embedder = embedder_for(embeddings, secret_of(embeddings.key))
        hidden = frozenset({OWN_SERVER})
        search = await enter(ToolSearch(library, scores, database, embedder, hidden, embeddings, tell=tell))
        for kind in (SEARCHED, LEARNED):
            hear(kind, search.hear)

        # One call
        tracing = stack.enter_context(open_tracing(settings.tracing.endpoint))
        relay = Relay(upstreams, settings.limits, tracing)
        circuits = Circuits(settings.breaker, metrics, events)
        places = Places(settings.servers)
        kept = KeptResults(cache, upstreams)
        notes = Notes(
            library, metrics=metrics, events=events, journal=journal, scores=scores, firewall=firewall,
            on_success=search.succeeded,
        )  # fmt: skip
        reach = Reach(upstreams, relay, places, circuits, settings.servers, notes.sending, library)
        calls = CallPipeline(
            library, upstreams, permissions=permissions, kept=kept, rates=rates, reach=reach, notes=notes,
            limits=settings.limits, judge=await enter(Judge()), tracing=tracing,
        )  # fmt: skip
        code = CodeMode(calls, relay, CodeTools(library, upstreams, permissions), rates, settings.code)

        # Servers that come and go
        def forget(server_id: str, for_good: bool) -> None:
            gone = [tool.tool_id for tool in library.of_server(server_id)]
            library.forget(server_id, for_good=for_good)
            features.forget(server_id, for_good=for_good)
            if for_good:
                scores.forget(gone)
                search.forget(gone)
                cache.invalidate(server_id=server_id)
            places.forget(server_id)
            circuits.forget(server_id)
            metrics.server_gone(server_id)

        servers = Servers(
            hub, database, upstreams, broken={**loaded.broken_servers, **self_references(settings)},
            forget=forget, forget_pins=pins.forget,
        )  # fmt: skip

        # Getting tools that are missing
        def gap_found(principal: str, analysis: Analysis) -> None:
            missing = [{"capability": one.capability, "keywords": one.keywords} for one in analysis.missing]
            events.publish("gap_detected", principal=principal, confidence=analysis.confidence, missing=missing)

        def proved(server_id: str, proof: Proof) -> None:
            tool = next((tool for tool in library.of_server(server_id) if tool.name == proof.tool), None)
            if tool is not None:
                scores.add(tool, "ok" if proof.ok else "tool_error", proof.duration_ms / 1000, proof.fits)

        gaps = ToolGapDetector(
            library, search, embedder, words, upstreams.http, on_gap=gap_found, rules=settings.discovery.judge
        )
        catalog = await enter(MCPSearchTool(database, embedder, upstreams.http, settings.discovery.catalog, embeddings))
        installer = await enter(
            Installer(
                settings.storage.folder / "servers", database, upstreams,
                attach=servers.attach, detach=servers.detach,
                tools_of=lambda server_id: [tool.tool_id for tool in library.of_server(server_id)],
                on_proved=proved, publish=events.publish, reserved={OWN_SERVER, EXECUTOR_ID},
                ours=[config_dir] if config_dir is not None else [],
                rules=settings.discovery.install, is_off=lambda server_id: server_id in servers.disabled,
            )
        )  # fmt: skip
        broker = CapabilityBroker(gaps, search, catalog, installer, library, publish=events.publish)

        async def call_as_agent(tool_id: str, arguments: dict[str, Any], who: Principal) -> dict[str, Any]:
            call = Call(tool_id, Raw(encode(arguments)), caller=Caller(who), request_id=uuid.uuid4().hex)
            result: dict[str, Any] = decode((await calls.call(call)).raw)
            return result

        own_tools = OwnTools(
            search, gaps, broker, sees=permissions.sees, call=call_as_agent, code=code.tools, run=code.run
        )
        upstreams.provide(OWN_TOOLS, own_tools)

        # Other settings while it runs
        def use(new: Settings) -> None:
            upstreams.use(new.servers, new.limits)
            calls.use(new.limits)
            relay.use(new.limits)
            reach.use(new.servers)
            places.use(new.servers)
            circuits.use(new.breaker)
            cache.use(new.cache)
            pins.use(new.pins)
            journal.use(new.journal)
            scores.use(new.scores)
            firewall.use(new.firewall)
            gaps.use(new.discovery.judge)
            catalog.use(new.discovery.catalog)
            installer.use(new.discovery.install)
            code.use(new.code)
            rates.use(new.rates)
            for server_id in features.servers() if permissions.use(new.policy) else ():
                changes.lists_changed(server_id)  # what a client sees may be other things

        def settings_changed(event: str, **data: Any) -> None:
            if worker is None or worker.number == 1:  # all workers read the same files
                events.publish(event, **data)

        reload = Reload(
            hub, servers, upstreams, settings_changed, use=use, config_dir=config_dir, problems=loaded.problems,
            keep=worker.keep_settings if worker is not None else None,
        )  # fmt: skip

        if replicas is not None:
            rules = settings.replicas
            socket = worker.hops if worker is not None and settings.storage.redis_url is None else None
            await replicas.begin(rules, secret_of(rules.advertise), upstreams, changes.listen, places.hold, socket)

        # A file with a mistake says nothing of what it does not name.
        await servers.start(() if loaded.problems else {*library.servers(), *features.servers()})
        for problem in loaded.problems:
            log.error("a setting was refused", problem=problem)
            settings_changed("settings_rejected", reason=problem)
        if watch and config_dir is not None:
            await enter(watch_files(config_dir, reload.reload, loaded.stamps))

        def figures_now() -> dict[str, float]:
            import psutil  # 1 MB, once somebody asks

            return {
                "calls_in_flight": notes.stats.in_flight,
                **{f"cache_{name}": hits for name, hits in cache.hits.items()},
                "cache_misses": cache.misses,
                "journal_written": journal.written,
                "journal_lost": journal.lost,
                "event_subscribers": len(events.notifier),
                "memory_bytes": psutil.Process().memory_info().rss,
            }

        async def rendered() -> bytes:
            await figures.refresh()
            return metrics.render()

        workers = replicas if worker is not None else None
        together = str(worker.folder) if worker is not None else ""
        summed = await enter(Summed(workers, rendered, notes.stats, figures_now, together))

        gateway = Gateway(
            settings=hub, reload=reload, servers=servers, database=database, shared=shared, metrics=metrics,
            events=events, auth=auth, permissions=permissions, switches=switches, rates=rates, upstreams=upstreams,
            figures=figures, library=library, features=features, changes=changes, pins=pins, scores=scores,
            journal=journal, firewall=firewall, cache=cache, circuits=circuits, notes=notes, relay=relay, calls=calls,
            code=code, replay=Replay(calls, library, permissions), search=search, gaps=gaps, catalog=catalog,
            installer=installer, broker=broker, watchdog=watchdog, started=time.monotonic(), ring=ring,
            identity=identity, replicas=replicas, summed=summed, worker=worker,
        )  # fmt: skip
        follow_others(gateway, tail)
        yield gateway
