"""Small inputs that once held up everybody, and what a mistake or a double meaning once let through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import GatewayProcess, odd, running_gateway, toolscore
from support.stalls import stall_seconds
from websockets.sync.client import connect

from toolscore.core.errors import UpstreamProtocolError
from toolscore.core.jsonrpc import decode, twice
from toolscore.core.peer import Peer
from toolscore.tools.changes import first_sight

UNCOUNTED = {"TEST_COVERAGE": ""}
"""Counting lines takes CPU time, too."""
TINY = "[" + ",".join(["1.2345678901234567e-300"] * 150_000) + "]"
POLICY = """
policy:
  rules:
    - {effect: deny, tools: ["echo__echo"], arguments: {text: {equals: "forbidden"}}}
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with running_gateway({"echo": odd("echo")}, settings=POLICY, start=False) as process:
        process.environment = UNCOUNTED
        process.start()
        process.wait_for_state("echo", "up")
        yield process


@pytest.mark.long
def test_a_body_of_tiny_numbers_holds_up_nobody(gateway: GatewayProcess) -> None:
    body = f'{{"tool_id": "echo__echo", "parameters": {{"text": "x", "x": {TINY}}}}}'
    answer = gateway.http.post("/execute_tool", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 422)
    assert gateway.busiest_seconds() < stall_seconds()


@pytest.mark.long
def test_a_flood_of_small_frames_holds_up_nobody(gateway: GatewayProcess) -> None:
    with connect(gateway.router_url) as socket:
        for _ in range(10_000):
            socket.send('{"type":"ping","request_id":1}')
        for _ in range(10_000):
            socket.recv(30)
    assert gateway.busiest_seconds() < stall_seconds()


def seconds(work: Callable[[], Any]) -> float:
    """CPU time, the least of three."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


@pytest.mark.no_cover
@pytest.mark.parametrize("unit", ["z", "_", "a_", "0", " ", "\n ", "`", "-", ".", "you "])
@pytest.mark.long
def test_a_long_word_is_looked_through_in_linear_time(unit: str) -> None:
    def look(length: int) -> float:
        definition = {"name": "t", "inputSchema": {"properties": {"x": {"description": f"a{unit * length}b"}}}}
        return seconds(lambda: first_sight(definition))

    assert look(40_000) < 4 * max(look(20_000), 0.005)


@pytest.mark.parametrize("body", ['{"text": "forbidden", "text": "x"}', '{"text": "x", "text": "forbidden"}'])
def test_a_member_that_is_given_twice_is_refused(gateway: GatewayProcess, body: str) -> None:
    """A rule looks at one of them, and a server may take the other."""
    call = f'{{"tool_id": "echo__echo", "parameters": {body}}}'
    error = gateway.http.post("/execute_tool", content=call).json()["error"]
    assert error["code"] in ("invalid_arguments", "forbidden")
    params = f'{{"name": "echo__echo", "arguments": {body}}}'
    params = f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {params}}}'
    answer = gateway.http.post("/mcp", content=params, headers={"content-type": "application/json"}).json()
    assert "error" in answer or answer["result"]["isError"]


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ('{"a": 1, "b": {"c": [{"d": 1, "d": 2}]}}', "d"), ('{"a": "x\\": 1, ", "b": "\\":"}', None),
        ('{"a" : 1, "a"\n: 2}', "a"), ('[{"a": 1}, {"a": 2}]', None), ('{"\\u0061": 1, "a": 2}', "a"), ("5", None),
    ],
)  # fmt: skip
def test_what_is_twice_in_an_object_is_found(text: str, member: str | None) -> None:
    assert twice(text.encode(), decode(text.encode())) == member


@pytest.mark.parametrize(
    "settings",
    [
        "policy: {rules: [{effect: deny, principals: [bob], server: [hid]}]}",
        "policy: {rules: [{effect: denny}]}",
        "access: {local_without_key: flase}",
        "access: {local_without_keys: false}",
        "acces: {local_without_key: false}",
        "rates: {per_minute: many}",
        "policy: {rules: [",
    ],
)
def test_a_mistake_in_what_keeps_callers_out_keeps_the_gateway_from_starting(tmp_path: Path, settings: str) -> None:
    (tmp_path / "toolscore.yaml").write_text(settings)
    done = toolscore("serve", "--config", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 78
    assert "more would be allowed than these settings say" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_mistake_elsewhere_does_not(tmp_path: Path) -> None:
    with running_gateway(settings="scores: {half_life: soon}") as process:
        assert process.get("/health")["status"] == "degraded"


@pytest.mark.parametrize("deep", ['{"a":' * 5000 + "1" + "}" * 5000, "[" * 5000 + "]" * 5000])
@pytest.mark.parametrize("order", ['{{"jsonrpc":"2.0","id":1,"result":{}}}', '{{"result":{},"id":1,"jsonrpc":"2.0"}}'])
def test_an_answer_that_cannot_be_read_is_an_error_at_once(deep: str, order: str) -> None:
    async def run() -> None:
        async def send(_message: bytes) -> None:
            asyncio.get_running_loop().call_soon(peer.receive, order.format(deep).encode())

        peer = Peer(send, on_junk=lambda _: None, lenient=True)
        with pytest.raises(UpstreamProtocolError, match="cannot be read"):
            async with asyncio.timeout(5):
                await peer.request("tools/call")

    asyncio.run(run())
