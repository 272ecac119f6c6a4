"""The whole loop: a task, the gap, candidates, the install, the tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from toolscore.core.errors import ToolScoreError
from toolscore.discovery.catalog.catalog import Candidate, MCPSearchTool, doc_of
from toolscore.discovery.gaps.gaps import Analysis, Step, ToolGapDetector
from toolscore.discovery.install.installer import Installed, Installer, Plan, Wish
from toolscore.discovery.search.search import Found, ToolSearch
from toolscore.tools.library import Sees

__all__ = ["LIKELY", "Acquired", "CapabilityBroker", "Offer"]

CANDIDATES = 5
"""Looked at for each missing capability."""


Status = Literal["sufficient", "unsure", "installed", "needs_approval", "failed", "not_found"]

LIKELY = 0.5
"""A candidate that is less likely to do is shown, and neither installed nor recommended."""


class Offer(msgspec.Struct, frozen=True):
    """A candidate, and what stands between it and us.

    Attributes:
        confidence: how likely it would do, by what its catalog says of it.
        plan: what installing would do; `None` where it cannot be installed here, and `obstacle` says why.
        allowed: a rule lets it be installed without being approved.
    """

    candidate: Candidate
    confidence: float
    plan: Plan | None
    allowed: bool
    obstacle: str | None


class Acquired(msgspec.Struct, frozen=True):
    """What became of a request.

    Attributes:
        status: `sufficient`: the tools were there; `unsure`: maybe they are, look; `installed`: they are now;
            `needs_approval`: somebody must allow one of the offers; `failed`: those that are allowed could not be
            installed; `not_found`: no catalog has one that is likely to do.
        tools: for the task, the best first.
    """

    status: Status
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
        """The servers that may do, each with what stands in the way; those that can be installed first."""
        found: list[Offer] = []
        candidates = await self._catalog.search(query, limit=min(2 * limit, 100))
        likely = await self._detector.fits(query, [doc_of(one.entry) for one in candidates])
        for candidate, confidence in zip(candidates, likely, strict=True):
            sure = round(confidence, 3)
            try:
                plan = self._installer.plan(Wish(candidate.entry))
                obstacle = f"it needs {', '.join(plan.needs)}" if plan.needs else None
                found.append(Offer(candidate, sure, plan, plan.allowed_by is not None, obstacle))
            except ToolScoreError as exc:
                found.append(Offer(candidate, sure, None, False, exc.message))
        return sorted(found, key=lambda offer: offer.plan is None)[:limit]

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
        lacking = [step for step in analysis.steps if step.verdict != "sufficient"]
        if analysis.verdict == "gap" and not lacking:
            lacking = [_whole(task, analysis)]
        for step in lacking:
            on_progress("search", f"looking for a server: {' '.join(_keywords(step)) or step.text}")
            near = await self.offers(" ".join([step.text, *_keywords(step)])[:1000])
            offers += [offer for offer in near if offer.candidate not in [one.candidate for one in offers]]
            for offer in near if step.verdict == "gap" else []:
                if not offer.allowed or offer.obstacle is not None or offer.confidence < LIKELY:
                    continue
                try:
                    installed.append(await self._installer.install(Wish(offer.candidate.entry), on_progress))
                    break
                except ToolScoreError as exc:
                    failures.append(exc.message)
        tools = await self._search.search(task, principal=principal, sees=sees, limit=5)
        status: Status
        if not lacking or analysis.verdict == "sufficient":
            status = "sufficient"
        elif installed:
            status = "installed"
        elif failures:
            status = "failed"
        elif not any(step.verdict == "gap" for step in lacking):
            status = "unsure"
        elif any(offer.plan is not None and offer.confidence >= LIKELY for offer in offers):
            status = "needs_approval"
        else:
            status = "not_found"
        return Acquired(status, analysis, installed, tools, offers, failures)


def _whole(task: str, analysis: Analysis) -> Step:
    return Step(task, "gap", analysis.confidence, [], analysis.missing[0] if analysis.missing else None, "model")


def _keywords(step: Step) -> list[str]:
    return step.missing.keywords if step.missing is not None else []
