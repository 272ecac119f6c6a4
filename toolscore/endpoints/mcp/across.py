"""What comes in at one gateway and belongs to another: answers to its questions, retries of calls that wait there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from toolscore.core.errors import OutcomeUnknown, ToolScoreError
from toolscore.core.jsonrpc import ConnectionLost, Frame, RemoteError, decode_object, encode
from toolscore.core.models import Principal
from toolscore.endpoints.mcp.callers import StatelessCaller, envelope_of
from toolscore.endpoints.mcp.params import read_params
from toolscore.endpoints.mcp.sessions import Sessions
from toolscore.replicas import Replicas
from toolscore.replicas.hop import Link
from toolscore.replicas.wire import Answer, answer_of, failure_of

__all__ = ["Across"]

Resume = Callable[[StatelessCaller, str, dict[str, Any]], Awaitable[Any]]


class _Answered(msgspec.Struct, omit_defaults=True):
    """A client's answer to a question. `name`: of its session."""

    name: str
    id: str
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Retry(msgspec.Struct):
    """A stateless client comes back to its call. `number`: under which it hears of progress."""

    method: str
    params: Raw
    principal: Principal
    headers: dict[str, str]
    number: int


class _Told(msgspec.Struct):
    """Something for the client of a retry."""

    number: int
    method: str
    params: Raw | UnsetType = UNSET


class Across:
    """Both ends of it.

    Args:
        resume: goes on with a call that waits on this gateway.
    """

    def __init__(self, replicas: Replicas, sessions: Sessions, resume: Resume) -> None:
        self._replicas = replicas
        self._sessions = sessions
        self._resume = resume
        self._numbers = itertools.count(1)
        self._callers: dict[int, StatelessCaller] = {}
        hops = replicas.hops
        hops.served["session/answered"] = (_Answered, self._answered)
        hops.served["call/retry"] = (_Retry, self._retry)
        hops.heard["retry/told"] = (_Told, self._told)

    async def answer(self, name: str, frame: Frame) -> None:
        """Pass a client's answer on to the gateway that asked; nothing where there is none."""
        _, _, rest = str(frame.id).partition("-")
        instance, _, number = rest.partition("-")
        if not number or not await self._replicas.members.is_there(instance):
            return
        with contextlib.suppress(ConnectionLost, RemoteError):
            link = await self._replicas.hops.to(instance)
            answer = _Answered(name, str(frame.id), frame.result, frame.error)
            await link.ask("session/answered", msgspec.to_builtins(answer, builtin_types=(Raw,)))

    async def _answered(self, _: Link, answered: _Answered) -> dict[str, Any]:
        session = self._sessions.named(answered.name)
        if session is not None:
            session.answered(Frame(id=answered.id, result=answered.result, error=answered.error))
        return {}

    async def resume(self, instance: str, caller: StatelessCaller, method: str, params: dict[str, Any]) -> Any:
        """Go on with a call that waits on another gateway.

        Raises:
            OutcomeUnknown: that gateway is gone. Whatever the call raises.
        """
        number = next(self._numbers)
        self._callers[number] = caller
        retry = {
            "method": method,
            "params": params,
            "principal": caller.principal,
            "headers": dict(caller.headers),
            "number": number,
        }
        try:
            link = await self._replicas.hops.to(instance)
            answer = await link.ask("call/retry", retry)
        except ConnectionLost as exc:
            raise OutcomeUnknown(
                f"the gateway on which this call waited is gone ({exc.reason}), and the call may have done its work: "
                "find out before you call it again, without its requestState"
            ) from exc
        finally:
            del self._callers[number]
        return answer_of(msgspec.json.decode(answer, type=Answer))

    async def _retry(self, link: Link, retry: _Retry) -> Answer:
        def tell(method: str, params: Any) -> None:
            link.tell("retry/told", {"number": retry.number, "method": method, "params": params})

        try:
            params = read_params(retry.params)
            caller = StatelessCaller(params, envelope_of(params), tell, retry.principal, retry.headers)
            return Answer(result=Raw(encode(await self._resume(caller, retry.method, params))))
        except (ToolScoreError, RemoteError, ConnectionLost) as exc:
            return failure_of(exc)

    def _told(self, _: Link, told: _Told) -> None:
        caller = self._callers.get(told.number)
        if caller is not None:
            caller.tell(told.method, decode_object(told.params) if isinstance(told.params, Raw) else None)
