"""Members put into files of other programs, and taken out, with everything else left as it stands. Pure.

JSON (with comments and trailing commas, as editors allow them), TOML and YAML. What comes out is read again and
compared before anybody gets it.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from toolscore.core.entries import plain_json

__all__ = ["EditError", "parsed", "with_member", "without_member"]

Path = tuple[str, ...]
BYTE_ORDER_MARK = "\ufeff"
_SPACE = re.compile(r"\s*")


class EditError(Exception):
    """The file cannot be changed by a program that keeps the rest of it."""


def parsed(text: str, kind: str) -> dict[str, Any]:
    """The data of a file; empty where it has none.

    Args:
        kind: `json`, `toml` or `yaml`.

    Raises:
        EditError: it is not of that kind.
    """
    text = text.removeprefix(BYTE_ORDER_MARK)
    try:
        if kind == "toml":
            return tomllib.loads(text)
        if kind == "yaml":
            data = yaml.safe_load(text)
        else:
            plain = plain_json(text)
            data = json.loads(plain) if plain.strip() else {}
            if data is None:
                raise EditError("it is no JSON of keys and values")
    except (ValueError, yaml.YAMLError, RecursionError) as exc:
        raise EditError(f"it is not {kind.upper()}: {exc}") from exc
    if data is not None and not isinstance(data, dict):
        raise EditError(f"it is no {kind.upper()} of keys and values")
    return data or {}


def with_member(text: str, kind: str, path: Path, value: dict[str, Any]) -> str:
    """The text with a member at a path of keys, in the place of one that is there.

    Raises:
        EditError: it cannot be done without touching the rest.
    """
    before = parsed(text, kind)
    if _at(before, path) is not None:
        text = without_member(text, kind, path)
    for length in range(1, len(path)):
        if not isinstance(_at(before, path[:length]), dict | None):
            raise EditError(f"what stands under {path[length - 1]!r} is no list of keys and values")
    add = {"json": _add_json, "toml": _add_toml, "yaml": _add_yaml}[kind]
    return _edited(text, kind, lambda plain: add(plain, path, value), _set(before, path, value))


def without_member(text: str, kind: str, path: Path) -> str:
    """The text without the member at a path of keys; as it is where there is none.

    Raises:
        EditError: it cannot be done without touching the rest.
    """
    before = parsed(text, kind)
    if _at(before, path) is None:
        return text
    drop = {"json": _drop_json, "toml": _drop_toml, "yaml": _drop_yaml}[kind]
    return _edited(text, kind, lambda plain: drop(plain, path), _set(before, path, None))


def _edited(text: str, kind: str, edit: Callable[[str], str], expected: dict[str, Any]) -> str:
    """The text after an edit of it without its byte order mark and line ends, which come back."""
    mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
    newline = "\r\n" if "\r\n" in text else "\n"
    text = mark + edit(text.removeprefix(mark).replace("\r\n", "\n")).replace("\n", newline)
    with contextlib.suppress(EditError):
        if _whole(parsed(text, kind)) == _whole(expected):
            return text
    raise EditError("it is written in a way that this program does not change")


def _whole(data: Any) -> Any:
    """The data, without what is empty: a table without keys may be left out in TOML, and stands as nothing in YAML."""
    if not isinstance(data, dict):
        return data
    return {key: found for key, value in data.items() if (found := _whole(value)) not in ({}, None)}


def _at(data: Any, path: Path) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _set(data: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    key, *rest = path
    below = data.get(key)
    if rest:
        value = _set(below if isinstance(below, dict) else {}, tuple(rest), value)
    found = {**data, key: value}
    if value is None:
        del found[key]
    return found


# JSON


def _add_json(text: str, path: Path, value: dict[str, Any]) -> str:
    plain = plain_json(text)
    if not plain.strip():
        return text + json.dumps(_set({}, path, value), indent=2, ensure_ascii=False) + "\n"
    at, depth = _SPACE.match(plain).end(), 0  # type: ignore[union-attr]
    while depth < len(path) - 1:  # the deepest object of the path that is there
        found = next((value_at for key, _, value_at, _ in _members(plain, at) if key == path[depth]), None)
        if found is None or plain[found] != "{":
            break
        at, depth = found, depth + 1
    key, rest = path[depth], path[depth + 1 :]
    member = _set({}, rest, value) if rest else value
    members = list(_members(plain, at))
    unit = _unit(plain, text)
    indent = _indent(text, members[0][1]) if members else _indent(text, at) + unit
    shown = json.dumps(member, indent=unit, ensure_ascii=False).replace("\n", "\n" + indent)
    line = f"{indent}{json.dumps(key, ensure_ascii=False)}: {shown}"
    if not members:
        end = plain.index("}", at)
        inside = text[at + 1 : end].rstrip()
        return f"{text[: at + 1]}{inside}\n{line}\n{_indent(text, at)}{text[end:]}"
    last = members[-1][3]
    comma = "" if text[last : _SPACE.match(text, last).end() + 1].strip() == "," else ","  # type: ignore[union-attr]
    close = _SPACE.match(plain, last).end()  # type: ignore[union-attr]
    stop = text.find("\n", last)
    if stop < 0 or stop > close:  # all on one line
        return f"{text[:last]}{comma}\n{line}\n{_indent(text, at)}{text[close:]}"
    return f"{text[:last]}{comma}{text[last:stop]}\n{line}{text[stop:]}"


def _drop_json(text: str, path: Path) -> str:
    plain = plain_json(text)
    at = _SPACE.match(plain).end()  # type: ignore[union-attr]
    for key in path[:-1]:
        at = next(value_at for name, _, value_at, _ in _members(plain, at) if name == key)
    members = list(_members(plain, at))
    place = next(index for index, member in enumerate(members) if member[0] == path[-1])
    _, start, _, end = members[place]
    if text[end : _SPACE.match(text, end).end() + 1].strip() == ",":  # type: ignore[union-attr]
        end = text.index(",", end) + 1
    elif place > 0:  # the last one: the comma before it has nothing behind it
        before = members[place - 1][3]
        comma = plain.index(",", before)
        text, start, end = text[:comma] + text[comma + 1 :], start - 1, end - 1
    line = text.rfind("\n", 0, start) + 1
    if not text[line:start].strip():
        stop = text.find("\n", end)
        if stop >= 0 and not text[end:stop].strip():
            start, end = line, stop + 1
    return text[:start] + text[end:]


def _members(plain: str, at: int) -> Iterator[tuple[str, int, int, int]]:
    """The members of the object at a place: key, and where the key, the value and what is behind it begin."""
    decoder = json.JSONDecoder()
    at = _SPACE.match(plain, at + 1).end()  # type: ignore[union-attr]
    while plain[at] != "}":
        start = at
        key, at = decoder.raw_decode(plain, at)
        at = _SPACE.match(plain, plain.index(":", at) + 1).end()  # type: ignore[union-attr]
        value_at = at
        _, at = decoder.raw_decode(plain, at)
        yield key, start, value_at, at
        at = _SPACE.match(plain, at).end()  # type: ignore[union-attr]
        if plain[at] == ",":
            at = _SPACE.match(plain, at + 1).end()  # type: ignore[union-attr]


def _indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip())]


def _unit(plain: str, text: str) -> str:
    found = re.search(r"\n([ \t]+)\S", plain)
    return found[1] if found else "  "


# TOML


def _add_toml(text: str, path: Path, value: dict[str, Any]) -> str:
    lines = [f"[{'.'.join(map(_toml_key, path))}]"]
    lines += [f"{_toml_key(key)} = {_toml(member)}" for key, member in value.items()]
    gap = "" if not text.strip() else "\n" if text.endswith("\n") else "\n\n"
    return text + gap + "\n".join(lines) + "\n"


def _drop_toml(text: str, path: Path) -> str:
    header = re.compile(r"^\s*\[\[?\s*(.+?)\s*\]\]?\s*(#.*)?$")
    kept: list[str] = []
    between: list[str] = []  # comments behind what is dropped: they belong to what comes next
    dropping = False
    for line in text.splitlines(keepends=True):
        found = header.match(line.rstrip("\n"))
        if found:
            parts = tuple(part.strip().strip("\"'") for part in found[1].split("."))
            before, dropping = dropping, parts[: len(path)] == path
            if before and not dropping:
                kept += between
            elif dropping and kept and not kept[-1].strip():
                kept.pop()
            between = []
        elif dropping:
            between = [*between, line] if not line.strip() or line.lstrip().startswith("#") else []
        if not dropping:
            kept.append(line)
    return "".join(kept + between)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(key)} = {_toml(member)}" for key, member in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


# YAML


def _add_yaml(text: str, path: Path, value: dict[str, Any]) -> str:
    above = path[:-1]
    lines = text.splitlines(keepends=True)
    node, line, column = yaml.compose(text), len(lines), 0
    for depth, name in enumerate(above):
        found = _yaml_member(node, name)
        if found is None:
            above = above[depth:]
            break
        at, node = found
        line, column = at.start_mark.line + 1, at.start_mark.column + 2
        if isinstance(node, yaml.MappingNode) and not node.value:  # {}
            start, end = node.start_mark.column, node.end_mark.column
            lines[line - 1] = lines[line - 1][:start].rstrip() + lines[line - 1][end:]
        elif isinstance(node, yaml.MappingNode) and not node.flow_style:
            column = node.value[0][0].start_mark.column
    else:
        above = ()
    shown = yaml.safe_dump(_set({}, (*above, path[-1]), value), sort_keys=False, allow_unicode=True, width=1000)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    lines[line:line] = [" " * column + each + "\n" for each in shown.splitlines()]
    return "".join(lines)


def _drop_yaml(text: str, path: Path) -> str:
    node, at = yaml.compose(text), None
    for name in path:
        found = _yaml_member(node, name)
        if found is None:
            return text
        at, node = found
    assert at is not None
    lines = text.splitlines(keepends=True)
    end = at.start_mark.line + 1
    while end < len(lines) and (lines[end][: at.start_mark.column + 1].isspace() and lines[end].strip()):
        end += 1
    return "".join(lines[: at.start_mark.line] + lines[end:])


def _yaml_member(node: Any, name: str) -> tuple[Any, Any] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((key, value) for key, value in node.value if key.value == name), None)
