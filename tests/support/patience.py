"""Where the clock is not what is tested: answers that a busy machine gives late."""

from __future__ import annotations

from typing import Any

import pytest

from toolscore.stores.redis import SharedStore

__all__ = ["patient_stores"]

SECONDS = 30.0


def patient_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what gateways share wait for its answers. A gateway does without them after 0.1 s."""
    ask = SharedStore.ask

    async def wait(store: SharedStore, request: Any, seconds: float = 0.0) -> Any:
        return await ask(store, request, max(seconds, SECONDS))

    monkeypatch.setattr(SharedStore, "ask", wait)
