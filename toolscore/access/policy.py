"""What a principal may do: rules of the operator, deny before allow. No I/O.

A rule says for whom it is (principals, scopes), for what (servers, tools, annotations, arguments), and the effect. It
matches when all that it says is so; what it leaves out is anything. A tool that a principal may not call, whatever the
arguments, does not exist for it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec
from pydantic import Field, model_validator

from toolscore.access.matching import Looking, expression
from toolscore.core.memo import Memo
from toolscore.core.models import Principal, Tool
from toolscore.core.names import EXECUTOR, PYTHON
from toolscore.core.rules import Rules

__all__ = ["ANNOTATIONS", "Decision", "Policy", "PolicyRules", "Rule"]

ANNOTATIONS = {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": False, "openWorldHint": True}
"""What a tool is taken for that does not say (MCP, tool annotations)."""

MAX_KNOWN = 10_000
"""Principals with a tool of which is known which rules are about them."""
MATCH_SECONDS = 0.1
"""CPU that the expressions of all rules may take for one call. What they cannot tell in it counts against the call."""

Operator = Literal["equals", "not_equals", "in", "not_in", "matches", "not_matches", "at_most", "at_least", "present"]
Hint = Literal["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"]
Effect = Literal["allow", "deny"]


class Rule(Rules):
    """One rule of the operator. It matches when all that it says is so; what it leaves out is anything."""

    effect: Effect
    principals: tuple[str, ...] = Field((), description="glob patterns of names")
    scopes: tuple[str, ...] = Field((), description="any one of them")
    servers: tuple[str, ...] = Field((), description="glob patterns of ids")
    tools: tuple[str, ...] = Field((), description="glob patterns of full or own names")
    annotations: dict[Hint, bool] = Field({}, description="what the tool says of itself, or is taken for")
    arguments: dict[str, dict[Operator, Any]] = Field(
        {},
        description="path of an argument (`options.force`) → operator → value; an argument that is not there matches "
        "`present: false`, `not_equals`, `not_in` and `not_matches`",
    )
    reason: str = Field("", description="shown to whoever is refused")

    @model_validator(mode="after")
    def _operands_fit(self) -> Rule:
        for tests in self.arguments.values():
            for operator, operand in tests.items():
                _check_operand(operator, operand)
        return self

    def is_for(self, principal: Principal) -> bool:
        return _any(self.principals, principal.name) and (
            not self.scopes or any(scope in principal.scopes for scope in self.scopes)
        )

    def is_about(self, tool: Tool) -> bool:
        """Whether it is about this tool, whatever the arguments."""
        said = tool.annotations
        return (
            (_any(self.servers, tool.server_id) or self._denies_python(self.servers, tool, PYTHON))
            and (
                _any(self.tools, tool.tool_id)
                or _any(self.tools, tool.name)
                or self._denies_python(self.tools, tool, f"{PYTHON}__{tool.name}")
            )
            and all(said.get(name, ANNOTATIONS[name]) is wanted for name, wanted in self.annotations.items())
        )

    def _denies_python(self, patterns: tuple[str, ...], tool: Tool, short: str) -> bool:
        """Whether it denies the executor's tools by the short name under which they may be called."""
        return self.effect == "deny" and tool.server_id == EXECUTOR and _any(patterns, short)

    def fits(self, arguments: Mapping[str, Any], looking: Looking) -> bool:
        """Whether the arguments are as it says. What cannot be told in time denies, and does not allow."""
        try:
            return all(
                _holds(looking, operator, operand, *_at(arguments, path))
                for path, tests in self.arguments.items()
                for operator, operand in tests.items()
            )
        except TimeoutError:
            return self.effect == "deny"


class Decision(msgspec.Struct, frozen=True):
    """What a policy says, and which rule (counted from 1) said so; `None`: the default did."""

    allowed: bool
    rule: int | None = None
    reason: str = ""


class PolicyRules(Rules):
    """What callers may do; a rule that denies wins, then one that allows."""

    default: Effect = Field("allow", description="for what no rule is about")
    rules: tuple[Rule, ...] = Field(
        (),
        description='{effect: deny, principals: ["guest*"], tools: ["*__delete_*"], reason: "…"}; a rule also takes '
        'scopes, servers, annotations ({readOnlyHint: false}), arguments ({path: {matches: "^/etc"}})',
    )


class Policy:
    """The rules together.

    Args:
        default: for what no rule is about.
    """

    def __init__(self, rules: Sequence[Rule] = (), default: Effect = "allow") -> None:
        self.rules = tuple(rules)
        self.default = default
        self.is_open = not self.rules and default == "allow"
        self.looks_at_arguments = any(rule.arguments for rule in self.rules)
        self._known: Memo[tuple[Principal, str, str], list[tuple[int, Rule]]] = Memo(MAX_KNOWN)

    def decide(self, principal: Principal, tool: Tool, arguments: Mapping[str, Any]) -> Decision:
        """Whether this call may be made: a rule that denies wins, then one that allows, then the default."""
        looking = Looking(MATCH_SECONDS)
        return self._decide([each for each in self._about(principal, tool) if each[1].fits(arguments, looking)])

    def sees(self, principal: Principal, tool: Tool) -> Decision:
        """Whether a tool exists for a principal: it does if some call of it may be allowed."""
        if self.is_open:
            return Decision(True)
        about = self._about(principal, tool)
        return self._decide([each for each in about if not (each[1].effect == "deny" and each[1].arguments)])

    def _about(self, principal: Principal, tool: Tool) -> list[tuple[int, Rule]]:
        """The rules for a principal and about a tool, with their numbers, whatever they say of arguments."""
        key = (principal, tool.tool_id, tool.definition_hash)
        about = self._known.get(key)
        if about is None:
            about = self._known[key] = [
                (number, rule)
                for number, rule in enumerate(self.rules, 1)
                if rule.is_for(principal) and rule.is_about(tool)
            ]
        return about

    def sees_server(self, principal: Principal, server_id: str) -> bool:
        """Whether what a server has beside tools exists for a principal: rules about all of the server count."""
        if self.is_open:
            return True
        about = [rule for rule in self.rules if rule.is_for(principal) and _any(rule.servers, server_id)]
        if any(rule.effect == "deny" and not (rule.tools or rule.annotations or rule.arguments) for rule in about):
            return False
        return self.default == "allow" or any(rule.effect == "allow" for rule in about)

    def _decide(self, matching: Collection[tuple[int, Rule]]) -> Decision:
        for effect in ("deny", "allow"):
            for number, rule in matching:
                if rule.effect == effect:
                    return Decision(effect == "allow", number, rule.reason)
        return Decision(self.default == "allow")


def _any(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a name is meant by one of the patterns; no patterns mean all names."""
    return not patterns or any(_pattern(pattern).match(name) for pattern in patterns)


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))


def _at(arguments: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    value: Any = arguments
    for step in path.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return False, None
        value = value[step]
    return True, value


def _holds(looking: Looking, operator: str, operand: Any, present: bool, value: Any) -> bool:
    match operator:
        case "present":
            return present is operand
        case "equals":
            return present and _same(value, operand)
        case "not_equals":
            return not (present and _same(value, operand))
        case "in":
            return present and any(_same(value, one) for one in operand)
        case "not_in":
            return not (present and any(_same(value, one) for one in operand))
        case "matches":
            return isinstance(value, str) and looking.finds(operand, value)
        case "not_matches":
            return not (isinstance(value, str) and looking.finds(operand, value))
        case "at_most":
            return _is_number(value) and value <= operand
        case "at_least":
            return _is_number(value) and value >= operand
        case _:
            raise ValueError(f"no operator {operator!r}")


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON is: true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_operand(operator: Operator, operand: Any) -> None:
    """Refuse an operand that its operator cannot be held against.

    Raises:
        ValueError: what it takes.
    """
    if operator in ("matches", "not_matches"):
        try:
            expression(operand)
        except (re.error, TypeError) as exc:
            raise ValueError(f"`{operator}` takes a regular expression: {exc}") from exc
    elif operator in ("in", "not_in") and not isinstance(operand, list):
        raise ValueError(f"`{operator}` takes a list")
    elif operator in ("at_most", "at_least") and not isinstance(operand, int | float):
        raise ValueError(f"`{operator}` takes a number")
    elif operator == "present" and not isinstance(operand, bool):
        raise ValueError("`present` takes true or false")
