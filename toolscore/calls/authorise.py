"""The step that asks the operator's rules about the arguments of a call.

Rules that are not about arguments have hidden what they deny before: such a tool does not exist for the caller.
"""

from __future__ import annotations

from toolscore.access.policy import Policy
from toolscore.calls.model import Call
from toolscore.core.errors import Forbidden

__all__ = ["authorise"]


def authorise(call: Call, policy: Policy) -> None:
    """Refuse a call that the policy denies with these arguments.

    Raises:
        Forbidden: with the rule's reason.
    """
    if not policy.looks_at_arguments:
        return
    decision = policy.decide(call.principal, call.target, call.values)
    if not decision.allowed:
        why = decision.reason or "a rule of the operator is against it"
        raise Forbidden(f"{call.principal.name!r} may not call {call.target.tool_id} with these arguments: {why}")
