"""What stands before FastAPI: who may come in, request ids, the body's bound, and the hot routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from toolscore.access.auth import Credential, check_origin
from toolscore.app.compose import Gateway
from toolscore.core.errors import InternalError, InvalidRequest, ToolScoreError, Unauthenticated
from toolscore.core.jsonrpc import encode
from toolscore.core.models import NOBODY
from toolscore.endpoints.asgi import (
    Message,
    Receive,
    Scope,
    Send,
    envelope,
    failure,
    given_twice,
    header,
    headers_of,
    principal_of,
    read_body,
    request_id_of,
    resource_url,
    send_json,
)
from toolscore.endpoints.execute import EXECUTE_PATHS, RUN_PATH, ExecuteEndpoint
from toolscore.endpoints.health import check_ready
from toolscore.endpoints.leases import Leases
from toolscore.endpoints.mcp.http import McpHttpEndpoint
from toolscore.endpoints.mcp.socket import AsgiChannel, McpSocketClient
from toolscore.endpoints.mcp.sse_door import MESSAGES_PATH, SSE_PATH, SseDoor
from toolscore.endpoints.uses import Uses

__all__ = ["Front"]

log = structlog.get_logger(__name__)

ONCE = (b"host", b"origin")
READY = "/readyz"
SIGNS_OF_LIFE = frozenset({"/livez", READY})
"""Orchestrators ask for them under any name."""
NO_USE = SIGNS_OF_LIFE | {"/health", "/metrics"}
"""Who asks for these looks whether the gateway is well, and does not use it."""
EXPOSED = (
    (b"access-control-expose-headers",
     b"mcp-session-id, mcp-protocol-version, x-request-id, www-authenticate, retry-after"),
    (b"vary", b"origin"),
)  # fmt: skip
ALLOWED = (
    (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
    (b"access-control-max-age", b"600"),
)
MAX_HEADER_NAMES = 2000
REGISTRY_PREFIX = "/v0.1/"
BEARER_PROTOCOL = "toolscore.bearer."
PUBLIC = frozenset({"/", "/ui", "/livez", "/readyz", "/openapi.json"})
PUBLIC_BELOW = ("/docs", "/ui/", "/.well-known/")
"""What says nothing of anybody's: signs of life, the page, the description of the API, and how to get a token."""


CLOSED = "the handler is closed"
"""uvloop's words, where a connection was cut before uvicorn heard of it."""


class ClientGone(Exception):
    """Nobody is there to read the answer."""


Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Shown = tuple[str | None, str | None]
"""The headers `Authorization` and `X-API-Key`."""


class Front:
    """What stands before FastAPI: who may come in, request ids, the body's bound, and the hot routes."""

    def __init__(self, gateway: Gateway, leases: Leases, uses: Uses) -> None:
        self._gateway = gateway
        self._uses = uses
        self._leases = leases
        self._subregistry = gateway.settings.current.discovery.subregistry
        self._making: asyncio.Future[Application] | None = None
        self._execute = ExecuteEndpoint(gateway)
        self._mcp = McpHttpEndpoint(gateway)
        self._sse = SseDoor(gateway)
        self._local = gateway.settings.current.is_local
        self._hosts_seen: set[tuple[bytes | None, bytes | None]] = set()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request or socket, when it is awaited."""
        started = time.perf_counter()
        path: str = scope["path"]
        if path.endswith("/mcp/"):  # served in place: a redirect loses many a client's body or session
            path = scope["path"] = path[:-1]
        is_http, is_use = scope["type"] == "http", path not in NO_USE
        if is_http and b"origin" in headers_of(scope) and not path.startswith(REGISTRY_PREFIX):  # which says it itself
            send = self._for_pages(scope, send)
            if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
                return self._may(scope, receive, send, started)
        if is_http and is_use:
            self._uses.asked_at = started
        shown = _shown(scope)
        if is_http and scope["method"] != "GET" and path != RUN_PATH and not path.endswith("/mcp"):
            return self._take(shown, scope, receive, send, started)
        return self._take_long(shown, is_use, scope, receive, send, started)

    async def _take_long(
        self, shown: Shown, is_use: bool, scope: Scope, receive: Receive, send: Send, started: float
    ) -> None:
        """Serve what may last."""
        with self._uses if is_use else contextlib.nullcontext():
            credential = self._gateway.auth.credential(*shown)
            if credential is None:
                await self._take(shown, scope, receive, send, started)
            else:
                await self._held(credential, shown, scope, receive, send, started)

    async def api(self) -> Application:
        """What FastAPI serves, made when it is asked for first: most gateways only take calls."""
        if self._making is None or (self._making.done() and self._making.exception() is not None):

            def make() -> Application:
                from toolscore.endpoints.api import create_api

                return create_api(self._gateway, subregistry=self._subregistry)

            self._making = asyncio.ensure_future(asyncio.to_thread(make))
        return await asyncio.shield(self._making)

    def _for_pages(self, scope: Scope, send: Send) -> Send:
        """What lets a page of an origin that we let in read the answer, whatever that is (Fetch standard, CORS)."""
        try:
            self._check(scope)
        except ToolScoreError:
            return send  # nothing is said to a foreign page
        origin = (header(scope, b"origin") or "").encode("latin-1")

        async def readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"access-control-allow-origin", origin), *EXPOSED]
            await send(message)

        return readable

    async def _may(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        """Answer a browser that asks, without a key, what a page may do."""
        try:
            self._check(scope)
        except ToolScoreError as exc:
            await _refuse(exc, scope, receive, send, started)
            return
        wanted = (header(scope, b"access-control-request-headers") or "")[:MAX_HEADER_NAMES].encode("latin-1")
        headers = [(b"access-control-allow-headers", wanted), *ALLOWED]
        if header(scope, b"access-control-request-private-network") == "true":
            headers.append((b"access-control-allow-private-network", b"true"))
        await send_json(send, 204, b"", headers)

    async def _held(
        self, credential: Credential, shown: Shown, scope: Scope, receive: Receive, send: Send, started: float
    ) -> None:
        """Serve what may stay open for longer than its key is good."""
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
                await self._take(shown, scope, receive, send, started)
            except asyncio.CancelledError:
                if not reason:
                    raise
                log.info("a stream or socket has ended", reason=reason)

    async def _take(self, shown: Shown, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        try:
            path = scope["path"]
            foreign = path.startswith(REGISTRY_PREFIX) and self._is_foreign(scope)
            if not foreign and path not in SIGNS_OF_LIFE:
                self._check(scope)
            if foreign or path in PUBLIC or path.startswith(PUBLIC_BELOW):
                if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                    await send_json(send, 405, b"", [(b"allow", b"GET, HEAD")])
                    return  # with its body unread: nobody is known here whose it could be
                scope["toolscore.principal"] = NOBODY
            else:
                scope["toolscore.principal"] = await self._gateway.auth.authenticate(*shown, local=self._local)
            if scope["type"] == "http":
                if path in EXECUTE_PATHS and scope["method"] == "POST":
                    await self._execute(scope, receive, send)
                    return
                if path == "/mcp":
                    await self._mcp(scope, receive, send)
                    return
                if path in SIGNS_OF_LIFE and scope["method"] == "GET":
                    await self._sign_of_life(scope, send, started)
                    return
                if path == SSE_PATH and scope["method"] == "GET":
                    await self._sse.open(scope, receive, send)
                    return
                if path == MESSAGES_PATH:
                    await self._sse.post(scope, receive, send)
                    return
                if path.startswith("/servers/") and path.endswith(SSE_PATH) and scope["method"] == "GET":
                    await self._sse.open(scope, receive, send, path[len("/servers/") : -len(SSE_PATH)])
                    return
                if path.startswith("/servers/") and path.endswith("/mcp"):
                    await self._mcp(scope, receive, send, path[len("/servers/") : -len("/mcp")])
                    return
            elif path.endswith("/mcp") and (path == "/mcp" or path.startswith("/servers/")):
                await self._mcp_socket(scope, receive, send, path[len("/servers/") : -len("/mcp")] or None)
                return
        except ToolScoreError as exc:
            challenge = self._challenge(scope) if isinstance(exc, Unauthenticated) else None
            await _refuse(exc, scope, receive, send, started, challenge=challenge)
            return
        await self._to_fastapi(scope, receive, send, started)

    async def _sign_of_life(self, scope: Scope, send: Send, started: float) -> None:
        if scope["path"] == READY:
            check_ready(self._gateway)
        request_id = request_id_of(scope)
        body = envelope({"status": "ready"}, request_id=request_id, started=started)
        await send_json(send, 200, encode(body), [(b"x-request-id", request_id.encode("latin-1", "replace"))])

    async def _mcp_socket(self, scope: Scope, receive: Receive, send: Send, server_id: str | None) -> None:
        principal = principal_of(scope)
        if server_id is not None:
            self._gateway.find_server(principal, server_id)
        await receive()  # the handshake
        await send({"type": "websocket.accept", "subprotocol": "mcp" if "mcp" in scope["subprotocols"] else None})
        await McpSocketClient(self._gateway, AsgiChannel(receive, send), server_id, principal).run()

    def _check(self, scope: Scope) -> None:
        headers = headers_of(scope)
        came = headers.get(b"host"), headers.get(b"origin")
        if (twice := given_twice(scope, ONCE)) is not None:
            raise InvalidRequest(f"the request has more than one header {twice.decode()}")
        if came[0] is None and scope.get("http_version") == "1.1":
            raise InvalidRequest("the request has no header Host")
        if came not in self._hosts_seen:
            host, origin = header(scope, b"host"), header(scope, b"origin")
            check_origin(host, origin, self._gateway.settings.current.access.allowed_hosts)
            if len(self._hosts_seen) < 100:
                self._hosts_seen.add(came)

    def _challenge(self, scope: Scope) -> str:
        """What a client does to be let in (RFC 6750, RFC 9728). Where no tokens count there is no login to look for."""
        access = self._gateway.settings.current.access
        if access.tokens is None:
            return 'Bearer realm="toolscore"'
        path = "/.well-known/oauth-protected-resource" + scope["path"].rstrip("/")
        return f'Bearer resource_metadata="{resource_url(scope, path, access)}"'

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
        request_id = request_id_of(scope)
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        if scope["type"] != "http":
            await (await self.api())(scope, receive, send)
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
            try:
                await send(message)
            except RuntimeError as exc:
                if CLOSED in str(exc):
                    raise ClientGone from exc
                raise

        try:
            await (await self.api())(scope, replay, with_id)
        except ClientGone:
            return
        except Exception:  # a request's outermost line
            log.exception("a request failed", path=scope["path"], request_id=request_id)
            if not answering:
                error = InternalError(f"the gateway failed; its log has the details under request {request_id}")
                await _refuse(error, scope, receive, send, started, request_id)


def _shown(scope: Scope) -> Shown:
    """The headers `Authorization` and `X-API-Key`. A page cannot set them on a WebSocket: it offers its key as a
    subprotocol, which is never chosen.
    """
    authorization, api_key = header(scope, b"authorization"), header(scope, b"x-api-key")
    if scope["type"] == "websocket" and authorization is None and api_key is None:
        for offered in scope["subprotocols"]:
            if offered.startswith(BEARER_PROTOCOL):
                return f"Bearer {offered[len(BEARER_PROTOCOL) :]}", None
    return authorization, api_key


async def _refuse(
    error: ToolScoreError,
    scope: Scope,
    receive: Receive,
    send: Send,
    started: float,
    request_id: str | None = None,
    challenge: str | None = None,
) -> None:
    body, headers = failure(error, request_id=request_id or request_id_of(scope), started=started)
    if challenge is not None:
        headers.append((b"www-authenticate", challenge.encode("latin-1", "replace")))
    if scope["type"] == "websocket":
        await receive()
        headers = [(b"content-type", b"application/json"), *headers]
        await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
        return
    await send_json(send, error.status, body, headers)
