"""Resources that servers name in what they answer: each is shown under an address by which it can be read here."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from toolscore.tools.features import FeatureIndex

__all__ = ["link_shown", "named_uris"]


class _Content(msgspec.Struct):
    uri: str | None = None


class _Contents(msgspec.Struct):
    contents: list[_Content]


_contents = msgspec.json.Decoder(_Contents)


def named_uris(result: Raw) -> list[str | None]:
    """The URI of each content in a result of `resources/read`; none where it is not of the form that MCP gives it."""
    try:
        return [content.uri for content in _contents.decode(result).contents]
    except msgspec.MsgspecError:
        return []


def link_shown(features: FeatureIndex, server_id: str, block: Any) -> bool:
    """Give a content block's resource, whole or as a link, the URI under which it is shown. Returns whether that is
    another one than the server's own.
    """
    if not isinstance(block, dict) or block.get("type") not in ("resource", "resource_link"):
        return False
    holder = block.get("resource") if block["type"] == "resource" else block
    uri = holder.get("uri") if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or not isinstance(uri, str):
        return False
    holder["uri"] = features.note_link(server_id, uri)
    return bool(holder["uri"] != uri)
