"""The executor as an MCP server, in MCP's own shapes: `python_execute`, `python_sessions`, `python_session_reset`.

`PythonExecutorServer` needs no SDK, so the gateway can call it in process; `serving.py` puts the SDK around it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any

from mcp_servers.python_executor.admission import Busy
from mcp_servers.python_executor.engine import Outcome
from mcp_servers.python_executor.executor import Executor
from mcp_servers.python_executor.packages import UnknownPackages
from mcp_servers.python_executor.pool import SandboxUnavailable
from mcp_servers.python_executor.schemas import FILE_SCHEMA, OUTPUT_SCHEMA, PNG, SESSIONS_SCHEMA
from mcp_servers.python_executor.sessions import TooManySessions
from mcp_servers.python_executor.tool_calls import Asker

__all__ = ["CallRefused", "Progress", "PythonExecutorServer", "create_server"]

Progress = Callable[[float, float | None, str], None]
"""Called with progress, total and a message, in the terms of MCP's progress notification."""

MAX_CODE_CHARS = 10_000_000
MAX_FILES = 64
MAX_FILES_BYTES = 16 * 1024 * 1024
MAX_SESSION_ID_CHARS = 200
PRINCIPAL = "toolscore/principal"
"""The member of `_meta` in which the gateway says who calls."""
OVERLOADED = -32008
UNAVAILABLE = -32010

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Characters that no text file has: a file with one is sent as base64. In JSON each would take six characters."""


class CallRefused(Exception):
    """The call itself failed, and did nothing. `error` is its JSON-RPC error object."""

    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.code, self.data = code, data
        self.error = {"code": code, "message": message, "data": data}


class BadArguments(ValueError):
    """Arguments that do not fit; the caller is told in a result, so that a model can mend them."""


class PythonExecutorServer:
    """Lists and calls tools. Code that fails is a result, not an exception. An `async with` gives it its life."""

    name = "python-executor"
    runs_code = True
    version = "0.2.0"

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.calls = 0
        """Under way."""

    async def __aenter__(self) -> PythonExecutorServer:
        """Start the sandbox.

        Raises:
            SandboxUnavailable: it cannot run here; the message says why.
        """
        await self._executor.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._executor.__aexit__(kind, exc, traceback)

    async def stats(self) -> dict[str, Any]:
        """Figures of the executor, and how it confines code."""
        return await self._executor.stats()

    def list_tools(self) -> list[dict[str, Any]]:
        executor = self._executor
        properties: dict[str, Any] = {
            "code": {"type": "string", "maxLength": MAX_CODE_CHARS, "description": "the program"},
            "input": {"type": "string", "description": "what input() reads"},
            "timeout_seconds": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": executor.max_timeout_seconds,
                "description": f"ends the code after this long; {executor.timeout_seconds:g} if not given",
            },
            "session_id": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_SESSION_ID_CHARS,
                "description": "keep variables, imports and files for later calls with the same id",
            },
            "files": {
                "type": "array",
                "maxItems": MAX_FILES,
                "items": FILE_SCHEMA,
                "description": "put into the working folder before the code runs",
            },
        }
        if executor.packages.names():
            properties["packages"] = {
                "type": "array",
                "items": {"type": "string"},
                "description": f"packages that the code needs. Available: {executor.packages.describe()}",
            }
        if len(executor.engines) > 1:
            properties["engine"] = {
                "enum": list(executor.engines),
                "description": f"how the code is isolated; {executor.engine} if not given",
            }
        return [
            {
                "name": "python_execute",
                "title": "Run Python",
                "description": (
                    "Run Python code in a fresh, confined process: no network, no files but its own. For whatever can "
                    "be computed: calculate and convert numbers, dates and units, transform text, analyse data, draw "
                    "charts. Returns what it prints, the value of a last expression, matplotlib figures and the files "
                    "it wrote. Nothing is kept between calls, unless session_id names a session."
                ),
                "inputSchema": {
                    "type": "object",
                    "properties": properties,
                    "required": ["code"],
                    "additionalProperties": False,
                },
                "outputSchema": OUTPUT_SCHEMA,
                # Nothing outside of the sandbox changes; in a session, calling twice does more than once.
                "annotations": {
                    "readOnlyHint": False, "destructiveHint": False, "idempotentHint": False, "openWorldHint": False,
                },
            },
            {
                "name": "python_sessions",
                "title": "List Python sessions",
                "description": "List your open sessions of python_execute: how long each was idle, when it ends.",
                "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
                "outputSchema": SESSIONS_SCHEMA,
                "annotations": {"readOnlyHint": True, "openWorldHint": False},
            },
            {
                "name": "python_session_reset",
                "title": "End a Python session",
                "description": "Forget everything that a session of python_execute keeps.",
                "inputSchema": {
                    "type": "object",
                    "properties": {"session_id": {"type": "string"}},
                    "required": ["session_id"],
                    "additionalProperties": False,
                },
                "outputSchema": {
                    "type": "object",
                    "properties": {"existed": {"type": "boolean"}},
                    "required": ["existed"],
                },
                "annotations": {
                    "readOnlyHint": False, "destructiveHint": True, "idempotentHint": True, "openWorldHint": False,
                },
            },
        ]  # fmt: skip

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        meta: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        asker: Asker | None = None,
    ) -> dict[str, Any]:
        """Run a tool. Cancelling this ends the code.

        Args:
            meta: the request's `_meta`, from a caller who may say on whose behalf it calls.
            progress: is told the place in the queue, and that packages are made ready first.
            asker: answers the tools that the code calls; `None`: it has none.

        Raises:
            KeyError: no such tool.
            CallRefused: too many calls, or nothing here can run it.
        """
        principal = str((meta or {}).get(PRINCIPAL, ""))
        if name == "python_session_reset":
            session_id = arguments.get("session_id")
            if not isinstance(session_id, str):
                return _refused("`session_id` must be a string")
            existed = self._executor.sessions.reset(principal, session_id)
            text = f"session {session_id!r} was ended" if existed else f"there was no session {session_id!r}"
            return {"content": [{"type": "text", "text": text}], "structuredContent": {"existed": existed}}
        if name == "python_sessions":
            return _listed(self._executor.sessions.of(principal))
        if name != "python_execute":
            raise KeyError(name)
        try:
            options = _options(arguments)
            if progress is not None:
                tell = progress
                options["on_position"] = lambda position: tell(0, None, f"waiting: {position} in the queue")
                options["on_install"] = lambda name: tell(0, None, f"waiting for packages {name!r}: made ready once")
            outcome = await self._executor.execute(principal=principal, asker=asker, **options)
        except (BadArguments, UnknownPackages, TooManySessions, ValueError) as exc:
            return _refused(str(exc))
        except Busy as exc:
            raise CallRefused(OVERLOADED, str(exc), retry_after_seconds=exc.retry_after_seconds) from exc
        except SandboxUnavailable as exc:
            raise CallRefused(UNAVAILABLE, str(exc)) from exc
        structured = _structured(outcome)
        engine = options.get("engine", self._executor.engine)
        return {
            "content": _content(outcome, structured),
            "structuredContent": structured,
            "isError": outcome.exit != "ok",
            "_meta": {"toolscore/sandbox": {"engine": engine, "tier": self._executor.tier(engine)}},
        }


KNOWN = ("code", "input", "timeout_seconds", "session_id", "files", "packages", "engine")


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for `Executor.execute`, checked for callers that did not hold them against the schema.

    Raises:
        BadArguments: the message says what is wrong, and what was expected.
    """
    unknown = arguments.keys() - set(KNOWN)
    if unknown:
        raise BadArguments(f"unknown argument {sorted(unknown)[0]!r}: expected {', '.join(KNOWN)}")
    if "code" not in arguments:
        raise BadArguments("`code` is missing")
    options = dict(arguments)
    for name in ("code", "input", "session_id", "engine"):
        if name in options and not isinstance(options[name], str):
            raise BadArguments(f"`{name}` must be a string")
    if len(options["code"]) > MAX_CODE_CHARS:
        raise BadArguments(
            f"`code` has {len(options['code']):,} characters, and at most {MAX_CODE_CHARS:,} are allowed"
        )
    if not 1 <= len(options.get("session_id", "x")) <= MAX_SESSION_ID_CHARS:
        raise BadArguments(f"`session_id` must have 1 to {MAX_SESSION_ID_CHARS} characters")
    timeout = options.get("timeout_seconds", 1)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise BadArguments("`timeout_seconds` must be a number above 0")
    packages = options.get("packages", [])
    if not isinstance(packages, list) or not all(isinstance(one, str) for one in packages):
        raise BadArguments("`packages` must be a list of names")
    if "files" in options:
        options["files"] = _files(options["files"])
    return options


def _files(given: Any) -> list[tuple[str, bytes]]:
    if not isinstance(given, list) or len(given) > MAX_FILES:
        raise BadArguments(f"`files` must be a list of at most {MAX_FILES} objects with `path` and `content`")
    files = []
    room = MAX_FILES_BYTES
    for one in given:
        if not isinstance(one, dict) or not isinstance(one.get("path"), str) or not isinstance(one.get("content"), str):
            raise BadArguments("each of `files` must be an object with the strings `path` and `content`")
        path = PurePosixPath(one["path"])
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in one["path"] or len(one["path"]) > 1000:
            raise BadArguments(f"the path {one['path']!r} must lie below the working folder")
        encoding = one.get("encoding", "utf-8")
        try:
            if encoding == "base64":
                content = base64.b64decode(one["content"], validate=True)
            elif encoding == "utf-8":
                content = one["content"].encode("utf-8", "surrogatepass")
            else:
                raise BadArguments(f"the encoding of {one['path']!r} must be utf-8 or base64, found {encoding!r}")
            name = str(path)
            name.encode()
        except (binascii.Error, UnicodeEncodeError) as exc:
            raise BadArguments(f"the file {one['path']!r} cannot be decoded: {exc}") from exc
        room -= len(content)
        if room < 0:
            raise BadArguments(f"`files` have more than {MAX_FILES_BYTES:,} bytes together")
        files.append((name, content))
    return files


def _structured(outcome: Outcome) -> dict[str, Any]:
    return {
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "result": outcome.result,
        "error": outcome.error,
        "images": [{"media_type": PNG, "size": len(image)} for image in outcome.images],
        "files": [_file(path, content) for path, content in outcome.files],
        "duration_ms": outcome.duration_ms,
        "exit": outcome.exit,
        "limits_hit": list(outcome.limits_hit),
    }


def _file(path: str, content: bytes | int) -> dict[str, Any]:
    if isinstance(content, int):
        return {"path": path, "size": content}
    try:
        text = content.decode()
        if not CONTROL.search(text):
            return {"path": path, "size": len(content), "content": text, "encoding": "utf-8"}
    except UnicodeDecodeError:
        pass
    return {"path": path, "size": len(content), "content": base64.b64encode(content).decode(), "encoding": "base64"}


def _content(outcome: Outcome, structured: dict[str, Any]) -> list[dict[str, Any]]:
    """What a reader wants to see: the output, the value, what went wrong, the pictures."""
    parts = [outcome.stdout]
    if outcome.stderr:
        parts.append(f"[stderr]\n{outcome.stderr}")
    if outcome.result is not None:
        parts.append(outcome.result)
    if outcome.error is not None:
        parts.append(_told(**outcome.error))
    if structured["files"]:
        parts.append("[files] " + ", ".join(f"{file['path']} ({file['size']:,} bytes)" for file in structured["files"]))
    text = "\n".join(part.rstrip("\n") for part in parts if part)
    images = [{"type": "image", "data": base64.b64encode(image).decode(), "mimeType": PNG} for image in outcome.images]
    if not text and not images:
        text = "(no output)"
    return [*([{"type": "text", "text": text}] if text else []), *images]


def _told(type: str, message: str, traceback: str) -> str:
    """The traceback, whose last line is replaced by the message where that says more."""
    if message in traceback:
        return traceback
    before, _, last = traceback.rstrip("\n").rpartition("\n")
    return f"{before if last.startswith(type) else traceback}\n{type}: {message}".lstrip("\n")


def _listed(sessions: list[dict[str, Any]]) -> dict[str, Any]:
    lines = [
        f"{one['session_id']!r}: {one['state']}"
        + (f" for {one['idle_seconds']:g} s, ends in {one['ends_in_seconds']:g} s" if one["state"] == "idle" else "")
        for one in sessions
    ]
    text = "\n".join(lines) or "(no sessions)"
    return {"content": [{"type": "text", "text": text}], "structuredContent": {"sessions": sessions}}


def _refused(message: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": message}], "isError": True}


def create_server(**options: Any) -> PythonExecutorServer:
    """Make the server; the options are those of `Executor`."""
    return PythonExecutorServer(Executor(**options))
