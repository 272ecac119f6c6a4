"""REST: the servers, and attaching, detaching and restarting one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.core.errors import InvalidArguments
from toolscore.core.models import UpstreamSpec
from toolscore.core.names import nearest
from toolscore.endpoints.asgi import principal_of, whole
from toolscore.endpoints.rest.answers import answer
from toolscore.endpoints.views import memory_by_family, server_fields

__all__ = ["servers_router"]


def servers_router(gateway: Gateway) -> APIRouter:
    """The routes of the servers."""
    router = APIRouter(tags=["servers"])

    @router.get("/api/v1/servers", summary="List the servers")
    async def list_servers(
        request: Request,
        memory: Annotated[bool, Query(description="say how much memory their processes hold, too")] = False,
    ) -> Response:
        who = principal_of(request.scope)
        servers = [
            server_fields(gateway, upstream, who)
            for upstream in gateway.upstreams
            if gateway.shows_server(who, upstream.server_id)
        ]
        servers += [
            {"kind": None, "tools": 0, "instances": 0, "calls_in_flight": 0, "restarts": 0, "pid": None, **fields}
            for fields in _absent(gateway).values()
            if gateway.shows_server(who, str(fields["server_id"]))
        ]
        if memory:
            pids = [server["pid"] for server in servers if server["pid"] is not None]
            sizes = await asyncio.to_thread(memory_by_family, pids)
            servers = [{**server, "memory_bytes": sizes.get(server["pid"])} for server in servers]
        servers.sort(key=lambda server: str(server["server_id"]))
        return answer(request, {"servers": servers, "total_count": len(servers)})

    @router.post("/api/v1/servers", summary="Attach a server", status_code=201)
    async def attach_server(
        request: Request,
        body: Annotated[
            dict[str, Any],
            Body(examples=[{"server_id": "time", "command": "uvx", "args": ["mcp-server-time"]}]),
        ],
    ) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        server_id = whole(body).pop("server_id", None)
        if not isinstance(server_id, str):
            raise InvalidArguments("`server_id` is missing", suggestion='{"server_id": "time", "command": "uvx", …}')
        try:
            spec = UpstreamSpec.model_validate(body)
        except ValueError as exc:
            raise InvalidArguments(f"server {server_id!r} cannot be attached: {_problems(exc)}") from exc
        await gateway.attach(server_id, spec)
        upstream = gateway.upstreams.get(server_id)
        message = f"server {server_id!r} is being started: GET /api/v1/servers/{server_id} shows how it goes"
        return answer(request, server_fields(gateway, upstream, principal_of(request.scope)), message, status=201)

    @router.get("/api/v1/servers/{server_id}", summary="One server")
    async def get_server(request: Request, server_id: str) -> Response:
        who = principal_of(request.scope)
        absent = _absent(gateway).get(server_id)
        if absent is not None and gateway.shows_server(who, server_id):
            return answer(request, {**absent, "stderr": []})
        fields = server_fields(gateway, gateway.find_server(who, server_id), who, full=True)
        if fields["pid"] is not None:
            fields["memory_bytes"] = (await asyncio.to_thread(memory_by_family, [fields["pid"]]))[fields["pid"]] or None
        return answer(request, fields)

    @router.delete("/api/v1/servers/{server_id}", summary="Detach a server")
    async def detach_server(request: Request, server_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        await gateway.detach(server_id)
        return answer(request, {"server_id": server_id}, f"server {server_id!r} is detached, its tools are gone")

    @router.post("/api/v1/servers/{server_id}/restart", summary="Restart a server")
    async def restart_server(request: Request, server_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        upstream = gateway.upstreams.get(server_id)
        upstream.restart()
        return answer(
            request,
            server_fields(gateway, upstream, principal_of(request.scope)),
            f"server {server_id!r} is being restarted",
        )

    @router.post("/api/v1/servers/{server_id}/disable", summary="Stop a server until it is enabled")
    async def disable_server(request: Request, server_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        await gateway.servers.disable(server_id)
        return answer(request, _absent(gateway)[server_id], f"server {server_id!r} is disabled, its tools are gone")

    @router.post("/api/v1/servers/{server_id}/enable", summary="Start a server that was disabled")
    async def enable_server(request: Request, server_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        await gateway.servers.enable(server_id)
        upstream = gateway.upstreams.get(server_id)
        return answer(
            request,
            server_fields(gateway, upstream, principal_of(request.scope)),
            f"server {server_id!r} is being started",
        )

    return router


def _absent(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """The entries of the configuration that nothing was started for: with a mistake, or disabled."""
    broken = {
        server_id: {"server_id": server_id, "state": "failed", "last_error": reason}
        for server_id, reason in gateway.servers.broken.items()
    }
    disabled = {
        server_id: {"server_id": server_id, "kind": spec.kind, "state": "stopped", "disabled": True, "last_error": None}
        for server_id, spec in gateway.servers.disabled.items()
    }
    return {**disabled, **broken}


def _problems(exc: ValueError) -> str:
    errors = getattr(exc, "errors", None)
    if errors is None:
        return str(exc)
    return "; ".join(map(_problem, errors(include_url=False)))


def _problem(error: dict[str, Any]) -> str:
    where, message = ".".join(str(part) for part in error["loc"]), str(error["msg"])
    if error["type"] == "extra_forbidden":
        near = nearest(where, UpstreamSpec.model_fields, count=1)
        message = "there is no such member" + (f": did you mean {near[0]!r}?" if near else "")
    return f"{where}: {message}".removeprefix(": ").replace("a valid tuple", "a list")
