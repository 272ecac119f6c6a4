"""What gateways tell one another about a call, and about a client whose call it is."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from toolscore.core.errors import ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, RemoteError
from toolscore.core.models import Principal

__all__ = [
    "Answer",
    "ClientSays",
    "CodeAsks",
    "Needed",
    "OfCall",
    "OfServer",
    "Output",
    "ServerSays",
    "UpstreamRequest",
    "Who",
    "answer_of",
    "failure_of",
    "given",
]


class Who(msgspec.Struct, omit_defaults=True, frozen=True):
    """A caller, as another gateway has it.

    Attributes:
        client: equal for all requests of one client, wherever they come in.
        code: the token, and how many calls it may have under way, of code that the request runs.
    """

    principal: Principal
    client: str
    capabilities: dict[str, Any] = {}
    headers: dict[str, str] = {}
    live: bool = False
    stateless: bool = False
    wants_progress: bool = False
    log_level: str | None = None
    code: tuple[str, int] | None = None
    hears_output: bool = False


class OfServer(msgspec.Struct):
    """Which server is meant."""

    server_id: str


class UpstreamRequest(msgspec.Struct, omit_defaults=True):
    """A request to a server that another gateway has."""

    server_id: str
    method: str
    call: int
    params: Raw | UnsetType = UNSET
    who: Who | None = None
    deadline: float | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    """The server's answer, or one of three ways in which there is none. `pid`: of a server that was opened."""

    result: Raw | UnsetType = UNSET
    pid: int | None = None
    refused: dict[str, Any] | None = None
    lost: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None


class OfCall(msgspec.Struct, omit_defaults=True):
    """What a server tells or asks the client of a call."""

    call: int
    method: str
    params: Raw | UnsetType = UNSET


class Needed(msgspec.Struct):
    """What a server needed of a client that did not declare it."""

    call: int
    required: dict[str, Any]


class Output(msgspec.Struct):
    """What code wrote."""

    call: int
    text: str


class CodeAsks(msgspec.Struct):
    """Code calls a tool."""

    call: int
    body: str
    seconds: float


class ClientSays(msgspec.Struct, omit_defaults=True):
    """Something for a client outside of its requests. `server_id`: of the server that says it on its connection."""

    client: str
    method: str
    params: Raw | UnsetType = UNSET
    server_id: str | None = None


class ServerSays(msgspec.Struct, omit_defaults=True):
    """What a server tells all."""

    server_id: str
    method: str
    params: Raw | UnsetType = UNSET


def given(params: Raw | UnsetType) -> Raw | None:
    """The params of a message; `None` where it has none."""
    return params if isinstance(params, Raw) and bytes(params) != b"null" else None


def failure_of(exc: Exception) -> Answer:
    """Why there is no answer, for the wire."""
    if isinstance(exc, RemoteError):
        return Answer(refused=exc.error)
    if isinstance(exc, ConnectionLost):
        return Answer(
            lost={
                "reason": exc.reason, "sent": exc.sent, "refused": exc.refused, "busy": exc.busy,
                "retry_after": exc.retry_after,
            }
        )  # fmt: skip
    assert isinstance(exc, ToolScoreError)
    return Answer(
        failed={
            "code": exc.code,
            "message": exc.message,
            "more": {
                "retry_after_seconds": exc.retry_after_seconds,
                "suggestion": exc.suggestion,
                "data": exc.data,
                "upstream_error": exc.upstream_error,
                "transient": exc.transient,
            },
        }
    )


def answer_of(answer: Answer) -> Raw:
    """The result.

    Raises:
        RemoteError, ConnectionLost, ToolScoreError: as the other gateway met it.
    """
    if isinstance(answer.result, Raw):
        return answer.result
    if answer.refused is not None:
        raise RemoteError(answer.refused)
    if answer.lost is not None:
        raise ConnectionLost(answer.lost.pop("reason"), **answer.lost)
    failed = answer.failed or {"code": "internal_error", "message": "another gateway answered nothing"}
    kinds = {kind.code: kind for kind in _kinds(ToolScoreError)}
    raise kinds.get(failed["code"], ToolScoreError)(failed["message"], **failed.get("more", {}))


def _kinds(kind: type[ToolScoreError]) -> list[type[ToolScoreError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _kinds(below))]
