"""References in a server's entry, as MCP clients write them: resolved when the server is started.

`${env:NAME}`, `${NAME}`, `${NAME:-default}` and `${file:/path}` (its text, without the line end), and the editors'
`${workspaceFolder}` (where the gateway was started) and `${userHome}`, may stand in
`command`, `args`, `env`, `cwd`, `url` and `headers`. What they stand for is never kept, listed or logged.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import structlog
from dotenv import dotenv_values

from toolscore.core.models import UpstreamSpec
from toolscore.upstreams.process.spawn import CommandNotFound

__all__ = ["REFERENCE", "hidden", "resolved", "resolved_text", "secret_of"]

log = structlog.get_logger(__name__)

REFERENCE = re.compile(
    r"\$\{(?:file:([^}\0]+)|(input:[^}\0]*|command:[^}\0]*|config:[^}\0]*)|(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?)\}"
)
PLACES = {
    "workspaceFolder": Path.cwd, "workspaceRoot": Path.cwd, "cwd": Path.cwd, "userHome": Path.home,
    "workspaceFolderBasename": lambda: Path.cwd().name, "pathSeparator": lambda: os.sep,
}  # fmt: skip
"""What editors call the folders; here the gateway's own."""
MAX_SECRET_BYTES = 64 * 1024
MIN_HIDDEN = 4
"""A shorter value is no secret, and stands in many words."""


def resolved(spec: UpstreamSpec, environment: Mapping[str, str] = os.environ) -> UpstreamSpec:
    """The entry with values in the place of references, and of a `~` at the beginning.

    Raises:
        CommandNotFound: a variable is not set and has no default, a file cannot be read, or only an editor could ask
            its user for it.
    """

    def text(given: str) -> str:
        found = resolved_text(given, environment)
        return os.path.expanduser(found) if found == "~" or found.startswith("~/") else found

    env = {name: text(given) for name, given in spec.env.items()}
    changed = {
        "command": text(spec.command) if spec.command else None,
        "args": tuple(text(argument) for argument in spec.args),
        "env": {**_file_of_variables(text(spec.env_file)), **env} if spec.env_file else env,
        "cwd": text(spec.cwd) if spec.cwd else None,
        "url": text(spec.url) if spec.url else None,
        "headers": {name: text(given) for name, given in spec.headers.items()},
        "ca_file": text(spec.ca_file) if spec.ca_file else None,
        "client_cert": text(spec.client_cert) if spec.client_cert else None,
        "client_key": text(spec.client_key) if spec.client_key else None,
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
    if spec.env_file:
        with contextlib.suppress(CommandNotFound):
            for name, value in _file_of_variables(os.path.expanduser(resolved_text(spec.env_file))).items():
                if len(value) >= MIN_HIDDEN:
                    values[value] = f"${{{name}}}"
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, values[value])
    return text


def resolved_text(given: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text with values in the place of references.

    Raises:
        CommandNotFound: as `resolved`.
    """

    def value(match: re.Match[str]) -> str:
        path, editors, name, default = match.groups()
        if path is not None:
            return _text_of(path)
        if editors is not None:
            raise CommandNotFound(
                f"it refers to {match[0]}, which an editor asks its user for: put a variable in its place, such as "
                f"${{env:{re.sub('[^A-Z0-9]+', '_', editors.partition(':')[2].upper()) or 'NAME'}}}"
            )
        found = environment.get(name, default)
        if found is None and name in PLACES:
            return str(PLACES[name]())
        if found is None:
            raise CommandNotFound(
                f"it refers to {match[0]}, and no such environment variable is set: set it, and restart"
            )
        return found

    return REFERENCE.sub(value, given)


def secret_of(reference: str | None) -> str | None:
    """What a reference stands for; `None` with a line in the log where it stands for nothing."""
    try:
        return resolved_text(reference) if reference is not None else None
    except CommandNotFound as exc:
        log.error("a key is not to be had", error=str(exc))
        return None


def _file_of_variables(path: str) -> dict[str, str]:
    try:
        return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandNotFound(f"its `env_file` {path} cannot be read: {exc}") from exc


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_SECRET_BYTES).strip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandNotFound(f"it refers to ${{file:{path}}}, which cannot be read: {exc}") from exc
