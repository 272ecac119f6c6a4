"""REST: figures, health, signs of life."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.endpoints.asgi import principal_of
from toolscore.endpoints.health import health
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

    @router.get("/health", summary="A check for each part")
    async def get_health(request: Request) -> Response:
        data = await health(gateway, principal_of(request.scope))
        message = f"look at: {', '.join(data['unwell'])}" if data["unwell"] else ""
        return answer(request, data, message)

    @router.get("/livez", summary="The process answers")
    @router.get("/readyz", summary="Calls are accepted")
    async def ready(request: Request) -> Response:
        return answer(request, {"status": "ready"})

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        need_scope(principal_of(request.scope), ADMIN)  # its labels name all servers and tools
        await gateway.figures.refresh()
        return Response(gateway.metrics.render(), headers={"content-type": CONTENT_TYPE})

    return router
