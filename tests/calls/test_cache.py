"""Results that are given again: by whom they may be had, from which level, for how long, and when they stand in."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from support import Fickle, GatewayProcess, running_gateway, toolscore, wait_for

from toolscore.calls.cache import canonical
from toolscore.core.jsonrpc import decode, encode

SETTINGS = """
cache: {stale_seconds: 60, tools: {"city__look": 30}}
servers: {retries: 0, max_start_failures: 1000}
breaker: {min_calls: 1000}
"""


@pytest.fixture(scope="module")
def fickle(tmp_path_factory: pytest.TempPathFactory) -> Fickle:
    return Fickle(tmp_path_factory.mktemp("fickle"))


@pytest.fixture(scope="module")
def gateway(fickle: Fickle) -> Iterator[GatewayProcess]:
    with running_gateway({"city": fickle.entry}, settings=SETTINGS) as process:
        process.wait_for_state("city", "up")
        yield process


def level(gateway: GatewayProcess, city: str, tool: str = "city__look") -> str | None:
    answer = gateway.execute(tool, {"city": city})
    assert answer["success"], answer
    performance = answer["performance"]
    assert performance["cache_hit"] is ("cache_level" in performance)
    found: str | None = performance.get("cache_level")
    return found


def calls_of(fickle: Fickle, city: str) -> int:
    return sum(call["arguments"].get("city") == city for call in fickle.calls())


def test_what_calls_itself_safe_is_asked_once(gateway: GatewayProcess, fickle: Fickle) -> None:
    assert [level(gateway, "Rome") for _ in range(3)] == [None, "l1", "l1"]
    first, second = (gateway.text("city__look", {"city": "Rome"}) for _ in range(2))
    assert first == second
    assert calls_of(fickle, "Rome") == 1
    assert gateway.execute("city__look", {"city": "Rome", "unit": "m"})["performance"]["cache_hit"] is False


@pytest.mark.long
def test_the_command_line_says_that_a_result_is_kept(gateway: GatewayProcess, fickle: Fickle) -> None:
    first, kept, fresh = (
        toolscore("call", "city__look", "city=Genoa", *more, "--url", gateway.url) for more in ((), (), ("--fresh",))
    )
    assert first.stdout == kept.stdout != fresh.stdout
    assert "kept" not in first.stderr + fresh.stderr
    assert kept.stderr.startswith("kept result, ")
    assert "--fresh" in kept.stderr
    assert calls_of(fickle, "Genoa") == 2


def test_the_order_and_the_blanks_of_arguments_do_not_matter(gateway: GatewayProcess, fickle: Fickle) -> None:
    for body in (
        b'{"city":"Bern","unit":"m"}',
        b'{ "unit" : "m",\n"city":"Bern" }',
        b'{"unit":"m","city":"\\u0042ern"}',
    ):
        whole = b'{"tool_id":"city__look","parameters":' + body + b"}"
        assert gateway.http.post("/execute_tool", content=whole).status_code == 200
    assert calls_of(fickle, "Bern") == 1


def test_other_tools_and_failures_are_asked_each_time(gateway: GatewayProcess, fickle: Fickle) -> None:
    assert [level(gateway, "Oslo", "city__write") for _ in range(2)] == [None, None]
    assert calls_of(fickle, "Oslo") == 2
    for _ in range(2):
        assert gateway.execute("city__look", {"city": "Nowhere"})["data"]["is_error"] is True
    assert calls_of(fickle, "Nowhere") == 2


@pytest.mark.long
def test_a_hundred_equal_calls_at_once_are_one(gateway: GatewayProcess, fickle: Fickle) -> None:
    fickle.order(sleep=0.5)
    together = threading.Barrier(100)

    def one(_: int) -> str:
        with httpx.Client(base_url=gateway.url, timeout=120) as client:
            together.wait()
            body = {"tool_id": "city__look", "parameters": {"city": "Paris"}}
            return str(client.post("/execute_tool", json=body).json()["data"]["content"][0]["text"])

    try:
        with ThreadPoolExecutor(100) as pool:
            texts = set(pool.map(one, range(100)))
    finally:
        fickle.order()
    assert len(texts) == 1
    assert calls_of(fickle, "Paris") == 1


@pytest.mark.long
def test_the_first_of_many_may_go_and_the_others_get_their_answer(gateway: GatewayProcess, fickle: Fickle) -> None:
    fickle.order(sleep=5.0)
    body = {"tool_id": "city__look", "parameters": {"city": "Lyon"}}
    try:
        with ThreadPoolExecutor(2) as pool:
            hasty = pool.submit(httpx.post, f"{gateway.url}/execute_tool", json=body, timeout=3)
            wait_for(lambda: calls_of(fickle, "Lyon") == 1)
            patient = pool.submit(httpx.post, f"{gateway.url}/execute_tool", json=body, timeout=120)
            with pytest.raises(httpx.TimeoutException):
                hasty.result()
            assert patient.result().json()["data"]["content"][0]["text"].startswith("Lyon")
    finally:
        fickle.order()
    assert calls_of(fickle, "Lyon") == 1


def test_nobody_waits_for_the_hurry_of_another(gateway: GatewayProcess, fickle: Fickle) -> None:
    """The first gives up after a moment: whoever has more time makes the call anew."""
    fickle.order(sleep=0.8)
    body = {"tool_id": "city__look", "parameters": {"city": "Nice"}}
    try:
        with ThreadPoolExecutor(2) as pool:
            hasty = pool.submit(httpx.post, f"{gateway.url}/execute_tool", json={**body, "timeout_seconds": 0.3})
            wait_for(lambda: calls_of(fickle, "Nice") == 1)
            patient = pool.submit(httpx.post, f"{gateway.url}/execute_tool", json=body, timeout=120)
            assert hasty.result().json()["error"]["code"] == "upstream_timeout"
            assert patient.result().json()["success"] is True
    finally:
        fickle.order()


@pytest.mark.long
def test_who_joins_waits_no_longer_than_it_said(gateway: GatewayProcess, fickle: Fickle) -> None:
    fickle.order(sleep=8)
    body = {"tool_id": "city__look", "parameters": {"city": "Metz"}}
    try:
        with ThreadPoolExecutor(6) as pool:
            patient = pool.submit(httpx.post, f"{gateway.url}/execute_tool", json=body, timeout=120)
            wait_for(lambda: calls_of(fickle, "Metz") == 1)
            hasty = {**body, "timeout_seconds": 0.3}
            answers = list(pool.map(lambda _: httpx.post(f"{gateway.url}/execute_tool", json=hasty), range(5)))
            assert not patient.done(), "each waited for itself alone"
            assert {answer.json()["error"]["code"] for answer in answers} == {"upstream_timeout"}
            assert patient.result().json()["success"] is True
    finally:
        fickle.order()
    assert calls_of(fickle, "Metz") == 1


@pytest.mark.long
def test_equal_calls_that_fail_are_one_too_and_are_made_again_later(gateway: GatewayProcess, fickle: Fickle) -> None:
    fickle.order(sleep=3, fail="sold out in {city}")
    body = {"tool_id": "city__look", "parameters": {"city": "Brest"}}
    try:
        with ThreadPoolExecutor(20) as pool:
            posts = [pool.submit(httpx.post, f"{gateway.url}/execute_tool", json=body, timeout=120) for _ in range(20)]
            assert all(post.result().json()["data"]["is_error"] for post in posts)
    finally:
        fickle.order()
    assert calls_of(fickle, "Brest") < 4  # those that came too late to wait
    assert gateway.text("city__look", {"city": "Brest"}).startswith("Brest")


def test_a_secret_is_kept_in_memory_alone(gateway: GatewayProcess, fickle: Fickle) -> None:
    token = "ghp_" + "a1" * 18
    fickle.order(mark=token)
    try:
        assert [level(gateway, city) for city in ("Basel", "Basel")] == [None, "l1"]
        fickle.order()
        level(gateway, "Thun")
    finally:
        fickle.order()
    database = gateway.folder / "data" / "toolscore.db"

    def stored() -> str:
        with sqlite3.connect(database) as connection:
            return str(connection.execute("select result from cached").fetchall())

    wait_for(lambda: "Thun" in stored())
    assert token not in stored()
    assert "Basel" not in stored()


@pytest.mark.long
def test_after_a_restart_the_database_has_it(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "fickle")
    with running_gateway({"city": fickle.entry}, settings=SETTINGS) as process:
        process.wait_for_state("city", "up")
        text = process.text("city__look", {"city": "Rome"})
        process.stop()
        process.start()
        process.wait_for_state("city", "up")
        assert level(process, "Rome") == "l3"
        assert level(process, "Rome") == "l1"
        assert process.text("city__look", {"city": "Rome"}) == text
        assert calls_of(fickle, "Rome") == 1


@pytest.mark.long
def test_a_past_result_stands_in_for_one_that_cannot_be_had(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "fickle")
    settings = SETTINGS.replace('city__look": 30', 'city__look": 0.0001')
    with running_gateway({"city": fickle.entry}, settings=settings) as process:
        process.wait_for_state("city", "up")
        text = process.text("city__look", {"city": "Rome"})
        fickle.order(die=True)
        answer = process.execute("city__look", {"city": "Rome"})
        assert answer["data"]["content"][0]["text"] == text
        assert answer["performance"] == {**answer["performance"], "cache_hit": True, "cache_level": "l1", "stale": True}
        never = process.execute("city__look", {"city": "Bonn"})
        assert never["error"]["code"] in ("upstream_unavailable", "circuit_open")
        said = process.http.post(
            "/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                  "params": {"name": "city__look", "arguments": {"city": "Rome"}, "_meta": {
                      "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                      "io.modelcontextprotocol/clientCapabilities": {}}}},
            headers={"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "city__look",
                     "accept": "application/json, text/event-stream"},
        ).json()  # fmt: skip
        assert said["result"]["_meta"]["toolscore/stale"]["age_seconds"] >= 0


@pytest.mark.long
def test_a_write_that_its_server_did_not_survive_ends_what_is_kept_and_no_more(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "fickle")
    with running_gateway({"city": fickle.entry}, settings=SETTINGS) as process:
        process.wait_for_state("city", "up")
        assert [level(process, "Rome") for _ in range(2)] == [None, "l1"]
        fickle.order(die=True)
        assert process.execute("city__write", {"city": "Rome"})["error"]["code"] == "outcome_unknown"
        fickle.order()
        process.wait_for_state("city", "up")
        assert [level(process, "Rome") for _ in range(2)] == [None, "l1"]


@pytest.mark.long
def test_another_definition_or_other_settings_make_it_worthless(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "fickle")
    with running_gateway({"city": fickle.entry}, settings=SETTINGS) as process:
        process.wait_for_state("city", "up")
        assert [level(process, "Rome") for _ in range(2)] == [None, "l1"]
        fickle.order(tools={"look": {"description": "Looks a city up in another register."}})
        process.http.post("/api/v1/servers/city/restart")
        wait_for(lambda: "another" in process.get("/api/v1/tools/city__look")["description"])
        assert [level(process, "Rome") for _ in range(2)] == [None, "l1"]
        process.servers({"city": {**fickle.entry, "env": {"WHO": "somebody else"}}})
        wait_for(lambda: process.event_seen("settings_applied"))
        process.wait_for_state("city", "up")
        assert [level(process, "Rome") for _ in range(2)] == [None, "l1"]
        assert process.http.request("DELETE", "/api/v1/cache", params={"tool_id": "city__look"}).status_code == 200
        assert level(process, "Rome") is None
        fickle.order(sleep=0.8)
        with ThreadPoolExecutor(1) as pool:  # one that was asked for before it was forgotten
            asking = pool.submit(process.execute, "city__look", {"city": "Oslo"})
            wait_for(lambda: calls_of(fickle, "Oslo") == 1)
            process.http.request("DELETE", "/api/v1/cache")
            asking.result()
        fickle.order()
        assert level(process, "Oslo") is None


@pytest.mark.long
def test_memory_and_database_are_bounded(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "fickle")
    settings = "cache: {tools: {'city__look': 60}, max_entries: 3, max_result_bytes: 200}\n"
    with running_gateway({"city": fickle.entry}, settings=settings) as process:
        process.wait_for_state("city", "up")
        for number in range(5):
            assert level(process, f"Town {number}") is None
        assert [level(process, f"Town {number}") for number in (4, 3)] == ["l1", "l1"]
        assert level(process, "x" * 300) is None
        assert level(process, "x" * 300) is None
        database = process.folder / "data" / "toolscore.db"

        def stored() -> int:
            with sqlite3.connect(database) as connection:
                return int(connection.execute("select count(*) from cached").fetchone()[0])

        wait_for(lambda: stored() == 5)
        # The gateway hears a moment later than we see it that they are written. Memory has three of five in turn: none.
        wait_for(lambda: "l3" in [level(process, f"Town {number}") for number in range(5)])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
@pytest.mark.long
def test_one_form_for_equal_arguments(arguments: dict[str, object]) -> None:
    backwards = dict(reversed(arguments.items()))
    assert canonical(Raw(encode(arguments))) == canonical(Raw(encode(backwards)))
    assert decode(canonical(Raw(encode(arguments)))) == decode(encode(arguments))


def test_no_digit_is_lost() -> None:
    digits = [b'{"x":0.1}', b'{"x":0.1000000000000000055}', b'{"x":1}', b'{"x":1.0}', b'{"x":"1"}', b'{"x":true}']
    assert len({canonical(Raw(one)) for one in digits}) == len(digits)
