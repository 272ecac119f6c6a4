"""MCP servers over stdio that behave as some do in the wild: `python odd.py KIND [ARGUMENT]`. Standard library only."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

KIND = sys.argv[1]
ARGUMENT = sys.argv[2] if len(sys.argv) > 2 else ""
LOCK = threading.Lock()
CANCELLED = set()
LISTED = []


def tool(name, **more):
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "times": {"type": "integer", "minimum": 1}},
        "required": ["text"],
    }
    return {"name": name, "description": f"Returns the text ({name}).", "inputSchema": schema, **more}


TOOLS = {
    "many": [tool(f"tool_{number:03d}") for number in range(500)],
    "long": [tool("x" * 120), tool("with.dots/and spaces"), tool("ünïcode")],
}.get(KIND, [tool("echo"), tool("safe", annotations={"readOnlyHint": True}), tool("env"), tool("log")])


def send(message):
    with LOCK:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def answer(request_id, result):
    send({"jsonrpc": "2.0", "id": request_id, "result": result})


def text(value):
    return {"content": [{"type": "text", "text": value}]}


def call(request_id, params):
    name, arguments = params["name"], params.get("arguments") or {}
    token = (params.get("_meta") or {}).get("progressToken")
    said = arguments.get("text", "")
    if KIND == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if KIND == "huge":
        answer(request_id, text("x" * 20_000_000))
    elif KIND == "nonsense":
        send({"jsonrpc": "2.0", "id": request_id, "result": {"content": "no list", "isError": "maybe"}})
    elif KIND == "refuses":
        error = {"code": -32099, "message": "not today", "data": {"why": "tired"}}
        send({"jsonrpc": "2.0", "id": request_id, "error": error})
    elif KIND == "never":
        pass
    elif KIND == "slow" or said == "slow":
        for step in range(200):
            time.sleep(0.05)
            if request_id in CANCELLED:
                with open(ARGUMENT, "a") as seen:
                    seen.write("cancelled\n")
                return
            if token is not None:
                progress = {"progressToken": token, "progress": step, "total": 200, "message": f"step {step}"}
                send({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})
            if said.startswith("progress") and step == 2:
                break
        answer(request_id, text("done"))
    elif said.startswith("sleep "):
        time.sleep(float(said.removeprefix("sleep ")))
        answer(request_id, text("slept"))
    elif name == "env":
        answer(request_id, text(json.dumps(dict(os.environ))))
    elif name == "log":
        with open(ARGUMENT, "a") as seen:
            seen.write(said + "\n")
        answer(request_id, text("written"))
    elif KIND == "latin":  # not UTF-8, behind a notification that is well-formed and means nothing, in one write
        with LOCK:
            sys.stdout.buffer.write(
                b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":[1]}}\n'
                b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"caf\xe9"}]}}\n' % request_id
            )
            sys.stdout.buffer.flush()
    elif KIND == "secretive":  # says that its list changed, and does not tell how
        send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        answer(request_id, text("told"))
    elif KIND == "changing":
        TOOLS.append(tool(said))
        send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        answer(request_id, text("added"))
    elif KIND == "farewell":  # much to say, the answer last, and gone
        notes = '{"jsonrpc":"2.0","method":"notifications/a"}\n' * 3000
        with LOCK:
            last = {"jsonrpc": "2.0", "id": request_id, "result": text("the last word")}
            sys.stdout.write(notes + json.dumps(last) + "\n")
            sys.stdout.flush()
            os._exit(0)
    elif KIND == "large":
        answer(request_id, text("x" * int(said)))
    elif KIND == "exact":
        send_raw = (
            '{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":{"big":%s,"e":1.50e1},"new":[null]}}'
        )
        with LOCK:
            sys.stdout.write(send_raw % (request_id, "123456789012345678901234567890") + "\n")
            sys.stdout.flush()
    else:
        answer(request_id, text(said))


def main():
    if KIND == "crashes":
        print("cannot open the frobnicator", file=sys.stderr)
        sys.exit(3)
    if KIND == "family":  # a grandchild in a session of its own, as a daemon would start
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
        with open(ARGUMENT, "a") as seen:
            seen.write(f"{child.pid}\n")
    if KIND == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if KIND == "floods":  # lines without end, that are no messages or mean nothing
        time.sleep(0.5)
        lines = {"breaks": "\n", "words": "x\n", "notes": '{"jsonrpc":"2.0","method":"a"}\n'}[ARGUMENT] * 50_000

        def flood():
            time.sleep(0.5)
            while True:
                with LOCK:
                    sys.stdout.write(lines)

        threading.Thread(target=flood, daemon=True).start()
    if KIND == "junk":
        print("Welcome to my server!\n{not json}\n[1, 2]\n", flush=True)
    for line in sys.stdin:
        if KIND == "silent":
            continue
        request = json.loads(line)
        method, request_id = request.get("method"), request.get("id")
        if method == "initialize":
            result = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": f"odd-{KIND}", "version": "1"},
            }
            answer(request_id, result)
        elif method == "tools/list":
            if KIND == "junk":
                print("listing...", flush=True)
            if KIND == "empties":
                answer(request_id, {"tools": [{} for _ in range(1_000_000)], "nextCursor": str(time.time())})
                continue
            listed = LISTED.append(1) or len(LISTED)
            if KIND == "secretive" and listed > 1:
                continue
            start = int((request.get("params") or {}).get("cursor") or 0)
            page = {"tools": TOOLS[start : start + 200]}
            if start + 200 < len(TOOLS):
                page["nextCursor"] = str(start + 200)
            answer(request_id, page)
        elif method == "tools/call":
            threading.Thread(target=call, args=(request_id, request["params"]), daemon=True).start()
        elif method == "notifications/cancelled":
            CANCELLED.add(request["params"]["requestId"])
        elif request_id is not None and method is not None:
            answer(request_id, {})
    if KIND == "stubborn":  # neither a closed stdin nor SIGTERM moves it
        time.sleep(1000)


main()
