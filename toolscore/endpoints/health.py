"""Is it ready, and what of it is not well."""

from __future__ import annotations

import time
from typing import Any

from toolscore import __version__
from toolscore.app.compose import Gateway
from toolscore.app.executor import EXECUTOR_ID
from toolscore.core.errors import Overloaded
from toolscore.core.models import AVAILABLE, Principal, is_well
from toolscore.stores.errors import StoreError

__all__ = ["check_ready", "health"]


def check_ready(gateway: Gateway) -> None:
    """Whether calls should be sent to this gateway.

    Raises:
        Overloaded: it is to end: no more calls should be sent here, though they are taken for a while; or it has no
            Python executor and is set to need one.
    """
    if gateway.calls.underway.leaving:
        raise Overloaded("the gateway is about to end: call another", retry_after_seconds=5)
    executor = gateway.upstreams.find(EXECUTOR_ID)
    required = gateway.settings.current.mcp_servers.python_executor.required
    if required and (executor is None or executor.state not in AVAILABLE):
        raise Overloaded("no Python executor is connected yet", retry_after_seconds=1)


async def health(gateway: Gateway, principal: Principal) -> dict[str, Any]:
    """A check for each part. `healthy`, or `degraded`: calls work, but something needs a look."""
    checks: dict[str, dict[str, Any]] = {}
    try:
        await gateway.database.ping()
        checks["database"] = {"status": "healthy"}
        await gateway.look_whether_stored_again()
    except StoreError as exc:
        checks["database"] = {"status": "degraded", "reason": str(exc)}
    for name, error, lost in (
        ("events", gateway.events.store_error, gateway.events.unsaved),
        ("library", gateway.library.writes.error, gateway.library.writes.lost),
        ("pins", gateway.pins.writes.error, gateway.pins.writes.lost),
        ("journal", gateway.journal.store_error or gateway.journal.start_error, gateway.journal.lost),
        ("cache", gateway.cache.store_error, 0),
        ("scores", gateway.scores.writes.error, gateway.scores.writes.lost),
        ("firewall", gateway.firewall.writes.error, gateway.firewall.writes.lost),
        ("search", gateway.search.writes.error, gateway.search.writes.lost),
    ):
        checks[name] = {"status": "degraded", "reason": error} if error else {"status": "healthy"}
        if lost:
            checks[name]["unsaved"] = lost
    if gateway.shared is not None:
        checks["redis" if gateway.settings.current.storage.redis_url is not None else "workers"] = (
            {"status": "healthy"} if gateway.shared.up else {"status": "degraded", "reason": gateway.shared.error}
        )
    if gateway.reload.problems:
        checks["settings"] = {"status": "degraded", "reason": "; ".join(gateway.reload.problems)}
    else:
        checks["settings"] = {"status": "healthy"}
    await gateway.figures.refresh()
    servers: dict[str, Any] = {}
    for upstream in gateway.upstreams:
        if not gateway.shows_server(principal, upstream.server_id):
            continue
        well = is_well(upstream.state, upstream.last_error)
        servers[upstream.server_id] = {"status": "healthy" if well else "degraded", "state": upstream.state}
        if not well and upstream.last_error:
            servers[upstream.server_id]["reason"] = upstream.last_error
        stats = gateway.figures.latest.get(upstream.server_id, {})
        if "tier" in stats:
            servers[upstream.server_id]["sandbox"] = {
                name: stats[name]
                for name in ("engine", "tier", "slow_path", "slow_path_reason", "layers")
                if name in stats
            }
    for server_id, reason in gateway.servers.broken.items():
        if not gateway.shows_server(principal, server_id):
            continue
        servers[server_id] = {"status": "degraded", "state": "failed", "reason": reason}
    unwell = [name for name, check in {**checks, **servers}.items() if check["status"] != "healthy"]
    return {
        "status": "degraded" if unwell else "healthy",
        "unwell": unwell,
        "checks": {**checks, "servers": servers},
        "version": __version__,
        "uptime_seconds": round(time.monotonic() - gateway.started, 3),
    }
