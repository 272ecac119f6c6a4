"""REST: patterns of errors, and what helped."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.endpoints.asgi import principal_of, text_member, whole
from toolscore.endpoints.rest.answers import answer

__all__ = ["errors_router"]

MAX_PAGE = 1000


def errors_router(gateway: Gateway) -> APIRouter:
    """The routes of known errors."""
    router = APIRouter(tags=["errors"])
    library, firewall = gateway.library, gateway.firewall

    @router.get("/api/v1/errors", summary="Patterns of errors, and what helped")
    async def list_errors(request: Request, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100) -> Response:
        need_scope(principal_of(request.scope), ADMIN)  # the words may be of any caller's
        return answer(request, {"patterns": firewall.shown(limit)})

    @router.post("/api/v1/errors/match", summary="What is known of an error")
    async def match(
        request: Request,
        body: Annotated[dict[str, Any], Body(examples=[{"message": "no such table: users", "tool_id": "db__query"}])],
    ) -> Response:
        who = principal_of(request.scope)
        message, tool_id = text_member(whole(body), "message"), body.get("tool_id")
        if tool_id is not None:
            tool_id = library.resolve(text_member(body, "tool_id"), sees=gateway.permissions.sees(who)).tool_id
        found = await firewall.match(message, who.name, tool_id, operator=ADMIN in who.scopes)
        return answer(request, msgspec.structs.asdict(found))

    @router.post("/api/v1/errors/fixes", summary="Write down what helps", status_code=201)
    async def write_fix(
        request: Request,
        body: Annotated[
            dict[str, Any],
            Body(examples=[{"message": "no such table: users", "text": "list the tables first", "tool_id": None}]),
        ],
    ) -> Response:
        who = principal_of(request.scope)
        need_scope(who, ADMIN)
        tool_id = whole(body).get("tool_id")
        if tool_id is not None:
            tool_id = library.resolve(text_member(body, "tool_id")).tool_id
        fix = firewall.write_fix(text_member(body, "message"), text_member(body, "text"), who.name, tool_id)
        data = {"fix_id": fix.fix_id, "pattern_id": fix.pattern_id, "text": fix.text, "tool_id": tool_id}
        return answer(request, data, "it comes back with every such error from now on", status=201)

    @router.delete("/api/v1/errors/fixes/{fix_id}", summary="Forget a fix")
    async def remove_fix(request: Request, fix_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        firewall.remove_fix(fix_id)
        return answer(request, {"fix_id": fix_id}, "forgotten")

    @router.post("/api/v1/errors/fixes/{fix_id}/disable", summary="Tell nobody of a fix")
    async def disable_fix(request: Request, fix_id: str) -> Response:
        """It is not learned anew, as one that is forgotten may be."""
        need_scope(principal_of(request.scope), ADMIN)
        firewall.switch_fix(fix_id, off=True)
        return answer(request, {"fix_id": fix_id}, "nobody is told of it any more")

    @router.post("/api/v1/errors/fixes/{fix_id}/enable", summary="Tell of a fix again")
    async def enable_fix(request: Request, fix_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        firewall.switch_fix(fix_id, off=False)
        return answer(request, {"fix_id": fix_id})

    return router
