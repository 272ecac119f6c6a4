"""The HTTP headers of the stateless era that repeat what is in the body: how they are written, read and checked.

`Mcp-Name` repeats the name or the URI; `Mcp-Param-…` repeats an argument whose schema says so with `x-mcp-header`
(revision 2026-07-28, streamable HTTP: custom headers). Both sides of the gateway need them: as client and as server.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "NAMED_METHODS",
    "PARAM_PREFIX",
    "Mirrored",
    "header_text",
    "header_value",
    "mirrored_arguments",
    "param_headers",
    "param_mismatch",
]

NAMED_METHODS = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""Methods whose `Mcp-Name` header repeats a member of the params (the last three: the tasks extension)."""

PARAM_PREFIX = "Mcp-Param-"

_SAFE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL = re.compile(r"(-?[0-9]+)(?:\.0+)?")
_ONE_SCHEMA = frozenset(
    {"items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties", "not",
     "if", "then", "else", "contentSchema"}
)  # fmt: skip
_MANY_SCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED_SCHEMAS = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})

Path = tuple[str, ...]
Mirrored = dict[Path, tuple[str, str]]
"""Arguments that are repeated in headers: path of property names → header token and JSON type."""


def header_value(value: str) -> str:
    """A value as a header carries it: plain where it can be, else base64 in a sentinel."""
    if _SAFE.fullmatch(value) and not value.startswith("=?base64?"):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def header_text(value: str | None) -> str | None:
    """What a header says, undoing the sentinel; `None` where it cannot be undone."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        decoded = base64.b64decode(value[9:-2], validate=True)
        return decoded.decode() if base64.b64encode(decoded).decode() == value[9:-2] else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def mirrored_arguments(schema: Any) -> Mirrored:
    """The arguments that a schema has repeated in headers.

    Raises:
        ValueError: an annotation that the specification forbids; clients leave such a tool out.
    """
    found: Mirrored = {}
    tokens: set[str] = set()
    for path, part in _parts(schema):
        if "x-mcp-header" not in part:
            continue
        token, kind = part["x-mcp-header"], part.get("type")
        where = ".".join(path or ()) or "the schema"
        if not path:
            raise ValueError("x-mcp-header stands where no plain chain of properties leads")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError(f"x-mcp-header of {where} is no header token")
        if kind not in ("string", "integer", "boolean"):
            raise ValueError(f"x-mcp-header of {where}: only strings, integers and booleans may have one")
        if token.lower() in tokens:
            raise ValueError(f"x-mcp-header {token!r} is given twice")
        tokens.add(token.lower())
        found[path] = (token, kind)
    return found


def _parts(root: Any) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Each schema within one, with the chain of `properties` that leads there, `None` where something else does."""
    stack: list[tuple[Path | None, Any]] = [((), root)]
    while stack:
        path, part = stack.pop()
        if not isinstance(part, dict):
            continue
        yield path, part
        for key, member in part.items():
            if key == "properties" and isinstance(member, dict):
                stack.extend(((*path, name) if path is not None else None, sub) for name, sub in member.items())
            elif key in _ONE_SCHEMA:
                stack.append((None, member))
            elif key in _MANY_SCHEMAS and isinstance(member, list):
                stack.extend((None, sub) for sub in member)
            elif key in _NAMED_SCHEMAS and isinstance(member, dict):
                stack.extend((None, sub) for sub in member.values())


def param_headers(mirrored: Mirrored, arguments: Any) -> dict[str, str]:
    """The `Mcp-Param-…` headers of a call; an argument that is absent or null has none."""
    headers = {}
    for path, (token, _) in mirrored.items():
        rendered = _rendered(_at(arguments, path))
        if rendered is not None:
            headers[PARAM_PREFIX + token] = header_value(rendered)
    return headers


def param_mismatch(mirrored: Mirrored, arguments: Any, headers: Mapping[str, list[str]]) -> str | None:
    """What is wrong with the `Mcp-Param-…` headers of a call, `None` if nothing.

    Args:
        headers: all values of each header, by its name in lower case.
    """
    for path, (token, kind) in mirrored.items():
        name, argument = PARAM_PREFIX + token, ".".join(path)
        given = headers.get(name.lower(), [])
        value = _at(arguments, path)
        rendered = _rendered(value)
        if len(given) > 1:
            return f"the {name} header appears more than once"
        if not given:
            if rendered is not None:
                return f"the {name} header is missing, and the argument {argument!r} is there"
            continue
        if value is None:
            return f"the {name} header is there, and the argument {argument!r} is not"
        text = header_text(given[0])
        if text is None:
            return f"the {name} header is no valid base64"
        if text != rendered and not (kind == "integer" and _same_number(text, value)):
            return f"the {name} header does not match the argument {argument!r}"
    return None


def _same_number(text: str, value: Any) -> bool:
    found = _DECIMAL.fullmatch(text)
    return found is not None and len(text) < 400 and isinstance(value, int | float) and int(found[1]) == value


def _at(arguments: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(arguments, Mapping):
            return None
        arguments = arguments.get(name)
    return arguments


def _rendered(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        return str(value) if isinstance(value, str | int | float) else None
    except ValueError:  # more digits than Python writes
        return None
