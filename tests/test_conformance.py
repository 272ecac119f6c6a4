"""The official conformance suite, against the gateway as a server and as a client.

Its fixture stands behind the gateway in each way that servers have: over HTTP, as a child, dialled in over the
WebSocket; and restricted to the session era, so that the bridge between the eras does all the work.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import (
    SCRIPTS,
    VARIABLE,
    GatewayProcess,
    fixture,
    forked,
    free_port,
    nursery,
    running_gateway,
    wait_for,
)
from support.conformance import SESSIONS, STATELESS, UNSCORED, judged, required, run_suite

pytestmark = pytest.mark.long

CLIENT = SCRIPTS / "conformance_client.py"
NOT_CARRIED = {
    "input-required-result-basic-elicitation": "it wants the question under the key `user_name`, and a server of the "
    "session era gives its questions no keys",
}
"""What the bridge cannot carry from a server of the session era to a client of the stateless one."""


@contextlib.contextmanager
def fixture_behind(way: str, *options: str) -> Iterator[GatewayProcess]:
    """A gateway with the fixture behind it."""
    port = free_port()
    servers: dict[str, Any] = {
        "http": {"fixture": {"url": f"http://127.0.0.1:{port}/mcp"}},
        "stdio": {"fixture": fixture("stdio", *options)},
        "websocket": {},
    }[way]
    with contextlib.ExitStack() as stack:
        if way == "http":
            stack.enter_context(running(["http", str(port), *options]))
        gateway = stack.enter_context(running_gateway(servers))
        if way == "websocket":
            stack.enter_context(running(["dial", gateway.register_url, "fixture", *options]))
            wait_for(lambda: gateway.http.get("/api/v1/servers/fixture").status_code == 200)
        gateway.wait_for_state("fixture", "up")
        yield gateway


@contextlib.contextmanager
def running(arguments: list[str]) -> Iterator[None]:
    process = subprocess.Popen(forked("fixture.py", *arguments))
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("way", ["http", "stdio", "websocket"])
def test_a_server_of_both_eras_passes_through_whole(way: str) -> None:
    with fixture_behind(way) as gateway:
        for revision, count in ((SESSIONS, 30), (STATELESS, 37)):
            url = f"{gateway.url}/servers/fixture/mcp"
            code, output = run_suite("server", "--url", url, "--requirements", revision)
            assert code == 0, output[-30000:]
            results = judged(output)
            assert len(required(revision)) == count
            failed = {name for name in required(revision) | UNSCORED[revision] if not results.get(name)}
            assert failed == set(), output[-30000:]


@pytest.mark.parametrize("way", ["http", "stdio"])
def test_a_server_of_the_session_era_serves_clients_of_both(way: str) -> None:
    with fixture_behind(way, "--session-only") as gateway:
        url = f"{gateway.url}/servers/fixture/mcp"
        assert gateway.server("fixture")["protocol_version"] == SESSIONS
        code, output = run_suite("server", "--url", url, "--requirements", SESSIONS)
        assert code == 0, output[-30000:]
        # A client of other capabilities than the first is served by a process of its own; one scenario
        # gives an answer 0.6 s, which is less than starting that takes. So it is started before.
        ask_stateless(gateway, {"elicitation": {}}, "test_simple_text")
        code, output = run_suite("server", "--url", url, "--requirements", STATELESS)
        results = judged(output)
        failed = {name for name in required(STATELESS) if not results.get(name)}
        assert failed == set(NOT_CARRIED), output[-30000:]


def test_the_tasks_extension_passes_through() -> None:
    port = free_port()
    server = subprocess.Popen(forked("tasks_http.py", str(port)))
    try:
        with running_gateway({"tasks": {"url": f"http://127.0.0.1:{port}/mcp"}}) as gateway:
            gateway.wait_for_state("tasks", "up")
            url = f"{gateway.url}/servers/tasks/mcp"
            for scenario in TASKS:
                code, output = run_suite("server", "--url", url, "--scenario", scenario)
                assert code == 0, output[-30000:]
            begin = {"name": "tasks__slow_compute", "arguments": {"seconds": 0.1}}
            task = ask_with_tasks(gateway, "tools/call", begin)
            assert task["resultType"] == "task"
            shown = ask_with_tasks(gateway, "tasks/get", {"taskId": task["taskId"]})
            assert shown["taskId"] == task["taskId"]
            assert task["taskId"].startswith("tasks/"), "ids of two servers are told apart"
            finished = wait_for(lambda: ask_with_tasks(gateway, "tasks/get", {"taskId": task["taskId"]}).get("result"))
            assert finished["content"][0]["text"] == "computed"
    finally:
        server.kill()
        server.wait()


TASKS = [
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-status-notifications",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
]


def ask_stateless(gateway: GatewayProcess, capabilities: dict[str, Any], tool: str) -> None:
    """One call by a stateless client of these capabilities."""
    meta = "io.modelcontextprotocol/"
    envelope = {f"{meta}protocolVersion": STATELESS, f"{meta}clientCapabilities": capabilities}
    headers = {"mcp-protocol-version": STATELESS, "mcp-method": "tools/call", "mcp-name": tool}
    params = {"name": tool, "arguments": {}, "_meta": envelope}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = gateway.http.post("/servers/fixture/mcp", json=body, headers=headers).json()
    assert "result" in answer, answer


def ask_with_tasks(gateway: GatewayProcess, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """One stateless request at the common address, by a client that knows tasks."""
    meta = "io.modelcontextprotocol/"
    envelope = {
        f"{meta}protocolVersion": STATELESS,
        f"{meta}clientCapabilities": {"extensions": {f"{meta}tasks": {}}},
    }
    headers = {"mcp-protocol-version": STATELESS, "mcp-method": method}
    headers["mcp-name"] = params.get("taskId") or params["name"]
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": envelope}}
    return dict(gateway.http.post("/mcp", json=body, headers=headers).json()["result"])


AS_CLIENT = [
    "initialize",
    "tools_call",
    "elicitation-sep1034-client-defaults",
    "sse-retry",
    "request-metadata",
    "http-standard-headers",
    "http-custom-headers",
    "http-invalid-tool-headers",
    "sep-2322-client-request-state",
    "json-schema-ref-no-deref",
    "json-schema-2020-12-preservation",
]


def test_the_gateway_as_a_client() -> None:
    # The suite's servers listen on all interfaces: in a network of their own nobody else reaches them.
    alone = ("unshare", "--net", sys.executable, "-c", LOOPBACK_UP)
    assert os.geteuid() == 0, "a network namespace needs root"
    command = f"{sys.executable} -W ignore {CLIENT}"

    with nursery(*alone) as (pid, address), ThreadPoolExecutor(3) as pool:

        def run(scenario: str) -> tuple[int, str]:
            there = ("nsenter", f"--net=/proc/{pid}/ns/net", "env", f"{VARIABLE}={address}")
            return run_suite(
                "client", "--timeout", "120000", "--command", command, "--scenario", scenario, prefix=there
            )

        for scenario, (code, output) in zip(AS_CLIENT, pool.map(run, AS_CLIENT), strict=True):
            assert code == 0, f"{scenario}: {output[-3000:]}"
            assert "OVERALL: PASSED" in output


LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
os.execv(sys.argv[1], sys.argv[1:])
"""
