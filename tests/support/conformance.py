"""The official conformance suite."""

from __future__ import annotations

import re
import subprocess

import yaml

from support.processes import ROOT, SERVERS

__all__ = ["SESSIONS", "STATELESS", "SUITE", "UNSCORED", "judged", "required", "run_suite"]

SUITE = SERVERS / "npm" / "node_modules" / "@modelcontextprotocol" / "conformance"
SESSIONS, STATELESS = "2025-11-25", "2026-07-28"

UNSCORED = {
    SESSIONS: {"json-schema-2020-12", "server-sse-polling", "server-session-lifecycle"},
    STATELESS: {"json-schema-2020-12", "http-header-validation", "http-custom-header-server-validation"},
}
"""What the suite runs beside the required scenarios, and the gateway passes."""


def run_suite(*arguments: str, prefix: tuple[str, ...] = (), seconds: float = 500) -> tuple[int, str]:
    """Exit code and output of the suite."""
    command = [*prefix, str(SERVERS / "node"), str(SUITE / "dist" / "index.js"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def judged(output: str) -> dict[str, bool]:
    """What the summary says of each scenario."""
    lines = re.findall(r"^(✓|✗) ([\w-]+): \d+ passed, \d+ failed", output, re.MULTILINE)
    return {name: mark == "✓" for mark, name in lines}


def required(revision: str) -> set[str]:
    return set(yaml.safe_load((SUITE / "requirements" / f"{revision}.yaml").read_text())["server"])
