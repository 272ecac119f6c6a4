"""REST: forgetting cached results."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.endpoints.asgi import principal_of
from toolscore.endpoints.rest.answers import answer

__all__ = ["cache_router"]


def cache_router(gateway: Gateway) -> APIRouter:
    """The routes of the cache."""
    router = APIRouter(tags=["cache"])

    @router.delete("/api/v1/cache", summary="Forget kept results")
    async def clear_cache(request: Request, tool_id: str | None = None, server_id: str | None = None) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        number = gateway.cache.invalidate(tool_id=tool_id, server_id=server_id)
        return answer(request, {"forgotten": number}, f"{number} results forgotten")

    return router
