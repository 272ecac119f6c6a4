"""Servers as some are in the wild: each gets a clear outcome, and the others notice nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from support import GatewayProcess, odd, process_gone, running_gateway, wait_for
from support.stalls import stall_seconds

KINDS = ("junk", "dies", "huge", "nonsense", "refuses", "never", "long", "exact", "changing", "latin")


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    notes = tmp_path_factory.mktemp("notes") / "slow"
    servers = {kind: odd(kind) for kind in KINDS}
    servers["good"] = odd("echo")
    servers["slow"] = odd("slow", notes)
    servers["silent"] = odd("silent", start_timeout_seconds=1)
    servers["crashes"] = odd("crashes")
    servers["missing"] = {"command": "no-such-program-anywhere"}
    with running_gateway(servers, settings="servers: {max_start_failures: 2}") as process:
        process.notes = notes  # type: ignore[attr-defined]
        for server_id in (*KINDS, "good", "slow"):
            process.wait_for_state(server_id, "up")
        yield process


def test_junk_on_stdout_is_kept_for_the_curious_and_harms_nothing(wild: GatewayProcess) -> None:
    assert wild.text("junk__echo", {"text": "hi"}) == "hi"
    assert any("Welcome to my server!" in line for line in wild.server("junk")["stderr"])


def test_a_server_that_never_answers_its_start_is_given_up_with_the_reason(wild: GatewayProcess) -> None:
    server = wild.wait_for_state("silent", "failed")
    assert "did not answer within 1 s" in server["last_error"]
    assert "start_timeout_seconds" in server["last_error"]


def test_a_server_that_crashes_at_its_start_shows_its_last_lines(wild: GatewayProcess) -> None:
    server = wild.wait_for_state("crashes", "failed")
    assert "exited with code 3" in server["last_error"]
    assert "cannot open the frobnicator" in server["stderr"]


def test_a_command_that_does_not_exist_is_one_clear_line_and_no_retry(wild: GatewayProcess) -> None:
    server = wild.wait_for_state("missing", "failed")
    assert server["last_error"].startswith("command 'no-such-program-anywhere' was not found on PATH")
    assert server["restarts"] == 0
    health = wild.get("/health")
    assert health["status"] == "degraded"
    assert "missing" in health["unwell"]


def test_a_call_that_gets_no_answer_ends_at_its_timeout_as_outcome_unknown(wild: GatewayProcess) -> None:
    answer = wild.execute("never__echo", {"text": "x"}, timeout_seconds=0.3)
    assert answer["error"]["code"] == "outcome_unknown"
    assert answer["error"]["retryable"] is False


def test_a_call_of_a_read_only_tool_that_gets_no_answer_may_be_repeated(wild: GatewayProcess) -> None:
    answer = wild.execute("never__safe", {"text": "x"}, timeout_seconds=0.3)
    assert answer["error"]["code"] == "upstream_timeout"
    assert answer["error"]["retryable"] is True


@pytest.mark.long
def test_a_server_that_dies_during_a_call_is_known_at_once_and_comes_back(wild: GatewayProcess) -> None:
    started = time.monotonic()
    answer = wild.execute("dies__echo", {"text": "x"}, timeout_seconds=30)
    assert answer["error"]["code"] == "outcome_unknown"
    assert "SIGKILL" in answer["error"]["message"]
    assert time.monotonic() - started < 5, "the answer waited for the time-out"
    answer = wild.execute("dies__safe", {"text": "x"})
    assert answer["error"]["code"] == "upstream_unavailable"
    wild.wait_for_state("dies", "up", seconds=10)


def test_a_result_over_the_bound_fails_its_call_and_no_other(wild: GatewayProcess) -> None:
    with ThreadPoolExecutor(4) as pool:
        huge = pool.submit(wild.execute, "huge__echo", {"text": "x"})
        others = [pool.submit(wild.text, "good__echo", {"text": str(number)}) for number in range(20)]
        assert [other.result() for other in others] == [str(number) for number in range(20)]
        answer = huge.result()
    assert answer["error"]["code"] == "upstream_protocol_error"
    assert "over the bound of 16,777,216" in answer["error"]["message"]
    assert wild.server("huge")["state"] == "up"


def test_nonsense_is_a_protocol_error(wild: GatewayProcess) -> None:
    response = wild.http.post("/execute_tool", json={"tool_id": "nonsense__echo", "parameters": {"text": "x"}})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_protocol_error"


def test_a_refusal_says_what_the_server_said(wild: GatewayProcess) -> None:
    answer = wild.execute("refuses__echo", {"text": "x"})
    assert answer["error"]["code"] == "upstream_protocol_error"
    assert "not today" in answer["error"]["message"]


def test_numbers_and_unknown_fields_pass_unchanged(wild: GatewayProcess) -> None:
    response = wild.http.post("/execute_tool", json={"tool_id": "exact__echo", "parameters": {"text": "x"}})
    assert b'"big":123456789012345678901234567890,"e":1.50e1' in response.content
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
               "params": {"name": "exact__echo", "arguments": {"text": "x"}}}  # fmt: skip
    assert b'"new":[null]' in wild.http.post("/mcp", json=request).content


def test_an_answer_that_is_not_utf_8_is_mended_and_what_stands_before_it_harms_nothing(wild: GatewayProcess) -> None:
    assert wild.text("latin__echo", {"text": "x"}, timeout_seconds=5) == "caf\ufffd"


@pytest.mark.long
def test_a_server_that_keeps_its_list_to_itself_is_restarted_and_detached_all_the_same() -> None:
    with running_gateway() as process:
        process.http.post("/api/v1/servers", json={"server_id": "secretive", **odd("secretive")})
        pid = process.wait_for_state("secretive", "up")["pid"]
        assert process.text("secretive__echo", {"text": "x"}) == "told"
        threading.Event().wait(0.3)  # by now it is being asked
        process.http.post("/api/v1/servers/secretive/restart")
        wait_for(lambda: process.server("secretive")["pid"] not in (None, pid), 60, "for the restart")
        process.wait_for_state("secretive", "up")
        assert process.http.delete("/api/v1/servers/secretive").status_code == 200


@pytest.mark.long
def test_an_id_is_free_only_when_all_of_the_old_server_is_gone() -> None:
    with running_gateway() as process, ThreadPoolExecutor(2) as pool:
        process.http.post("/api/v1/servers", json={"server_id": "s", **odd("echo")})
        process.wait_for_state("s", "up")
        long = pool.submit(process.execute, "s__echo", {"text": "sleep 2"})
        wait_for(lambda: process.server("s")["calls_in_flight"] == 1)
        detaching = pool.submit(process.http.delete, "/api/v1/servers/s")
        again = process.http.post("/api/v1/servers", json={"server_id": "s", **odd("echo")})
        assert again.status_code == 409
        assert long.result()["success"] is True
        assert detaching.result().status_code == 200
        assert process.http.post("/api/v1/servers", json={"server_id": "s", **odd("echo")}).status_code == 201
        process.wait_for_state("s", "up")
        assert process.text("s__echo", {"text": "anew"}) == "anew"


def test_names_that_models_cannot_take_are_shortened_and_still_callable(wild: GatewayProcess) -> None:
    ids = wild.server("long")["tool_ids"]
    assert len(set(ids)) == 3
    for tool_id in ids:
        assert len(tool_id) <= 64
        assert tool_id.isascii()
        assert wild.text(tool_id, {"text": tool_id}) == tool_id


def test_a_changed_list_reaches_the_library_and_becomes_an_event(wild: GatewayProcess) -> None:
    assert wild.text("changing__echo", {"text": "newcomer"}) == "added"
    wait_for(lambda: wild.execute("changing__newcomer", {"text": "another"})["success"], message="for the new tool")
    event = wait_for(lambda: wild.event_seen("tool_installed", tool_id="changing__newcomer"))
    assert event["status"] == "ready"
    assert event["server_id"] == "changing"


def test_a_caller_that_hangs_up_cancels_the_work(wild: GatewayProcess) -> None:
    with pytest.raises(httpx.ReadTimeout):
        wild.http.post(
            "/execute_tool",
            json={"tool_id": "slow__echo", "parameters": {"text": "x"}},
            timeout=httpx.Timeout(5, read=0.3),
        )
    notes: Path = wild.notes  # type: ignore[attr-defined]
    wait_for(lambda: notes.exists() and "cancelled" in notes.read_text(), message="for the cancellation")


def test_a_timeout_cancels_the_work(wild: GatewayProcess) -> None:
    notes: Path = wild.notes  # type: ignore[attr-defined]
    before = notes.read_text().count("cancelled") if notes.exists() else 0
    assert wild.execute("slow__echo", {"text": "x"}, timeout_seconds=0.2)["error"]["code"] == "outcome_unknown"
    wait_for(lambda: notes.exists() and notes.read_text().count("cancelled") > before)


def test_a_server_gets_an_allow_listed_environment(gateway: GatewayProcess) -> None:
    environment = json.loads(gateway.text("alpha__env", {"text": ""}))
    assert "SECRET_OF_THE_GATEWAY" not in environment
    assert "PATH" in environment


@pytest.mark.long
def test_references_to_the_environment_are_resolved_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "t0ken")
    env = {
        "A": "Bearer ${env:MY_TOKEN}",
        "B": "${MY_TOKEN}",
        "C": "${MISSING:-by default}",
        "D": "${",
        "E": "$HOME",
    }
    servers = {"good": odd("env", env=env), "bad": odd("env", env={"A": "${env:NO_SUCH_VARIABLE}"}),
               "unset": odd("env", env={"A": "${NOTHING_OF_THE_KIND}"}),
               "editor": odd("env", env={"A": "${input:api-key}"})}  # fmt: skip
    with running_gateway(servers) as process:
        process.wait_for_state("good", "up")
        got = json.loads(process.text("good__env", {"text": ""}))
        expected = {"A": "Bearer t0ken", "B": "t0ken", "C": "by default", "D": "${", "E": "$HOME"}
        assert {name: got[name] for name in env} == expected
        assert "t0ken" not in process.http.get("/api/v1/servers/good").text
        assert "NO_SUCH_VARIABLE" in process.wait_for_state("bad", "failed")["last_error"]
        assert "NOTHING_OF_THE_KIND" in process.wait_for_state("unset", "failed")["last_error"]
        assert "${env:API_KEY}" in process.wait_for_state("editor", "failed")["last_error"]


@pytest.mark.long
def test_what_a_server_started_dies_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with running_gateway({"family": odd("family", pids)}) as process:
        server = process.wait_for_state("family", "up")
        grandchild = int(pids.read_text())
        assert not process_gone(grandchild)
        import os
        import signal

        os.kill(server["pid"], signal.SIGKILL)
        wait_for(lambda: process_gone(grandchild), 60, "for the grandchild's end")
        wait_for(lambda: len(pids.read_text().split()) == 2, 60, "for the restart")
        second = int(pids.read_text().split()[1])
        process.stop()
        assert process_gone(second)


@pytest.mark.long
def test_kill_9_of_a_server_under_load_loses_only_what_was_in_flight() -> None:
    import os
    import signal

    with running_gateway({"good": odd("echo")}) as process:
        pid = process.wait_for_state("good", "up")["pid"]
        outcomes: list[dict[str, object]] = []
        stop = threading.Event()

        def calls() -> None:
            while not stop.is_set():
                outcomes.append(process.execute("good__echo", {"text": "x"}))

        threads = [threading.Thread(target=calls) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(outcomes) > 100)
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: process.server("good")["pid"] not in (None, pid), 60)
        back_after = time.monotonic() - killed_at
        count = len(outcomes)
        wait_for(lambda: len(outcomes) > count + 100)
        stop.set()
        for thread in threads:
            thread.join()
        failed = [answer["error"]["code"] for answer in outcomes if not answer["success"]]  # type: ignore[index]
        assert set(failed) <= {"outcome_unknown", "upstream_unavailable"}
        assert len(failed) <= 8
        assert all(answer["success"] for answer in outcomes[-50:])
        assert back_after < 5  # the promise is 2 s; a busy machine gets some more


@pytest.mark.long
def test_a_lazy_server_starts_at_its_first_call_and_stops_when_idle(tmp_path: Path) -> None:
    servers = {"lazy": odd("echo", lazy=True, idle_stop_seconds=0.5)}
    with running_gateway(servers) as process:
        wait_for(lambda: process.server("lazy")["tools"], message="for it to start once, to learn its tools")
        process.wait_for_state("lazy", "idle")
        assert process.server("lazy")["pid"] is None
        assert process.get("/api/v1/tools/lazy__echo")["available"] is True
        assert process.text("lazy__echo", {"text": "woken"}) == "woken"
        process.wait_for_state("lazy", "idle")
        process.stop()
        process.start()
        assert process.server("lazy")["state"] == "idle", "its tools are known: it need not start"
        tool = process.get("/api/v1/tools/lazy__echo")
        assert (tool["available"], tool["server_state"]) == (True, "idle"), "a call starts it"
        assert process.text("lazy__echo", {"text": "again"}) == "again"


UNCOUNTED = {"TEST_COVERAGE": ""}
"""Counting lines takes CPU time, too."""


@pytest.mark.parametrize(("what", "cut"), [("breaks", True), ("words", True), ("notes", False)])
@pytest.mark.long
def test_a_server_that_floods_keeps_nobody_waiting(what: str, cut: bool) -> None:
    servers = {"good": odd("echo"), "flood": odd("floods", what)}
    with running_gateway(servers, settings="servers: {max_start_failures: 1}", start=False) as process:
        process.environment = UNCOUNTED
        process.start()
        process.wait_for_state("good", "up")
        process.wait_for_state("flood", "up")
        if cut:
            server = process.wait_for_state("flood", "down", "starting", "failed")
            assert "lines without end" in process.server("flood")["last_error"] or server["restarts"]
        for number in range(20):
            assert process.text("good__echo", {"text": str(number)}) == str(number)
        assert process.busiest_seconds() < stall_seconds()


@pytest.mark.long
def test_a_list_of_a_million_empties_is_refused() -> None:
    with running_gateway(
        {"good": odd("echo"), "bad": odd("empties")}, settings="servers: {max_start_failures: 1}"
    ) as one:
        one.wait_for_state("good", "up")
        before = psutil.Process(one.pid).memory_info().rss
        server = one.wait_for_state("bad", "failed")
        assert "over the bound" in server["last_error"]
        assert psutil.Process(one.pid).memory_info().rss - before < 80 * 1024 * 1024
        assert one.busiest_seconds() < stall_seconds()


@pytest.mark.long
def test_what_a_server_said_before_it_went_is_heard() -> None:
    with running_gateway({"farewell": odd("farewell")}) as process:
        for _ in range(5):
            process.wait_for_state("farewell", "up")
            assert process.text("farewell__echo", {"text": "x"}) == "the last word"
            process.http.post("/api/v1/servers/farewell/restart")
