"""Several gateways on one Postgres: what one changes all know, and none loses what another keeps."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import Fickle, GatewayProcess, odd, wait_for
from support.engines import exchange, gateways, haproxy
from websockets.asyncio.client import connect

pytestmark = pytest.mark.long

Replicas = list[GatewayProcess]
SETTINGS = "pins: {breaking: quarantine}\nservers: {leave_seconds: 1.5, grace_seconds: 10}\n"
SWITCHES = 100
"""Of each of three tools, there and back: 600 events from three gateways."""
KNOWN_SECONDS = 60
"""Bound of a wait; the benchmark says how long it takes."""


@pytest.fixture(scope="module")
def fickle(tmp_path_factory: pytest.TempPathFactory) -> Fickle:
    return Fickle(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def replicas(new_database: Callable[[], str], fickle: Fickle) -> Iterator[Replicas]:
    """Three, started at once against an empty database."""
    with gateways(new_database(), servers={"city": fickle.entry, "good": odd("echo")}, settings=SETTINGS) as found:
        yield found


def answer(process: GatewayProcess, method: str, path: str, **more: Any) -> dict[str, Any]:
    return dict(process.http.request(method, path, **more).json())


def code(said: dict[str, Any]) -> str | None:
    return str(said["error"]["code"]) if "error" in said else None


def known(what: Callable[[], Any]) -> Any:
    return wait_for(what, KNOWN_SECONDS)


def test_a_server_attached_through_one_is_there_for_all(replicas: Replicas) -> None:
    one, other, third = replicas
    assert answer(one, "POST", "/api/v1/servers", json={"server_id": "late", **odd("echo")})["success"]
    for process in (other, third):
        known(lambda process=process: code(process.execute("late__echo", {"text": "hi"})) is None)
        assert process.text("late__echo", {"text": "hi"}) == "hi"
    said = answer(other, "POST", "/api/v1/servers", json={"server_id": "late", **odd("many")})
    assert code(said) == "conflict"
    assert answer(third, "POST", "/api/v1/servers/late/disable")["success"]
    known(lambda: code(one.execute("late__echo", {"text": "hi"})) == "tool_not_found")
    assert answer(other, "POST", "/api/v1/servers/late/enable")["success"] or known(lambda: one.server("late"))
    known(lambda: code(one.execute("late__echo", {"text": "hi"})) is None)
    assert answer(one, "DELETE", "/api/v1/servers/late")["success"]
    for process in (other, third):
        known(lambda process=process: code(process.execute("late__echo", {"text": "hi"})) == "tool_not_found")


def test_two_that_attach_another_server_under_one_id_at_once(replicas: Replicas) -> None:
    """One of them is told; all end with the same server."""
    one, other, third = replicas

    async def both() -> list[dict[str, Any]]:
        return await asyncio.gather(
            asyncio.to_thread(answer, one, "POST", "/api/v1/servers", json={"server_id": "twice", **odd("echo")}),
            asyncio.to_thread(answer, other, "POST", "/api/v1/servers", json={"server_id": "twice", **odd("good")}),
        )

    said = asyncio.run(both())
    assert sorted(str(code(one_said)) for one_said in said) == ["None", "conflict"]

    def kinds() -> set[str]:
        answers = [process.http.get("/api/v1/servers/twice").json() for process in replicas]
        return {json.dumps(one["data"]["command"]) if one["success"] else "none" for one in answers}

    known(lambda: len(kinds()) == 1 and "none" not in kinds())
    assert answer(third, "DELETE", "/api/v1/servers/twice")["success"]
    for process in (one, other):
        known(lambda process=process: process.http.get("/api/v1/servers/twice").status_code == 404)


def test_a_replica_with_fewer_servers_takes_nothing_from_the_others(replicas: Replicas) -> None:
    one, _, third = replicas
    entries = json.loads((third.config / "mcp_servers.json").read_text())["mcpServers"]
    third.stop()
    third.servers({})
    third.start()
    assert code(third.execute("city__look", {"city": "Oslo"})) == "tool_not_found"
    one.stop()
    one.start()
    tools = {tool["tool_id"] for tool in one.get("/api/v1/tools")["tools"]}
    assert "city__look" in tools, "its rows are there"
    third.servers(entries)
    third.stop()
    third.start()
    for process in (one, third):
        process.wait_for_state("city", "up")


def test_a_tool_and_a_key_that_are_switched_off_are_off_everywhere(replicas: Replicas) -> None:
    one, other, third = replicas
    assert answer(one, "POST", "/api/v1/tools/city__measure/disable")["success"]
    for process in (other, third):
        known(lambda process=process: process.http.get("/api/v1/tools?disabled=true").json()["data"]["tools"])
        assert code(process.execute("city__measure")) == "tool_not_found"
    assert answer(other, "POST", "/api/v1/tools/city__measure/enable")["success"]
    known(lambda: code(one.execute("city__measure")) != "tool_not_found")
    key = answer(one, "POST", "/api/v1/keys", json={"name": "ada"})["data"]
    shown = {"authorization": f"Bearer {key['key']}"}
    for process in replicas:
        known(lambda process=process: process.http.get("/api/v1/whoami", headers=shown).status_code == 200)
    assert answer(other, "DELETE", f"/api/v1/keys/{key['key_id']}")["success"]
    for process in replicas:
        known(lambda process=process: process.http.get("/api/v1/whoami", headers=shown).status_code == 401)


def test_what_one_approved_no_other_takes_back(replicas: Replicas, fickle: Fickle) -> None:
    one, other, third = replicas
    changed = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    fickle.order(tools={"look": {"inputSchema": changed}})
    for process in replicas:
        answer(process, "POST", "/api/v1/servers/city/restart")
    for process in replicas:
        wait_for(lambda process=process: process.get("/api/v1/pins", quarantined=True)["pins"], 120)
    (pin,) = one.get("/api/v1/pins", quarantined=True)["pins"]
    approval = {"definition_hash": pin["held_hash"]}
    assert answer(one, "POST", "/api/v1/pins/city__look/approve", json=approval)["success"]
    for process in (other, third):
        known(lambda process=process: not process.get("/api/v1/pins", quarantined=True)["pins"])
        assert process.get("/api/v1/tools/city__look")["input_schema"]["required"] == ["city"]
    answer(third, "POST", "/api/v1/servers/city/restart")
    third.wait_for_state("city", "up")
    two = answer(other, "POST", "/api/v1/servers/city/restart")
    assert two["success"]
    other.wait_for_state("city", "up")
    for process in replicas:
        assert not process.get("/api/v1/pins", quarantined=True)["pins"]
        assert process.get("/api/v1/pins/city__look")["pinned_by"] == "local"


def test_all_hear_the_same_in_the_same_order_whoever_dies(replicas: Replicas) -> None:
    one, other, third = replicas
    kinds = "tool_installed,tool_removed,tool_disabled,tool_enabled"

    async def switches(process: GatewayProcess, tool: str, times: int) -> None:
        for _ in range(times):
            for how in ("disable", "enable"):
                await asyncio.to_thread(process.http.post, f"/api/v1/tools/city__{tool}/{how}")

    async def hear(process: GatewayProcess, heard: list[Any], since: int) -> None:
        url = f"{process.events_url}?events={kinds}&tools=false&since={since}"
        with contextlib.suppress(Exception):
            async with connect(url) as socket:
                async for message in socket:
                    event = json.loads(message)
                    if event["type"] != "welcome":
                        heard.append((event["seq"], event["type"], event["tool_id"]))

    async def run() -> None:
        since = one.get("/api/v1/stats")["last_event_seq"]
        heard: dict[int, list[Any]] = {number: [] for number in range(3)}
        listeners = [
            asyncio.create_task(hear(process, heard[number], since)) for number, process in enumerate(replicas)
        ]
        half = SWITCHES // 2
        await asyncio.gather(
            switches(one, "look", SWITCHES), switches(other, "write", SWITCHES), switches(third, "measure", half)
        )
        third.kill()
        await switches(other, "measure", half)
        await asyncio.to_thread(third.start)
        last = other.get("/api/v1/stats")["last_event_seq"]

        def seqs(number: int) -> list[int]:
            return [seq for seq, _, _ in heard[number]]

        async with asyncio.timeout(KNOWN_SECONDS):
            while not all(seqs(number) and seqs(number)[-1] == last for number in (0, 1)):
                await asyncio.sleep(0.05)
        again = asyncio.create_task(hear(third, heard[2], seqs(2)[-1]))
        async with asyncio.timeout(KNOWN_SECONDS):
            while seqs(2)[-1] != last:
                await asyncio.sleep(0.05)
        for task in (*listeners, again):
            task.cancel()
        assert heard[0] == heard[1] == heard[2], "each once, in one order, also by who changed to another life"
        assert seqs(0) == sorted(set(seqs(0)))
        for tool in ("look", "write", "measure"):
            assert sum(tool_id == f"city__{tool}" for _, _, tool_id in heard[0]) == 2 * SWITCHES, tool

    asyncio.run(run())


def test_a_tool_that_all_see_is_told_once(replicas: Replicas) -> None:
    one, *_ = replicas
    seq = one.get("/api/v1/stats")["last_event_seq"]
    answer(one, "POST", "/api/v1/servers", json={"server_id": "told", **odd("echo")})
    for process in replicas:
        known(lambda process=process: code(process.execute("told__echo", {"text": "x"})) is None)
    answer(one, "DELETE", "/api/v1/servers/told")
    for process in replicas:
        known(lambda process=process: process.http.get("/api/v1/servers/told").status_code == 404)

    def told() -> list[tuple[str, str]]:
        events = [event for event in one.events(seq) if str(event.get("tool_id")).startswith("told__")]
        return [(event["type"], event["tool_id"]) for event in events]

    known(lambda: len(told()) >= 8)
    assert sorted(told()) == sorted(set(told())), "each once"


@pytest.fixture(scope="module")
def balancer(replicas: Replicas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Before them, each request to the next."""
    with haproxy(tmp_path_factory.mktemp("haproxy"), [process.http_port for process in replicas]) as url:
        yield url


def test_the_balancers_own_address_is_a_way_back_to_themselves(replicas: Replicas, balancer: str) -> None:
    one, *_ = replicas
    entry = {"url": f"{balancer}/mcp", "headers": {"host": "localhost"}}
    assert answer(one, "POST", "/api/v1/servers", json={"server_id": "loop", **entry})["success"]
    failed = one.wait_for_state("loop", "failed")
    assert "this gateway itself" in failed["last_error"]
    assert not [tool for tool in one.get("/api/v1/tools")["tools"] if tool["tool_id"].startswith("loop__")]
    assert answer(one, "DELETE", "/api/v1/servers/loop")["success"]


def test_nobody_is_refused_while_one_after_the_other_is_exchanged(replicas: Replicas, balancer: str) -> None:
    refused = exchange(replicas, balancer, "good", "good__echo")
    assert not refused, refused[:3]
