"""How gateways that share a database and a Redis reach one another."""

from __future__ import annotations

from pydantic import Field

from toolscore.core.rules import Port, Rules

__all__ = ["ReplicaRules"]


class ReplicaRules(Rules):
    """How gateways that share a database and a Redis reach one another. Without `storage.redis_url` none does."""

    needs_restart = True

    host: str = Field("127.0.0.1", description="where this gateway listens for the others; sealed, and for nobody else")
    port: Port = Field(0, description="0: any free port")
    advertise: str | None = Field(
        None, description="the host at which the others reach it, such as ${env:POD_IP}; null: `host`"
    )
