"""What is worked out of a tool's definition, once: validators, size, mirrored arguments, and whether it is usable."""

from __future__ import annotations

import math
from typing import Any

import jsonschema_rs
import structlog

from toolscore.core.jsonrpc import encode
from toolscore.core.memo import Memo
from toolscore.core.models import Tool
from toolscore.tools.checking import Compiled, branches_of
from toolscore.tools.mending import mended_tool
from toolscore.tools.pointers import at_pointer
from toolscore.upstreams.headers import Mirrored, mirrored_arguments

__all__ = ["Schemas", "compile_schema", "is_usable", "problem_of"]

log = structlog.get_logger(__name__)

DRAFTS = ("http://json-schema.org/", "https://json-schema.org/")
"""Where the schemas of schemas stand, which are small and known."""
MAX_SCHEMA_SIZE = 50_000
MAX_SCHEMA_DEPTH = 200
MAX_NAME = 256
MAX_DEFINITION_DEPTH = 64
MAX_DEFINITION_BYTES = 256 * 1024
SPARE = 100
"""Definitions that are remembered beside those of tools that exist: those that just went, or come next."""

BYTES_PER_TOKEN = 3.5
"""Of definitions of tools: 3.68 on average over 1,600 of them with a tokenizer of the Llama family."""


class Schemas:
    """What is known of definitions, by their hashes."""

    def __init__(self) -> None:
        self._validators: Memo[tuple[str, str], Compiled | None] = Memo(SPARE)
        self._mirrored: Memo[str, Mirrored] = Memo(SPARE)
        self._tokens: Memo[str, int] = Memo(SPARE)
        self._mended: Memo[str, tuple[dict[str, Any], list[str]]] = Memo(SPARE)

    def expect(self, tools: int) -> None:
        """Remember the definitions of so many tools, and a few more."""
        self._validators.resize(4 * tools + SPARE)
        self._mirrored.resize(2 * tools + SPARE)
        self._tokens.resize(2 * tools + SPARE)
        self._mended.resize(2 * tools + SPARE)

    def validator(self, tool: Tool) -> Compiled | None:
        """The compiled schema of a tool's arguments, `None` where there is nothing to check."""
        return self._compiled(tool, "inputSchema")

    def output_validator(self, tool: Tool) -> Compiled | None:
        """The compiled schema of a tool's structured results, `None` where there is nothing to check."""
        return self._compiled(tool, "outputSchema")

    def _compiled(self, tool: Tool, member: str) -> Compiled | None:
        try:
            return self._validators[tool.definition_hash, member]
        except KeyError:
            validator = self._validators[tool.definition_hash, member] = compile_schema(tool.definition.get(member))
            return validator

    def mended(self, tool: Tool) -> tuple[dict[str, Any], list[str]]:
        """A tool's definition as every client takes it, and what was mended; see `mending.py`."""
        found = self._mended.get(tool.definition_hash)
        if found is None:
            found = self._mended[tool.definition_hash] = mended_tool(tool.definition)
            if found[1]:
                log.warning("a tool is shown mended, or strict clients would lose the whole list", tool=tool.tool_id,
                            mended=found[1])  # fmt: skip
        return found

    def tokens(self, tool: Tool) -> int:
        """About what a model reads to know this tool."""
        found = self._tokens.get(tool.definition_hash)
        if found is None:
            found = math.ceil(len(encode({**tool.definition, "name": tool.tool_id})) / BYTES_PER_TOKEN)
            self._tokens[tool.definition_hash] = found
        return found

    def mirrored(self, tool: Tool) -> Mirrored:
        """The arguments of a tool that clients of the stateless era repeat in HTTP headers."""
        found = self._mirrored.get(tool.definition_hash)
        if found is None:
            try:
                found = mirrored_arguments(tool.input_schema)
            except ValueError:
                found = {}
            self._mirrored[tool.definition_hash] = found
        return found


def compile_schema(schema: Any) -> Compiled | None:
    """A validator of a tool's schema, or `None` where the schema is none.

    References are never fetched, and patterns run in linear time.
    """
    if not isinstance(schema, dict):
        return None
    size = _expanded_size(schema)
    if size > MAX_SCHEMA_SIZE:
        log.warning("a tool's schema unfolds without end: its arguments go unchecked")
        return None
    try:
        validator = jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20)
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, RecursionError) as exc:
        log.warning("a tool's schema cannot be compiled: its arguments go unchecked", error=str(exc)[:200])
        return None
    return Compiled(validator, schema, size, branches_of(schema))


def _expanded_size(schema: dict[str, Any]) -> float:
    """How many parts a schema has once its local references are written out: what checking against it may cost."""
    sizes: dict[int, float] = {}
    named = _named_parts(schema)

    def size(part: Any, depth: int) -> float:
        if depth > MAX_SCHEMA_DEPTH:
            return float("inf")
        if isinstance(part, list):
            return 1 + sum(size(member, depth + 1) for member in part)
        if not isinstance(part, dict):
            return 1
        known = sizes.get(id(part))
        if known is None:
            sizes[id(part)] = 1  # a schema that contains itself ends with its instance
            known = 1 + sum(
                size(member, depth + 1) for key, member in part.items() if key not in ("$defs", "definitions")
            )
            for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
                reference = part.get(keyword)
                if isinstance(reference, str) and not reference.startswith(DRAFTS):
                    target = _target(schema, named, reference)
                    known += size(target, depth + 1) if target is not None else float("inf")
            sizes[id(part)] = known
        return known

    return size(schema, 0)


def _named_parts(schema: dict[str, Any]) -> dict[str, Any]:
    """The parts of a schema that have names of their own: `#anchor`, and those with an `$id`."""
    named: dict[str, Any] = {}
    pending: list[Any] = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(part.get(keyword), str):
                    named.setdefault(f"#{part[keyword]}", part)
            if isinstance(part.get("$id"), str):
                named.setdefault(part["$id"].removesuffix("#"), part)
            pending += part.values()
    return named


def _target(schema: dict[str, Any], named: dict[str, Any], reference: str) -> Any:
    """What a reference within a schema leads to; `None`: nothing that is seen."""
    if reference in named:
        return named[reference]
    base, _, fragment = reference.partition("#")
    part: Any = named.get(base) if base else schema
    return at_pointer(part, fragment) if fragment.startswith("/") or not fragment else None


def is_usable(server_id: str, definition: dict[str, Any]) -> bool:
    """Whether a definition can be kept, shown and judged; if not the tool is left out, and the log says why."""
    problem = problem_of(definition)
    if problem is not None:
        log.error("a tool's definition is not usable: it is left out", server=server_id,
                  tool=definition["name"][:100], reason=problem)  # fmt: skip
    return problem is None


def problem_of(definition: dict[str, Any]) -> str | None:
    """Why a definition cannot be kept, shown and judged; `None`: it can."""
    if len(definition["name"]) > MAX_NAME:
        return f"its name has more than {MAX_NAME} characters"
    if _depth(definition) > MAX_DEFINITION_DEPTH:
        return f"it is nested more than {MAX_DEFINITION_DEPTH} levels deep"
    if len(encode(definition)) > MAX_DEFINITION_BYTES:
        return f"it has more than {MAX_DEFINITION_BYTES // 1024} KB"
    return None


def _depth(value: Any) -> int:
    """How deeply lists and objects stand in one another; no deeper than is looked."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEFINITION_DEPTH:
        level = [
            member
            for one in level
            if isinstance(one, dict | list)
            for member in (one.values() if isinstance(one, dict) else one)
            if isinstance(member, dict | list)
        ]
        depth += 1
    return depth
