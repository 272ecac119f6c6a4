"""The gateway as an MCP server, over HTTP and WebSocket, in both eras."""
