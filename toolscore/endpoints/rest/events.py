"""REST: past events. Those that happen come over the events socket, and as a stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from toolscore.app.compose import Gateway
from toolscore.endpoints.asgi import principal_of
from toolscore.endpoints.live import concerns
from toolscore.endpoints.rest.answers import answer
from toolscore.endpoints.wanted import MAX_SEQ, event_types
from toolscore.stores.database import or_overloaded

__all__ = ["events_router"]

MAX_PAST = 1000


def events_router(gateway: Gateway) -> APIRouter:
    """The route of past events."""
    router = APIRouter(tags=["events"])

    @router.get("/api/v1/events", summary="Past events")
    async def past_events(
        request: Request,
        since: Annotated[
            int | None, Query(ge=0, le=MAX_SEQ, description="those after this `seq`; the newest if not given")
        ] = None,
        events: Annotated[str | None, Query(description="types, separated by commas")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAST)] = 100,
    ) -> Response:
        """The oldest first. `next_since` goes on behind the last one that was looked at; `null`: there is no more."""
        types, who = event_types(events.split(",")) if events else None, principal_of(request.scope)
        first = since if since is not None else max(0, gateway.events.last_seq - limit)
        with or_overloaded("the events cannot be read just now", retry_after_seconds=5):
            found = await gateway.events.past(first, limit)
        shown = [one.body() for one in found if (types is None or one.type in types) and concerns(gateway, one, who)]
        return answer(request, {"events": shown, "next_since": found[-1].seq if len(found) == limit else None})

    return router
