"""The command line, as tests run it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from support.processes import GatewayProcess

__all__ = ["bearer", "toolscore", "with_config"]


def toolscore(
    *arguments: str, gateway: GatewayProcess | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command against a gateway."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")}
    if gateway is not None:
        environment["TOOLSCORE_URL"] = gateway.url
    environment["COLUMNS"] = "200"
    return subprocess.run(
        [sys.executable, "-m", "toolscore", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=environment, **options,
    )  # fmt: skip


def with_config(gateway: GatewayProcess, *arguments: str) -> str:
    """What a command prints that reads a gateway's settings, and succeeds."""
    done = subprocess.run(
        [sys.executable, "-m", "toolscore", *arguments, "--config", str(gateway.config)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bearer(key: str) -> dict[str, str]:
    """The header that shows a key."""
    return {"authorization": f"Bearer {key}"}
