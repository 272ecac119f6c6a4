"""Which settings are in force, and where each stands: a file and its line, a variable, or nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolscore.app.files import FILES
from toolscore.app.settings import ENV_PREFIX, Settings, needs_restart
from toolscore.app.source import SettingsFile
from toolscore.core.models import shown_url

__all__ = ["in_force"]

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
SECRET, HIDDEN = frozenset({"key", "secret", "password", "token", "seal_keys"}), "(not shown)"
"""Settings, and members of settings, that are secrets where they are written out."""
SERVERS = "upstreams"
"""Servers have an address of their own."""


def in_force(
    settings: Settings, config_dir: Path | None, environment: Mapping[str, str] = os.environ
) -> list[dict[str, Any]]:
    """Each setting: `key`, `value`, `default`, `source` (`default`, `file`, `variable`), `where`, `needs_restart`,
    `description`. Passwords in addresses are left out.

    Args:
        config_dir: where the files are; they are read anew, for their lines.
    """
    files = [SettingsFile(config_dir / name) for name in FILES] if config_dir is not None else []
    found = []
    for path, value, default, description in _leaves(settings, Settings.model_construct(), ()):
        source, where = _source(path, files, environment)
        found.append(
            {
                "key": ".".join(path),
                "value": HIDDEN if path[-1] in SECRET and value else _shown(value),
                "default": _shown(default),
                "source": source,
                "where": where,
                "needs_restart": needs_restart(".".join(path)),
                "description": description,
            }
        )
    return found


def _leaves(
    now: BaseModel, default: BaseModel, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Any, str]]:
    for name, field in type(now).model_fields.items():
        value, usual = getattr(now, name), getattr(default, name)
        if not path and name == SERVERS:
            continue
        if isinstance(value, BaseModel) and isinstance(usual, BaseModel):
            yield from _leaves(value, usual, (*path, name))
        else:
            yield (*path, name), value, usual, field.description or ""


def _source(path: tuple[str, ...], files: list[SettingsFile], environment: Mapping[str, str]) -> tuple[str, str | None]:
    for length in range(len(path), 0, -1):
        variable = ENV_PREFIX + "__".join(path[:length]).upper()
        if variable in environment:
            return "variable", variable
    for file in files:
        data: Any = file.data
        for part in path:
            data = data[part] if isinstance(data, dict) and part in data else None
            if data is None:
                break
        else:
            return "file", f"{file.path}:{file.line(path) or '?'}"
    return "default", None


def _shown(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _shown(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): HIDDEN if key in SECRET and one else _shown(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_shown(one) for one in value]
    if isinstance(value, str):
        return shown_url(value) if ADDRESS.match(value) else value
    return value if value is None or isinstance(value, bool | int | float) else str(value)
