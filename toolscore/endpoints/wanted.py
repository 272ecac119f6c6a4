"""Which events somebody asks for: types, and those after which one."""

from __future__ import annotations

import re
from typing import Any

from toolscore.core.errors import InvalidRequest
from toolscore.core.models import EVENT_TYPES
from toolscore.core.names import nearest

__all__ = ["MAX_SEQ", "event_types", "seq_of"]

MAX_SEQ = 2**62
SEQ = re.compile(r"[0-9]{1,18}")


def event_types(names: list[Any]) -> set[str]:
    """The types that somebody asks for.

    Raises:
        InvalidRequest: they are something else, or there is no such type.
    """
    if not all(isinstance(name, str) and name for name in names):
        raise InvalidRequest("`events` must be a list of event types")
    types = {name.strip() for name in names}
    unknown = min(types.difference(EVENT_TYPES), default=None)
    if unknown is not None:
        meant = nearest(unknown, EVENT_TYPES, count=1)
        raise InvalidRequest(
            f"no event has the type {unknown!r:.80}" + (f"; nearest: {meant[0]}" if meant else ""),
            suggestion=f"there are: {', '.join(EVENT_TYPES)}",
        )
    return types


def seq_of(text: str | None, name: str) -> int | None:
    """The number of an event, out of a header or an address.

    Raises:
        InvalidRequest: it is something else.
    """
    if text is None:
        return None
    if not SEQ.fullmatch(text):
        raise InvalidRequest(f"{name} must be the `seq` of an event, found {text!r:.80}")
    return int(text)
