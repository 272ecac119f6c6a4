"""A stateless MCP server (2026-07-28) over stdio that does as a file says: `python stateless.py FOLDER`.

`FOLDER/orders.json` is read at every message: `{"tools": [NAME, ...], "listen": "refuse" | "hold"}`. A stream that is
held ends when `FOLDER/cut` comes, which is then taken away; it is not acknowledged while `FOLDER/late` is there, and
nothing is told of changes. Each request for tools or for a stream is a line of
`FOLDER/asked`. Standard library only.
"""

import json
import sys
import threading
import time
from pathlib import Path

FOLDER = Path(sys.argv[1])
LOCK = threading.Lock()
INFO = {
    "supportedVersions": ["2026-07-28"],
    "capabilities": {"tools": {"listChanged": True}, "resources": {"subscribe": True}},
    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "stateless", "version": "1"}},
}


def send(message):
    with LOCK:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def hold(request_id, params):
    while (FOLDER / "late").exists():
        time.sleep(0.01)
    told = {"notifications": params["notifications"]}
    send({"method": "notifications/subscriptions/acknowledged", "params": told})
    while not (FOLDER / "cut").exists():
        time.sleep(0.01)
    (FOLDER / "cut").unlink()
    send({"id": request_id, "result": {}})


for text in sys.stdin:
    message = json.loads(text)
    if "id" not in message:
        continue
    method, orders = message.get("method"), json.loads((FOLDER / "orders.json").read_text())
    if method in ("tools/list", "subscriptions/listen"):
        with open(FOLDER / "asked", "a") as asked:
            asked.write(f"{method}\n")
    if method == "server/discover":
        send({"id": message["id"], "result": INFO})
    elif method == "tools/list":
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in orders["tools"]]
        send({"id": message["id"], "result": {"tools": tools}})
    elif method == "resources/list":
        send({"id": message["id"], "result": {"resources": []}})
    elif method == "subscriptions/listen" and orders["listen"] == "hold":
        threading.Thread(target=hold, args=(message["id"], message["params"]), daemon=True).start()
    else:
        send({"id": message["id"], "error": {"code": -32601, "message": f"no method {method}"}})
