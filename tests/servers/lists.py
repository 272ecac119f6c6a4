"""An MCP server over stdio whose tools a file lists: `python lists.py FILE`. Each answers with its name and arguments.

`FILE` is a JSON array of tools. The argument `say` is answered as it is, `sleep` seconds later where that is given.
Standard library only.
"""

import json
import sys
import threading
import time

TOOLS = json.loads(open(sys.argv[1]).read())  # noqa: SIM115
LOCK = threading.Lock()


def send(message):
    with LOCK:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def call(request_id, params):
    given = params.get("arguments") or {}
    time.sleep(given.get("sleep", 0))
    text = given["say"] if "say" in given else json.dumps([params["name"], given])
    send({"jsonrpc": "2.0", "id": request_id, "result": {"content": [{"type": "text", "text": text}]}})


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    if message["method"] == "tools/call":
        threading.Thread(target=call, args=(message["id"], message["params"]), daemon=True).start()
        continue
    results = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                       "serverInfo": {"name": "lists", "version": "1"}},
        "tools/list": {"tools": TOOLS},
    }  # fmt: skip
    result = results.get(message["method"])
    said = {"result": result} if result else {"error": {"code": -32601, "message": "no such method"}}
    send({"jsonrpc": "2.0", "id": message["id"], **said})
