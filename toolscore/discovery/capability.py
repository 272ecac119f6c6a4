"""Getting what a task lacks: from the gap to candidates, to an install, to the tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from toolscore.core.clock import timestamp
from toolscore.core.errors import ToolNotFound, ToolScoreError
from toolscore.core.models import Sees
from toolscore.discovery.catalog.catalog import Candidate, MCPSearchTool, doc_of_entry
from toolscore.discovery.gaps.detector import Analysis, Step, ToolGapDetector
from toolscore.discovery.install.installer import Installed, Installer
from toolscore.discovery.install.plan import Plan
from toolscore.discovery.install.prove import Tell
from toolscore.discovery.install.wish import Wish
from toolscore.discovery.search.search import Found, ToolSearch
from toolscore.discovery.search.vectors import digest
from toolscore.tools.library import UnifiedToolLibrary

__all__ = ["LIKELY", "Acquired", "CapabilityBroker", "Offer", "Waiting", "as_seen"]

CANDIDATES = 5
"""Servers considered for each missing capability."""
SHOWN_TOOLS = 5
MAX_WAITING = 100
MAX_TASK = 500

Status = Literal["sufficient", "unsure", "installed", "needs_approval", "failed", "not_found"]

LIKELY = 0.5
"""A candidate with a smaller confidence is shown, but neither installed nor recommended."""


class Offer(msgspec.Struct, frozen=True):
    """A candidate, and what is needed to install it.

    Attributes:
        confidence: how likely it can do the task, by its description in the catalog.
        plan: what installing would do; `None`: it cannot be installed here.
        allowed: whether a rule allows it without approval.
        obstacle: why it cannot be installed, or what must be given for it; `None`: nothing is in the way.
    """

    candidate: Candidate
    confidence: float
    plan: Plan | None
    allowed: bool
    obstacle: str | None


class Acquired(msgspec.Struct, frozen=True):
    """The outcome of a request for a capability.

    Attributes:
        status: `sufficient`: our tools can do the task already; `unsure`: perhaps they can; `installed`: they can
            now; `needs_approval`: somebody must approve one of the offers; `failed`: the allowed offers could not be
            installed; `not_found`: no catalog has a server that is likely to do it.
        tools: for the task, the best first.
        failures: why installs failed.
    """

    status: Status
    analysis: Analysis
    installed: list[Installed]
    tools: list[Found]
    offers: list[Offer]
    failures: list[str]


class Waiting(msgspec.Struct, frozen=True):
    """A task that somebody wanted done and that waits for an install to be approved.

    Attributes:
        servers: names in the catalog of those that may do it, the likeliest first.
    """

    approval_id: str
    task: str
    principal: str
    at: str
    servers: list[str]


class CapabilityBroker:
    """Gets what a task lacks, as far as the operator's rules allow it.

    Args:
        publish: tells an event of a type, with its data.

    Attributes:
        waiting: what waits for somebody's approval, the oldest first, by its id.
    """

    def __init__(
        self,
        detector: ToolGapDetector,
        search: ToolSearch,
        catalog: MCPSearchTool,
        installer: Installer,
        library: UnifiedToolLibrary,
        publish: Callable[..., object] = lambda kind, **data: None,
    ) -> None:
        self.waiting: dict[str, Waiting] = {}
        self._publish = publish
        self._detector = detector
        self._search = search
        self._catalog = catalog
        self._installer = installer
        self._library = library

    async def offers(self, query: str, limit: int = CANDIDATES) -> list[Offer]:
        """Find servers that may do a task, each with its plan or what prevents one.

        Returns:
            At most `limit`: first those that can be installed, the best first.

        Raises:
            InvalidArguments: no query, or a limit out of bounds.
        """
        found: list[Offer] = []
        candidates = await self._catalog.search(query, limit=min(2 * limit, 100))
        likely = await self._detector.fits(query, [doc_of_entry(one.entry) for one in candidates])
        for candidate, confidence in zip(candidates, likely, strict=True):
            sure = round(confidence, 3)
            try:
                _, plan = await self._installer.plan(Wish(candidate.entry))
                found.append(Offer(candidate, sure, plan, plan.allowed_by is not None, _obstacle(plan)))
            except ToolScoreError as exc:
                found.append(Offer(candidate, sure, None, False, exc.message))
        return sorted(found, key=lambda offer: offer.plan is None or offer.plan.obstacle is not None)[:limit]

    async def request(
        self, task: str, *, context: str = "", principal: str, sees: Sees | None = None,
        on_progress: Tell = lambda step, message: None,
    ) -> Acquired:  # fmt: skip
        """Get tools for a task: find the gap, find servers, install the first that is allowed and likely to do it.

        Args:
            context: what else matters.
            sees: which tools exist for the caller; `None`: all.
            on_progress: is told each step, in words.

        Raises:
            InvalidArguments: no task. UpstreamUnavailable: texts cannot be embedded now.
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
        tools = await self._search.search(task, principal=principal, sees=sees, limit=SHOWN_TOOLS)
        if analysis.verdict == "sufficient":
            lacking = []
        status = _status(lacking, installed, offers, failures)
        if status == "needs_approval":
            self._await_approval(task, principal, offers)
        shown = [as_seen(one, self._library, sees) for one in installed]  # who had it installed may not see all of it
        return Acquired(status, analysis, shown, tools, offers, failures)

    def waits(self) -> list[Waiting]:
        """What waits for somebody's approval, the oldest first; not what was installed since."""
        there = {one.name for one in self._installer}
        self.waiting = {key: one for key, one in self.waiting.items() if there.isdisjoint(one.servers)}
        return list(self.waiting.values())

    def dismiss(self, approval_id: str) -> None:
        """Approve nothing for a task.

        Raises:
            ToolNotFound: nothing with this id waits.
        """
        if self.waiting.pop(approval_id, None) is None:
            raise ToolNotFound(f"nothing waits for approval under {approval_id!r:.40}")
        self._publish("approval_ended", approval_id=approval_id)

    def _await_approval(self, task: str, principal: str, offers: list[Offer]) -> None:
        servers = [one.candidate.entry.name for one in offers if _may_do(one)]
        key = digest(principal, task, *servers)[:12]
        if key in self.waiting:
            return
        while len(self.waiting) >= MAX_WAITING:
            del self.waiting[next(iter(self.waiting))]
        self.waiting[key] = Waiting(key, task[:MAX_TASK], principal, timestamp(), servers[:CANDIDATES])
        self._publish("approval_needed", approval_id=key, principal=principal, task=task[:MAX_TASK], servers=servers)


def as_seen(installed: Installed, library: UnifiedToolLibrary, sees: Sees | None) -> Installed:
    """What was installed, as far as somebody sees it; what a trial call answered is for who sees all of its tools."""
    tools = [name for name in installed.tools if sees is None or library.find(name, sees) is not None]
    proof = installed.proof if len(tools) == len(installed.tools) else None
    return msgspec.structs.replace(installed, tools=tools, proof=proof)


def _obstacle(plan: Plan) -> str | None:
    """What is in the way of an install without more being given."""
    needs = [*plan.needs, *plan.needs_arguments, *(["a folder to work on"] if plan.needs_folder else [])]
    return plan.obstacle or (f"it needs {', '.join(needs)}" if needs else None)


def _status(lacking: list[Step], installed: list[Installed], offers: list[Offer], failures: list[str]) -> Status:
    if not lacking:
        return "sufficient"
    if installed:
        return "installed"
    if failures:
        return "failed"
    if not any(step.verdict == "gap" for step in lacking):
        return "unsure"
    return "needs_approval" if any(map(_may_do, offers)) else "not_found"


def _may_do(offer: Offer) -> bool:
    """Whether somebody could approve it, and it would help."""
    return offer.plan is not None and offer.plan.obstacle is None and offer.confidence >= LIKELY


def _whole(task: str, analysis: Analysis) -> Step:
    return Step(task, "gap", analysis.confidence, [], analysis.missing[0] if analysis.missing else None, "model",
                analysis.steps[0].reason, [])  # fmt: skip


def _keywords(step: Step) -> list[str]:
    return step.missing.keywords if step.missing is not None else []
