"""REST: which rule of the operator decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from toolscore.access.auth import ADMIN, need_scope
from toolscore.app.compose import Gateway
from toolscore.core.errors import InvalidArguments
from toolscore.core.jsonrpc import decode
from toolscore.core.models import Principal
from toolscore.endpoints.asgi import principal_of
from toolscore.endpoints.rest.answers import answer

__all__ = ["policy_router"]


def policy_router(gateway: Gateway) -> APIRouter:
    """The routes of the policy."""
    router = APIRouter(tags=["policy"])

    @router.get("/api/v1/policy/explain", summary="Which rule decides")
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
        policy = gateway.permissions.policy
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

    return router
