"""The gateway's servers: which the settings ask for, and attaching and detaching others while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import structlog

from toolscore.app.executor import EXECUTOR_ID, executor_spec
from toolscore.app.settings import Settings, SettingsHub
from toolscore.core.clock import timestamp
from toolscore.core.errors import Conflict, InvalidArguments, InvalidRequest, Overloaded
from toolscore.core.hosts import is_loopback
from toolscore.core.models import UpstreamSpec
from toolscore.core.names import MAX_SERVER_ID, is_server_id
from toolscore.discovery.own_tools import OWN_SERVER
from toolscore.stores.database import Database, TakenError, caught_up, or_overloaded
from toolscore.stores.errors import StoreError
from toolscore.upstreams import UpstreamPool
from toolscore.upstreams.process.spawn import CommandNotFound, child_environment, resolve_command
from toolscore.upstreams.protocol import OURSELVES

__all__ = ["OWN_TOOLS", "Servers", "configured_servers", "self_references"]

log = structlog.get_logger(__name__)

OWN_TOOLS = "toolscore.discovery.own_tools:OwnTools"
OWN_TOOLS_TIMEOUT_SECONDS = 1200.0
"""An install may take its time."""
OWN_TOOLS_CONCURRENT = 1000


class Servers:
    """The servers beside those of the configuration: attached at run time, and there again after a restart.

    Args:
        forget: `(server_id, for_good)`: drops what is known of a server, before its id is free. One that only left the
            configuration may come back: its history is kept.
        forget_pins: drops what its tools were held to: whoever comes under its name is another.
    """

    def __init__(
        self,
        settings: SettingsHub,
        database: Database,
        upstreams: UpstreamPool,
        *,
        broken: Mapping[str, str],
        forget: Callable[[str, bool], None],
        forget_pins: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._upstreams = upstreams
        self._forget = forget
        self._forget_pins = forget_pins
        self.broken = dict(broken)
        """Server id → why its entry in mcp_servers.json was refused."""
        self.off: dict[str, UpstreamSpec] = {}
        """Servers that were disabled at run time."""
        self._staying: dict[str, UpstreamSpec] | None = None
        self._attached: dict[str, UpstreamSpec] = {}
        self._writing = asyncio.Lock()
        """Held while the database and what we know of it change: what is read meanwhile would be older."""

    @property
    def disabled(self) -> dict[str, UpstreamSpec]:
        """The servers that were disabled, and the entries of the configuration that say so, unless another server has
        their id.
        """
        by_configuration = {
            server_id: spec
            for server_id, spec in self._settings.current.upstreams.items()
            if spec.disabled and self._upstreams.find(server_id) is None
        }
        return by_configuration | self.off

    def refuse(self, broken: Mapping[str, str]) -> None:
        """Note which entries of the configuration are refused now, and why."""
        self.broken = dict(broken)

    async def start(self, known: Iterable[str] = ()) -> None:
        """Start the servers of the configuration and those that were attached; others are not listed.

        Args:
            known: ids of servers that are remembered from before.
        """
        self._attached = await self._read_attached()
        servers = self._attached | configured_servers(self._settings.current)
        off = await self._database.load_switched_off()
        self.off = {server_id: spec for server_id, spec in servers.items() if server_id in off}
        for server_id in set(known) - (servers.keys() - self.off.keys()) - self.broken.keys():
            self._forget(server_id, False)
        for server_id, spec in servers.items():
            self.add(server_id, spec)

    async def _read_attached(self) -> dict[str, UpstreamSpec]:
        rows = await self._database.load_servers()
        return {row["server_id"]: UpstreamSpec.model_validate_json(row["spec"]) for row in rows}

    async def read_again(self) -> None:
        """Take what another gateway on the same database attached, detached, disabled and enabled.

        Raises:
            StoreError.
        """
        async with self._writing:
            attached, off = await self._read_attached(), await self._database.load_switched_off()
            configured = self._staying if self._staying is not None else configured_servers(self._settings.current)
            before, self._attached = self._attached, attached
            there = {key: spec for key, spec in (attached | configured).items() if key not in self.broken}
            gone = {key for key, spec in before.items() if key not in configured and attached.get(key) != spec}
            gone |= (off & there.keys()) - self.off.keys()
            self.off = {server_id: spec for server_id, spec in there.items() if server_id in off}
        for server_id in gone:
            await self.drop(server_id, for_good=False)  # what was kept of one that was detached is gone already
        for server_id, spec in there.items():
            if server_id not in self.off and self._upstreams.find(server_id) is None:
                self._upstreams.add(server_id, spec)

    @contextmanager
    def changing(self, staying: dict[str, UpstreamSpec]) -> Iterator[None]:
        """While inside, `read_again` knows of these servers of the configuration alone: whoever changes that sees to
        all others.
        """
        self._staying = staying
        try:
            yield
        finally:
            self._staying = None

    async def come(self, servers: Mapping[str, UpstreamSpec]) -> dict[str, str]:
        """Start servers that the configuration has now and had not before; those that were disabled stay so.

        Returns:
            Those that are left out, and why.
        """
        left_out: dict[str, str] = {}
        off: set[str] = set()
        if servers:
            with contextlib.suppress(StoreError):  # as it was known before
                off = await self._database.load_switched_off()
        for server_id in sorted(servers):
            if server_id in off:
                self.off[server_id] = servers[server_id]
            try:
                self.add(server_id, servers[server_id])
            except Conflict as exc:  # attached while we waited for the others
                left_out[server_id] = exc.message
                log.error("a configured server is left out", server=server_id, reason=exc.message)
        return left_out

    def add(self, server_id: str, spec: UpstreamSpec) -> None:
        """Start a server, unless it was disabled.

        Raises:
            Conflict: the id is taken.
        """
        if server_id in self.off:
            self.off[server_id] = spec
        else:
            self._upstreams.add(server_id, spec)

    async def disable(self, server_id: str) -> None:
        """Stop a server, until it is enabled: its tools are not there. It stays so after a restart.

        Raises:
            ServerNotFound, Conflict, Overloaded.
        """
        await caught_up(self._database, self.read_again)
        if server_id in self.disabled:
            return
        spec = self._upstreams.get(server_id).spec
        async with self._writing:
            await self._keep(server_id, off=True)
            self.off[server_id] = spec
        await self.drop(server_id, for_good=False)

    async def enable(self, server_id: str) -> None:
        """Start a server that was disabled.

        Raises:
            ServerNotFound; Conflict: its entry in the configuration says so; Overloaded.
        """
        await caught_up(self._database, self.read_again)
        if server_id not in self.off:
            if server_id in self.disabled:
                raise Conflict(f"server {server_id!r} is disabled in mcp_servers.json: change it there")
            self._upstreams.get(server_id)
            return
        async with self._writing:
            await self._keep(server_id, off=False)
            spec = self.off.pop(server_id, None)  # another may have been quicker
        if spec is not None and self._upstreams.find(server_id) is None:
            self._upstreams.add(server_id, spec)

    async def _keep(self, server_id: str, *, off: bool) -> None:
        with or_overloaded(f"server {server_id!r} was left as it is, since the database refuses the change"):
            await self._database.save_switched_off(server_id, off)

    async def attach(self, server_id: str, spec: UpstreamSpec) -> None:
        """Add a server at run time; it is there again after a restart.

        Raises:
            Conflict, InvalidRequest, InvalidArguments.
        """
        if not is_server_id(server_id):
            raise InvalidRequest(
                f"a server id has 1 to {MAX_SERVER_ID} characters and no slash, found {server_id!r:.160}"
            )
        if _is_ourselves(spec, self._settings.current):
            raise InvalidRequest(OURSELVES)
        if spec.command:
            try:
                resolve_command(spec.command, child_environment(spec.command, spec.env), spec.cwd)
            except CommandNotFound as exc:
                raise InvalidArguments(f"server {server_id!r} cannot be started: {exc}") from exc
        if spec.inprocess:
            raise InvalidRequest("servers inside the gateway's process are a matter of its configuration files")
        await caught_up(self._database, self.read_again)
        if server_id in self.broken:
            raise Conflict(f"server id {server_id!r} stands in mcp_servers.json, with a mistake: mend it there")
        if server_id in self.off:
            raise Conflict(
                f"server id {server_id!r} belongs to a server that is disabled: enable it, or detach it first"
            )
        self._upstreams.add(server_id, spec)
        try:
            async with self._writing:
                await self._database.save_server(server_id, spec.model_dump_json(exclude_defaults=True), timestamp())
                self._attached[server_id] = spec
        except TakenError:
            await self.drop(server_id, for_good=False)
            with contextlib.suppress(StoreError):
                await self.read_again()  # the other one, which our own was in the way of
            raise Conflict(
                f"server id {server_id!r} was just given to another server, by another gateway: choose another"
            ) from None
        except StoreError as exc:
            await self.drop(server_id, for_good=True)
            raise Overloaded(
                f"server {server_id!r} was not attached, since the database refuses it, and it would be gone after a "
                f"restart: {exc}",
                retry_after_seconds=1,
            ) from exc

    async def detach(self, server_id: str) -> None:
        """Remove a server that was attached at run time, with all that is known of it.

        Raises:
            ServerNotFound; Conflict: it belongs to the configuration.
        """
        await caught_up(self._database, self.read_again)
        if server_id not in self.off:
            self._upstreams.get(server_id)
        if server_id in configured_servers(self._settings.current):
            raise Conflict(f"server {server_id!r} belongs to the configuration: remove it from mcp_servers.json")
        refused = "was not detached, since the database refuses it, and it would be there again after a restart"
        with or_overloaded(f"server {server_id!r} {refused}"):
            async with self._writing:
                await self._database.delete_server(server_id)
                self._attached.pop(server_id, None)
                self.off.pop(server_id, None)
        await self.drop(server_id, for_good=True)
        self._forget_pins(server_id)

    async def drop(self, server_id: str, *, for_good: bool) -> None:
        """Stop a server, and forget what is known of it, but for its pins; unless it may come back."""
        await self._upstreams.remove(server_id, lambda: self._forget(server_id, for_good))


def configured_servers(settings: Settings) -> dict[str, UpstreamSpec]:
    """The servers that the settings ask for, our own Python executor and the gateway's own tools among them."""
    servers = {
        server_id: spec
        for server_id, spec in settings.upstreams.items()
        if not spec.disabled and not _is_ourselves(spec, settings)
    }
    servers.setdefault(EXECUTOR_ID, _executor(settings))
    if settings.discovery.mcp_tools and OWN_SERVER in servers:
        log.warning("the gateway's own tools give way to a configured server of their name", server=OWN_SERVER)
    elif settings.discovery.mcp_tools:
        servers[OWN_SERVER] = UpstreamSpec(
            inprocess=OWN_TOOLS,
            identify_callers=True,
            call_timeout_seconds=OWN_TOOLS_TIMEOUT_SECONDS,
            max_concurrent=OWN_TOOLS_CONCURRENT,
            description="finding tools, and getting those that are missing",
        )
    return servers


def self_references(settings: Settings) -> dict[str, str]:
    """The entries that point at this gateway, as in a file shared with the gateway's own clients; with why they are
    refused.
    """
    return {server_id: OURSELVES for server_id, spec in settings.upstreams.items() if _is_ourselves(spec, settings)}


def _is_ourselves(spec: UpstreamSpec, settings: Settings) -> bool:
    try:
        url = urlsplit(spec.url or "")
        return is_loopback(url.hostname or "") and url.port == settings.core_services.toolscore_http.port
    except ValueError:  # a reference stands where the port should be
        return False


def _executor(settings: Settings) -> UpstreamSpec:
    router, service = settings.core_services.toolscore_mcp, settings.mcp_servers.python_executor
    return executor_spec(
        settings.python_executor,
        data_dir=settings.storage.folder,
        inside=settings.use_inprocess_python_executor,
        starts=service.auto_start,
        router=router.local_url("/register"),
        http=f"{service.host}:{service.port}" if service.port is not None else None,
        secret=service.secret,
    )
