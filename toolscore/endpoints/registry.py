"""A subregistry: the MCP Registry API v0.1 over our servers and our catalogs, with our scores in `_meta`.

An editor that browses a registry can browse this gateway. What is shown of our own servers, and how they are reached
through us, is for those who may call them; everybody else, web pages of other sites among them, sees the catalogs.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from toolscore import __version__
from toolscore.app.compose import Gateway
from toolscore.app.executor import EXECUTOR_ID
from toolscore.core.clock import timestamp
from toolscore.core.errors import ServerNotFound, ToolScoreError
from toolscore.core.models import NOBODY
from toolscore.discovery import Entry
from toolscore.discovery.catalog.server_json import OFFICIAL, UNSAID
from toolscore.discovery.own_tools import OWN_SERVER
from toolscore.endpoints.asgi import header, principal_of, resource_url

__all__ = ["add_registry"]

SCORES = "toolscore.gateway/scores"
OWN_NAMESPACE = "local.toolscore"
SCHEMA = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
VARY = {"vary": "Origin, Authorization, X-Api-Key"}
CORS = {
    **VARY,
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, OPTIONS",
    "access-control-allow-headers": "authorization, content-type, x-api-key",
    "access-control-max-age": "86400",
}


def headers_of(request: Request) -> dict[str, str]:
    """Any page may read what anybody sees; what is one caller's is for that page alone, and is kept nowhere."""
    if principal_of(request.scope) is NOBODY:
        return CORS
    private = {**CORS, "cache-control": "no-store"}
    origin = header(request.scope, b"origin")
    if origin is None:
        del private["access-control-allow-origin"]
    else:  # one of ours, or it would be nobody's
        private["access-control-allow-origin"] = origin
    return private


def add_registry(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""
    router = APIRouter(tags=["registry"])

    @router.get("/v0.1/servers", summary="List servers (MCP Registry API)")
    async def list_servers(
        request: Request,
        cursor: Annotated[str | None, Query(max_length=500)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 30,
        search: Annotated[str | None, Query(max_length=200, description="part of a name")] = None,
        updated_since: Annotated[str | None, Query(max_length=40, description="RFC 3339")] = None,
        version: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Response:
        own = [
            entry for entry in _own(gateway, request)
            if (cursor is None or entry["server"]["name"] > cursor)
            and (not search or search.casefold() in entry["server"]["name"].casefold())
            and version in (None, "", "latest", entry["server"]["version"])
        ]  # fmt: skip
        entries, after = await gateway.catalog.page(
            cursor=cursor, limit=limit, search=search, updated_since=updated_since, version=version
        )
        listed = sorted([*own, *map(_shown, entries)], key=lambda one: str(one["server"]["name"]))
        page = listed[:limit]
        more = after is not None or len(listed) > limit
        metadata: dict[str, Any] = {"count": len(page)}
        if more and page:
            metadata["nextCursor"] = page[-1]["server"]["name"]
        return JSONResponse({"servers": page, "metadata": metadata}, headers=headers_of(request))

    @router.get("/v0.1/servers/{name:path}/versions/{version:path}", summary="One version of a server")
    async def get_version(request: Request, name: str, version: str) -> Response:
        try:
            for own in _own(gateway, request):
                if own["server"]["name"] == unquote(name) and version in ("latest", own["server"]["version"]):
                    return JSONResponse(own, headers=headers_of(request))
            for entry in await _versions(gateway, request, unquote(name)):
                if unquote(version) in ("latest", entry.server["version"]):
                    return JSONResponse(_shown(entry), headers=headers_of(request))
            raise ServerNotFound(f"no version {unquote(version)!r:.80} of {unquote(name)!r:.200}")
        except ToolScoreError as exc:
            return _failed(exc)

    @router.get("/v0.1/servers/{name:path}/versions", summary="The versions of a server")
    async def list_versions(request: Request, name: str) -> Response:
        try:
            own = [one for one in _own(gateway, request) if one["server"]["name"] == unquote(name)]
            found = own or [_shown(entry) for entry in await _versions(gateway, request, unquote(name))]
        except ToolScoreError as exc:
            return _failed(exc)
        return JSONResponse({"servers": found, "metadata": {"count": len(found)}}, headers=headers_of(request))

    @router.options("/v0.1/{path:path}", include_in_schema=False)
    async def preflight(path: str) -> Response:
        return Response(status_code=204, headers=CORS)

    app.include_router(router)


async def _versions(gateway: Gateway, request: Request, name: str) -> list[Entry]:
    """The versions of a server, the newest first; for nobody in particular the one that we know, and no question."""
    if principal_of(request.scope) is NOBODY:
        return [await gateway.catalog.known(name)]
    if "/" not in name:
        raise ServerNotFound("a server's name has a slash: namespace/name, with %2F in a path")
    return await gateway.catalog.versions(name)


def _failed(exc: ToolScoreError) -> Response:
    """An error as the Registry API has it."""
    said = f"{exc.message}; {exc.suggestion}" if exc.suggestion else exc.message
    return JSONResponse({"error": said}, status_code=exc.status, headers=CORS)


def _shown(entry: Entry) -> dict[str, Any]:
    """A catalog's entry in the official format."""
    meta = {"isLatest": True, "status": "active", **entry.official()}
    return {"server": _public(entry.server), "_meta": {**entry.meta, OFFICIAL: meta}}


def _public(server: dict[str, Any]) -> dict[str, Any]:
    """Without variables that mean something to our own installer alone."""
    packages = [
        {**package, "environmentVariables": [
            one for one in package["environmentVariables"] if "{home}" not in str(one.get("value"))
        ]} if "environmentVariables" in package else package
        for package in server.get("packages") or []
    ]  # fmt: skip
    return {**server, "packages": packages}


def _own(gateway: Gateway, request: Request) -> list[dict[str, Any]]:
    """Our own servers, as the caller may reach them through us."""
    principal = principal_of(request.scope)
    if principal is NOBODY:
        return []
    sees = gateway.permissions.sees(principal)
    base = resource_url(request.scope, "", gateway.settings.current.access)
    shown = []
    for upstream in gateway.upstreams:
        tools = [tool for tool in gateway.library.of_server(upstream.server_id) if sees is None or sees(tool)]
        if not tools or upstream.server_id == OWN_SERVER:
            continue
        installed = gateway.installer.find(upstream.server_id)
        info = upstream.info.implementation if upstream.info is not None else {}
        about = upstream.spec.description or str(info.get("title") or info.get("name") or upstream.server_id)
        ours = upstream.server_id == EXECUTOR_ID or upstream.spec.inprocess
        version = str(installed.version if installed else __version__ if ours else info.get("version") or UNSAID)
        scores = [(tool.tool_id, gateway.scores.of(tool)) for tool in tools]
        shown.append(
            {
                "server": {
                    "$schema": SCHEMA,
                    "name": f"{OWN_NAMESPACE}/{re.sub(r'[^a-zA-Z0-9._-]+', '-', upstream.server_id)}",
                    "description": about[:97] + "..." if len(about) > 100 else about,
                    "title": upstream.server_id[:100],
                    "version": version,
                    "remotes": [{"type": "streamable-http", "url": f"{base}/servers/{upstream.server_id}/mcp"}],
                },
                "_meta": {
                    OFFICIAL: {"status": "active", "isLatest": True, "updatedAt": upstream.up_since or timestamp()},
                    SCORES: {
                        "state": upstream.state,
                        "catalog_name": installed.name if installed else None,
                        "tools": {key: {"score": one.value, "calls": one.sample_size} for key, one in scores},
                    },
                },
            }
        )
    return shown
