"""Lists that every client takes: one odd entry of one server would cost a strict client the tools of all.

Members that have the wrong type are left out, a missing type is added, and a schema whose references lead nowhere is
withheld. Used where all servers share one address; at a server's own address all is as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolscore.tools.pointers import at_pointer

__all__ = ["mended_entry", "mended_tool", "says_object", "without_output"]

MAX_PARTS = 20_000
"""Of a schema that is looked through for references; a larger one counts as one that leads nowhere."""

TOOL = {"title": str, "description": str, "annotations": dict, "icons": list, "execution": dict, "_meta": dict}
ENTRY = {
    "title": str, "description": str, "mimeType": str, "size": int, "annotations": dict, "arguments": list,
    "icons": list, "_meta": dict,
}  # fmt: skip
"""The types of optional members (MCP schema: Tool; Prompt, Resource, ResourceTemplate)."""
HINTS = frozenset({"title", "readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"})


def mended_tool(definition: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A tool's definition as strict clients take it, and what was mended; the same object where nothing was."""
    mended, told = _typed(definition, TOOL)
    hints = mended.get("annotations")
    if isinstance(hints, dict):
        kept = {
            name: value
            for name, value in hints.items()
            if isinstance(value, str if name == "title" else bool) or name not in HINTS
        }
        mended, told = _instead(mended, told, "annotations", kept)
    schema, problems = _object_schema(mended.get("inputSchema"))
    mended, told = _instead(mended, told, "inputSchema", schema, problems)
    if "outputSchema" in mended:
        problem = _problem_of_output(mended["outputSchema"])
        if problem is not None:
            told = [*told, f"outputSchema withheld ({problem})"]
            mended = without_output(mended)
        elif not says_object(mended):
            told = [*told, "outputSchema withheld from clients with sessions (its type is not object)"]
    return mended, told


def says_object(definition: dict[str, Any]) -> bool:
    """Whether what a tool returns is an object by its schema, as it has to be in the session era."""
    schema = definition.get("outputSchema")
    return isinstance(schema, dict) and schema.get("type") == "object"


def without_output(definition: dict[str, Any]) -> dict[str, Any]:
    """A tool's definition without its `outputSchema`."""
    return {name: member for name, member in definition.items() if name != "outputSchema"}


def _problem_of_output(schema: Any) -> str | None:
    """Why no client could make anything of an `outputSchema`. Any type will do (revision 2026-07-28)."""
    _, problems = _object_schema({**schema, "type": "object"} if isinstance(schema, dict) else schema)
    return problems[0] if problems else None


def mended_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """A prompt, a resource or a template as strict clients take it; the same object where nothing was mended."""
    mended, _ = _typed(entry, ENTRY)
    arguments = mended.get("arguments")
    if isinstance(arguments, list):
        kept = [
            _typed(one, {"title": str, "description": str, "required": bool})[0]
            for one in arguments
            if isinstance(one, dict) and isinstance(one.get("name"), str)
        ]
        mended, _ = _instead(mended, [], "arguments", kept)
    if not isinstance(mended.get("name"), str):
        mended = {**mended, "name": str(mended.get("uri", mended.get("uriTemplate", "")))}
    return mended


def _typed(entry: dict[str, Any], types: Mapping[str, type]) -> tuple[dict[str, Any], list[str]]:
    """The entry without members of the wrong type."""
    wrong = [
        name
        for name, kind in types.items()
        if name in entry and (not isinstance(entry[name], kind) or (kind is int and isinstance(entry[name], bool)))
    ]
    if wrong:
        entry = {name: member for name, member in entry.items() if name not in wrong}
    icons = entry.get("icons")
    if isinstance(icons, list):
        kept = [icon for icon in icons if isinstance(icon, dict) and isinstance(icon.get("src"), str)]
        entry, wrong = _instead(entry, wrong, "icons", kept)
    return entry, wrong


def _instead(
    entry: dict[str, Any], told: list[str], name: str, member: Any, problems: list[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    if member == entry.get(name) and name in entry and not problems:
        return entry, told
    said = f"{name} ({problems[0]})" if problems else name
    return {**entry, name: member}, [*told, said]


def _object_schema(schema: Any) -> tuple[dict[str, Any], list[str]]:
    """The schema of an object, and what was wrong with it."""
    if not isinstance(schema, dict):
        return {"type": "object"}, ["no schema"]
    problems = []
    if schema.get("type") != "object":
        problems.append("its type is not object")
        schema = {**schema, "type": "object"}
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        problems.append("properties are no object")
        schema = {name: member for name, member in schema.items() if name != "properties"}
    elif any(not isinstance(part, dict | bool) for part in properties.values()):
        problems.append("a property has no schema")
        kept = {name: part if isinstance(part, dict | bool) else {} for name, part in properties.items()}
        schema = {**schema, "properties": kept}
    required = schema.get("required", [])
    if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
        problems.append("required is no list of names")
        schema = {name: member for name, member in schema.items() if name != "required"}
    if _leads_nowhere(schema):
        problems.append("a reference leads nowhere")
        schema = _without_references(schema)
    return schema, problems


def _leads_nowhere(schema: dict[str, Any]) -> bool:
    """Whether some reference in a schema has no target in it. None is fetched from elsewhere."""
    references: set[str] = set()
    names = {"", "#"}
    pending: list[Any] = [schema]
    parts = 0
    while pending:
        part = pending.pop()
        parts += 1
        if parts > MAX_PARTS:
            return True
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            for key, member in part.items():
                if key in ("$ref", "$dynamicRef") and isinstance(member, str):
                    references.add(member)
                elif key == "$id" and isinstance(member, str):
                    names |= {member, f"{member}#"}
                elif key in ("$anchor", "$dynamicAnchor") and isinstance(member, str):
                    names.add(f"#{member}")
                elif key not in ("const", "enum", "default", "examples", "example"):
                    pending.append(member)
    pointers = [reference for reference in references if reference not in names]
    return any(not (one.startswith("#/") and isinstance(at_pointer(schema, one[1:]), dict | bool)) for one in pointers)


def _without_references(schema: dict[str, Any]) -> dict[str, Any]:
    """The names of the arguments alone: what takes any value refuses none that the server would take."""
    properties = schema.get("properties")
    names = {name: _about(part) for name, part in properties.items()} if isinstance(properties, dict) else {}
    required = schema.get("required")
    return {"type": "object", "properties": names, **({"required": required} if required else {})}


def _about(part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        return {}
    return {name: part[name] for name in ("title", "description") if isinstance(part.get(name), str)}
