"""MCP servers over HTTP that behave as some do in the wild: `python odd_http.py PORT`; the path chooses the kind."""

import asyncio
import gzip
import itertools
import json
import sys

OPEN_STREAMS = []
FORGOTTEN = set()
SESSIONS = itertools.count()


def chunk(text):
    data = text.encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer(writer, status, body=b"", kind="application/json", extra=""):
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def stream(writer, *events, end=True):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for event in events:
        writer.write(chunk(event))
        await writer.drain()
    if end:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def message(request, result):
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result})


async def call(kind, writer, request):
    token = (request["params"].get("_meta") or {}).get("progressToken")
    done = message(request, {"content": [{"type": "text", "text": "done"}]})
    if kind == "sse":
        progress = {"progressToken": token, "progress": 1, "total": 2}
        note = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})
        half = len(done) // 2
        # comments, CRLF, an id, an event cut in two: all of them legal
        await stream(
            writer,
            f": hello\r\nid: 1\r\nevent: message\r\ndata: {note}\r\n\r\n",
            f"data: {done[:half]}",
            f"{done[half:]}\n\n",
        )
    elif kind == "dribble":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(4000):
            writer.write(chunk("data:\n" * 1000))
            await writer.drain()
    elif kind == "twice":  # a second answer comes with each, to whoever is next on the connection
        argument = (request["params"].get("arguments") or {}).get("who")
        mine = message(request, {"content": [{"type": "text", "text": f"for {argument}"}]}).encode()
        one = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(mine), mine)
        writer.write(one + one)
        await writer.drain()
    elif kind == "cut":
        await stream(writer, ": begun\n\n", end=False)
        writer.close()
    elif kind == "endless":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(400):
            writer.write(chunk("x" * 100_000))
            await writer.drain()
    elif kind == "packed":
        await answer(writer, 200, gzip.compress(b" " * 50_000_000 + done.encode()), extra="content-encoding: gzip\r\n")
    elif kind == "html":
        await answer(writer, 500, b"<html>Internal Server Error</html>", "text/html")
    elif kind == "forbidden":
        await answer(writer, 401, b"who are you?", "text/plain")
    elif kind == "busy":
        await answer(writer, 503, b"later", "text/plain")
    elif kind == "hangs":
        await asyncio.sleep(1000)
    else:
        await answer(writer, 200, done.encode())


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            kind = path.split("/")[1]
            length = next(
                (int(x.split(":")[1]) for x in head.split("\r\n") if x.lower().startswith("content-length")), 0
            )
            body = await reader.readexactly(length)
            if method == "GET":
                if kind != "changing":
                    await answer(writer, 405)
                    continue
                await stream(writer, ": open\n\n", end=False)
                OPEN_STREAMS.append(writer)
                await asyncio.sleep(1000)
            if method == "DELETE":
                await answer(writer, 200)
                continue
            if kind in ("moved", "elsewhere") and not path.endswith("/"):
                target = path + "/" if kind == "moved" else "http://example.invalid/mcp"
                await answer(writer, 307, extra=f"location: {target}\r\n")
                continue
            request = json.loads(body)
            session = next(
                (x.split(":")[1].strip() for x in head.split("\r\n") if x.lower().startswith("mcp-session-id:")), ""
            )
            if session in FORGOTTEN:
                await answer(writer, 404, b"Session not found", "text/plain")
                continue
            if (
                request["method"] == "tools/call"
                and kind == "forgetful"
                and request["params"]["arguments"].get("forget")
            ):
                FORGOTTEN.add(session)
            name = request["method"]
            if "id" not in request:
                await answer(writer, 202)
            elif name == "initialize":
                result = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {"listChanged": True}},
                    "serverInfo": {"name": kind, "version": "1"},
                }
                await answer(
                    writer, 200, message(request, result).encode(), extra=f"mcp-session-id: {kind}{next(SESSIONS)}\r\n"
                )
            elif name == "tools/list":
                names = ["go", "later"] if OPEN_STREAMS and kind == "changing" else ["go"]
                tools = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
                await answer(writer, 200, message(request, {"tools": tools}).encode())
            elif name == "tools/call":
                if kind == "changing":
                    note = json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
                    for other in OPEN_STREAMS:
                        other.write(chunk(f"data: {note}\n\n"))
                        await other.drain()
                await call(kind, writer, request)
            elif name == "server/discover":
                error = {"code": -32601, "message": "Method not found"}
                await answer(writer, 200, json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode())
            else:
                await answer(writer, 200, message(request, {}).encode())
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


asyncio.run(main())
