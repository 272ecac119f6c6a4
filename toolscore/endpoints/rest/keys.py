"""REST: API keys."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, KeyRing, need_scope
from toolscore.app.compose import Gateway
from toolscore.core.clock import now, timestamp
from toolscore.endpoints.asgi import principal_of, read_as
from toolscore.endpoints.rest.answers import answer
from toolscore.stores.database import or_overloaded

__all__ = ["KeyRequest", "keys_router"]


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/keys`.

    Attributes:
        name: whose key it is, for the log and the rules.
        scopes: what its owner may do; `admin` changes the gateway.
        days: it is good for so many; for ever if not given.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    scopes: list[str] = []
    days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] | None = None


def keys_router(gateway: Gateway) -> APIRouter:
    """The routes of API keys."""
    router = APIRouter(tags=["keys"])
    keys = KeyRing(gateway.database)

    @router.get("/api/v1/keys", summary="The API keys, revoked ones too")
    async def list_keys(request: Request) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        with _store():
            rows = await keys.list()
        shown = [{**{name: row[name] for name in SHOWN}, "scopes": str(row["scopes"]).split()} for row in rows]
        return answer(request, {"keys": shown, "total_count": len(shown)})

    @router.post("/api/v1/keys", summary="Make an API key", status_code=201)
    async def create_key(
        request: Request, body: Annotated[dict[str, Any], Body(examples=[{"name": "ada", "scopes": [], "days": 90}])]
    ) -> Response:
        """The key itself is in this answer, and nowhere else."""
        need_scope(principal_of(request.scope), ADMIN)
        wanted = read_as(body, KeyRequest)
        expires_at = timestamp(now() + timedelta(days=wanted.days)) if wanted.days is not None else None
        with _store():
            key_id, key = await keys.create(wanted.name, wanted.scopes, expires_at)
        data = {"key_id": key_id, "key": key, "name": wanted.name, "scopes": wanted.scopes, "expires_at": expires_at}
        return answer(request, data, "it is not shown again", status=201)

    @router.delete("/api/v1/keys/{key_id}", summary="Make a key worthless")
    async def revoke_key(request: Request, key_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        with _store():
            await keys.revoke(key_id)
        return answer(request, {"key_id": key_id}, f"key {key_id} is revoked")

    return router


def _store() -> AbstractContextManager[None]:
    """Keys stand in the database: the caller is told where it is away."""
    return or_overloaded("the keys cannot be had just now", retry_after_seconds=5)


SHOWN = ("key_id", "name", "created_at", "expires_at", "revoked_at")
