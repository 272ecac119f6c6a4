"""The policy in force, the tools that are disabled, and what each principal sees under both."""

from __future__ import annotations

from collections.abc import Iterable

from toolscore.access.policy import Policy, PolicyRules
from toolscore.core.memo import Memo
from toolscore.core.models import Principal, Sees, Tool

__all__ = ["Permissions"]

MAX_PRINCIPALS = 1000
MAX_KNOWN = 100_000


class Permissions:
    """What callers may do, and which tools exist for them."""

    def __init__(self, rules: PolicyRules | None = None) -> None:
        self.off: frozenset[str] = frozenset()
        """The ids of the tools that are disabled: they exist for nobody."""
        self._set(rules or PolicyRules())

    def use(self, rules: PolicyRules) -> bool:
        """Decide by other rules from now on. Returns whether they are others."""
        if rules == self._rules:
            return False
        self._set(rules)
        return True

    def switch_off(self, tool_ids: Iterable[str]) -> None:
        """Have these tools, and no others, exist for nobody from now on."""
        self.off = frozenset(tool_ids)
        self._sights.clear()

    def _set(self, rules: PolicyRules) -> None:
        self._rules = rules
        self.policy = Policy(rules.rules, rules.default)
        self._sights: Memo[Principal, Sees] = Memo(MAX_PRINCIPALS)

    def sees(self, principal: Principal) -> Sees | None:
        """What says which tools exist for a principal; `None`: all do. The same object until the rules change."""
        if self.policy.is_open and not self.off:
            return None
        sees = self._sights.get(principal)
        if sees is None:
            sees = self._sights[principal] = _Sight(self.policy, principal, self.off).sees
        return sees

    def sees_server(self, principal: Principal, server_id: str) -> bool:
        """Whether what a server has beside tools exists for a principal."""
        return self.policy.sees_server(principal, server_id)


class _Sight:
    """One principal's view under one policy, remembered tool by tool."""

    def __init__(self, policy: Policy, principal: Principal, off: frozenset[str]) -> None:
        self._off = off
        self._policy = policy
        self._principal = principal
        self._known: Memo[tuple[str, str], bool] = Memo(MAX_KNOWN)

    def sees(self, tool: Tool) -> bool:
        key = (tool.tool_id, tool.definition_hash)
        known = self._known.get(key)
        if known is None:
            seen = tool.tool_id not in self._off and self._policy.sees(self._principal, tool).allowed
            known = self._known[key] = seen
        return known
