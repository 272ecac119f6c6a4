"""Package sets: installed once from the registry, preloaded, read-only; and pictures."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, ExecutorProcess, executor_process

from mcp_servers.python_executor.executor import Executor

SETS: dict[str, Any] = {
    "data": ["numpy", "pandas", "matplotlib"],
    "small": ["humanize==4.*"],
    "none": ["no-such-package-as-this-one"],
}


KEPT = ROOT / ".cache" / "executor"
"""Where the large set stays from one run of the tests to the next. The small one is installed in every run."""


@pytest.fixture(scope="module")
def box() -> Iterator[ExecutorProcess]:
    for folder in (KEPT / "python").glob("**/small-*"):
        shutil.rmtree(folder)
    with executor_process(packages=SETS, data_dir=str(KEPT)) as process:
        yield process


def test_a_set_is_asked_for_by_its_name_or_by_its_packages(box: ExecutorProcess) -> None:
    for packages in (["small"], ["humanize"], ["Humanize"]):
        got = box.run("import humanize\nhumanize.intcomma(1234567)", packages=packages)
        assert got["result"] == "'1,234,567'", got
    assert box.run("import humanize")["error"]["type"] == "ModuleNotFoundError"


def test_whoever_misses_a_module_is_told_where_it_is(box: ExecutorProcess) -> None:
    got = box.call("import numpy")
    assert 'pass packages=["data"]' in got["structuredContent"]["error"]["message"]
    assert got["content"][0]["text"].count("No module named") == 1
    assert 'pass packages=["data"]' in got["content"][0]["text"]
    assert "Available: data (numpy, pandas, matplotlib)" in box.run("import torch")["error"]["message"]
    got = box.call("1", packages=["torch"])
    assert got["isError"]
    assert "no package set has torch. Available: data" in got["content"][0]["text"]
    got = box.call("1", packages=["humanize", "numpy"])
    assert "no package set has humanize, numpy" in got["content"][0]["text"]


def test_a_set_that_cannot_be_installed_says_why(box: ExecutorProcess) -> None:
    got = box.call("1", packages=["none"])
    assert got["isError"]
    assert "no-such-package-as-this-one" in got["content"][0]["text"]
    assert box.run("1 + 1")["result"] == "2"


@pytest.mark.long
def test_packages_are_preloaded_and_work(box: ExecutorProcess) -> None:
    code = "import sys\nahead = 'numpy' in sys.modules, 'matplotlib.pyplot' in sys.modules\nahead"
    assert box.run(code, packages=["data"])["result"] == "(True, True)"
    code = "import numpy as np\nfloat(np.linalg.norm(np.arange(4).reshape(2, 2) @ np.ones(2)))"
    assert box.run(code, packages=["numpy"])["result"].startswith("5.09901951")
    code = "import pandas as pd, io\npd.read_csv(io.StringIO('a,b\\n1,2\\n3,4'))['b'].sum()"
    assert box.run(code, packages=["pandas"])["result"] in ("np.int64(6)", "6")
    numbers = {box.run("import numpy as np\nnp.random.rand()", packages=["data"])["result"] for _ in range(5)}
    assert len(numbers) == 5


def test_figures_come_back_without_being_asked_for(box: ExecutorProcess) -> None:
    code = (
        "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('ü')\n"
        "plt.figure()\nplt.bar([1, 2], [3, 4])\n'ok'"
    )
    got = box.call(code, packages=["data"])
    images = [block for block in got["content"] if block["type"] == "image"]
    assert [image["mimeType"] for image in images] == ["image/png", "image/png"]
    assert [image["media_type"] for image in got["structuredContent"]["images"]] == ["image/png", "image/png"]
    for image, told in zip(images, got["structuredContent"]["images"], strict=True):
        png = base64.b64decode(image["data"])
        assert len(png) == told["size"]
        assert json.dumps(got).count(image["data"]) == 1
        assert png.startswith(b"\x89PNG\r\n")
        assert len(png) > 5000
    assert box.run("import matplotlib.pyplot as plt\nplt.get_fignums()", packages=["data"])["images"] == []


def test_a_set_is_read_only_and_nothing_is_installed_at_run_time(box: ExecutorProcess) -> None:
    code = "import humanize, os\nopen(os.path.join(os.path.dirname(humanize.__file__), '__init__.py'), 'a')"
    assert box.run(code, packages=["small"])["error"]["type"] in ("OSError", "PermissionError")
    code = "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'pip', 'install', 'humanize'])"
    assert box.run(code)["error"]["type"] in ("PermissionError", "FileNotFoundError")


def test_a_session_keeps_its_packages(box: ExecutorProcess) -> None:
    box.run("import humanize\nh = humanize", packages=["small"], session_id="s")
    assert box.run("h.intcomma(1000)", session_id="s")["result"] == "'1,000'"


@pytest.mark.long
def test_a_session_may_ask_for_packages_later(box: ExecutorProcess) -> None:
    box.run("kept = 20", session_id="later")
    assert box.run("import humanize", session_id="later")["error"]["type"] == "ModuleNotFoundError"
    got = box.run("import humanize\nhumanize.intcomma(kept * 100)", packages=["small"], session_id="later")
    assert got["result"] == "'2,000'"
    code = "import pandas, matplotlib.pyplot as plt\nplt.plot([1, 2])\nint(pandas.Series([kept, 2]).sum())"
    got = box.run(code, packages=["data"], session_id="later")
    assert (got["result"], len(got["images"])) == ("22", 1)
    assert (
        box.run(
            "humanize.intcomma(1000)",
            packages=[
                "small",
            ],
            session_id="later",
        )["result"]
        == "'1,000'"
    )
    sessions = box.request("tools/call", name="python_sessions", arguments={})["structuredContent"]["sessions"]
    assert next(one for one in sessions if one["session_id"] == "later")["packages"] == ["small", "data"]
    assert box.run("import pandas")["error"]["type"] == "ModuleNotFoundError"  # nobody else notices


def test_the_tool_says_what_there_is(box: ExecutorProcess) -> None:
    tool = box.request("tools/list")["tools"][0]
    assert "data (numpy, pandas, matplotlib)" in tool["inputSchema"]["properties"]["packages"]["description"]


@pytest.mark.anyio
async def test_the_first_call_that_needs_a_set_is_told_of_it(tmp_path: Path) -> None:
    told: list[str] = []
    async with Executor(packages={"small": SETS["small"]}, data_dir=tmp_path) as executor:
        for _ in range(2):
            await executor.execute("1", on_install=told.append)
            outcome = await executor.execute("import humanize", packages=["small"], on_install=told.append)
            assert outcome.exit == "ok"
    assert told == ["small"]
