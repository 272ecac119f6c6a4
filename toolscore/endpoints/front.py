"""What stands before FastAPI: who may come in, request ids, the body's bound, and the hot routes."""

from __future__ import annotations

import asyncio
import time

import structlog
from fastapi import FastAPI

from toolscore.access.auth import check_origin
from toolscore.app.compose import Gateway
from toolscore.core.errors import InternalError, ToolScoreError, Unauthenticated
from toolscore.core.hosts import is_loopback
from toolscore.core.models import NOBODY
from toolscore.endpoints.asgi import (
    Message,
    Receive,
    Scope,
    Send,
    failure,
    header,
    new_request_id,
    read_body,
    send_json,
)
from toolscore.endpoints.execute import EXECUTE_PATHS, ExecuteEndpoint
from toolscore.endpoints.leases import Leases
from toolscore.endpoints.mcp.http import McpHttpEndpoint
from toolscore.endpoints.registry import REGISTRY_PREFIX

__all__ = ["Front", "resource_url"]

log = structlog.get_logger(__name__)

PUBLIC = frozenset({"/", "/livez", "/readyz", "/openapi.json"})
PUBLIC_BELOW = ("/docs", "/.well-known/")
"""What says nothing of anybody's: signs of life, the description of the API, and how to get a token."""


class Front:
    """What stands before FastAPI: who may come in, request ids, the body's bound, and the hot routes."""

    def __init__(self, gateway: Gateway, app: FastAPI, leases: Leases) -> None:
        self._gateway = gateway
        self._leases = leases
        self._app = app
        self._execute = ExecuteEndpoint(gateway)
        self._mcp = McpHttpEndpoint(gateway)
        settings = gateway.settings.current
        self._local = is_loopback(settings.core_services.toolscore_http.host) or settings.access.allow_unauthenticated
        self._hosts_seen: set[tuple[str | None, str | None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        if scope["type"] == "websocket" or scope["method"] == "GET" or scope["path"].endswith("/mcp"):
            await self._held(scope, receive, send, started)
        else:
            await self._take(scope, receive, send, started)

    async def _held(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        """Serve what may stay open for longer than its key is good."""
        credential = self._gateway.auth.credential(header(scope, b"authorization"), header(scope, b"x-api-key"))
        if credential is None:
            await self._take(scope, receive, send, started)
            return
        task, reason = asyncio.current_task(), ""

        async def end(why: str) -> None:
            nonlocal reason
            reason = why
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": why[:120]})
            if task is not None:
                task.cancel()

        with self._leases.hold(credential, end):
            try:
                await self._take(scope, receive, send, started)
            except asyncio.CancelledError:
                if not reason:
                    raise
                log.info("a stream or socket has ended", reason=reason)

    async def _take(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        try:
            path = scope["path"]
            foreign = path.startswith(REGISTRY_PREFIX) and self._is_foreign(scope)
            if not foreign:
                self._check(scope)
            if foreign or path in PUBLIC or path.startswith(PUBLIC_BELOW):
                scope["toolscore.principal"] = NOBODY
            else:
                authorization, api_key = header(scope, b"authorization"), header(scope, b"x-api-key")
                scope["toolscore.principal"] = await self._gateway.auth.authenticate(
                    authorization, api_key, local=self._local
                )
            if scope["type"] == "http":
                if path in EXECUTE_PATHS and scope["method"] == "POST":
                    await self._execute(scope, receive, send)
                    return
                if path == "/mcp":
                    await self._mcp(scope, receive, send)
                    return
                if path.startswith("/servers/") and path.endswith("/mcp"):
                    await self._mcp(scope, receive, send, path[len("/servers/") : -len("/mcp")])
                    return
        except ToolScoreError as exc:
            await _refuse(exc, scope, receive, send, started)
            return
        await self._to_fastapi(scope, receive, send, started)

    def _check(self, scope: Scope) -> None:
        host, origin = header(scope, b"host"), header(scope, b"origin")
        if (host, origin) not in self._hosts_seen:
            check_origin(host, origin, self._gateway.settings.current.access.allowed_hosts)
            if len(self._hosts_seen) < 100:
                self._hosts_seen.add((host, origin))

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether a page of another site asks, or somebody without a key where one is needed."""
        try:
            self._check(scope)
        except ToolScoreError:
            return True
        if header(scope, b"sec-fetch-site") == "cross-site":
            return True
        shown = header(scope, b"authorization") or header(scope, b"x-api-key")
        return not shown and not (self._local and self._gateway.settings.current.access.local_without_key)

    async def _to_fastapi(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        request_id = new_request_id(header(scope, b"x-request-id"))
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answering = False
        replayed = False
        try:
            body = await read_body(scope, receive, self._gateway.settings.current.limits.max_body_bytes)
        except ToolScoreError as exc:
            await _refuse(exc, scope, receive, send, started, request_id)
            return

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def with_id(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1", "replace"))]
            await send(message)

        try:
            await self._app(scope, replay, with_id)
        except Exception:  # a request's outermost line
            log.exception("a request failed", path=scope["path"], request_id=request_id)
            if not answering:
                error = InternalError(f"the gateway failed; its log has the details under request {request_id}")
                await _refuse(error, scope, receive, send, started, request_id)


async def _refuse(
    error: ToolScoreError, scope: Scope, receive: Receive, send: Send, started: float, request_id: str | None = None
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
        return
    body, headers = failure(
        error, request_id=request_id or new_request_id(header(scope, b"x-request-id")), started=started
    )
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", _challenge(scope).encode("latin-1", "replace")))
    await send_json(send, error.status, body, headers)


def _challenge(scope: Scope) -> str:
    """What a client does to be let in (RFC 6750, RFC 9728)."""
    where = resource_url(scope, "/.well-known/oauth-protected-resource" + scope["path"].rstrip("/"))
    return f'Bearer resource_metadata="{where}"'


def resource_url(scope: Scope, path: str) -> str:
    """An address of ours as the client knows us."""
    return f"{scope.get('scheme', 'http')}://{header(scope, b'host') or 'localhost'}{path}"
