"""Labelled sets, in every form that they come in: `tools.jsonl`, and tasks in `queries.jsonl` or `gap….jsonl`.

A tool is named by its id, or by its name alone. A row that cannot be used is left out and counted with the reason, so
that no figure is over less than it says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["LeftOut", "gap_questions", "print_left_out", "queries_of", "tools_of"]

LeftOut = Counter[str]
"""How many rows were left out, by reason."""

UNREADABLE, NO_TEXT, UNKNOWN = "are no JSON object", "have no text", "name a tool that the set has not"
NOTHING = "have nothing relevant"


def tools_of(folder: Path, left_out: LeftOut) -> list[dict[str, Any]]:
    """The tools of a set; a name alone is a tool without a description."""
    found = []
    for row in _rows(folder / "tools.jsonl", left_out):
        tool = {"name": row} if isinstance(row, str) else row
        if not isinstance(tool, dict) or not (tool.get("name") or tool.get("id")):
            left_out[UNREADABLE] += 1
            continue
        name = str(tool.get("name") or tool["id"])
        found.append({**tool, "name": name, "id": str(tool.get("id") or name)})
    return found


def queries_of(path: Path, tools: Iterable[dict[str, Any]], left_out: LeftOut) -> list[dict[str, Any]]:
    """The tasks of a `queries.jsonl`: `query`, `relevant` and `exclude` (ids of tools), `kind` and whatever else."""
    ids = _ids(tools)
    found = []
    for row in _objects(path, left_out):
        relevant, excluded = _named(row.get("relevant"), ids), _named(row.get("exclude"), ids)
        right = [one for one in relevant or () if one not in (excluded or ())]
        if relevant is None or excluded is None:
            left_out[UNKNOWN] += 1
        elif not right:
            left_out[NOTHING] += 1
        else:
            found.append({**row, "relevant": right, "exclude": excluded})
    return found


def gap_questions(path: Path, tools: Iterable[dict[str, Any]], left_out: LeftOut) -> list[dict[str, Any]]:
    """The tasks of a `gap….jsonl`: `query`, `has_tool`, and `tools`, the ids of those on offer."""
    ids = _ids(tools)
    registry = _registry_of(path, ids, left_out)
    found = []
    for row in _objects(path, left_out):
        offered = _named(row.get("tools"), ids) if registry is None else registry
        excluded = _named(row.get("exclude"), ids)
        if offered is None or excluded is None:
            left_out[UNKNOWN] += 1
        elif not isinstance(row.get("has_tool"), bool) or set(offered) <= set(excluded):
            left_out[NOTHING] += 1
        else:
            found.append({**row, "tools": [one for one in offered if one not in excluded]})
    return found


def _registry_of(path: Path, ids: dict[str, list[str]], left_out: LeftOut) -> list[str] | None:
    """The tools that are on offer for all tasks of a file; `None`: each task says for itself."""
    registry = path.with_name(f"{path.stem}_registry.jsonl")
    if not registry.is_file():
        return None
    found: list[str] = []
    for row in _rows(registry, left_out):
        named = _named(row if isinstance(row, list) else [row], ids)
        if named is None:
            left_out[UNKNOWN] += 1
        found += named or []
    return list(dict.fromkeys(found))


def print_left_out(left_out: Mapping[str, LeftOut]) -> None:
    """Say what was left out of each set, a line for each reason."""
    for name, reasons in left_out.items():
        for reason, count in sorted(reasons.items()):
            print(f"left out of {name}: {count:,} rows {reason}")


def _rows(path: Path, left_out: LeftOut) -> Iterable[Any]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                left_out[UNREADABLE] += 1


def _objects(path: Path, left_out: LeftOut) -> Iterable[dict[str, Any]]:
    for row in _rows(path, left_out):
        if not isinstance(row, dict):
            left_out[UNREADABLE] += 1
        elif not isinstance(row.get("query"), str) or not row["query"].strip():
            left_out[NO_TEXT] += 1
        else:
            yield row


def _ids(tools: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """The ids that an id or a name stands for."""
    found: dict[str, list[str]] = {}
    for tool in tools:
        found.setdefault(tool["name"], []).append(tool["id"])
    return {**found, **{tool["id"]: [tool["id"]] for tool in tools}}


def _named(listed: Any, ids: dict[str, list[str]]) -> list[str] | None:
    """The ids of tools in a list of ids, names, or objects with one of them; `None`: one of them is not known."""
    found: list[str] = []
    for one in listed if isinstance(listed, list) else []:
        name = one.get("id") or one.get("name") if isinstance(one, dict) else one
        if not isinstance(name, str) or name not in ids:
            return None
        found += ids[name]
    return list(dict.fromkeys(found))
