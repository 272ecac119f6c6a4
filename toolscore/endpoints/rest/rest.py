"""REST: the monitoring API of WIRE.md 2. One envelope for every answer, errors too."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Any

import msgspec
import psutil
import structlog
from fastapi import APIRouter, Body, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from msgspec import Raw
from starlette.exceptions import HTTPException

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.gateway import EXECUTOR_ID, Gateway
from toolscore.core.errors import (
    InternalError,
    InvalidArguments,
    InvalidRequest,
    MethodNotFound,
    ToolNotFound,
    ToolScoreError,
)
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Principal, Tool, ToolCall, ToolResult, UpstreamSpec, shown_url
from toolscore.endpoints.asgi import (
    ClientWatch,
    Receive,
    Scope,
    Send,
    envelope,
    failure,
    forwarded_headers,
    header,
    new_request_id,
    principal_of,
    read_body,
    send_json,
    whole,
)
from toolscore.endpoints.health import health
from toolscore.telemetry.metrics import CONTENT_TYPE
from toolscore.telemetry.tracing import CARRIED
from toolscore.tools.library import change_fields
from toolscore.upstreams import Caller, Upstream

__all__ = [
    "EXECUTE_PATHS",
    "FAILURE_OPENAPI",
    "ExecuteEndpoint",
    "add_rest",
    "answer",
    "found_tools",
    "result_fields",
    "stats_fields",
    "tool_fields",
]

log = structlog.get_logger(__name__)

EXECUTE_PATHS = ("/execute_tool", "/api/v1/tools/execute")

DEFAULT_PAGE = 100
MAX_PAGE = 1000
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class ExecuteRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /execute_tool`."""

    tool_id: str
    action: str | None = None
    parameters: Raw = Raw(b"{}")
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    session_id: str | None = None


_requests = msgspec.json.Decoder(ExecuteRequest)


class ExecuteEndpoint:
    """`POST /execute_tool`, the hot route, as plain ASGI."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = new_request_id(header(scope, b"x-request-id"))
        headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
        try:
            body = await read_body(scope, receive, self._gateway.settings.current.limits.max_body_bytes)
            with ClientWatch(receive) as watch:
                answer = await self._execute(_parse(body), scope, request_id, started)
            status = 200
            headers += self._gateway.pipeline.rates.headers(principal_of(scope))
        except ToolScoreError as exc:
            status = exc.status
            answer, headers = failure(exc, request_id=request_id, started=started)
            headers += self._gateway.pipeline.rates.headers(principal_of(scope))
        except asyncio.CancelledError:
            if watch.gone:
                return
            raise
        except Exception:  # a request's outermost line
            log.exception("a call failed inside the gateway", request_id=request_id)
            error = InternalError(f"the gateway failed; its log has the details under request {request_id}")
            status = error.status
            answer, headers = failure(error, request_id=request_id, started=started)
        await send_json(send, status, answer, headers)

    async def _execute(self, request: ExecuteRequest, scope: Scope, request_id: str, started: float) -> bytes:
        principal = principal_of(scope)
        caller = None
        if headers := forwarded_headers(self._gateway.upstreams.forwarded, scope):
            caller = Caller(principal, headers=headers)
        parameters = request.parameters
        if request.session_id is not None:
            parameters = _with_session(parameters, request.session_id)
        result = await self._gateway.pipeline.call(
            ToolCall(
                tool_id=request.tool_id,
                action=request.action,
                arguments=parameters,
                timeout_seconds=request.timeout_seconds,
                request_id=request_id,
                extra=_trace(scope),
            ),
            principal,
            caller=caller,
        )
        message = "the tool reported an error" if result.is_error else ""
        return encode(
            envelope(
                result_fields(result),
                request_id=request_id,
                started=started,
                message=message,
                cache_level=result.cache_level,
                stale=result.stale,
            )
        )


def result_fields(result: ToolResult) -> dict[str, Any]:
    """A call's result as REST shows it."""
    data: dict[str, Any] = {
        "call_id": result.call_id,
        "tool_id": result.tool.tool_id,
        "content": result.content,
        "structured_content": result.structured_content,
        "is_error": result.is_error,
    }
    if result.suggestion is not None:
        data["suggestion"] = result.suggestion
    return data


def _trace(scope: Scope) -> dict[str, Any] | None:
    """The caller's trace, as a tool's server gets it (MCP: members of `_meta`)."""
    if header(scope, b"traceparent") is None:
        return None
    return {"_meta": {key: value for key in CARRIED if (value := header(scope, key.encode())) is not None}}


def _parse(body: bytes) -> ExecuteRequest:
    try:
        if not body.isascii():
            body.decode()  # the parameters stay raw, so they are looked at here
        return _requests.decode(body)
    except msgspec.ValidationError as exc:
        raise InvalidArguments(
            f"the body does not fit: {exc}",
            suggestion='expected {"tool_id": str, "action"?: str, "parameters"?: {…}, "timeout_seconds"?: number}',
        ) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        suggestion = "send a JSON object with content-type application/json"
        if SURROGATE.search(body):
            suggestion = "half a surrogate pair (\\ud800 to \\udfff) is no character: send both halves, or \\ufffd"
        raise InvalidRequest(f"the body is not JSON: {exc}", suggestion=suggestion) from exc


def _with_session(parameters: Raw, session_id: str) -> Raw:
    """`session_id` beside the parameters means the tool's own argument of that name, unless it is given there."""
    try:
        members = msgspec.json.decode(parameters, type=dict[str, Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidArguments(f"`parameters` must be an object: {exc}") from exc
    return Raw(encode({"session_id": session_id, **members}))


def tool_fields(gateway: Gateway, tool: Tool, *, full: bool = False) -> dict[str, Any]:
    """A tool as REST shows it."""
    fields: dict[str, Any] = {
        "tool_id": tool.tool_id,
        "name": tool.name,
        "server_id": tool.server_id,
        "description": tool.description,
        "input_schema": tool.input_schema,
        "output_schema": tool.definition.get("outputSchema"),
        "annotations": tool.annotations,
        "tags": list(tool.tags),
        "available": gateway.library.available(tool),
        "server_state": gateway.library.state(tool.server_id),
        "circuit": gateway.pipeline.circuit(tool.server_id),
        "quarantined": tool.held is not None,
        "tokens_estimate": gateway.library.tokens(tool),
        "score": gateway.pipeline.scores.of(tool).value,
    }
    if full:
        pin = gateway.library.pins.find(tool.server_id, tool.name)
        fields |= {
            "score": msgspec.structs.asdict(gateway.pipeline.scores.of(tool)),
            "pin": {"pinned_at": pin.pinned_at, "pinned_by": pin.pinned_by} if pin is not None else None,
            "change": change_fields(tool.held.change) if tool.held is not None else None,
            "windows": gateway.pipeline.stats.of_tool(tool.tool_id),
            "definition": tool.definition,
            "definition_hash": tool.definition_hash,
            "first_seen": tool.first_seen,
            "calls": gateway.pipeline.stats.tools.get(tool.tool_id, 0),
        }
    return fields


async def found_tools(gateway: Gateway, params: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """The tools for a task, ranked, each ready to be called.

    Args:
        params: `query`, and `limit` if given.

    Raises:
        InvalidArguments: they are something else.
    """
    query, limit = params.get("query"), params.get("limit", 10)
    if not isinstance(query, str) or not isinstance(limit, int) or isinstance(limit, bool):
        raise InvalidArguments("`query` must be a text, and `limit` a number", suggestion='{"query": "…", "limit": 10}')
    found = await gateway.search.search(
        query, principal=principal.name, sees=gateway.pipeline.sees(principal), limit=limit
    )
    tools = [
        {**tool_fields(gateway, one.tool), "relevance": one.relevance, "score": one.score, "rank": one.rank}
        for one in found
    ]
    return {"tools": tools, "total_count": len(tools)}


OPERATORS_OWN = ("command", "args", "env_keys", "header_names", "credentials_of", "stderr")
"""How a server is started and what it says is for the operator's eyes."""


def server_fields(gateway: Gateway, upstream: Upstream, principal: Principal, *, full: bool = False) -> dict[str, Any]:
    """A server as REST shows it. Values of `env` and `headers` stay here: they may be secrets."""
    spec, sees = upstream.spec, gateway.pipeline.sees(principal)
    connection = upstream.connections[0] if upstream.connections else None
    fields: dict[str, Any] = {
        "server_id": upstream.server_id,
        "kind": spec.kind,
        "state": upstream.state,
        "tools": len(gateway.library.of_server(upstream.server_id)),
        "instances": len(upstream.connections),
        "calls_in_flight": upstream.in_flight,
        "restarts": upstream.restarts,
        "circuit": gateway.pipeline.circuit(upstream.server_id),
        "last_error": upstream.last_error,
        "pid": upstream.pid,
    }
    if full:
        fields |= {
            "description": spec.description,
            "command": spec.command,
            "args": list(spec.args),
            "env_keys": sorted(spec.env),
            "url": shown_url(spec.url) if spec.url else None,
            "header_names": sorted(spec.headers),
            "credentials_of": list(spec.credentials),
            "forward_headers": list(spec.forward_headers),
            "endpoint": spec.endpoint,
            "up_since": upstream.up_since,
            "stderr": list(upstream.stderr),
            "memory_bytes": _memory_bytes(upstream.pid),
            "protocol_version": connection.info.protocol_version if connection else None,
            "server_info": {"name": connection.info.name, "version": connection.info.version} if connection else None,
            "tool_ids": [
                tool.tool_id for tool in gateway.library.of_server(upstream.server_id) if sees is None or sees(tool)
            ],
        }
        if ADMIN not in principal.scopes:
            fields |= dict.fromkeys(OPERATORS_OWN)
    return fields


def _memory_bytes(pid: int | None) -> int | None:
    """Resident memory of a server's process and all below it."""
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return int(sum(member.memory_info().rss for member in family))
    except psutil.Error:
        return None


def answer(request: Request, data: Any, message: str = "", status: int = 200) -> Response:
    """An answer in the envelope."""
    request_id = request.state.request_id
    body = encode(envelope(data, request_id=request_id, started=request.state.started, message=message))
    return Response(body, status_code=status, media_type="application/json")


def add_rest(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes and the envelope for errors to an application."""
    router = APIRouter()

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
            path, execute_tool, methods=["POST"], summary="Run a tool", tags=["tools"], openapi_extra=EXECUTE_OPENAPI
        )  # fmt: skip

    @router.get("/list_tools", summary="List the tools", tags=["tools"])
    @router.get("/api/v1/tools", summary="List the tools", tags=["tools"])
    async def list_tools(
        request: Request,
        server_id: Annotated[str | None, Query(description="only this server's", examples=["time"])] = None,
        tag: Annotated[str | None, Query(description="only those of servers with this tag")] = None,
        q: Annotated[str | None, Query(description="only those with this text in name or description")] = None,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    ) -> Response:
        sees = gateway.pipeline.sees(principal_of(request.scope))
        tools, after = gateway.library.page(cursor=cursor, limit=limit, server_id=server_id, tag=tag, text=q, sees=sees)
        data = {
            "tools": [tool_fields(gateway, tool) for tool in tools],
            "total_count": gateway.library.count(sees),
            "next_cursor": after,
        }
        return answer(request, data)

    @router.post("/api/v1/tools/search", summary="Find the tools for a task", tags=["tools"])
    async def search_tools(
        request: Request,
        body: Annotated[dict[str, Any], Body(examples=[{"query": "what time is it in Tokyo", "limit": 5}])],
    ) -> Response:
        return answer(request, await found_tools(gateway, whole(body), principal_of(request.scope)))

    @router.get("/api/v1/tools/{tool_id}", summary="One tool", tags=["tools"])
    async def get_tool(
        request: Request, tool_id: Annotated[str, Path(examples=["time__get_current_time"])]
    ) -> Response:
        sees = gateway.pipeline.sees(principal_of(request.scope))
        tool = gateway.library.find(tool_id, sees)
        if tool is None:
            gateway.library.resolve(tool_id, sees=sees)  # raises, with the nearest names, unless it is a server's id
            raise ToolNotFound(f"{tool_id!r} is a server: GET /api/v1/servers/{tool_id}")
        return answer(request, tool_fields(gateway, tool, full=True))

    @router.get("/api/v1/servers", summary="List the servers", tags=["servers"])
    async def list_servers(request: Request) -> Response:
        servers = [server_fields(gateway, upstream, principal_of(request.scope)) for upstream in gateway.upstreams]
        servers += [
            {"server_id": server_id, "kind": None, "state": "failed", "tools": 0, "instances": 0,
             "calls_in_flight": 0, "restarts": 0, "last_error": reason, "pid": None}
            for server_id, reason in gateway.broken_servers.items()
        ]  # fmt: skip
        servers.sort(key=lambda server: str(server["server_id"]))
        return answer(request, {"servers": servers, "total_count": len(servers)})

    @router.post("/api/v1/servers", summary="Attach a server", tags=["servers"], status_code=201)
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

    @router.get("/api/v1/servers/{server_id}", summary="One server", tags=["servers"])
    async def get_server(request: Request, server_id: str) -> Response:
        if (reason := gateway.broken_servers.get(server_id)) is not None:
            return answer(request, {"server_id": server_id, "state": "failed", "last_error": reason, "stderr": []})
        return answer(
            request, server_fields(gateway, gateway.upstreams.get(server_id), principal_of(request.scope), full=True)
        )

    @router.delete("/api/v1/servers/{server_id}", summary="Detach a server", tags=["servers"])
    async def detach_server(request: Request, server_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        await gateway.detach(server_id)
        return answer(request, {"server_id": server_id}, f"server {server_id!r} is detached, its tools are gone")

    @router.post("/api/v1/servers/{server_id}/restart", summary="Restart a server", tags=["servers"])
    async def restart_server(request: Request, server_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        upstream = gateway.upstreams.get(server_id)
        upstream.restart()
        return answer(
            request,
            server_fields(gateway, upstream, principal_of(request.scope)),
            f"server {server_id!r} is being restarted",
        )

    @router.get("/api/v1/policy/explain", summary="Which rule decides", tags=["policy"])
    async def explain_policy(
        request: Request,
        principal: Annotated[str, Query(description="who would call")],
        tool_id: Annotated[str, Query(description="the tool's full name")],
        scope: Annotated[list[str] | None, Query(description="what that principal has")] = None,
        arguments: Annotated[str | None, Query(description="a JSON object")] = None,
    ) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        tool = gateway.library.resolve(tool_id)
        who = Principal(principal, tuple(scope or ()))
        policy = gateway.pipeline.policy
        if arguments is None:
            decision = policy.sees(who, tool)
        else:
            given = decode(arguments.encode())
            if not isinstance(given, dict):
                raise InvalidArguments("`arguments` must be a JSON object")
            decision = policy.sees(who, tool)
            if decision.allowed:
                decision = policy.decide(who, tool, given)
        rule = gateway.settings.current.policy.rules[decision.rule - 1] if decision.rule is not None else None
        data = {
            "allowed": decision.allowed,
            "rule": decision.rule,
            "rule_text": rule.model_dump(exclude_defaults=True) if rule is not None else None,
            "default": policy.default,
            "reason": decision.reason,
        }
        return answer(request, data)

    @router.get("/api/v1/stats", summary="Figures", tags=["monitoring"])
    async def stats(request: Request) -> Response:
        await gateway.refresh_server_stats()
        return answer(request, stats_fields(gateway, principal_of(request.scope)))

    @router.get("/health", summary="A check for each part", tags=["monitoring"])
    async def get_health(request: Request) -> Response:
        data = await health(gateway)
        message = f"look at: {', '.join(data['unwell'])}" if data["unwell"] else ""
        return answer(request, data, message)

    @router.get("/livez", summary="The process answers", tags=["monitoring"])
    @router.get("/readyz", summary="Calls are accepted", tags=["monitoring"])
    async def ready(request: Request) -> Response:
        return answer(request, {"status": "ready", "tools": len(gateway.library)})

    @router.get("/metrics", summary="Prometheus metrics", tags=["monitoring"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        await gateway.refresh_server_stats()
        return Response(gateway.metrics.render(), headers={"content-type": CONTENT_TYPE})

    app.include_router(router, responses=FAILURE_OPENAPI)

    def failed(request: Request, error: ToolScoreError) -> Response:
        started = getattr(request.state, "started", time.perf_counter())
        request_id = getattr(request.state, "request_id", "-")
        body, headers = failure(error, request_id=request_id, started=started)
        response = Response(body, status_code=error.status, media_type="application/json")
        for name, value in headers:
            if name != b"x-request-id":
                response.headers[name.decode()] = value.decode("latin-1")
        return response

    async def ours(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, ToolScoreError)
        return failed(request, exc)

    async def http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        if exc.status_code == 405:
            error: ToolScoreError = InvalidRequest(f"{request.method} is not a method of {request.url.path}")
        elif exc.status_code == 404:
            error = MethodNotFound(
                f"there is nothing at {request.url.path}", suggestion="GET /docs lists the REST addresses"
            )
        else:
            error = InvalidRequest(str(exc.detail))
        response = failed(request, error)
        response.status_code = exc.status_code
        for name, value in (exc.headers or {}).items():
            response.headers[name] = value
        return response

    async def invalid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        parts = [f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in exc.errors()]
        return failed(request, InvalidArguments("; ".join(parts)))

    async def ours_at_fault(request: Request, exc: Exception) -> Response:
        request_id = getattr(request.state, "request_id", "-")
        return failed(request, InternalError(f"the gateway failed; its log has the details under request {request_id}"))

    app.add_exception_handler(ToolScoreError, ours)
    app.add_exception_handler(Exception, ours_at_fault)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def stats_fields(gateway: Gateway, principal: Principal | None) -> dict[str, Any]:
    """The figures of `/api/v1/stats` and of `stats_update`, with no tool that this principal does not see.

    Args:
        principal: `None`: whoever listens; no tools then, unless all may see all.
    """
    states: dict[str, int] = {}
    for upstream in gateway.upstreams:
        states[upstream.state] = states.get(upstream.state, 0) + 1
    figures = gateway.pipeline.stats.snapshot()
    if principal is None:
        if not gateway.pipeline.policy.is_open:
            del figures["top_tools"]
    elif (sees := gateway.pipeline.sees(principal)) is not None:
        figures["top_tools"] = [one for one in figures["top_tools"] if gateway.library.find(one["tool_id"], sees)]
    return {
        **figures,
        "cache": {**gateway.pipeline.cache.hits, "misses": gateway.pipeline.cache.misses},
        "journal": {"written": gateway.pipeline.journal.written, "lost": gateway.pipeline.journal.lost},
        "tools_total": len(gateway.library),
        "servers": states,
        "event_subscribers": len(gateway.events.notifier),
        "last_event_seq": gateway.events.last_seq,
        "memory_bytes": psutil.Process().memory_info().rss,
        "server_stats": gateway.server_stats,
    }


def _problems(exc: ValueError) -> str:
    errors = getattr(exc, "errors", None)
    if errors is None:
        return str(exc)
    return "; ".join(
        f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}".removeprefix(": ")
        for error in errors(include_url=False)
    )


FAILURE_OPENAPI: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "what is wrong with the request, in the envelope of every answer",
        "content": {
            "application/json": {
                "example": {
                    "success": False,
                    "data": None,
                    "message": "no tool 'time__now'",
                    "timestamp": "2026-11-21T10:00:00.000Z",
                    "request_id": "8c7a…",
                    "performance": {"duration_ms": 0.2, "cache_hit": False},
                    "error": {
                        "code": "tool_not_found",
                        "message": "no tool 'time__now'",
                        "retryable": False,
                        "retry_after_seconds": None,
                        "suggestion": "nearest: time__get_current_time",
                    },
                }
            }
        },
    }
}

EXECUTE_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["tool_id"],
                    "additionalProperties": False,
                    "properties": {
                        "tool_id": {"type": "string", "description": "a full name, or a server id with `action`"},
                        "action": {"type": "string", "description": "the tool's own name on that server"},
                        "parameters": {"type": "object", "description": "the tool's arguments"},
                        "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
                        "session_id": {"type": "string", "description": "passed to the tool as its `session_id`"},
                    },
                },
                "examples": {
                    "python": {
                        "value": {
                            "tool_id": f"{EXECUTOR_ID}__python_execute",
                            "parameters": {"code": "print(sum(range(10)))"},
                        }
                    },
                    "by server": {
                        "value": {
                            "tool_id": "time",
                            "action": "get_current_time",
                            "parameters": {"timezone": "Asia/Tokyo"},
                        }
                    },
                },
            }
        },
    },
    "responses": {
        "200": {
            "description": "the tool's result; `data.is_error` says whether the tool itself failed",
            "content": {
                "application/json": {
                    "example": {
                        "success": True,
                        "data": {
                            "call_id": "8c7a…",
                            "tool_id": f"{EXECUTOR_ID}__python_execute",
                            "content": [{"type": "text", "text": "45\n"}],
                            "structured_content": None,
                            "is_error": False,
                        },
                        "message": "",
                        "timestamp": "2026-11-21T10:00:00.000Z",
                        "request_id": "8c7a…",
                        "performance": {"duration_ms": 0.9, "cache_hit": False},
                    }
                }
            },
        }
    },
}
