"""What a gateway has of the others it shares a database and a Redis with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from toolscore.core.errors import SettingsError
from toolscore.core.seal import KeyRing
from toolscore.replicas.hop import Hops
from toolscore.replicas.members import Members
from toolscore.replicas.owners import Owners
from toolscore.replicas.rules import ReplicaRules
from toolscore.replicas.serving import Listen, Place, Serving
from toolscore.stores.redis import SharedStore
from toolscore.upstreams import UpstreamPool

__all__ = ["Replicas", "open_replicas"]

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.02


class Replicas:
    """The others, and what this gateway is to them. Made by `open_replicas`."""

    def __init__(self, members: Members, ring: KeyRing, max_bytes: int, one_address: bool) -> None:
        self.members = members
        self.hops = Hops(members, ring, max_bytes)
        self.owners = Owners(members, self.hops, one_address)
        self._serving: Serving | None = None

    async def begin(
        self,
        rules: ReplicaRules,
        advertised: str | None,
        upstreams: UpstreamPool,
        listen: Listen,
        place: Place,
        socket: Path | None = None,
    ) -> None:
        """Serve the others, and say where.

        Args:
            advertised: the host at which the others reach this gateway, with references replaced.
            listen, place: as of `Serving`.
            socket: the Unix socket that is listened on instead, where all others are on this machine.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        self._serving = Serving(self.hops, self.owners, upstreams, listen, place)
        if socket is not None:
            await self.hops.listen(str(socket))
            await self.members.begin(str(socket))
            return
        try:
            port = await self.hops.listen(_address(rules.host, rules.port))
        except OSError as exc:
            where = f"{rules.host}:{rules.port} (replicas.host and replicas.port)"
            reason = f"other gateways cannot be listened for on {where}: {exc.strerror or exc}"
            raise SettingsError([reason]) from exc
        host = advertised or rules.host
        await self.members.begin(_address(host, port))
        log.info("other gateways may reach this one", replica=self.members.id, host=host, port=port,
                 others=len(self.members.others))  # fmt: skip

    async def leave(self, seconds: float) -> None:
        """Let others have what this gateway has, and finish what it was asked for; bounded."""
        await self.owners.leave()
        deadline = time.monotonic() + seconds
        while self._serving is not None and self._serving.busy and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@asynccontextmanager
async def open_replicas(
    shared: SharedStore | None, identity: str, ring: KeyRing, max_bytes: int, one_address: bool = False
) -> AsyncIterator[Replicas | None]:
    """The others, if there is a Redis to meet them in.

    Args:
        identity: what the gateways of one database have in common.
        max_bytes: of one message between gateways.
        one_address: as of `Owners`.
    """
    if shared is None:
        yield None
        return
    async with Members(shared, identity) as members:
        replicas = Replicas(members, ring, max_bytes, one_address)
        async with replicas.hops:
            yield replicas
