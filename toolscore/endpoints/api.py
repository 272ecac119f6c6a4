"""The part of the HTTP port that FastAPI serves: REST, the pages, the stream of events, the registry."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline

from toolscore import __version__
from toolscore.app.compose import Gateway
from toolscore.core.errors import MethodNotFound
from toolscore.dashboard import Page
from toolscore.endpoints.asgi import resource_url
from toolscore.endpoints.live import add_live
from toolscore.endpoints.registry import add_registry
from toolscore.endpoints.rest import add_rest

__all__ = ["create_api"]


def create_api(gateway: Gateway, *, subregistry: bool) -> FastAPI:
    """The ASGI application behind the front door. Takes a second and 15 MB: it is made when it is asked for first.

    Args:
        subregistry: whether the MCP Registry API is among it.
    """
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/static",
        title="ToolScore",
        version=__version__,
        description="One address for every tool an agent can use.",
    )

    page = Page()

    @app.get("/", include_in_schema=False)
    @app.get("/ui", include_in_schema=False)
    @app.get("/ui/{path:path}", include_in_schema=False)
    async def dashboard(request: Request, path: str = "") -> Response:
        part = await asyncio.to_thread(page.part, path, request.headers.get("accept-encoding", ""))
        if part is None:
            raise MethodNotFound(f"there is nothing at {request.url.path}: load the page again, it is a newer one now")
        return Response(part.content, part.status, part.headers)

    @app.get("/.well-known/oauth-protected-resource", include_in_schema=False)
    @app.get("/.well-known/oauth-protected-resource/{path:path}", include_in_schema=False)
    async def protected_resource(request: Request, path: str = "mcp") -> JSONResponse:
        """Which authorization server gives tokens for us (RFC 9728)."""
        tokens = gateway.settings.current.access.tokens
        if tokens is None:
            raise MethodNotFound("this gateway takes API keys, and no tokens of an authorization server")
        return JSONResponse(
            {
                "resource": resource_url(request.scope, f"/{path}", gateway.settings.current.access),
                "authorization_servers": [tokens.issuer],
                "bearer_methods_supported": ["header"],
                "scopes_supported": list(tokens.scopes),
                "resource_name": "ToolScore",
            }
        )

    add_rest(app, gateway)
    add_live(app, gateway)
    if subregistry:
        add_registry(app, gateway)
    return app
