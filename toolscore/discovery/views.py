"""What discovery finds, as JSON objects: the same over REST, MCP and the events socket."""

from __future__ import annotations

from typing import Any

import msgspec

from toolscore.discovery.capability import LIKELY, Acquired, Offer
from toolscore.discovery.catalog.catalog import Candidate
from toolscore.discovery.catalog.sources import SourceState
from toolscore.discovery.gaps.detector import Analysis, Step
from toolscore.discovery.install.installer import Installed
from toolscore.discovery.search.search import Found

__all__ = ["acquired_fields", "analysis_fields", "found_fields", "installed_fields", "offer_fields", "source_fields"]


def found_fields(found: Found) -> dict[str, Any]:
    """Show a tool that fits, with everything that a call of it needs."""
    return {
        "tool_id": found.tool.tool_id,
        "description": found.tool.description,
        "input_schema": found.tool.input_schema,
        "relevance": found.relevance,
        "score": found.score,
        "rank": found.rank,
    }


def _step_fields(step: Step) -> dict[str, Any]:
    return {
        "step": step.text,
        "verdict": step.verdict,
        "confidence": step.confidence,
        "tools": [
            {"tool_id": one.tool.tool_id, "relevance": one.relevance, "score": one.score} for one in step.tools
        ],
        "missing": msgspec.to_builtins(step.missing),
        "judged_by": step.judged_by,
        "reason": step.reason,
        "needs": step.needs,
    }  # fmt: skip


def analysis_fields(analysis: Analysis) -> dict[str, Any]:
    """Show how well our tools cover a task."""
    return {
        "task_description": analysis.task,
        "verdict": analysis.verdict,
        "sufficient": analysis.verdict == "sufficient",
        "confidence": analysis.confidence,
        "steps": [_step_fields(step) for step in analysis.steps],
        "missing": msgspec.to_builtins(analysis.missing),
        "recommended_action": analysis.recommended_action,
        "judged_by": analysis.judged_by,
    }


def candidate_fields(candidate: Candidate) -> dict[str, Any]:
    """Show everything that is known of a server in a catalog."""
    entry = candidate.entry
    server, extra, official = entry.server, entry.extra, entry.official()
    return {
        "name": entry.name,
        "title": server.get("title"),
        "description": entry.description,
        "version": entry.version or None,
        "source": entry.source,
        "publisher": entry.publisher,
        "publisher_checked": entry.vouched,
        "packages": [
            {
                "registry": package.get("registryType"),
                "identifier": package.get("identifier"),
                "version": package.get("version"),
                "transport": (package.get("transport") or {}).get("type"),
            }
            for package in entry.packages
        ],
        "remotes": [{"type": remote.get("type"), "url": remote.get("url")} for remote in entry.remotes],
        "needs": entry.needs(),
        "tools": [tool["name"] for tool in entry.tools],
        "repository": (server.get("repository") or {}).get("url"),
        "licence": extra.get("license") or extra.get("licence"),
        "popularity": next((extra[key] for key in ("downloads", "stars", "popularity") if key in extra), None),
        "status": official.get("status"),
        "updated_at": official.get("updatedAt"),
        "relevance": candidate.relevance,
        "matched": candidate.matched,
        "nearest_tool": candidate.nearest_tool,
    }


def offer_fields(offer: Offer) -> dict[str, Any]:
    """Show a candidate, and what is needed to install it."""
    return {
        **candidate_fields(offer.candidate),
        "confidence": offer.confidence,
        "allowed": offer.allowed,
        "obstacle": offer.obstacle,
        "plan": msgspec.to_builtins(offer.plan),
        "install_with": f"toolscore install {offer.candidate.entry.name}" if offer.plan is not None else None,
    }


def installed_fields(installed: Installed) -> dict[str, Any]:
    """Show a server that was installed."""
    fields: dict[str, Any] = msgspec.to_builtins(installed)
    return fields


def source_fields(state: SourceState) -> dict[str, Any]:
    """Show the state of a catalog."""
    return {
        "name": state.name,
        "kind": state.kind,
        "servers": state.entries,
        "age_seconds": state.age_seconds,
        "error": state.error,
    }


def acquired_fields(acquired: Acquired) -> dict[str, Any]:
    """Show the outcome of a request for a capability, and what to do next."""
    offers = [offer_fields(offer) for offer in acquired.offers]
    action = {
        "sufficient": "call one of the tools",
        "installed": "call one of the tools",
        "needs_approval": "ask somebody who may to run: " + (
            next((one["install_with"] for one in offers if one["install_with"] and one["confidence"] >= LIKELY), "")
        ),
        "unsure": "look whether one of the tools does it; if not, describe what is missing as a task of its own",
        "failed": "see `failures`; somebody with the scope admin may choose another of the candidates",
        "not_found": "no catalog has a server that is likely to do: use other words, or add a catalog",
    }[acquired.status]  # fmt: skip
    return {
        "status": acquired.status,
        "next": action,
        "analysis": analysis_fields(acquired.analysis),
        "installed": [installed_fields(one) for one in acquired.installed],
        "tools": [found_fields(one) for one in acquired.tools],
        "candidates": offers,
        "failures": acquired.failures,
    }
