"""REST for operators: the journal and its replay, pins, known errors, the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, FastAPI, Query, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.gateway import Gateway
from toolscore.calls.replay import replay_call, replay_calls
from toolscore.core.errors import InvalidArguments, Overloaded, PayloadTooLarge, ToolNotFound
from toolscore.core.models import Principal, Tool, timestamp
from toolscore.endpoints.asgi import principal_of, whole
from toolscore.endpoints.rest.rest import FAILURE_OPENAPI, answer
from toolscore.stores.database import StoreError
from toolscore.tools.library import change_fields

__all__ = ["add_operations"]

MAX_PAGE = 1000
MAX_REPLAYED = 1000
MAX_EXPORTED = 10_000
EXPORT_PAGE = 200
MAX_EXPORT_BYTES = 64 * 1024 * 1024


class ReplayRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which calls to make again, and where. Filters as those of `GET /api/v1/calls`."""

    against: str | None = None
    confirm: bool = False
    tool_id: str | None = None
    server_id: str | None = None
    principal: str | None = None
    outcome: str | None = None
    since: str | None = None
    until: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_REPLAYED)] = 100


def add_operations(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes to an application that has the envelope for errors already."""
    router = APIRouter()
    journal, library, firewall = gateway.pipeline.journal, gateway.library, gateway.pipeline.firewall

    # The journal

    @router.get("/api/v1/calls", summary="Past calls", tags=["journal"])
    async def list_calls(
        request: Request,
        tool_id: str | None = None,
        server_id: str | None = None,
        principal: Annotated[str | None, Query(description="others' calls take the scope `admin`")] = None,
        outcome: Annotated[str | None, Query(description="`ok`, `tool_error` or an error code")] = None,
        request_id: str | None = None,
        since: Annotated[str | None, Query(description="RFC 3339", examples=["2026-11-21T10:00:00Z"])] = None,
        until: Annotated[str | None, Query(description="RFC 3339")] = None,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    ) -> Response:
        filters = _filters(principal_of(request.scope), tool_id, server_id, principal, outcome, request_id)
        with _reading():
            calls, after = await journal.find(
                filters=filters, since_ms=_moment("since", since), until_ms=_moment("until", until), cursor=cursor,
                limit=limit,
            )  # fmt: skip
        return answer(request, {"calls": calls, "next_cursor": after})

    @router.get("/api/v1/calls/export", summary="A recorded window, as an offline double serves it", tags=["journal"])
    async def export_calls(
        request: Request,
        server_id: str,
        since: str | None = None,
        until: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_EXPORTED)] = 1000,
    ) -> Response:
        who = principal_of(request.scope)
        filters = _filters(who, None, server_id, None, None, None)
        sees = gateway.pipeline.sees(who)
        tools = [tool for tool in library.of_server(server_id) if sees is None or sees(tool)]
        if not tools:
            raise ToolNotFound(f"no server {server_id!r} with tools that you may call")
        calls: list[dict[str, Any]] = []
        cursor, size = None, 0
        with _reading():
            while len(calls) < limit:
                found, cursor = await journal.find(
                    filters=filters, since_ms=_moment("since", since), until_ms=_moment("until", until), cursor=cursor,
                    limit=min(EXPORT_PAGE, limit - len(calls)),
                )  # fmt: skip
                for call in await journal.with_bodies(found):
                    if call["outcome"] in ("ok", "tool_error") and "arguments" not in call["redacted"]:
                        kept = {name: call[name] for name in ("name", "arguments", "result", "at", "duration_ms")}
                        size += len(msgspec.json.encode(kept))
                        calls.append(kept)
                if size > MAX_EXPORT_BYTES:
                    raise PayloadTooLarge(
                        f"these calls take over {MAX_EXPORT_BYTES // 2**20} MiB: choose a shorter window, or a limit"
                    )
                if cursor is None:
                    break
        calls.reverse()
        data = {"server_id": server_id, "recorded_until": timestamp(), "tools": [tool.definition for tool in tools],
                "calls": calls}  # fmt: skip
        return answer(request, data)

    @router.get("/api/v1/calls/{call_id}", summary="One past call, with its arguments and result", tags=["journal"])
    async def get_call(request: Request, call_id: str) -> Response:
        who = principal_of(request.scope)
        with _reading():
            return answer(request, await journal.get(call_id, None if ADMIN in who.scopes else who.name))

    @router.post("/api/v1/calls/replay", summary="Make past calls again", tags=["journal"])
    async def replay_window(request: Request, body: Annotated[dict[str, Any], Body()]) -> Response:
        who, wanted = principal_of(request.scope), _checked(whole(body))
        filters = _filters(who, wanted.tool_id, wanted.server_id, wanted.principal, wanted.outcome, None)
        with _reading():
            found, _ = await journal.find(
                filters=filters, since_ms=_moment("since", wanted.since), until_ms=_moment("until", wanted.until),
                limit=wanted.limit,
            )  # fmt: skip
            calls = await journal.with_bodies(found)
        data = await replay_calls(
            gateway.pipeline, calls, who, request_id=request.state.request_id, server_id=wanted.against,
            confirm=wanted.confirm,
        )  # fmt: skip
        message = f"{data['replayed']} calls made again, {data['same']} with the same result"
        return answer(request, data, message)

    @router.post("/api/v1/calls/{call_id}/replay", summary="Make a past call again", tags=["journal"])
    async def replay(request: Request, call_id: str, body: Annotated[dict[str, Any] | None, Body()] = None) -> Response:
        who, wanted = principal_of(request.scope), _checked(whole(body or {}))
        with _reading():
            call = await journal.get(call_id, None if ADMIN in who.scopes else who.name)
        data = await replay_call(
            gateway.pipeline, call, who, request_id=request.state.request_id, server_id=wanted.against,
            confirm=wanted.confirm,
        )  # fmt: skip
        return answer(request, data, "the same result" if data["same"] else "the result differs")

    # Pins

    @router.get("/api/v1/pins", summary="What tools are held to, and what waits for approval", tags=["pins"])
    async def list_pins(request: Request, quarantined: bool = False) -> Response:
        sees = gateway.pipeline.sees(principal_of(request.scope))
        shown = [
            pin_fields(gateway, tool)
            for tool in library
            if (tool.held is not None or not quarantined) and (sees is None or sees(tool))
        ]
        return answer(request, {"pins": shown, "total_count": len(shown)})

    @router.get("/api/v1/pins/{tool_id}", summary="One pin, with the change that waits", tags=["pins"])
    async def get_pin(request: Request, tool_id: str) -> Response:
        tool = library.resolve(tool_id, sees=gateway.pipeline.sees(principal_of(request.scope)))
        data = {**pin_fields(gateway, tool), "definition": tool.definition}
        if tool.held is not None and ADMIN in principal_of(request.scope).scopes:
            data["held_definition"] = tool.held.definition
        return answer(request, data)

    @router.post("/api/v1/pins/{tool_id}/approve", summary="Take what a server says of a tool now", tags=["pins"])
    async def approve(
        request: Request,
        tool_id: str,
        body: Annotated[dict[str, Any], Body(examples=[{"definition_hash": "as `held_hash` of the pin says"}])],
    ) -> Response:
        who = principal_of(request.scope)
        need_scope(who, ADMIN)
        seen = _text(body, "definition_hash")
        tool = library.approve(library.resolve(tool_id, sees=gateway.pipeline.sees(who)), who.name, seen)
        return answer(request, pin_fields(gateway, tool), f"{tool.tool_id} can be called again")

    # Errors

    @router.get("/api/v1/errors", summary="Patterns of errors, and what helped", tags=["errors"])
    async def list_errors(request: Request, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100) -> Response:
        need_scope(principal_of(request.scope), ADMIN)  # the words may be of any caller's
        return answer(request, {"patterns": firewall.shown(limit)})

    @router.post("/api/v1/errors/match", summary="What is known of an error", tags=["errors"])
    async def match(
        request: Request,
        body: Annotated[dict[str, Any], Body(examples=[{"message": "no such table: users", "tool_id": "db__query"}])],
    ) -> Response:
        who = principal_of(request.scope)
        message, tool_id = _text(whole(body), "message"), body.get("tool_id")
        if tool_id is not None:
            tool_id = library.resolve(_text(body, "tool_id"), sees=gateway.pipeline.sees(who)).tool_id
        found = await firewall.match(message, who.name, tool_id)
        return answer(request, msgspec.structs.asdict(found))

    @router.post("/api/v1/errors/fixes", summary="Write down what helps", tags=["errors"], status_code=201)
    async def write_fix(
        request: Request,
        body: Annotated[
            dict[str, Any],
            Body(examples=[{"message": "no such table: users", "text": "list the tables first", "tool_id": None}]),
        ],
    ) -> Response:
        who = principal_of(request.scope)
        need_scope(who, ADMIN)
        tool_id = whole(body).get("tool_id")
        if tool_id is not None:
            tool_id = library.resolve(_text(body, "tool_id")).tool_id
        fix = firewall.write_fix(_text(body, "message"), _text(body, "text"), who.name, tool_id)
        data = {"fix_id": fix.fix_id, "pattern_id": fix.pattern_id, "text": fix.text, "tool_id": tool_id}
        return answer(request, data, "it comes back with every such error from now on", status=201)

    @router.delete("/api/v1/errors/fixes/{fix_id}", summary="Forget a fix", tags=["errors"])
    async def remove_fix(request: Request, fix_id: str) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        firewall.remove_fix(fix_id)
        return answer(request, {"fix_id": fix_id}, "forgotten")

    # The cache

    @router.delete("/api/v1/cache", summary="Forget kept results", tags=["cache"])
    async def clear_cache(request: Request, tool_id: str | None = None, server_id: str | None = None) -> Response:
        need_scope(principal_of(request.scope), ADMIN)
        number = gateway.pipeline.cache.invalidate(tool_id=tool_id, server_id=server_id)
        return answer(request, {"forgotten": number}, f"{number} results forgotten")

    app.include_router(router, responses=FAILURE_OPENAPI)


def pin_fields(gateway: Gateway, tool: Tool) -> dict[str, Any]:
    """A pin as REST shows it."""
    pin = gateway.library.pins.find(tool.server_id, tool.name)
    return {
        "tool_id": tool.tool_id,
        "server_id": tool.server_id,
        "definition_hash": tool.definition_hash,
        "pinned_at": pin.pinned_at if pin is not None else tool.first_seen,
        "pinned_by": pin.pinned_by if pin is not None else None,
        "quarantined": tool.held is not None,
        "since": tool.held.since if tool.held is not None else None,
        "held_hash": tool.held.definition_hash if tool.held is not None else None,
        **(change_fields(tool.held.change) if tool.held is not None else {}),
    }


@contextmanager
def _reading() -> Iterator[None]:
    """The journal cannot be read while the database is away: the caller is told so."""
    try:
        yield
    except StoreError as exc:
        raise Overloaded(f"the journal cannot be read just now: {exc}", retry_after_seconds=5) from exc


def _filters(
    who: Principal,
    tool_id: str | None,
    server_id: str | None,
    principal: str | None,
    outcome: str | None,
    request_id: str | None,
) -> dict[str, Any]:
    """What to look for. Whoever is no admin sees what is his own."""
    if ADMIN not in who.scopes:
        if principal not in (None, who.name):
            need_scope(who, ADMIN)
        principal = who.name
    given = {"tool_id": tool_id, "server_id": server_id, "principal": principal, "outcome": outcome,
             "request_id": request_id}  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _checked(body: dict[str, Any]) -> ReplayRequest:
    try:
        return msgspec.convert(body, ReplayRequest)
    except msgspec.ValidationError as exc:
        raise InvalidArguments(f"the body does not fit: {exc}") from exc


def _moment(name: str, text: str | None) -> int | None:
    """Milliseconds since 1970 of a time in RFC 3339."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidArguments(f"`{name}` must be a time such as 2026-11-21T10:00:00Z, found {text!r:.80}") from exc
    if moment.tzinfo is None:
        raise InvalidArguments(f"`{name}` needs a time zone: {text}Z, for one")
    return int(moment.timestamp() * 1000)


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidArguments(f"`{name}` must be a text, found {value!r:.80}")
    return value
