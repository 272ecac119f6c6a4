"""The resources of this gateway's servers that other gateways watch for their clients."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from toolscore.core.tasks import TaskSet
from toolscore.replicas.hop import Link
from toolscore.upstreams import Caller, Upstream, UpstreamPool
from toolscore.upstreams.caller import OTHER_GATEWAY

__all__ = ["Watches"]


class _Watched(NamedTuple):
    """`client`: whose own session tells; empty: one that all share."""

    server_id: str
    uri: str
    client: str = ""


class Watches:
    """What is watched over each link. A gateway counts its own clients: for it, a resource of a shared session is
    watched once.
    """

    def __init__(self, upstreams: UpstreamPool) -> None:
        self._upstreams = upstreams
        self._watched: dict[Link, dict[_Watched, object | None]] = defaultdict(dict)
        """And what `Upstream.watch` returned."""
        self._tasks = TaskSet()

    async def add(self, link: Link, upstream: Upstream, uri: str, caller: Caller, client: str) -> None:
        """Watch a resource for a client of another gateway. Raises as `Upstream.watch`."""
        counted = await upstream.watch(uri, caller)
        one = _Watched(upstream.server_id, uri, client if counted is None else "")
        again = counted is not None and self._watched[link].get(one) is counted
        if not link.ended.done() and not again:
            self._watched[link][one] = counted
            return
        if link.ended.done():
            self._watched.pop(link, None)
        await upstream.unwatch(uri, caller, counted)

    async def remove(self, link: Link, upstream: Upstream, uri: str, caller: Caller, client: str) -> None:
        """That client, or the last of those who share a session, watches it no more."""
        for one in (_Watched(upstream.server_id, uri, client), _Watched(upstream.server_id, uri)):
            if one in self._watched[link]:
                await upstream.unwatch(uri, caller, self._watched[link].pop(one))
                return

    def forget(self, link: Link, server_id: str | None = None) -> None:
        """Another gateway uses a server (`None`: all of them) no more over this link."""
        watched = self._watched.pop(link, {})
        kept = {one: counted for one, counted in watched.items() if server_id not in (None, one.server_id)}
        if kept:
            self._watched[link] = kept
        for one, counted in watched.items():
            upstream = self._upstreams.find(one.server_id)
            if one not in kept and upstream is not None and counted is not None:  # a client's own session ends with it
                self._tasks.start(upstream.unwatch(one.uri, OTHER_GATEWAY, counted))
