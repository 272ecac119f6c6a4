"""The executor as a process of its own, spoken to over stdio as any MCP client would."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from mcp_servers.python_executor.sandbox.wire import CONFINING_TIERS
from support.processes import ROOT, SCRIPTS

LOWER = SCRIPTS / "lower.py"
ANSWER_SECONDS = 180
LOOPING_SECONDS = 0.1
"""CPU time that no honest call of a test uses."""


class ExecutorProcess:
    """Calls tools, one or many at a time.

    Args:
        process: the server, with pipes.
        kind: as for `executor_process`.
    """

    def __init__(self, process: subprocess.Popen[str], kind: str) -> None:
        self.process, self.kind = process, kind
        self._next = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._came = threading.Condition()
        self._write = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            with self._came:
                if "id" in message:
                    self._answers[message["id"]] = message
                self._came.notify_all()
        with self._came:
            self._answers[-1] = {}
            self._came.notify_all()

    def send(self, method: str, params: dict[str, Any]) -> int:
        with self._write:
            self._next += 1
            number = self._next
            assert self.process.stdin is not None
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        return number

    def wait(self, number: int) -> dict[str, Any]:
        with self._came:
            assert self._came.wait_for(lambda: number in self._answers or -1 in self._answers, ANSWER_SECONDS)
            return self._answers.pop(number)

    def answered(self) -> set[int]:
        """The numbers whose answers are there and were not waited for."""
        with self._came:
            return set(self._answers)

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        answer = self.wait(self.send(method, params))
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def start(self, code: str, *, principal: str | None = None, **more: Any) -> int:
        params: dict[str, Any] = {"name": "python_execute", "arguments": {"code": code, **more}}
        if principal is not None:
            params["_meta"] = {"toolscore/principal": principal}
        return self.send("tools/call", params)

    def call(self, code: str, **more: Any) -> dict[str, Any]:
        """The whole result."""
        answer = self.wait(self.start(code, **more))
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def run(self, code: str, **more: Any) -> dict[str, Any]:
        """What came of the code."""
        result = self.call(code, **more)
        assert "structuredContent" in result, result
        structured: dict[str, Any] = result["structuredContent"]
        return structured


@contextmanager
def executor_process(kind: str = "A", **options: Any) -> Iterator[ExecutorProcess]:
    """Start one. `kind`: a tier, with the privileges that make it, or `slow` for the way without the C helper."""
    if kind == "slow":
        options = {**options, "pool": {**options.get("pool", {}), "use_helper": False}}
    command = [sys.executable, "-m", "mcp_servers.python_executor", "--stdio", "--options", json.dumps(options)]
    if kind in CONFINING_TIERS and kind != "A":
        command = [sys.executable, str(LOWER), kind, *command]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        executor = ExecutorProcess(process, kind)
        try:
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            executor.request("initialize", **hello)
            assert process.stdin is not None
            process.stdin.write('{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
            process.stdin.flush()
            yield executor
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def looping(pid: int) -> list[psutil.Process]:
    """The calls below this process that compute for longer than any honest one."""
    return [one for one in leaves(pid) if cpu_seconds(one) >= LOOPING_SECONDS]


def leaves(pid: int) -> list[psutil.Process]:
    """The sandboxed processes below this one, at a tier with namespaces: calls, sessions and spares."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "sandbox" and not one.children():
                found.append(one)
    return found


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process; 0 once it has ended."""
    try:
        times = process.cpu_times()
        return float(times.user + times.system) if process.status() != psutil.STATUS_ZOMBIE else 0.0
    except psutil.NoSuchProcess:
        return 0.0
