"""An MCP server over HTTP (stateless) that fails at random: `storm.py PORT LEDGER SEED`.

Each execution of a tool is a line `NAME ID` in the ledger, written before the answer. What becomes of a call is chosen
by the seed and the call's id: most are answered; others are refused, executed and not answered, answered by half, by
nonsense or too late, or take the whole process with them. Standard library only.
"""

import asyncio
import json
import os
import random
import sys

PORT, LEDGER, SEED = int(sys.argv[1]), sys.argv[2], sys.argv[3]
FAULTS = {"refuse": 4, "reset": 3, "hang": 1, "half": 3, "nonsense": 3, "no_object": 2, "status": 3, "die": 0.15}
SCHEMA = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
TOOLS = [
    {"name": "once", "inputSchema": SCHEMA, "description": "Does it."},
    {"name": "again", "inputSchema": SCHEMA, "description": "Does it, any number of times.",
     "annotations": {"readOnlyHint": False, "idempotentHint": True}},
]  # fmt: skip
ledger = open(LEDGER, "a")  # noqa: SIM115


def fault_of(name: str, number: int, attempt: int) -> str:
    chance = random.Random(f"{SEED} {name} {number} {attempt}").uniform(0, 100)
    for fault, share in FAULTS.items():
        if chance < share:
            return fault
        chance -= share
    return "answer"


attempts: dict[tuple[str, int], int] = {}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
            message = json.loads(await reader.readexactly(length)) if length else {}
            if not await respond(message, writer):
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


async def respond(message, writer):
    method = message.get("method")
    if method == "tools/call":
        params = message["params"]
        return await called(message["id"], params["name"], params["arguments"]["id"], writer)
    if method == "server/discover":
        result = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "ttlMs": 0,
                  "cacheScope": "public"}  # fmt: skip
    elif method == "tools/list":
        result = {"tools": TOOLS, "ttlMs": 0, "cacheScope": "public"}
    else:
        send(writer, 404, b"{}")
        return True
    send(writer, 200, encode(message["id"], {**result, "resultType": "complete"}))
    return True


async def called(request_id, name, number, writer):
    attempts[name, number] = attempts.get((name, number), 0) + 1
    fault = fault_of(name, number, attempts[name, number])
    if fault == "refuse":
        writer.transport.abort()
        return False
    if fault == "status":
        send(writer, 500, b"not today")
        return True
    ledger.write(f"{name} {number}\n")
    ledger.flush()
    if fault == "die":
        os._exit(1)
    if fault == "reset":
        writer.transport.abort()
        return False
    if fault == "hang":
        await asyncio.sleep(30)
        return False
    body = encode(request_id, {"content": [{"type": "text", "text": f"{name} {number}"}], "resultType": "complete"})
    if fault == "half":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body[: len(body) // 2])
        await writer.drain()
        return False
    if fault == "nonsense":
        body = b"{" + body
    elif fault == "no_object":
        body = encode(request_id, ["no", "object"])
    send(writer, 200, body)
    return True


def encode(request_id, result):
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode()


def send(writer, status, body):
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body
    )


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", PORT)
    async with server:
        await server.serve_forever()


asyncio.run(main())
