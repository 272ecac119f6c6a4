"""The Python executor's first form: what it answers, its bounds, and the ways to reach it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from mcp import Client, StdioServerParameters
from support import EXECUTOR, GatewayProcess, running_gateway, wait_for

from mcp_servers.python_executor import create_server

LIMITS = (
    "python_executor: {timeout_seconds: 10, memory_mb: 256, max_output_bytes: 100000, max_concurrent: 2, max_queued: 2}"
)


@pytest.fixture(scope="module")
def python() -> Iterator[GatewayProcess]:
    with running_gateway(settings=LIMITS) as process:
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
    assert "worker.py" not in got["error"]["traceback"]


def test_nothing_stays_from_one_call_to_the_next(python: GatewayProcess) -> None:
    run(python, "import builtins, os; builtins.leak = 1; os.environ['LEAK'] = '1'; open('leak', 'w').write('x')")
    got = run(python, "import os; print('leak' in dir(__builtins__), os.environ.get('LEAK'), os.listdir('.'))")
    assert got["stdout"] == "False None []\n"


def test_it_runs_in_no_process_of_ours(python: GatewayProcess) -> None:
    pid = int(run(python, "import os; os.getpid()")["result"])
    assert pid != python.pid
    assert not psutil.pid_exists(pid)
    got = run(python, "import os; sorted(os.environ)")
    assert "SECRET_OF_THE_GATEWAY" not in got["result"]


def test_an_endless_loop_ends_at_its_time_with_what_it_printed(python: GatewayProcess) -> None:
    got = run(python, "print('begun')\nwhile True: pass", timeout_seconds=0.5)
    assert got["exit"] == "timeout"
    assert got["stdout"] == "begun\n"
    assert "0.5 s" in got["error"]["message"]


def test_endless_output_ends_at_its_bound(python: GatewayProcess) -> None:
    got = run(python, "while True: print('x' * 1000)")
    assert got["exit"] == "output_limit"
    assert len(got["stdout"]) == 100_000


def test_memory_is_bounded(python: GatewayProcess) -> None:
    got = run(python, "x = bytearray(10**9)")
    assert got["exit"] == "memory"
    assert run(python, "len(bytearray(10**8))")["result"] == "100000000"


def test_code_that_kills_itself_is_told_so(python: GatewayProcess) -> None:
    got = run(python, "import os; os.kill(os.getpid(), 9)")
    assert got["exit"] == "killed"
    assert "SIGKILL" in got["error"]["message"]
    assert run(python, "import os; os._exit(0)")["exit"] == "killed"


def test_what_code_leaves_running_ends_with_the_call(python: GatewayProcess) -> None:
    code = "import os, time\npid = os.fork()\nif pid == 0: time.sleep(1000)\nprint(pid)"
    started = time.monotonic()
    pid = int(run(python, code)["stdout"])
    assert time.monotonic() - started < 5
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 5)


def test_a_caller_that_hangs_up_ends_the_code(python: GatewayProcess) -> None:
    import httpx

    before = {member.pid for member in python.family()}
    with pytest.raises(httpx.ReadTimeout):
        python.http.post(
            "/execute_tool",
            json={"tool_id": EXECUTOR, "parameters": {"code": "while True: pass"}},
            timeout=httpx.Timeout(5, read=0.5),
        )
    wait_for(lambda: {member.pid for member in python.family()} <= before, 5, "for the code's end")


def test_no_descriptor_or_folder_stays(python: GatewayProcess) -> None:
    import tempfile
    from pathlib import Path

    def folders() -> set[Path]:
        return set(Path(tempfile.gettempdir()).glob("toolscore-python-*"))

    run(python, "1")
    before, descriptors = folders(), psutil.Process(python.pid).num_fds()
    for code in (
        "1",
        "1/0",
        "while True: print('x' * 1000)",
        "import os; os._exit(1)",
        "open('f', 'w').write('x')",
    ) * 4:
        run(python, code)
    assert psutil.Process(python.pid).num_fds() <= descriptors
    assert folders() == before


def test_more_calls_than_may_wait_are_told_so(python: GatewayProcess) -> None:
    async def flood() -> list[dict[str, Any]]:
        calls = [asyncio.to_thread(python.execute, EXECUTOR, {"code": "import time; time.sleep(1)"}) for _ in range(8)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(flood())
    texts = [answer["data"]["content"][0]["text"] for answer in answers]
    assert sum("busy" in text for text in texts) == 4
    assert sum("no output" in text for text in texts) == 4


def test_arguments_are_checked(python: GatewayProcess) -> None:
    for arguments in ({}, {"code": 1}, {"code": "1", "timeout_seconds": 0}, {"code": "1", "colour": "red"}):
        assert python.execute(EXECUTOR, arguments)["error"]["code"] == "invalid_arguments"


def test_results_fit_the_output_schema(python: GatewayProcess) -> None:
    import jsonschema_rs

    tool = python.get(f"/api/v1/tools/{EXECUTOR}__python_execute")
    validator = jsonschema_rs.validator_for(tool["output_schema"])
    for code in ("1", "1/0", "print(1)", "import os; os._exit(1)"):
        validator.validate(run(python, code))


def test_it_stands_alone_over_stdio() -> None:
    async def call() -> None:
        command = StdioServerParameters(command=sys.executable, args=["-m", "mcp_servers.python_executor", "--stdio"])
        async with Client(command) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["python_execute"]
            result = await client.call_tool("python_execute", {"code": "print('alone')"})
            assert result.content[0].text == "alone"
            assert result.structured_content["exit"] == "ok"
            wrong = await client.call_tool("python_execute", {"code": 7})
            assert wrong.is_error

    asyncio.run(call())


def test_the_server_needs_no_sdk_and_checks_for_itself() -> None:
    async def call() -> None:
        server = create_server()
        assert json.dumps(server.list_tools())
        assert (await server.call_tool("python_execute", {"code": "'in process'"}))["isError"] is False
        for wrong in ({}, {"code": 1}, {"code": "1", "timeout_seconds": True}, {"code": "1", "x": 1}):
            assert (await server.call_tool("python_execute", wrong))["isError"] is True
        with pytest.raises(KeyError):
            await server.call_tool("format_disk", {})

    asyncio.run(call())
