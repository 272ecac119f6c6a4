"""`toolscore bench replicas`: what several gateways cost, how soon one knows what another changed, what a hop takes."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import psutil

from toolscore.bench.process import (
    command_of,
    cpu_seconds,
    echo,
    free_port,
    judged,
    measure,
    print_judged,
    wait_for_servers,
)
from toolscore.bench.rig import Gateway, Rig, rig

__all__ = ["TARGETS", "run_replicas_bench"]

ROUNDS = 3
CHANGES = 40
TEXT = "hello"
KNOWN_SECONDS = 10.0
TARGETS = {
    "work_ratio": ("CPU a call of all three, when one of them is called, against one alone", "<=", 1.15),
    "cpu_ratio": ("CPU a call, three in turn against one, 16 calls at once in both", "<=", 1.15),
    "known_p99_ms": ("a change on one is known on all, p99 of ms", "<=", 1000.0),
    "hop_added_p50_ms": ("the hop to an owner, p50 added, ms", "<=", 1.0),
    "hop_cpu_near_ms": ("its CPU a call where the call came in, ms more than with the server there", "<=", 0.12),
    "hop_cpu_far_ms": ("its CPU a call at the owner, with the call of the server itself, ms", "<=", 0.12),
}


def run_replicas_bench(*, seconds: float = 3.0, quiet: bool = False, tell: Callable[[str], None]) -> dict[str, Any]:
    """Start a rig, measure, print a table unless `quiet`, and return the figures.

    Args:
        seconds: how long each throughput is measured, over all rounds.
        tell: told what is done.
    """
    with ExitStack() as stack:
        echo_port = free_port()
        stack.enter_context(echo("mcp", echo_port))
        servers = {
            "echo": {"url": f"http://127.0.0.1:{echo_port}/mcp"},
            "pipe": {"command": sys.executable, "args": ["-m", "toolscore.bench.echo", "stdio", "0"]},
        }
        tell("starting three gateways, and one")
        three = stack.enter_context(rig(3, servers))
        one = stack.enter_context(rig(1, servers))
        for gateway in (*three.gateways, *one.gateways):
            wait_for_servers(gateway.url, len(servers) + 2)  # and two of the gateway's own
        cpu = _cpu_ratio(three, one, seconds, tell)
        hop = _hop(three, seconds, tell)
        tell(f"{CHANGES} changes, until all know")
        known = _known(three)
    figures = {
        "work_ratio": cpu["work_ratio"],
        "cpu_ratio": cpu["ratio"],
        "known_p99_ms": round(known[max(0, int(len(known) * 0.99) - 1)], 1),
        **{name: hop[name] for name in ("hop_added_p50_ms", "hop_cpu_near_ms", "hop_cpu_far_ms")},
    }
    summary = judged(figures, TARGETS)
    report = {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "hop": hop,
        "known_ms": {"p50": round(statistics.median(known), 1), "p99": figures["known_p99_ms"]},
        "summary": summary,
    }
    if not quiet:
        print_judged(f"three gateways, {report['cores']} cores", summary)
    return report


def _job(url: str, tool_id: str) -> dict[str, Any]:
    body = json.dumps({"tool_id": tool_id, "parameters": {"text": TEXT}})
    port = int(url.rpartition(":")[2])
    return {
        "name": tool_id, "kind": "http", "port": port, "path": "/execute_tool", "body": body, "headers": {},
        "expect": TEXT,
    }  # fmt: skip


def _cpu_seconds(gateways: list[Gateway]) -> float:
    """Of the gateways and their recorders; not of their servers."""
    spent = 0.0
    for gateway in gateways:
        assert gateway.process is not None
        whole = psutil.Process(gateway.process.pid)
        recorders = [child for child in whole.children() if "toolscore.history.recorder" in command_of(child)]
        for process in (whole, *recorders):
            spent += cpu_seconds(process)
    return spent


def _per_call(gateways: list[Gateway], job: dict[str, Any], concurrency: int, seconds: float) -> dict[str, float]:
    """Figures of a load, with the CPU that the gateways took for each call, in ms."""
    before, made = _cpu_seconds(gateways), _calls(gateways)
    figures = measure(job, concurrency, seconds)
    return {**figures, "cpu_ms": (_cpu_seconds(gateways) - before) / (_calls(gateways) - made) * 1000}


def _calls(gateways: list[Gateway]) -> int:
    """How many calls came in at these gateways so far."""
    return sum(int(httpx.get(f"{gateway.url}/api/v1/stats").json()["data"]["calls_total"]) for gateway in gateways)


def _cpu_ratio(three: Rig, one: Rig, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """CPU a call of all gateways of a rig, in ms: three called in turn, one of the three called, and one alone.

    Called in turn, each has a third of the calls, and so wakes up for fewer at a time: that costs, most of all where
    the three share few cores. The second figure has none of that: what it costs more than one alone is done twice.
    """
    found: dict[str, list[float]] = {"three": [], "one_of_three": [], "one": [], "one_called": []}
    for number in range(ROUNDS):
        for name, running, url in (
            ("three", three, three.balancer),
            ("one_of_three", three, three.gateways[0].url),
            ("one", one, one.balancer),
            ("one_called", one, one.gateways[0].url),
        ):
            tell(f"load on {name.replace('_', ' ')}, round {number + 1} of {ROUNDS}")
            job = _job(url, "echo__echo")
            found[name].append(_per_call(running.gateways, job, 16, seconds / ROUNDS)["cpu_ms"])
    medians = {f"{name}_ms": round(statistics.median(values), 4) for name, values in found.items()}

    def ratio(name: str, base: str) -> float:
        return round(statistics.median(a / b for a, b in zip(found[name], found[base], strict=True)), 3)

    return {**medians, "ratio": ratio("three", "one"), "work_ratio": ratio("one_of_three", "one_called")}


def _hop(three: Rig, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    owner = next(gateway for gateway in three.gateways if _has_child(gateway, "toolscore.bench.echo"))
    other = next(gateway for gateway in three.gateways if gateway is not owner)
    rounds = []
    for number in range(ROUNDS):
        tell(f"the hop, round {number + 1} of {ROUNDS}")
        part = seconds / ROUNDS / 2
        alone = [measure(_job(gateway.url, "pipe__echo"), 1, part)["p50_ms"] for gateway in (owner, other)]
        own = _per_call([owner], _job(owner.url, "pipe__echo"), 16, part)
        before, made = _cpu_seconds([owner]), _calls([other])
        near = _per_call([other], _job(other.url, "pipe__echo"), 16, part)
        far = (_cpu_seconds([owner]) - before) / (_calls([other]) - made) * 1000
        rounds.append((alone[1] - alone[0], near["cpu_ms"] - own["cpu_ms"], far))
    added, more, far = (statistics.median(values) for values in zip(*rounds, strict=True))
    return {
        "hop_added_p50_ms": round(added, 3),
        "hop_cpu_near_ms": round(more, 4),
        "hop_cpu_far_ms": round(far, 4),
    }


def _has_child(gateway: Gateway, module: str) -> bool:
    assert gateway.process is not None
    children = psutil.Process(gateway.process.pid).children(recursive=True)
    return any(module in command_of(child) for child in children)


def _known(three: Rig) -> list[float]:
    """How long it took until all knew of each change, in ms, sorted."""
    took = []
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=gateway.url, timeout=30)) for gateway in three.gateways]

        def call(client: httpx.Client) -> bool:
            body = {"tool_id": "echo__echo", "parameters": {"text": TEXT}}
            return bool(client.post("/execute_tool", json=body).json()["success"])

        for number in range(CHANGES):
            at = clients[number % len(clients)]
            for how in ("disable", "enable"):
                at.post(f"/api/v1/tools/echo__echo/{how}").raise_for_status()
                began = time.perf_counter()
                waiting = [client for client in clients if client is not at]
                while waiting:
                    waiting = [client for client in waiting if call(client) != (how == "enable")]
                    if time.perf_counter() - began > KNOWN_SECONDS:
                        raise RuntimeError("a change is not known everywhere after 10 s")
                took.append((time.perf_counter() - began) * 1000)
    return sorted(took)
