"""The clients that people use against one gateway, each in an environment of its own, through the doors that it uses.

`make interop` fetches them from the registries (some hundred MB, kept below `.cache/interop`), so all of them are no
part of `make test`. Names after it choose: `make interop CLIENTS="smolagents typescript-2"`. Prints a line a client.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from support import ROOT, odd, running_gateway

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "interop"
BIN = Path(sys.executable).parent
SECONDS = 120

PYTHON = {
    "sdk-1.12": ("sdk1.py", "mcp==1.12.4 pydantic<2.12"),
    "sdk-1.30": ("sdk1.py", "mcp==1.30.0"),
    "sdk-2": ("sdk2.py", "mcp==2.3.0"),
    "fastmcp-2": ("fastmcp_client.py", "fastmcp==2.*"),
    "fastmcp-4": ("fastmcp_client.py", "fastmcp==4.2.3"),
    "langchain-mcp-adapters": ("langchain_adapters.py", "langchain-mcp-adapters==0.3.2"),
    "openai-agents": ("openai_agents.py", "openai-agents==0.24.0"),
    "pydantic-ai": ("pydantic_ai_client.py", "pydantic-ai-slim[mcp]==2.68.0"),
    "smolagents": ("smolagents_client.py", "smolagents[mcp]==1.26.0 mcp<2"),
    "llama-index": ("llama_index_client.py", "llama-index-tools-mcp==0.6.0"),
}
NODE = {
    "typescript-1": ("typescript1.mjs", "@modelcontextprotocol/sdk@1.32.2"),
    "typescript-2": ("typescript2.mjs", "@modelcontextprotocol/client@2.4.0"),
    "mcp-remote": ("through_a_command.py", "mcp-remote@0.15.1"),
}


def run(*words: object, seconds: float = 600) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=seconds, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-2000:] or f"it ended with {done.returncode}")


def python_environment(name: str, packages: str) -> Path:
    folder = CACHE / name
    stamp = folder / "installed"
    if not stamp.is_file() or stamp.read_text() != packages:
        run(BIN / "uv", "venv", "--quiet", "--clear", "--python", sys.executable, folder)
        run(BIN / "uv", "pip", "install", "--quiet", "--python", folder / "bin" / "python", *packages.split())
        stamp.write_text(packages)
    return folder / "bin" / "python"


def node_environment(name: str, package: str) -> Path:
    folder = CACHE / name
    stamp = folder / "installed"
    if not stamp.is_file() or stamp.read_text() != package:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run("npm", "install", "--silent", "--no-package-lock", "--prefix", folder, package)
        stamp.write_text(package)
    return folder


def meets(name: str, url: str) -> None:
    """Raises: RuntimeError, TimeoutExpired."""
    toolscore = BIN / "toolscore"
    if name in PYTHON:
        script, packages = PYTHON[name]
        run(python_environment(name, packages), HERE / "clients" / script, url, toolscore, seconds=SECONDS)
        return
    script, package = NODE[name]
    folder = node_environment(name, package)
    if name == "mcp-remote":
        remote = folder / "node_modules" / ".bin" / "mcp-remote"
        run(sys.executable, HERE / "clients" / script, remote, f"{url}/mcp", seconds=SECONDS)
        return
    shutil.copy(HERE / "clients" / script, folder)
    run("node", folder / script, url, toolscore, seconds=SECONDS)


def main() -> int:
    chosen = sys.argv[1:] or [*PYTHON, *NODE]
    unknown = set(chosen) - PYTHON.keys() - NODE.keys()
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join([*PYTHON, *NODE])}")
        return 2
    failed = 0
    with running_gateway({"alpha": odd("echo")}, python=True) as gateway:
        gateway.wait_for_state("alpha", "up")
        for name in chosen:
            began = time.monotonic()
            try:
                meets(name, gateway.url)
                print(f"{name:<24}works   {time.monotonic() - began:.1f} s", flush=True)
            except (RuntimeError, subprocess.TimeoutExpired) as exc:
                failed += 1
                print(f"{name:<24}FAILS   {exc}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
