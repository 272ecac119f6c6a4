"""What one gateway has for all: servers that are started once, servers that dialled in, sessions of Python."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import EXECUTOR, GatewayProcess, command_of, odd, wait_for

pytestmark = pytest.mark.long

KNOWN_SECONDS = 60

Replicas = list[GatewayProcess]


def known(what: Callable[[], Any], message: str = "") -> Any:
    return wait_for(what, KNOWN_SECONDS, message)


def children(process: GatewayProcess, *words: str) -> list[int]:
    """The pids of a gateway's servers whose command line ends so."""
    return [child.pid for child in process.family() if command_of(child)[-len(words) :] == list(words)]


def owner(replicas: Replicas, *words: str) -> GatewayProcess:
    def having() -> list[GatewayProcess]:
        return [process for process in replicas if process.process is not None and children(process, *words)]

    known(lambda: len(having()) == 1, "for one to have it")
    return having()[0]


def running(process: GatewayProcess, tool_id: str) -> bool:
    """Whether a call of a tool is under way."""
    return bool(process.get("/api/v1/stats")["calls_in_flight"] and tool_id)


def attach(replicas: Replicas, server_id: str, entry: dict[str, Any]) -> None:
    said = replicas[0].http.post("/api/v1/servers", json={"server_id": server_id, **entry}).json()
    assert said["success"], said
    for process in replicas:
        known(lambda process=process: process.http.get(f"/api/v1/servers/{server_id}").is_success)
        process.wait_for_state(server_id, "up")


def test_one_starts_a_server_and_all_call_it(replicas: Replicas) -> None:
    having = owner(replicas, "echo")
    for process in replicas:
        assert process.text("good__echo", {"text": "hi"}) == "hi"
        state = process.server("good")
        assert state["state"] == "up"
    other = next(process for process in replicas if process is not having)
    before = children(having, "echo")
    assert other.http.post("/api/v1/servers/good/restart").json()["success"]
    known(lambda: children(having, "echo") and not {*children(having, "echo")} & {*before}, "for a restart where it is")
    for process in replicas:
        known(lambda process=process: process.execute("good__echo", {"text": "again"})["success"])


def test_progress_and_cancelling_pass_the_hop(replicas: Replicas, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    attach(replicas, "slow", odd("slow", str(seen)))
    having = owner(replicas, "slow", str(seen))
    other = next(process for process in replicas if process is not having)
    version = "2025-06-18"
    opening = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": version}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": opening}
    headers["mcp-session-id"] = other.http.post("/mcp", json=body, headers=headers).headers["mcp-session-id"]
    call = {"name": "slow__echo", "arguments": {"text": "progress"}, "_meta": {"progressToken": "p"}}
    body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
    said = []
    with other.http.stream("POST", "/mcp", json=body, headers=headers, timeout=120) as answer:
        said = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:") and len(line) > 8]
    assert [one["params"]["progress"] for one in said[:-1]] == [0, 1, 2]
    assert all(one["params"]["progressToken"] == "p" for one in said[:-1])
    assert said[-1]["result"]["content"][0]["text"] == "done"
    with pytest.raises(httpx.ReadTimeout):
        other.http.post("/execute_tool", json={"tool_id": "slow__echo", "parameters": {"text": "slow"}}, timeout=4)
    known(lambda: seen.exists() and "cancelled" in seen.read_text(), "for the server to hear that it is cancelled")


def test_a_list_that_changes_at_the_owner_changes_for_all(replicas: Replicas) -> None:
    attach(replicas, "growing", odd("changing"))
    having = owner(replicas, "changing")
    others = [process for process in replicas if process is not having]
    assert others[0].execute("growing__echo", {"text": "another"})["success"]
    for process in replicas:
        known(
            lambda process=process: "growing__another" in {t["tool_id"] for t in process.get("/api/v1/tools")["tools"]}
        )


def test_the_next_takes_over_when_an_owner_is_killed(replicas: Replicas, tmp_path: Path) -> None:
    attach(replicas, "kept", odd("echo", str(tmp_path)))
    having = owner(replicas, "echo", str(tmp_path))
    others = [process for process in replicas if process is not having]
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(others[0].execute, "kept__echo", {"text": "sleep 20"})
        known(lambda: running(others[0], "kept__echo"), "for the call to be under way")
        having.kill()
        ended = under_way.result(15)
    assert ended["error"]["code"] == "outcome_unknown", ended
    for process in others:
        known(lambda process=process: process.execute("kept__echo", {"text": "hi"})["success"])
        assert process.text("kept__echo", {"text": "hi"}) == "hi"
    owner(others, "echo", str(tmp_path))
    having.start()
    having.wait_for_state("kept", "up")
    assert having.text("kept__echo", {"text": "hi"}) == "hi"
    owner(replicas, "echo", str(tmp_path))


def test_a_session_of_python_is_found_wherever_a_call_comes_in(replicas: Replicas) -> None:
    one, other, third = replicas
    for number, process in enumerate((one, other, third, one, other)):
        code = "n = 0\nn" if number == 0 else "n += 1\nn"
        said = process.execute(f"{EXECUTOR}__python_execute", {"code": code, "session_id": "counting"})
        assert said["success"], said
        assert said["data"]["structured_content"]["result"] == str(number), said


def test_calls_that_hop_are_answered_one_by_one_under_load(replicas: Replicas) -> None:
    wrong: list[Any] = []

    def call(process: GatewayProcess, number: int) -> None:
        for step in range(50):
            text = f"{number}-{step}"
            with httpx.Client(base_url=str(process.http.base_url), timeout=120) as http:
                said = http.post("/execute_tool", json={"tool_id": "good__echo", "parameters": {"text": text}}).json()
            if not said["success"] or said["data"]["content"][0]["text"] != text:
                wrong.append(said)

    threads = [threading.Thread(target=call, args=(process, n)) for n, process in enumerate(replicas * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]


def test_what_one_was_searched_for_the_call_on_another_teaches_all(replicas: Replicas) -> None:
    one, other, third = replicas
    task = "return the text that I say"

    def relevance(process: GatewayProcess) -> float:
        found = process.http.post("/api/v1/tools/search", json={"query": task}).json()["data"]["tools"]
        return float({tool["tool_id"]: tool["relevance"] for tool in found}["good__echo"])

    before = relevance(one)

    def taught() -> bool:
        other.execute("good__echo", {"text": "hi"})
        return relevance(third) > before

    known(taught)


def test_calls_that_stick_together_go_to_the_one_that_has_the_server(replicas: Replicas, tmp_path: Path) -> None:
    attach(replicas, "sticky", {**odd("echo", str(tmp_path)), "sticky_argument": "text"})
    for text in ("a", "b", "c"):
        for process in replicas:
            assert process.text("sticky__echo", {"text": text}) == text
