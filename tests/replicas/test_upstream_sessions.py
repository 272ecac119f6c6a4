"""A remote server that keeps something in its session: all gateways have the same one."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import GatewayProcess, wait_for
from support.field import Asked, field_server

pytestmark = pytest.mark.long

Replicas = list[GatewayProcess]


class Counting:
    """Counts the calls of each session; forgets a session when it is told to."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gone: set[str] = set()
        self.ids: Counter[int] = Counter()
        self.ended: list[str] = []

    def call(self, asked: Asked) -> None:
        session = str(asked.headers["Mcp-Session-Id"])
        if session in self.gone:
            asked.error(-32001, "Session not found", status=404)
            return
        self.ids[asked.id] += 1  # type: ignore[index]
        self.counts[session] += 1
        asked.result({"content": [{"type": "text", "text": f"{session}: {self.counts[session]}"}]})

    def ping(self, asked: Asked) -> None:
        if asked.headers["Mcp-Session-Id"] in self.gone:
            asked.error(-32001, "Session not found", status=404)
        else:
            asked.result({})

    def delete(self, asked: Asked) -> None:
        self.ended.append(str(asked.headers["Mcp-Session-Id"]))
        asked.reply(200)


def said(process: GatewayProcess) -> tuple[str, int]:
    session, _, count = process.text("counting__go").partition(": ")
    return session, int(count)


def attach(replicas: Replicas, entry: dict[str, Any]) -> None:
    answer = replicas[0].http.post("/api/v1/servers", json={"server_id": "counting", **entry}).json()
    assert answer["success"], answer
    for process in replicas:
        wait_for(lambda process=process: process.http.get("/api/v1/servers/counting").is_success)  # type: ignore[misc]
        process.wait_for_state("counting", "up")


def test_what_a_server_keeps_in_its_session_is_the_same_through_each(replicas: Replicas) -> None:
    counting = Counting()
    with field_server(tools__call=counting.call, ping=counting.ping, DELETE=counting.delete) as server:
        attach(replicas, {"url": server.url})
        seen = [said(process) for _ in range(3) for process in replicas]
        assert len({session for session, _ in seen}) == 1, seen
        assert [count for _, count in seen] == list(range(1, 10)), "one session, whoever is asked"
        assert max(counting.ids.values()) == 1, "no two requests of it have one id"
        (session,) = {session for session, _ in seen}

        counting.gone.add(session)  # as a server does that was started again
        again = [said(process) for _ in range(2) for process in replicas]
        (another,) = {session for session, _ in again}
        assert another != session
        assert [count for _, count in again] == list(range(1, 7)), "and all have the same new one"

        one, other, third = replicas
        one.stop()
        assert another not in counting.ended, "it is not ended by one who leaves it to others"
        assert said(other) == (another, 7)
        one.start()
        one.wait_for_state("counting", "up")
        assert said(one) == (another, 8)
        assert said(third) == (another, 9)
        assert replicas[0].http.delete("/api/v1/servers/counting").is_success


def test_equal_calls_on_all_at_once_are_made_once(replicas: Replicas) -> None:
    made: Counter[int] = Counter()

    def call(asked: Asked) -> None:
        number = asked.params["arguments"]["number"]
        made[number] += 1
        text = f"{number}, made {made[number]}"
        time.sleep(0.5)
        asked.result({"content": [{"type": "text", "text": text}], "ttlMs": 60_000})

    def tools(asked: Asked) -> None:
        tool = {"name": "go", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}
        asked.result({"tools": [tool]})

    with field_server(tools__call=call, tools__list=tools) as server:
        said = replicas[0].http.post("/api/v1/servers", json={"server_id": "slow_reads", "url": server.url}).json()
        assert said["success"], said
        for process in replicas:
            wait_for(lambda process=process: process.http.get("/api/v1/servers/slow_reads").is_success)  # type: ignore[misc]
            process.wait_for_state("slow_reads", "up")
        numbers = itertools.count(1)

        def once() -> bool:
            number = next(numbers)
            with ThreadPoolExecutor(6) as pool:
                calls = pool.map(lambda process: process.text("slow_reads__go", {"number": number}), replicas * 2)
            return set(calls) == {f"{number}, made 1"} and made[number] == 1

        wait_for(once, 60, "for calls while Redis answers in time, and what holds is settled")
        assert replicas[0].http.delete("/api/v1/servers/slow_reads").is_success
