"""An MCP server that answers as another was recorded to: an offline double, for tests."""
