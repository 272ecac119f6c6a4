"""Code that calls tools where somebody is careless or means harm: names, rules, values, time, replays."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support import EXECUTOR, SCRIPTS, GatewayProcess, bearer, running_gateway, toolscore, wait_for

RUN = "toolscore__run_code"
READS = {"readOnlyHint": True}
ANY = {"type": "object"}
SAYS = {"type": "object", "properties": {"say": {"type": "string"}, "sleep": {"type": "number"}}}


def tool(name: str, schema: dict[str, Any] = ANY, **hints: bool) -> dict[str, Any]:
    return {"name": name, "description": name, "inputSchema": schema, "annotations": hints}


TOOLS = {
    "od-d": [tool("put"), tool("get", **READS)],
    "od_d": [tool("put"), tool("put.")],
    "say": [
        tool("say", SAYS, **READS),
        tool("labels", {"type": "object", "properties": {"labels": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                                                         "name": {"type": "string"}}}, **READS),
        tool("named", {"type": "object", "properties": {"name": {"type": "string"}, "n": {}}}, **READS),
    ],
}  # fmt: skip
SETTINGS = """
rates: {tools: {"python-executor-mcp-server__python_execute": {per_minute: 1, burst: 1}}}
"""


@pytest.fixture(scope="module", params=[True, False], ids=["inside", "apart"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("tools")
    servers = {}
    for server_id, listed in TOOLS.items():
        (folder / f"{server_id}.json").write_text(json.dumps(listed))
        script = [str(SCRIPTS / "lists.py"), str(folder / f"{server_id}.json")]
        servers[server_id] = {"command": sys.executable, "args": ["-I", "-S", *script]}
    ports = f"use_inprocess_python_executor: {str(request.param).lower()}"
    with running_gateway(servers, settings=SETTINGS, ports=ports, journal=True, python=True) as process:
        for server_id in (*servers, EXECUTOR):
            process.wait_for_state(server_id, "up")
        yield process


def run(gateway: GatewayProcess, code: str, **more: Any) -> dict[str, Any]:
    answer = gateway.http.post("/api/v1/code/run", json={"code": code, **more}, timeout=180).json()
    assert answer["success"], answer
    return dict(answer["data"])


def said(gateway: GatewayProcess, code: str, **more: Any) -> str:
    data = run(gateway, code, **more)
    assert not data["is_error"], data["content"]
    return str(data["structured_content"]["stdout"]).strip()


TRY = "try: {}\nexcept ToolError as error: print(error.code)"


def test_a_name_permits_the_tool_that_is_called_so_and_no_other(gateway: GatewayProcess) -> None:
    others = said(gateway, "print(*[name for name in dir(tools) if name.startswith('od_d')])").split()
    assert len(others) == 2
    other = next(name for name in others if name != "od_d")
    assert said(gateway, "print(tools.od_d.put()[0])", tools=["od_d__put"]) == "put"
    assert said(gateway, TRY.format(f"tools.{other}.put()"), tools=["od_d__put"]) == "forbidden"
    assert said(gateway, TRY.format('tools["od_d.put."]()'), tools=["od_d__put"]) in ("forbidden", "tool_not_found")
    assert said(gateway, f"print(tools.{other}.put()[0])", tools=["od-d"]) == "put"
    assert said(gateway, TRY.format("tools.od_d.put()"), tools=["od-d"]) == "forbidden"


def test_no_detour_leads_to_more_runs(gateway: GatewayProcess) -> None:
    inner = "tools.toolscore.call_tool(tool_id='toolscore__run_code', parameters={'code': '1', 'tools': ['*']})"
    assert said(gateway, TRY.format(inner), tools=["toolscore"]) == "forbidden"


@pytest.mark.long
def test_the_budget_of_python_counts_for_code_too(gateway: GatewayProcess) -> None:
    settings, ports = f"{SETTINGS}access: {{local_without_key: false}}\n", "use_inprocess_python_executor: true"
    with running_gateway(settings=settings, ports=ports, python=True) as process:
        made = toolscore("keys", "create", "ada", "--config", str(process.config))
        http = httpx.Client(base_url=process.url, headers=bearer(made.stdout.strip()))
        wait_for(lambda: http.get("/api/v1/servers").status_code == 200)
        answers = [http.post("/api/v1/code/run", json={"code": "1"}).json() for _ in range(3)]
        http.close()
    refused = [answer["data"]["content"][0]["text"] for answer in answers if answer["data"]["is_error"]]
    assert len(refused) == 2, answers
    assert "too often" in refused[0]


def test_values_are_what_the_tool_said(gateway: GatewayProcess) -> None:
    for text in ("1.10", "1234567e89", "007", "1e5", "NaN", "1_000"):
        assert said(gateway, f"print(repr(tools.say.say(say={text!r})))") == repr(text)
    for text, value in (("42", "42"), ("-1.5", "-1.5"), ("true", "True"), ("null", "None"), ("[1]", "[1]")):
        assert said(gateway, f"print(tools.say.say(say={text!r}))") == value
    assert said(gateway, "print(tools.say.say(say='[' * 100_000)[:3])") == "[[["
    assert said(gateway, "print(len(tools.parallel(tools.say.say.later(say='[' * 100_000) for _ in range(3))))") == "3"


def test_arguments_by_position_go_where_the_signature_says(gateway: GatewayProcess) -> None:
    assert said(gateway, "print(tools.say.labels({}))") == "['labels', {'labels': {}}]"
    assert said(gateway, "print(tools.say.labels({'name': 'x'}))") == "['labels', {'labels': {'name': 'x'}}]"
    assert said(gateway, "print(tools.say.named({'name': 'x', 'n': 1}))") == "['named', {'name': 'x', 'n': 1}]"
    assert said(gateway, "print(tools.say.named('x', 1))") == "['named', {'name': 'x', 'n': 1}]"


def test_await_works_wherever_python_has_it(gateway: GatewayProcess) -> None:
    code = """
class Reader:
    async def read(self):
        return await tools.say.say(say="inside")
    async def many(self):
        return [one async for one in self.each()]
    async def each(self):
        for n in range(2):
            yield await tools.say.say.later(say=f"each {n}")
print(await Reader().read(), await Reader().many())
"""
    assert said(gateway, code) == "inside ['each 0', 'each 1']"


def test_a_call_that_is_not_waited_for_is_cancelled(gateway: GatewayProcess) -> None:
    code = """
import asyncio
try:
    await asyncio.wait_for(tools.say.say.later(say="late", sleep=20), 0.3)
except TimeoutError:
    print("gave up")
"""
    started = time.monotonic()
    assert said(gateway, code, timeout_seconds=30) == "gave up"
    assert time.monotonic() - started < 10
    wait_for(lambda: gateway.server("say")["calls_in_flight"] == 0)


@pytest.mark.long
def test_a_run_ends_in_time_though_others_take_all_places(gateway: GatewayProcess) -> None:
    slow = "import os\ntools.parallel(tools.say.say.later(say=os.urandom(8).hex(), sleep=6) for _ in range(16))"
    others = [threading.Thread(target=run, args=(gateway, slow), kwargs={"timeout_seconds": 20}) for _ in range(4)]
    for other in others:
        other.start()
    wait_for(lambda: gateway.server("say")["calls_in_flight"] >= 40, 60)
    started = time.monotonic()
    run(gateway, "tools.say.say(say='quick')", timeout_seconds=1)
    took = time.monotonic() - started
    for other in others:
        other.join()
    assert took < 4, "its own time holds, whoever else waits"


def test_an_offline_replay_invents_nothing(gateway: GatewayProcess) -> None:
    code = "v = tools.say.say(say='{\\\"password\\\": \\\"hunter2hunter2\\\"}')\nprint(len(v['password']))"
    data = run(gateway, code)
    path = f"/api/v1/calls/{data['call_id']}/replay"
    wait_for(lambda: gateway.get(f"/api/v1/calls/{data['call_id']}")["calls"])
    refused = gateway.http.post(path, json={"offline": True}).json()
    assert refused["error"]["code"] == "conflict"
    assert "secrets" in refused["error"]["message"]


def test_a_run_with_an_id_goes_on_once(gateway: GatewayProcess) -> None:
    headers = {"x-request-id": "the same"}
    body = {"code": "print('on', flush=True); import time; time.sleep(1)"}
    with gateway.http.stream(
        "POST", "/api/v1/code/run", json=body, headers={**headers, "accept": "application/x-ndjson"}
    ) as first:
        lines = first.iter_lines()
        assert "on" in next(line for line in lines if "stdout" in line)
        again = gateway.http.post("/api/v1/code/run", json={"code": "1"}, headers=headers).json()
        assert '"end"' in [*lines][-1]
    assert again["error"]["code"] == "conflict"
    assert gateway.http.post("/api/v1/code/run", json={"code": "1"}, headers=headers).json()["success"]


def test_streamed_output_is_whole_text(gateway: GatewayProcess) -> None:
    code = "import os, time\nos.write(1, b'\\xc3')\ntime.sleep(0.3)\nos.write(1, b'\\xa9 done')"
    text = ""
    with gateway.http.stream(
        "POST", "/api/v1/code/run", json={"code": code}, headers={"accept": "application/x-ndjson"}
    ) as response:
        for line in response.iter_lines():
            event = json.loads(line)
            text += event["text"] if event["event"] == "stdout" else ""
    assert text == "é done"


@pytest.mark.long
def test_nobody_floods_the_gateway_with_calls(gateway: GatewayProcess) -> None:
    code = """
import os, struct
body = b'{"do": "call", "tool": ["say", "say"], "kwargs": {"say": "' + b"x" * 3_000_000 + b'"}}'
while True:
    view = memoryview(struct.pack("<IBI", 5 + len(body), 67, os.getpid()) + body)
    while view:
        view = view[os.write(3, view):]
"""
    started = time.monotonic()
    flood = threading.Thread(target=run, args=(gateway, code), kwargs={"timeout_seconds": 5})
    flood.start()
    waits = []
    while flood.is_alive():
        began = time.monotonic()
        assert gateway.http.get("/livez").status_code == 200
        waits.append(time.monotonic() - began)
        threading.Event().wait(0.05)
    assert time.monotonic() - started < 40
    assert sorted(waits)[len(waits) // 2] < 1
