"""The engines beside one another: what each gives, what it isolates, and the programs that measure it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, ExecutorProcess, executor_process
from typer.main import get_command

from mcp_servers.python_executor.bench import measure_engines
from mcp_servers.python_executor.container import ContainerEngine
from mcp_servers.python_executor.engine import ENGINES, Job, Outcome
from mcp_servers.python_executor.executor import Executor
from mcp_servers.python_executor.isolation import PROBES, SESSION, SESSION_OF_ANOTHER, measure_isolation
from mcp_servers.python_executor.pool import SandboxUnavailable
from toolscore.cli.main import make_app

POOLED = ("fork", "fresh", "restricted", "reset", "persistent")


ENDLESS = "while True: pass"


def run(engine: str, *codes: str, folder: Path) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with Executor(engine=engine, data_dir=folder, memory_mb=128) as executor:
            return [await executor.execute(code, timeout_seconds=0.3 if code == ENDLESS else 10) for code in codes]

    return asyncio.run(main())


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    folder = str(tmp_path_factory.mktemp("data"))
    with executor_process(engine="restricted", data_dir=folder, memory_mb=128) as process:
        yield process


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    result = asyncio.run(measure_isolation(POOLED, data_dir=tmp_path_factory.mktemp("data")))
    assert result["skipped"] == {}
    found: dict[str, dict[str, list[str]]] = result["matrix"]
    return found


@pytest.mark.parametrize("column", ["fork", "fresh", "restricted", SESSION_OF_ANOTHER])
def test_nothing_passes_from_one_caller_to_the_next(matrix: dict[str, dict[str, list[str]]], column: str) -> None:
    assert {aspect: cells[column] for aspect, cells in matrix.items() if cells[column]} == {}


def test_the_probes_see_what_a_shared_process_passes_on(matrix: dict[str, dict[str, list[str]]]) -> None:
    """Or the test above would prove nothing."""
    for column in ("persistent", SESSION):
        kept = {aspect for aspect, cells in matrix.items() if cells[column]}
        assert kept >= {probe.aspect for probe in PROBES} - {"exceptions"}


def test_reset_restores_what_it_says_and_no_more(matrix: dict[str, dict[str, list[str]]]) -> None:
    passed = {name for cells in matrix.values() for name in cells["reset"]}
    restored = {
        "a variable",
        "a function",
        "a class",
        "a new module",
        "sys.path",
        "chdir",
        "a new name",
        "a patched one",
    }
    assert not passed & restored
    assert passed >= {"a patched module", "a descriptor", "a thread that stays"}


@pytest.mark.parametrize("engine", POOLED)
@pytest.mark.long
def test_every_engine_answers_alike(engine: str, tmp_path: Path) -> None:
    value, error, loop, after = run(
        engine, "print('said')\nx = [n * n for n in range(4)]\nx", "1 / 0", ENDLESS, "6 * 7", folder=tmp_path
    )
    assert (value.exit, value.stdout, value.result) == ("ok", "said\n", "[0, 1, 4, 9]")
    assert error.error is not None
    assert error.error["type"] == "ZeroDivisionError"
    assert loop.exit == "timeout"
    assert after.result == "42"


@pytest.mark.parametrize("engine", ["reset", "persistent"])
def test_a_shared_process_that_breaks_is_replaced(engine: str, tmp_path: Path) -> None:
    broken, memory, after = run(engine, "import os; os._exit(1)", "x = bytearray(10**9)", "1 + 1", folder=tmp_path)
    assert (broken.exit, memory.exit, after.result) == ("killed", "memory", "2")


def test_reset_is_replaced_after_its_number_of_calls_and_no_call_is_lost(tmp_path: Path) -> None:
    async def main() -> dict[str, Any]:
        async with Executor(engine="reset", data_dir=tmp_path, max_executions=10) as executor:
            outcomes = await asyncio.gather(*(executor.execute(f"{n}") for n in range(35)))
            assert [outcome.result for outcome in outcomes] == [str(n) for n in range(35)]
            return executor.figures()

    figures = asyncio.run(main())
    assert figures["engines"]["reset"]["pools"]["default"]["restarts"] == 3


@pytest.mark.parametrize(
    "code",
    ["import os", "open('/etc/passwd')", "().__class__.__bases__", "exec('1')", "eval('1')", "__import__('os')",
     "getattr((), '__class__')", "x = 1\nx.__dict__", "'{0.__class__}'.format(1)", "globals()", "type('X', (), {})"],
)  # fmt: skip
def test_the_restricted_language_refuses(restricted: ExecutorProcess, code: str) -> None:
    got = restricted.run(code)
    assert got["exit"] == "error", got


def test_the_restricted_language_does_what_policies_need(restricted: ExecutorProcess) -> None:
    code = (
        "total = 0\nfor key, value in sorted({'a': 1, 'b': 2}.items()):\n    total += value\n"
        "def allowed(user):\n    return user['role'] in ('admin', 'owner') and len(user['name']) > 2\n"
        "print('checked', total)\nallowed({'role': 'admin', 'name': 'ann'}), [n for n in range(3)], sum([1.5, 2])"
    )
    got = restricted.run(code)
    assert got["exit"] == "ok", got
    assert (got["stdout"], got["result"]) == ("checked 3\n", "(True, [0, 1, 2], 3.5)")


@pytest.mark.long
def test_a_call_chooses_among_the_engines_that_are_allowed(tmp_path: Path) -> None:
    async def main() -> None:
        async with Executor(data_dir=tmp_path, allowed_engines=["persistent"]) as executor:
            await executor.execute("left = 1", engine="persistent")
            assert (await executor.execute("left", engine="persistent")).result == "1"
            assert (await executor.execute("'left' in globals()")).result == "False"
            with pytest.raises(ValueError, match="not allowed here: choose fork, persistent"):
                await executor.execute("1", engine="reset")

    asyncio.run(main())


def test_a_wrong_option_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no engine 'warp': there are fork"):
        Executor(engine="warp", data_dir=tmp_path)
    with pytest.raises(ValueError, match="min_tier"):
        Executor(min_tier="E", data_dir=tmp_path)


def test_each_engine_says_in_one_line_what_it_isolates() -> None:
    assert set(ENGINES) == {"fork", "fresh", "reset", "persistent", "restricted", "container"}
    assert all(20 < len(line) < 140 and "\n" not in line for line in ENGINES.values())


def test_code_runs_in_a_container(tmp_path: Path) -> None:
    """With docker or podman, and the image of the settings or of TOOLSCORE_TEST_IMAGE."""
    image = os.environ.get("TOOLSCORE_TEST_IMAGE", "python:3.12-slim")

    async def main() -> None:
        async with Executor(engine="container", container_image=image, data_dir=tmp_path, memory_mb=128) as executor:
            outcomes = [
                await executor.execute(code, timeout_seconds=2)
                for code in (
                    "print('in')\nopen('f', 'w').write(input())",
                    "while True: pass",
                    "while True: print('x' * 1000)",
                    "x = bytearray(10**9)",
                    "import os; os._exit(3)",
                    "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
                    "open('/etc/new', 'w')",
                    "import os; os.getuid(), len(os.listdir('/box'))",
                )
            ]
            exits = [outcome.exit for outcome in outcomes]
            assert exits == ["error", "timeout", "output_limit", "memory", "killed", "error", "error", "ok"]
            assert outcomes[0].error is not None
            assert outcomes[0].error["type"] == "EOFError"
            assert outcomes[-1].result == "(65534, 3)"  # its own folder, stdout and stderr: nothing of those before
            given = await executor.execute("open('f', 'w').write(input())", input="line")
            assert given.files == (("f", b"line"),)

    try:
        asyncio.run(main())
    except SandboxUnavailable as exc:
        pytest.skip(f"no container engine: {str(exc).splitlines()[0]}")


@pytest.mark.long
def test_the_benchmark_measures_every_engine_and_checks_every_result(tmp_path: Path) -> None:
    report = asyncio.run(measure_engines(engines=POOLED, seconds=0.03, samples=2, rounds=1, data_dir=tmp_path))
    assert report["skipped"] == {}
    for name in POOLED:
        figures = report["engines"][name]
        assert set(figures["throughput"]) == {"1", "4", "16"}
        assert min(figures["throughput"].values()) > 1
        assert len(figures["latency"]) == (5 if name == "restricted" else 7)
        assert figures["memory_kb"]["zygote"] > 1000
    assert set(report["summary"]) == {
        "paced_p50_ratio", "throughput_ratio", "fresh_ratio", "hog_p99_ratio", "private_mb_per_spare", "ready_ms"
    }  # fmt: skip


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolscore", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.long
def test_the_commands_print_and_write_what_they_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The figures do not matter here: one round, and no start of the gateway that only fills its caches.
    monkeypatch.setattr("toolscore.bench.executor.ROUNDS", 1)
    monkeypatch.setattr("toolscore.bench.executor.settle", lambda _folder, _port: None)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    arguments = ["bench", "executor", "--engines", "fork,persistent", "--seconds", "0.1", "--samples", "1"]
    assert get_command(make_app()).main(arguments, standalone_mode=False) == 0
    printed = capfd.readouterr().out
    for word in ("mixed_workload", "persistent", "calls/s at 16", "written to", "Behind POST /execute_tool"):
        assert word in printed
    written = json.loads((tmp_path / "benchmark_results.json").read_text())
    assert set(written["engines"]) == {"fork", "persistent"}
    assert (tmp_path / "benchmark_results.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "benchmark_results.svg").read_text()[:1000]
    done = command("bench", "isolation", "--engines", "fork,reset", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "working directory" in done.stdout
    assert "others' session" in " ".join(done.stdout.split())
    done = command("bench", "executor", "--engines", "warp", folder=tmp_path)
    assert done.returncode == 2
    assert "no engine 'warp': there are fork" in done.stderr


@pytest.mark.long
def test_doctor_tries_the_layers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mcp_servers.python_executor", "doctor", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found = json.loads(done.stdout)
    assert found["tier"] == "A"
    assert set(found["layers"]) >= {"namespaces", "user_ids", "landlock", "seccomp", "cgroups", "helper"}
    assert all(layer["ok"] for layer in found["layers"].values())
    done = command("doctor", folder=tmp_path)
    assert "sandbox" in done.stdout
    assert "tier A" in done.stdout


@pytest.mark.parametrize(("tier", "expected"), [("B", 0), ("C", 0), ("D", 1)])
@pytest.mark.long
def test_doctor_and_the_server_tell_a_machine_that_confines_less(tier: str, expected: int, tmp_path: Path) -> None:
    lower = [sys.executable, str(ROOT / "tests" / "servers" / "lower.py"), tier, sys.executable, "-m"]
    program = [*lower, "mcp_servers.python_executor"]
    done = subprocess.run(
        [*program, "doctor", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == expected, done.stderr
    found = json.loads(done.stdout)
    assert found["tier"] == tier
    missing = {name: layer for name, layer in found["layers"].items() if not layer["ok"]}
    assert missing
    assert all(layer["mend"] for layer in missing.values())
    done = subprocess.run(
        [*program, "--stdio", "--min-tier", "A", "--options", json.dumps({"data_dir": str(tmp_path)})],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 69
    assert f"at tier {tier} only, and at least A is asked for" in done.stderr


STAND_IN = """#!{python}
import os, sys
given = sys.argv[1:]
if given[0] == "run":
    os.execv(sys.executable, [sys.executable, "-c", given[given.index("-c") + 1]])
if "rm" not in given:
    told = [given[n + 1].partition("=") for n, one in enumerate(given) if one == "--env"]
    there = {{"PATH": os.environ["PATH"]}} | {{name: value.replace("/box/", "{box}/") for name, _, value in told}}
    os.execvpe("timeout", given[given.index("timeout"):], there)
"""


def test_what_is_sent_into_a_container_runs_by_itself(tmp_path: Path) -> None:
    """With a program in the place of docker that runs here what would run in the container."""
    (tmp_path / "box").mkdir()
    docker = tmp_path / "docker"
    docker.write_text(STAND_IN.format(python=sys.executable, box=tmp_path / "box"))
    docker.chmod(0o755)

    async def main() -> None:
        engine = ContainerEngine(image="none", command=str(docker))
        try:
            outcome = await engine.run(Job("print('in')\n2 + 2", timeout_seconds=20))
        finally:
            await engine.stop()
        assert (outcome.exit, outcome.stdout, outcome.result) == ("ok", "in\n", "4")

    asyncio.run(main())


VALUES = {
    "1 + 1\n# done": "2",
    "x = 3\nsum([\n    1,\n    x])": "4",
    "'a,b' \\\n    .split(',')": "['a', 'b']",
    "match = 5\nmatch": "5",
    "case = 5\ncase + 1": "6",
    "round(3.14159, ndigits= 2)": "3.14",
    "[x\nfor x in (1, 2)\n  if x]": "[1, 2]",
    "x = 1\nx += 2": None,
    "for x in (1, 2):\n    x": None,
    "def f(\n    a,\n):\n    return a": None,
    "if True:\n    1\nelse:\n    2": None,
}


def test_the_value_of_the_last_expression_is_found_however_it_is_written(tmp_path: Path) -> None:
    async def main() -> dict[str, str | None]:
        async with Executor(data_dir=tmp_path) as executor:
            return {code: (await executor.execute(code, timeout_seconds=20)).result for code in VALUES}

    assert asyncio.run(main()) == VALUES
