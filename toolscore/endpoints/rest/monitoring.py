"""REST: figures, health, signs of life."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response

from toolscore import __version__
from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.endpoints.asgi import principal_of
from toolscore.endpoints.health import check_ready, health
from toolscore.endpoints.rest.answers import answer
from toolscore.endpoints.views import stats_fields
from toolscore.telemetry.metrics import CONTENT_TYPE

__all__ = ["monitoring_router"]


def monitoring_router(gateway: Gateway) -> APIRouter:
    """The routes of monitoring."""
    router = APIRouter(tags=["monitoring"])

    @router.get("/api/v1/stats", summary="Figures")
    async def stats(request: Request) -> Response:
        await gateway.figures.refresh()
        return answer(request, stats_fields(gateway, principal_of(request.scope)))

    @router.get("/api/v1/stats/recent", summary="Figures of the last minutes, step by step")
    async def recent(request: Request, seconds: Annotated[int, Query(ge=5, le=3600)] = 900) -> Response:
        """Steps without calls are left out."""
        return answer(request, gateway.notes.stats.recent(seconds))

    @router.get("/api/v1/whoami", summary="Who you are to this gateway")
    async def whoami(request: Request) -> Response:
        who = principal_of(request.scope)
        return answer(request, {"principal": who.name, "scopes": sorted(who.scopes), "version": __version__})

    @router.get("/health", summary="A check for each part")
    async def get_health(request: Request) -> Response:
        data = await health(gateway, principal_of(request.scope))
        message = f"look at: {', '.join(data['unwell'])}" if data["unwell"] else ""
        return answer(request, data, message)

    @router.get("/livez", summary="The process answers")
    async def alive(request: Request) -> Response:
        return answer(request, {"status": "ready"})

    @router.get("/readyz", summary="Calls are accepted")
    async def ready(request: Request) -> Response:
        """503 as soon as it is to end: no more calls should be sent here, though they are taken for a while. Also
        while it has no Python executor and is set to need one.
        """
        check_ready(gateway)
        return answer(request, {"status": "ready"})

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        need_scope(principal_of(request.scope), ADMIN)  # its labels name all servers and tools
        return Response(await gateway.summed.metrics(), headers={"content-type": CONTENT_TYPE})

    return router
