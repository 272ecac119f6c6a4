"""The ways to reach a tool, and what keeps each alive."""

from toolscore.upstreams.caller import Caller
from toolscore.upstreams.connection import Connection, ServerInfo
from toolscore.upstreams.pool import Attempt, Upstream, UpstreamPool

__all__ = ["Attempt", "Caller", "Connection", "ServerInfo", "Upstream", "UpstreamPool"]
