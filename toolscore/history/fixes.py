"""What helped after a failure: what differs between the call that failed and the one that succeeded, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from toolscore.core.jsonrpc import encode

__all__ = ["Fix", "changes_between", "worded"]

MAX_VALUE = 80
DEPTH = 3


class Fix(msgspec.Struct, kw_only=True):
    """What helped. `changes`: `path: what` of each changed argument; `steps`: tools called before the second try."""

    fix_id: str
    pattern_id: str
    tool_id: str
    changes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    public: bool = False
    """It names nothing but arguments that the tool itself declares: others may hear of it."""
    text: str | None = None
    """Written by hand."""
    worked: int = 0
    failed: int = 0
    values: dict[str, dict[str, list[str]]] = {}
    """Caller → path → [before, after], as JSON."""
    last_used: str = ""

    @property
    def confidence(self) -> float:
        """Between 0 and 1. Written by hand and never tried: 1."""
        if self.text is not None and not (self.worked + self.failed):
            return 1.0
        return self.worked / (self.worked + self.failed + 1)


def worded(fix: Fix, principal: str | None) -> str:
    """A fix in words, with the values that this caller may see."""
    tried = fix.worked + fix.failed
    often = f" (worked {fix.worked} of {tried} times)" if tried else ""
    if fix.text is not None:
        return fix.text + often
    if fix.steps:
        return f"call {', then '.join(fix.steps)} first{often}"
    if not fix.changes:
        return f"call it again: the same call succeeded later{often}"
    known = _visible_values(fix.values, principal)
    parts = []
    for change in fix.changes:
        path, _, what = change.partition(": ")
        before, after = known.get(path, ("", ""))
        match what:
            case "added":
                parts.append(f"give `{path}`" + (f", such as {after}" if after else ""))
            case "removed":
                parts.append(f"leave `{path}` out")
            case "changed":
                parts.append(f"give another `{path}`" + (f", as {after} instead of {before}" if after else ""))
            case _:
                parts.append(
                    f"make `{path}` {what.replace('to ', 'of type ', 1)}" + (f", such as {after}" if after else "")
                )
    return " and ".join(parts) + often


def _visible_values(values: Mapping[str, dict[str, list[str]]], principal: str | None) -> dict[str, tuple[str, str]]:
    """Of each path the values of this caller, or those that several callers came to."""
    own = values.get(principal, {}) if principal is not None else {}
    found = {path: (pair[0], pair[1]) for path, pair in own.items()}
    seen: dict[tuple[str, str], int] = {}
    for of_caller in values.values():
        for path, (_, after) in of_caller.items():
            seen[path, after] = seen.get((path, after), 0) + 1
    for (path, after), callers in seen.items():
        if callers > 1 and path not in found:
            found[path] = ("what was given", after)
    return found


def changes_between(
    before: Any, after: Any, values: dict[str, list[str]], path: str = "", depth: int = 0
) -> tuple[str, ...]:
    """`path: what` of each difference between two objects; their values go into `values`."""
    changes: list[str] = []
    for name in sorted({*before, *after}):
        here = f"{path}{name}"
        if name not in before:
            changes.append(f"{here}: added")
            values[here] = ["", _value(after[name])]
        elif name not in after:
            changes.append(f"{here}: removed")
        elif before[name] != after[name] or type(before[name]) is not type(after[name]):
            if isinstance(before[name], dict) and isinstance(after[name], dict) and depth < DEPTH:
                changes += changes_between(before[name], after[name], values, f"{here}.", depth + 1)
                continue
            was, now = _type(before[name]), _type(after[name])
            changes.append(f"{here}: changed" if was == now else f"{here}: to {now}")
            values[here] = [_value(before[name]), _value(after[name])]
    return tuple(changes)


def _type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "value")


def _value(value: Any) -> str:
    text = encode(value).decode()
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"
