"""Starting, reloading, being killed, and starting again: nothing lost, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support import EXECUTOR, PYTHON, GatewayProcess, bearer, free_port, odd, process_gone, running_gateway, wait_for
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

pytestmark = pytest.mark.long


def test_it_is_ready_whatever_its_servers_do() -> None:
    servers: dict[str, Any] = {f"silent{number}": odd("silent") for number in range(3)}
    servers["nowhere"] = {"url": f"http://127.0.0.1:{free_port()}/mcp"}
    servers["missing"] = {"command": "no-such-program"}
    with running_gateway(servers, journal=True, python=True) as process:
        assert process.text(PYTHON, {"code": "'at once'"}) == "'at once'"
        assert process.server("silent0")["state"] == "starting"


def test_sigterm_ends_everything_in_order() -> None:
    with running_gateway(
        {"family": odd("family", "/dev/null"), "slow": odd("slow", "/dev/null")}, journal=True, python=True
    ) as process:
        process.wait_for_state("family", "up")
        process.wait_for_state("slow", "up")
        family = process.family()
        assert len(family) >= 5, "two reapers, two servers, a grandchild"
        assert process.stop() == 0
        wait_for(lambda: all(process_gone(member.pid) for member in family), 60)
        assert "Traceback" not in process.output()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_server_that_will_not_go_is_gone_all_the_same(end: str) -> None:
    with running_gateway({"stubborn": odd("stubborn")}, journal=True, python=True) as process:
        pid = process.wait_for_state("stubborn", "up")["pid"]
        family = process.family()
        getattr(process, end)()
        wait_for(lambda: process_gone(pid) and all(process_gone(member.pid) for member in family), 60)


def test_calls_under_way_at_the_end_are_answered(tmp_path: Path) -> None:
    settings = "servers: {grace_seconds: 1.5}"
    servers = {"slow": odd("slow", tmp_path / "notes")}
    with running_gateway(servers, settings=settings, journal=True, python=True) as process:
        process.wait_for_state("slow", "up")
        with ThreadPoolExecutor(2) as pool:
            long = pool.submit(process.execute, "slow__echo", {"text": "x"})
            quick: list[Future[dict[str, Any]]] = []

            def both_are_under_way() -> bool:
                if not quick or quick[-1].done():
                    quick.append(pool.submit(process.execute, "slow__echo", {"text": "progress"}))
                return bool(process.get("/api/v1/stats")["calls_in_flight"] == 2)

            wait_for(both_are_under_way)
            began = time.monotonic()
            assert process.stop() == 0
            assert time.monotonic() - began > 1.5, "it has its grace"
            assert quick[-1].result()["success"] is True
            assert long.result()["error"]["code"] == "outcome_unknown"
            assert "shut down" in long.result()["error"]["message"]
        assert "Traceback" not in process.output()


def test_one_that_leaves_says_so_and_serves_on() -> None:
    with running_gateway({"good": odd("echo")}, settings="servers: {leave_seconds: 6}") as process:
        process.wait_for_state("good", "up")
        assert process.http.get("/readyz").status_code == 200
        assert process.process is not None
        process.process.send_signal(signal.SIGTERM)
        wait_for(lambda: process.http.get("/readyz").status_code == 503)
        assert process.http.get("/livez").status_code == 200
        until = time.monotonic() + 2.5  # uvicorn makes its headers anew each second
        while time.monotonic() < until:
            answer = process.http.post("/execute_tool", json={"tool_id": "good__echo", "parameters": {"text": "hi"}})
            assert answer.json()["success"]
            assert answer.headers["connection"] == "close", "the next request goes elsewhere"
        assert process.process.wait(60) == 0


def test_asked_twice_it_ends_at_once() -> None:
    with running_gateway({"never": odd("never")}, journal=True, python=True) as process:
        process.wait_for_state("never", "up")
        family = process.family()
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(process.execute, "never__echo", {"text": "x"})
            wait_for(lambda: process.get("/api/v1/stats")["calls_in_flight"] == 1)
            assert process.process is not None
            process.process.send_signal(signal.SIGINT)
            wait_for(lambda: "waiting for calls" in process.output())
            process.process.send_signal(signal.SIGINT)
            assert process.process.wait(3) == 130
            assert calling.exception() is not None
        wait_for(lambda: all(process_gone(member.pid) for member in family), 60)


class Callers:
    """Threads that call one tool again and again."""

    def __init__(self, process: GatewayProcess, tool_id: str, parameters: dict[str, Any], count: int = 4) -> None:
        self.answers: list[dict[str, Any]] = []
        self._stop = threading.Event()

        def calls() -> None:
            while not self._stop.is_set():
                try:
                    self.answers.append(process.execute(tool_id, parameters))
                except Exception as exc:
                    self.answers.append({"success": False, "error": {"code": "unreachable", "message": repr(exc)}})
                    time.sleep(0.05)

        self._threads = [threading.Thread(target=calls) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def more(self, count: int, seconds: float = 30) -> None:
        """Wait for so many more answers."""
        target = len(self.answers) + count
        wait_for(lambda: len(self.answers) >= target, seconds, "for more calls")

    def stop(self) -> list[dict[str, Any]]:
        """All failures."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        return [answer for answer in self.answers if not answer["success"] or answer["data"]["is_error"]]


def test_kill_9_of_the_gateway_leaves_nothing_behind_and_loses_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with running_gateway({"family": odd("family", pids), "many": odd("many")}, journal=True, python=True) as process:
        process.wait_for_state("family", "up")
        process.wait_for_state("many", "up")

        async def dial_again_and_again(stop: asyncio.Event) -> None:
            """A server that dials in, as one would write it: back again whenever the gateway is."""
            while not stop.is_set():
                try:
                    async with connect(process.register_url, subprotocols=[Subprotocol("mcp")]) as link:
                        hello = {
                            "jsonrpc": "2.0",
                            "id": 0,
                            "method": "toolscore/register",
                            "params": {"server_id": "far"},
                        }
                        await link.send(json.dumps(hello))
                        await link.recv()
                        async for message in link:
                            request = json.loads(message)
                            result: dict[str, Any] = {
                                "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                                               "serverInfo": {"name": "far", "version": "1"}},
                                "tools/list": {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]},
                                "tools/call": {"content": [{"type": "text", "text": "from afar"}]},
                            }.get(request["method"], {})  # fmt: skip
                            if "id" in request:
                                await link.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))
                except OSError:
                    pass
                except Exception as exc:
                    if "websockets" not in type(exc).__module__:
                        raise
                await asyncio.sleep(0.05)

        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        dialler = threading.Thread(target=lambda: loop.run_until_complete(dial_again_and_again(stop)))
        dialler.start()
        try:
            wait_for(lambda: process.execute("far__hello")["success"], message="for the dialled-in server")
            wait_for(lambda: process.event_seen("server_up", server_id="far"))
            events = process.events()
            tools = process.get("/api/v1/tools", limit=1000)["total_count"]
            callers = Callers(process, "many__tool_001", {"text": "x"})
            callers.more(200)
            family = [member.pid for member in process.family()]
            grandchild = int(pids.read_text())
            assert not process_gone(grandchild)
            process.kill()
            wait_for(lambda: all(process_gone(pid) for pid in (*family, grandchild)), 60, "for the orphans' end")
            process.start()
            assert process.get("/api/v1/tools", limit=1000)["total_count"] == tools, "listed before its server is up"
            after = process.events()
            assert after[: len(events)] == events
            sequence = [event["seq"] for event in after]
            assert sequence == sorted(set(sequence))
            process.wait_for_state("many", "up")
            wait_for(lambda: process.execute("far__hello")["success"], message="for the server to dial again")
            callers.more(100)
            callers.stop()
            assert all(answer["success"] for answer in callers.answers[-50:])
        finally:
            loop.call_soon_threadsafe(stop.set)
            process.stop()
            dialler.join(10)


def test_a_reload_adds_removes_and_leaves_the_rest_alone() -> None:
    with running_gateway(
        {"stays": odd("echo"), "goes": odd("echo"), "changes": odd("echo")}, journal=True, python=True
    ) as process:
        pid = process.wait_for_state("stays", "up")["pid"]
        process.wait_for_state("goes", "up")
        process.wait_for_state("changes", "up")
        callers = Callers(process, "stays__echo", {"text": "x"})
        changing = Callers(process, "changes__echo", {"text": "x"})
        long = ThreadPoolExecutor(1).submit(process.text, "changes__echo", {"text": "sleep 4"})
        wait_for(lambda: process.server("changes")["calls_in_flight"] >= 1)
        process.servers({"stays": odd("echo"), "changes": odd("echo", "again"), "comes": odd("echo")})
        wait_for(lambda: process.event_seen("settings_applied"), message="for the reload")
        process.wait_for_state("comes", "up")
        wait_for(lambda: process.http.get("/api/v1/servers/goes").status_code == 404)
        assert process.http.get("/api/v1/tools/goes__echo").status_code == 404
        assert process.text("comes__echo", {"text": "hi"}) == "hi"
        assert process.server("changes")["args"][-1] == "again"
        callers.more(50)
        changing.more(50)
        assert callers.stop() == []
        assert changing.stop() == [], "a server that is replaced loses no call"
        assert long.result() == "slept", "a call under way ends where it began"
        assert process.server("stays")["pid"] == pid
        applied = process.event_seen("settings_applied")
        assert applied is not None
        assert applied["changed"] == ["mcpServers.changes", "mcpServers.comes", "mcpServers.goes"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("mcp_servers.json", '{"mcpServers": {\n"alpha": {"comand": "x"}}}', "mcp_servers.json:2"),
        ("mcp_servers.json", "{", "not JSON"),
        ("toolscore.yaml", "limits:\n  max_body_byte: 1\n", "did you mean 'max_body_bytes'"),
        ("toolscore.yaml", "storage: {data_dir: /elsewhere}\n", "needs a restart"),
        ("mcp_servers.json", '{"mcpServers": {"alpha": {"command": "no-such-program"}}}', "was not found on PATH"),
    ],
)
def test_a_reload_with_a_mistake_is_rejected_and_the_old_keeps_running(file: str, text: str, said: str) -> None:
    with running_gateway({"alpha": odd("echo")}, journal=True, python=True) as process:
        process.wait_for_state("alpha", "up")
        pid = process.server("alpha")["pid"]
        (process.config / file).write_text(text)
        rejected = wait_for(lambda: process.event_seen("settings_rejected"), message="for the rejection")
        assert said in rejected["reason"]
        assert process.text("alpha__echo", {"text": "still here"}) == "still here"
        assert process.get("/health")["checks"]["settings"]["status"] == "degraded"
        assert process.server("alpha")["pid"] == pid


def test_changes_within_a_second_count_once() -> None:
    with running_gateway(journal=True, python=True) as process:
        pause = threading.Event()
        for number in range(10):
            process.servers({f"s{number}": odd("echo")})
            pause.wait(0.06)
        process.wait_for_state("s9", "up")
        applied = [event for event in process.events() if event["type"] == "settings_applied"]
        assert [event["changed"] for event in applied] == [["mcpServers.s9"]]


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_flipping_the_executors_switch_under_load_fails_no_call(way: str) -> None:
    with running_gateway(journal=True, python=True) as process:
        if way == "tcp":
            process.unix_socket = Path("/nonexistent")
            process.stop()
            (process.config / "ports_config.yaml").write_text(
                (process.config / "ports_config.yaml").read_text().replace("unix_socket:", "unix_socket: null #")
            )
            text = f"  toolscore_mcp: {{port: {process.router_port}}}\n"
            lines = (process.config / "ports_config.yaml").read_text().splitlines(keepends=True)
            (process.config / "ports_config.yaml").write_text(
                "".join(text if "toolscore_mcp" in x else x for x in lines)
            )
            process.start()
        original = (process.config / "ports_config.yaml").read_text()
        callers = Callers(process, PYTHON, {"code": "print(6 * 7)"}, count=3)
        try:
            for mode, kind in (("false", "websocket"), ("true", "inprocess")):
                (process.config / "ports_config.yaml").write_text(
                    original.replace("executor: true", f"executor: {mode}")
                )

                def flipped(kind: str = kind) -> bool:
                    assert [event for event in process.events() if event["type"] == "settings_rejected"] == []
                    return bool(process.server(EXECUTOR)["kind"] == kind)

                wait_for(flipped, 120, f"for {kind}")
                callers.more(20)
        finally:
            failures = callers.stop()
        assert failures == []
        assert all(answer["data"]["content"][0]["text"] == "42" for answer in callers.answers)
        wait_for(lambda: not any("mcp_servers.python_executor" in line for line in process.commands()), 60)


def test_the_executor_apart_serves_http_too() -> None:
    secret = "0123456789abcdef"
    with running_gateway(
        ports="use_inprocess_python_executor: false", journal=True, python=True, start=False
    ) as process:
        prefix = "TOOLSCORE_MCP_SERVERS__PYTHON_EXECUTOR__"
        process.environment = {f"{prefix}PORT": str(process.executor_port), f"{prefix}SECRET": "${env:OF_THE_EXECUTOR}",
                               "OF_THE_EXECUTOR": secret}  # fmt: skip
        process.start()
        server = process.wait_for_state(EXECUTOR, "up")
        assert server["kind"] == "websocket"
        url = f"http://127.0.0.1:{process.executor_port}/mcp"
        ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert [httpx.post(url, json=ask, headers=shown).status_code for shown in ({}, bearer("wrong"))] == [401, 401]
        foreign = {**bearer(secret), "host": "evil.example", "accept": "application/json, text/event-stream"}
        assert httpx.post(url, json=ask, headers=foreign).status_code == 421
        assert process.text(PYTHON, {"code": "2 ** 100"}) == str(2**100)
        process.http.post("/api/v1/servers", json={"server_id": "again", "url": url, "headers": bearer(secret)})
        process.wait_for_state("again", "up")
        assert process.text("again__python_execute", {"code": "3 ** 3"}) == "27"
        os.kill(server["pid"], signal.SIGKILL)
        wait_for(lambda: process.server(EXECUTOR)["pid"] not in (None, server["pid"]), 60)
        process.wait_for_state(EXECUTOR, "up")
        assert process.text(PYTHON, {"code": "1"}) == "1"


def serve(process: GatewayProcess, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolscore", "serve", "--config", str(process.config), *arguments],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_taken_port_is_one_clear_line_and_its_own_exit_code() -> None:
    with running_gateway(start=False, journal=True, python=True) as process, socket.socket() as holder:
        holder.bind(("127.0.0.1", process.http_port))
        holder.listen()
        done = serve(process)
        assert done.returncode == 73
        assert done.stderr.count("\n") == 1
        assert f"cannot listen on 127.0.0.1:{process.http_port}" in done.stderr
        assert "TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT" in done.stderr


def test_it_does_not_listen_beyond_this_machine_without_leave() -> None:
    with running_gateway(start=False, journal=True, python=True) as process:
        done = serve(process, TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__HOST="0.0.0.0")
        assert done.returncode == 73
        assert "allow_unauthenticated" in done.stderr


def test_a_config_with_a_typo_is_one_line_and_the_rest_runs() -> None:
    with running_gateway(
        {"alpha": odd("echo"), "bad": {"comand": "x"}}, settings="limitz: {}\n", start=False, journal=True, python=True
    ) as process:
        strict = serve(process, "--strict-settings")
        assert strict.returncode == 78
        process.start()
        process.wait_for_state("alpha", "up")
        lines = [line for line in process.output().splitlines() if line.startswith("settings: ")]
        assert len(lines) == 2
        assert any("did you mean 'limits'" in line for line in lines)
        assert process.server("bad")["state"] == "failed"
        assert process.get("/health")["checks"]["settings"]["status"] == "degraded"


def test_a_database_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with running_gateway(start=False, journal=True, python=True) as process:
        done = serve(process, TOOLSCORE_STORAGE__DATA_DIR=str(blocked / "data"))
        assert done.returncode == 69
        assert "cannot open the database" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_restart_finds_the_unix_socket_of_a_killed_gateway(tmp_path: Path) -> None:
    with running_gateway(journal=True, python=True) as process:
        process.kill()
        assert process.unix_socket.is_socket()
        process.start()
        assert oct(process.unix_socket.stat().st_mode)[-3:] == "600"
        process.stop()
        assert not process.unix_socket.exists()


def test_memory_and_descriptors_do_not_grow_with_calls() -> None:
    with running_gateway({"alpha": odd("echo")}, journal=True, python=True) as process:
        process.wait_for_state("alpha", "up")
        process.wait_for_state(EXECUTOR, "up")  # it opens its own in its time
        itself = psutil.Process(process.pid)

        def calls(count: int) -> None:
            for _ in range(count):
                process.text("alpha__echo", {"text": "x" * 1000})

        calls(500)
        before, descriptors = itself.memory_info().rss, itself.num_fds()
        calls(3000)
        assert itself.memory_info().rss - before < 8_000_000
        assert itself.num_fds() <= descriptors + 2


@contextlib.contextmanager
def locked(process: GatewayProcess) -> Iterator[None]:
    """The gateway's database, held by somebody else."""
    holder = sqlite3.connect(process.folder / "data" / "toolscore.db", isolation_level=None)
    holder.execute("begin exclusive")
    try:
        yield
    finally:
        holder.execute("rollback")
        holder.close()


def test_what_cannot_be_stored_is_not_promised() -> None:
    with running_gateway({"echo": odd("echo")}) as process:
        process.wait_for_state("echo", "up")
        body = {"server_id": "late", **odd("echo")}
        with locked(process):
            refused = process.http.post("/api/v1/servers", json=body)
            assert (refused.status_code, refused.json()["error"]["retryable"]) == (503, True)
            assert process.http.get("/api/v1/servers/late").status_code == 404
            assert process.text("echo__echo", {"text": "calls go on"}) == "calls go on"
        assert process.http.post("/api/v1/servers", json=body).status_code == 201
        process.wait_for_state("late", "up")
        with locked(process):
            assert process.http.delete("/api/v1/servers/late").status_code == 503
            assert process.text("late__echo", {"text": "still there"}) == "still there"
        wait_for(lambda: process.get("/health")["unwell"] == [EXECUTOR], 120, "for the fault to be over")


def test_a_start_with_fewer_servers_forgets_nothing() -> None:
    def calls(process: GatewayProcess) -> int:
        return int(process.get("/api/v1/tools/one__echo")["score"]["calls"])

    entries = {"one": odd("echo"), "two": odd("echo")}
    with running_gateway(entries) as process:
        process.wait_for_state("one", "up")
        for number in range(3):
            process.text("one__echo", {"text": str(number)})
        first_seen = process.get("/api/v1/tools/one__echo")["first_seen"]
        process.stop()
        process.servers({"two": entries["two"]})
        process.start()
        process.wait_for_state("two", "up")
        assert process.http.get("/api/v1/tools/one__echo").status_code == 404
        process.servers(entries)
        process.wait_for_state("one", "up")
        assert calls(process) == 3
        process.stop()
        process.start()
        process.wait_for_state("one", "up")
        assert calls(process) == 3
        assert process.get("/api/v1/tools/one__echo")["first_seen"] == first_seen


def test_a_data_folder_serves_one_gateway_at_a_time() -> None:
    with running_gateway({"echo": odd("echo")}) as process:
        ports = {f"TOOLSCORE_CORE_SERVICES__{name}__PORT": "0" for name in ("TOOLSCORE_HTTP", "TOOLSCORE_MCP")}
        refused = serve(process, **ports)
        assert refused.returncode == 73
        assert f"another gateway (process {process.pid}) uses the data folder" in refused.stderr
        assert f"use it at {process.url}, stop it" in refused.stderr
        process.wait_for_state("echo", "up")
        process.kill()
        process.start()  # a lock does not outlive its holder


NEVER_CLOSED = """
import asyncio, sys
from toolscore.app.summed import Summed
from toolscore.endpoints import app
from toolscore.cli.main import main

async def lost(self, *_):
    await asyncio.Event().wait()

Summed.__aexit__ = lost
app.CLOSE_SECONDS = app.SHUTDOWN_SECONDS = 0.2
sys.argv = ["toolscore", "serve", "--config", sys.argv[1]]
main()
"""


def test_a_gateway_that_cannot_close_ends_all_the_same_and_says_what_kept_it() -> None:
    with running_gateway(settings="servers: {grace_seconds: 0}", start=False) as gateway:
        command = [sys.executable, "-c", NEVER_CLOSED, str(gateway.config)]
        with subprocess.Popen(command, cwd=gateway.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            said = b""
            while b"Ctrl-C ends it" not in said:
                line = process.stdout.readline()
                assert line, said.decode()
                said += line
            process.terminate()
            said = process.communicate(timeout=120)[0]
        assert process.returncode == 1
        assert b"did not close in time" in said
        assert b"> <string>:8 lost > locks.py" in said, said.decode()
