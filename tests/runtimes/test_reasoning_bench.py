"""The tasks that come along, with real servers and a gateway that may install. The model's double is good in the end:
before that it is clumsy, broken or hostile, another way for each task.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, SERVERS, GatewayProcess, Turn, model_double, running_gateway, wait_for

from runtimes.reasoning import ModelRules
from runtimes.reasoning.bench import TASKS, run_bench
from runtimes.reasoning.trajectory import read_trajectory

sys.path.append(str(ROOT / "tests" / "servers"))
sys.path.append(str(Path(__file__).parent))

from registries import Registries
from turns import GOOD

NPM = SERVERS / "npm" / "node_modules" / ".bin"
TIME = {
    "registryType": "pypi", "identifier": "mcp-server-time", "version": "2026.10.19", "transport": {"type": "stdio"},
}  # fmt: skip
SETTINGS = """
discovery:
  catalog: {{registries: ["{url}"], snapshot: false}}
  install: {{allow: [{{registry: pypi, package: mcp-server-time}}], start_timeout_seconds: 30}}
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with Registries() as registries:
        registries.publish("io.github.modelcontextprotocol/time", "2026.10.19", packages=[TIME],
                           description="Current time in any time zone, and conversion between time zones")  # fmt: skip
        with running_gateway(settings=SETTINGS.format(url=registries.url), journal=True, python=True) as process:
            yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks, with the servers that the tests have installed."""
    folder = tmp_path_factory.mktemp("tasks")
    shutil.copytree(TASKS, folder, dirs_exist_ok=True)
    node = str(SERVERS / "node")
    servers = {
        "time": {"command": str(SERVERS / "current/bin/mcp-server-time"), "args": ["--local-timezone", "UTC"]},
        "git": {"command": str(SERVERS / "current/bin/mcp-server-git")},
        "sqlite": {
            "command": str(SERVERS / "sdk1/bin/mcp-server-sqlite"), "args": ["--db-path", "{folder}/shop.db"],
        },
        "filesystem": {"command": node, "args": [str(NPM / "mcp-server-filesystem"), "{folder}"]},
        "memory": {
            "command": node, "args": [str(NPM / "mcp-server-memory")],
            "env": {"MEMORY_FILE_PATH": "{folder}/memory.json"},
        },
    }  # fmt: skip
    (folder / "servers.json").write_text(json.dumps({"mcpServers": servers}))
    return folder


TROUBLES: list[list[Turn | str]] = [
    [],
    ["Let me think about that."],
    [Turn(status=500, error="it broke"), Turn(status=429, error="slow down", headers={"retry-after": "0.1"})],
    ["```python\n1\n```\nand\n```python\n2\n```"],
    ["```python\ntools.nobody.knows_this()\n```"],
    [Turn("```python\nprint('", finish="length")],
    ["```python\nopen('/etc/shadow').read()\n```"],
    [Turn("FINAL", dies=True)],
    ["```python\nimport time; print('x' * 3_000_000)\n```"],
    [Turn("", finish="tool_calls")],
]


def model(task: str, messages: list[dict[str, str]], count: int) -> Turn | str:
    """The model's next turn."""
    place = re.search(r"(/\S+?)/(?:repo|notes)", task)
    data = place[1] if place is not None else ""
    plain = task.replace(data, "{folder}") if data else task
    number, written = next(
        (number, turns) for number, (beginning, turns) in enumerate(GOOD.items()) if plain.startswith(beginning)
    )
    troubles = TROUBLES[number % len(TROUBLES)]
    if count < len(troubles):
        return troubles[count]
    count -= len(troubles)
    last = messages[-1]["content"].split("\n", 1)[-1].strip()
    given = f"```python\nREPO, FOLDER = {data + '/repo'!r}, {data!r}\n"
    turn = written[count].replace("{last}", last).replace("```python\n", given)
    installed = task.startswith("what time is it in Tokyo right now")
    return turn if installed else re.sub(r"tools\.(time|git|sqlite|filesystem|memory)\.", r"tools.bench_\1.", turn)


@pytest.mark.long
def test_every_task_is_done_whatever_the_model_does_first(
    gateway: GatewayProcess, folder: Path, tmp_path: Path
) -> None:
    wait_for(lambda: gateway.http.post("/api/v1/catalog/refresh").json()["success"])
    with model_double(model) as double:
        rules = ModelRules(name="double", url=double.url, input_price=1.0, output_price=2.0)
        report = asyncio.run(run_bench(folder, rules, gateway=gateway.url, keep=tmp_path, quiet=True))
    wrong = [one for one in report["tasks"] if not one["right"]]
    assert not wrong
    assert (report["right"], report["count"]) == (25, 25)
    assert report["money"] > 0
    kept = read_trajectory(tmp_path / "teapot.jsonl")
    assert kept.end is not None
    assert kept.end["reason"] == "answered"
    assert gateway.get(f"/api/v1/calls/{kept.steps[-1]['call_id']}")["calls"], "the journal has what the code called"
