"""openai-agents: MCP servers of an agent."""

import asyncio
import sys

from agents.mcp import MCPServerSse, MCPServerStdio, MCPServerStreamableHttp

URL, TOOLSCORE = sys.argv[1:]


async def main():
    for server in (
        MCPServerStreamableHttp({"url": f"{URL}/mcp"}),
        MCPServerSse({"url": f"{URL}/sse"}),
        MCPServerStdio({"command": TOOLSCORE, "args": ["stdio", "--url", URL]}, client_session_timeout_seconds=30),
    ):
        async with server:
            assert "alpha__echo" in {tool.name for tool in await server.list_tools()}
            result = await server.call_tool("alpha__echo", {"text": "hi"})
            assert result.content[0].text == "hi", result


asyncio.run(main())
