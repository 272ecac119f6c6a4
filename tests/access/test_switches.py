"""Single tools that an operator disables: they exist for nobody, until he enables them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import GatewayProcess, bearer, odd, running_gateway, wait_for
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

pytestmark = pytest.mark.long

CALL = {"text": "hello"}


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    settings = 'policy: {rules: [{effect: deny, principals: [bob], tools: ["alpha__echo"]}]}'
    with running_gateway({"alpha": odd("echo"), "beta": odd("echo")}, settings=settings, python=True) as gateway:
        for server_id in ("alpha", "beta"):
            gateway.wait_for_state(server_id, "up")
        for name in ("ada", "bob"):
            made = gateway.http.post("/api/v1/keys", json={"name": name}).json()["data"]
            setattr(gateway, name, made["key"])
        yield gateway


def switch(process: GatewayProcess, tool_id: str, how: str, **more: Any) -> dict[str, Any]:
    return dict(process.http.post(f"/api/v1/tools/{tool_id}/{how}", **more).json())


def ids(process: GatewayProcess, **params: Any) -> set[str]:
    return {tool["tool_id"] for tool in process.get("/api/v1/tools", limit=200, **params)["tools"]}


def test_a_disabled_tool_exists_for_nobody_and_comes_back(process: GatewayProcess) -> None:
    assert switch(process, "alpha__safe", "disable")["data"] == {"tool_id": "alpha__safe", "disabled": True}
    assert switch(process, "alpha__safe", "disable")["success"], "it is disabled already"
    assert "alpha__safe" not in ids(process)
    assert ids(process, disabled=True) == {"alpha__safe"}
    assert process.get("/api/v1/tools/alpha__safe")["disabled"], "who may enable it may look at it"
    assert process.execute("alpha__safe", CALL)["error"]["code"] == "tool_not_found"
    found = process.http.post("/api/v1/tools/search", json={"query": "alpha safe", "limit": 50}).json()["data"]
    assert "alpha__safe" not in {one["tool_id"] for one in found["tools"]}
    run = process.http.post("/api/v1/code/run", json={"code": "print(tools.alpha.safe(text='x'))"}).json()
    assert "no tool 'alpha.safe'" in json.dumps(run)
    assert run["data"]["is_error"]
    ada = bearer(process.ada)  # type: ignore[attr-defined]
    assert process.http.get("/api/v1/tools/alpha__safe", headers=ada).status_code == 404
    assert process.http.get("/api/v1/tools", params={"disabled": True}, headers=ada).status_code == 403
    assert switch(process, "alpha__safe", "enable", headers=ada)["error"]["code"] == "forbidden"
    process.stop()
    process.start()
    process.wait_for_state("alpha", "up")
    assert "alpha__safe" not in ids(process), "it stays so after a restart"
    assert switch(process, "alpha__safe", "enable")["data"] == {"tool_id": "alpha__safe", "disabled": False}
    assert process.execute("alpha__safe", CALL)["success"]
    assert ids(process, disabled=True) == set()


def test_what_comes_under_its_name_after_its_server_went_is_another(process: GatewayProcess) -> None:
    process.http.post("/api/v1/servers", json={"server_id": "late", **odd("echo")})
    process.wait_for_state("late", "up")
    switch(process, "late__echo", "disable")
    process.http.delete("/api/v1/servers/late")
    process.http.post("/api/v1/servers", json={"server_id": "late", **odd("echo")})
    process.wait_for_state("late", "up")
    assert process.execute("late__echo", CALL)["success"]


def test_who_may_not_see_a_tool_hears_nothing_of_its_switch(process: GatewayProcess) -> None:
    seq = process.get("/api/v1/stats")["last_event_seq"]
    for tool_id in ("alpha__echo", "beta__echo"):
        for how in ("disable", "enable"):
            switch(process, tool_id, how)
    wait_for(lambda: process.event_seen("tool_enabled", tool_id="beta__echo"))

    def heard(key: str) -> list[tuple[str, str]]:
        shown = {"params": {"since": seq, "limit": 1000}, "headers": bearer(key)}
        events = process.http.get("/api/v1/events", **shown).json()["data"]["events"]  # type: ignore[arg-type]
        return [(one["type"], one["tool_id"]) for one in events if one["type"].endswith("abled")]

    of_beta = [("tool_disabled", "beta__echo"), ("tool_enabled", "beta__echo")]
    assert heard(process.bob) == of_beta  # type: ignore[attr-defined]
    assert heard(process.ada) == [("tool_disabled", "alpha__echo"), ("tool_enabled", "alpha__echo"), *of_beta]  # type: ignore[attr-defined]


def test_with_one_disabled_the_end_of_others_is_told() -> None:
    """Where the rules hide nothing, everybody hears what goes."""
    with running_gateway({"alpha": odd("echo")}) as open_to_all:
        open_to_all.wait_for_state("alpha", "up")
        open_to_all.http.post("/api/v1/servers", json={"server_id": "beta", **odd("echo")})
        open_to_all.wait_for_state("beta", "up")
        switch(open_to_all, "alpha__echo", "disable")
        assert open_to_all.http.delete("/api/v1/servers/beta").json()["success"]
        wait_for(lambda: open_to_all.event_seen("tool_removed", tool_id="beta__echo"))


def test_a_page_shows_its_key_as_a_subprotocol_and_chooses_in_the_address(process: GatewayProcess) -> None:
    url = f"{process.events_url}?events=tool_disabled,stats_update&tools=false"

    def offer(key: str) -> list[Subprotocol]:
        return [Subprotocol("toolscore.events"), Subprotocol(f"toolscore.bearer.{key}")]

    async def run() -> None:
        with pytest.raises(InvalidStatus, match="401"):
            async with connect(url, subprotocols=offer("ts_000000000000_" + "x" * 43)):
                pass
        async with connect(url, subprotocols=offer(process.bob)) as socket:  # type: ignore[attr-defined]
            assert socket.subprotocol == "toolscore.events", "the key is not said back"
            welcome = json.loads(await socket.recv())
            assert "tools" not in welcome
            for tool_id in ("alpha__echo", "beta__echo"):
                await asyncio.to_thread(switch, process, tool_id, "disable")
            heard: list[Any] = []
            while len(heard) < 1:
                event = json.loads(await socket.recv())
                assert event["type"] in ("tool_disabled", "stats_update")
                heard += [event] if event["type"] == "tool_disabled" else []
            assert heard[0]["tool_id"] == "beta__echo", "bob does not see the other"
        for tool_id in ("alpha__echo", "beta__echo"):
            await asyncio.to_thread(switch, process, tool_id, "enable")
        async with connect(f"{url}&since={welcome['seq']}", subprotocols=offer(process.bob)) as socket:  # type: ignore[attr-defined]
            missed = [json.loads(await socket.recv()) for _ in range(2)]
            told = next(one for one in missed if one["type"] == "tool_disabled")
            assert told["tool_id"] == "beta__echo", "it goes on where it stopped"
        async with connect(f"{process.events_url}?since=x", subprotocols=offer(process.bob), max_size=None) as socket:  # type: ignore[attr-defined]
            said = [json.loads(await socket.recv())["type"] for _ in range(2)]
            assert said == ["welcome", "error"]

    asyncio.run(run())
