"""An MCP server over HTTP in a thread, which answers as a test says: as servers in the field do."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Asked", "FieldServer", "field_server"]

Answer = Callable[["Asked"], Any]


class Asked:
    """One request, and the ways to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, message: Any) -> None:
        self.handler, self.message = handler, message
        self.headers = handler.headers
        self.verb, self.path = handler.command, handler.path
        self.method = message.get("method", "") if isinstance(message, dict) else ""
        self.params: dict[str, Any] = (message.get("params") or {}) if isinstance(message, dict) else {}
        self.id = message.get("id") if isinstance(message, dict) else None

    def reply(self, status: int, body: bytes | str = b"", kind: str = "application/json", **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def result(self, result: Any, **headers: str) -> None:
        self.reply(200, json.dumps({"jsonrpc": "2.0", "id": self.id, "result": result}), **headers)

    def error(self, code: int, message: str, status: int = 200, id: Any = ...) -> None:
        error = {"jsonrpc": "2.0", "id": self.id if id is ... else id, "error": {"code": code, "message": message}}
        self.reply(status, json.dumps(error))

    def stream(self, text: str) -> None:
        self.reply(200, text, "text/event-stream")


class FieldServer:
    """Answers `initialize`, `tools/list` and `tools/call` (with `done`), unless told otherwise.

    Args:
        answers: method, or HTTP verb, → what answers it.

    Attributes:
        seen: the requests, in their order.
    """

    def __init__(self, port: int, answers: dict[str, Answer]) -> None:
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.answers = answers
        self.tools = ["go"]
        self.seen: list[Asked] = []
        self.stop: Callable[[], None] = lambda: None
        """End it, within the block."""

    def count(self, method: str) -> int:
        return sum(method in (one.method, one.verb) for one in self.seen)

    def take(self, asked: Asked) -> None:
        self.seen.append(asked)
        special = self.answers.get(asked.method or asked.verb)
        if special is not None:
            special(asked)
        else:
            self.answer(asked)

    def answer(self, asked: Asked) -> None:
        """As a well-behaved server does."""
        if asked.verb != "POST":
            asked.reply(405 if asked.verb == "GET" else 200)
        elif asked.id is None:
            asked.reply(202)
        elif asked.method == "initialize":
            asked.result(
                {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "f", "version": "1"},
                },
                Mcp_Session_Id=f"s{self.count('initialize')}",
            )
        elif asked.method == "tools/list":
            asked.result({"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in self.tools]})
        elif asked.method == "tools/call":
            asked.result({"content": [{"type": "text", "text": "done"}]})
        elif asked.method == "ping":
            asked.result({})
        else:
            asked.error(-32601, "Method not found")


@contextmanager
def field_server(tls: ssl.SSLContext | None = None, **answers: Answer) -> Iterator[FieldServer]:
    """Have one while the block runs. `tools__call=…` answers `tools/call`."""

    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _take(self) -> None:
            if stopped.is_set():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.take(Asked(self, json.loads(body) if body else {}))

        do_GET = do_POST = do_DELETE = _take

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    if tls is not None:
        listening.socket = tls.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    server = FieldServer(listening.server_port, {name.replace("__", "/"): given for name, given in answers.items()})
    if tls is not None:
        server.url = server.url.replace("http", "https", 1)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        listening.shutdown()
        listening.server_close()
        thread.join(5)

    server.stop = stop
    try:
        yield server
    finally:
        stop()
