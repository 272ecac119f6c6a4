"""A client that starts a command which speaks MCP: mcp-remote, and ours."""

import json
import subprocess
import sys

command = sys.argv[1:]
hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a client", "version": "1"}}
messages = [
    {"id": 1, "method": "initialize", "params": hello},
    {"method": "notifications/initialized"},
    {"id": 2, "method": "tools/call", "params": {"name": "alpha__echo", "arguments": {"text": "hi"}}},
]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
    assert process.stdin
    assert process.stdout
    for message in messages:
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        process.stdin.flush()
        while "id" in message:
            answer = json.loads(process.stdout.readline())
            if answer.get("id") == message["id"]:
                break
    assert answer["result"]["content"][0]["text"] == "hi", answer
    process.terminate()
