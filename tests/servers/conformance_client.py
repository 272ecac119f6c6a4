"""The gateway as the conformance suite's client: a gateway in front of the suite's server, driven by an MCP client.

conformance_client.py URL      (the suite says in the environment which scenario, and what to call)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mcp_types as types
from mcp import Client
from mcp.shared.exceptions import MCPError
from support import running_gateway

CONTEXT = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
EXAMPLES = {"string": "x", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}


async def accept(_context: Any, params: Any) -> types.ElicitResult:
    """A user who fills in what the form proposes."""
    properties = getattr(params, "requested_schema", {}).get("properties", {})
    content = {name: described.get("default", True) for name, described in properties.items()}
    return types.ElicitResult(action="accept", content=content)


def arguments(name: str, tools: dict[str, types.Tool]) -> dict[str, Any]:
    """Something that a tool takes."""
    if name == "json_schema_echo":
        return {"schema": next(tool.input_schema for other, tool in tools.items() if other != name)}
    schema = tools[name].input_schema
    return {
        key: EXAMPLES.get(described.get("type", ""), "x")
        for key, described in schema.get("properties", {}).items()
        if key in schema.get("required", [])
    }


async def drive(url: str) -> None:
    async with Client(url, mode="legacy", elicitation_callback=accept) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        calls = CONTEXT.get("toolCalls") or [{"name": name, "arguments": arguments(name, listed)} for name in listed]
        for call in calls:
            if call["name"] in listed:
                try:
                    await client.call_tool(call["name"], call["arguments"])
                except MCPError as exc:  # the suite's servers do not all have what they list
                    print(f"{call['name']}: {exc}", file=sys.stderr)
        capabilities = client.server_capabilities
        if capabilities.resources is not None:
            for resource in (await client.list_resources()).resources:
                await client.read_resource(resource.uri)
        if capabilities.prompts is not None:
            for prompt in (await client.list_prompts()).prompts:
                await client.get_prompt(prompt.name)


def main() -> None:
    with running_gateway({"suite": {"url": sys.argv[-1]}}) as gateway:
        gateway.wait_for_state("suite", "up")
        asyncio.run(drive(f"{gateway.url}/servers/suite/mcp"))


if __name__ == "__main__":
    main()
