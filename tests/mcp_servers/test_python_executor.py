"""The tool `python_execute` behind the gateway: what it answers, its bounds, and the ways to reach it."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client, StdioServerParameters
from support import EXECUTOR, GatewayProcess, running_gateway, wait_for
from support.executors import looping

from mcp_servers.python_executor.server import CallRefused, create_server

LIMITS = (
    "python_executor: {timeout_seconds: 10, memory_mb: 256, max_output_bytes: 100000, max_concurrent: 2, max_queued: 2}"
)


@pytest.fixture(scope="module")
def python() -> Iterator[GatewayProcess]:
    with running_gateway(settings=LIMITS, python=True) as process:
        process.wait_for_state(EXECUTOR, "up")
        yield process


def run(process: GatewayProcess, code: str, **more: Any) -> dict[str, Any]:
    answer = process.execute(EXECUTOR, {"code": code, **more}, action="python_execute")
    assert answer["success"], answer
    structured: dict[str, Any] = answer["data"]["structured_content"]
    assert answer["data"]["is_error"] is (structured["exit"] != "ok")
    return structured


@pytest.mark.parametrize(
    ("code", "stdout", "result"),
    [
        ("1 + 1", "", "2"),
        ("print('a')\n'b'", "a\n", "'b'"),
        ("x = 5", "", None),
        ("None", "", None),
        ("def f():\n    return [1, 2]\nf()", "", "[1, 2]"),
        ("print(input(), input())", "one two\n", None),
        ("import sys; sys.exit(0)", "", None),
        ("'\\ud800'", "", "'\\ud800'"),
        ("print('\\ud800 ü')", "\\ud800 ü\n", None),
        ("", "", None),
        ("# nothing", "", None),
        ("if __name__ == '__main__': print('main')", "main\n", None),
        ("class A(dict): __getattr__ = dict.__getitem__\nA(a=1)", "", "{'a': 1}"),
    ],
)
def test_output_and_the_last_value_come_back(
    python: GatewayProcess, code: str, stdout: str, result: str | None
) -> None:
    got = run(python, code, input="one\ntwo\n")
    assert (got["exit"], got["stdout"], got["result"]) == ("ok", stdout, result)
    assert got["error"] is None
    assert got["duration_ms"] > 0


@pytest.mark.parametrize(
    ("code", "kind", "line"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError", "line 2"),
        ("def f():\n    raise KeyError('k')\nf()", "KeyError", "raise KeyError('k')"),
        ("if:", "SyntaxError", "line 1"),
        ("import sys; sys.exit(3)", "SystemExit", "sys.exit"),
        ("raise BaseException('odd')", "BaseException", "odd"),
    ],
)
def test_errors_show_the_codes_own_lines(python: GatewayProcess, code: str, kind: str, line: str) -> None:
    got = run(python, code)
    assert got["exit"] == "error"
    assert got["error"]["type"] == kind
    assert line in got["error"]["traceback"]
    assert "child.py" not in got["error"]["traceback"]


def test_nothing_stays_from_one_call_to_the_next(python: GatewayProcess) -> None:
    run(python, "import builtins, os; builtins.leak = 1; os.environ['LEAK'] = '1'; open('leak', 'w').write('x')")
    got = run(python, "import os; print('leak' in dir(__builtins__), os.environ.get('LEAK'), os.listdir('.'))")
    assert got["stdout"] == "False None []\n"


def test_it_runs_in_no_process_of_ours(python: GatewayProcess) -> None:
    code = "import os; os.getpid(), os.getppid(), os.getuid() >= 1000, os.uname().nodename"
    assert run(python, code)["result"] == "(1, 0, True, 'sandbox')"


def test_an_endless_loop_ends_at_its_time_with_what_it_printed(python: GatewayProcess) -> None:
    got = run(python, "print('begun')\nwhile True: pass", timeout_seconds=0.5)
    assert got["exit"] == "timeout"
    assert got["stdout"] == "begun\n"
    assert "0.5 s" in got["error"]["message"]


def test_endless_output_ends_at_its_bound(python: GatewayProcess) -> None:
    got = run(python, "while True: print('x' * 1000)")
    assert got["exit"] == "output_limit"
    assert len(got["stdout"]) == 100_000


def test_calls_may_say_python(python: GatewayProcess) -> None:
    for given in ({"tool_id": "python", "action": "python_execute"}, {"tool_id": "python__python_execute"}):
        body = {**given, "parameters": {"code": "6 * 7"}}
        answer = python.http.post("/execute_tool", json=body).json()
        assert answer["data"]["structured_content"]["result"] == "42"
        assert answer["data"]["tool_id"] == f"{EXECUTOR}__python_execute"


def test_what_is_cut_says_so(python: GatewayProcess) -> None:
    got = run(python, "'x' * 100_001")
    assert (got["exit"], got["limits_hit"], len(got["result"])) == ("ok", ["result"], 100_000)
    assert got["result"][-1] == "…"
    got = run(python, "'x' * 99_998")
    assert (got["limits_hit"], len(got["result"]), got["result"][-1]) == ([], 100_000, "'")
    assert run(python, "raise ValueError('x' * 20_000)")["error"]["message"][-2:] == "x…"


@pytest.mark.parametrize(
    ("code", "helps"),
    [
        ("!pip install numpy", "pass packages=[…]. Available: data"),
        ("x = 1\n  !ls -l", "`!ls -l` is a notebook's command and no Python"),
        ("%matplotlib inline\nx = 1", "open figures come back by themselves"),
        ("display([1])", "let it be the last expression"),
        ("input()\ninput()", "pass what it reads as `input`"),
    ],
)
def test_code_for_a_notebook_is_told_what_helps(python: GatewayProcess, code: str, helps: str) -> None:
    answer = python.execute(EXECUTOR, {"code": code}, action="python_execute")
    error = answer["data"]["structured_content"]["error"]
    assert helps in error["message"]
    (block,) = answer["data"]["content"]
    assert block["text"].count(error["type"]) == 1
    assert helps in block["text"].splitlines()[-1]


def test_input_that_ends_too_early_says_so(python: GatewayProcess) -> None:
    assert "more lines than `input` has" in run(python, "input(), input()", input="one")["error"]["message"]


def test_sessions_are_listed_for_their_owner(python: GatewayProcess) -> None:
    def listed() -> list[dict[str, Any]]:
        answer = python.execute(f"{EXECUTOR}__python_sessions", {})
        found: list[dict[str, Any]] = answer["data"]["structured_content"]["sessions"]
        return found

    run(python, "a = 1", session_id="first")
    run(python, "b = 1", session_id="second")
    assert [(one["session_id"], one["state"], one["packages"]) for one in listed()] == [
        ("second", "idle", []), ("first", "idle", []),
    ]  # fmt: skip
    assert 0 < listed()[0]["ends_in_seconds"] <= 600
    for name in ("first", "second"):
        assert python.execute(f"{EXECUTOR}__python_session_reset", {"session_id": name})["success"]
    assert listed() == []


def test_memory_is_bounded(python: GatewayProcess) -> None:
    got = run(python, "x = bytearray(10**9)")
    assert got["exit"] == "memory"
    assert run(python, "len(bytearray(10**8))")["result"] == "100000000"


def test_code_that_ends_its_process_is_told_so(python: GatewayProcess) -> None:
    got = run(python, "import os; os._exit(3)")
    assert got["exit"] == "killed"
    assert "exit code 3" in got["error"]["message"]


def test_a_caller_that_hangs_up_ends_the_code(python: GatewayProcess) -> None:
    call = {"tool_id": EXECUTOR, "action": "python_execute", "parameters": {"code": "while True: pass"}}
    body = json.dumps(call).encode()
    head = f"POST /execute_tool HTTP/1.1\r\nHost: localhost:{python.http_port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", python.http_port), timeout=5) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: looping(python.pid), 60, "for the code to run")
    wait_for(lambda: not looping(python.pid), 60, "for the code's end")


def test_no_descriptor_or_folder_stays(python: GatewayProcess) -> None:
    import tempfile

    def folders() -> set[Path]:
        ours = f"toolscore-sandbox-{python.pid}-*"  # other gateways make and remove theirs at the same time
        return {*Path("/dev/shm").glob(ours), *Path(tempfile.gettempdir()).glob(ours)}

    def descriptors_after_a_call() -> int:
        run(python, "1")  # a spare too many is let go with the next call
        return psutil.Process(python.pid).num_fds()

    before, descriptors = folders(), descriptors_after_a_call()
    for code in (
        "1",
        "1/0",
        "while True: print('x' * 1000)",
        "import os; os._exit(1)",
        "open('f', 'w').write('x')",
    ) * 4:
        run(python, code)
    wait_for(lambda: descriptors_after_a_call() <= descriptors, 60, "for spare children to be let go")
    assert folders() == before


@pytest.mark.long
def test_more_calls_than_may_wait_are_told_when_to_come_back(python: GatewayProcess) -> None:
    async def flood() -> list[dict[str, Any]]:
        arguments = {"code": "import time; time.sleep(1)"}
        calls = [asyncio.to_thread(python.execute, EXECUTOR, arguments, action="python_execute") for _ in range(8)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(flood())
    refused = [answer["error"] for answer in answers if not answer["success"]]
    assert len(refused) == 4
    for error in refused:
        assert error["code"] == "overloaded"
        assert error["retryable"] is True
        assert 0 < error["retry_after_seconds"] < 60


@pytest.mark.long
def test_who_waits_is_told_the_position_as_progress(python: GatewayProcess) -> None:
    told: list[str] = []

    async def progress(_done: float, _total: float | None, message: str | None) -> None:
        told.append(str(message))

    async def call() -> None:
        async with Client(f"{python.url}/mcp") as client:
            arguments = {"code": "import time; time.sleep(0.5)"}
            await client.call_tool(f"{EXECUTOR}__python_execute", arguments, progress_callback=progress)

    async def three() -> None:
        await asyncio.gather(call(), call(), call())

    asyncio.run(three())
    assert told == ["waiting: 1 in the queue"]


def test_arguments_are_checked(python: GatewayProcess) -> None:
    for arguments in (
        {},
        {"code": 1},
        {"code": "1", "timeout_seconds": 0},
        {"code": "1", "colour": "red"},
        {"code": "1", "session_id": ""},
        {"code": "1", "files": [{"path": "a"}]},
    ):
        answer = python.execute(EXECUTOR, arguments, action="python_execute")
        assert answer["error"]["code"] == "invalid_arguments", answer


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", ".", "a\0b", "x" * 2000])
def test_files_go_nowhere_but_into_the_working_folder(python: GatewayProcess, path: str) -> None:
    arguments = {"code": "1", "files": [{"path": path, "content": "x"}]}
    answer = python.execute(EXECUTOR, arguments, action="python_execute")
    assert answer["data"]["is_error"] is True
    assert "must lie below the working folder" in answer["data"]["content"][0]["text"]


def test_files_go_in_and_come_back(python: GatewayProcess) -> None:
    files = [
        {"path": "in/data.csv", "content": "a,b\n1,2\n"},
        {"path": "blob", "content": "AAEC", "encoding": "base64"},
    ]
    code = (
        "import csv, os\nrows = list(csv.reader(open('in/data.csv')))\n"
        "open('out.txt', 'w').write(str(rows))\nos.makedirs('deep/er')\n"
        "open('deep/er/bytes', 'wb').write(bytes(range(200)))\n"
        "os.symlink('/etc/passwd', 'link')\nopen('blob', 'rb').read()"
    )
    got = run(python, code, files=files)
    assert got["result"] == "b'\\x00\\x01\\x02'"
    assert [file["path"] for file in got["files"]] == ["deep/er/bytes", "out.txt"]
    assert got["files"][1] == {
        "path": "out.txt",
        "size": 24,
        "content": "[['a', 'b'], ['1', '2']]",
        "encoding": "utf-8",
    }
    assert base64.b64decode(got["files"][0]["content"]) == bytes(range(200))


def test_a_file_too_large_to_come_along_is_named(python: GatewayProcess) -> None:
    got = run(python, "for n in range(3): open(f'{n}', 'wb').write(b'x' * 4 * 2**20)")
    assert [(file["path"], file["size"], "content" in file) for file in got["files"]] == [
        ("0", 4 * 2**20, True),
        ("1", 4 * 2**20, True),
        ("2", 4 * 2**20, False),
    ]
    assert got["limits_hit"] == ["files"]
    got = run(python, "import os\nopen('out', 'w').write('x')\nfor n in range(2100): os.mkdir(str(n))")
    assert [file["path"] for file in got["files"]] == ["out"]


def test_a_value_that_shows_itself_as_a_picture_comes_back_as_one(python: GatewayProcess) -> None:
    code = "class Dot:\n    def _repr_png_(self): return b'\\x89PNG\\r\\n'\nDot()"
    answer = python.execute(EXECUTOR, {"code": code}, action="python_execute")
    image = answer["data"]["content"][-1]
    assert (image["type"], image["mimeType"], base64.b64decode(image["data"])) == (
        "image",
        "image/png",
        b"\x89PNG\r\n",
    )


def test_code_may_await_at_its_top_level_and_starts_with_what_people_use(python: GatewayProcess) -> None:
    assert run(python, "import asyncio\nx = await asyncio.sleep(0, 7)\nx")["result"] == "7"
    code = "import sys\n[name for name in ('json', 're', 'csv', 'sqlite3', 'decimal') if name not in sys.modules]"
    assert run(python, code)["result"] == "[]"
    assert run(python, "import sqlite3\nsqlite3.connect(':memory:').execute('select 6 * 7').fetchone()")["result"] == (
        "(42,)"
    )


def test_random_numbers_do_not_repeat(python: GatewayProcess) -> None:
    code = "import random, secrets, uuid, os\n(random.random(), secrets.token_hex(8), uuid.uuid4().hex, os.urandom(8))"
    seen = [run(python, code)["result"] for _ in range(8)]
    assert len(set(seen)) == 8
    first = [text.split(",")[0] for text in seen]
    assert len(set(first)) == 8


def test_results_fit_the_output_schema(python: GatewayProcess) -> None:
    import jsonschema_rs

    tool = python.get(f"/api/v1/tools/{EXECUTOR}__python_execute")
    validator = jsonschema_rs.validator_for(tool["output_schema"])
    for code in ("1", "1/0", "print(1)", "import os; os._exit(1)"):
        validator.validate(run(python, code))


def test_figures_stand_in_health_stats_and_metrics(python: GatewayProcess) -> None:
    def figures() -> dict[str, Any]:
        return dict(python.get("/api/v1/stats")["server_stats"][EXECUTOR])

    run(python, "1 / 0")
    before = figures()["engines"]["fork"]["executions"]
    run(python, "x = bytearray(10**9)")
    wait_for(lambda: figures()["engines"]["fork"]["executions"] > before, 60, "for figures, at most half a second old")
    stats = figures()
    assert (stats["engine"], stats["tier"], stats["slow_path"]) == ("fork", "A", False)
    fork = stats["engines"]["fork"]
    assert fork["limits"]["memory"] >= 1
    assert fork["exits"]["memory"] >= 1
    assert 0 < fork["phases"]["run"]["p50_ms"] < fork["phases"]["total"]["p99_ms"] < 60_000
    pool = fork["pools"]["default"]
    assert pool["spares"] >= 1
    assert pool["modules"] > 100
    assert 0 < pool["memory_kb"]["private_per_child"] < pool["memory_kb"]["zygote"]
    sandbox = python.get("/health")["checks"]["servers"][EXECUTOR]["sandbox"]
    assert sandbox["tier"] == "A"
    assert all(layer["ok"] for name, layer in sandbox["layers"].items() if name != "cgroups")
    page = python.http.get("/metrics").text
    for line in (
        f'toolscore_python_executions_total{{engine="fork",exit="memory",server="{EXECUTOR}"}}',
        f'toolscore_python_limits_total{{engine="fork",limit="memory",server="{EXECUTOR}"}}',
        f'toolscore_python_sandbox{{server="{EXECUTOR}",slow_path="false",tier="A"}} 1.0',
        f'toolscore_python_spares{{engine="fork",packages="default",server="{EXECUTOR}"}}',
        f'toolscore_python_memory_bytes{{engine="fork",packages="default",part="zygote",server="{EXECUTOR}"}}',
    ):
        assert line in page


def test_a_session_goes_on_through_every_door(python: GatewayProcess) -> None:
    arguments = {"code": "q = 40", "session_id": "s"}
    assert python.execute(EXECUTOR, arguments, action="python_execute")["success"]

    async def over_mcp() -> None:
        async with Client(f"{python.url}/mcp") as client:
            result = await client.call_tool(f"{EXECUTOR}__python_execute", {"code": "q + 2", "session_id": "s"})
            assert result.content[0].text == "42"
            assert result.meta is not None
            assert result.meta["toolscore/sandbox"] == {"engine": "fork", "tier": "A"}
            gone = await client.call_tool(f"{EXECUTOR}__python_session_reset", {"session_id": "s"})
            assert gone.structured_content == {"existed": True}

    asyncio.run(over_mcp())
    body = {"tool_id": EXECUTOR, "action": "python_execute", "parameters": {"code": "'q' in globals()"}}
    answer = python.http.post("/execute_tool", json={**body, "session_id": "s"}).json()
    assert answer["data"]["structured_content"]["result"] == "False"


@pytest.mark.long
def test_it_stands_alone_over_stdio() -> None:
    async def call() -> None:
        command = StdioServerParameters(command=sys.executable, args=["-m", "mcp_servers.python_executor", "--stdio"])
        async with Client(command) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert names == ["python_execute", "python_sessions", "python_session_reset"]
            result = await client.call_tool("python_execute", {"code": "print('alone')"})
            assert result.content[0].text == "alone"
            assert result.structured_content["exit"] == "ok"
            wrong = await client.call_tool("python_execute", {"code": 7})
            assert wrong.is_error
            assert wrong.content[0].text == "`code` must be a string"

    asyncio.run(call())


def test_the_server_needs_no_sdk_and_checks_for_itself(tmp_path: Path) -> None:
    async def call() -> None:
        async with create_server(data_dir=tmp_path) as server:
            assert json.dumps(server.list_tools())
            assert (await server.call_tool("python_execute", {"code": "'in process'"}))["isError"] is False
            for wrong in ({}, {"code": 1}, {"code": "1", "timeout_seconds": True}, {"code": "1", "x": 1}):
                assert (await server.call_tool("python_execute", wrong))["isError"] is True
            with pytest.raises(KeyError):
                await server.call_tool("format_disk", {})
        with pytest.raises(CallRefused):
            await server.call_tool("python_execute", {"code": "1"})

    asyncio.run(call())
