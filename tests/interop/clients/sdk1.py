"""The SDK 1.x: streamable HTTP, SSE, stdio."""

import asyncio
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client

URL, TOOLSCORE = sys.argv[1:]


async def talk(streams):
    async with ClientSession(streams[0], streams[1]) as session:
        await session.initialize()
        names = [tool.name for tool in (await session.list_tools()).tools]
        assert "alpha__echo" in names, names
        result = await session.call_tool("alpha__echo", {"text": "hi"})
        assert result.content[0].text == "hi", result


async def main():
    async with streamablehttp_client(f"{URL}/mcp") as streams:
        await talk(streams)
    async with sse_client(f"{URL}/sse") as streams:
        await talk(streams)
    started = StdioServerParameters(command=TOOLSCORE, args=["stdio", "--url", URL])
    async with stdio_client(started) as streams:
        await talk(streams)


asyncio.run(main())
