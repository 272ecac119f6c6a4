"""FastMCP's client, 2 and 4: streamable HTTP, SSE, and a file of servers as clients have it."""

import asyncio
import sys

from fastmcp import Client

URL, TOOLSCORE = sys.argv[1:]


async def main():
    started = {"mcpServers": {"toolscore": {"command": TOOLSCORE, "args": ["stdio", "--url", URL]}}}
    for place in (f"{URL}/mcp", f"{URL}/sse", started):
        async with Client(place) as client:
            assert "alpha__echo" in {tool.name for tool in await client.list_tools()}
            result = await client.call_tool("alpha__echo", {"text": "hi"})
            assert result.content[0].text == "hi", result
            code = {"code": "print(tools.alpha.echo(text='from code'))", "tools": ["alpha"]}
            result = await client.call_tool("toolscore__run_code", code)
            assert result.content[0].text == "from code", result


asyncio.run(main())
