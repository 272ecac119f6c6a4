"""What the gateway is measured against and in front of: `python -m toolscore.bench.echo KIND PORT [TOOLS]`.

`mcp` is an MCP server as lean as one can be (raw ASGI, both eras), so that it is never the bottleneck; `fastapi` is the
floor, a bare FastAPI echo; `stdio` is the same server over stdio.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

__all__ = ["main"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def tools(count: int) -> list[dict[str, Any]]:
    """`count` echo tools, with descriptions and schemas of realistic size."""
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "The text to return"},
            "limit": {"type": "integer", "minimum": 1, "description": "At most so many characters"},
            "trim": {"type": "boolean", "description": "Without blanks around it"},
        },
        "required": ["text"],
    }
    description = "Return the given text unchanged, optionally limited in length and without blanks around it."
    names = ["echo", *(f"echo_{number:04d}" for number in range(2, count + 1))]
    return [{"name": name, "description": description, "inputSchema": schema} for name in names]


def answer(request: dict[str, Any], listed: list[dict[str, Any]]) -> bytes:
    method = request.get("method")
    result: dict[str, Any]
    if method == "tools/call":
        text = request["params"]["arguments"]["text"]
        result = {"content": [{"type": "text", "text": text}], "isError": False}
    elif method == "tools/list":
        result = {"tools": listed, "ttlMs": 0, "cacheScope": "public"}
    elif method == "initialize":
        result = {
            "protocolVersion": request["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "echo", "version": "1"},
        }
    elif method == "server/discover":
        result = {
            "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}},
            "ttlMs": 0,
            "cacheScope": "public",
        }
    else:
        result = {}
    result["resultType"] = "complete"
    return _encode({"jsonrpc": "2.0", "id": request.get("id"), "result": result})


def mcp_app(count: int) -> Any:
    listed = tools(count)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = _decode(body) if body else {}
        known = "id" in request
        reply = answer(request, listed) if known else b""
        status = 200 if known else 202 if body else 405
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    return app


def fastapi_app() -> Any:
    from fastapi import FastAPI
    from pydantic import BaseModel

    class EchoIn(BaseModel):
        text: str

    class EchoOut(BaseModel):
        text: str

    async def echo(body: Any) -> Any:
        return EchoOut(text=body.text)

    echo.__annotations__ = {"body": EchoIn, "return": EchoOut}  # as strings FastAPI could not resolve local classes
    app = FastAPI()
    app.post("/echo")(echo)

    return app


def serve_stdio(count: int) -> None:
    listed = tools(count)
    for line in sys.stdin.buffer:
        request = _decode(line)
        if "id" in request:
            sys.stdout.buffer.write(answer(request, listed) + b"\n")
            sys.stdout.buffer.flush()


def main() -> None:
    """Serve until ended."""
    kind, port = sys.argv[1], int(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    if kind == "stdio":
        serve_stdio(count)
        return
    import uvicorn

    app = fastapi_app() if kind == "fastapi" else mcp_app(count)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off", access_log=False)


if __name__ == "__main__":
    main()
