"""Moments, as everybody writes them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

__all__ = ["milliseconds", "now", "timestamp", "timestamp_of"]


def now() -> datetime:
    """The present time, UTC."""
    return datetime.now(UTC)


def milliseconds(seconds: float) -> float:
    """A duration, to the microsecond; at a tenth of what `round` costs."""
    return int(seconds * 1_000_000 + 0.5) / 1000


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 UTC with milliseconds, of now without a moment."""
    if moment is not None:
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return timestamp_of(time.time_ns() // 1_000_000)


def timestamp_of(milliseconds: int) -> str:
    """The same, of milliseconds since 1970."""
    second, rest = divmod(milliseconds, 1000)
    return f"{_second(second)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    """RFC 3339 UTC up to the second, which most that is asked for has in common."""
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]
