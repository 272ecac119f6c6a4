"""Gateways that are exchanged one after the other, and servers that dialled in to one of them."""

from __future__ import annotations

import subprocess
from collections import Counter

import pytest
from support import GatewayProcess, forked, wait_for
from support.engines import exchange

pytestmark = pytest.mark.long

Replicas = list[GatewayProcess]


def test_nobody_is_refused_while_one_after_the_other_is_exchanged(replicas: Replicas, balancer: str) -> None:
    """Also not by a server that one of them has for all, and that moves with each."""
    refused = exchange(replicas, balancer, "good", "good__echo")
    assert not refused, Counter(refused).most_common(3)


def test_a_server_that_dialled_in_to_one_is_reached_through_all(replicas: Replicas) -> None:
    one, other, third = replicas
    tool = "dialled__test_simple_text"
    first = subprocess.Popen(forked("fixture.py", "dial", one.register_url, "dialled"))
    try:
        for process in replicas:
            wait_for(lambda process=process: process.execute(tool)["success"], 120)  # type: ignore[misc]
        second = subprocess.Popen(forked("fixture.py", "dial", third.register_url, "dialled"))
        try:
            wait_for(lambda: third.server("dialled")["instances"] == 1 and third.execute(tool)["success"])
            first.kill()
            first.wait()
            for process in (one, other):  # which go on over the gateway that has the other instance
                wait_for(lambda process=process: process.execute(tool)["success"], 60)  # type: ignore[misc]
        finally:
            second.kill()
            second.wait()
        for process in replicas:
            wait_for(lambda process=process: not process.execute(tool, timeout_seconds=1)["success"], 120)  # type: ignore[misc]
    finally:
        if first.poll() is None:
            first.kill()
            first.wait()
        other.http.delete("/api/v1/servers/dialled")
