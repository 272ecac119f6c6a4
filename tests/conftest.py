"""Fixtures: gateways."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from support import GatewayProcess, odd, running_gateway

# Machines are slow at times: that is no fault of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def gateway() -> Iterator[GatewayProcess]:
    """One gateway with well-behaved servers, for tests that leave it as they found it."""
    with running_gateway(
        {name: odd(name if name == "many" else "echo") for name in ("alpha", "beta", "many")}, journal=True
    ) as process:
        for server_id in ("alpha", "beta", "many"):
            process.wait_for_state(server_id, "up")
        yield process


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, figures in report.user_properties:
            terminalreporter.write_line(f"{name}: {figures}")
