"""Finding the right tool for a task."""

from toolscore.discovery.search import Found, ToolSearch

__all__ = ["Found", "ToolSearch"]
