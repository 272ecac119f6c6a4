"""Tools as Python sees them: names that are identifiers, typed signatures made of their schemas, and stubs of both.

Everything here is a function of definitions alone. What a schema says that Python's types cannot is left out; what they
say is never more than the schema says.
"""

from __future__ import annotations

import hashlib
import keyword
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from toolscore.core.errors import InvalidArguments
from toolscore.core.models import Tool
from toolscore.tools.pointers import at_pointer

__all__ = ["NameSpace", "arranged", "identifier", "signature", "stub_of", "stubs", "unwraps"]

MAX_DEPTH = 4
"""Of nested types; deeper ones are `Any`."""
MAX_MEMBERS = 40
MAX_LOOKED_AT = 2000
"""Parts of one tool's schemas; the rest is `Any`."""
MAX_CHOICES = 12
MAX_DESCRIPTION = 600
MAX_NOTE = 120
CHARACTERS_PER_TOKEN = 4
LEAST_CHARACTERS = 40
"""Of a tool; where there is less room none is tried."""
HASH_DIGITS = 6
RESERVED = frozenset({"search", "parallel", "later", "text", "raw", "explain"})
"""What code finds beside servers and tools under these names."""
NO_OBJECTS = frozenset({"string", "integer", "number", "boolean", "array"})
PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_OTHER = re.compile(r"\W+", re.ASCII)
_SPACE = re.compile(r"\s+")


def identifier(name: str) -> str:
    """A name as a Python identifier; the same one for the same name, always. One that is an identifier stays."""
    plain = _OTHER.sub("_", name).strip("_") if not name.isidentifier() or not name.isascii() else name
    if not plain or plain[0].isdigit():
        plain = f"_{plain}"
    if plain in keyword.kwlist or plain in RESERVED or plain.startswith("__"):
        plain = f"{plain}_"
    return plain


def distinct(name: str) -> str:
    """The identifier of a name that no other name has: with the beginning of its hash."""
    return f"{identifier(name)}_{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:HASH_DIGITS]}"


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """Each name's identifier. Where two have the same, whoever is called so keeps it, and the others get a hash."""
    names = list(names)
    found = {name: identifier(name) for name in names}
    count: dict[str, int] = {}
    for plain in found.values():
        count[plain] = count.get(plain, 0) + 1
    return {name: plain if count[plain] == 1 or plain == name else distinct(name) for name, plain in found.items()}


class NameSpace:
    """The tools that somebody sees, as code names them.

    Attributes:
        servers: identifier → the tools of that server by their identifiers, both in order.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        by_server: dict[str, list[Tool]] = {}
        self._by_id: dict[str, Tool] = {}
        for tool in tools:
            by_server.setdefault(tool.server_id, []).append(tool)
            self._by_id[tool.tool_id] = tool
        server_names = identifiers(by_server)
        self.servers: dict[str, dict[str, Tool]] = {}
        self._names: dict[str, tuple[str, str]] = {}
        self._also: dict[str, str] = {}
        """Names under which a server is found, too: its id, and the identifier with the hash."""
        for server_id, own in by_server.items():
            server = server_names[server_id]
            names = identifiers(tool.name for tool in own)
            self.servers[server] = {names[tool.name]: tool for tool in own}
            for other in (server_id, distinct(server_id)):
                self._also.setdefault(other, server)
            for tool in own:
                self._names[tool.tool_id] = (server, names[tool.name])

    def name_of(self, tool: Tool) -> str:
        """How code names a tool: `server.tool`."""
        return ".".join(self._names[tool.tool_id])

    def server(self, name: str) -> dict[str, Tool] | None:
        """The tools of a server by its identifier or its id."""
        return self.servers.get(self._also.get(name, name)) or self.servers.get(name)

    def find(self, path: Collection[str]) -> Tool | None:
        """The tool that code means: `(server, tool)`, or `(full name,)`, or `("server.tool",)`."""
        parts = list(path)
        if len(parts) == 1:
            known = self._by_id.get(parts[0])
            if known is not None or "." not in parts[0]:
                return known
            parts = parts[0].split(".", 1)
        own = self.server(parts[0])
        if own is None:
            return None
        tool = own.get(parts[1])
        if tool is None:
            tool = next((one for one in own.values() if parts[1] in (one.name, distinct(one.name))), None)
        return tool

    def matches(self, tool: Tool, pattern: str) -> bool:
        """Whether a pattern of `server__tool` means a tool: by the gateway's name or by the code's, which are nobody
        else's; or all of its server.
        """
        names = [tool.tool_id, "__".join(self._names.get(tool.tool_id, ()))]
        return any(fnmatchcase(one, pattern) for one in names) or pattern == f"{tool.server_id}__*"

    def matching(self, pattern: str) -> list[Tool]:
        """The tools that a pattern means."""
        return [tool for tool in self._by_id.values() if self.matches(tool, pattern)]

    def known(self) -> list[str]:
        """All names, as `server.tool`."""
        return [".".join(names) for names in self._names.values()]


def _properties(schema: Any) -> dict[str, Any]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties if isinstance(properties, dict) else {}


def _required(schema: Any) -> list[str]:
    required = schema.get("required") if isinstance(schema, dict) else None
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


def _arguments(tool: Tool) -> dict[str, tuple[str, Any, bool]]:
    """The arguments in the order of the signature: identifier → (the schema's name, its schema, whether required)."""
    schema = tool.input_schema
    properties, required = _properties(schema), set(_required(schema))
    ordered = sorted(properties, key=lambda name: name not in required)
    names = identifiers(ordered)
    return {names[name]: (name, properties[name], name in required) for name in ordered}


def arranged(tool: Tool, args: list[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, as the schema names them.

    Args:
        args: by position, in the order of the signature; or one dict of them all, where the first takes no object.
        kwargs: by identifier, or by the schema's own name.

    Raises:
        InvalidArguments: more than the tool takes, or one twice.
    """
    known = _arguments(tool)
    properties = {name for name, _, _ in known.values()}
    if len(args) == 1 and not kwargs and isinstance(args[0], dict) and args[0] and args[0].keys() <= properties:
        first: Any = next(iter(known.values()))[1]
        if isinstance(first, dict) and first.get("type") in NO_OBJECTS:  # it cannot be meant for that one
            return dict(args[0])
    if len(args) > len(known):
        takes = f"{len(known)} argument{'s' * (len(known) != 1)}" if known else "no arguments"
        raise InvalidArguments(f"{tool.tool_id} takes {takes}, found {len(args)}", suggestion=signature(tool))
    found = dict(zip((name for name, _, _ in known.values()), args, strict=False))
    for given, value in kwargs.items():
        name = known[given][0] if given in known and given not in properties else given
        if name in found:
            raise InvalidArguments(f"{tool.tool_id} got its argument {name!r} twice", suggestion=signature(tool))
        found[name] = value
    return found


def unwraps(tool: Tool) -> bool:
    """Whether a result is `{"result": value}` only since MCP wants an object there, as FastMCP and the SDK make it."""
    schema = tool.definition.get("outputSchema")
    if not isinstance(schema, dict) or list(_properties(schema)) != ["result"]:
        return False
    return schema.get("x-fastmcp-wrap-result") is True or (
        str(schema.get("title", "")).endswith("Output") and _required(schema) == ["result"]
    )


class _Types:
    """Schemas as Python types; objects that have members become classes, which are collected."""

    def __init__(self, root: Any, prefix: str) -> None:
        self.root = root
        self._prefix = prefix
        self._looked_at = 0
        self.classes: dict[str, list[str]] = {}

    def of(self, schema: Any, name: str, depth: int = 0) -> str:
        self._looked_at += 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._looked_at > MAX_LOOKED_AT:
            return "Any"
        if isinstance(schema.get("$ref"), str):
            target = at_pointer(self.root, schema["$ref"][1:]) if schema["$ref"].startswith("#/") else None
            return self.of(target, schema["$ref"].rsplit("/", 1)[-1], depth + 1) if target is not None else "Any"
        if "const" in schema:
            return _literal([schema["const"]])
        if isinstance(schema.get("enum"), list):
            return _literal(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                return _union(self.of(one, name, depth + 1) for one in schema[key][:MAX_CHOICES])
        kind = schema.get("type")
        if isinstance(kind, list):
            return _union(self.of({**schema, "type": one}, name, depth + 1) for one in kind[:MAX_CHOICES])
        if kind in PLAIN:
            return PLAIN[kind]
        if kind == "array":
            return f"list[{self.of(schema.get('items', True), f'{name}_item', depth + 1)}]"
        if kind == "object" or _properties(schema):
            return self._object(schema, name, depth)
        return "Any"

    def _object(self, schema: dict[str, Any], name: str, depth: int) -> str:
        properties = _properties(schema)
        if not properties:
            values = schema.get("additionalProperties")
            inner = self.of(values, name, depth + 1) if isinstance(values, dict) else "Any"
            return f"dict[str, {inner}]"
        if len(properties) > MAX_MEMBERS or not all(key.isidentifier() for key in properties):
            return "dict[str, Any]"
        title = "".join(part[:1].upper() + part[1:] for part in identifier(f"{self._prefix}_{name}").split("_"))
        if title in self.classes:
            return title
        self.classes[title] = lines = []
        required = set(_required(schema))
        for key, value in properties.items():
            kind = self.of(value, key, depth + 1)
            lines.append(f"{key}: {kind if key in required else f'NotRequired[{kind}]'}{_note(value)}")
        return title


def _literal(values: list[Any]) -> str:
    plain = [value for value in values if value is None or isinstance(value, str | int | bool)]
    if len(plain) != len(values) or len(values) > MAX_CHOICES:
        kinds = {"None" if value is None else type(value).__name__: None for value in values}
        return _union(kind if kind in ("None", "str", "int", "bool", "float") else "Any" for kind in kinds) or "Any"
    return f"Literal[{', '.join(map(repr, plain))}]" if plain else "Any"


def _union(kinds: Iterable[str]) -> str:
    found = list(dict.fromkeys(kinds))
    return "Any" if "Any" in found else " | ".join(found)


def _note(schema: Any) -> str:
    text = schema.get("description") if isinstance(schema, dict) else None
    return f"  # {_line(text, MAX_NOTE)}" if isinstance(text, str) and text.strip() else ""


def _line(text: str, most: int) -> str:
    line = _SPACE.sub(" ", text).strip()
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _default(schema: Any) -> str:
    if isinstance(schema, dict) and "default" in schema:
        shown = repr(schema["default"])
        if len(shown) <= MAX_NOTE:
            return shown
    return "..."


def _signature(tool: Tool, name: str, types: _Types) -> str:
    arguments = []
    for shown, (_, schema, required) in _arguments(tool).items():
        kind = types.of(schema, shown)
        arguments.append(f"{shown}: {kind}" if required else f"{shown}: {kind} = {_default(schema)}")
    return f"{name}({', '.join(arguments)}) -> {_result(tool, types)}"


def _result(tool: Tool, types: _Types) -> str:
    schema = tool.definition.get("outputSchema")
    if not isinstance(schema, dict):
        return "Any"
    types.root = schema
    return types.of(_properties(schema)["result"] if unwraps(tool) else schema, "result")


def signature(tool: Tool, name: str | None = None) -> str:
    """The call of a tool in one line: `get_current_time(timezone: str) -> dict[str, Any]`."""
    name = name or identifier(tool.name)
    return _signature(tool, name, _Types(tool.input_schema, identifier(tool.name)))


def stub_of(tool: Tool, name: str, *, full: bool = True, indent: str = "    ") -> str:
    """A tool as a function of a stub file.

    Args:
        name: of the function.
        full: with its description, the notes on its arguments, and classes for objects.
    """
    types = _Types(tool.input_schema, name)
    head = _signature(tool, name, types)
    if not full:
        return f"{indent}def {head}: ..."
    lines = []
    for title, members in types.classes.items():
        lines += [f"{indent}class {title}(TypedDict):", *(f"{indent}    {member}" for member in members or ["..."])]
    lines.append(f"{indent}def {head}:")
    text = _line(tool.description, MAX_DESCRIPTION).replace('"""', "'''").replace("\\", "\\\\") or tool.name
    notes = [
        f"{indent}        {shown}: {_line(str(schema['description']), MAX_NOTE)}".replace('"""', "'''")
        for shown, (_, schema, _) in _arguments(tool).items()
        if isinstance(schema, dict) and isinstance(schema.get("description"), str)
    ]
    if "outputSchema" not in tool.definition:
        notes.append(f"{indent}        returns: its text, parsed if that is JSON; `.text(…)` gives it as it came")
    if not tool.reads_only:
        notes.append(f"{indent}        It may change something: the run must name it.")
    lines += [f'{indent}    """{text}', *notes, f'{indent}    """'] if notes else [f'{indent}    """{text}"""']
    return "\n".join(lines)


def stubs(space: NameSpace, tools: Iterable[Tool], max_tokens: int) -> tuple[str, list[str]]:
    """The text of a stub file (`.pyi`) for these tools, of at most so many tokens, and the names that did not fit.

    The first tools come whole; where room runs short, tools come with their signature alone, then not at all.
    """
    room = max_tokens * CHARACTERS_PER_TOKEN
    chosen: dict[str, list[str]] = {}
    left: list[str] = []
    for tool in tools:
        server, name = space.name_of(tool).split(".", 1)
        if room < LEAST_CHARACTERS:
            left.append(f"{server}.{name}")
            continue
        for full in (True, False):
            text = stub_of(tool, name, full=full)
            cost = len(text) + 1 + (0 if server in chosen else len(server) + 10)
            if cost <= room:
                chosen.setdefault(server, []).append(text)
                room -= cost
                break
        else:
            left.append(f"{server}.{name}")
    parts = [f"class {server}:\n" + "\n".join(texts) for server, texts in chosen.items()]
    return "\n\n".join(parts), left
