"""Clients of the gateway: `ToolScoreClient` for REST, `RealTimeToolClient` for events."""

from runtimes.client.realtime import RealTimeToolClient
from runtimes.client.rest import ToolFailed, ToolResult, ToolScoreClient, ToolScoreClientError

__all__ = ["RealTimeToolClient", "ToolFailed", "ToolResult", "ToolScoreClient", "ToolScoreClientError"]
