"""Twenty-three servers that people use, in one file: do they come up, how soon is the first answer, what do they cost?

`make known-servers` fetches them from the registries, so it is no part of `make test`. It prints a table, and fails if
a server neither comes up nor says in one line why, or if a figure is over its bound.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from support import GatewayProcess, command_of, running_gateway

FILE = Path(__file__).with_name("known_servers.json")
START_SECONDS = 300
IDLE_SECONDS = 20
FIRST_ANSWER_SECONDS = 1.5
IDLE_CPU = 0.01
"""Of a core, the gateway's own."""
MAX_MEMORY_MB = 1900
"""Of all servers and what runs them: proportional set size, so that what they share counts once."""


def wait_settled(gateway: GatewayProcess) -> list[dict[str, object]]:
    """Wait until each server is up, or has failed. Returns what is known of them."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        servers = [one for one in gateway.get("/api/v1/servers")["servers"] if one["kind"] == "stdio"]
        open_ = [one["server_id"] for one in servers if one["state"] == "starting"]
        line = f"\r{len(servers) - len(open_)} of {len(servers)} settled; waiting for {', '.join(open_)[:60]:<60}"
        print(line, end="", file=sys.stderr, flush=True)
        if not open_ or time.monotonic() > deadline:
            print(file=sys.stderr)
            return servers
        time.sleep(0.5)


def memory(gateway: GatewayProcess) -> tuple[float, Counts]:
    """MB of everything below the gateway but its recorder and executor; and how many processes of each program."""
    total, counts = 0.0, Counts()
    for process in gateway.family():
        with contextlib.suppress(psutil.Error):
            words = command_of(process)
            if "toolscore.history.recorder" in words or "mcp_servers" in " ".join(words):
                continue
            total += process.memory_full_info().pss / 2**20
            counts.add(words)
    return total, counts


class Counts(dict[str, int]):
    def add(self, words: list[str]) -> None:
        line = " ".join(words)
        kind = "reaper" if "reaper.py" in line else "npm" if "npx-cli" in line or "npm exec" in line else ""
        kind = kind or ("uv" if words and os.path.basename(words[0]) in ("uv", "uvx") else "server")
        self[kind] = self.get(kind, 0) + 1


def main() -> int:
    bad = []
    with tempfile.TemporaryDirectory() as data:
        entries = json.loads(FILE.read_text().replace("${DATA}", data))["mcpServers"]
        settings = f"servers: {{start_timeout_seconds: {START_SECONDS}}}\n"
        for attempt in ("cold", "warm"):
            with running_gateway(entries, settings=settings, python=True, start=False) as gateway:
                began = time.monotonic()
                gateway.start(ready=False)
                first = None
                while first is None and time.monotonic() - began < 30:
                    with contextlib.suppress(httpx.TransportError):
                        answer = gateway.execute("python__python_execute", {"code": "6 * 7"})
                        first = time.monotonic() - began if answer["success"] else None
                servers = wait_settled(gateway)
                settled = time.monotonic() - began
                if attempt == "cold":
                    continue
                time.sleep(5)
                used, process = [], psutil.Process(gateway.pid)
                for _ in range(2):
                    used.append(sum(process.cpu_times()[:2]))
                    time.sleep(IDLE_SECONDS if len(used) == 1 else 0)
                cpu = (used[1] - used[0]) / IDLE_SECONDS
                total, counts = memory(gateway)
                servers = [one for one in gateway.get("/api/v1/servers")["servers"] if one["kind"] == "stdio"]
    for server in servers:
        error = str(server["last_error"] or "")
        print(f"{server['server_id']:<14}{server['state']:<9}{server['tools']:>4} tools  {error[:150]}")
        if server["state"] not in ("up", "idle") and (not error or "\n" in error):
            bad.append(f"{server['server_id']} does not say what is missing")
    up = sum(server["state"] in ("up", "idle") for server in servers)
    print(f"\n{up} of {len(servers)} are up; the first answer came after {first or 99:.2f} s, all had settled after "
          f"{settled:.0f} s; idle CPU {cpu:.2%} of a core; {total:,.0f} MB, {dict(counts)}")  # fmt: skip
    if first is None or first > FIRST_ANSWER_SECONDS:
        bad.append(f"the first answer came after {first} s, over {FIRST_ANSWER_SECONDS}")
    if cpu > IDLE_CPU:
        bad.append(f"idle CPU is {cpu:.2%}")
    if total > MAX_MEMORY_MB:
        bad.append(f"they take {total:,.0f} MB, over {MAX_MEMORY_MB:,}")
    print("\n".join(bad))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
