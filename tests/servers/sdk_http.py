"""A server on the official SDK over streamable HTTP: `python sdk_http.py session|both PORT`."""

import sys

import uvicorn
from mcp.server import MCPServer

era, port = sys.argv[1], int(sys.argv[2])
server = MCPServer("calculator")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


app = server.streamable_http_app()


async def session_era_only(scope, receive, send):
    """Refuse the stateless era as a server of last year does."""
    headers = dict(scope.get("headers", []))
    if headers.get(b"mcp-protocol-version") == b"2026-07-28":
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Bad Request: Unsupported protocol version"})
        return
    await app(scope, receive, send)


uvicorn.run(session_era_only if era == "session" else app, host="127.0.0.1", port=port, log_level="error")
