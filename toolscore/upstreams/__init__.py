"""The ways to reach a tool, and what keeps each alive."""

from toolscore.upstreams.caller import Caller
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.pool import UpstreamPool
from toolscore.upstreams.protocol import ServerInfo
from toolscore.upstreams.upstream import Attempt, Upstream

__all__ = ["Attempt", "Caller", "Connection", "ServerInfo", "Upstream", "UpstreamPool"]
