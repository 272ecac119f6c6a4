"""Many callers at once, and what breaks beneath them: queues, cancellation, a sandbox that dies, hostile neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import EXECUTOR, ROOT, command_of, executor_process, process_gone, running_gateway, wait_for
from support.executors import cpu_seconds, leaves, looping

from mcp_servers.python_executor.admission import Busy
from mcp_servers.python_executor.executor import DEFAULT, Executor
from mcp_servers.python_executor.pool import MAX_SPARES, SandboxUnavailable

Work = Callable[[Executor], Coroutine[Any, Any, None]]


def with_executor(folder: Path, work: Work, **options: Any) -> None:
    async def main() -> None:
        async with Executor(data_dir=folder, **options) as executor:
            await work(executor)

    before = family()
    asyncio.run(main())
    assert family() <= before, "a process was left"


def family() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def zygote_of(pid: int) -> int:
    """The one that forks: below it are the calls."""
    (outer,) = [one for one in psutil.Process(pid).children() if "sandbox.zygote" in " ".join(command_of(one))]
    return outer.pid


async def until(what: Callable[[], Any], seconds: float = 15) -> Any:
    """The first true value of `what`, asked again and again while the event loop runs."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return value


async def running(executor: Executor, count: int) -> None:
    """Wait until so many calls run. One that finds a spare child is sent to it in the same step of the event loop."""
    await until(lambda: executor.admission.running == count)


def test_no_spare_is_kept_for_each_session_that_has_ended(tmp_path: Path) -> None:
    """The zygote forks in the place of each child that ends."""

    async def work(executor: Executor) -> None:
        def pool() -> dict[str, Any]:
            return executor.figures()["engines"]["fork"]["pools"][DEFAULT]

        names = [f"s{number}" for number in range(MAX_SPARES + 12)]
        await asyncio.gather(*(executor.execute("x = 1", session_id=name, principal="ada") for name in names))
        assert pool()["children"] >= len(names)
        assert all(executor.sessions.reset("ada", name) for name in names)
        await until(lambda: pool()["children"] <= MAX_SPARES and pool()["spares"] == pool()["children"])
        assert (await executor.execute("1 + 1")).result == "2"

    with_executor(tmp_path, work, max_sessions=40, max_sessions_per_principal=40, session_idle_seconds=600)


# ------------------------------------------------------------------------------------------------------- admission


@pytest.mark.long
def test_one_who_sends_much_delays_another_by_one_call(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        done: list[str] = []

        async def call(principal: str, number: int) -> None:
            await executor.execute("import time; time.sleep(0.02)", principal=principal)
            done.append(f"{principal}{number}")

        greedy = [asyncio.ensure_future(call("greedy", number)) for number in range(20)]
        await asyncio.sleep(0)
        modest = [asyncio.ensure_future(call("modest", number)) for number in range(2)]
        await asyncio.gather(*greedy, *modest)
        assert max(done.index("modest0"), done.index("modest1")) <= 5, done

    with_executor(tmp_path, work, max_concurrent=1, max_queued=50)


@pytest.mark.long
def test_nobody_holds_all_places(tmp_path: Path) -> None:
    """Calls are not ended to make room: one who may hold all places keeps the others out for as long as calls last."""

    async def work(executor: Executor) -> None:
        slow = "import time; time.sleep(60)"
        greedy = [
            asyncio.ensure_future(executor.execute(slow, principal="greedy", timeout_seconds=60)) for _ in range(9)
        ]
        await running(executor, 6)
        assert executor.admission.waiting == 3
        for name in ("modest", "another"):
            assert (await executor.execute("1", principal=name)).result == "1"
        second = [asyncio.ensure_future(executor.execute(slow, principal="second")) for _ in range(9)]
        await running(executor, 7)  # one place is left for a third
        assert (await executor.execute("1", principal="modest")).result == "1"
        for call in greedy[6:]:
            call.cancel()
        for call in greedy[:6]:
            call.cancel()
        await running(executor, 6)  # all of them the second's: nobody else is there
        for call in second:
            call.cancel()
        await asyncio.gather(*greedy, *second, return_exceptions=True)
        alone = [
            asyncio.ensure_future(executor.execute("import time; time.sleep(0.5)", principal="local")) for _ in range(8)
        ]
        await running(executor, 8)  # nobody else is there, where callers are not told apart
        await asyncio.gather(*alone)
        assert (executor.admission.running, executor.admission.waiting) == (0, 0)

    with_executor(tmp_path, work, max_concurrent=8, max_queued=50)


@pytest.mark.long
def test_the_queue_is_bounded_and_the_greedy_give_way(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        slow = "import time; time.sleep(0.2)"
        calls = [asyncio.ensure_future(executor.execute(slow, principal="greedy")) for _ in range(5)]
        await until(lambda: executor.admission.waiting == 3)
        modest = await executor.execute("1", principal="modest")
        assert modest.result == "1"
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [one for one in outcomes if isinstance(one, Busy)]
        assert len(refused) == 2  # one that found the queue full, and one that gave way
        assert all(0 < one.retry_after_seconds <= 60 for one in refused)
        assert sum(not isinstance(one, BaseException) for one in outcomes) == 3
        assert (executor.admission.running, executor.admission.waiting) == (0, 0)

    with_executor(tmp_path, work, max_concurrent=1, max_queued=3)


def test_who_waits_is_told_the_position(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        told: list[list[int]] = [[] for _ in range(4)]
        calls = [executor.execute("import time; time.sleep(0.05)", on_position=places.append) for places in told]
        await asyncio.gather(*calls)
        assert told == [[], [1], [2, 1], [3, 2, 1]]

    with_executor(tmp_path, work, max_concurrent=1)


@pytest.mark.parametrize("begun", [True, False])
def test_cancelling_ends_the_code_at_once(begun: bool, tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        blocker = None if begun else asyncio.ensure_future(executor.execute("import time; time.sleep(0.3)"))
        if not begun:
            await running(executor, 1)
        code = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nopen('x', 'w').write('1')\nwhile True: pass"
        call = asyncio.ensure_future(executor.execute(code))
        await until(lambda: looping(os.getpid()) if begun else executor.admission.waiting == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert executor.admission.waiting == 0
        if blocker is not None:
            await blocker
        assert executor.admission.running == 0
        assert (await executor.execute("1 + 1")).result == "2"
        await until(lambda: not looping(os.getpid()))

    with_executor(tmp_path, work, max_concurrent=4 if begun else 1)


def test_a_burst_does_not_wait_for_slow_calls(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        slow = [asyncio.ensure_future(executor.execute("import time; time.sleep(30)")) for _ in range(10)]
        await running(executor, 10)
        outcomes = await asyncio.gather(*(executor.execute(f"{number}") for number in range(40)))
        assert [outcome.result for outcome in outcomes] == [str(number) for number in range(40)]
        assert not any(call.done() for call in slow)
        for call in slow:
            call.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    with_executor(tmp_path, work)


# ------------------------------------------------------------------------------------------------------ what breaks


@pytest.mark.long
def test_a_zygote_that_dies_is_replaced_and_calls_that_had_not_begun_do_not_notice(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        for _ in range(2):
            call = asyncio.ensure_future(executor.execute("import time; time.sleep(30)"))
            await running(executor, 1)
            os.kill(zygote_of(os.getpid()), signal.SIGKILL)
            outcome = await call
            assert outcome.exit == "killed"
            assert outcome.error is not None
            assert "call again" in outcome.error["message"]
            outcomes = await asyncio.gather(*(executor.execute(f"{number}") for number in range(20)))
            assert [one.result for one in outcomes] == [str(number) for number in range(20)]
        assert executor.figures()["engines"]["fork"]["pools"]["default"]["restarts"] == 2

    with_executor(tmp_path, work)


@pytest.mark.long
def test_a_zygote_is_replaced_from_time_to_time_without_a_lost_call(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        await executor.execute("kept = 1", session_id="s")
        first = zygote_of(os.getpid())
        for number in range(60):
            outcomes = await asyncio.gather(*(executor.execute(f"{number} + {n}") for n in range(8)))
            assert [one.result for one in outcomes] == [str(number + n) for n in range(8)]
        await until(lambda: not psutil.pid_exists(first) or executor.sessions.figures()["open"] == 1)
        assert (await executor.execute("kept", session_id="s")).result == "1"
        zygotes = [one.pid for one in psutil.Process().children() if "sandbox.zygote" in " ".join(command_of(one))]
        assert any(pid != first for pid in zygotes)

    with_executor(tmp_path, work, pool={"generation_calls": 100})


@pytest.mark.long
def test_a_server_without_descriptors_for_a_moment_recovers(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        try:
            for free in (0, 1, 2, 3, 4) * 3:
                held = []
                with contextlib.suppress(OSError):
                    while True:
                        held.append(os.open(os.devnull, os.O_RDONLY))
                for fd in held[:free]:
                    os.close(fd)
                calls = [asyncio.wait_for(executor.execute("1"), 0.4) for _ in range(6)]
                await asyncio.gather(*calls, return_exceptions=True)
                for fd in held[free:]:
                    os.close(fd)
                assert (await asyncio.wait_for(executor.execute("6 * 7"), 60)).result == "42"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: len(psutil.Process(zygote_of(os.getpid())).children(recursive=True)) < 20)

    with_executor(tmp_path, work)


def test_a_server_with_few_descriptors_takes_fewer_calls_and_answers_all(tmp_path: Path) -> None:
    """The descriptors bound the executor's processes before they run out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:

        async def work(executor: Executor) -> None:
            outcomes = await asyncio.gather(
                *(executor.execute(f"import time; time.sleep(0.05); {n}") for n in range(40))
            )
            assert [outcome.result for outcome in outcomes] == [str(n) for n in range(40)]
            assert "only 128 open files are allowed" in executor.about()["limited"]

        with_executor(tmp_path, work)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
def test_a_session_that_is_reset_in_the_middle_leaves_no_process(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        async def call(code: str) -> Any:
            return await executor.execute(code, session_id="s", principal="m")

        for _ in range(30):
            first = asyncio.ensure_future(call("import time; time.sleep(30)"))
            second = asyncio.ensure_future(call("2"))
            await running(executor, 1)
            executor.sessions.reset("m", "s")
            third = asyncio.ensure_future(call("3"))
            one, two, three = await asyncio.gather(first, second, third)
            assert one.exit == "killed"
            assert "reset" in one.error["message"]
            assert (two.result, three.result) == ("2", "3")
            executor.sessions.reset("m", "s")
        for _ in range(30):  # and while it waits for its process
            call_ = asyncio.ensure_future(call("1"))
            await asyncio.sleep(0)
            executor.sessions.reset("m", "s")
            await call_
            executor.sessions.reset("m", "s")
        assert len(executor.sessions) == 0
        pool = executor.figures()["engines"]["fork"]["pools"]["default"]
        await until(lambda: executor.figures()["engines"]["fork"]["pools"]["default"]["children"] <= 8, 8)
        assert pool["restarts"] == 0

    with_executor(tmp_path, work)


@pytest.mark.long
def test_a_session_rests_between_its_calls_and_one_that_talks_unasked_is_ended(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        code = "import threading, time\nn = 0\ndef count():\n    global n\n    while True: n += 1\n"
        await executor.execute(f"{code}threading.Thread(target=count, daemon=True).start()", session_id="s")
        (resting,) = await until(stopped)
        before = cpu_seconds(resting)
        for number in range(100):
            assert (await executor.execute(f"{number}")).result == str(number)
        assert cpu_seconds(resting) == before
        assert stopped() == [resting]
        first = int((await executor.execute("import time; time.sleep(0.1); n", session_id="s")).result or 0)
        assert int((await executor.execute("import time; time.sleep(0.1); n", session_id="s")).result or 0) > first > 0
        flood = (
            "import threading, os, time\ngo = False\ndef f():\n    while not go: time.sleep(0.001)\n"
            "    while True: os.write(3, bytes(1 << 16))\n"
        )
        begun = await executor.execute(f"{flood}threading.Thread(target=f).start()", session_id="f")
        assert begun.exit == "ok"
        outcome = await executor.execute("go = True; time.sleep(20); 'alive'", session_id="f")
        assert (outcome.exit, outcome.result) == ("killed", None)
        assert (await executor.execute("'fresh'", session_id="f")).result == "'fresh'"

    def stopped() -> list[psutil.Process]:
        found = []
        for one in leaves(os.getpid()):
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.status() == psutil.STATUS_STOPPED:
                    found.append(one)
        return found

    with_executor(tmp_path, work)


@pytest.mark.long
def test_who_waits_for_a_session_takes_no_place(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        calls = [
            asyncio.ensure_future(executor.execute("import time; time.sleep(0.2)", session_id="s", principal="m"))
            for _ in range(6)
        ]
        await running(executor, 1)
        assert (await executor.execute("1", principal="alice")).result == "1"
        assert not calls[3].done()
        assert executor.admission.running == 1
        await asyncio.gather(*calls)

    with_executor(tmp_path, work, max_concurrent=2)


def test_a_listener_that_fails_costs_no_place(tmp_path: Path) -> None:
    async def work(executor: Executor) -> None:
        def broken(_position: int) -> None:
            raise RuntimeError

        calls = [executor.execute("import time; time.sleep(0.02)", on_position=broken) for _ in range(5)]
        outcomes = await asyncio.gather(*calls)
        assert [outcome.exit for outcome in outcomes] == ["ok"] * 5
        assert (executor.admission.running, executor.admission.waiting) == (0, 0)

    with_executor(tmp_path, work, max_concurrent=1)


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with Executor(data_dir=tmp_path, interpreter="/no/such/python"):
            pass

    with pytest.raises(SandboxUnavailable, match="/no/such/python"):
        asyncio.run(main())


@pytest.mark.parametrize("kind", ["A", "B", "C", "slow"])
@pytest.mark.long
def test_nothing_is_left_after_a_kill_of_the_server(kind: str, tmp_path: Path) -> None:
    with executor_process(kind, data_dir=str(tmp_path)) as process:
        process.start("import ctypes, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); time.sleep(60)")
        process.start("while True: pass", session_id="s")
        process.run("1")
        below = [one.pid for one in psutil.Process(process.process.pid).children(recursive=True)]
        assert len(below) >= 3
        process.process.kill()
        wait_for(lambda: all(process_gone(pid) for pid in below), 60, "for the children's end")
        left = [*Path("/dev/shm").glob(f"toolscore-sandbox-{process.process.pid}-*")]
        assert left
        process.process.wait()

    async def work(executor: Executor) -> None:
        assert (await executor.execute("1")).result == "1"
        assert not any(folder.exists() for folder in left)

    with_executor(tmp_path, work)


@pytest.mark.long
def test_the_gateway_lives_on_without_a_sandbox_and_says_why(tmp_path: Path) -> None:
    with running_gateway(settings="python_executor: {interpreter: /no/such/python}", python=True) as process:
        state = process.wait_for_state(EXECUTOR, "down", "failed")
        assert "/no/such/python" in state["last_error"]
        answer = process.execute(EXECUTOR, {"code": "1"}, action="python_execute")
        assert answer["error"]["code"] == "upstream_unavailable"
        assert process.get("/health")["status"] == "degraded", "while it is tried again, too"


@pytest.mark.long
def test_a_machine_below_the_least_tier_is_refused_by_the_gateway() -> None:
    lower = [sys.executable, str(ROOT / "tests" / "servers" / "lower.py"), "C"]
    with running_gateway(settings="python_executor: {min_tier: B}", start=False, python=True) as process:
        command = [*lower, sys.executable, "-m", "toolscore", "serve", "--config", str(process.config)]
        process.log = open(process.folder / "gateway.log", "ab")  # noqa: SIM115
        process.process = subprocess.Popen(command, stdout=process.log, stderr=process.log, cwd=process.folder)
        wait_for(process.is_ready, 120)
        state = process.wait_for_state(EXECUTOR, "down", "failed")
        assert "at tier C only, and at least B is asked for" in state["last_error"]


# --------------------------------------------------------------------------------------------------------- hostility


ENDLESS = "while True: pass"
HOSTILE = (
    "import os\nwhile True: os.fork()",
    "x = []\nwhile True: x.append(bytearray(10**6))",
    "while True: print('x' * 1000)",
    "import os; os.write(3, b'\\xff' * 100)",
    "import os; os._exit(0)",
    "import ctypes; ctypes.string_at(0)",
    "import os, signal\nfor pid in range(-1, 300):\n    try: os.kill(pid, signal.SIGKILL)\n    except OSError: pass",
    "import os\nwhile True: os.write(os.open('f', os.O_CREAT | os.O_WRONLY | os.O_APPEND), b'x' * 2**20)",
    "import builtins, json, sys\nbuiltins.print = json.dumps = None\nsys.modules.clear()",
    "import threading, time\nfor _ in range(40): threading.Thread(target=time.sleep, args=(9,)).start()",
    "import os\nos.closerange(0, 100)",
    ENDLESS,
)
HOSTILE_SECONDS = {ENDLESS: 0.01}
"""What only a time limit ends gets a small one: it uses CPU time for as long."""


@pytest.mark.long
def test_ten_thousand_calls_with_every_tenth_hostile_all_get_their_right_answer(tmp_path: Path) -> None:
    """The honest ones compute, print, fail, write files and read input; each is checked by its own number.

    The bounds are small, so that hostile code meets them within milliseconds.
    """
    wrong: list[str] = []
    pick = random.Random(7)

    async def honest(executor: Executor, number: int) -> None:
        kind = number % 5
        if kind == 0:
            got = await executor.execute(f"sum(range({number}))")
            right = got.result == str(sum(range(number)))
        elif kind == 1:
            got = await executor.execute(f"import json\nprint(json.dumps([{number}, 'ü']))")
            right = got.stdout == f'[{number}, "\\u00fc"]\n'
        elif kind == 2:
            got = await executor.execute(f"raise KeyError({number})")
            right = got.error is not None and got.error["message"] == str(number)
        elif kind == 3:
            got = await executor.execute("open('out', 'w').write(input())", input=f"line {number}")
            right = got.files == (("out", f"line {number}".encode()),)
        else:
            got = await executor.execute(f"x = {{n: n * {number} for n in range(50)}}\nlen(x), x[49]")
            right = got.result == f"(50, {49 * number})"
        if not right:
            wrong.append(f"{number}: {got}")

    async def work(executor: Executor) -> None:
        numbers = iter(range(10_000))

        async def caller() -> None:
            for number in numbers:
                if number % 10 == 9:
                    code = pick.choice(HOSTILE)
                    outcome = await executor.execute(code, timeout_seconds=HOSTILE_SECONDS.get(code, 0.2))
                    if code.startswith(("while", "x =")) and outcome.exit == "ok":
                        wrong.append(f"{number}: hostile code ended well: {outcome}")
                else:
                    await honest(executor, number)

        await asyncio.gather(*(caller() for _ in range(16)))
        figures = executor.figures()["engines"]["fork"]
        assert figures["executions"] == 10_000
        assert figures["pools"]["default"]["restarts"] == 0

    with_executor(tmp_path, work, memory_mb=16, scratch_mb=1, max_output_bytes=20_000)
    assert wrong == []


# ----------------------------------------------------------------------------------------- code that starts processes


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = {"allow_processes": True, "memory_mb": 128, "max_processes": 12}
    with executor_process(data_dir=str(tmp_path_factory.mktemp("data")), **options) as process:
        yield process


def test_programs_run_where_the_operator_allows_it(programs: Any) -> None:
    got = programs.run(
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'echo $((6 * 7))'], capture_output=True).stdout"
    )
    assert got["result"] == "b'42\\n'", got
    code = (
        "import os, sys\npid = os.fork()\nif pid == 0: os._exit(7)\n"
        "os.waitpid(pid, 0)[1] >> 8"
    )  # fmt: skip
    assert programs.run(code)["result"] == "7"


def test_they_are_as_confined_as_the_code(programs: Any) -> None:
    for command in ("cat /etc/shadow", "ls /root/.profile", "echo x > /new", "cat /proc/1/environ"):
        code = f"import subprocess\nsubprocess.run(['/bin/sh', '-c', {command!r}], capture_output=True).returncode != 0"
        assert programs.run(code)["result"] == "True", command
    code = (
        "import subprocess, sys\nprogram = 'import socket; socket.socket()'\n"
        "subprocess.run([sys.executable, '-I', '-S', '-c', program], capture_output=True).stderr.decode()"
    )
    assert "PermissionError" in programs.run(code)["result"]


def test_a_fork_bomb_meets_its_limit_and_nobody_else_does(programs: Any) -> None:
    bombs = [programs.start("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout_seconds=0.5)
             for _ in range(2)]  # fmt: skip
    assert programs.run("import os\npid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)[1]")["result"] == "0"
    for bomb in bombs:
        assert programs.wait(bomb)["result"]["structuredContent"]["exit"] == "timeout"
    assert len(psutil.Process(programs.process.pid).children(recursive=True)) < 60
    wait_for(lambda: len(psutil.Process(programs.process.pid).children(recursive=True)) < 12, 60)


@pytest.mark.long
def test_processes_share_the_memory_of_the_call(programs: Any) -> None:
    code = (
        "import os, time\nfor _ in range(6):\n"
        "    if os.fork() == 0:\n        x = bytearray(60 * 2**20)\n        time.sleep(1)\n        os._exit(0)\n"
        "x = bytearray(60 * 2**20)\nwhile True: os.waitpid(-1, 0)"
    )
    got = programs.run(code, timeout_seconds=4)
    assert got["exit"] in ("memory", "error"), got
    assert programs.run("1")["result"] == "1"


def test_grandchildren_end_with_the_call(programs: Any) -> None:
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)\nos.wait()\n'answered'"
    )
    assert programs.run(code)["result"] == "'answered'"
    wait_for(lambda: len(psutil.Process(programs.process.pid).children(recursive=True)) < 12, 60)
