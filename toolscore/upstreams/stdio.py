"""MCP over a child's stdin and stdout: one JSON-RPC object a line (MCP, transports: stdio)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import structlog

from toolscore.core.errors import UpstreamProtocolError
from toolscore.core.jsonrpc import NotSent
from toolscore.core.models import UpstreamSpec
from toolscore.core.peer import Peer
from toolscore.upstreams.caller import EVERYBODY, ClientSide, OnAsked
from toolscore.upstreams.connection import OnNotification, PeerConnection
from toolscore.upstreams.process.confine import confined_command, confined_environment
from toolscore.upstreams.process.programs import environment_of, find_program, without_questions
from toolscore.upstreams.process.spawn import ChildProtocol, spawn, stop

__all__ = ["StdioConnection", "open_stdio"]

log = structlog.get_logger(__name__)

MAX_LINES = 500
"""Lines of one server that are read at a turn of the loop."""
MAX_JUNK = 20_000
JUNK_PER_SECOND = 1000
"""Lines that are no messages: so many at once, and so many a second, are borne."""
EDGE_BYTES = 256
"""What is kept of both ends of a line that is too long: the answer's id stands in one of them."""

ID_AT_START = re.compile(rb'^\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d+)\s*,')
ID_AT_END = re.compile(rb',\s*"id"\s*:\s*(\d+)\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')


class _Lines(ChildProtocol):
    """Cuts stdout into lines, and drops what is longer than the bound without keeping it."""

    def __init__(self, max_message_bytes: int) -> None:
        super().__init__()
        self._max = max_message_bytes
        self._buffer = bytearray()
        self._head = b""
        self._dropped = 0
        self._later = b""
        self._junk = self._junk_at = 0.0
        self._cut = False
        self.on_flood: Callable[[], None] = lambda: None
        self.on_line: Callable[[bytes], None] = lambda line: None
        self.on_oversize: Callable[[bytes, bytes, int], None] = lambda head, tail, size: None
        self.ended = asyncio.Event()

    def stdout_received(self, data: bytes) -> None:
        if self._cut:
            return
        if self._later:
            self._later += data
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Take what came, so many lines at a turn of the loop: whatever a server writes, others have their turns."""
        if not self._buffer and not self._dropped and data.isspace():
            self.junk(data.count(b"\n"))
            return
        start = lines = 0
        while (end := data.find(b"\n", start)) >= 0:
            if self._dropped:
                self._end_oversize(data[start:end])
            elif self._buffer:
                self._buffer += data[start:end]
                line, self._buffer = bytes(self._buffer), bytearray()
                self._line(line)
            elif end > start:
                self._line(data[start:end])
            else:
                self.junk(1)
            start = end + 1
            lines += 1
            if lines >= MAX_LINES and start < len(data):
                self._later = data[start:]
                self._read(False)
                asyncio.get_running_loop().call_soon(self._go_on)
                return
        rest = data[start:] if start else data
        if self._dropped:
            self._dropped += len(rest)
            self._buffer = (self._buffer + rest)[-EDGE_BYTES:]
        else:
            self._buffer += rest
            if len(self._buffer) > self._max:
                self._dropped = len(self._buffer)
                self._head = bytes(self._buffer[:EDGE_BYTES])
                self._buffer = self._buffer[-EDGE_BYTES:]

    async def caught_up(self) -> None:
        """Wait until all that was read has been taken."""
        while self._later and not self._cut:
            await asyncio.sleep(0)

    def _go_on(self) -> None:
        data, self._later = self._later, b""
        if not self._cut:
            self._read(True)
            self._take(data)

    def _read(self, on: bool) -> None:
        stdout = self.transport.get_pipe_transport(1) if self.transport is not None else None
        if stdout is not None and not stdout.is_closing():
            reading = cast(asyncio.ReadTransport, stdout)
            (reading.resume_reading if on else reading.pause_reading)()

    def _line(self, line: bytes) -> None:
        if line.isspace():
            self.junk(1)
        else:
            self.on_line(line)

    def junk(self, lines: int) -> None:
        """Count lines that are no messages; a server that writes too many is cut off."""
        now = time.monotonic()
        self._junk = max(0.0, self._junk - (now - self._junk_at) * JUNK_PER_SECOND) + lines
        self._junk_at = now
        if self._junk > MAX_JUNK and not self._cut:
            self._cut = True
            self._read(False)
            self.on_flood()

    def _end_oversize(self, rest: bytes) -> None:
        tail = bytes(self._buffer + rest)[-EDGE_BYTES:]
        self.on_oversize(self._head, tail, self._dropped + len(rest))
        self._dropped = 0
        self._buffer = bytearray()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.ended.set()
        elif fd == 0:
            self.writable.set()

    def process_exited(self) -> None:
        super().process_exited()
        self.ended.set()


class StdioConnection(PeerConnection):
    """A connection that also knows its process."""

    def __init__(self, lines: _Lines, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pid = lines.pid
        self.stderr = lines.stderr


@asynccontextmanager
async def open_stdio(
    spec: UpstreamSpec,
    *,
    on_notification: OnNotification,
    max_message_bytes: int,
    stderr_into: Callable[[object], None],
    probe: bool = True,
    side: ClientSide = EVERYBODY,
    on_asked: OnAsked = lambda unasked: None,
    own_ports: tuple[int, ...] = (),
) -> AsyncIterator[StdioConnection]:
    """Start a server and negotiate with it; leaving ends it and all it started.

    Args:
        max_message_bytes: bound on one message from the server.
        stderr_into: gets the (live) deque of the last stderr lines as soon as the process runs.
        probe: ask for the stateless era first.
        side: for whom the server is started.
        on_asked: told when the server asks something of its clients.
        own_ports: TCP ports that a confined server is kept off.

    Raises:
        CommandNotFound, UpstreamProtocolError, ConnectionLost, RemoteError.
    """
    assert spec.command is not None
    lines = _Lines(max_message_bytes)
    stderr_into(lines.stderr)

    async def send(message: bytes) -> None:
        await lines.writable.wait()
        assert lines.transport is not None
        stdin = cast(asyncio.WriteTransport, lines.transport.get_pipe_transport(0))
        if stdin.is_closing() or lines.exited.done():
            raise NotSent(lines.exit_reason())
        # A line break inside a message can only be white space between its parts.
        stdin.write((message.replace(b"\n", b" ") if b"\n" in message else message) + b"\n")

    def junk(line: bytes) -> None:
        lines.note(b"[stdout, not JSON-RPC] " + line)
        lines.junk(1)

    make_peer = partial(Peer, send, on_junk=junk, lenient=True)
    connection = StdioConnection(lines, make_peer, on_notification, spec.client_features, side, on_asked)
    peer = connection.peer
    lines.on_line = peer.receive
    lines.on_flood = lambda: connection.closed("it writes lines without end that are no messages")

    def oversize(head: bytes, tail: bytes, size: int) -> None:
        found = ID_AT_START.search(head) or ID_AT_END.search(tail)
        lines.note(b"[stdout] a message of %d bytes was dropped" % size)
        error = UpstreamProtocolError(
            f"the server answered {size:,} bytes, over the bound of {max_message_bytes:,}: ask it for less, "
            "or raise `limits.max_result_bytes`"
        )
        if found is None or not peer.fail(int(found[1]), error):
            log.warning("an oversized message from a server answers no call", bytes=size)

    lines.on_oversize = oversize
    watcher = asyncio.create_task(_watch(lines, connection))
    try:
        if spec.confine is None:
            await _start(lines, spec.command, spec)
        else:
            command, args = confined_command(spec.confine, spec.command, spec.args, own_ports)
            environment = confined_environment(spec.confine, spec.env)
            await spawn(lines, command, args, env=environment, cwd=None, pipes=True, whole_environment=True)
        connection.pid = lines.pid
        await connection.negotiate(probe=probe)
        yield connection
    finally:
        watcher.cancel()
        lines.on_line = lambda line: None
        try:
            await asyncio.shield(asyncio.ensure_future(stop(lines)))
        finally:
            connection.closed("the server was stopped")


async def _start(lines: _Lines, command: str, spec: UpstreamSpec) -> None:
    program = await find_program(command, spec.args, spec.env, spec.cwd)
    if program is None:
        args = without_questions(command, spec.args)
        await spawn(lines, command, args, env=spec.env, cwd=spec.cwd, pipes=True)
    else:
        environment = environment_of(program, command, spec.env)
        await spawn(
            lines, program.command, program.args, env=environment, cwd=spec.cwd, pipes=True, whole_environment=True
        )


async def _watch(lines: _Lines, connection: StdioConnection) -> None:
    await lines.ended.wait()
    if not lines.exited.done():
        # Output closed a moment before the exit is reported: the status makes a better reason.
        try:
            async with asyncio.timeout(0.5):
                await asyncio.shield(lines.exited)
        except TimeoutError:
            pass
    await lines.caught_up()
    connection.closed(lines.exit_reason())
