"""llama-index: a server's tools as functions."""

import asyncio
import sys

from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

URL, TOOLSCORE = sys.argv[1:]


async def main():
    for client in (BasicMCPClient(f"{URL}/mcp"), BasicMCPClient(TOOLSCORE, args=["stdio", "--url", URL])):
        tools = {tool.metadata.name: tool for tool in await McpToolSpec(client).to_tool_list_async()}
        answer = await tools["alpha__echo"].acall(text="hi")
        assert "hi" in str(answer), answer


asyncio.run(main())
