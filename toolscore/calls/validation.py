"""The step that holds arguments against the tool's schema: which field, what came, what was expected."""

from __future__ import annotations

import itertools
from typing import Any

from toolscore.calls.model import Call
from toolscore.core.errors import InvalidArguments
from toolscore.core.jsonrpc import encode
from toolscore.core.models import Tool
from toolscore.tools.checking import Compiled, Judge

__all__ = ["validate"]

MAX_SHOWN = 80


async def validate(call: Call, compiled: Compiled | None, judge: Judge) -> None:
    """Refuse arguments that are no object, or do not fit the tool's schema.

    Args:
        compiled: the schema; `None` checks only that there is an object.
        judge: checks what may take long.

    Raises:
        InvalidArguments: naming each field, where that is little work.
        Overloaded: too many large arguments are being checked.
    """
    tool, value = call.target, call.values
    if not isinstance(value, dict):
        raise InvalidArguments(
            f"the arguments of {tool.tool_id} must be an object, found {_shown(value)}", suggestion=_hint(tool)
        )
    if compiled is None:
        return
    size = call.arguments_bytes
    if compiled.is_quick(value, size):
        is_valid = compiled.validator.is_valid
        if is_valid(value) or is_valid(_without_nulls(tool, value)):
            return
    else:
        fits = await judge.fits(compiled, value)
        without = _without_nulls(tool, value)
        if fits is False and len(without) < len(value):
            fits = await judge.fits(compiled, without)
        if fits:
            return
        if fits is None:
            raise InvalidArguments(
                f"the arguments of {tool.tool_id} cannot be held against its schema in time: they are too large, or "
                "nested too deep",
                suggestion=_hint(tool),
            )
    problems = [_problem(error) for error in compiled.problems(value)] if compiled.is_explained(value, size) else []
    said = f": {'; '.join(problems)}" if problems else " (they are too large or nested too deep to say where)"
    raise InvalidArguments(
        f"the arguments of {tool.tool_id} do not fit its schema{said}",
        suggestion=_hint(tool),
        data={"problems": problems},
    )


def _without_nulls(tool: Tool, value: dict[str, Any]) -> dict[str, Any]:
    """Models write null for an argument that they leave out: where it is optional, the server may have it so."""
    required = tool.input_schema.get("required") if isinstance(tool.input_schema, dict) else None
    kept = required if isinstance(required, list) else []
    return {name: given for name, given in value.items() if given is not None or name in kept}


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error.instance_path)
    message = error.message if len(error.message) <= 2 * MAX_SHOWN else error.message[: 2 * MAX_SHOWN] + "…"
    return f"{path}: {message}" if path else message


def _hint(tool: Tool) -> str | None:
    properties = tool.input_schema.get("properties") if isinstance(tool.input_schema, dict) else None
    if not isinstance(properties, dict) or not properties:
        return None
    required = tool.input_schema.get("required") or []
    shown = []
    for name, described in itertools.islice(properties.items(), 12):
        kind = described.get("type", "any") if isinstance(described, dict) else "any"
        shown.append(f"{name}{'' if name in required else '?'}: {kind}")
    return f"expected {{{', '.join(shown)}}}"


def _shown(value: Any) -> str:
    text = encode(value).decode()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
