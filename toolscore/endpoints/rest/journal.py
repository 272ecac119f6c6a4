"""REST: the journal of calls, and replaying them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.calls.code_run import RUN_CODE
from toolscore.core.clock import timestamp
from toolscore.core.errors import Conflict, InvalidArguments, PayloadTooLarge, ToolNotFound
from toolscore.core.models import Principal
from toolscore.endpoints.asgi import principal_of, read_as
from toolscore.endpoints.rest.answers import answer
from toolscore.stores.database import or_overloaded

__all__ = ["ReplayRequest", "journal_router"]


MAX_PAGE = 1000
MAX_INNER = 10_000
"""Calls of one run that are shown; `parent` pages through them."""
MAX_REPLAYED = 1000
MAX_EXPORTED = 10_000
EXPORT_PAGE = 200
MAX_EXPORT_BYTES = 64 * 1024 * 1024
MAX_REPLAY_BYTES = 16 * 1024 * 1024
"""They are held all at once."""
AT_A_TIME = 8
"""Calls whose bodies are read together: each may have two of `journal.max_body_bytes`."""


class ReplayRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which calls to make again, and where. Filters as those of `GET /api/v1/calls`."""

    against: str | None = None
    confirm: bool = False
    offline: bool = False
    """Of a run of code: give it the results that its calls had, and call no tool."""
    tool_id: str | None = None
    server_id: str | None = None
    principal: str | None = None
    outcome: str | None = None
    since: str | None = None
    until: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_REPLAYED)] = 100


class _Room:
    """How many bytes of calls one request may still hold."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, call: dict[str, Any]) -> None:
        """Take one more.

        Raises:
            PayloadTooLarge: there is no room for it.
        """
        self._left -= len(msgspec.json.encode(call))
        if self._left < 0:
            raise PayloadTooLarge(
                f"these calls take over {self._most // 2**20} MiB: choose a shorter window, or a limit"
            )


def journal_router(gateway: Gateway) -> APIRouter:
    """The routes of the journal."""
    router = APIRouter(tags=["journal"])
    journal, library = gateway.journal, gateway.library

    @router.get("/api/v1/calls", summary="Past calls")
    async def list_calls(
        request: Request,
        tool_id: str | None = None,
        server_id: str | None = None,
        principal: Annotated[str | None, Query(description="others' calls take the scope `admin`")] = None,
        outcome: Annotated[str | None, Query(description="`ok`, `tool_error` or an error code")] = None,
        request_id: str | None = None,
        parent: Annotated[str | None, Query(description="the run whose code made them")] = None,
        since: Annotated[str | None, Query(description="RFC 3339", examples=["2026-11-21T10:00:00Z"])] = None,
        until: Annotated[str | None, Query(description="RFC 3339")] = None,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    ) -> Response:
        filters = _filters(principal_of(request.scope), tool_id, server_id, principal, outcome, request_id, parent)
        with _reading():
            calls, after = await journal.find(
                filters=filters, since_ms=_moment("since", since), until_ms=_moment("until", until), cursor=cursor,
                limit=limit,
            )  # fmt: skip
        return answer(request, {"calls": calls, "next_cursor": after})

    @router.get("/api/v1/calls/export", summary="A recorded window, as an offline double serves it")
    async def export_calls(
        request: Request,
        server_id: str,
        since: str | None = None,
        until: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_EXPORTED)] = 1000,
    ) -> Response:
        who = principal_of(request.scope)
        filters = _filters(who, None, server_id, None, None, None)
        sees = gateway.permissions.sees(who)
        tools = [tool for tool in library.of_server(server_id) if sees is None or sees(tool)]
        if not tools:
            raise ToolNotFound(f"no server {server_id!r} with tools that you may call")
        calls: list[dict[str, Any]] = []
        cursor, room = None, _Room(MAX_EXPORT_BYTES)
        callers: dict[str, int] = {}  # told apart, and not named
        with _reading():
            while len(calls) < limit:
                found, cursor = await journal.find(
                    filters=filters, since_ms=_moment("since", since), until_ms=_moment("until", until), cursor=cursor,
                    limit=EXPORT_PAGE,
                )  # fmt: skip
                fit = [one for one in found if one["outcome"] in ("ok", "tool_error")]
                async for call in _whole(fit, room):
                    if "arguments" not in call["redacted"] and len(calls) < limit:
                        kept = {name: call[name] for name in ("name", "arguments", "result", "at", "duration_ms")}
                        calls.append({**kept, "caller": callers.setdefault(call["principal"], len(callers))})
                if cursor is None:
                    break
        calls.reverse()
        data = {"server_id": server_id, "recorded_until": timestamp(), "tools": [tool.definition for tool in tools],
                "calls": calls}  # fmt: skip
        return answer(request, data)

    @router.get("/api/v1/calls/{call_id}", summary="One past call, with its arguments and result")
    async def get_call(request: Request, call_id: str) -> Response:
        who = principal_of(request.scope)
        with _reading():
            call = await journal.get(call_id, None if ADMIN in who.scopes else who.name)
            if call["tool_id"] == RUN_CODE:
                call["calls"] = await _inner(call)
            return answer(request, call)

    async def _whole(found: list[dict[str, Any]], room: _Room) -> AsyncIterator[dict[str, Any]]:
        """Calls with their bodies, a few at a time."""
        for start in range(0, len(found), AT_A_TIME):
            for call in await journal.with_bodies(found[start : start + AT_A_TIME]):
                room.take(call)
                yield call

    async def _inner(run: dict[str, Any]) -> list[dict[str, Any]]:
        """The calls that a run made, the oldest first, without their bodies."""
        filters = {"parent": run["call_id"], "principal": run["principal"]}
        found, _ = await journal.find(filters=filters, limit=MAX_INNER)
        return found[::-1]

    @router.post("/api/v1/calls/replay", summary="Make past calls again")
    async def replay_window(request: Request, body: Annotated[dict[str, Any], Body()]) -> Response:
        who, wanted = principal_of(request.scope), read_as(body, ReplayRequest)
        if wanted.offline:
            raise InvalidArguments("only a single run of code can be made again offline: name it by its `call_id`")
        if wanted.against is not None:
            gateway.find_server(who, wanted.against)
        filters = _filters(who, wanted.tool_id, wanted.server_id, wanted.principal, wanted.outcome, None)
        with _reading():
            found, _ = await journal.find(
                filters=filters, since_ms=_moment("since", wanted.since), until_ms=_moment("until", wanted.until),
                limit=wanted.limit,
            )  # fmt: skip
            calls = [call async for call in _whole(found, _Room(MAX_REPLAY_BYTES))]
        data = await gateway.replay.many(calls, who, server_id=wanted.against, confirm=wanted.confirm)
        message = f"{data['replayed']} calls made again, {data['same']} with the same result"
        return answer(request, data, message)

    @router.post("/api/v1/calls/{call_id}/replay", summary="Make a past call again")
    async def replay(request: Request, call_id: str, body: Annotated[dict[str, Any] | None, Body()] = None) -> Response:
        who, wanted = principal_of(request.scope), read_as(body or {}, ReplayRequest)
        if wanted.against is not None:
            gateway.find_server(who, wanted.against)
        with _reading():
            call = await journal.get(call_id, None if ADMIN in who.scopes else who.name)
            inner = None
            if wanted.offline:
                if call["tool_id"] != RUN_CODE:
                    raise InvalidArguments(f"call {call_id} ran no code: only a run can be made again offline")
                inner = [one async for one in _whole(await _inner(call), _Room(MAX_REPLAY_BYTES))][::-1]
                if any(one["redacted"] for one in inner):
                    raise Conflict(f"what call {call_id} was given is not kept as it was: secrets were taken out of it")
        data = await gateway.replay.one(call, who, server_id=wanted.against, confirm=wanted.confirm, inner=inner)
        return answer(request, data, "the same result" if data["same"] else "the result differs")

    return router


def _reading() -> AbstractContextManager[None]:
    """The journal cannot be read while the database is away: the caller is told so."""
    return or_overloaded("the journal cannot be read just now", retry_after_seconds=5)


def _filters(
    who: Principal,
    tool_id: str | None,
    server_id: str | None,
    principal: str | None,
    outcome: str | None,
    request_id: str | None,
    parent: str | None = None,
) -> dict[str, Any]:
    """What to look for. Whoever is no admin sees what is his own."""
    if ADMIN not in who.scopes:
        if principal not in (None, who.name):
            need_scope(who, ADMIN)
        principal = who.name
    given = {"tool_id": tool_id, "server_id": server_id, "principal": principal, "outcome": outcome,
             "request_id": request_id, "parent": parent}  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


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
    try:
        return int(moment.timestamp() * 1000)
    except (OverflowError, ValueError) as exc:  # in some zone the year is 0, or 10,000
        raise InvalidArguments(f"`{name}` is no time that a calendar has: {text!r:.80}") from exc
