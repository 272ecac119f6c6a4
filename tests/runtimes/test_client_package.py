"""The clients as a package of their own: what a user installs who wants no gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, GatewayProcess

import toolscore

UV = Path(sys.executable).with_name("uv")

PROGRAM = """
import asyncio, importlib.util, sys
from runtimes.client import BlockingToolScoreClient, RealTimeToolClient

assert importlib.util.find_spec("toolscore") is None
with BlockingToolScoreClient() as client:
    print(client.execute("alpha__echo", {"text": "hi"}).text)
    print(client.run_code("print(6 * 7)").stdout.strip())
    print(client.search("echo a text")[0]["tool_id"] != "")
    print(len(client.calls(limit=1)) <= 1)

async def listen():
    async with RealTimeToolClient() as events:
        print((await events.wait_for_tool("echo"))["name"])

asyncio.run(listen())
"""


@pytest.mark.long
def test_a_handful_of_packages_reaches_a_gateway(gateway: GatewayProcess, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TOOLSCORE_", "PYTHON"))}
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    build = [
        UV,
        "build",
        "--quiet",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        tmp_path,
    ]
    subprocess.run([*build, ROOT / "runtimes"], check=True)
    wheel = next(tmp_path.glob("*.whl"))
    assert toolscore.__version__ in wheel.name
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, wheel], check=True)
    listed = subprocess.run([UV, "pip", "list", "--python", python], capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) - 2 <= 10, listed
    done = subprocess.run(
        [python, "-c", PROGRAM], env={**environment, "TOOLSCORE_URL": gateway.url}, cwd=tmp_path, capture_output=True,
        text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["hi", "42", "True", "True", "echo"], done.stderr
