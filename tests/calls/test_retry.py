"""What is called again, and what must not be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import GatewayProcess, fixture, running_gateway

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with running_gateway({"fixture": fixture("stdio")}) as process:
        process.wait_for_state("fixture", "up")
        yield process


def test_a_tool_that_only_reads_is_called_again(gateway: GatewayProcess, tmp_path: Path) -> None:
    marker = tmp_path / "calls"
    assert gateway.text("fixture__die_once", {"marker": str(marker)}) == "survived"
    assert marker.read_text().count("called") == 2


def test_any_other_is_not(gateway: GatewayProcess, tmp_path: Path) -> None:
    marker = tmp_path / "calls"
    answer = gateway.execute("fixture__die_once_unsafe", {"marker": str(marker)})
    assert answer["error"]["code"] == "outcome_unknown"
    assert not answer["error"]["retryable"]
    assert marker.read_text().count("called") == 1
