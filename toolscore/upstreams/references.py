"""References in a server's entry, as MCP clients write them: resolved when the server is started.

`${env:NAME}`, `${NAME}`, `${NAME:-default}` and `${file:/path}` (its text, without the line end) may stand in
`command`, `args`, `env`, `cwd`, `url` and `headers`. What they stand for is never kept, listed or logged.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from urllib.parse import quote

from toolscore.core.models import UpstreamSpec
from toolscore.upstreams.process.spawn import CommandNotFound

__all__ = ["REFERENCE", "hidden", "resolved", "resolved_text"]

REFERENCE = re.compile(r"\$\{(?:file:([^}\0]+)|(env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?)\}")
MAX_SECRET_BYTES = 64 * 1024
MIN_HIDDEN = 4
"""A shorter value is no secret, and stands in many words."""


def resolved(spec: UpstreamSpec, environment: Mapping[str, str] = os.environ) -> UpstreamSpec:
    """The entry with values in the place of references; `${NAME}` stays as it is where there is no such variable.

    Raises:
        CommandNotFound: `${env:NAME}` is not set and has no default, or `${file:/path}` cannot be read.
    """

    def text(given: str) -> str:
        return resolved_text(given, environment)

    changed = {
        "command": text(spec.command) if spec.command else None,
        "args": tuple(text(argument) for argument in spec.args),
        "env": {name: text(given) for name, given in spec.env.items()},
        "cwd": text(spec.cwd) if spec.cwd else None,
        "url": text(spec.url) if spec.url else None,
        "headers": {name: text(given) for name, given in spec.headers.items()},
    }
    return spec.model_copy(update=changed)


def hidden(text: str, spec: UpstreamSpec, environment: Mapping[str, str] = os.environ) -> str:
    """A text with references again where their values stand: errors repeat what a server was started with.

    Args:
        spec: the entry, with its references.
    """
    fields = (spec.command, *spec.args, *spec.env.values(), spec.cwd, spec.url, *spec.headers.values())
    values: dict[str, str] = {}
    for given in fields:
        for match in REFERENCE.finditer(given or ""):
            with contextlib.suppress(CommandNotFound):
                value = resolved_text(match[0], environment)
                if len(value) >= MIN_HIDDEN and value != match[0]:
                    values[value] = match[0]
                    values[quote(value, safe="")] = match[0]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, values[value])
    return text


def resolved_text(given: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text with values in the place of references.

    Raises:
        CommandNotFound: as `resolved`.
    """

    def value(match: re.Match[str]) -> str:
        path, form, name, default = match.groups()
        if path is not None:
            return _text_of(path)
        found = environment.get(name, default)
        if found is None and not form:
            return match[0]  # not ours: a shell's own variable, for one
        if found is None:
            raise CommandNotFound(
                f"it refers to ${{{name}}}, and no such environment variable is set: set it, and restart"
            )
        return found

    return REFERENCE.sub(value, given)


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_SECRET_BYTES).strip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandNotFound(f"it refers to ${{file:{path}}}, which cannot be read: {exc}") from exc
