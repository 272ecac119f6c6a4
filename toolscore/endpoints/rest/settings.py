"""REST: the settings in force."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.app.in_force import in_force
from toolscore.endpoints.asgi import principal_of
from toolscore.endpoints.rest.answers import answer

__all__ = ["settings_router"]


def settings_router(gateway: Gateway) -> APIRouter:
    """The route of the settings."""
    router = APIRouter(tags=["settings"])

    @router.get("/api/v1/settings", summary="The settings in force, and where each stands")
    async def list_settings(request: Request) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        folder = gateway.reload.config_dir
        found = await asyncio.to_thread(in_force, gateway.settings.current, folder)
        data = {
            "settings": found,
            "folder": str(folder) if folder is not None else None,
            "problems": list(gateway.reload.problems),
        }
        return answer(request, data)

    return router
