"""Runs Python for agents: an MCP server of its own, inside the gateway or apart from it."""

from mcp_servers.python_executor.server import PythonExecutorServer, create_server

__all__ = ["PythonExecutorServer", "create_server"]
