"""Finding the right tool for a task, noticing that there is none, and getting it."""

from toolscore.discovery.capability import Acquired, CapabilityBroker, Offer
from toolscore.discovery.catalog.catalog import Candidate, MCPSearchTool
from toolscore.discovery.catalog.server_json import Entry
from toolscore.discovery.catalog.sources import CatalogRules, SourceState
from toolscore.discovery.gaps.detector import Analysis, Step, ToolGapDetector
from toolscore.discovery.gaps.judge import JudgeRules
from toolscore.discovery.install.installer import Installed, Installer
from toolscore.discovery.install.plan import Plan
from toolscore.discovery.install.policy import InstallRule, InstallRules
from toolscore.discovery.install.prove import Proof
from toolscore.discovery.install.wish import Wish
from toolscore.discovery.rules import DiscoveryRules
from toolscore.discovery.search.search import Found, ToolSearch

__all__ = [
    "Acquired",
    "Analysis",
    "Candidate",
    "CapabilityBroker",
    "CatalogRules",
    "DiscoveryRules",
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
