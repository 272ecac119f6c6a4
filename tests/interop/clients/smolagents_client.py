"""smolagents: the tools of a server."""

import sys

from smolagents import MCPClient

URL, TOOLSCORE = sys.argv[1:]

with MCPClient({"url": f"{URL}/mcp", "transport": "streamable-http"}, structured_output=True) as tools:
    echo = next(tool for tool in tools if tool.name == "alpha__echo")
    assert "hi" in str(echo(text="hi"))
    run = next(tool for tool in tools if tool.name == "toolscore__run_code")
    assert "from code" in str(run(code="print(tools.alpha.echo(text='from code'))", tools=["alpha"]))
