"""What goes between server, zygote and child: commands, requests, answers, all bounded. Standard library only.

The answer is data from an untrusted process: it is taken apart by lengths, never unpickled, and whose it is was decided
by the channel that it came over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

__all__ = [
    "CALL",
    "CALL_HEAD",
    "CANCEL",
    "CHANNEL",
    "COMMAND",
    "CONFINING_TIERS",
    "CPU_GRACE_SECONDS",
    "LIMITS",
    "MAX_ANSWER_BYTES",
    "MAX_CALL_BYTES",
    "MAX_FILES",
    "MAX_FILES_BYTES",
    "MAX_IMAGES",
    "MAX_IMAGES_BYTES",
    "MAX_INODES",
    "MAX_MESSAGE_CHARS",
    "MAX_PATH_CHARS",
    "MAX_RESULT_CHARS",
    "MAX_TRACEBACK_CHARS",
    "MAX_TYPE_CHARS",
    "REPLY",
    "REPLY_HEAD",
    "REPORT",
    "REQUEST",
    "WITH_TOOLS",
    "Answer",
    "BadAnswer",
    "Mode",
    "Op",
    "Request",
    "answer_length",
    "call_length",
    "decode_answer",
    "decode_request",
    "encode_answer",
    "encode_request",
    "encode_result",
    "reply_frame",
    "request_length",
]

CONFINING_TIERS = "ABC"
"""The tiers of `layers.py` at which code is run."""
MAX_INODES = 4096
"""Files and folders of a call."""
CHANNEL = 3
"""The descriptor of its socket in a child."""
CPU_GRACE_SECONDS = 2
"""CPU time that a call may use beyond its time limit."""
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_RESULT_CHARS = 100_000
MAX_TYPE_CHARS = 200
MAX_MESSAGE_CHARS = 10_000
MAX_TRACEBACK_CHARS = 50_000
MAX_IMAGES = 16
MAX_IMAGES_BYTES = 6 * 1024 * 1024
MAX_FILES = 64
MAX_FILES_BYTES = 8 * 1024 * 1024
MAX_PATH_CHARS = 1000
LIMITS = ("", "time", "memory", "disk", "file_size", "files", "images", "open_files", "processes", "answer", "result")
"""The limits that a child may name in its answer; empty: none."""

LENGTH = struct.Struct("<I")
REQUEST = struct.Struct("<IBdIIH")
"""length of the rest, mode, seconds, bytes of code, of input, number of files"""
FILE = struct.Struct("<HI")
ANSWER = struct.Struct("<IBBHH")
"""length of the rest, exit, whether there is a result, number of images, number of files"""
CALL, CANCEL, REPLY = ord("C"), ord("X"), ord("R")
"""What the fifth byte of a frame says: code asks for a tool, does not want it any more, is answered. An answer has its
exit there, a request its mode."""
WITH_TOOLS = 0x40
"""Added to a request's mode: the code may call tools, so many at a time as the request's last two bytes say."""
CALL_HEAD = struct.Struct("<IBI")
"""length of the rest, CALL or CANCEL, number; JSON follows a CALL. The numbers are the child's own."""
REPLY_HEAD = struct.Struct("<IBId")
"""length of the rest, REPLY, number of the call, seconds that the code has left; JSON follows."""
MAX_CALL_BYTES = 4 * 1024 * 1024
AT_ONCE = struct.Struct("<H")
COMMAND = struct.Struct("=IIII")
"""op, id, slot, argument: from the server to a zygote, see `Op`."""
REPORT = struct.Struct("=IIIiiIQQQ")
"""exit id, slot, new id, status, error, minor faults, user and system µs, resident KB: to the pool, with three
descriptors (channel, stdout, stderr) when there is a new child."""

NOT_SENT = 0xFFFFFFFF
"""The length of a file that was too large to come along; its size follows in eight bytes."""
SIZE = struct.Struct("<Q")


MAX_HINT_CHARS = 100


class Op:
    """A command to a zygote: kill, interrupt, stop or continue the child of this id and slot, or say how many shall
    live. An interrupt ends the code as its clock does, and the child can answer.
    """

    KILL = ord("K")
    INTERRUPT = ord("I")
    STOP = ord("S")
    CONTINUE = ord("C")
    TARGET = ord("T")


class Mode:
    """What a child does with its namespace: run once and end, keep it, share it with everybody, or reset it."""

    ONCE = 0
    SESSION = 1
    PERSISTENT = 2
    RESET = 3
    RESTRICTED = 4


@dataclass(slots=True)
class Request:
    """One piece of code to run. Paths in `files` are relative to the working folder.

    Attributes:
        tools_at_once: how many calls of tools it may have under way; 0: it has no tools.
    """

    code: bytes
    mode: int = Mode.ONCE
    seconds: float = 30.0
    input: bytes = b""
    files: list[tuple[str, bytes]] = field(default_factory=list)
    tools_at_once: int = 0


@dataclass(slots=True)
class Answer:
    """What came of a request.

    Attributes:
        exit: ok, error, memory or timeout.
        limits: the one of `LIMITS` that the code met.
        images: PNG.
        files: path and content, or the size in bytes of a file that was too large to be sent.
    """

    exit: str = "ok"
    result: str | None = None
    error_type: str = ""
    error_message: str = ""
    traceback: str = ""
    limits: str = ""
    images: list[bytes] = field(default_factory=list)
    files: list[tuple[str, bytes | int]] = field(default_factory=list)


class BadAnswer(ValueError):
    """The bytes are no answer."""


EXITS = ("ok", "error", "memory", "timeout")


def encode_request(request: Request) -> bytes:
    parts = [request.code, request.input]
    for path, content in request.files:
        name = path.encode()
        parts += [FILE.pack(len(name), len(content)), name, content]
    if request.tools_at_once:
        parts.append(AT_ONCE.pack(request.tools_at_once))
    body = b"".join(parts)
    head = REQUEST.pack(
        REQUEST.size - LENGTH.size + len(body),
        request.mode | (WITH_TOOLS if request.tools_at_once else 0),
        request.seconds,
        len(request.code),
        len(request.input),
        len(request.files),
    )
    return head + body


def request_length(start: bytes) -> int:
    """Return the length in bytes of a request, from its first four bytes."""
    length: int = LENGTH.unpack_from(start)[0]
    return LENGTH.size + length


def decode_request(data: bytes) -> Request:
    _, mode, seconds, code, given, count = REQUEST.unpack_from(data)
    at = REQUEST.size
    request = Request(data[at : at + code], mode & ~WITH_TOOLS, seconds, data[at + code : at + code + given])
    at += code + given
    for _ in range(count):
        name, size = FILE.unpack_from(data, at)
        at += FILE.size
        request.files.append((data[at : at + name].decode(), data[at + name : at + name + size]))
        at += name + size
    if mode & WITH_TOOLS:
        (request.tools_at_once,) = AT_ONCE.unpack_from(data, at)
    return request


def call_length(start: bytes | bytearray) -> int:
    """Return the length in bytes of a call, from its first four bytes.

    Raises:
        BadAnswer: it is longer than a call may be.
    """
    length: int = LENGTH.unpack_from(start)[0]
    if not CALL_HEAD.size <= LENGTH.size + length <= CALL_HEAD.size + MAX_CALL_BYTES:
        raise BadAnswer(f"it says that it has {length} bytes")
    return LENGTH.size + length


def reply_frame(number: int, seconds: float, body: bytes) -> bytes:
    """The answer to a call.

    Args:
        seconds: that the code has left from now on.
        body: JSON.
    """
    return REPLY_HEAD.pack(REPLY_HEAD.size - LENGTH.size + len(body), REPLY, number, seconds) + body


def _blob(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


def _text(text: str) -> bytes:
    return _blob(text.encode("utf-8", "backslashreplace"))


def encode_answer(answer: Answer) -> bytes:
    body = b"" if answer.result is None else _text(answer.result)
    if answer.exit != "ok" or answer.limits:
        for text in (answer.error_type, answer.error_message, answer.traceback, answer.limits):
            body += _text(text)
    if answer.images or answer.files:
        parts = [body, *(_blob(image) for image in answer.images)]
        for path, content in answer.files:
            parts.append(_text(path))
            parts.append(LENGTH.pack(NOT_SENT) + SIZE.pack(content) if isinstance(content, int) else _blob(content))
        body = b"".join(parts)
    flags = (answer.result is not None) | (2 if answer.exit != "ok" or answer.limits else 0)
    head = ANSWER.pack(
        ANSWER.size - LENGTH.size + len(body),
        EXITS.index(answer.exit),
        flags,
        len(answer.images),
        len(answer.files),
    )
    return head + body


def encode_result(result: str | None) -> bytes:
    """Encode the answer of a call that has a result and nothing else. It is the fast way for most calls."""
    if result is None:
        return NO_RESULT
    text = result.encode("utf-8", "backslashreplace")
    return ANSWER.pack(ANSWER.size + len(text), 0, 1, 0, 0) + LENGTH.pack(len(text)) + text


NO_RESULT = ANSWER.pack(ANSWER.size - LENGTH.size, 0, 0, 0, 0)


def answer_length(start: bytes) -> int:
    """Return the length in bytes of an answer, from its first four bytes.

    Raises:
        BadAnswer: it is longer than an answer may be.
    """
    length: int = LENGTH.unpack_from(start)[0]
    if not ANSWER.size <= LENGTH.size + length <= MAX_ANSWER_BYTES:
        raise BadAnswer(f"it says that it has {length} bytes")
    return LENGTH.size + length


def decode_answer(data: bytes) -> Answer:
    """Decode an answer.

    Raises:
        BadAnswer: the bytes are no answer.
    """
    try:
        _, number, flags, images, files = ANSWER.unpack_from(data)
        answer = Answer(EXITS[number])
        reader = _Reader(data, ANSWER.size)
        if flags & 1:
            answer.result = reader.text(MAX_RESULT_CHARS + 1)
        if flags & 2:
            answer.error_type = reader.text(MAX_TYPE_CHARS)
            answer.error_message = reader.text(MAX_MESSAGE_CHARS + MAX_HINT_CHARS)
            answer.traceback = reader.text(MAX_TRACEBACK_CHARS)
            answer.limits = reader.text(MAX_TYPE_CHARS)
        if images > MAX_IMAGES + 1 or files > MAX_FILES or answer.limits not in LIMITS:
            raise BadAnswer("it has more images or files than an answer may have, or names a limit that there is not")
        answer.images = [reader.blob() for _ in range(images)]
        for _ in range(files):
            path = reader.text(MAX_PATH_CHARS)
            if path.startswith("/") or "\0" in path or ".." in path.split("/") or not path:
                raise BadAnswer("a file's path leads out of the working folder")
            answer.files.append((path, reader.file()))
        reader.end()
    except (struct.error, IndexError) as exc:
        raise BadAnswer(str(exc)) from exc
    return answer


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise BadAnswer("a part is longer than the whole")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def blob(self) -> bytes:
        return self._take(LENGTH.unpack(self._take(LENGTH.size))[0])

    def text(self, most: int) -> str:
        """At most so many characters; one takes up to ten bytes, as what cannot be encoded is spelt out."""
        data = self.blob()
        if len(data) > 10 * most:
            raise BadAnswer("a text is longer than the child may make it")
        return data.decode("utf-8", "replace")

    def file(self) -> bytes | int:
        size: int = LENGTH.unpack(self._take(LENGTH.size))[0]
        if size != NOT_SENT:
            return self._take(size)
        real: int = SIZE.unpack(self._take(SIZE.size))[0]
        return real

    def end(self) -> None:
        if self._at != len(self._data):
            raise BadAnswer("bytes are left over")
