"""What is told of servers, and of those that went."""

from __future__ import annotations

from toolscore.telemetry.metrics import Metrics


def test_a_server_that_went_leaves_no_label() -> None:
    metrics = Metrics()
    for server_id in ("here", "gone"):
        metrics.circuit(server_id, "open")
        metrics.server_restarted(server_id)
    metrics.server_gone("gone")
    told = metrics.render().decode()
    assert 'server="here"' in told
    assert 'server="gone"' not in told
