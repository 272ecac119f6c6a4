"""A new server must prove itself: it is started on trial, lists its tools, and one read-only tool is called."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode
from toolscore.core.models import UpstreamSpec
from toolscore.discovery.install.failure import StepFailed
from toolscore.discovery.install.fetch import Fetched
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.process.last_words import cause_of
from toolscore.upstreams.process.old_sdk import needs_old_sdk
from toolscore.upstreams.process.spawn import CommandNotFound
from toolscore.upstreams.references import hidden

__all__ = ["Proof", "Proved", "Tell", "Trial", "asks_for_account", "inferred_arguments", "prove"]

Tell = Callable[[str, str], None]
"""Is told the step and a message."""

Trial = Callable[
    [UpstreamSpec, Callable[[Any], None]], AbstractAsyncContextManager[tuple[Connection, list[dict[str, Any]]]]
]
"""Starts a server on the side: `UpstreamPool.trial`."""

PROBE_SECONDS = 20.0
"""For the call of one tool: it may have to load something first."""

NO_NETWORK = re.compile(
    r"ENETUNREACH|EAI_AGAIN|ENOTFOUND|getaddrinfo|Network is unreachable|Name or service not known|name resolution"
    r"|ConnectError|ConnectionError",
    re.IGNORECASE,
)
"""What servers print that die without a network."""
NO_ACCOUNT = re.compile(
    r"(?<![:.\d])40[13]\b(?!\d)|unauthori[sz]ed|not (?:authenticated|authorized|logged in)|invalid_auth|not_authed"
    r"|authentication (?:failed|required|error)|(?:please|must|need to|have to) (?:first )?(?:log|sign) ?in"
    r"|(?:invalid|bad|wrong|missing|expired) [\w -]{0,15}\b(?:token|api[ _-]?key|credential|password|account)s?\b"
    r"|(?:token|api[ _-]?key|credentials?|password|account)\b[^.\n]{0,15}"
    r"\b(?:invalid|required|missing|expired|not set|not found|not valid)\b",
    re.IGNORECASE,
)
"""What servers say that have no account, or a wrong one."""
CRASH = re.compile(r"(?:\w*Syntax|Import|ModuleNotFound|Type|Reference)Error\b|.*\bE(?:NOENT|ACCES)\b")
"""Causes that are no account's, whatever words are in them."""
MAX_SAID, MAX_TEXT = 300, 10_000


def asks_for_account(said: str) -> bool:
    """Whether a server says that it has no account, or a wrong one."""
    return NO_ACCOUNT.search(said[:MAX_SAID]) is not None and CRASH.match(said) is None


class Proof(msgspec.Struct, frozen=True):
    """The call of one read-only tool of a new server.

    Attributes:
        ok: whether the tool succeeded.
        fits: whether the result is structured as the tool promises; `None`: it promises nothing, or failed.
        said: what it said instead, the beginning; `None`: it succeeded.
        needs_account: whether that asks for an account, or for another one than was given.
    """

    tool: str
    ok: bool
    duration_ms: float
    fits: bool | None
    said: str | None = None
    needs_account: bool = False


class Proved(msgspec.Struct, frozen=True):
    """A server that works.

    Attributes:
        fetched: the server as it was started; another than was given where it needed the old SDK.
        tools: their names, as the server has them.
        proof: `None`: it has no read-only tool whose arguments can be inferred.
    """

    fetched: Fetched
    tools: list[str]
    proof: Proof | None


async def prove(
    fetched: Fetched,
    trial: Trial,
    start_timeout_seconds: float,
    tell: Tell,
    fetch_with_old_sdk: Callable[[], Awaitable[Fetched]] | None = None,
) -> Proved:
    """Start a server on trial and call one of its tools.

    Args:
        tell: is told of each step.
        fetch_with_old_sdk: gets the server again with the SDK 1.x; `None`: it is no Python server. Called once,
            if the server dies as those do that were written for 1.x and run on 2.x.

    Raises:
        StepFailed: it does not start, or has no tools.
    """
    try:
        return await _try(fetched, trial, start_timeout_seconds, tell)
    except StepFailed as exc:
        if fetch_with_old_sdk is None or not needs_old_sdk(exc.output):
            raise
    tell("fetch", "it was written for an older SDK: fetching it with mcp<2")
    fetched = await fetch_with_old_sdk()
    fetched = msgspec.structs.replace(fetched, notes=(*fetched.notes, "runs with mcp<2"))
    tell("prove", "starting it on trial again")
    return await _try(fetched, trial, start_timeout_seconds, tell)


async def _try(fetched: Fetched, trial: Trial, start_timeout_seconds: float, tell: Tell) -> Proved:
    stderr: list[Any] = []
    spec = fetched.spec.model_copy(update={"start_timeout_seconds": start_timeout_seconds})
    try:
        async with trial(spec, stderr.append) as (connection, listed):
            names = [str(tool["name"]) for tool in listed if isinstance(tool.get("name"), str)]
            if not names:
                raise StepFailed("it has no tools")
            return Proved(fetched, names, await _call_one(connection, listed, spec, tell))
    except (ToolScoreError, ConnectionLost, RemoteError, CommandNotFound, OSError) as exc:
        lines = [hidden(str(line), spec) for line in stderr[0]] if stderr else []
        reason = hidden(_reason(exc, spec, lines), spec)
        raise StepFailed(f"it does not start: {reason}", [spec.command or spec.url or "", *spec.args], lines) from exc


def _reason(exc: Exception, spec: UpstreamSpec, lines: list[str]) -> str:
    """Say why a server does not start, from the exception and its last lines on stderr."""
    if lines and lines[-1].startswith("bwrap:"):
        return f"it cannot be confined here ({lines[-1]}): see `discovery.install.confine` in toolscore.yaml"
    said = f"no answer within {spec.start_timeout_seconds:g} s" if isinstance(exc, TimeoutError) else str(exc)
    if spec.confine is not None and not spec.confine.network and NO_NETWORK.search("\n".join(lines)):
        said += "; it seems to want the network, and has none: install it with `network`"
    elif asks_for_account(cause_of(lines) or said):
        said += "; it may need your account, or another than it was given"
    return said


async def _call_one(
    connection: Connection, tools: list[dict[str, Any]], spec: UpstreamSpec, tell: Tell
) -> Proof | None:
    """Call the first read-only tool whose arguments can be inferred; `None`: there is none."""
    for tool in tools:
        annotations = tool.get("annotations")
        if not isinstance(annotations, dict) or annotations.get("readOnlyHint") is not True:
            continue
        arguments = inferred_arguments(tool.get("inputSchema"))
        if arguments is None:
            continue
        tell("prove", f"calling {tool['name']}")
        began = time.perf_counter()
        fits: bool | None = None
        said: str | None = None
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                raw = await connection.request("tools/call", {"name": tool["name"], "arguments": arguments})
            result = decode(raw)
            ok = isinstance(result, dict) and not result.get("isError")
            if ok and isinstance(tool.get("outputSchema"), dict):
                fits = isinstance(result.get("structuredContent"), dict)
            if not ok and isinstance(result, dict):
                said = _text_of(result)
        except TimeoutError:
            ok, said = False, f"no answer within {PROBE_SECONDS:g} s"
        except (RemoteError, ValueError) as exc:
            ok, said = False, str(exc)
        said = " ".join(hidden(said[:MAX_TEXT], spec).split())[:MAX_SAID] if said else None
        took = round((time.perf_counter() - began) * 1000, 3)
        return Proof(str(tool["name"]), ok, took, fits, said, said is not None and asks_for_account(said))
    return None


def _text_of(result: dict[str, Any]) -> str:
    """The texts of a tool's result."""
    content = result.get("content")
    blocks = content if isinstance(content, list) else []
    return " ".join(str(one.get("text") or "") for one in blocks if isinstance(one, dict))


def inferred_arguments(schema: Any) -> dict[str, Any] | None:
    """Infer arguments from a tool's input schema: defaults, constants, values of an enum, examples.

    Returns:
        The required arguments; `None`: one of them cannot be inferred.
    """
    if not isinstance(schema, dict):
        return {}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    arguments = {}
    required = schema.get("required")
    for name in required if isinstance(required, list) else ():
        if not isinstance(name, str):
            continue
        about = properties.get(name)
        if not isinstance(about, dict):
            return None
        if "default" in about:
            arguments[name] = about["default"]
        elif "const" in about:
            arguments[name] = about["const"]
        elif isinstance(about.get("enum"), list) and about["enum"]:
            arguments[name] = about["enum"][0]
        elif isinstance(about.get("examples"), list) and about["examples"]:
            arguments[name] = about["examples"][0]
        else:
            return None
    return arguments
