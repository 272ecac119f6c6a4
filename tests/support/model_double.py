"""A model that says what is written: an HTTP server that speaks OpenAI's chat completions API, streaming.

A script gives, for the first line of a task, the turns of the model. A turn is the text of an answer, or a `Turn` that
does otherwise: a status, a wait, a cut, lines that are no chunks, calls of tools by the API.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["ModelDouble", "Script", "Turn", "model_double"]


@dataclass(frozen=True)
class Turn:
    """One answer of the model, or what goes wrong with it.

    Attributes:
        finish: why it stopped. status: of HTTP; another than 200 has `error` as its message.
        wait: seconds before it answers. lines: sent as they are, in the place of chunks. usage: whether tokens are
            counted. dies: in the middle.
    """

    text: str = ""
    finish: str = "stop"
    status: int = 200
    error: str = "no"
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    lines: tuple[str, ...] = ()
    usage: bool = True
    dies: bool = False


Script = Callable[[str, list[dict[str, str]], int], "Turn | str"]
"""Gives the turn for a task, the messages so far, and how often it was asked for this task."""


@dataclass
class ModelDouble:
    """The server: its address, what it was asked."""

    url: str
    requests: list[dict[str, Any]]


def scripted(turns: Mapping[str, Sequence[Turn | str]]) -> Script:
    """The script of written turns, by the beginning of the task. The last turn is said again and again."""

    def say(task: str, messages: list[dict[str, str]], count: int) -> Turn | str:
        for beginning, written in turns.items():
            if task.startswith(beginning):
                return written[min(count, len(written) - 1)]
        return Turn(status=400, error=f"no turns are written for {task!r}")

    return say


@contextlib.contextmanager
def model_double(turns: Mapping[str, Sequence[Turn | str]] | Script, key: str = "none") -> Iterator[ModelDouble]:
    """Serve while inside.

    Args:
        key: what callers must show.
    """
    script = turns if callable(turns) else scripted(turns)
    counts: dict[str, int] = {}
    requests: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.headers["authorization"] != f"Bearer {key}":
                self.answer(Turn(status=401, error="the key is wrong"))
                return
            task = body["messages"][1]["content"].removeprefix("The task:\n").split("\n", 1)[0]
            with lock:
                requests.append(body)
                count = counts[task] = counts.get(task, -1) + 1
            turn = script(task, body["messages"], count)
            self.answer(Turn(turn) if isinstance(turn, str) else turn, body)

        def answer(self, turn: Turn, body: dict[str, Any] | None = None) -> None:
            time.sleep(turn.wait)
            if turn.status != 200:
                data = json.dumps({"error": {"message": turn.error, "type": "double"}}).encode()
                self.send_response(turn.status)
                for name, value in turn.headers.items():
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client has gone
                for line in turn.lines:
                    self.wfile.write(line.encode())
                if turn.lines:
                    return
                for start in range(0, len(turn.text), 20):
                    self.send({"content": turn.text[start : start + 20]})
                    if turn.dies:
                        return
                self.send({}, turn.finish)
                if turn.usage and body is not None:
                    read = sum(len(message["content"]) for message in body["messages"]) // 4
                    usage = {"prompt_tokens": read, "completion_tokens": len(turn.text) // 4, "total_tokens": 0}
                    self.send_raw({"choices": [], "usage": usage})
                self.wfile.write(b"data: [DONE]\n\n")

        def send(self, delta: dict[str, Any], finish: str | None = None) -> None:
            self.send_raw({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        def send_raw(self, chunk: dict[str, Any]) -> None:
            whole = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "double", **chunk}
            self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield ModelDouble(f"http://127.0.0.1:{server.server_port}/v1", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
