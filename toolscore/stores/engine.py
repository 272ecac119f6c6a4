"""SQLAlchemy's asyncio engine without its ORM, which no query here uses.

Its package loads the ORM for sessions: 6 MB in each process, and 0.2 s of each start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["AsyncEngine", "create_async_engine"]

PACKAGE = "sqlalchemy.ext.asyncio"


class _Absent(ModuleType):
    """A module that has any name, and nothing behind it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Have these modules of the package absent while it is loaded; whoever asks for one later gets the real one."""
    if PACKAGE in sys.modules:
        yield
        return
    absent = {name: _Absent(name) for name in (f"{PACKAGE}.{name}" for name in names)}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
    package = sys.modules[PACKAGE]
    for name in [name for name, value in vars(package).items() if isinstance(value, _Absent)]:
        delattr(package, name)


with _without("scoping", "session"):
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
