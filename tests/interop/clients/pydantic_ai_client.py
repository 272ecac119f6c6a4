"""pydantic-ai: an agent whose model is a double that calls a tool, and writes code that does."""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

try:
    from pydantic_ai.mcp import MCPToolset
except ImportError:
    from pydantic_ai.mcp import MCPServerStreamableHTTP as MCPToolset

URL, TOOLSCORE = sys.argv[1:]


def model(messages, info):
    if len(messages) == 1:
        assert "alpha__echo" in {tool.name for tool in info.function_tools}
        return ModelResponse(parts=[ToolCallPart("alpha__echo", {"text": "hi"})])
    if len(messages) == 3:
        code = f"print({messages[-1].parts[0].content!r:.10}, tools.alpha.echo(text='from code'))"
        return ModelResponse(parts=[ToolCallPart("toolscore__run_code", {"code": code, "tools": ["alpha"]})])
    return ModelResponse(parts=[TextPart(str(messages[-1].parts[0].content))])


async def main():
    agent = Agent(FunctionModel(model), toolsets=[MCPToolset(f"{URL}/mcp")])
    async with agent:
        result = await agent.run("say hi")
    assert "from code" in result.output, result.output


asyncio.run(main())
