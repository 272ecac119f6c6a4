"""Sessions: what they keep, for whom, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ExecutorProcess, executor_process, wait_for


@pytest.fixture(scope="module", params=["fork", "fresh"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    options: dict[str, Any] = {"max_sessions": 4, "max_sessions_per_principal": 2, "session_idle_seconds": 600}
    with executor_process(
        engine=request.param, data_dir=str(tmp_path_factory.mktemp("data")), memory_mb=128, **options
    ) as process:
        yield process


def reset(box: ExecutorProcess, session_id: str, principal: str = "") -> bool:
    params = {"name": "python_session_reset", "arguments": {"session_id": session_id}}
    answer = box.request("tools/call", **params, _meta={"toolscore/principal": principal})
    return bool(answer["structuredContent"]["existed"])


def test_variables_imports_and_files_stay(box: ExecutorProcess) -> None:
    assert box.run("import json\nx = [1]\ndef f(): return x\nopen('kept', 'w').write('k')", session_id="s")["files"]
    got = box.run("x.append(2)\nprint(open('kept').read())\njson.dumps(f())", session_id="s")
    assert (got["stdout"], got["result"], got["files"]) == ("k\n", "'[1, 2]'", [])
    assert box.run("'x' in globals()")["result"] == "False"
    assert box.run("'x' in globals()", session_id="other")["result"] == "False"
    assert reset(box, "s") is True
    assert box.run("'x' in globals()", session_id="s")["result"] == "False"
    assert [reset(box, "s"), reset(box, "s"), reset(box, "other")] == [True, False, True]


def test_an_error_keeps_the_session_and_shows_each_calls_own_lines(box: ExecutorProcess) -> None:
    box.run("def broken():\n    return 1 / 0", session_id="s")
    got = box.run("y = 1\nbroken()", session_id="s")
    assert "line 2, in broken" in got["error"]["traceback"]
    assert "return 1 / 0" in got["error"]["traceback"]
    assert box.run("y", session_id="s")["result"] == "1"
    reset(box, "s")


def test_nobody_reaches_anothers_session(box: ExecutorProcess) -> None:
    box.run("secret = 'of alice'", session_id="same", principal="alice")
    got = box.run("'secret' in globals()", session_id="same", principal="bob")
    assert got["result"] == "False"
    assert reset(box, "same", "carol") is False
    assert box.run("secret", session_id="same", principal="alice")["result"] == "'of alice'"
    assert reset(box, "same", "bob")
    assert reset(box, "same", "alice")


def test_calls_of_a_session_come_one_after_another(box: ExecutorProcess) -> None:
    box.run("n = 0", session_id="s")
    code = "import time\nseen = n\ntime.sleep(0.05)\nn = seen + 1\nn"
    numbers = [box.start(code, session_id="s") for _ in range(5)]
    results = {box.wait(number)["result"]["structuredContent"]["result"] for number in numbers}
    assert results == {"1", "2", "3", "4", "5"}
    reset(box, "s")


def test_their_number_is_bounded_for_each_and_in_all(box: ExecutorProcess) -> None:
    for principal in ("a", "b"):
        for name in ("1", "2"):
            assert box.run("1", session_id=name, principal=principal)["exit"] == "ok"
    for principal, name in (("a", "3"), ("c", "1")):
        got = box.call("1", session_id=name, principal=principal)
        assert got["isError"]
        assert "python_session_reset" in got["content"][0]["text"]
    assert [reset(box, name, principal) for principal in "ab" for name in "12"] == [True] * 4


@pytest.mark.parametrize("engine", ["fork", "fresh"])
@pytest.mark.long
def test_an_idle_one_is_ended(engine: str, tmp_path: Path) -> None:
    with executor_process(engine=engine, data_dir=str(tmp_path), memory_mb=128, session_idle_seconds=1.5) as box:
        box.run("z = 1", session_id="idle")
        assert box.request("toolscore/stats")["sessions"]["open"] == 1
        wait_for(lambda: box.request("toolscore/stats")["sessions"]["open"] == 0)
        assert box.run("'z' in globals()", session_id="idle")["result"] == "False"


@pytest.mark.parametrize(
    ("code", "exit_"),
    [
        ("import os; os._exit(1)", "killed"),
        ("import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass", "timeout"),
        ("import ctypes; ctypes.string_at(0)", "killed"),
    ],
)
def test_one_that_breaks_says_that_its_variables_are_gone(box: ExecutorProcess, code: str, exit_: str) -> None:
    box.run("v = 1", session_id="broken")
    got = box.run(code, session_id="broken", timeout_seconds=0.5)
    assert got["exit"] == exit_
    assert "its variables are gone" in got["error"]["message"]
    assert box.run("'v' in globals()", session_id="broken")["result"] == "False"
    reset(box, "broken")


def test_one_that_takes_too_long_or_too_much_keeps_its_variables(box: ExecutorProcess) -> None:
    """Python can be interrupted: only what cannot ends the session."""
    box.run("w = 1", session_id="slow")
    assert box.run("while True: pass", session_id="slow", timeout_seconds=0.3)["exit"] == "timeout"
    assert box.run("x = []\nwhile True: x.append(bytearray(10**6))", session_id="slow")["exit"] == "memory"
    assert box.run("del x\nw", session_id="slow")["result"] == "1"
    assert box.run("while True: print('x' * 1000)", session_id="slow")["exit"] == "output_limit"
    assert box.run("x = bytearray(50 * 10**6); w", session_id="slow")["result"] == "1"
    reset(box, "slow")


@pytest.mark.long
def test_a_session_outlives_many_calls_of_others(box: ExecutorProcess) -> None:
    box.run("kept = 'here'", session_id="long")
    for number in range(30):
        assert box.run(f"{number}")["result"] == str(number)
    assert box.run("kept", session_id="long")["result"] == "'here'"
    reset(box, "long")


def test_a_session_cannot_be_had_with_a_shared_engine(box: ExecutorProcess) -> None:
    got = box.call("1", session_id="s", engine="persistent")
    assert got["isError"]
    assert "not allowed" in got["content"][0]["text"]
