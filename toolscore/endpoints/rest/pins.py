"""REST: what tools are held to, and approving a change."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.endpoints.asgi import principal_of, text_member
from toolscore.endpoints.rest.answers import answer
from toolscore.endpoints.views import pin_fields

__all__ = ["pins_router"]


def pins_router(gateway: Gateway) -> APIRouter:
    """The routes of the pins."""
    router = APIRouter(tags=["pins"])
    library = gateway.library

    @router.get("/api/v1/pins", summary="What tools are held to, and what waits for approval")
    async def list_pins(request: Request, quarantined: bool = False) -> Response:
        sees = gateway.permissions.sees(principal_of(request.scope))
        shown = [
            pin_fields(gateway, tool)
            for tool in library
            if (tool.held is not None or not quarantined) and (sees is None or sees(tool))
        ]
        return answer(request, {"pins": shown, "total_count": len(shown)})

    @router.get("/api/v1/pins/{tool_id}", summary="One pin, with the change that waits")
    async def get_pin(request: Request, tool_id: str) -> Response:
        tool = library.resolve(tool_id, sees=gateway.permissions.sees(principal_of(request.scope)))
        data = {**pin_fields(gateway, tool), "definition": tool.definition}
        if tool.held is not None and ADMIN in principal_of(request.scope).scopes:
            data["held_definition"] = tool.held.definition
        return answer(request, data)

    @router.post("/api/v1/pins/{tool_id}/approve", summary="Take what a server says of a tool now")
    async def approve(
        request: Request,
        tool_id: str,
        body: Annotated[dict[str, Any], Body(examples=[{"definition_hash": "as `held_hash` of the pin says"}])],
    ) -> Response:
        who = principal_of(request.scope)
        need_scope(who, ADMIN)
        seen = text_member(body, "definition_hash")
        tool = library.approve(library.resolve(tool_id, sees=gateway.permissions.sees(who)), who.name, seen)
        return answer(request, pin_fields(gateway, tool), f"{tool.tool_id} can be called again")

    return router
