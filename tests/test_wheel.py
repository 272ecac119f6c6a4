"""The wheel, as `pipx install toolscore` or `uvx toolscore` use it: in an empty folder, with nothing else there.

It is built of nothing but what `deploy/Dockerfile` copies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from support import PYTHON, ROOT, free_port, wait_for

BIN = Path(sys.executable).parent


@pytest.mark.long
def test_the_built_wheel_runs_in_an_empty_folder(tmp_path: Path) -> None:
    def done(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, check=True, timeout=300, **more  # type: ignore[call-overload]
        )  # fmt: skip

    source = tmp_path / "source"
    source.mkdir()
    stage = (ROOT / "deploy" / "Dockerfile").read_text().split("\nFROM")[1]
    for name in " ".join(re.findall(r"^COPY (.+) \./\S*$", stage, re.MULTILINE)).split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("node_modules", "dist", "*.so"))
        else:
            shutil.copy(ROOT / name, source)
    done(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("toolscore-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "toolscore/dashboard/dist/index.html" in names
    assert not [name for name in names if name.endswith((".ts", ".tsx")) or "node_modules" in name]
    venv, home, empty = tmp_path / "venv", tmp_path / "home", tmp_path / "empty"
    home.mkdir()
    empty.mkdir()
    python = venv / "bin" / "python"
    done(BIN / "uv", "venv", "--quiet", "--python", sys.executable, venv)
    install = (BIN / "uv", "pip", "install", "--quiet", "--python", python)
    done(*install, "--require-hashes", "-r", ROOT / "requirements.lock")
    done(*install, "--no-deps", wheel)
    http_port = free_port()
    environment = {
        "HOME": str(home),
        "PATH": os.defpath,
        "TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT": str(http_port),
        "TOOLSCORE_CORE_SERVICES__TOOLSCORE_MCP__PORT": str(free_port()),
    }
    toolscore = venv / "bin" / "toolscore"
    with open(tmp_path / "log", "wb") as log:
        gateway = subprocess.Popen([str(toolscore), "serve"], cwd=empty, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{http_port}"

        def ready() -> bool:
            assert gateway.poll() is None, (tmp_path / "log").read_text()
            try:
                return httpx.get(f"{url}/readyz").is_success
            except httpx.TransportError:
                return False

        wait_for(ready, 60)
        command = done(toolscore, "call", PYTHON, "code=6 * 7", cwd=empty, env={**environment, "COLUMNS": "80"})
        assert "42" in command.stdout
        page = httpx.get(url)
        assert (page.status_code, '<div id="root">' in page.text) == (200, True)
    finally:
        gateway.terminate()
        assert gateway.wait(30) == 0
    said = (tmp_path / "log").read_text()
    assert "embedded defaults" in said
    assert (home / ".local" / "state" / "toolscore" / "toolscore.db").exists()
    assert list(empty.iterdir()) == []
