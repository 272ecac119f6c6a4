"""The SDK 2.x: streamable HTTP in both eras, and stdio."""

import asyncio
import sys

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

URL, TOOLSCORE = sys.argv[1:]


async def main():
    started = StdioServerParameters(command=TOOLSCORE, args=["stdio", "--url", URL])
    for mode in ("legacy", "2026-07-28"):
        for place in (f"{URL}/mcp", stdio_client(started)):
            async with Client(place, mode=mode) as client:
                assert "alpha__echo" in {tool.name for tool in (await client.list_tools()).tools}
                assert (await client.call_tool("alpha__echo", {"text": "hi"})).content[0].text == "hi"


asyncio.run(main())
