"""langchain-mcp-adapters: the tools of several servers as LangChain's."""

import asyncio
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient

URL, TOOLSCORE = sys.argv[1:]


async def main():
    client = MultiServerMCPClient(
        {
            "http": {"transport": "streamable_http", "url": f"{URL}/mcp"},
            "stdio": {"transport": "stdio", "command": TOOLSCORE, "args": ["stdio", "--url", URL]},
        }
    )
    for server in ("http", "stdio"):
        tools = {tool.name: tool for tool in await client.get_tools(server_name=server)}
        answer = await tools["alpha__echo"].ainvoke({"text": "hi"})
        assert "hi" in str(answer), answer


asyncio.run(main())
