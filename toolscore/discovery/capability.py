"""The whole loop: a task, the gap, candidates, the install, the tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from toolscore.discovery.catalog import Candidate, MCPSearchTool
from toolscore.discovery.gaps import Analysis, Step, ToolGapDetector
from toolscore.discovery.installer import Installed, Installer, Plan, Wish
from toolscore.discovery.search import Found, ToolSearch
from toolscore.errors import ToolScoreError
from toolscore.library import Sees

__all__ = ["Acquired", "CapabilityBroker", "Offer"]

CANDIDATES = 5
"""Looked at for each missing capability."""


class Offer(msgspec.Struct, frozen=True):
    """A candidate, and what stands between it and us.

    Attributes:
        plan: what installing would do; `None` where it cannot be installed here, and `obstacle` says why.
        allowed: a rule lets it be installed without being approved.
    """

    candidate: Candidate
    plan: Plan | None
    allowed: bool
    obstacle: str | None


class Acquired(msgspec.Struct, frozen=True):
    """What became of a request.

    Attributes:
        status: `sufficient`: the tools were there; `installed`: they are now; `needs_approval`: somebody must allow
            one of the offers; `failed`: those that are allowed could not be installed; `not_found`: no catalog has one.
        tools: for the task, the best first.
    """

    status: Literal["sufficient", "installed", "needs_approval", "failed", "not_found"]
    analysis: Analysis
    installed: list[Installed]
    tools: list[Found]
    offers: list[Offer]
    failures: list[str]


class CapabilityBroker:
    """Gets what a task lacks, as far as the policy lets it."""

    def __init__(
        self, detector: ToolGapDetector, search: ToolSearch, catalog: MCPSearchTool, installer: Installer
    ) -> None:
        self._detector = detector
        self._search = search
        self._catalog = catalog
        self._installer = installer

    async def offers(self, query: str, limit: int = CANDIDATES) -> list[Offer]:
        """The servers that may do, each with what stands in the way."""
        found: list[Offer] = []
        for candidate in await self._catalog.search(query, limit=limit):
            try:
                plan = self._installer.plan(Wish(candidate.entry))
                obstacle = f"it needs {', '.join(plan.needs)}" if plan.needs else None
                found.append(Offer(candidate, plan, plan.allowed_by is not None, obstacle))
            except ToolScoreError as exc:
                found.append(Offer(candidate, None, False, exc.message))
        return found

    async def request(
        self, task: str, *, context: str = "", principal: str, sees: Sees | None = None,
        on_progress: Callable[[str, str], None] = lambda step, message: None,
    ) -> Acquired:  # fmt: skip
        """See to it that there are tools for a task.

        Raises:
            InvalidArguments: no task. UpstreamUnavailable: no embeddings.
        """
        on_progress("analyze", "looking for tools that are there")
        analysis = await self._detector.analyze(task, context=context, principal=principal, sees=sees)
        installed: list[Installed] = []
        offers: list[Offer] = []
        failures: list[str] = []
        lacking = [step for step in analysis.steps if step.verdict == "gap"]
        if analysis.verdict == "gap" and not lacking:
            lacking = [_whole(task, analysis)]
        for step in lacking:
            on_progress("search", f"looking for a server: {' '.join(_keywords(step)) or step.text}")
            near = await self.offers(" ".join([step.text, *_keywords(step)])[:1000])
            offers += [offer for offer in near if offer.candidate not in [one.candidate for one in offers]]
            for offer in near:
                if not offer.allowed or offer.obstacle is not None:
                    continue
                try:
                    installed.append(await self._installer.install(Wish(offer.candidate.entry), on_progress))
                    break
                except ToolScoreError as exc:
                    failures.append(exc.message)
        tools = await self._search.search(task, principal=principal, sees=sees, limit=5)
        status: Literal["sufficient", "installed", "needs_approval", "failed", "not_found"]
        if not lacking:
            status = "sufficient"
        elif installed:
            status = "installed"
        elif failures:
            status = "failed"
        elif any(offer.plan is not None for offer in offers):
            status = "needs_approval"
        else:
            status = "not_found"
        return Acquired(status, analysis, installed, tools, offers, failures)


def _whole(task: str, analysis: Analysis) -> Step:
    return Step(task, "gap", analysis.confidence, [], analysis.missing[0] if analysis.missing else None, "model")


def _keywords(step: Step) -> list[str]:
    return step.missing.keywords if step.missing is not None else []
