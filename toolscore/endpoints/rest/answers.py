"""Answers in the envelope: of successes, and of every exception that leaves a route."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from toolscore.core.errors import InternalError, InvalidArguments, InvalidRequest, MethodNotFound, ToolScoreError
from toolscore.core.jsonrpc import encode
from toolscore.endpoints.asgi import envelope, failure

__all__ = ["add_failures", "answer"]


def answer(request: Request, data: Any, message: str = "", status: int = 200) -> Response:
    """An answer in the envelope."""
    request_id = request.state.request_id
    body = encode(envelope(data, request_id=request_id, started=request.state.started, message=message))
    return Response(body, status_code=status, media_type="application/json")


def add_failures(app: FastAPI) -> None:
    """Have exceptions of routes answered in the envelope."""

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
        if exc.status_code == 405:
            methods = _methods_at(app, request.url.path)
            if methods:
                response.headers["allow"] = ", ".join(sorted(methods))
        return response

    async def invalid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        return failed(request, _misfit(exc))

    async def ours_at_fault(request: Request, exc: Exception) -> Response:
        request_id = getattr(request.state, "request_id", "-")
        return failed(request, InternalError(f"the gateway failed; its log has the details under request {request_id}"))

    app.add_exception_handler(ToolScoreError, ours)
    app.add_exception_handler(Exception, ours_at_fault)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _misfit(exc: RequestValidationError) -> InvalidArguments:
    """What is wrong with a request, and how a body is sent if it is that."""
    parts = []
    suggestion = None
    for error in exc.errors():
        where = ".".join(str(part) for part in error["loc"])
        message = str(error["msg"])
        if error["type"] == "json_invalid":
            where, message = "the body", f"it is not JSON: {error['ctx']['error']} at character {error['loc'][-1]}"
        if error["loc"][:1] == ("body",) and (error["type"] == "json_invalid" or len(error["loc"]) == 1):
            suggestion = "send a JSON object with content-type application/json"
        parts.append(f"{where}: {message}")
    return InvalidArguments("; ".join(parts), suggestion=suggestion)


def _methods_at(app: FastAPI, path: str) -> set[str]:
    """The methods of an address, of all its routes: Starlette names those of the first."""
    found: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        if compile_path(template)[0].match(path):
            found |= {method.upper() for method in operations}
    return found
