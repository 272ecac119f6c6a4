"""Any request of a client on any gateway: both eras, each request sent to another."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import mcp_types as types
import pytest
from mcp import Client
from support import GatewayProcess, answer_of, fixture, odd, wait_for

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

SESSIONS, STATELESS = "2025-11-25", "2026-07-28"
META = "io.modelcontextprotocol/"
ACCEPTED = {"action": "accept", "content": {"name": "Ada", "username": "ada", "email": "a@example.com"}}

Replicas = list[GatewayProcess]


@pytest.fixture(scope="module")
def asking(replicas: Replicas) -> Replicas:
    """With a server of sessions that asks its clients, and a slow one."""
    for server_id, entry in (("sessions", fixture("stdio", "--session-only")), ("slow", odd("slow"))):
        said = replicas[0].http.post("/api/v1/servers", json={"server_id": server_id, **entry}).json()
        assert said["success"], said
        for process in replicas:
            path = f"/api/v1/servers/{server_id}"
            wait_for(lambda process=process, path=path: process.http.get(path).is_success)  # type: ignore[misc]
            process.wait_for_state(server_id, "up")
    return replicas


class Session:
    """A client of the session era that chooses the gateway of each request."""

    def __init__(self, process: GatewayProcess, capabilities: dict[str, Any] | None = None) -> None:
        opening = {
            "protocolVersion": SESSIONS,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "test", "version": "1"},
        }
        self.headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": SESSIONS}
        answer = self.post(process, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": opening})
        self.headers["mcp-session-id"] = answer.headers["mcp-session-id"]

    def post(self, process: GatewayProcess, body: dict[str, Any], timeout: float = 30) -> httpx.Response:
        return httpx.post(f"{process.url}/mcp", json=body, headers=self.headers, timeout=timeout)

    def answer(self, process: GatewayProcess, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        return answer_of(self.post(process, body))

    def request(self, process: GatewayProcess, method: str, params: dict[str, Any] | None = None) -> httpx.Response:
        return self.post(process, {"jsonrpc": "2.0", "id": 7, "method": method, "params": params or {}})

    def events(self, process: GatewayProcess, body: dict[str, Any] | None = None, last: str = "") -> Iterator[Any]:
        """The id and the message of each event, of a POST's response or of a stream."""
        headers = {**self.headers, **({"last-event-id": last} if last else {})}
        verb = "POST" if body is not None else "GET"
        with httpx.stream(verb, f"{process.url}/mcp", json=body, headers=headers, timeout=120) as answer:
            assert answer.status_code == 200, answer.read()
            event_id = ""
            for line in answer.iter_lines():
                if line.startswith("id:"):
                    event_id = line[3:].strip()
                elif line.startswith("data:") and line[5:].strip():
                    yield event_id, json.loads(line[5:])
                elif line.startswith("data:"):
                    yield event_id, None


def call(tool: str, arguments: dict[str, Any], **meta: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    if meta:
        params["_meta"] = meta
    return {"jsonrpc": "2.0", "id": 8, "method": "tools/call", "params": params}


def test_a_session_is_the_same_on_each(replicas: Replicas) -> None:
    one, other, third = replicas
    session = Session(one)
    for process in (other, third, one):
        assert session.request(process, "ping").json()["result"] == {}
        said = session.answer(process, call("good__echo", {"text": "hi"}))
        assert said["result"]["content"][0]["text"] == "hi"
    assert httpx.delete(f"{other.url}/mcp", headers=session.headers).status_code == 200
    for process in replicas:
        assert session.request(process, "ping").status_code == 404


def test_an_id_that_was_changed_or_is_of_another_address_is_none(replicas: Replicas) -> None:
    session = Session(replicas[0])
    known = session.headers["mcp-session-id"]
    for wrong in (known[:-2] + ("AA" if known[-2:] != "AA" else "BB"), known[:40], "x", known + "A"):
        session.headers["mcp-session-id"] = wrong
        for process in replicas:
            assert session.request(process, "ping").status_code == 404, wrong
    session.headers["mcp-session-id"] = known
    answer = httpx.post(
        f"{replicas[1].url}/servers/good/mcp", headers=session.headers, json=call("echo", {"text": "x"})
    )
    assert answer.status_code == 404


def test_a_session_outlives_the_gateway_that_opened_it(replicas: Replicas) -> None:
    one, other, _ = replicas
    session = Session(one)
    one.kill()
    try:
        assert session.request(other, "ping").json()["result"] == {}
    finally:
        one.start()
    assert session.request(one, "ping").json()["result"] == {}
    wait_for(lambda: one.execute("good__echo", {"text": "hi"})["success"])


def test_a_question_is_answered_on_another_gateway(asking: Replicas) -> None:
    for process, elsewhere in zip(asking, asking[1:] + asking[:1], strict=True):
        session = Session(process, {"elicitation": {}})
        said = None
        for _, message in session.events(process, call("sessions__test_elicitation", {"message": "who?"})):
            if message is not None and message.get("method") == "elicitation/create":
                answer = {"jsonrpc": "2.0", "id": message["id"], "result": ACCEPTED}
                assert session.post(elsewhere, answer).status_code == 202
            elif message is not None and "id" in message:
                said = message
        assert said is not None
        assert "ada" in json.dumps(said["result"]), said


def test_a_call_that_waits_for_its_client_goes_on_wherever_it_comes_back(asking: Replicas) -> None:
    def post(process: GatewayProcess, **more: Any) -> dict[str, Any]:
        meta = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {"elicitation": {}}}
        params = {"name": "sessions__test_elicitation", "arguments": {"message": "who?"}, "_meta": meta, **more}
        headers = {"mcp-protocol-version": STATELESS, "mcp-method": "tools/call", "mcp-name": params["name"],
                   "accept": "application/json, text/event-stream"}  # fmt: skip
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return dict(httpx.post(f"{process.url}/mcp", json=body, headers=headers, timeout=120).json())

    for process, elsewhere in zip(asking, asking[1:] + asking[:1], strict=True):
        first = post(process)["result"]
        assert first["resultType"] == "input_required", first
        answers = dict.fromkeys(first["inputRequests"], ACCEPTED)
        last = post(elsewhere, inputResponses=answers, requestState=first["requestState"])
        assert "ada" in json.dumps(last["result"]), last
        again = post(process, inputResponses=answers, requestState=first["requestState"])
        assert again["error"]["code"] == -32602, "used up"


def test_a_call_is_cancelled_from_another_gateway(asking: Replicas) -> None:
    one, other, _ = asking
    session = Session(one)
    body = call("slow__echo", {"text": "slow"}, progressToken="p")
    events = session.events(one, body)
    next(message for _, message in events if message is not None)
    cancelling = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 8}}
    assert session.post(other, cancelling).status_code == 202
    rest = [message for _, message in events if message is not None]
    assert len(rest) < 150, "it ended long before the 200 steps"
    assert not [message for message in rest if "id" in message]


def test_a_stream_that_broke_off_goes_on_on_another_gateway(asking: Replicas) -> None:
    one, other, _ = asking
    session = Session(one)
    seen = []
    for event_id, message in session.events(one, call("slow__echo", {"text": "slow"}, progressToken="p")):
        if message is not None:
            seen.append(message["params"]["progress"])
            last = event_id
        if len(seen) == 5:
            break
    rest = [message for _, message in session.events(other, last=last) if message is not None]
    steps = seen + [message["params"]["progress"] for message in rest[:-1]]
    assert steps == list(range(200)), "each once"
    assert rest[-1]["id"] == 8
    assert rest[-1]["result"]["content"][0]["text"] == "done"


def test_a_stream_of_a_gateway_that_was_killed_says_that_the_outcome_is_unknown(asking: Replicas) -> None:
    _, other, third = asking
    session = Session(third)
    for event_id, message in session.events(third, call("slow__echo", {"text": "slow"}, progressToken="p")):
        last = event_id
        if message is not None and message["params"]["progress"] > 2:
            break
    third.kill()
    try:
        rest = [message for _, message in session.events(other, last=last) if message is not None]
    finally:
        third.start()
    assert rest[-1]["id"] == 8
    assert "may have done its work" in rest[-1]["error"]["message"]
    third.wait_for_state("slow", "up")


def test_a_change_is_heard_on_a_stream_wherever_it_is_open(replicas: Replicas) -> None:
    one, other, third = replicas
    session = Session(one)
    heard = threading.Event()

    def listen() -> None:
        for _, message in session.events(other):
            if message is not None and message.get("method") == "notifications/tools/list_changed":
                heard.set()
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def change() -> bool:
        third.http.post("/api/v1/tools/good__safe/disable")
        third.http.post("/api/v1/tools/good__safe/enable")
        return heard.wait(0.5)

    wait_for(change, 60)
    thread.join(10)


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_twenty_clients_of_the_sdk_through_the_balancer(asking: Replicas, balancer: str, mode: str) -> None:
    async def elicit(_context: Any, _params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"username": "ada", "email": "a@example.com"})

    async def one(number: int) -> str:
        async with Client(f"{balancer}/mcp", mode=mode, elicitation_callback=elicit) as client:  # type: ignore[arg-type]
            tools = await client.list_tools()
            assert "good__echo" in {tool.name for tool in tools.tools}
            for step in range(5):
                result = await client.call_tool("good__echo", {"text": f"{number}-{step}"})
                assert result.content[0].text == f"{number}-{step}"  # type: ignore[union-attr]
            asked = await client.call_tool("sessions__test_elicitation", {"message": "who?"})
            return str(asked.content[0].text)  # type: ignore[union-attr]

    async def run() -> list[str]:
        return [said for begin in range(0, 20, 5) for said in await asyncio.gather(*map(one, range(begin, begin + 5)))]

    said = asyncio.run(run())
    assert len(said) == 20
    assert all("ada" in text for text in said), said


def test_a_client_of_the_first_revision_posts_to_any_gateway(replicas: Replicas) -> None:
    one, other, third = replicas
    headers = {"accept": "text/event-stream"}
    with httpx.stream("GET", f"{one.url}/sse", headers=headers, timeout=120) as stream:
        lines = (line[5:].strip() for line in stream.iter_lines() if line.startswith("data:"))
        place = next(lines)
        opening = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}
        for number, (process, method, params) in enumerate(
            ((other, "initialize", opening), (third, "tools/call", call("good__echo", {"text": "old"})["params"]))
        ):
            body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            assert httpx.post(f"{process.url}{place}", json=body).status_code == 202
            answer = json.loads(next(lines))
            assert answer["id"] == number
        assert answer["result"]["content"][0]["text"] == "old"
    assert httpx.post(f"{other.url}{place}x", json=body).status_code == 404


def test_what_is_too_much_for_an_id_is_known_everywhere(asking: Replicas) -> None:
    one, other, _ = asking
    much = {"elicitation": {"form": {}, "note": "x" * 3000}, "experimental": {"much": "y" * 3000}}
    session = Session(one, much)
    assert len(session.headers["mcp-session-id"]) < 2000
    assert session.request(other, "ping").json()["result"] == {}
    for _, message in session.events(other, call("sessions__test_elicitation", {"message": "who?"})):
        if message is not None and message.get("method") == "elicitation/create":
            session.post(other, {"jsonrpc": "2.0", "id": message["id"], "result": ACCEPTED})
        elif message is not None and "id" in message:
            assert "ada" in json.dumps(message["result"]), message


def test_a_call_that_says_nothing_meanwhile_is_resumed_on_another_gateway(asking: Replicas) -> None:
    one, other, _ = asking
    session = Session(one)
    for event_id, message in session.events(one, call("slow__safe", {"text": "sleep 3"})):
        assert message is None, "only that the stream is there"
        last = event_id
        break
    rest = [message for _, message in session.events(other, last=last) if message is not None]
    assert [message["id"] for message in rest] == [8]
    assert "result" in rest[0], rest
