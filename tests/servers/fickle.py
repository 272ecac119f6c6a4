"""An MCP server over stdio that does as a file says, and notes each call: `python fickle.py FOLDER`.

`FOLDER/orders.json` is read at every message: `{"tools": {NAME: {members that differ}}, "sleep": SECONDS, "fail": TEXT,
"die": true}`. Each call is a line of `FOLDER/calls.jsonl`: `{"name", "arguments", "meta", "env"}`. Standard library
only.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

FOLDER = Path(sys.argv[1])
LOCK = threading.Lock()
ARGUMENTS = {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}}
SAFE = {"readOnlyHint": True, "idempotentHint": True}
TOOLS = {
    "look": {"description": "Looks a city up in the register of cities.", "annotations": SAFE},
    "write": {"description": "Writes a city down."},
    "measure": {
        "description": "Measures a city.",
        "annotations": SAFE,
        "outputSchema": {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]},
        "_meta": {"toolscore/latency_class": "instant"},
    },
}


def orders():
    try:
        return json.loads((FOLDER / "orders.json").read_text())
    except (OSError, ValueError):
        return {}


def send(message):
    with LOCK:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def call(request_id, params):
    now, arguments = orders(), params.get("arguments") or {}
    line = {"name": params["name"], "arguments": arguments, "meta": params.get("_meta"), "env": os.environ.get("WHO")}
    with LOCK, open(FOLDER / "calls.jsonl", "a") as ledger:
        ledger.write(json.dumps(line) + "\n")
        ledger.flush()
        number = sum(1 for _ in open(FOLDER / "calls.jsonl"))  # noqa: SIM115
    if now.get("die"):
        os._exit(1)
    time.sleep(now.get("sleep", 0))
    if now.get("fail"):
        result = {"content": [{"type": "text", "text": now["fail"].format(**arguments)}], "isError": True}
    elif arguments.get("city") == "Nowhere":
        result = {"content": [{"type": "text", "text": "nothing is known of 'Nowhere'"}], "isError": True}
    elif params["name"] == "measure":
        result = {"content": [], "structuredContent": now.get("measured", {"size": 3})}
    else:
        text = f"{arguments.get('city')} #{number} {now.get('mark', '')}".strip()
        result = {"content": [{"type": "text", "text": text}]}
    send({"jsonrpc": "2.0", "id": request_id, "result": result})


for text in sys.stdin:
    message = json.loads(text)
    if "id" not in message:
        continue
    method = message.get("method")
    if method == "tools/call":
        threading.Thread(target=call, args=(message["id"], message["params"]), daemon=True).start()
        continue
    if method == "initialize":
        result = {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "fickle", "version": "1"},
        }
    elif method == "tools/list":
        changed = orders().get("tools", {})
        result = {
            "tools": [
                {"name": name, "inputSchema": ARGUMENTS, **members, **changed.get(name, {})}
                for name, members in {**TOOLS, **{name: {} for name in changed if name not in TOOLS}}.items()
                if changed.get(name) is not None or name not in changed
            ]
        }
    else:
        send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": f"no method {method}"}})
        continue
    send({"jsonrpc": "2.0", "id": message["id"], "result": result})
