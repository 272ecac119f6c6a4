"""The command line, as tests run it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from support.nursery import born
from support.processes import GatewayProcess

__all__ = ["bearer", "toolscore", "with_config"]


def toolscore(
    *arguments: str,
    gateway: GatewayProcess | None = None,
    input: str = "",
    env: dict[str, str] | None = None,
    variables: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command against a gateway, to its end."""
    environment = env
    if environment is None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")}
        if gateway is not None:
            environment["TOOLSCORE_URL"] = gateway.url
        environment |= {"COLUMNS": "200", **(variables or {})}
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input.encode())
        given.seek(0)
        process = born(
            arguments, env=environment, cwd=cwd or Path.cwd(), stdin=given.fileno(), stdout=out.fileno(),
            stderr=err.fileno(),
        )  # fmt: skip
        code = process.wait(60)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read().decode(), err.read().decode())


def with_config(gateway: GatewayProcess, *arguments: str) -> str:
    """What a command prints that reads a gateway's settings, and succeeds."""
    done = toolscore(*arguments, "--config", str(gateway.config), env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bearer(key: str) -> dict[str, str]:
    """The header that shows a key."""
    return {"authorization": f"Bearer {key}"}
