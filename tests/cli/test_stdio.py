"""`toolscore stdio`, as clients start it: a process whose stdin and stdout are MCP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from support import GatewayProcess, command_of, free_port, odd, running_gateway, wait_for, with_config

from toolscore.cli.relay import Relay

HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "test", "version": "1"},
}
STATELESS = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def clean(**variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TOOLSCORE_", "XDG_"))}
    return {**kept, **variables}


class StdioClient:
    """A process of `toolscore stdio`, and what it says."""

    def __init__(self, *arguments: str, env: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolscore", "stdio", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd,
        )  # fmt: skip
        self.heard: list[dict[str, Any]] = []
        self._arrived: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ids = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._arrived.put(json.loads(line))  # whatever is not JSON ends this, and the test

    def write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, method: str, params: dict[str, Any] | None = None) -> int:
        self._ids += 1
        self.write({"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params or {}})
        return self._ids

    def until(self, what: Any, seconds: float = 40) -> dict[str, Any]:
        """The first message for which `what` is true; those before it are in `heard`."""
        while True:
            message = self._arrived.get(timeout=seconds)
            self.heard.append(message)
            if what(message):
                return message

    def answer(self, request_id: int) -> dict[str, Any]:
        return self.until(lambda message: message.get("id") == request_id and "method" not in message)

    def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.answer(self.ask(method, params))

    def hello(self) -> dict[str, Any]:
        answer = self.request("initialize", HELLO)
        self.write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self.request("tools/call", {"name": name, "arguments": arguments})

    def close(self) -> tuple[int, str]:
        """Close its stdin; the exit code and what it wrote to stderr."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        return self.process.wait(60), self.process.stderr.read().decode()


@contextlib.contextmanager
def started(*arguments: str, env: dict[str, str], cwd: Path) -> Iterator[StdioClient]:
    client = StdioClient(*arguments, env=env, cwd=cwd)
    try:
        yield client
    finally:
        client.process.kill()
        client.process.wait()


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.long
def test_the_sdks_client_uses_it_in_both_eras(mode: str, tmp_path: Path) -> None:
    with running_gateway(servers={"alpha": odd("echo"), "slow": odd("slow")}) as gateway:
        gateway.wait_for_state("slow", "up")
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "toolscore", "stdio"],
            env=clean(TOOLSCORE_URL=gateway.url),
            cwd=tmp_path,
        )
        steps: list[float] = []

        async def heard(progress: float, _total: float | None, _message: str | None) -> None:
            steps.append(progress)

        async def run() -> None:
            async with Client(stdio_client(parameters), mode=mode) as client:  # type: ignore[arg-type]
                names = {tool.name for tool in (await client.list_tools()).tools}
                assert "alpha__echo" in names
                result = await client.call_tool("alpha__echo", {"text": "line\nbreak"})
                assert result.content[0].text == "line\nbreak"  # type: ignore[union-attr]
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(2):
                        await client.call_tool("slow__echo", {"text": "x"}, progress_callback=heard)

        asyncio.run(run())
        assert steps
        wait_for(lambda: gateway.server("slow")["calls_in_flight"] == 0, message="for the cancelled call to end")


@pytest.mark.long
def test_a_gateway_that_is_killed_and_comes_back_goes_unnoticed(tmp_path: Path) -> None:
    with running_gateway(servers={"alpha": odd("echo"), "slow": odd("never")}) as gateway:
        gateway.wait_for_state("slow", "up")
        with started(env=clean(TOOLSCORE_URL=gateway.url), cwd=tmp_path) as client:
            client.hello()
            assert client.call("alpha__echo", text="a")["result"]["content"][0]["text"] == "a"
            under_way = client.ask("tools/call", {"name": "slow__echo", "arguments": {"text": "x"}})
            wait_for(lambda: gateway.server("slow")["calls_in_flight"])
            gateway.kill()
            lost = client.answer(under_way)["error"]
            assert lost["data"]["code"] == "outcome_unknown"
            meanwhile = client.ask("tools/list")
            gateway.start()
            names = {tool["name"] for tool in client.answer(meanwhile)["result"]["tools"]}
            assert "alpha__echo" in names
            assert any(message.get("method") == "notifications/tools/list_changed" for message in client.heard)
            gateway.wait_for_state("alpha", "up")
            assert client.call("alpha__echo", text="b")["result"]["content"][0]["text"] == "b"
            assert not any(str(message.get("id", "")).startswith("toolscore-stdio-") for message in client.heard)
            code, said = client.close()
            assert (code, said) == (0, "")


@pytest.mark.long
def test_where_no_gateway_runs_one_is_started_for_all_and_ends_with_the_last(tmp_path: Path) -> None:
    http_port, router_port = free_port(), free_port()
    env = clean(
        HOME=str(tmp_path),
        TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT=str(http_port),
        TOOLSCORE_CORE_SERVICES__TOOLSCORE_MCP__PORT=str(router_port),
        TOOLSCORE_MCP_SERVERS__PYTHON_EXECUTOR__AUTO_START="false",
    )
    state = tmp_path / ".local" / "state" / "toolscore"

    def gateways() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.status() != psutil.STATUS_ZOMBIE and process.environ().get("HOME") == str(tmp_path)
                if ours and "--while-used" in command_of(process):
                    found.append(process)
        return found

    try:
        with started(env=env, cwd=tmp_path) as first, started(env=env, cwd=tmp_path) as second:
            for client in (first, second):
                assert client.hello()["result"]["serverInfo"]["name"] == "toolscore"
                listed = client.request("tools/list")["result"]["tools"]
                assert "toolscore__search_tools" in {tool["name"] for tool in listed}
            assert len(wait_for(lambda: len(found := gateways()) == 1 and found)) == 1
            assert (state / "toolscore.db").exists()
            assert first.close()[0] == 0
            assert second.request("ping")["result"] == {}
            for _ in range(2):  # and is started anew, also where the client itself had started the one that died
                (dying,) = gateways()
                dying.kill()
                wait_for(lambda gone=dying: not gone.is_running() or gone.status() == psutil.STATUS_ZOMBIE)
                assert "error" not in second.request("tools/list")
            assert second.close()[0] == 0
        wait_for(lambda: not gateways(), 120, "for the gateway to end")
    finally:
        for process in gateways():
            process.kill()


@pytest.mark.long
def test_a_refusal_says_what_to_do(gateway: GatewayProcess, tmp_path: Path) -> None:
    with started("--server", "nobody", env=clean(TOOLSCORE_URL=gateway.url), cwd=tmp_path) as client:
        error = client.request("initialize", HELLO)["error"]
        assert "no server 'nobody'" in error["message"]
        assert "alpha" in error["data"]["suggestion"]
    with running_gateway(settings="access: {local_without_key: false}\n") as closed:
        with started(env=clean(TOOLSCORE_URL=closed.url), cwd=tmp_path) as client:
            error = client.request("initialize", HELLO)["error"]
            assert "TOOLSCORE_API_KEY" in error["data"]["suggestion"]
            assert client.close()[0] == 0
        key = with_config(closed, "keys", "create", "ada")
        env = clean(TOOLSCORE_URL=closed.url, TOOLSCORE_API_KEY=key)
        wait_for(lambda: closed.http.get("/api/v1/tools", headers={"authorization": f"Bearer {key}"}).is_success)
        with started(env=env, cwd=tmp_path) as client:
            assert "result" in client.hello()


@pytest.mark.long
def test_what_is_no_message_is_answered_and_the_rest_goes_on(gateway: GatewayProcess, tmp_path: Path) -> None:
    with started(env=clean(TOOLSCORE_URL=gateway.url), cwd=tmp_path) as client:
        assert client.process.stdin is not None
        client.process.stdin.write(b"no json\n\n[]\n" + b"x" * (17 * 1024 * 1024) + b"\n")
        client.process.stdin.flush()
        for code in (-32700, -32600):
            assert client.until(lambda message: message.get("id") is None)["error"]["code"] == code
        assert "over the bound" in client.until(lambda message: message.get("id") is None)["error"]["message"]
        assert client.request("ping")["result"] == {}
        assert len(client.heard) == 4
        large = client.ask("tools/call", {"name": "alpha__echo", "arguments": {"text": "y" * 5_000_000}})
        assert "over the bound" in client.answer(large)["error"]["message"]
        client.hello()
        batch = [{"jsonrpc": "2.0", "id": name, "method": "ping"} for name in ("a", "b")]
        client.process.stdin.write(json.dumps(batch).encode() + b"\n")
        client.process.stdin.flush()
        for name in ("a", "b"):
            assert client.until(lambda message, name=name: message.get("id") == name)["result"] == {}


@pytest.mark.long
def test_a_pipe_gets_all_its_answers_and_sigterm_ends_it(gateway: GatewayProcess, tmp_path: Path) -> None:
    lines = [{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}]
    lines += [{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(2, 50)]
    done = subprocess.run(
        [sys.executable, "-m", "toolscore", "stdio"], input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True, text=True, env=clean(TOOLSCORE_URL=gateway.url), cwd=tmp_path, timeout=180, check=True,
    )  # fmt: skip
    assert sorted(json.loads(line)["id"] for line in done.stdout.splitlines()) == list(range(1, 50))
    with started(env=clean(TOOLSCORE_URL=gateway.url), cwd=tmp_path) as client:
        client.hello()
        client.process.send_signal(signal.SIGTERM)
        assert client.process.wait(10) in (-signal.SIGTERM, 0, 143)


@pytest.mark.long
def test_where_no_gateway_can_be_started_the_client_is_told_why(tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path), "TOOLSCORE_STORAGE__DATA_DIR": "/proc/nope"}
    variables["TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT"] = str(free_port())
    hello = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO})
    done = subprocess.run(
        [sys.executable, "-m", "toolscore", "stdio"], input=f"{hello}\n", capture_output=True, text=True,
        env=clean(**variables), cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert "no gateway can be started" in json.loads(done.stdout)["error"]["message"]


def test_a_question_that_is_taken_back_is_taken_back_under_the_clients_own_id() -> None:
    lines: list[Any] = []

    async def main() -> None:
        relay = Relay("ws://127.0.0.1:1", {}, lambda line: lines.append(json.loads(line)), None)
        await relay._from_gateway(
            b'{"jsonrpc": "2.0", "id": "toolscore-7", "method": "elicitation/create", "params": {}}'
        )
        told = {"requestId": "toolscore-7", "reason": "nobody waits any more"}
        await relay._from_gateway(
            json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": told}).encode()
        )

    asyncio.run(main())
    assert lines[1]["params"]["requestId"] == lines[0]["id"] != "toolscore-7"
