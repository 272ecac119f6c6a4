"""Python executors that dial every gateway behind a name, and leave without losing a call."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import EXECUTOR, ROOT, GatewayProcess, free_port, running_gateway, wait_for
from support.engines import Redis

ADDRESSES = ("127.0.0.1", "127.0.0.2")
NAME = "gateways.test"
RESOLVER = """
import socket
real = socket.getaddrinfo
def resolved(host, port, *more, **options):
    if host == "gateways.test":
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in {addresses}]
    return real(host, port, *more, **options)
socket.getaddrinfo = resolved
import runpy, sys
runpy.run_module("mcp_servers.python_executor", run_name="__main__")
"""
"""A name server, as far as an executor asks one: no machine of a test may be told of names."""


@pytest.fixture(scope="module")
def two(new_database: Callable[[], str], redis: Redis) -> Iterator[list[GatewayProcess]]:
    """Two gateways on one port of two addresses, as pods behind a headless service have it."""
    url, port = new_database(), free_port()
    with contextlib.ExitStack() as stack:
        found = []
        for address in ADDRESSES:
            process = stack.enter_context(running_gateway({}, start=False))
            process.environment = {
                "TOOLSCORE_STORAGE__DATABASE_URL": url,
                "TOOLSCORE_STORAGE__REDIS_URL": redis.url,
                "TOOLSCORE_CORE_SERVICES__TOOLSCORE_MCP__HOST": address,
                "TOOLSCORE_CORE_SERVICES__TOOLSCORE_MCP__PORT": str(port),
                "TOOLSCORE_ACCESS__ALLOWED_HOSTS": f'["{NAME}"]',
                "TOOLSCORE_MCP_SERVERS__PYTHON_EXECUTOR__REQUIRED": "true",
                "TOOLSCORE_USE_INPROCESS_PYTHON_EXECUTOR": "false",
            }
            process.start(ready=False)
            process.router_port = port
            found.append(process)
        yield found


@contextlib.contextmanager
def executor(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RESOLVER.format(addresses=ADDRESSES), "--connect", f"ws://{NAME}:{port}/register",
         "--options", f'{{"data_dir": "{folder}"}}'],
        cwd=ROOT, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def run(process: GatewayProcess, code: str, **more: Any) -> dict[str, Any]:
    return process.execute(f"{EXECUTOR}__python_execute", {"code": code, **more})


def alive(process: GatewayProcess) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return process.http.get("/livez").is_success
    return False


def instances(process: GatewayProcess) -> int:
    return int(process.http.get(f"/api/v1/servers/{EXECUTOR}").json()["data"].get("instances", 0))


@pytest.mark.long
def test_executors_dial_every_gateway_and_leave_without_losing_a_call(
    two: list[GatewayProcess], tmp_path: Path
) -> None:
    port = two[0].router_port
    for process in two:
        wait_for(lambda process=process: alive(process), 120)  # type: ignore[misc]
        assert process.http.get("/readyz").status_code == 503, "it needs an executor, and has none"
    with executor(port, tmp_path / "a") as first:
        for process in two:
            wait_for(process.is_ready, 120)
            assert run(process, "1 + 1")["data"]["structured_content"]["result"] == "2"
        with executor(port, tmp_path / "b"):
            for process in two:
                wait_for(lambda process=process: instances(process) == 2, 120)  # type: ignore[misc]
            for number in range(8):  # each session stays with one of the two, wherever its calls come in
                for step, process in enumerate((*two, *two)):
                    code = "n = 0\nn" if step == 0 else "n += 1\nn"
                    said = run(process, code, session_id=f"s{number}")
                    assert said["data"]["structured_content"]["result"] == str(step), said
            with ThreadPoolExecutor(8) as pool:
                under_way = [pool.submit(run, two[n % 2], "import time; time.sleep(2); 7") for n in range(8)]
                wait_for(lambda: two[0].get("/api/v1/stats")["calls_in_flight"] == 4)
                first.terminate()
                more = [run(two[n % 2], "8") for n in range(8)]
                said = [one.result() for one in under_way]
            assert [one["data"]["structured_content"]["result"] for one in said] == ["7"] * 8
            assert [one["data"]["structured_content"]["result"] for one in more] == ["8"] * 8
            assert first.wait(15) == 0
            for process in two:
                wait_for(lambda process=process: instances(process) == 1)  # type: ignore[misc]
                assert process.is_ready()
    for process in two:
        wait_for(lambda process=process: process.http.get("/readyz").status_code == 503, 60)  # type: ignore[misc]
