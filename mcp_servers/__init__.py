"""MCP servers of our own. Each stands alone; the gateway meets them over the wire."""
