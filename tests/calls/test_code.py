"""Code that calls tools, in a real gateway: with the executor in its process, and with the executor apart."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client
from msgspec import Raw
from support import EXECUTOR, ROOT, Fickle, GatewayProcess, fixture, running_gateway, toolscore, wait_for

from toolscore.core.jsonrpc import RemoteError, encode
from toolscore.upstreams import Caller
from toolscore.upstreams.caller import CODE_CALL, CodeReply
from toolscore.upstreams.in_flight import InFlight

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")

RUN = "toolscore__run_code"
SETTINGS = """
code: {max_calls: 50, max_parallel: 8, max_result_bytes: 100000, changing_tools: ["free__write"]}
"""


@pytest.fixture(scope="module", params=[True, False], ids=["inside", "apart"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    city, free = (Fickle(tmp_path_factory.mktemp(name)) for name in ("city", "free"))
    servers = {
        "city-hall": city.entry,
        "free": free.entry,
        "echo": {"command": sys.executable, "args": ["-m", "toolscore.bench.echo", "stdio", "0"]},
        "both": fixture("stdio"),
        "sessions": fixture("stdio", "--session-only"),
    }
    ports = f"use_inprocess_python_executor: {str(request.param).lower()}"
    with running_gateway(servers, settings=SETTINGS, ports=ports, journal=True, python=True) as process:
        for server_id in (*servers, EXECUTOR):
            process.wait_for_state(server_id, "up")
        process.city = city  # type: ignore[attr-defined]
        yield process


def run(gateway: GatewayProcess, code: str, **more: Any) -> dict[str, Any]:
    """The envelope's `data` of a run."""
    answer = gateway.http.post("/api/v1/code/run", json={"code": code, **more}, timeout=180).json()
    assert answer["success"], answer
    return dict(answer["data"])


def value(gateway: GatewayProcess, code: str, **more: Any) -> Any:
    """What a run ends with, as JSON: the code prints it."""
    data = run(gateway, f"import json\n{code}\nprint(json.dumps(it))", **more)
    assert not data["is_error"], data["content"]
    return json.loads(data["structured_content"]["stdout"])


def failure(gateway: GatewayProcess, code: str, **more: Any) -> dict[str, Any]:
    """The `ToolError` that a call raises."""
    caught = f"""
try:
    {code}
except ToolError as error:
    it = {{name: getattr(error, name) for name in ("code", "message", "suggestion", "retryable")}}
"""
    return dict(value(gateway, caught, **more))


# What the code sees


def test_results_are_python_values(gateway: GatewayProcess) -> None:
    assert value(gateway, "it = tools.free.measure(city='Oslo')") == {"size": 3}, "structured content"
    text = "This is a simple text response for testing."
    assert value(gateway, "it = tools.both.test_simple_text()", tools=["both"]) == text
    several = value(gateway, "it = tools.both.test_multiple_content_types()", tools=["both"])
    assert [type(part) for part in several] == [str, dict, dict]
    assert several[1]["type"] == "image"
    raw = value(gateway, "it = tools.free.look.raw(city='Oslo')")
    assert raw["content"][0]["type"] == "text"
    assert value(gateway, "it = tools.free.look.text(city='Oslo')").startswith("Oslo #")


def test_json_in_a_text_is_parsed(gateway: GatewayProcess) -> None:
    def echoed(text: str, how: str = "") -> Any:
        return value(gateway, f"it = tools.echo.echo{how}(text={text!r})", tools=["echo"])

    assert echoed('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert echoed("42") == 42
    assert echoed("[1, 2") == "[1, 2"
    assert echoed("42", ".text") == "42", "and as it came, for who wants that"


def test_it_may_be_awaited_and_gathered(gateway: GatewayProcess) -> None:
    code = """
import asyncio
async def both():
    one, two = await asyncio.gather(tools.free.measure(city="a"), tools.free.measure.later(city="b"))
    return [one, two, await tools.free.measure(city="c")]
it = await both()
"""
    assert value(gateway, code) == [{"size": 3}] * 3


def test_many_at_once_keep_their_order(gateway: GatewayProcess) -> None:
    code = """
laters = [tools.free.look.later(city=str(n)) for n in range(30)]
it = [text.split(" #")[0] for text in tools.parallel(laters)]
"""
    assert value(gateway, code) == [str(number) for number in range(30)]
    mixed = """
found = tools.parallel(tools.free.look.later(city="Nowhere"), tools.free.measure.later(), return_exceptions=True)
it = [type(one).__name__ for one in found]
"""
    assert value(gateway, mixed) == ["ToolError", "dict"]


def test_threads_may_call(gateway: GatewayProcess) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(12) as pool:
    it = [text.split(" #")[0] for text in pool.map(lambda n: tools.free.look(city=str(n)), range(40))]
"""
    assert value(gateway, code) == [str(number) for number in range(40)]


def test_names_that_are_no_identifiers_get_one(gateway: GatewayProcess) -> None:
    assert value(gateway, "it = tools.city_hall.measure()") == {"size": 3}
    assert value(gateway, 'it = tools["city-hall__measure"]()') == {"size": 3}
    assert {"city_hall", "free", "search", "parallel"} <= set(value(gateway, "it = dir(tools)"))
    assert value(gateway, "it = dir(tools.city_hall)") == ["look", "measure", "write"]


@pytest.mark.long
def test_help_and_search_explain(gateway: GatewayProcess) -> None:
    shown = run(gateway, "help(tools.free.measure)\nhelp(tools.free)\nhelp(len)")["structured_content"]["stdout"]
    assert "def measure(city: str = ..., unit: str = ...) -> MeasureResult:" in shown
    assert "class free:" in shown
    assert "Return the number of items" in shown
    found = value(gateway, "it = tools.search('looks a city up in the register')")
    assert found[0]["name"] in ("free.look", "city_hall.look")
    assert found[0]["signature"].startswith("look(")


def test_wrong_calls_say_what_is_wrong(gateway: GatewayProcess) -> None:
    wrong = failure(gateway, "tools.free.look(city=5)")
    anywhere = gateway.execute("free__look", {"city": 5})["error"]
    assert (wrong["code"], wrong["message"]) == ("invalid_arguments", anywhere["message"]), "as anywhere"
    missing = failure(gateway, "tools.free.lok(city='a')")
    assert missing["code"] == "tool_not_found"
    assert "free.look" in missing["suggestion"]
    failed = failure(gateway, "tools.free.look(city='Nowhere')")
    assert (failed["code"], failed["message"]) == ("tool_error", "nothing is known of 'Nowhere'")
    assert failure(gateway, "tools.free.look(city={1, 2}.__class__)")["code"] == "invalid_arguments"
    assert failure(gateway, "tools.free.look('a', 'b', 'c')")["code"] == "invalid_arguments"
    assert value(gateway, "it = tools.free.look('Rome').split(' #')[0]") == "Rome", "by position, as the signature says"


def test_a_traceback_shows_the_code_alone(gateway: GatewayProcess) -> None:
    error = run(gateway, "def f():\n    tools.free.look(city='Nowhere')\nf()")["structured_content"]["error"]
    assert error["type"] == "ToolError"
    assert error["traceback"].count("File ") == 2
    assert error["traceback"].endswith("ToolError: free.look: nothing is known of 'Nowhere'\n")


def test_sessions_keep_their_variables_and_tools(gateway: GatewayProcess) -> None:
    run(gateway, "kept = tools.free.measure()", session_id="s")
    later = "from threading import Thread\nThread(target=lambda: tools.free.look(city='x')).start()\nit = kept"
    assert value(gateway, later, session_id="s") == {"size": 3}
    assert value(gateway, "it = [kept, tools.free.measure()]", session_id="s") == [{"size": 3}] * 2
    plain = gateway.execute(f"{EXECUTOR}__python_execute", {"code": "tools.free.measure()", "session_id": "s"})
    assert "the run has ended" in plain["data"]["content"][0]["text"], "code that is no run has no tools"
    gateway.execute(f"{EXECUTOR}__python_session_reset", {"session_id": "s"})


# What it may


def test_what_changes_something_must_be_named(gateway: GatewayProcess) -> None:
    refused = failure(gateway, "tools.city_hall.write(city='a')")
    assert refused["code"] == "forbidden"
    assert 'tools=["city-hall__write"' in refused["suggestion"]
    for named in ("city-hall__write", "city_hall.write", "city-hall", "city-hall__*"):
        assert value(gateway, "it = tools.city_hall.write(city='a')[0]", tools=[named]) == "a", named
    assert value(gateway, "it = tools.free.write(city='b')[0]") == "b", "the operator named it"
    assert failure(gateway, "tools.free.look(city='a')", tools=["city-hall"])["code"] == "forbidden", (
        "only what is named"
    )


def test_what_people_write_first_works_or_says_what_helps(gateway: GatewayProcess) -> None:
    assert value(gateway, "import tools\nfrom tools import free\nit = free.measure()") == {"size": 3}
    assert "put what it reads into the code" in run(gateway, "input()")["content"][0]["text"]
    assert "came with it as `files`" in run(gateway, "open('/home/me/data.csv')")["content"][0]["text"]
    for wrong in ("nobody", "nobody__look", "nobody.look"):
        text = run(gateway, "1", tools=[wrong])["content"][0]["text"]
        assert f"names '{wrong}', and there is no such tool or server" in text
    assert value(gateway, "it = dir(tools)", tools=["free", "echo"]) == ["echo", "free", "parallel", "search"]
    assert "at most 300" in run(gateway, "1", timeout_seconds=10**6)["content"][0]["text"]
    counted = run(gateway, "for tool in (tools.free.look, tools.no.thing):\n  try: tool()\n  except ToolError: pass")
    assert (counted["run"]["calls"], counted["run"]["failed"]) == (1, 0), "what was refused was no call"


@pytest.mark.long
def test_the_bounds_hold(gateway: GatewayProcess) -> None:
    many = """
n = 0
try:
    while True:
        tools.free.measure()
        n += 1
except ToolError as error:
    it = [n, error.code]
"""
    assert value(gateway, many) == [50, "forbidden"]
    big = """
try:
    for n in range(9):
        tools.free.look(city="x" * 30_000)
except ToolError as error:
    it = [n, error.code]
"""
    assert value(gateway, big) == [3, "payload_too_large"]
    assert failure(gateway, "tools.free.look(city='x' * 5_000_000)")["code"] == "payload_too_large"
    assert failure(gateway, "tools.toolscore.run_code('1')", tools=["toolscore", "free"])["code"] == "forbidden"


def test_time_is_the_runs_own(gateway: GatewayProcess) -> None:
    gateway.city.order(sleep=20)  # type: ignore[attr-defined]
    try:
        data = run(gateway, "tools.city_hall.look(city='slow')", timeout_seconds=0.5)
    finally:
        gateway.city.order()  # type: ignore[attr-defined]
    assert data["structured_content"]["exit"] in ("timeout", "error")
    assert "time" in data["content"][0]["text"].lower()
    assert data["structured_content"]["duration_ms"] < 5000
    wait_for(lambda: gateway.server("city-hall")["calls_in_flight"] == 0)


@pytest.mark.parametrize("how", ["hang up", "end first"])
def test_nothing_goes_on_after_a_run(gateway: GatewayProcess, how: str) -> None:
    gateway.city.order(sleep=30)  # type: ignore[attr-defined]
    try:
        if how == "hang up":
            code = "tools.city_hall.look(city='slow')"
            with gateway.http.stream(
                "POST", "/api/v1/code/run", json={"code": code}, headers={"accept": "application/x-ndjson"}
            ):
                wait_for(lambda: gateway.server("city-hall")["calls_in_flight"] == 1)
        else:
            code = (
                "import threading, time\n"
                "threading.Thread(target=lambda: tools.city_hall.look(city='slow'), daemon=True).start()\n"
                "time.sleep(0.3)"
            )
            assert not run(gateway, code)["is_error"]
        wait_for(lambda: gateway.server("city-hall")["calls_in_flight"] == 0, 60, "for the inner call to be cancelled")
    finally:
        gateway.city.order()  # type: ignore[attr-defined]


# What is remembered


@pytest.mark.long
def test_the_journal_shows_a_tree_and_plays_it_again(gateway: GatewayProcess) -> None:
    code = "print(tools.free.look(city='Bergen'))\ntools.free.measure()"
    data = run(gateway, code)
    assert data["run"] == {"call_id": data["call_id"], "calls": 2, "failed": 0}
    call = wait_for(lambda: (found := gateway.get(f"/api/v1/calls/{data['call_id']}"))["calls"] and found)
    assert [(inner["tool_id"], inner["parent"]) for inner in call["calls"]] == [
        ("free__look", data["call_id"]),
        ("free__measure", data["call_id"]),
    ]
    assert len(gateway.get("/api/v1/calls", parent=data["call_id"])["calls"]) == 2
    shown = toolscore("calls", "show", data["call_id"], "--url", gateway.url)
    assert re.search(r"^├── \w+  free__look  ok, .* ms$", shown.stdout, re.MULTILINE), shown.stdout
    assert "│   print(tools.free.look(city='Bergen'))" in shown.stdout

    path = f"/api/v1/calls/{data['call_id']}/replay"
    offline = gateway.http.post(path, json={"offline": True}).json()["data"]
    assert "Bergen" in json.dumps(offline["now"])
    assert (offline["same"], offline["difference"]) == (True, ""), "every result is the one of then"
    again = gateway.http.post(path, json={"confirm": True}).json()["data"]
    assert "Bergen #" in json.dumps(again["now"]), "and against the servers"
    refused = gateway.http.post(path, json={}).json()["error"]
    assert refused["code"] == "conflict", "it may do something a second time"


def test_inner_calls_belong_to_the_trace_of_the_run(gateway: GatewayProcess) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    body = {"tool_id": RUN, "parameters": {"code": "tools.city_hall.look(city='traced')"}}
    assert gateway.http.post("/execute_tool", json=body, headers=headers).json()["success"]
    call = next(call for call in gateway.city.calls() if call["arguments"].get("city") == "traced")  # type: ignore[attr-defined]
    assert trace in call["meta"]["traceparent"]


@pytest.mark.long
def test_an_executor_that_is_started_over_stdio_asks_on_its_pipe(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "city")
    executor = {
        "command": sys.executable, "args": ["-m", "mcp_servers.python_executor", "--stdio"], "identify_callers": True,
        "env": {"PYTHONPATH": str(ROOT)},
    }  # fmt: skip
    with running_gateway({"city": fickle.entry, EXECUTOR: executor}) as gateway:
        for server_id in ("city", EXECUTOR):
            gateway.wait_for_state(server_id, "up")
        code = "it = tools.parallel(tools.city.look.later(city=str(n)) for n in range(50))"
        assert [text.split(" #")[0] for text in value(gateway, code)] == [str(number) for number in range(50)]
        assert failure(gateway, "tools.city.write(city='x')")["code"] == "forbidden"


@pytest.mark.long
def test_the_engine_fresh_gives_tools_too_and_the_others_say_that_they_do_not(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "city")
    inside = "use_inprocess_python_executor: true"
    for engine in ("fresh", "reset"):
        settings = f"python_executor: {{engine: {engine}}}\n"
        with running_gateway({"city": fickle.entry}, settings=settings, ports=inside, python=True) as gateway:
            gateway.wait_for_state("city", "up")
            data = run(gateway, "help(tools.city.look)\nawait tools.city.measure()")
            if engine == "fresh":
                assert data["structured_content"]["result"] == "{'size': 3}", data
                assert "def look(" in data["structured_content"]["stdout"]
            else:
                assert "needs the engine `fork` or `fresh`" in data["content"][0]["text"]


def test_an_offline_replay_leaves_its_session_alone(gateway: GatewayProcess) -> None:
    run(gateway, "count = 1", session_id="replayed")
    data = run(gateway, "count += 1\ncount", session_id="replayed")
    path = f"/api/v1/calls/{data['call_id']}/replay"
    replayed = wait_for(lambda: gateway.http.post(path, json={"offline": True}).json()["data"])
    assert "outside of it" in replayed["note"]
    assert value(gateway, "it = count", session_id="replayed") == 2
    gateway.execute(f"{EXECUTOR}__python_session_reset", {"session_id": "replayed"})


# Over MCP


@pytest.mark.long
def test_progress_and_questions_reach_the_client_of_a_session(gateway: GatewayProcess) -> None:
    async def talk() -> None:
        asked: list[str] = []
        told: list[str] = []

        async def elicit(_context: Any, params: Any) -> types.ElicitResult:
            asked.append(params.message)
            await asyncio.sleep(5)  # longer than the code has
            return types.ElicitResult(action="accept", content={"username": "ada", "email": "a@example.com"})

        async def sample(_context: Any, params: Any) -> types.CreateMessageResult:
            asked.append(params.messages[0].content.text)
            content = types.TextContent(type="text", text="Paris")
            return types.CreateMessageResult(role="assistant", content=content, model="test")

        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(str(message))

        code = (
            'one = tools.sessions.test_elicitation(message="who?")\n'
            'two = tools.both.test_sampling(prompt="capital of France?")\n'
            "tools.both.test_tool_with_progress()\n"
            "print(one, two)"
        )
        arguments = {"code": code, "tools": ["sessions", "both"], "timeout_seconds": 4}
        client = Client(
            f"{gateway.url}/mcp", mode="legacy", elicitation_callback=elicit, sampling_callback=sample,
        )  # fmt: skip
        async with client:
            result = await client.call_tool(RUN, arguments, progress_callback=progress)
        assert not result.is_error, result.content
        assert asked == ["who?", "capital of France?"]
        text = result.structured_content["stdout"]
        assert "ada" in text, "the clock of the code stood still while its user was asked"
        assert "Paris" in text
        assert any("test_tool_with_progress" in line for line in told)
        assert any("50" in line for line in told), told

    asyncio.run(talk())


@pytest.mark.long
def test_a_stateless_client_is_asked_too(gateway: GatewayProcess) -> None:
    async def talk() -> None:
        async def elicit(_context: Any, params: Any) -> types.ElicitResult:
            return types.ElicitResult(action="accept", content={"username": "ada", "email": "a@example.com"})

        code = "print([tools[server + '__test_elicitation'](message='who?') for server in ('both', 'sessions')])"
        async with Client(f"{gateway.url}/mcp", mode="2026-07-28", elicitation_callback=elicit) as client:
            result = await client.call_tool(RUN, {"code": code, "tools": ["both", "sessions"]})
        assert not result.is_error, result.content
        assert result.structured_content["stdout"].count('"username": "ada"') == 2

    asyncio.run(talk())


# The command


@pytest.mark.long
def test_toolscore_run_prints_as_it_comes(gateway: GatewayProcess, tmp_path: Path) -> None:
    program = tmp_path / "report.py"
    program.write_text("print(tools.free.look(city='Oslo'))\nopen('report.txt', 'w').write('done')\nopen\n{'a': 1}")
    kept = tmp_path / "kept"
    done = toolscore("run", str(program), "--url", gateway.url, "--save", str(kept))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Oslo #")
    assert done.stdout.endswith("{'a': 1}\n")
    assert (kept / "report.txt").read_text() == "done"
    again = toolscore("run", str(program), "--url", gateway.url, "--save", str(kept), "--file", str(program))
    assert again.returncode == 1, "what is there is not replaced, and that is told"
    with_file = toolscore(
        "run", "-", "--url", gateway.url, "--file", str(program), input="print(len(open('report.py').read()))"
    )
    assert with_file.stdout.strip() == str(len(program.read_text()))
    assert toolscore("run", "-", "--url", gateway.url, "--save", str(program), input="1").returncode == 2
    assert "1 call of tools: toolscore calls show" in done.stderr
    failing = toolscore("run", "-", "--url", gateway.url, input="tools.free.look(city='Nowhere')")
    assert failing.returncode == 1
    assert "ToolError: free.look: nothing is known of 'Nowhere'" in failing.stderr
    assert toolscore("run", str(tmp_path / "none.py"), "--url", gateway.url).returncode == 2


@pytest.mark.long
def test_output_comes_while_the_code_runs(gateway: GatewayProcess) -> None:
    code = "print('first', flush=True)\nimport time\ntime.sleep(3)\nprint('last')"
    started = time.monotonic()
    events: list[dict[str, Any]] = []
    first_at = 0.0
    with gateway.http.stream(
        "POST", "/api/v1/code/run", json={"code": code}, headers={"accept": "application/x-ndjson"}
    ) as response:
        for line in response.iter_lines():
            events.append(json.loads(line))
            first_at = first_at or time.monotonic() - started
    assert [event["event"] for event in events] == ["stdout", "stdout", "end"]
    assert events[0]["text"] == "first\n"
    assert first_at < time.monotonic() - started - 2, "before the code had ended"
    assert events[-1]["data"]["structured_content"]["stdout"] == "first\nlast\n"


# Whoever would get in


FRAME = """
import os, struct
def frame(body, number=1, kind=67, length=None):
    return struct.pack("<IBI", 5 + len(body) if length is None else length, kind, number) + body
"""
ANSWER = "struct.pack('<IBBHH', 6, 0, 0, 0, 0)"


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("a frame that lies about its length", "os.write(3, frame(b'{}', length=2**31))"),
        ("a frame that is too short", "os.write(3, frame(b'', length=1))"),
        ("frames without end", "while True: os.write(3, frame(b'{}' * 100))"),
        ("an answer, then a call", f"os.write(3, {ANSWER} + frame(b'{{}}'))\nimport time; time.sleep(9)"),
    ],
)  # fmt: skip
def test_a_child_that_lies_is_ended(gateway: GatewayProcess, what: str, code: str) -> None:
    data = run(gateway, FRAME + code, timeout_seconds=5)
    assert data["structured_content"]["exit"] in ("killed", "ok"), what
    assert value(gateway, "it = tools.free.measure()") == {"size": 3}, "and nobody else notices"


@pytest.mark.parametrize(
    "body",
    [b"nonsense", b"[]", b'{"do": "call"}', b'{"do": "call", "tool": "free__look"}', b'{"do": "call", "tool": [1, 2]}',
     b'{"do": "call", "tool": ["free", "look"], "args": {}}', b'{"do": "call", "tool": ["free", "look"], "kwargs": []}',
     b'{"do": "grant", "tool": ["free", "look"]}', b'{"do": "describe"}', b'{"do": "list", "server": 5}',
     b'{"do": "search", "query": 5}', b'{"do": "call", "tool": ["free", "look"], "principal": "root"}',
     b"[" * 100_000, b'{"do": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_a_child_says_is_never_trusted(gateway: GatewayProcess, body: bytes) -> None:
    code = f"""{FRAME}
os.write(3, frame({body!r}))
head = os.read(3, 17)
size = struct.unpack('<I', head[:4])[0] - 13
it = json.loads(os.read(3, size))
"""
    told = value(gateway, code)
    assert told["error"]["code"] in ("invalid_request", "tool_not_found", "invalid_arguments"), told


@pytest.mark.long
def test_asking_without_end_is_refused(gateway: GatewayProcess) -> None:
    code = """
it = 0
try:
    while True:
        dir(tools)
        it += 1
except ToolError as error:
    assert error.code == "forbidden", error
"""
    assert value(gateway, code) == 1050


def test_a_tools_output_is_no_frame(gateway: GatewayProcess) -> None:
    text = "\\x06\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00"
    found = value(gateway, f"it = tools.free.look(city='{text}C')")
    assert found.startswith("\x06\x00\x00\x00\x00"), "it comes back as text"


def test_a_token_is_good_for_its_run_on_its_connection_alone() -> None:
    class Run:
        token, at_once, on_output = "the token of a run", 1, None

        async def ask(self, call: bytes, seconds: float) -> CodeReply:
            return CodeReply(b"yes", 0.0, False)

    caller, other = Caller(), Caller()
    caller.code, other.code = Run(), Run()
    other.code.token = "the token of another"

    async def asked(flight: InFlight, **shown: Any) -> str:
        params = {"token": Run.token, "call": "{}", "seconds_left": 1, **shown}
        try:
            return str((await flight.answer(CODE_CALL, Raw(encode(params))))["reply"])
        except RemoteError as exc:
            return exc.message

    async def talk() -> None:
        mine, others = InFlight(()), InFlight(())
        with mine.hold(caller), others.hold(other):
            assert await asked(mine) == "yes"
            for token in ("", "the token of a ru", "the token of another", None, 5, [Run.token], "\ud800"):
                assert "no code with this token" in await asked(mine, token=token), token
            assert "no code with this token" in await asked(others), "it is another connection's"
            assert "expected `call`" in await asked(mine, call=5)
            assert "expected `call`" in await asked(mine, seconds_left="long")
        assert "no code with this token" in await asked(mine), "the run has ended"

    asyncio.run(talk())


def test_the_code_is_not_told_its_token_and_nobody_asks_from_outside(gateway: GatewayProcess) -> None:
    shown = value(gateway, "import os\nit = [dict(os.environ), [repr(v)[:200] for v in list(globals().values())[1:]]]")
    assert not re.search(r"[A-Za-z0-9_-]{32}", json.dumps(shown)), shown
    params = {"token": "x", "call": "{}", "seconds_left": 1}
    body = {"jsonrpc": "2.0", "id": 1, "method": "toolscore/code/call", "params": params}
    assert "error" in gateway.http.post("/mcp", json=body).json()


@pytest.mark.long
def test_hidden_tools_do_not_exist(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "city")
    not_rome = '{effect: deny, tools: ["*__write"], arguments: {city: {equals: Rome}}}'
    settings = f"policy: {{rules: [{{effect: deny, servers: [secret]}}, {not_rome}]}}\n"
    servers = {"city": fickle.entry, "secret": fickle.entry}
    with running_gateway(
        servers, settings=settings, ports="use_inprocess_python_executor: true", python=True
    ) as gateway:
        for server_id in ("city", EXECUTOR):
            gateway.wait_for_state(server_id, "up")
        assert "secret" not in value(gateway, "it = dir(tools)")
        hidden = failure(gateway, "tools.secret.look(city='a')")
        never = failure(gateway, "tools.sacred.look(city='a')")
        assert hidden["code"] == never["code"] == "tool_not_found"
        assert hidden["message"].replace("secret", "sacred") == never["message"]
        assert "secret" not in str(hidden["suggestion"])
        assert failure(gateway, "tools.city.write(city='Rome')", tools=["city"])["code"] == "forbidden", "the policy"
        assert value(gateway, "it = tools.city.write(city='Oslo')[0]", tools=["city"]) == "O"


def test_describe_tools_gives_a_stub_file(gateway: GatewayProcess) -> None:
    text = gateway.text("toolscore__describe_tools", {"names": ["free", "city_hall.look"]})
    compile(text, "stubs.pyi", "exec")
    assert "class free:" in text
    assert "class city_hall:" in text
    assert "measure" not in text.split("class city_hall:")[1]
    short = gateway.execute("toolscore__describe_tools", {"names": ["both"], "max_tokens": 200})["data"]
    assert short["structured_content"]["left_out"]
    assert len(short["structured_content"]["stubs"]) / 4 < 200 + 20 * len(short["structured_content"]["left_out"])
    by_task = gateway.text("toolscore__describe_tools", {"query": "measure a city"})
    assert "def measure(" in by_task
    assert gateway.execute("toolscore__describe_tools", {"names": ["nonsense"]})["data"]["is_error"]
