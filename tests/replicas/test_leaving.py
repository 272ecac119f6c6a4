"""Gateways that are exchanged one after the other, and servers that dialled in to one of them."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter

import httpx
from support import GatewayProcess, forked, wait_for

CALLERS = 4

Replicas = list[GatewayProcess]


def test_nobody_is_refused_while_one_after_the_other_is_exchanged(replicas: Replicas, balancer: str) -> None:
    """Also not by a server that one of them has for all, and that moves with each."""
    done, refused, stop = [0] * CALLERS, [], threading.Event()

    def call(number: int) -> None:
        with httpx.Client(base_url=balancer, timeout=30, headers={"host": "localhost"}) as http:
            while not stop.is_set():
                said = http.post("/execute_tool", json={"tool_id": "good__echo", "parameters": {"text": "hi"}})
                if said.is_success and said.json()["success"]:
                    done[number] += 1
                else:
                    refused.append(said.text)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        for process in replicas:
            before = sum(done)
            process.stop()
            process.start()
            process.wait_for_state("good", "up")
            wait_for(lambda before=before: sum(done) > before)  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not refused, Counter(refused).most_common(3)
    assert all(count > 0 for count in done)


def test_a_server_that_dialled_in_to_one_is_reached_through_all(replicas: Replicas) -> None:
    one, other, third = replicas
    tool = "dialled__test_simple_text"
    first = subprocess.Popen(forked("fixture.py", "dial", one.register_url, "dialled"))
    try:
        for process in replicas:
            wait_for(lambda process=process: process.execute(tool)["success"], 30)  # type: ignore[misc]
        second = subprocess.Popen(forked("fixture.py", "dial", third.register_url, "dialled"))
        try:
            wait_for(lambda: third.server("dialled")["instances"] == 1 and third.execute(tool)["success"])
            first.kill()
            first.wait()
            for process in (one, other):  # which go on over the gateway that has the other instance
                wait_for(lambda process=process: process.execute(tool)["success"], 20)  # type: ignore[misc]
        finally:
            second.kill()
            second.wait()
        for process in replicas:
            wait_for(lambda process=process: not process.execute(tool, timeout_seconds=1)["success"], 30)  # type: ignore[misc]
    finally:
        if first.poll() is None:
            first.kill()
            first.wait()
        other.http.delete("/api/v1/servers/dialled")
