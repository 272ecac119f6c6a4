"""The figures of the workers of one gateway, as those of one: whoever is asked knows of all.

Each tells the others every second what was added; for `/metrics`, whose figures are many, the others are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from toolscore.calls.stats import CallStats
from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError
from toolscore.replicas import Replicas
from toolscore.telemetry.metrics import summed

__all__ = ["Summed"]

log = structlog.get_logger(__name__)

TELL_SECONDS = 1.0
ANSWER_SECONDS = 2.0
Figures = dict[str, float]


class _Nothing(msgspec.Struct):
    """The params of a request without any."""


class Summed:
    """Use as `async with Summed(…) as summed`.

    Args:
        replicas: the other workers; `None`: there are none.
        render: makes this worker's metrics, in Prometheus' text format.
        own: this worker's figures that are as they are now, by name.
    """

    def __init__(
        self,
        replicas: Replicas | None,
        render: Callable[[], Awaitable[bytes]],
        stats: CallStats,
        own: Callable[[], Figures],
    ) -> None:
        self._replicas = replicas
        self._render = render
        self._stats = stats
        self._own = own
        self._theirs: dict[str, Figures] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Summed:
        if self._replicas is not None:
            self._stats.note_more()
            self._replicas.members.on("figures", self._heard)
            self._replicas.hops.served["worker/metrics"] = (_Nothing, self._show)
            self._task = asyncio.create_task(self._tell())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def now(self) -> Figures:
        """The figures of all that are as they are now, each summed."""
        figures = dict(self._own())
        others = self._replicas.members.others if self._replicas is not None else {}
        self._theirs = {one: theirs for one, theirs in self._theirs.items() if one in others}
        for theirs in self._theirs.values():
            for name, value in theirs.items():
                figures[name] = figures.get(name, 0) + value
        return figures

    async def metrics(self) -> bytes:
        """The metrics of all in Prometheus' text format."""
        others = list(self._replicas.members.others) if self._replicas is not None else []
        found = await asyncio.gather(self._render(), *(self._metrics_of(one) for one in others))
        texts = [text for text in found if text is not None]
        return texts[0] if len(texts) == 1 else await asyncio.to_thread(summed, texts)

    async def _metrics_of(self, other: str) -> bytes | None:
        assert self._replicas is not None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                link = await self._replicas.hops.to(other)
                return msgspec.json.decode(await link.ask("worker/metrics", {}), type=str).encode()
        except (ConnectionLost, RemoteError, ToolScoreError, TimeoutError) as exc:
            log.warning("the metrics of another worker are missing", replica=other, error=str(exc))
            return None

    async def _show(self, *_: Any) -> str:
        return (await self._render()).decode()

    async def _tell(self) -> None:
        assert self._replicas is not None
        told: Figures = {}
        while True:
            await asyncio.sleep(TELL_SECONDS)
            figures, more = self._own(), self._stats.take_more()
            if self._replicas.members.others and (more or figures != told):
                self._replicas.members.tell("figures", now=figures, more=more)
                told = figures

    def _heard(self, told: dict[str, Any]) -> None:
        self._theirs[str(told["from"])] = {str(name): float(value) for name, value in told["now"].items()}
        self._stats.add_more(told["more"])
