"""Libraries that are loaded when something of them is used first, since many a gateway never does."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

__all__ = ["loaded_later"]


def loaded_later(name: str) -> Any:
    """A module that is loaded once something of it is used; as it is, where it is loaded already.

    An `import` of it loads it at once: who needs it seldom takes it from here.

    Raises:
        ImportError: there is none.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module {name!r}")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
