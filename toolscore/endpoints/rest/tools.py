"""REST: the library of tools, and running one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.core.errors import ToolNotFound
from toolscore.core.models import Sees, Tool
from toolscore.endpoints.asgi import Receive, Scope, Send, principal_of, whole
from toolscore.endpoints.execute import EXECUTE_PATHS, ExecuteEndpoint
from toolscore.endpoints.rest.answers import answer
from toolscore.endpoints.rest.openapi import EXECUTE_OPENAPI
from toolscore.endpoints.views import found_tools, tool_fields

__all__ = ["tools_router"]

DEFAULT_PAGE = 100
MAX_PAGE = 1000


def tools_router(gateway: Gateway) -> APIRouter:
    """The routes of the library."""
    router = APIRouter(tags=["tools"])
    execute = ExecuteEndpoint(gateway)

    class _Hot(Response):
        """Lets OpenAPI describe the route that the application in front serves."""

        def __init__(self) -> None:
            super().__init__()

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await execute(scope, receive, send)

    async def execute_tool() -> Response:
        return _Hot()

    for path in EXECUTE_PATHS:
        router.add_api_route(
            path, execute_tool, methods=["POST"], summary="Run a tool", openapi_extra=EXECUTE_OPENAPI
        )  # fmt: skip

    @router.get("/list_tools", summary="List the tools")
    @router.get("/api/v1/tools", summary="List the tools")
    async def list_tools(
        request: Request,
        server_id: Annotated[str | None, Query(description="only this server's", examples=["time"])] = None,
        tag: Annotated[str | None, Query(description="only those of servers with this tag")] = None,
        q: Annotated[str | None, Query(description="only those with this text in name or description")] = None,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
        disabled: Annotated[bool, Query(description="those that are disabled, which nobody sees otherwise")] = False,
    ) -> Response:
        gateway.upstreams.tools_are_listed()
        sees: Sees | None = gateway.permissions.sees(principal_of(request.scope))
        if disabled:
            need_scope(principal_of(request.scope), ADMIN)
            off = gateway.permissions.off

            def sees(tool: Tool) -> bool:
                return tool.tool_id in off

        tools, after = gateway.library.page(cursor=cursor, limit=limit, server_id=server_id, tag=tag, text=q, sees=sees)
        data = {
            "tools": [tool_fields(gateway, tool) for tool in tools],
            "total_count": gateway.library.count(sees),
            "next_cursor": after,
        }
        return answer(request, data)

    @router.post("/api/v1/tools/search", summary="Find the tools for a task")
    async def search_tools(
        request: Request,
        body: Annotated[dict[str, Any], Body(examples=[{"query": "what time is it in Tokyo", "limit": 5}])],
    ) -> Response:
        return answer(request, await found_tools(gateway, whole(body), principal_of(request.scope)))

    @router.get("/api/v1/tools/{tool_id}", summary="One tool")
    async def get_tool(
        request: Request, tool_id: Annotated[str, Path(examples=["time__get_current_time"])]
    ) -> Response:
        who = principal_of(request.scope)
        sees = gateway.permissions.sees(who)
        tool = gateway.library.find(tool_id, sees)
        if tool is None and tool_id in gateway.permissions.off and ADMIN in who.scopes:
            tool = gateway.library.find(tool_id)
        if tool is None:
            gateway.library.resolve(tool_id, sees=sees)  # raises, with the nearest names, unless it is a server's id
            raise ToolNotFound(f"{tool_id!r} is a server: GET /api/v1/servers/{tool_id}")
        return answer(request, tool_fields(gateway, tool, full=True))

    @router.post("/api/v1/tools/{tool_id}/disable", summary="Hide a tool from everybody")
    async def disable_tool(request: Request, tool_id: str) -> Response:
        """Nobody sees or may call it, until it is enabled; also after a restart."""
        return await switch(request, tool_id, off=True)

    @router.post("/api/v1/tools/{tool_id}/enable", summary="Show a tool that was disabled")
    async def enable_tool(request: Request, tool_id: str) -> Response:
        return await switch(request, tool_id, off=False)

    async def switch(request: Request, tool_id: str, *, off: bool) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        tool = gateway.library.resolve(tool_id)
        await gateway.switches.switch(tool, off=off)
        return answer(request, {"tool_id": tool.tool_id, "disabled": off})

    return router
