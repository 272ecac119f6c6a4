"""Clients of the gateway: `ToolScoreClient` for REST, its blocking twin, and `RealTimeToolClient` for events."""

from runtimes.client.blocking import BlockingToolScoreClient
from runtimes.client.realtime import RealTimeToolClient
from runtimes.client.rest import ToolScoreClient
from runtimes.client.results import CodeResult, ToolFailed, ToolResult, ToolScoreClientError

__all__ = [
    "BlockingToolScoreClient",
    "CodeResult",
    "RealTimeToolClient",
    "ToolFailed",
    "ToolResult",
    "ToolScoreClient",
    "ToolScoreClientError",
]
