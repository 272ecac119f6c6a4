"""The journal: nothing lost, nothing secret, nobody else's; and past calls made again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from support import Fickle, GatewayProcess, command_of, odd, running_gateway, toolscore, wait_for

from toolscore.calls.replay import difference
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.redaction import REDACTED, redact_json, redact_text
from toolscore.history.starts import MAX_SEGMENTS, StartLog, left_by_others


@pytest.fixture(scope="module")
def fickle(tmp_path_factory: pytest.TempPathFactory) -> Fickle:
    return Fickle(tmp_path_factory.mktemp("fickle"))


@pytest.fixture(scope="module")
def gateway(fickle: Fickle) -> Iterator[GatewayProcess]:
    other = Fickle(fickle.folder / "other")
    other.order(mark="other")
    servers = {"city": fickle.entry, "town": other.entry, "echo": odd("echo")}
    with running_gateway(servers, settings="cache: {enabled: false}\n", journal=True) as process:
        for server_id in servers:
            process.wait_for_state(server_id, "up")
        yield process


def recorded(gateway: GatewayProcess, answer: dict[str, Any]) -> dict[str, Any]:
    return dict(gateway.get(f"/api/v1/calls/{answer['data']['call_id']}"))


def recorder_of(gateway: GatewayProcess) -> psutil.Process:
    def found() -> psutil.Process | None:
        return next((one for one in gateway.family() if "toolscore.history.recorder" in command_of(one)), None)

    process = wait_for(found, 60, "for the recorder")
    assert isinstance(process, psutil.Process)
    return process


def test_a_call_is_written_down_whole(gateway: GatewayProcess) -> None:
    answer = gateway.execute("city__look", {"city": "Rome"})
    call = recorded(gateway, answer)
    assert call["arguments"] == {"city": "Rome"}
    assert call["result"]["content"] == answer["data"]["content"]
    assert (call["tool_id"], call["server_id"], call["name"]) == ("city__look", "city", "look")
    assert (call["outcome"], call["principal"], call["request_id"]) == ("ok", "local", answer["request_id"])
    assert call["duration_ms"] > 0
    assert abs(time.time() - time.mktime(time.strptime(call["at"][:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone) < 5
    line = f"request_id={answer['request_id']}"
    assert wait_for(lambda: line in gateway.output()), "each call has its line in the log"


def test_each_way_to_end_has_its_record(gateway: GatewayProcess) -> None:
    gateway.execute("city__look", {"city": "Nowhere"})
    gateway.execute("city__look", {"city": 7})
    gateway.execute("no_such_tool", {})
    found = gateway.get("/api/v1/calls", limit=3)["calls"]
    assert [call["outcome"] for call in found] == ["tool_not_found", "invalid_arguments", "tool_error"]
    assert [call["name"] for call in found] == ["no_such_tool", "look", "look"]
    assert found[2]["error"] == "nothing is known of 'Nowhere'"


def test_filters_and_pages(gateway: GatewayProcess) -> None:
    start = "2000-01-01T00:00:00Z"
    ids = [recorded(gateway, gateway.execute("echo__echo", {"text": str(number)}))["call_id"] for number in range(7)]
    newest_first = ids[::-1]
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = gateway.get("/api/v1/calls", tool_id="echo__echo", limit=3, **cursor)
        seen += [call["call_id"] for call in page["calls"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen[:7] == newest_first
    assert gateway.get("/api/v1/calls", server_id="echo", since=start)["calls"]
    assert gateway.get("/api/v1/calls", server_id="echo", until=start)["calls"] == []
    assert gateway.get("/api/v1/calls", outcome="no_such")["calls"] == []
    for wrong in ({"since": "yesterday"}, {"since": "2026-11-21T10:00:00"}, {"limit": 0}):
        assert gateway.http.get("/api/v1/calls", params=wrong).json()["error"]["code"] == "invalid_arguments"


def test_secrets_are_not_written_down(gateway: GatewayProcess) -> None:
    key = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
    answer = gateway.execute("city__write", {"city": f"see {key}", "apiKey": "hunter22", "deep": {"Pass-Word": [1, 2]}})
    call = recorded(gateway, answer)
    assert call["arguments"] == {"city": f"see {REDACTED}", "apiKey": REDACTED, "deep": {"Pass-Word": REDACTED}}
    assert call["redacted"] == ["arguments", "result"]
    data = gateway.folder / "data"
    kept = b"".join(path.read_bytes() for path in data.glob("toolscore.db*"))
    assert b"hunter22" not in kept
    assert key.encode() not in kept
    assert key not in gateway.output()
    refused = gateway.http.post(f"/api/v1/calls/{call['call_id']}/replay", json={"confirm": True}).json()
    assert refused["error"]["code"] == "conflict"


def test_a_large_body_is_kept_once(gateway: GatewayProcess) -> None:
    text = "Lorem ipsum " * 20_000
    ids = [recorded(gateway, gateway.execute("echo__echo", {"text": text}))["call_id"] for _ in range(3)]
    assert gateway.get(f"/api/v1/calls/{ids[2]}")["arguments"] == {"text": text}
    assert gateway.get(f"/api/v1/calls/{ids[0]}")["result"]["content"][0]["text"] == text
    with sqlite3.connect(gateway.folder / "data" / "toolscore.db") as database:
        number, size = database.execute("select count(*), sum(size) from bodies").fetchone()
    assert number == 2  # the arguments, and the result
    assert size < len(text) / 10


@pytest.mark.long
def test_a_call_is_made_again_and_compared(gateway: GatewayProcess, fickle: Fickle) -> None:
    answer = gateway.execute("echo__safe", {"text": "hi"})
    call_id = answer["data"]["call_id"]
    again = gateway.http.post(f"/api/v1/calls/{call_id}/replay").json()["data"]
    assert (again["same"], again["difference"]) == (True, "")
    assert again["now"]["call_id"] != call_id
    assert toolscore("calls", "replay", call_id, gateway=gateway).returncode == 0

    looked = gateway.execute("city__look", {"city": "Rome"})["data"]["call_id"]
    elsewhere = gateway.http.post(f"/api/v1/calls/{looked}/replay", json={"against": "town"}).json()["data"]
    assert elsewhere["tool_id"] == "town__look"
    assert elsewhere["same"] is False
    assert any(line.startswith("+") and "other" in line for line in elsewhere["difference"].splitlines())
    shown = toolscore("calls", "replay", looked, "--against", "town", gateway=gateway)
    assert (shown.returncode, "DIFFERENT" in shown.stdout) == (1, True)


def test_what_may_do_something_twice_is_confirmed_first(gateway: GatewayProcess, fickle: Fickle) -> None:
    answer = gateway.execute("city__write", {"city": "Rome"})
    before = len(fickle.calls())
    refused = gateway.http.post(f"/api/v1/calls/{answer['data']['call_id']}/replay").json()
    assert refused["error"]["code"] == "conflict"
    assert len(fickle.calls()) == before
    body = {"confirm": True}
    assert gateway.http.post(f"/api/v1/calls/{answer['data']['call_id']}/replay", json=body).json()["success"]
    assert len(fickle.calls()) == before + 1


def test_a_window_is_made_again(gateway: GatewayProcess) -> None:
    for number in range(5):
        gateway.execute("echo__safe", {"text": f"window {number}"})
    gateway.execute("echo__echo", {"text": "not safe"})
    body = {"server_id": "echo", "limit": 6}
    answer = gateway.http.post("/api/v1/calls/replay", json=body).json()
    assert (answer["data"]["replayed"], answer["data"]["same"]) == (5, 5)
    assert [one["call_id"] for one in answer["data"]["skipped"]]
    again = gateway.http.post("/api/v1/calls/replay", json=body).json()["data"]
    assert [one["reason"] for one in again["skipped"]].count("it was a replay itself") == 5
    assert again["replayed"] == 0
    asked = toolscore("calls", "replay", gateway=gateway)
    assert asked.returncode == 2
    assert "make the newest 100 calls of all tools again?" in asked.stderr
    assert gateway.http.post("/api/v1/calls/replay", json={"limt": 6}).json()["error"]["code"] == "invalid_arguments"


@pytest.mark.long
def test_a_recorded_window_stands_in_for_the_server(gateway: GatewayProcess, fickle: Fickle, tmp_path: Path) -> None:
    texts = [gateway.text("city__look", {"city": city}) for city in ("Ulm", "Ulm", "Bonn")]
    file = tmp_path / "city.json"
    printed = toolscore("calls", "export", "city", str(file), gateway=gateway)
    assert printed.returncode == 0, printed.stderr
    entry = json.loads(printed.stdout)["mcpServers"]["city-recorded"]
    entry["command"] = sys.executable
    assert gateway.http.post("/api/v1/servers", json={"server_id": "double", **entry}).status_code == 201
    gateway.wait_for_state("double", "up")
    before = len(fickle.calls())
    assert [gateway.text("double__look", {"city": city}) for city in ("Ulm", "Ulm", "Bonn")] == texts
    never = gateway.execute("double__look", {"city": "Jena"})
    assert "was never called with these arguments" in never["data"]["content"][0]["text"]
    assert len(fickle.calls()) == before
    wrong = subprocess.run([sys.executable, "-m", "mcp_servers.recorded", __file__], capture_output=True, text=True)
    assert (wrong.returncode, "cannot be served" in wrong.stderr) == (1, True)


@pytest.mark.long
def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    with running_gateway({"echo": odd("echo")}, journal=True) as process:
        process.wait_for_state("echo", "up")
        process.execute("echo__echo", {"text": "first"})
        recorder = recorder_of(process)
        answered: list[str] = []

        def call(number: int) -> None:
            try:
                answer = httpx.post(
                    f"{process.url}/execute_tool", json={"tool_id": "echo__echo", "parameters": {"text": str(number)}}
                )
                answered.append(answer.json()["data"]["call_id"])
            except httpx.TransportError:
                return

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(call, number) for number in range(400)]
            wait_for(lambda: len(answered) > 150)
            sure = list(answered)
            time.sleep(0.05)  # more than a record waits for others
            for _ in range(2):  # the gateway may be late: it has sent them before it answers these
                process.get("/health")
            process.kill()
            for one in calls:
                one.result()
        wait_for(lambda: not recorder.is_running() or recorder.status() == psutil.STATUS_ZOMBIE, 60, "for its end")
        with sqlite3.connect(process.folder / "data" / "toolscore.db") as database:
            kept = {row[0] for row in database.execute("select call_id from calls")}
        assert len(sure) > 150
        assert set(sure) <= kept


@pytest.mark.long
def test_what_was_answered_survives_a_kill_while_the_recorder_starts() -> None:
    """A recorder that starts late finds in its pipe all that came, and its end."""
    found: list[psutil.Process] = []

    def stop_it() -> None:
        until = time.monotonic() + 60
        while not found and time.monotonic() < until:
            with contextlib.suppress(AttributeError, AssertionError, psutil.Error):  # it does not run yet
                for one in process.family():
                    if "toolscore.history.recorder" in command_of(one):
                        one.suspend()
                        found.append(one)
            time.sleep(0.002)

    with running_gateway({"echo": odd("echo")}, journal=True, start=False) as process:
        stopper = threading.Thread(target=stop_it)
        stopper.start()
        process.start()
        stopper.join(60)
        process.wait_for_state("echo", "up")
        calls = {process.execute("echo__echo", {"text": str(n)})["data"]["call_id"] for n in range(20)}
        time.sleep(0.05)
        process.kill()
        found[0].resume()
        wait_for(lambda: not found[0].is_running() or found[0].status() == psutil.STATUS_ZOMBIE, 60, "for its end")
        with sqlite3.connect(process.folder / "data" / "toolscore.db") as database:
            assert calls <= {row[0] for row in database.execute("select call_id from calls")}


@pytest.mark.parametrize("starts", ["crash", "power"])
@pytest.mark.long
def test_what_was_sent_survives_a_kill_of_gateway_and_recorder_together(starts: str) -> None:
    """Calls that may change something: the end of the last ones is lost, and that they were sent is not."""
    secret = f"sk-{'a1' * 15}"
    with running_gateway({"echo": odd("echo")}, settings=f"journal: {{starts: {starts}}}\n", journal=True) as process:
        process.wait_for_state("echo", "up")
        process.execute("echo__echo", {"text": "first"})
        wait_for(lambda: process.get("/api/v1/calls")["calls"], 60, "for the recorder")
        recorder = recorder_of(process)
        answered: list[str] = []

        def call(text: str) -> None:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(
                    f"{process.url}/execute_tool",
                    json={"tool_id": "echo__echo", "parameters": {"text": text}},
                    timeout=None,
                )
                answered.append(answer.json()["data"]["call_id"])

        with ThreadPoolExecutor(9) as pool:
            calls = [pool.submit(call, "sleep 60")]
            calls += [pool.submit(call, secret) for _ in range(400)]
            wait_for(lambda: len(answered) > 150)
            recorder.kill()
            process.kill()
            for one in calls:
                one.result()
        noted = b"".join(file.read_bytes() for file in (process.folder / "data" / "journal").glob("*/*.log"))
        assert b"echo__echo" in noted
        assert secret.encode() not in noted
        process.start()

        def kept() -> dict[str, dict[str, Any]]:
            return {call["call_id"]: call for call in process.get("/api/v1/calls", limit=1000)["calls"]}

        wait_for(lambda: set(answered) <= kept().keys(), 60, "for what was cut off")
        assert {call["outcome"] for call in kept().values()} == {"ok", "outcome_unknown"}
        unknown = [process.get(f"/api/v1/calls/{one}") for one in kept() if kept()[one]["outcome"] == "outcome_unknown"]
        assert [one["arguments"] for one in unknown].count({"text": "sleep 60"}) == 1
        assert all("it may have done its work" in one["error"] for one in unknown)
        wait_for(lambda: len(list((process.folder / "data" / "journal").iterdir())) == 1, 60, "for the old run to go")
        process.wait_for_output("calls were under way when the gateway was killed")
        number = len(kept())
        process.stop()
        assert list((process.folder / "data" / "journal").iterdir()) == []
        process.start()  # and nothing is found twice
        assert len(kept()) == number


@pytest.mark.long
def test_starts_take_a_bounded_number_of_files_and_none_is_lost(tmp_path: Path) -> None:
    import asyncio

    starts = StartLog(tmp_path, on_disk=False)
    still_open = set()
    for number in range(60_000):  # twenty-three files' worth, of which a call in each thousand does not end
        frame = f"{number:08}".encode() * 50
        start = starts.note(frame)
        if number % 1000:
            starts.over(start)
        else:
            still_open.add(frame)
    files = list(starts.folder.glob("*.log"))
    assert len(files) <= MAX_SEGMENTS

    async def found() -> set[bytes]:
        await starts.close()
        ((_, frames),) = [one async for one in left_by_others(tmp_path, None)]
        return set(frames)

    assert still_open == asyncio.run(found())


@pytest.mark.long
def test_another_recorder_takes_the_place_of_one_that_dies(tmp_path: Path) -> None:
    with running_gateway({"echo": odd("echo")}, journal=True) as process:
        process.wait_for_state("echo", "up")
        ids = []
        for number in range(300):
            if number == 100:
                os.kill(recorder_of(process).pid, signal.SIGKILL)
            ids.append(process.execute("echo__echo", {"text": str(number)})["data"]["call_id"])
        wait_for(lambda: process.get("/api/v1/stats")["journal"]["written"] == 300, 60, "for all records")
        kept = process.get("/api/v1/calls", limit=1000)["calls"]
        assert sorted(call["call_id"] for call in kept) == ids
        assert process.get("/health")["checks"]["journal"] == {"status": "healthy"}
    assert not psutil.pid_exists(process.pid)


def test_old_calls_and_too_many_of_them_go(tmp_path: Path) -> None:
    import asyncio

    from toolscore.history.recording import Order, new_call_id, prune
    from toolscore.stores.database import open_database

    def row(call_id: str, body: str) -> dict[str, Any]:
        texts = dict.fromkeys(
            ("request_id", "principal", "tool_id", "server_id", "name", "definition_hash", "outcome"), "x"
        )
        return {**texts, "call_id": call_id, "at_ms": 0, "duration_ms": 1.0, "cache": None, "error": None,
                "arguments": None, "arguments_body": body, "result": "y" * 1000, "result_body": None,
                "redacted": 0, "parent": None, "queued_ms": None, "server_ms": None}  # fmt: skip

    async def run() -> None:
        async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as database:
            now = time.time()
            old, new = ([new_call_id(now - age + number) for number in range(1000)] for age in (9 * 86400, 2000))
            large = [
                {"hash": name, "content": b"z", "size": 1, "last_call": last}
                for name, last in (("gone", old[-1]), ("kept", new[-1]))
            ]
            await database.append_calls([row(call_id, "gone") for call_id in old], large)
            await database.append_calls([row(call_id, "kept") for call_id in new], [])
            assert await prune(database, Order(keep_days=7)) == 1000
            assert set(await database.read_bodies(["gone", "kept"])) == {"kept"}
            assert await prune(database, Order(keep_days=7)) == 0
            assert await prune(database, Order(keep_days=7, keep_mb=1)) > 300
            left, size = await database.journal_size()
            assert size + 400 * left < 1_000_000
            assert left > 500
            kept = await database.read_calls({}, limit=2000)
            assert [call["call_id"] for call in kept] == new[::-1][:left]  # the newest stay

    asyncio.run(run())


@pytest.mark.long
def test_a_full_disk_costs_no_call(tmp_path: Path) -> None:
    """A file system of 24 MB, filled to the last byte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    assert mounted.returncode == 0, mounted.stderr
    try:
        with running_gateway({"echo": odd("echo")}, start=False, journal=True) as process:
            settings = process.config / "toolscore.yaml"
            settings.write_text(f"storage: {{data_dir: {disk}}}\njournal: {{log_calls: false}}\n")
            process.start()
            process.wait_for_state("echo", "up")
            process.execute("echo__echo", {"text": "there is room"})
            wait_for(lambda: process.get("/api/v1/stats")["journal"]["written"] == 1)
            with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * 4096)
            for number in range(50):
                assert process.text("echo__echo", {"text": f"{number}" * 1000}) == f"{number}" * 1000
            check = wait_for(
                lambda: (found := process.get("/health"))["checks"]["journal"]["status"] == "degraded" and found, 20
            )
            assert check["status"] == "degraded"
            assert "full" in check["checks"]["journal"]["reason"]
            (disk / "filler").unlink()
            wait_for(lambda: process.get("/health")["checks"]["journal"] == {"status": "healthy"}, 60, "for recovery")
            wait_for(lambda: process.get("/api/v1/stats")["journal"]["written"] == 51, 60, "for all records")
            assert process.get("/api/v1/stats")["journal"] == {"written": 51, "lost": 0}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(values)
@pytest.mark.long
def test_redaction_loses_nothing_else_and_is_done_once(value: Any) -> None:
    once, hidden = redact_json(Raw(encode(value)))
    assert redact_json(Raw(once)) == (once, False)
    if not hidden:
        assert decode(once) == decode(encode(value))


SECRET_NAMES = ["password", "api_key", "apiKey", "client-secret", "Authorization", "access_token", "PRIVATE_KEY"]


@given(st.sampled_from(SECRET_NAMES), values)
@pytest.mark.long
def test_a_secret_member_never_stays(name: str, value: Any) -> None:
    text = "a value that stands nowhere else"
    clean, hidden = redact_json(Raw(encode({"a": [{name: [text, value]}]})))
    assert hidden
    assert text.encode() not in clean


KEYS = (
    "password=hunter22 failed", "DB_PASSWORD=hunter22 started", "--password=hunter22", "pypi-" + "a" * 60,
    'see {\\"password\\": \\"hunter22\\"}', "Bearer abcdefghijklmnop", "postgres://me:hunter22@host/db",
    '{"api_key": "hunter22"}', "AKIAABCDEFGHIJKLMNOP", "ASIAABCDEFGHIJKLMNOP", "AIza" + "a" * 35, "npm_" + "a" * 36,
    "ts_0123456789ab_" + "a" * 43, "sk-" + "a" * 24, "sk_live_" + "a" * 16, "rk_test_" + "a" * 16, "hf_" + "a" * 30,
    *(f"gh{kind}_" + "a" * 36 for kind in "pousr"), "github_pat_" + "a" * 30, "glpat-" + "a" * 20, "xoxb-" + "1" * 10,
    "ya29." + "a" * 20, "eyJhbGciOiJI.eyJzdWIiOiIx.abc", "-----BEGIN RSA PRIVATE KEY-----\nMII",
    "Basic YWRhOmh1bnRlcjI=", "redis://:hunter22@cache:6379/0", 'see {\\"password\\": \\"correct hunter22 staple\\"}',
    "Authorization: Digest user hunter22", "authorization: bearer abcdefghijklmnop", '{"api_key": "a,hunter22"}',
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nhunter22", "authtoken=hunter22",
)  # fmt: skip


def test_keys_in_running_text() -> None:
    for text in KEYS:
        clean = redact_text(text)
        assert REDACTED in clean
        assert "hunter22" not in clean
    twice = Raw(b'{"text": "x", "password": "hunter22", "password": null}')
    assert b"hunter22" not in redact_json(twice)[0], "of a member that is there twice both are looked at"
    assert redact_text("the token count is 5; no key was pressed") == "the token count is 5; no key was pressed"


@pytest.mark.parametrize("padding", [0, 4000])
@pytest.mark.parametrize("secret", [{"text": text} for text in KEYS] + [{name: "it"} for name in SECRET_NAMES])
def test_the_quick_look_at_a_body_misses_none(secret: dict[str, str], padding: int) -> None:
    """Most bodies are only looked through, small and large ones each in a way of its own."""
    assert not redact_json(Raw(encode({"text": "x" * padding})))[1]
    assert redact_json(Raw(encode({"text": "x" * padding, "more": secret})))[1]


def test_secrets_in_a_text_that_is_json_itself() -> None:
    inner = encode({"user": "ada", "password": "hunter22", "note": "nothing"}).decode()
    for value in (
        {"content": [{"type": "text", "text": inner}]},
        {"env": "PGPASSWORD=hunter22"},
        {"password2": "hunter22"},
    ):
        clean, hidden = redact_json(Raw(encode(value)))
        assert hidden, value
        assert b"hunter22" not in clean


NAMED = (
    "pass", "password", "passwd", "passphrase", "passcode", "pwd", "secret", "token", "auth_token", "api_key",
    "access_key", "private_key", "ssh_key", "authorization", "auth", "credential", "credentials", "cookie",
    "set_cookie", "session_key", "session_cookie", "bearer", "otp", "pin_code", "cvv", "cvc", "card_number", "ssn",
    "client_secret", "connection_string", "dsn",
)  # fmt: skip
ALIKE = str.maketrans({"i": "\u0131", "s": "\u017f", "k": "\u212a"})
"""Letters that count as these where case counts for nothing."""


@pytest.mark.parametrize("name", NAMED)
def test_the_quick_look_misses_no_name(name: str) -> None:
    for written in (name, name.upper(), name.upper().replace("I", "\u0130"), name.translate(ALIKE)):
        text = f"{written}=hunter22"
        assert redact_text(text) == f"{written}={REDACTED}"
        clean, hidden = redact_json(Raw(encode({"a": text})))
        assert hidden
        assert b"hunter22" not in clean


@pytest.mark.parametrize("text", KEYS)
def test_the_quick_look_misses_no_key(text: str) -> None:
    for before in ("", "Im\u00fcnchen ", "x" * 2000 + " "):
        assert REDACTED in redact_text(before + text)


@pytest.mark.long
def test_no_text_takes_long_to_look_through() -> None:
    started = time.monotonic()
    for text in ("eyJ-" * 50_000, "a-" * 100_000, "-".join(["x"] * 100_000), "password" * 20_000, "secret" * 20_000):
        redact_text(text)
        redact_json(Raw(encode({"token": 1, "text": text})))
    assert time.monotonic() - started < 30  # hours, with a search that begins anew at each word


@pytest.mark.long
def test_a_page_is_read_while_calls_come_in(tmp_path: Path) -> None:
    with running_gateway({"echo": odd("echo")}, journal=True) as process:
        process.wait_for_state("echo", "up")
        stop = threading.Event()

        def call() -> None:
            with httpx.Client(base_url=process.url) as client:
                while not stop.is_set():
                    client.post("/execute_tool", json={"tool_id": "echo__echo", "parameters": {"text": "x"}})

        with ThreadPoolExecutor(2) as pool:
            working = [pool.submit(call) for _ in range(2)]
            try:
                for _ in range(5):
                    mine = process.execute("echo__echo", {"text": "mine"})["data"]["call_id"]
                    found = process.get("/api/v1/calls", limit=1000)["calls"]
                    assert mine in [one["call_id"] for one in found]
            finally:
                stop.set()
            for one in working:
                one.result()


def test_differences_are_those_of_the_results() -> None:
    one = {"content": [{"type": "text", "text": "a"}], "_meta": {"time": 1}}
    assert difference(one, {**one, "_meta": {"time": 2}}) == ""
    assert '+      "text": "b"' in difference(one, {"content": [{"type": "text", "text": "b"}]})
    assert difference(None, None) == ""
