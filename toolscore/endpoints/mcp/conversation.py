"""A client of the session era as servers reach it outside of its requests, whatever carries it."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from toolscore.core.models import Principal
from toolscore.endpoints.mcp.callers import log_level_of
from toolscore.endpoints.mcp.listener import Listener
from toolscore.upstreams import Caller

__all__ = ["Conversation"]


class Conversation(Caller):
    """One client. Subclasses say how it is told (`tell`) and asked (`ask`)."""

    live = True

    def __init__(
        self, principal: Principal, capabilities: dict[str, Any] | None = None, client: object | None = None
    ) -> None:
        super().__init__(principal, client=client, capabilities=capabilities)
        self.listener: Listener | None = None

    def tell(self, method: str, params: Any) -> None:
        """Send a notification. Never waits."""
        raise NotImplementedError

    def notify(self, method: str, params: Raw | None) -> None:
        if method == "notifications/message" and not (self.log_level and self.hears(log_level_of(params))):
            return  # what belongs to no request is for those who asked for it
        self.tell(method, params)

    def announce(self, server_id: str, method: str, params: Raw | None) -> None:
        if method == "notifications/resources/updated" and self.listener is not None:
            self.listener.resource_updated(server_id, params)
        else:
            self.notify(method, params)
