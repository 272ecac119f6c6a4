"""The figures that our own servers keep of themselves, asked for when somebody looks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode
from toolscore.upstreams.pool import UpstreamPool
from toolscore.upstreams.protocol import STATS_METHOD

__all__ = ["ServerFigures"]

REST_SECONDS = 0.5
ANSWER_SECONDS = 1.0


class ServerFigures:
    """Figures by server.

    Args:
        on_figures: gets those of servers that this gateway has itself, whenever they were asked for.

    Attributes:
        latest: server id → its figures (a JSON object), as it last gave them.
    """

    def __init__(
        self,
        upstreams: UpstreamPool,
        on_figures: Callable[[Mapping[str, dict[str, Any]]], None] = lambda figures: None,
    ) -> None:
        self._upstreams = upstreams
        self._on_figures = on_figures
        self._asked_at = 0.0
        self.latest: dict[str, dict[str, Any]] = {}

    async def refresh(self) -> None:
        """Ask the servers that keep figures for them, at most twice a second; one that is slow keeps its last."""
        if time.monotonic() - self._asked_at < REST_SECONDS:
            return
        self._asked_at = time.monotonic()
        keepers = {
            upstream.server_id: upstream.connections[0]
            for upstream in self._upstreams
            if upstream.spec.identify_callers  # ours: what others say would stand in our metrics unchecked
            and upstream.connections
            and STATS_METHOD in (upstream.connections[0].info.capabilities.get("experimental") or {})
        }
        figures = {server_id: self.latest.get(server_id, {}) for server_id in keepers}

        async def ask(server_id: str) -> None:
            with contextlib.suppress(RemoteError, ConnectionLost, ToolScoreError, TimeoutError, ValueError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    said = decode(await keepers[server_id].request(STATS_METHOD))
                if isinstance(said, dict):
                    figures[server_id] = said

        await asyncio.gather(*map(ask, keepers))
        self.latest = figures
        self._on_figures({one: said for one, said in figures.items() if not keepers[one].elsewhere})
