"""What people read of the settings, made from the classes: `config/toolscore.yaml`, the tables of `docs/settings.md`.

`python -m toolscore.app.pages` writes both; a test compares them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from toolscore.app.settings import Settings
from toolscore.core.rules import Rules

__all__ = ["BEGIN", "ELSEWHERE", "END", "main", "settings_table", "settings_yaml"]

ELSEWHERE = ("use_inprocess_python_executor", "core_services", "mcp_servers", "upstreams")
"""What stands in the other two files."""

COLUMN = 37
"""Where the comments begin."""
INTRODUCTION = """\
# Everything else that can be set. What stands here commented out is the default.
# Each key can be overridden by a variable: TOOLSCORE_LIMITS__CALL_TIMEOUT_SECONDS=10
# Made from the classes in the code: `python -m toolscore.app.pages` writes it anew.
"""
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def settings_yaml() -> str:
    """The text of `config/toolscore.yaml`."""
    parts = [INTRODUCTION]
    for name, field in Settings.model_fields.items():
        if name not in ELSEWHERE:
            parts.append("\n".join(_section(name, field.default, 0)) + "\n")
    return "\n".join(parts)


def _section(name: str, rules: Rules, depth: int) -> Iterator[str]:
    about = _about(rules)
    yield _line(depth, f"{name}:", about + ("; needs a restart" if rules.needs_restart else ""))
    for key, field in type(rules).model_fields.items():
        value = getattr(rules, key)
        if isinstance(value, Rules):
            yield from _section(key, value, depth + 1)
        else:
            yield _line(depth + 1, f"{key}: {_shown(value)}", field.description or "")


def _about(rules: Rules) -> str:
    """The first line of a class's docstring, as a comment beside its name."""
    text = (type(rules).__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _line(depth: int, text: str, comment: str) -> str:
    text = f"# {'  ' * depth}{text}"
    return f"{text.ljust(COLUMN - 2)}  # {comment}" if comment else text


def _shown(value: Any) -> str:
    """A default as YAML on one line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(member) for member in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(member)}' for key, member in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def settings_table() -> str:
    """The tables of all settings, in Markdown."""
    parts = []
    for name, field in Settings.model_fields.items():
        if name == "upstreams":
            continue
        if not isinstance(field.default, BaseModel):
            parts.append(f"| `{name}` | `{_shown(field.default)}` | {field.description or ''} |")
            continue
        parts.append(f"\n### `{name}`\n\n{_sentence(field.default)}\n\n| key | default | |\n|---|---|---|")
        parts += _rows(f"{name}.", field.default)
    return "\n".join(["| key | default | |", "|---|---|---|", *parts]) + "\n"


def _sentence(rules: Any) -> str:
    about = (type(rules).__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")
    return about + (" A change needs a restart." if getattr(rules, "needs_restart", False) else "")


def _rows(prefix: str, rules: BaseModel) -> Iterator[str]:
    fields: dict[str, FieldInfo] = type(rules).model_fields
    for key, field in fields.items():
        value = getattr(rules, key)
        if isinstance(value, BaseModel):
            yield from _rows(f"{prefix}{key}.", value)
        else:
            about = (field.description or "").replace("|", "\\|")
            yield f"| `{prefix}{key}` | `{_shown(value)}` | {about} |"


def main() -> None:
    """Write both into the checkout that this is run in."""
    Path("config/toolscore.yaml").write_text(settings_yaml(), encoding="utf-8")
    page = Path("docs/settings.md")
    text = page.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text(f"{before}\n\n{settings_table()}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
