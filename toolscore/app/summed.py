"""The figures of the workers of one gateway, as those of one: whoever is asked knows of all.

Each tells the others every second what was added; for `/metrics`, whose figures are many, the others are asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from toolscore.calls.stats import CallStats, More
from toolscore.core.errors import Overloaded, ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError
from toolscore.replicas import Replicas
from toolscore.telemetry.metrics import summed

__all__ = ["Summed"]

TELL_SECONDS = 1.0
AGAIN_SECONDS = 5.0
"""For those that came meanwhile."""
ANSWER_SECONDS = 2.0
GONE_SECONDS = 5.0
"""After so long a worker that nobody sees is gone."""
Figures = dict[str, float]


class _Nothing(msgspec.Struct):
    """The params of a request without any."""


class Summed:
    """Use as `async with Summed(…) as summed`.

    Args:
        replicas: the other workers; `None`: there are none.
        render: makes this worker's metrics, in Prometheus' text format.
        own: this worker's figures that are as they are now, by name.
        gateway: what the workers of this gateway have in common, and those of others have not.
    """

    def __init__(
        self,
        replicas: Replicas | None,
        render: Callable[[], Awaitable[bytes]],
        stats: CallStats,
        own: Callable[[], Figures],
        gateway: str,
    ) -> None:
        self._replicas = replicas
        self._render = render
        self._stats = stats
        self._own = own
        self._gateway = gateway
        self._theirs: dict[str, Figures] = {}
        self._seen: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
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
        for theirs in self._there().values():
            for name, value in theirs.items():
                figures[name] = figures.get(name, 0) + value
        return figures

    def _there(self) -> dict[str, Figures]:
        """The workers of this gateway that are there, and what each told last. One that is not seen for a moment counts
        as one that is there: it may be their meeting place that is gone, and a sum without it would be too small.
        """
        others = self._replicas.members.others if self._replicas is not None else {}
        now = time.monotonic()
        self._seen.update(dict.fromkeys(others, now))
        self._seen = {one: at for one, at in self._seen.items() if at > now - GONE_SECONDS}
        self._theirs = {one: theirs for one, theirs in self._theirs.items() if one in self._seen}
        self._numbers = {one: number for one, number in self._numbers.items() if one in self._seen}
        return self._theirs

    async def metrics(self) -> bytes:
        """The metrics of all in Prometheus' text format.

        Raises:
            Overloaded: those of a worker are missing: a sum without them would look as if all began anew.
        """
        texts = await asyncio.gather(self._render(), *(self._metrics_of(one) for one in self._there()))
        return texts[0] if len(texts) == 1 else await asyncio.to_thread(summed, texts)

    async def _metrics_of(self, other: str) -> bytes:
        assert self._replicas is not None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                link = await self._replicas.hops.to(other)
                return msgspec.json.decode(await link.ask("worker/metrics", {}), type=str).encode()
        except (ConnectionLost, RemoteError, ToolScoreError, TimeoutError) as exc:
            raise Overloaded(f"the metrics of another worker are missing: {exc}", retry_after_seconds=1) from exc

    async def _show(self, *_: Any) -> str:
        return (await self._render()).decode()

    async def _tell(self) -> None:
        assert self._replicas is not None
        told: Figures = {}
        told_at = 0.0
        number, untold = 0, False
        more: list[More] = []
        while True:
            await asyncio.sleep(TELL_SECONDS)
            if not self._replicas.members.others:
                continue  # whoever comes is told all of it
            figures = self._own()
            if not untold:  # else the same is told again, under its number: it may have arrived
                more, number = self._stats.take_more(), number + 1
            if more or figures != told or time.monotonic() > told_at + AGAIN_SECONDS:
                untold = not await self._replicas.members.told(
                    "figures", gateway=self._gateway, now=figures, more=more, number=number
                )
                told, told_at = figures, time.monotonic()

    def _heard(self, told: dict[str, Any]) -> None:
        if told["gateway"] != self._gateway:
            return
        self._seen[str(told["from"])] = time.monotonic()
        self._theirs[str(told["from"])] = {str(name): float(value) for name, value in told["now"].items()}
        if self._numbers.get(str(told["from"])) != told["number"]:
            self._numbers[str(told["from"])] = told["number"]
            self._stats.add_more(told["more"])
