"""What a room can be told: the base of every `…Rules` class, and the two that several rooms obey.

A room exports its own class beside the code that obeys it. The class says everything about a setting once: its
name, its unit, its bounds, its default, and one line for whoever sets it; `toolscore.app.settings` composes them, and
`config/toolscore.yaml` is made from them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Bytes", "Count", "HttpUrl", "LimitRules", "NameRules", "Places", "Port", "Rules", "Seconds", "ServerRules"]

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Places = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=1024)]
HttpUrl = Annotated[str, Field(pattern=r"^https?://")]


class Rules(BaseModel):
    """Frozen and strict: an unknown key or a value out of bounds is refused when it is read, and never later."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs_restart: ClassVar[bool] = False
    """Whether a change counts only at the next start."""


class LimitRules(Rules):
    """How much anything may be, and how long it may take."""

    call_timeout_seconds: Seconds = Field(60, description="for calls and servers that set none")
    max_body_bytes: Bytes = Field(4 * 1024 * 1024, description="of an HTTP request")
    max_result_bytes: Bytes = Field(16 * 1024 * 1024, description="of one message from a server")
    max_frame_bytes: Bytes = Field(4 * 1024 * 1024, description="of a WebSocket frame")
    max_connections: Count = Field(8192, description="to the HTTP port")
    max_connections_per_address: Count = Field(4096, description="of them, from one address")
    request_seconds: Seconds = Field(20, description="until a request is whole; large bodies have longer")
    write_seconds: Seconds = Field(60, description="until a client that reads nothing of its answer is cut off")
    max_unread_bytes: Bytes = Field(128 * 1024 * 1024, description="of answers that one caller has not read yet")
    calls_per_connection: Count = Field(64, description="in flight on one router socket")
    max_sessions: Count = Field(10_000, description="MCP sessions over HTTP")
    max_sessions_per_principal: Count = Field(2_000, description="of one caller, whose idlest makes room")
    session_idle_seconds: Seconds = Field(1800, description="after which a session may be forgotten")
    input_seconds: Seconds = Field(300, description="how long a client may take to answer what a server asks it")


class NameRules(Rules):
    """What tools and prompts of all servers are called together."""

    needs_restart = True

    max_length: Annotated[int, Field(ge=32, le=128)] = Field(
        48, description="of server__tool; many models take 64 characters, and clients put `mcp__toolscore__` before it"
    )


class ServerRules(Rules):
    """How servers are started, called and let go: defaults for all of mcp_servers.json."""

    start_timeout_seconds: Seconds = Field(60, description="a cold uvx or npx server has to be fetched first")
    max_start_failures: Count = Field(5, description="then it is given up, with the reason in /api/v1/servers")
    drain_seconds: Seconds = Field(
        30, description="how long calls may take to finish when a server is detached or replaced"
    )
    max_concurrent: Count = Field(
        256, description="calls at a time of one server (its own `max_concurrent` counts first)"
    )
    max_queued: Places = Field(1000, description="calls that may wait for a place there")
    relist_seconds: Seconds = Field(60, description="how often a list is read again whose server tells no changes")
    retries: Annotated[int, Field(ge=0, le=10)] = Field(
        2, description="further tries of a call that did not happen, or that its tool says may be repeated"
    )
    heartbeat_seconds: Seconds = Field(20, description="pings on WebSockets")
    dead_after_seconds: Seconds = Field(60, description="without an answer to them")
    leave_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        0, description="after SIGTERM go on serving for so long, with 503 at /readyz, until no balancer sends any more"
    )
    grace_seconds: Seconds = Field(5, description="how long calls under way may take at the end")
