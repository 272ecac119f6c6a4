"""A lean closed-loop load generator: some tens of microseconds a call, so that it is not what is measured.

Runs in a process of its own (`python -m toolscore.bench.load`, one job as JSON on stdin, the figures on stdout).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

__all__ = ["OWN_ID", "figures", "main"]

OWN_ID = '"$ID"'
"""In a body it becomes the number of the caller."""

WARM_UP_SECONDS = 0.3

Call = Callable[[], Awaitable[bytes]]


class HttpCaller(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection that sends the same request, or the same few in turn, again and again."""

    def __init__(self, job: dict[str, Any]) -> None:
        requests = [self._request(job, body.encode()) for body in job.get("bodies") or [job["body"]]]
        self._requests = itertools.cycle(requests)
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self.session_id: str | None = None
        """The session that an answer has opened (`Mcp-Session-Id`)."""

    def _request(self, job: dict[str, Any], body: bytes) -> bytes:
        head = [f"POST {job['path']} HTTP/1.1", f"host: 127.0.0.1:{job['port']}", f"content-length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in {"content-type": "application/json", **job["headers"]}.items()]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("closed before the answer"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._buffer[:end])
        body = self._body(head.lower(), end + 4)
        if body is None:
            return
        self._buffer.clear()
        if not head.startswith(b"HTTP/1.1 2"):
            self._answer.set_exception(RuntimeError(f"{head[:40]!r} {body[:300]!r}"))
            return
        if (found := head.lower().find(b"mcp-session-id:")) >= 0:
            self.session_id = head[found + 15 :].split(b"\r\n", 1)[0].strip().decode()
        self._answer.set_result(body)

    def _body(self, head: bytes, start: int) -> bytes | None:
        """The body of an answer; `None` until it is whole. Of one in chunks all that came, their sizes between them."""
        if b"transfer-encoding: chunked" in head:
            return bytes(self._buffer[start:]) if self._buffer.endswith(b"0\r\n\r\n") else None
        found = head.find(b"content-length:")
        size = int(head[found + 15 :].split(b"\r\n", 1)[0]) if found >= 0 else 0
        return bytes(self._buffer[start : start + size]) if len(self._buffer) >= start + size else None

    def close(self) -> None:
        self._transport.close()

    def call(self) -> Awaitable[bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(next(self._requests))
        return self._answer


class SocketCaller:
    """One WebSocket that sends the same request again and again."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job

    async def open(self) -> None:
        subprotocols = [Subprotocol(self._job["subprotocol"])] if self._job["subprotocol"] else None
        url = f"ws://127.0.0.1:{self._job['port']}{self._job['path']}"
        self._socket = await connect(url, subprotocols=subprotocols, compression=None, ping_interval=None)
        for message in self._job["opening"]:
            await self._socket.send(message)
            if '"id"' in message:
                await self._socket.recv()

    async def call(self) -> bytes:
        await self._socket.send(self._job["body"])
        answer = await self._socket.recv()
        return answer.encode() if isinstance(answer, str) else answer


async def _open(job: dict[str, Any]) -> Call:
    if job["kind"] == "ws":
        socket = SocketCaller(job)
        await socket.open()
        return socket.call
    return (await _connected(job)).call


async def _connected(job: dict[str, Any]) -> HttpCaller:
    _, caller = await asyncio.get_running_loop().create_connection(lambda: HttpCaller(job), "127.0.0.1", job["port"])
    return caller


async def _begun(job: dict[str, Any]) -> dict[str, Any]:
    """The job with the header of a session of its own, which the requests of `opening` have begun."""
    headers = dict(job["headers"])
    for body in job["opening"]:
        caller = await _connected({**job, "headers": headers, "body": body})
        await caller.call()
        if caller.session_id is not None:
            headers["mcp-session-id"] = caller.session_id
        caller.close()
    return {**job, "headers": headers}


def _of_caller(job: dict[str, Any], number: int) -> dict[str, Any]:
    """The job of one of several callers: in one session no two requests have the same id at a time."""
    return {**job, "body": job["body"].replace(OWN_ID, str(number))} if "body" in job else job


async def _run(job: dict[str, Any]) -> dict[str, Any]:
    if job["kind"] == "http" and job.get("opening"):
        job = await _begun(job)
    callers = [await _open(_of_caller(job, number)) for number in range(1, job["concurrency"] + 1)]
    expected = job["expect"].encode()
    times: list[float] = []
    made = 0
    begin = time.perf_counter() + WARM_UP_SECONDS
    end = begin + job["seconds"]

    async def work(call: Call) -> None:
        nonlocal made
        while True:
            started = time.perf_counter()
            answer = await call()
            made += 1
            done = time.perf_counter()
            if expected not in answer:
                raise RuntimeError(f"unexpected answer: {answer[:300]!r}")
            if done > end:
                return
            if started >= begin:
                times.append(done - started)

    await asyncio.gather(*(work(call) for call in callers))
    return {**figures(times, job["seconds"]), "made": made}


def figures(times: list[float], seconds: float) -> dict[str, Any]:
    """Latency (milliseconds) and calls a second of measured calls (seconds)."""
    if not times:
        return {"calls": 0, "calls_per_second": 0.0, "p50_ms": None, "p95_ms": None, "p99_ms": None}
    times = sorted(times)

    def quantile(share: float) -> float:
        return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 4)

    return {
        "calls": len(times),
        "calls_per_second": round(len(times) / seconds, 1),
        "p50_ms": quantile(0.5),
        "p95_ms": quantile(0.95),
        "p99_ms": quantile(0.99),
    }


def main() -> None:
    """Carry out the job on stdin."""
    job = json.loads(sys.stdin.read())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_run(job))))


if __name__ == "__main__":
    main()
