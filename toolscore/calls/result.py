"""What an upstream answered to a call, read no further than needed; the rest stays raw."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from toolscore.calls.cache import Cached
from toolscore.calls.model import Call
from toolscore.core.errors import InvalidRequest, UpstreamProtocolError
from toolscore.core.jsonrpc import decode, decode_object, encode, meta_of
from toolscore.core.models import Tool, ToolResult

__all__ = ["marked_kept", "parsed", "read_result", "seconds_said", "text_of", "with_suggestion"]

MAX_TEXT = 2000
MAX_TTL_MS = 10**12


class _CallResult(msgspec.Struct, rename="camel"):
    """What we need to know of an MCP `CallToolResult`."""

    content: Raw = Raw(b"[]")
    structured_content: Raw | UnsetType = UNSET
    is_error: bool = False
    result_type: str = "complete"
    ttl_ms: Raw | UnsetType = UNSET


class _Block(msgspec.Struct):
    """What makes a content block: what else it has is its kind's own, and kinds are yet to come."""

    type: str


_results = msgspec.json.Decoder(_CallResult)
_blocks = msgspec.json.Decoder(list[_Block])


def parsed(tool: Tool, raw: Raw) -> _CallResult:
    """Read a result.

    Raises:
        UpstreamProtocolError: it is none.
    """
    try:
        found = _results.decode(raw)
        _blocks.decode(found.content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise UpstreamProtocolError(f"{tool.server_id} answered the call of {tool.name} with nonsense: {exc}") from exc
    return found


def read_result(call: Call) -> ToolResult:
    """The result of a call that was answered.

    Raises:
        UpstreamProtocolError: the answer is no result.
        InvalidRequest: the server asks for input, and the caller is none that can be asked.
    """
    assert call.answer is not None
    tool = call.target
    found = parsed(tool, call.answer)
    if found.result_type == "input_required" and not call.caller.stateless:
        raise InvalidRequest(
            f"{tool.tool_id} needs input of its user before it can go on: call it over MCP, with a client that asks"
        )
    return ToolResult(
        tool=tool,
        raw=call.answer,
        content=found.content,
        structured_content=found.structured_content or None,
        is_error=found.is_error,
        input_required=found.result_type == "input_required",
        duration_ms=call.seconds * 1000,
        call_id=call.call_id,
        cache_level=call.kept.level if call.kept is not None else None,
        age_seconds=call.kept.age if call.kept is not None else None,
        stale=call.is_stale,
    )


def marked_kept(kept: Cached, *, stale: bool = False) -> Raw:
    """A kept result that says so, and how old it is: whoever reads it should know."""
    result = decode_object(kept.raw)
    meta = meta_of({"_meta": result["_meta"]}) if "_meta" in result else {}
    age = round(kept.age, 1)
    meta["toolscore/cache"] = {"level": kept.level, "age_seconds": age}
    if stale:
        meta["toolscore/stale"] = {"age_seconds": age}
    return Raw(encode({**result, "_meta": meta}))


def seconds_said(result: _CallResult) -> float:
    """For how long a result is good, by its server's own word (MCP `ttlMs`); 0 without one."""
    if result.ttl_ms is UNSET:
        return 0.0
    said = decode(result.ttl_ms)
    return min(said, MAX_TTL_MS) / 1000 if isinstance(said, int) and not isinstance(said, bool) and said > 0 else 0.0


def with_suggestion(result: ToolResult, suggestion: str) -> ToolResult:
    """A failed tool's result with what helped before, where a model reads it."""
    try:
        content = msgspec.json.decode(result.content, type=list[Raw])
    except msgspec.ValidationError:
        return msgspec.structs.replace(result, suggestion=suggestion)
    content.append(Raw(encode({"type": "text", "text": f"Suggestion: {suggestion}"})))
    raw = Raw(encode({**decode_object(result.raw), "content": content}))
    return msgspec.structs.replace(result, raw=raw, content=Raw(encode(content)), suggestion=suggestion)


def text_of(content: Raw) -> str:
    """The text of MCP content blocks; its first 2,000 characters."""
    blocks: Any = decode(content)
    texts = (block.get("text") for block in blocks if isinstance(block, dict)) if isinstance(blocks, list) else ()
    return "\n".join(text for text in texts if isinstance(text, str))[:MAX_TEXT]
