"""Finding the right tool for a task, noticing that there is none, and getting it."""

from toolscore.discovery.capability import Acquired, CapabilityBroker, Offer
from toolscore.discovery.catalog.catalog import Candidate, CatalogRules, Entry, MCPSearchTool, SourceState
from toolscore.discovery.gaps.gaps import Analysis, JudgeRules, Step, ToolGapDetector
from toolscore.discovery.install.installer import Installed, Installer, InstallRule, InstallRules, Plan, Proof, Wish
from toolscore.discovery.search.search import Found, ToolSearch

__all__ = [
    "Acquired",
    "Analysis",
    "Candidate",
    "CapabilityBroker",
    "CatalogRules",
    "Entry",
    "Found",
    "InstallRule",
    "InstallRules",
    "Installed",
    "Installer",
    "JudgeRules",
    "MCPSearchTool",
    "Offer",
    "Plan",
    "Proof",
    "SourceState",
    "Step",
    "ToolGapDetector",
    "ToolSearch",
    "Wish",
]
