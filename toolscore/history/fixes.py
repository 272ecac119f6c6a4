"""What helped after a failure: what differs between the call that failed and the one that succeeded, in words.

Words name arguments that the tool declares, tools that were called in between, and values that the tool's own schema
lists. A value out of a call never stands in them: nobody knows whose it was.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from toolscore.core.jsonrpc import encode

__all__ = ["Baseline", "Fix", "changes_between", "says_already", "worded"]

DEPTH = 3
MAX_CHANGES = 3
"""A call that differs in more than this is another call, not the same one mended."""
NAME = re.compile(r"[\w-]{1,40}")
MAX_LISTED = 60
SURE = 0.8
"""A fix that is right less often than this is not shown."""
FEW = 5
"""Times that a fix must have been shown before that alone is judged by."""
FREE_FORM = re.compile(
    r"(?:^|[_\W])(?:code|query|sql|text|contents?|message|body|prompt|script|command|cmd|expression|input|description"
    r"|html|markdown|data|patch|diff|source|instructions?|question|task|notes?|statement|comment|summary|title|words)s?$"
)
"""Names of arguments whose values are made for one call: another value that helped tells nothing."""


class Baseline(msgspec.Struct):
    """How failures of one kind go on where nothing was shown: how many, and how often the next try went well."""

    count: int = 0
    mended: int = 0


class Fix(msgspec.Struct, kw_only=True):
    """What helped. `changes`: `path: what` of each changed argument; `steps`: tools called before the second try."""

    fix_id: str
    pattern_id: str
    tool_id: str
    changes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    callers: tuple[str, ...] = ()
    """Who made these steps: which tools others have is nobody's to know."""
    text: str | None = None
    """Written by hand."""
    off: bool = False
    """An operator has switched it off: nobody is told of it."""
    worked: int = 0
    failed: int = 0
    shown: int = 0
    shown_mended: int = 0
    """Of those whom it was shown, whose next try went well, whatever they changed."""
    right: int = 0
    """Of those, who did as it said."""
    fitted: int = 0
    """Failures that it would have been shown for."""
    baseline: Baseline = msgspec.field(default_factory=Baseline)
    last_used: str = ""

    @property
    def gain(self) -> float:
        """How much more often a call succeeds with it than without; at most 1. Written by hand: 1."""
        if self.text is not None:
            return 1.0
        if not self.baseline.count:
            return 0.0
        tried = self.worked + self.failed
        helped = self.shown_mended / self.shown if self.shown >= FEW else self.worked / (tried + 1)
        return helped - self.baseline.mended / self.baseline.count

    @property
    def is_sure(self) -> bool:
        """Whether it is right often enough: of those who tried it, of those who mended it, of those it was shown."""
        if self.text is not None:
            return True
        unasked = self.worked - self.right
        shares = [self.worked / (self.worked + self.failed + 1), unasked / (self.baseline.mended + 1)]
        if self.shown >= FEW:
            shares.append(self.right / self.shown)
        return min(shares) >= SURE


def worded(fix: Fix) -> str:
    """A fix in words."""
    if fix.text is not None:
        return fix.text
    often = f" (worked {fix.worked} of {fix.worked + fix.failed} times)"
    if fix.steps:
        return f"call {', then '.join(fix.steps)} first{often}"
    if not fix.changes:
        return f"call it again: the same call succeeded later{often}"
    parts = []
    for change in fix.changes:
        path, _, what = change.partition(": ")
        match what.partition(" "):
            case "added", _, value:
                parts.append(f"give `{path}`" + (f" as {value}" if value else ""))
            case "removed", _, _:
                parts.append(f"leave `{path}` out")
            case "changed", _, value:
                parts.append(f"give `{path}` as {value}" if value else f"give another `{path}`")
            case _, _, kind:
                parts.append(f"make `{path}` of type {kind}")
    return " and ".join(parts) + often


def says_already(message: str, fix: Fix) -> bool:
    """Whether an error's own words name each argument that a fix would name."""
    if fix.text is not None or not fix.changes:
        return False
    changes = [change.partition(": ") for change in fix.changes]
    names = [path.rpartition(".")[2] for path, _, what in changes if " " not in what or what.startswith("to ")]
    return len(names) == len(changes) and all(
        re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) is not None for name in names
    )


def changes_between(before: dict[str, Any], after: dict[str, Any], schema: Any) -> tuple[str, ...] | None:
    """What was changed from one call's arguments to another's, as far as the schema knows them.

    Returns `path: what` of each: `added`, `removed`, `changed` (each with the value, if the schema lists it) or `to
    TYPE`. `None`: that is too much, or cannot be said: an argument that is not declared, or another free-form value.
    """
    found: list[str] = []
    return tuple(found) if _compare(before, after, schema, "", found, DEPTH) else None


def _compare(
    before: dict[str, Any], after: dict[str, Any], schema: Any, path: str, found: list[str], depth: int
) -> bool:
    declared = schema.get("properties") if isinstance(schema, dict) else None
    for name in sorted({*before, *after}):
        was, now = before.get(name, _absent), after.get(name, _absent)
        if type(was) is type(now) and was == now:
            continue
        about = declared.get(name) if isinstance(declared, dict) else None
        if not isinstance(about, dict) or not NAME.fullmatch(name) or len(found) >= MAX_CHANGES:
            return False
        here = f"{path}{name}"
        if isinstance(was, dict) and isinstance(now, dict) and depth:
            if not _compare(was, now, about, f"{here}.", found, depth - 1):
                return False
        elif now is _absent:
            found.append(f"{here}: removed")
        elif was is not _absent and _type(was) != _type(now):
            found.append(f"{here}: to {_type(now)}")
        else:
            value = _listed(now, about)
            if was is not _absent and not value and _is_free(name, was, now):
                return False
            found.append(f"{here}: {'added' if was is _absent else 'changed'}{f' {value}' if value else ''}")
    return True


_absent: Any = object()


def _listed(value: Any, about: dict[str, Any]) -> str | None:
    """A value as JSON, if the schema of its argument lists it."""
    text = encode(value).decode()
    if len(text) > MAX_LISTED:
        return None
    for name in ("enum", "examples"):
        listed = about.get(name)
        if isinstance(listed, list) and any(type(one) is type(value) and one == value for one in listed[:200]):
            return text
    alone = (encode(about[name]).decode() for name in ("const", "default") if name in about)
    return text if text in alone else None


def _is_free(name: str, *values: Any) -> bool:
    texts = [value for value in values if isinstance(value, str)]
    return FREE_FORM.search(name.lower()) is not None or any(len(one) > 64 or len(one.split()) > 1 for one in texts)


def _type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "value")
