"""JSON pointers (RFC 6901), by which the references of a schema lead to its parts."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

__all__ = ["at_pointer"]


def at_pointer(schema: Any, pointer: str) -> Any:
    """The part that a pointer leads to; `None`: there is none.

    Args:
        pointer: as it stands behind `#` in a reference, percent-encoded: empty, or with a slash before each step.
    """
    part = schema
    for step in unquote(pointer).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict):
            part = part.get(name)
        elif isinstance(part, list) and name.isascii() and name.isdigit() and int(name) < len(part):
            part = part[int(name)]
        else:
            return None
    return part
