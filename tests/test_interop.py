"""Clients and servers that others wrote, on both sides of the gateway, in both eras of the protocol.

The MCP Inspector's command line, fastmcp as client and as server, the official SDK 1.x on a WebSocket as server, and
`server-everything`, whose tools ask their client.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client
from support import ROOT, SERVERS, GatewayProcess, free_port, odd, running_gateway, wait_for

pytestmark = pytest.mark.long

NPM = SERVERS / "npm" / "node_modules"
INSPECTOR = NPM / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
FASTMCP = SERVERS / "fastmcp" / "bin" / "python"
SDK1 = SERVERS / "sdk1" / "bin" / "python"

FASTMCP_SERVER = """
import sys
from fastmcp import Context, FastMCP

server = FastMCP("fast")


@server.tool
def multiply(a: int, b: int) -> int:
    return a * b


@server.tool
async def order(ctx: Context) -> str:
    answer = await ctx.elicit("How many?", response_type=int)
    return f"{answer.action}: {getattr(answer, 'data', None)}"


@server.resource("fast://greeting")
def greeting() -> str:
    return "hello from fastmcp"


@server.prompt
def review(code: str) -> str:
    return f"Review this: {code}"


if sys.argv[1] == "stdio":
    server.run(show_banner=False)
else:
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False)
"""

SDK1_SERVER = """
import sys
import uvicorn
from mcp.server.fastmcp import FastMCP
from mcp.server.websocket import websocket_server
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

server = FastMCP("sdk1")


@server.tool()
def shout(text: str) -> str:
    return text.upper()


async def endpoint(socket):
    async with websocket_server(socket.scope, socket.receive, socket.send) as (read, write):
        await server._mcp_server.run(read, write, server._mcp_server.create_initialization_options())


app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""

FASTMCP_CLIENT = """
import asyncio, json, sys
from fastmcp import Client


async def answer(message, response_type, params, context):
    return {"value": 7}


async def main():
    async with Client(sys.argv[1], elicitation_handler=answer, mode=sys.argv[2]) as client:
        product = await client.call_tool("fast__multiply", {"a": 6, "b": 7})
        ordered = await client.call_tool("fast__order", {}, raise_on_error=False)
        code = "print(tools.fast.multiply(a=6, b=7))\\ntry: print(tools.fast.order())\\nexcept ToolError as e: print(e)"
        ran = await client.call_tool("toolscore__run_code", {"code": code, "tools": ["fast"]})
        greeting = await client.read_resource("fast://greeting")
        prompt = await client.get_prompt("fast__review", {"code": "x = 1"})
        print(json.dumps({
            "tools": sorted(tool.name for tool in await client.list_tools()),
            "product": product.data,
            "ordered": ordered.content[0].text,
            "ran": ran.content[0].text,
            "greeting": greeting[0].text,
            "prompt": prompt.messages[0].content.text,
        }))


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("interop")
    (folder / "fast.py").write_text(FASTMCP_SERVER)
    (folder / "sdk1.py").write_text(SDK1_SERVER)
    fast_port, ws_port = free_port(), free_port()
    others = [
        subprocess.Popen([str(FASTMCP), str(folder / "fast.py"), str(fast_port)], stderr=subprocess.DEVNULL),
        subprocess.Popen([str(SDK1), str(folder / "sdk1.py"), str(ws_port)], stderr=subprocess.DEVNULL),
    ]
    servers = {
        "everything": {
            "command": str(SERVERS / "node"),
            "args": [str(NPM / ".bin" / "mcp-server-everything"), "stdio"],
        },
        "fast": {"url": f"http://127.0.0.1:{fast_port}/mcp"},
        "fast-stdio": {"command": str(FASTMCP), "args": [str(folder / "fast.py"), "stdio"]},
        "sdk1": {"url": f"ws://127.0.0.1:{ws_port}/ws"},
    }
    try:
        with running_gateway(servers, python=True) as process:
            for server_id in servers:
                process.wait_for_state(server_id, "up", seconds=60)
            wait_for(lambda: "everything__get-roots-list" in tool_ids(process))
            yield process
    finally:
        for other in others:
            other.kill()
            other.wait()


def tool_ids(gateway: GatewayProcess) -> list[str]:
    return [tool["tool_id"] for tool in gateway.get("/api/v1/tools", limit=200)["tools"]]


def inspect(url: str, era: str, *arguments: str) -> dict[str, Any]:
    command = [str(SERVERS / "node"), str(INSPECTOR), "--cli", url, "--transport", "http", "--protocol-era", era]
    done = subprocess.run(
        [*command, "--format", "json", *arguments], capture_output=True, text=True, timeout=180, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("era", ["legacy", "auto", "modern"])
def test_the_inspector(gateway: GatewayProcess, era: str) -> None:
    url = f"{gateway.url}/mcp"
    listed = inspect(url, era, "--method", "tools/list")
    assert "everything__echo" in json.dumps(listed)
    called = inspect(url, era, "--method", "tools/call", "--tool-name", "everything__echo", "--tool-arg", "message=hi")
    assert "Echo: hi" in json.dumps(called)
    read = inspect(url, era, "--method", "resources/read", "--uri", "fast://greeting")
    assert "hello from fastmcp" in json.dumps(read)
    prompt = inspect(
        f"{gateway.url}/servers/everything/mcp", era, "--method", "prompts/get", "--prompt-name", "simple-prompt"
    )
    assert "messages" in json.dumps(prompt)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_fastmcp_as_client(gateway: GatewayProcess, mode: str) -> None:
    done = subprocess.run(
        [str(FASTMCP), "-c", FASTMCP_CLIENT, f"{gateway.url}/mcp", mode], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["product"] == 42
    # fastmcp's server speaks both eras and asks in sessions only: it is spoken to in the era of its client.
    assert ("accept: 7" if mode == "legacy" else "unavailable on 2026-07-28") in seen["ordered"]
    assert seen["ran"].startswith("42\n"), "code that calls tools, through the same client"
    assert "accept: 7" in seen["ran"], "which is asked in its name"
    assert seen["greeting"] == "hello from fastmcp"
    assert "x = 1" in seen["prompt"]
    assert {"fast__multiply", "everything__echo", "sdk1__shout"} <= set(seen["tools"])


def test_the_sdk_of_last_year_as_a_server_on_a_websocket(gateway: GatewayProcess) -> None:
    assert gateway.server("sdk1")["kind"] == "websocket"
    assert gateway.text("sdk1__shout", {"text": "loud"}) == "LOUD"


class Person:
    """A user with answers, and a note of what was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[str] = []

    async def elicit(self, _context: Any, params: Any) -> types.ElicitResult:
        self.asked.append("elicitation")
        return types.ElicitResult(action="accept", content={"name": self.name, "check": True})

    async def sample(self, _context: Any, params: Any) -> types.CreateMessageResult:
        self.asked.append("sampling")
        content = types.TextContent(type="text", text=f"{self.name} was sampled")
        return types.CreateMessageResult(role="assistant", content=content, model="test")

    async def roots(self, _context: Any) -> types.ListRootsResult:
        self.asked.append("roots")
        root = types.Root.model_validate({"uri": f"file:///home/{self.name}", "name": self.name})
        return types.ListRootsResult(roots=[root])

    def client(self, url: str, mode: str) -> Client:
        return Client(
            url,
            mode=mode,  # type: ignore[arg-type]
            elicitation_callback=self.elicit,
            sampling_callback=self.sample,
            list_roots_callback=self.roots,
        )


def said(result: Any) -> str:
    return "\n".join(block.text for block in result.content if hasattr(block, "text"))


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize("address", ["/mcp", "/servers/everything/mcp"])
def test_server_everything_asks_its_client(gateway: GatewayProcess, mode: str, address: str) -> None:
    prefix = "everything__" if address == "/mcp" else ""

    async def run() -> None:
        person = Person("ada")
        async with person.client(gateway.url + address, mode) as client:
            elicited = await client.call_tool(f"{prefix}trigger-elicitation-request", {})
            assert "ada" in said(elicited)
            sampled = await client.call_tool(f"{prefix}trigger-sampling-request", {"prompt": "hello", "maxTokens": 10})
            assert "ada was sampled" in said(sampled)
            roots = await client.call_tool(f"{prefix}get-roots-list", {})
            assert "file:///home/ada" in said(roots), said(roots)
        assert set(person.asked) == {"elicitation", "sampling", "roots"}

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_each_client_is_asked_its_own_questions(gateway: GatewayProcess, mode: str) -> None:
    async def one(person: Person) -> None:
        async with person.client(f"{gateway.url}/servers/everything/mcp", mode) as client:
            for _ in range(3):
                answer = said(await client.call_tool("trigger-elicitation-request", {}))
                assert re.findall(r"ada|bob|eve", answer)[0] == person.name
            roots = said(await client.call_tool("get-roots-list", {}))
            assert f"/home/{person.name}" in roots

    async def run() -> None:
        people = [Person(name) for name in ("ada", "bob", "eve")]
        await asyncio.gather(*map(one, people))
        assert all(person.asked.count("elicitation") == 3 for person in people)

    asyncio.run(run())


def test_a_caller_without_a_user_gets_a_clear_answer(gateway: GatewayProcess) -> None:
    answer = gateway.execute("fast__order")
    assert "elicitation" in json.dumps(answer), answer
    stdio = gateway.execute("fast-stdio__order")
    assert "elicitation" in json.dumps(stdio) or "input" in json.dumps(stdio), stdio


def test_completion_and_templates_reach_their_server(gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with Client(f"{gateway.url}/mcp") as client:
            prompts = [prompt.name for prompt in (await client.list_prompts()).prompts]
            assert {"everything__completable-prompt", "fast__review"} <= set(prompts)
            reference = types.PromptReference(type="ref/prompt", name="everything__completable-prompt")
            completed = await client.complete(reference, {"name": "department", "value": "E"})
            assert "Engineering" in completed.completion.values
            templates = [found.uri_template for found in (await client.list_resource_templates()).resource_templates]
            assert any("demo://resource/dynamic/text/" in template for template in templates)
            read = await client.read_resource("demo://resource/dynamic/text/3")
            assert read.contents[0].uri == "demo://resource/dynamic/text/3"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("program", "script"),
    [
        (SDK1, "sdk1.py"),
        (sys.executable, "sdk2.py"),
        (FASTMCP, "fastmcp_client.py"),
        (SERVERS / "node", "typescript1.mjs"),
        (SERVERS / "node", "typescript2.mjs"),
    ],
)
def test_the_clients_of_the_sdks_through_each_door(program: object, script: str, tmp_path: Path) -> None:
    """What `make interop` does with all clients, with those that the tests have anyway."""
    file = ROOT / "tests" / "interop" / "clients" / script
    if file.suffix == ".mjs":  # Node looks for packages beside the script
        (tmp_path / "node_modules").symlink_to(NPM)
        file = Path(shutil.copy(file, tmp_path))
    with running_gateway({"alpha": odd("echo")}, python=True) as process:
        process.wait_for_state("alpha", "up")
        done = subprocess.run(
            [str(program), str(file), process.url, str(Path(sys.executable).with_name("toolscore"))],
            capture_output=True, text=True, timeout=90, check=False,
            env={key: value for key, value in os.environ.items() if not key.startswith("TOOLSCORE_")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr or done.stdout
