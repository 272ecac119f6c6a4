"""REST for discovery: gaps, catalogs, installs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.discovery import Installed, Wish
from toolscore.discovery.capability import as_seen
from toolscore.discovery.views import (
    acquired_fields,
    analysis_fields,
    installed_fields,
    offer_fields,
    source_fields,
)
from toolscore.endpoints.asgi import principal_of, read_as
from toolscore.endpoints.rest.answers import answer

__all__ = ["InstallRequest", "Task", "discovery_router"]


class Task(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `analyze-gap` and `request-capability`. `context`: what else matters, as text or an object."""

    task_description: str
    context: str | dict[str, Any] | None = None

    def context_text(self) -> str:
        if isinstance(self.context, dict):
            return msgspec.json.encode(self.context).decode()[:4000]
        return (self.context or "")[:4000]


class InstallRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/catalog/install`.

    Attributes:
        name: of the server in its catalog.
        env: secrets by reference: `${env:NAME}` or `${file:/path}`.
        arguments: of its command line, by their names in the catalog.
        folders: of the gateway's machine that it may use: absolute paths, `:ro` behind those that it may only read.
        approve: allow it though no rule does; takes the scope `admin`.
        digest: of the plan that was looked at: another one is refused.
        dry_run: only say what would be done.
    """

    name: str
    version: str | None = None
    registry: Literal["pypi", "npm", "oci", "remote"] | None = None
    server_id: str | None = None
    env: dict[str, str] = {}
    arguments: dict[str, str] = {}
    folders: list[str] = []
    network: bool = False
    approve: bool = False
    digest: str | None = None
    dry_run: bool = False


TASK_EXAMPLE = {"task_description": "what time is it in Tokyo?"}
INSTALL_EXAMPLE = {"name": "io.github.modelcontextprotocol/time", "dry_run": True}


def discovery_router(gateway: Gateway) -> APIRouter:
    """The routes of discovery."""
    router = APIRouter(tags=["discovery"])
    installer, catalog = gateway.installer, gateway.catalog

    def seen(request: Request, one: Installed) -> dict[str, Any]:
        """What was installed, as far as the caller sees it."""
        sees = gateway.permissions.sees(principal_of(request.scope))
        return installed_fields(as_seen(one, gateway.library, sees))

    @router.post("/api/v1/tools/analyze-gap", summary="Do our tools fit a task?")
    async def analyze_gap(request: Request, body: Annotated[dict[str, Any], Body(examples=[TASK_EXAMPLE])]) -> Response:
        """Each step of the task is `sufficient`, `unsure` or `gap`, with a measured confidence."""
        who, task = principal_of(request.scope), read_as(body, Task)
        analysis = await gateway.gaps.analyze(
            task.task_description, context=task.context_text(), principal=who.name, sees=gateway.permissions.sees(who)
        )
        return answer(request, analysis_fields(analysis))

    @router.post("/api/v1/tools/request-capability", summary="Get what a task lacks")
    async def request_capability(
        request: Request, body: Annotated[dict[str, Any], Body(examples=[TASK_EXAMPLE])]
    ) -> Response:
        """Gap, candidates, install (if a rule allows it), tools. Progress: the events `install_progress`."""
        who, task = principal_of(request.scope), read_as(body, Task)
        acquired = await gateway.broker.request(
            task.task_description, context=task.context_text(), principal=who.name, sees=gateway.permissions.sees(who)
        )
        return answer(request, acquired_fields(acquired))

    @router.get("/api/v1/catalog/search", summary="Servers that may do")
    async def search_catalog(
        request: Request,
        q: Annotated[str, Query(description="a task or keywords", examples=["send a message to Slack"])],
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> Response:
        offers = await gateway.broker.offers(q, limit)
        who = principal_of(request.scope)
        installed = {one.name: one.server_id for one in installer if gateway.shows_server(who, one.server_id)}
        found = [
            {**offer_fields(offer), "installed_as": installed.get(offer.candidate.entry.name)} for offer in offers
        ]  # fmt: skip
        sources = [source_fields(state) for state in await catalog.states()]
        return answer(request, {"servers": found, "total_count": len(found), "sources": sources})

    @router.get("/api/v1/catalog/approvals", summary="Tasks that wait for an install to be approved")
    async def list_approvals(request: Request) -> Response:
        """Each ends when one of its servers is installed, or when somebody dismisses it."""
        need_scope(principal_of(request.scope), ADMIN)
        waiting = [msgspec.to_builtins(one) for one in gateway.broker.waits()]
        return answer(request, {"approvals": waiting, "total_count": len(waiting)})

    @router.delete("/api/v1/catalog/approvals/{approval_id}", summary="Approve nothing for a task")
    async def dismiss_approval(request: Request, approval_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        gateway.broker.dismiss(approval_id)
        return answer(request, {"approval_id": approval_id})

    @router.post("/api/v1/catalog/refresh", summary="Copy the registries now")
    async def refresh_catalog(request: Request) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        return answer(request, {"sources": [source_fields(state) for state in await catalog.refresh()]})

    @router.post("/api/v1/catalog/install", summary="Install a server")
    async def install(request: Request, body: Annotated[dict[str, Any], Body(examples=[INSTALL_EXAMPLE])]) -> Response:
        """What no rule under `discovery.install.allow` allows needs `approve`, and that the scope `admin`."""
        wanted = read_as(body, InstallRequest)
        own = wanted.env or wanted.arguments or wanted.folders or wanted.network or wanted.server_id
        if wanted.approve or own:
            need_scope(principal_of(request.scope), ADMIN)
        wish = Wish(
            await catalog.get(wanted.name, wanted.version),
            server_id=wanted.server_id,
            registry=wanted.registry,
            env=wanted.env,
            arguments=wanted.arguments,
            folders=wanted.folders,
            network=wanted.network,
            approved=wanted.approve,
        )
        if wanted.dry_run:
            wish, plan = await installer.plan(wish)
            done = installer.done(wish, plan)
            shown = {
                **msgspec.to_builtins(plan),
                "digest": plan.digest,
                "installed": seen(request, done) if done else None,
            }
            return answer(request, {"plan": shown})
        return answer(request, seen(request, await installer.install(wish, digest=wanted.digest)))

    @router.get("/api/v1/catalog/installed", summary="What was installed")
    async def list_installed(request: Request) -> Response:
        who = principal_of(request.scope)
        found = [seen(request, one) for one in installer if gateway.shows_server(who, one.server_id)]
        return answer(request, {"servers": found, "total_count": len(found)})

    @router.delete("/api/v1/catalog/installed/{name:path}", summary="Uninstall a server")
    async def uninstall(request: Request, name: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        return answer(request, installed_fields(await installer.uninstall(name)))

    return router
