"""What discovery can be told: the section `discovery` of the settings, composed of the rules of its rooms."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolscore.core.rules import Rules
from toolscore.discovery.catalog.sources import CatalogRules
from toolscore.discovery.gaps.judge import JudgeRules
from toolscore.discovery.install.policy import InstallRules

__all__ = ["DiscoveryRules"]


class DiscoveryRules(Rules):
    """Finding tools, noticing that none fits, installing what is missing."""

    mcp_tools: bool = Field(True, description="list toolscore__search_tools and the gateway's other own tools")
    list_tokens: Annotated[int, Field(ge=500)] | None = Field(
        None,
        description="most that tools/list may cost a model; the rest is found with toolscore__search_tools",
    )
    always_listed: tuple[str, ...] = Field(
        (), description="tools that are listed in any case: patterns such as time__*"
    )
    subregistry: bool = Field(True, description="serve the MCP Registry API at /v0.1/servers")
    judge: JudgeRules = JudgeRules()
    catalog: CatalogRules = CatalogRules()
    install: InstallRules = InstallRules()
