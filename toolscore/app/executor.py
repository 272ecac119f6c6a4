"""Our Python executor as a server of the gateway: its settings, and the entry that starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from toolscore.access.auth import OUR_KEY
from toolscore.core.models import UpstreamSpec
from toolscore.core.names import EXECUTOR
from toolscore.core.rules import Bytes, Count, Places, Rules, Seconds

__all__ = ["EXECUTOR_ID", "PythonExecutorRules", "executor_command", "executor_spec"]

EXECUTOR_ID = EXECUTOR

OWN_LIMIT_SECONDS = 10
"""The executor's own time limit shall strike before ours, which is longer by this."""

Engine = Literal["fork", "fresh", "reset", "persistent", "restricted", "container"]


class PythonExecutorRules(Rules):
    """How Python code is run; running calls end when it changes."""

    engine: Engine = Field(
        "fork", description="fork, fresh, restricted, reset, persistent, container: `toolscore bench isolation`"
    )
    allowed_engines: tuple[Engine, ...] = Field((), description="others that a call may choose with `engine`")
    timeout_seconds: Seconds = Field(30, description="for calls that give none")
    max_timeout_seconds: Seconds = Field(300, description="the most that a call may give")
    memory_mb: Annotated[int, Field(ge=32)] = Field(512, description="of a call")
    scratch_mb: Count = Field(64, description="of a call's working folder and /tmp together")
    max_processes: Count = Field(64, description="threads of a call, and processes where they are allowed")
    max_output_bytes: Bytes = Field(1024 * 1024, description="of stdout and of stderr")
    max_concurrent: Annotated[int, Field(ge=1, le=256)] = Field(16, description="calls that run at a time")
    max_queued: Places = Field(256, description="calls that may wait")
    max_sessions: Annotated[int, Field(ge=0, le=200)] = Field(16, description="sessions (session_id) at a time")
    max_sessions_per_principal: Places = Field(8, description="of one caller")
    session_idle_seconds: Seconds = Field(600, description="a session that nobody used for so long is ended")
    packages: dict[str, tuple[str, ...]] = Field(
        {"data": ("numpy", "pandas", "matplotlib")},
        description="sets that a call may ask for, installed on first use",
    )
    allow_processes: bool = Field(False, description="whether code may start processes of its own")
    min_tier: Literal["A", "B", "C"] = Field(
        "C", description="refuse to run code where the machine confines it less: A, B or C"
    )
    max_executions: Count = Field(1000, description="engine reset: calls after which its process is replaced")
    reused_processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="engines reset and persistent: how many processes"
    )
    interpreter: str | None = Field(None, description="the sandbox's Python; null: the one that runs the gateway")
    container_image: str = Field("python:3.12-slim", description="engine container: the image")
    container_command: str | None = Field(
        None, description="engine container: docker or podman; null: whichever there is"
    )


def executor_command(*arguments: str) -> list[str]:
    """What starts our Python executor as a program of its own."""
    return [sys.executable, "-m", "mcp_servers.python_executor", *arguments]


def executor_spec(
    rules: PythonExecutorRules,
    *,
    data_dir: Path,
    inside: bool,
    starts: bool,
    router: str,
    http: str | None,
    secret: str | None = None,
) -> UpstreamSpec:
    """The executor's entry.

    Args:
        data_dir: where its packages are installed; absolute.
        inside: run it in the gateway's process.
        starts: else start it; otherwise it is waited for.
        router: the WebSocket address at which it registers.
        http: `host:port` at which it serves MCP itself; `None`: nowhere.
        secret: what callers show there, as a reference.
    """
    options = {**rules.model_dump(), "data_dir": str(data_dir)}
    common: dict[str, Any] = {
        "call_timeout_seconds": rules.max_timeout_seconds + OWN_LIMIT_SECONDS,
        "identify_callers": True,
        "sticky_argument": "session_id",
        "tags": ("python",),
    }
    if inside:
        return UpstreamSpec(inprocess="mcp_servers.python_executor.server:create_server", options=options, **common)
    if not starts:
        return UpstreamSpec(dialin=True, **common)
    env = {"TOOLSCORE_API_KEY": OUR_KEY}
    command, *args = executor_command("--connect", router, "--server-id", EXECUTOR_ID)
    if http is not None:
        args += ["--http", http]
        env["TOOLSCORE_EXECUTOR_SECRET"] = secret or ""
    args += ["--options", json.dumps(options)]
    return UpstreamSpec(
        dialin=True,
        command=command,
        args=tuple(args),
        env=env,
        **common,
    )
