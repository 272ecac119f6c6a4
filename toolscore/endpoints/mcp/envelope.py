"""The rules of the stateless era for one HTTP request: its envelope, and the headers that repeat its body."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import INVALID_PARAMS, decode
from toolscore.core.models import Sees
from toolscore.endpoints.asgi import Scope, given_twice, header
from toolscore.endpoints.mcp.callers import ENVELOPE, Envelope
from toolscore.endpoints.mcp.params import Members
from toolscore.tools.library import UnifiedToolLibrary
from toolscore.upstreams.headers import NAMED_METHODS, PARAM_PREFIX, header_text, param_mismatch

__all__ = ["HEADER_MISMATCH", "check_envelope", "check_params"]

HEADER_MISMATCH = -32020
ROUTING = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})


def check_envelope(
    scope: Scope, method: str, params: Members, envelope: Envelope, version: str | None
) -> dict[str, Any] | None:
    """Check envelope, headers and revision, in this order. Returns the JSON-RPC error, or `None`.

    Args:
        version: the revision that the headers name.
    """
    twice = given_twice(scope, ROUTING)
    if twice is not None:
        return {"code": HEADER_MISMATCH, "message": f"the {twice.decode()} header appears more than once"}
    wrong = envelope.error
    if wrong is not None and wrong["code"] == INVALID_PARAMS:
        return wrong
    if envelope.version != version:
        return {
            "code": HEADER_MISMATCH,
            "message": f"MCP-Protocol-Version does not match params._meta[{ENVELOPE[0]!r}]",
        }
    if (header(scope, b"mcp-method") or "").strip() != method:  # RFC 9110 5.5
        return {"code": HEADER_MISMATCH, "message": "the Mcp-Method header does not match the body's method"}
    named = NAMED_METHODS.get(method)
    if named is not None and named in params:
        value = decode(params[named])
        if isinstance(value, str) and header_text(_stripped(header(scope, b"mcp-name"))) != value:
            return {"code": HEADER_MISMATCH, "message": f"the Mcp-Name header does not match the body's {named!r}"}
    return wrong


def check_params(
    scope: Scope, library: UnifiedToolLibrary, server_id: str | None, params: Members, sees: Sees | None
) -> dict[str, Any] | None:
    """Check the headers that repeat arguments of a tool. Returns the JSON-RPC error, or `None`.

    Args:
        sees: says which tools exist for the caller: of a hidden tool nothing may be said.
    """
    try:
        tool = library.resolve(decode(params["name"]), None, server_id, sees=sees)
        mirrored = library.schemas.mirrored(tool)
        arguments = decode(params.get("arguments", Raw(b"{}"))) if mirrored else None
    except (ToolScoreError, KeyError, TypeError):
        return None  # said better by the call itself
    if not mirrored:
        return None
    given: dict[str, list[str]] = {}
    for key, value in scope["headers"]:
        if key.startswith(PARAM_PREFIX.lower().encode()):
            given.setdefault(key.decode("latin-1"), []).append(value.decode("latin-1").strip())
    wrong = param_mismatch(mirrored, arguments, given)
    return {"code": HEADER_MISMATCH, "message": wrong} if wrong else None


def _stripped(value: str | None) -> str | None:
    return value.strip() if value is not None else None
