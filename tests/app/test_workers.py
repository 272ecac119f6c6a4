"""`toolscore serve --workers N`: one gateway of several processes on one port, with real processes."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support import Fickle, GatewayProcess, command_of, fixture, odd, running_gateway, wait_for
from support.processes import PYTHON, free_port

WORKERS = 2


@contextlib.contextmanager
def several(servers: dict[str, Any] | None = None, workers: int = WORKERS, **more: Any) -> Iterator[GatewayProcess]:
    """A gateway of so many processes, from when all of them take calls."""
    with running_gateway(servers, start=False, **more) as process:
        process.start("--workers", str(workers))
        wait_for(lambda: len(workers_of(process)) == workers, 120, "for all workers")
        for server_id in servers or {}:
            process.wait_for_state(server_id, "up")
        if process.python:
            with one_each(process, workers) as clients:
                for client in clients:
                    wait_for(lambda client=client: call(process, PYTHON, client, code="1")["success"], 120)  # type: ignore[misc]
        yield process


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with several({"good": odd("echo"), "fix": fixture("stdio")}, journal=True, python=True) as process:
        yield process


def ask(process: GatewayProcess, path: str, **more: Any) -> dict[str, Any]:
    """An answer of some worker: each time over another connection."""
    return dict(httpx.get(process.url + path, timeout=120, params=more).json()["data"])


@contextlib.contextmanager
def one_each(process: GatewayProcess, workers: int = WORKERS) -> Iterator[list[httpx.Client]]:
    """A client with an open connection to each worker."""
    clients: dict[str, httpx.Client] = {}
    with contextlib.ExitStack() as stack:
        while len(clients) < workers:
            client = stack.enter_context(httpx.Client(base_url=process.url, timeout=120))
            clients[request_run(client.get("/livez").json())] = client
        yield list(clients.values())


def call(
    process: GatewayProcess, tool_id: str, client: httpx.Client | None = None, **parameters: Any
) -> dict[str, Any]:
    body = {"tool_id": tool_id, "parameters": parameters}
    post = client.post if client is not None else httpx.post
    return dict(post(f"{process.url}/execute_tool", json=body, timeout=120).json())


def request_run(said: dict[str, Any]) -> str:
    """Which process answered: each begins its request ids with a word of its own."""
    return str(said["request_id"])[:16]


def workers_of(process: GatewayProcess) -> set[str]:
    """Those that answer over some connections opened together."""
    found = set()
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(httpx.Client(base_url=process.url, timeout=120))
            with contextlib.suppress(httpx.TransportError):
                said = client.get("/readyz")
                if said.is_success:
                    found.add(request_run(said.json()))
    return found


def test_connections_are_shared_evenly(gateway: GatewayProcess) -> None:
    with contextlib.ExitStack() as stack:
        runs: collections.Counter[str] = collections.Counter()
        for _ in range(16):
            client = stack.enter_context(httpx.Client(base_url=gateway.url, timeout=120))
            said = call(gateway, "good__echo", client, text="hi")
            assert said["success"]
            runs[request_run(said)] += 1
    assert len(runs) == WORKERS
    assert min(runs.values()) >= 4


@pytest.mark.long
def test_a_server_on_this_machine_runs_once_and_is_everybodys(gateway: GatewayProcess) -> None:
    pids = {ask(gateway, "/api/v1/servers/good")["pid"] for _ in range(8)}
    assert len(pids) == 1
    assert psutil.pid_exists(pids.pop())
    for _ in range(8):
        assert call(gateway, "good__echo", text="hi")["data"]["content"][0]["text"] == "hi"
    executors = [one for one in gateway.family() if command_of(one)[1:3] == ["-m", "mcp_servers.python_executor"]]
    assert len(executors) == 1


def test_a_session_of_python_is_the_same_on_each(gateway: GatewayProcess) -> None:
    assert call(gateway, PYTHON, code="n = 0", session_id="mine")["success"]
    for number in range(1, 9):
        said = call(gateway, PYTHON, code="n += 1\nn", session_id="mine")
        assert said["data"]["structured_content"]["result"] == str(number)


def test_what_one_changes_all_know(gateway: GatewayProcess) -> None:
    def everywhere(check: Callable[[], bool]) -> None:
        wait_for(lambda: all(check() for _ in range(6)), 60)

    entry = {"server_id": "late", **odd("echo")}
    assert httpx.post(f"{gateway.url}/api/v1/servers", json=entry, timeout=180).json()["success"]
    everywhere(lambda: bool(call(gateway, "late__echo", text="hi")["success"]))
    httpx.post(f"{gateway.url}/api/v1/tools/late__echo/disable").raise_for_status()
    everywhere(lambda: not call(gateway, "late__echo", text="hi")["success"])
    httpx.delete(f"{gateway.url}/api/v1/servers/late").raise_for_status()
    everywhere(lambda: "late" not in {one["server_id"] for one in ask(gateway, "/api/v1/servers")["servers"]})


def test_a_session_of_mcp_goes_on_over_any_connection(gateway: GatewayProcess) -> None:
    opening = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    headers = {"accept": "application/json, text/event-stream"}

    def post(method: str, params: dict[str, Any]) -> httpx.Response:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return httpx.post(f"{gateway.url}/mcp", json=body, headers=headers, timeout=120)

    headers["mcp-session-id"] = post("initialize", opening).headers["mcp-session-id"]
    for _ in range(8):
        said = post("tools/call", {"name": "fix__test_simple_text", "arguments": {}})
        assert said.status_code == 200
        assert "simple text" in said.text


@pytest.mark.long
def test_each_event_is_told_once_in_one_order(gateway: GatewayProcess) -> None:
    streams: list[list[int]] = [[] for _ in range(4)]
    since = ask(gateway, "/api/v1/stats")["last_event_seq"]

    def listen(seen: list[int]) -> None:
        url = f"{gateway.url}/api/v1/events/stream"
        with httpx.stream("GET", url, params={"since": since}, timeout=120) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    event = json.loads(line[5:])
                    if event["type"] in ("tool_disabled", "tool_enabled"):
                        seen.append(event["seq"])
                if len(seen) >= 20:
                    return

    threads = [threading.Thread(target=listen, args=(seen,), daemon=True) for seen in streams]
    for thread in threads:
        thread.start()
    for _ in range(10):
        for how in ("disable", "enable"):
            httpx.post(f"{gateway.url}/api/v1/tools/good__echo/{how}", timeout=120).raise_for_status()
    wait_for(lambda: all(len(seen) >= 20 for seen in streams), 60, "for all events")
    for thread in threads:
        thread.join()
    assert all(seen[:20] == sorted(set(seen[:20])) == streams[0][:20] for seen in streams)


def test_figures_are_of_all_together(gateway: GatewayProcess) -> None:
    with one_each(gateway) as clients:

        def tools() -> list[int]:
            """As each worker counts the calls of a tool."""
            said = [client.get("/api/v1/tools/fix__test_simple_text").json()["data"] for client in clients]
            return [int(one["windows"]["1h"]["count"]) for one in said]

        def counted() -> set[float]:
            found = set()
            for client in clients:
                line = r'toolscore_tool_calls_total\{outcome="ok",tool="fix__test_simple_text"\} (\S+)'
                one = re.search(line, client.get("/metrics").text)
                found.add(float(one.group(1)) if one else 0.0)
            return found

        (was,) = counted()
        wait_for(lambda: tools() == [was] * WORKERS, 60, "for what was before")
        for number in range(20):
            assert call(gateway, "fix__test_simple_text", clients[number % WORKERS])["success"]
        assert counted() == {was + 20}
        wait_for(lambda: tools() == [was + 20] * WORKERS, 60, "for the sum")
        for client in clients:
            data = client.get("/api/v1/stats").json()["data"]
            hour = data["windows"]["1h"]
            assert hour["count"] == data["calls_total"] == sum(data["outcomes"].values())
            assert hour["min_ms"] <= hour["p50_ms"] <= hour["max_ms"]


def test_every_call_is_in_one_journal_under_an_id_of_its_own(gateway: GatewayProcess) -> None:
    made = {call(gateway, "good__echo", text=f"{number}")["data"]["call_id"] for number in range(40)}
    assert len(made) == 40

    def kept() -> set[str]:
        return {one["call_id"] for one in ask(gateway, "/api/v1/calls", tool_id="good__echo", limit=200)["calls"]}

    wait_for(lambda: made <= kept())


@pytest.mark.long
def test_a_budget_is_of_all_together() -> None:
    with several({"good": odd("echo")}, settings="rates: {per_minute: 6, burst: 10}\n") as process:
        key = httpx.post(f"{process.url}/api/v1/keys", json={"name": "ada"}).json()["data"]["key"]
        taken, began = 0, time.monotonic()
        for number in range(30):
            said = httpx.post(
                f"{process.url}/execute_tool",
                json={"tool_id": "good__echo", "parameters": {"text": f"{number}"}},
                headers={"x-api-key": key},
                timeout=180,
            ).json()
            taken += bool(said["success"])
        assert 10 <= taken <= 11 + (time.monotonic() - began) / 10  # ten, and what six a minute give meanwhile


@pytest.mark.long
def test_no_result_is_given_that_another_worker_made_old(tmp_path: Path) -> None:
    """Results are kept, and a call that may write ends them at once, over whichever connection it comes."""
    settings = "cache: {tools: {city__look: 300}, shared: ['*']}\n"
    with several({"city": Fickle(tmp_path).entry}, settings=settings) as process, one_each(process) as (one, other):

        def kept(client: httpx.Client) -> bool:
            return bool(call(process, "city__look", client, city="Oslo")["performance"]["cache_hit"])

        for number in range(20):
            wait_for(lambda: kept(one) and kept(other), 60, "for results that are kept")
            writer, reader = (one, other) if number % 2 else (other, one)
            assert call(process, "city__write", writer, city="Oslo")["success"]
            assert not kept(reader)


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced_and_calls_go_on(gateway: GatewayProcess) -> None:
    before = workers_of(gateway)
    victim = next(one for one in psutil.Process(gateway.pid).children() if _listens(one, gateway))
    answered, failed, ended = [0], [], threading.Event()

    def load() -> None:
        while not ended.is_set():
            try:
                said = call(gateway, "fix__test_simple_text")
            except httpx.TransportError as exc:
                failed.append(type(exc).__name__)
                continue
            if said["success"]:
                answered[0] += 1
            else:
                failed.append(said["error"]["code"])

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: answered[0] > 50, 60)
        victim.kill()
        count = answered[0]
        wait_for(lambda: answered[0] > count + 200, 120, "for calls after the kill")
        wait_for(lambda: len(workers_of(gateway)) == WORKERS and workers_of(gateway) != before, 120)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert len(failed) <= 12, failed  # four callers, and what was under way at its servers
    gateway.wait_for_output("another takes its place")
    assert call(gateway, "good__echo", text="hi")["success"]


@pytest.mark.long
def test_host_and_recorder_that_are_killed_are_replaced(gateway: GatewayProcess) -> None:
    ours = [one for one in psutil.Process(gateway.pid).children() if not _listens(one, gateway)]
    assert len(ours) == 2
    for one in ours:
        one.kill()
    for _ in range(20):
        assert call(gateway, "good__echo", text="hi")["success"]
    wait_for(
        lambda: len([one for one in psutil.Process(gateway.pid).children() if one.is_running()]) == 2 + WORKERS, 30
    )
    last = call(gateway, "good__echo", text="after")["data"]["call_id"]
    wait_for(lambda: last in {one["call_id"] for one in ask(gateway, "/api/v1/calls", limit=50)["calls"]}, 60)
    wait_for(lambda: ask(gateway, "/health")["status"] == "healthy", 60)


def _listens(one: psutil.Process, process: GatewayProcess) -> bool:
    """Whether a process takes clients' connections: it is a worker."""
    port = int(process.url.rpartition(":")[2])
    with contextlib.suppress(psutil.Error):
        connections = one.net_connections("tcp")
        return any(link.laddr.port == port for link in connections)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.long
def test_one_signal_ends_it_all_and_calls_under_way_are_answered(number: int) -> None:
    servers, patient = {"good": odd("echo"), "fix": fixture("stdio")}, "servers: {grace_seconds: 60}\n"
    with several(servers, settings=patient, journal=True, python=True) as process:
        everything = process.family()
        said: list[dict[str, Any]] = []
        body = {"tool_id": PYTHON,
                "parameters": {"code": "import time; time.sleep(10); 42"}}  # fmt: skip

        def run() -> None:
            said.append(httpx.post(f"{process.url}/execute_tool", json=body, timeout=120).json())

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: ask(process, "/api/v1/stats")["calls_in_flight"] == 4, 60)
        os.kill(process.pid, number)
        for thread in threads:
            thread.join()
        assert [one["success"] for one in said] == [True] * 4, said
        assert process.process is not None
        assert process.process.wait(30) == 0
        _, alive = psutil.wait_procs(everything, 10)
        assert alive == []


@pytest.mark.long
def test_a_launcher_that_is_killed_leaves_nobody() -> None:
    with several({"good": odd("echo")}, journal=True) as process:
        everything = [one for one in process.family() if one.pid != process.pid]
        assert len(everything) >= 2 + WORKERS
        os.kill(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(everything, 30)
        assert alive == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "a number from 1 to 64, or auto"),
        (["--workers", "many"], "a number from 1 to 64, or auto"),
        (["--workers", "2", "--while-used"], "leave out --workers"),
    ],
)
@pytest.mark.long
def test_what_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolscore", "serve", *arguments], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.long
def test_one_port_for_hops_is_refused_where_each_worker_needs_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolscore", "serve", "--workers", "2"],
        env={
            **os.environ,
            "TOOLSCORE_STORAGE__REDIS_URL": "redis://127.0.0.1:1/0",
            "TOOLSCORE_REPLICAS__PORT": "7400",
            "TOOLSCORE_STORAGE__DATA_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
    )
    assert done.returncode == 78
    assert "replicas.port must be 0" in done.stderr


@pytest.mark.long
def test_a_port_that_is_taken_is_said_once() -> None:
    with several() as process:
        port = int(process.url.rpartition(":")[2])
        done = subprocess.run(
            [sys.executable, "-m", "toolscore", "serve", "--workers", "2"],
            env={
                **os.environ,
                "TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT": str(port),
                "TOOLSCORE_CORE_SERVICES__TOOLSCORE_MCP__PORT": str(free_port()),
                "TOOLSCORE_STORAGE__DATA_DIR": str(process.folder / "other"),
            },
            capture_output=True, text=True, timeout=180, cwd=process.folder,
        )  # fmt: skip
        assert done.stderr.count("cannot listen") == 1


@pytest.mark.long
def test_other_settings_hold_at_all_workers_and_at_one_that_takes_anothers_place() -> None:
    settings = "journal: {{enabled: {}}}\nlimits: {{max_sessions: {}}}\n"
    with several({"good": odd("echo")}, settings=settings.format("false", 11)) as gateway:

        def in_force(client: httpx.Client) -> tuple[str, int]:
            found = {one["key"]: one["value"] for one in client.get("/api/v1/settings").json()["data"]["settings"]}
            return client.get("/health").json()["data"]["status"], found["limits.max_sessions"]

        def running() -> set[int]:
            return {one.pid for one in gateway.family() if command_of(one)[-1:] == ["echo"]}

        before = running()
        gateway.servers({"good": odd("echo", env={"OTHER": "1"})})
        wait_for(lambda: running().isdisjoint(before) and running(), 120)
        after = running()
        main = gateway.config / "toolscore.yaml"
        rest = main.read_text().replace(settings.format("false", 11), "")
        main.write_text(settings.format("true", 22) + rest)
        with one_each(gateway) as clients:
            wait_for(lambda: all(in_force(client)[1] == 22 for client in clients), 120)
            assert call(gateway, "good__echo", clients[0], text="hi")["success"]
        wait_for(lambda: ask(gateway, "/api/v1/calls")["calls"], 120, "for the journal")
        assert running() == after, "it runs once, as before"

        main.write_text(settings.format("true", 33) + rest + "nonsense: 1\n")
        with one_each(gateway) as clients:
            wait_for(lambda: all(in_force(client)[0] == "degraded" for client in clients), 120)
        known = workers_of(gateway)
        next(one for one in psutil.Process(gateway.pid).children() if _listens(one, gateway)).kill()
        wait_for(lambda: len(workers_of(gateway)) == WORKERS and workers_of(gateway) != known, 120)
        with one_each(gateway) as clients:
            assert {in_force(client) for client in clients} == {("degraded", 22)}
