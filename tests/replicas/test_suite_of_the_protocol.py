"""The official conformance suite through a balancer that sends each request to another of three gateways."""

from __future__ import annotations

import pytest
from support import GatewayProcess, fixture, wait_for
from support.conformance import SESSIONS, STATELESS, UNSCORED, judged, required, run_suite


@pytest.mark.parametrize("revision", [SESSIONS, STATELESS])
@pytest.mark.long
def test_a_server_passes_through_three_as_through_one(
    replicas: list[GatewayProcess], balancer: str, revision: str
) -> None:
    replicas[0].http.post("/api/v1/servers", json={"server_id": "fixture", **fixture("stdio")})
    for process in replicas:
        wait_for(lambda process=process: process.http.get("/api/v1/servers/fixture").is_success)  # type: ignore[misc]
        process.wait_for_state("fixture", "up")
    url = f"{balancer}/servers/fixture/mcp"
    code, output = run_suite("server", "--url", url, "--requirements", revision)
    assert code == 0, output[-30000:]
    results = judged(output)
    failed = {name for name in required(revision) | UNSCORED[revision] if not results.get(name)}
    assert failed == set(), output[-30000:]
