"""Runs Python for agents: an MCP server of its own, inside the gateway (`server.create_server`) or apart from it.

Nothing is imported here: parts of this package run in bare interpreters inside the sandbox.
"""
