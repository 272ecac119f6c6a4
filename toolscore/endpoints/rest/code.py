"""REST: running code that calls tools."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from toolscore.app.compose import Gateway
from toolscore.endpoints.asgi import Receive, Scope, Send
from toolscore.endpoints.code import CodeEndpoint
from toolscore.endpoints.execute import RUN_PATH

__all__ = ["code_router"]

RUN_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "examples": {"time": {"value": {"code": "tools.time.get_current_time(timezone='Asia/Tokyo')"}}},
            }
        },
    },
    "responses": {
        "200": {
            "description": "what came of it; with `accept: application/x-ndjson` a line for each event, "
            "`stdout`, `progress` and at last `end`",
            "content": {"application/json": {}, "application/x-ndjson": {}},
        }
    },
}


def code_router(gateway: Gateway) -> APIRouter:
    """The route of code."""
    router = APIRouter(tags=["code"])
    endpoint = CodeEndpoint(gateway)

    class _Plain(Response):
        def __init__(self) -> None:
            super().__init__()

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await endpoint(scope, receive, send)

    @router.post(RUN_PATH, summary="Run Python that calls tools", openapi_extra=RUN_OPENAPI)
    async def run_code() -> Response:
        return _Plain()

    return router
