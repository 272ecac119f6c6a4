"""Thousands of calls while gateways are killed, Postgres stands still and Redis is killed: what fails, and how."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from support import GatewayProcess, answer_of, bearer, command_of, odd, wait_for
from support.engines import Redis, gateways, haproxy

pytestmark = pytest.mark.long

CALLS, WORKERS, KILLS = 10_000, 8, 6
SESSIONS, STATELESS = "2025-11-25", "2026-07-28"
META = "io.modelcontextprotocol/"
DOCUMENTED = {"outcome_unknown", "upstream_unavailable", "cut off"}
AWAY_SECONDS = 8
ENDLESS = 10**9

Replicas = list[GatewayProcess]


@pytest.fixture(scope="module")
def three(new_database: Callable[[], str], redis: Redis) -> Iterator[Replicas]:
    with gateways(new_database(), redis.url, servers={"good": odd("echo")}, journal=True) as found:
        yield found


@pytest.fixture(scope="module")
def before_them(three: Replicas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with haproxy(tmp_path_factory.mktemp("storm"), [process.http_port for process in three]) as url:
        yield url


class Callers:
    """Clients of both eras, and of REST, each with one call at a time; and how their calls ended, by request id."""

    def __init__(self, url: str, calls: int) -> None:
        self.url = url
        self.ended: dict[str, str] = {}
        self.unexpected: list[str] = []
        self._left = iter(range(calls))
        self._turn = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(WORKERS)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = iter(())
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self, worker: int) -> None:
        with httpx.Client(base_url=self.url, timeout=180) as http:
            session: str | None = None
            while True:
                with self._turn:
                    number = next(self._left, None)
                if number is None:
                    return
                request_id, text = f"storm-{number:06d}", f"text {number}"
                try:
                    if session is None:
                        session = self._open(http)
                    how = (self._rest, self._session, self._stateless)[number % 3]
                    outcome = how(http, request_id, text, session)
                except httpx.TransportError:
                    outcome = "cut off"
                self.ended[request_id] = outcome

    @staticmethod
    def _open(http: httpx.Client) -> str:
        opening = {"protocolVersion": SESSIONS, "capabilities": {}, "clientInfo": {"name": "storm", "version": "1"}}
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": opening}
        accept = {"accept": "application/json, text/event-stream"}
        while True:
            answer = http.post("/mcp", json=body, headers=accept)
            if answer.is_success:
                return answer.headers["mcp-session-id"]

    def _rest(self, http: httpx.Client, request_id: str, text: str, _: str) -> str:
        body = {"tool_id": "good__echo", "parameters": {"text": text}}
        return self._judged(http.post("/execute_tool", json=body, headers={"x-request-id": request_id}), text)

    def _session(self, http: httpx.Client, request_id: str, text: str, session: str) -> str:
        headers = {"mcp-session-id": session, "mcp-protocol-version": SESSIONS}
        return self._mcp(http, request_id, text, {}, headers)

    def _stateless(self, http: httpx.Client, request_id: str, text: str, _: str) -> str:
        meta = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
        headers = {"mcp-protocol-version": STATELESS, "mcp-method": "tools/call", "mcp-name": "good__echo"}
        return self._mcp(http, request_id, text, {"_meta": meta}, headers)

    def _mcp(
        self, http: httpx.Client, request_id: str, text: str, more: dict[str, Any], headers: dict[str, str]
    ) -> str:
        params = {"name": "good__echo", "arguments": {"text": text}, **more}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        common = {"accept": "application/json, text/event-stream", "x-request-id": request_id}
        return self._judged(http.post("/mcp", json=body, headers={**common, **headers}), text)

    def _judged(self, answer: httpx.Response, text: str) -> str:
        if answer.headers.get("content-type", "").startswith("text/html"):
            return "cut off"  # haproxy's own word for it
        body = answer_of(answer)
        failed = body.get("error")
        if failed is None:
            content = (body.get("data") or body.get("result"))["content"][0]["text"]
            if content != text:
                self.unexpected.append(answer.text)
            return "ok"
        code = failed["code"] if isinstance(failed["code"], str) else failed["data"]["code"]
        if code not in DOCUMENTED:
            self.unexpected.append(answer.text)
        return str(code)


def kill_with_all(process: GatewayProcess) -> None:
    """As a pod ends that is deleted by force: the gateway, and all that it started."""
    family = [psutil.Process(process.pid), *process.family()]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    assert process.process is not None
    process.process.wait(10)


def journaled(process: GatewayProcess) -> set[str]:
    """The request ids of all calls that are in the journal."""
    found: set[str] = set()
    cursor = None
    while True:
        page = process.get("/api/v1/calls", limit=1000, **({"cursor": cursor} if cursor else {}))
        found |= {call["request_id"] for call in page["calls"]}
        cursor = page.get("next_cursor")
        if not cursor:
            return found


@pytest.mark.timeout(1800)  # four minutes where the other tests run beside it, and more where others work there, too
def test_only_what_was_under_way_on_the_killed_one_fails_and_nothing_answered_is_lost(
    three: Replicas, before_them: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Callers(before_them, CALLS) as callers:
        for number in range(KILLS):
            reached = (number + 1) * CALLS // (KILLS + 2)
            wait_for(lambda reached=reached: len(callers.ended) >= reached, 120)  # type: ignore[misc]
            victim = three[number % len(three)]
            kill_with_all(victim)
            time.sleep(0.5)
            victim.start()
            victim.wait_for_state("good", "up")
        callers.wait()
    outcomes = Counter(callers.ended.values())
    with capsys.disabled():
        print("\nstorm of replicas:", json.dumps({"calls": len(callers.ended), "kills": KILLS, "outcomes": outcomes}))
    assert not callers.unexpected, callers.unexpected[:3]
    assert len(callers.ended) == CALLS
    # Each caller has one call under way when a gateway is killed, and may send one more to it: until the process has
    # given its memory back, the kernel still takes connections for it.
    failed = sum(count for outcome, count in outcomes.items() if outcome != "ok")
    assert failed <= 2 * KILLS * WORKERS, outcomes
    answered = {request_id for request_id, outcome in callers.ended.items() if outcome != "cut off"}
    wait_for(lambda: answered <= journaled(three[0]), 120, "for every answered call to be in the journal")


def test_calls_go_on_while_postgres_stands_still_and_while_redis_is_killed(
    three: Replicas, before_them: str, redis: Redis, postgres_url: str
) -> None:
    key = three[0].http.post("/api/v1/keys", json={"name": "ada"}).json()["data"]["key"]
    for process in three:  # known while it can be asked
        wait_for(lambda process=process: process.http.get("/api/v1/whoami", headers=bearer(key)).is_success)  # type: ignore[misc]
    port = postgres_url.rpartition(":")[2].partition("/")[0]
    engine = next(one for one in psutil.process_iter() if {"-p", port} <= {*command_of(one)})
    with Callers(before_them, ENDLESS) as callers:
        wait_for(lambda: len(callers.ended) > 200)
        engine.suspend()  # first: then it starts nobody more
        family = [engine, *engine.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
                one.suspend()
        try:
            began = time.monotonic()
            said = three[0].http.post("/api/v1/servers", json={"server_id": "late", **odd("echo")}, timeout=180).json()
            assert said["error"]["code"] == "overloaded", said
            assert "attached" in said["message"]
            for process in three:
                who = process.http.get("/api/v1/whoami", headers=bearer(key), timeout=180).json()
                assert who["data"]["principal"] == "ada"
            time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - began)))
        finally:
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.resume()
        at = len(callers.ended)
        wait_for(lambda: len(callers.ended) > at + 200, 120)
        redis.kill()
        time.sleep(2)
        at = len(callers.ended)
        wait_for(lambda: len(callers.ended) > at + 200, 120)
        redis.start()
        at = len(callers.ended)
        wait_for(lambda: len(callers.ended) > at + 200, 120)
    assert set(callers.ended.values()) == {"ok"}, Counter(callers.ended.values())
    assert not callers.unexpected, callers.unexpected[:3]
    for process in three:
        wait_for(lambda process=process: process.get("/health")["checks"]["redis"]["status"] == "healthy", 60)  # type: ignore[misc]
