"""Putting other settings in force while the gateway runs: all of them, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from toolscore.app.files import Loaded, load_settings
from toolscore.app.servers import Servers, configured_servers, self_references
from toolscore.app.settings import Settings, SettingsHub, differences, needs_restart
from toolscore.core.errors import UpstreamUnavailable
from toolscore.core.models import UpstreamSpec
from toolscore.upstreams import UpstreamPool

__all__ = ["Reload", "rejected", "why_not", "with_bound_ports"]

log = structlog.get_logger(__name__)

MAX_TOLD = 20
"""Mistakes in the settings that are told at once."""


class Reload:
    """Reads the settings again, and has every room obey them.

    Args:
        use: has the rooms obey other settings; servers are not its concern.
        keep: notes what is in force now, for a process that takes the place of one of this gateway's.
        problems: of the settings as they were read at the start.

    Attributes:
        config_dir: where they are read; `None`: the embedded defaults hold.
        problems: of the settings as they were read last; they are not in force then.
    """

    def __init__(
        self,
        settings: SettingsHub,
        servers: Servers,
        upstreams: UpstreamPool,
        publish: Callable[..., None],
        *,
        use: Callable[[Settings], None],
        keep: Callable[[Settings], None] | None = None,
        config_dir: Path | None,
        problems: list[str],
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._upstreams = upstreams
        self._publish = publish
        self._use = use
        self._keep = keep
        self.config_dir = config_dir
        self.problems = problems

    async def reload(self) -> bool:
        """Read the settings again and put them in force; at any problem the old stay. Returns whether they changed."""
        loaded = await asyncio.to_thread(load_settings, self.config_dir)
        try:
            changed, left_out = await self._apply(loaded)
        except _Rejected as exc:
            log.error("settings rejected", reason=str(exc))
            self._publish("settings_rejected", reason=str(exc))
            self.problems = [rejected(str(exc))]
            return False
        mended, self.problems = self.problems, []
        self._servers.refuse({**self_references(loaded.settings), **left_out})
        if mended and not changed:
            log.info("the settings are right again, and as those in force")
        if changed:
            log.info("settings applied", changed=changed)
            self._publish("settings_applied", changed=changed)
        return bool(changed)

    async def _apply(self, loaded: Loaded) -> tuple[list[str], dict[str, str]]:
        """Put new settings in force: servers that changed are swapped, those that did not are not touched.

        Returns:
            The dotted paths that changed; the servers that are left out, and why.

        Raises:
            _Rejected: nothing was changed.
        """
        old = self._settings.current
        new = with_bound_ports(loaded.settings, old)
        why = why_not(loaded.problems, old, new)
        if why is not None:
            raise _Rejected(why)
        before, after = configured_servers(old), configured_servers(new)
        with self._servers.changing({server_id: after[server_id] for server_id in before.keys() & after.keys()}):
            left_out = await self._swap_servers(before, after)
            self._use(new)
            changed = self._settings.swap(new)
        if self._keep is not None:
            await asyncio.to_thread(self._keep, new)
        return changed, left_out

    async def _swap_servers(
        self, before: Mapping[str, UpstreamSpec], after: Mapping[str, UpstreamSpec]
    ) -> dict[str, str]:
        """Returns the servers that are left out, and why."""
        for server_id in after.keys() - before.keys():
            if self._upstreams.find(server_id) is not None:
                raise _Rejected(
                    f"server id {server_id!r} is taken by a server that was added while the gateway ran: "
                    f"`toolscore servers remove {server_id}` first"
                )
        swapped: list[str] = []
        try:
            for server_id in sorted(before.keys() & after.keys()):
                if server_id in self._servers.off:
                    self._servers.off[server_id] = after[server_id]
                elif before[server_id] != after[server_id] and self._upstreams.find(server_id) is not None:
                    await self._upstreams.replace(server_id, after[server_id])
                    swapped.append(server_id)
                    if server_id in self._servers.off:  # disabled meanwhile
                        self._servers.off[server_id] = after[server_id]
        except UpstreamUnavailable as exc:
            stay = await self._put_back({server_id: before[server_id] for server_id in swapped})
            also = [f"{server_id!r} stays as in the new files, since as before it does not start" for server_id in stay]
            raise _Rejected("; and ".join([exc.message, *also])) from exc
        for server_id in sorted(before.keys() - after.keys()):
            self._servers.off.pop(server_id, None)
            await self._servers.drop(server_id, for_good=False)
        return await self._servers.come({key: after[key] for key in after.keys() - before.keys()})

    async def _put_back(self, servers: Mapping[str, UpstreamSpec]) -> list[str]:
        """Have servers run as before. Returns those that do not start so any more: they stay as they are."""
        stay = []
        for server_id, spec in servers.items():
            if server_id in self._servers.off:
                self._servers.off[server_id] = spec
            elif self._upstreams.find(server_id) is not None:
                try:
                    await self._upstreams.replace(server_id, spec)
                except UpstreamUnavailable:
                    stay.append(server_id)
        return stay


class _Rejected(Exception):
    """New settings cannot be put in force."""


def rejected(reason: str) -> str:
    """What is told of settings for as long as those before them hold."""
    return f"the files were changed and rejected: {reason}"


def why_not(problems: Sequence[str], now: Settings, new: Settings) -> str | None:
    """Why settings cannot be put in force in the place of others; `None`: they can.

    Args:
        problems: of the files that they were read from.
    """
    if problems:
        more = len(problems) - MAX_TOLD
        return "; ".join(problems[:MAX_TOLD]) + (f"; and {more} more" if more > 0 else "")
    frozen = sorted(path for path in differences(now, new) if needs_restart(path))
    return f"{', '.join(frozen)}: needs a restart; nothing was changed" if frozen else None


def with_bound_ports(new: Settings, running: Settings) -> Settings:
    """Settings whose port 0, which means any free port, is the port that was bound."""
    services = {}
    for name in ("toolscore_http", "toolscore_mcp"):
        service = getattr(new.core_services, name)
        if service.port == 0:
            service = service.model_copy(update={"port": getattr(running.core_services, name).port})
        services[name] = service
    return new.model_copy(update={"core_services": new.core_services.model_copy(update=services)})
