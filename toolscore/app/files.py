"""Reading the settings: from the files in `config/`, overridden by `TOOLSCORE_…` variables; strict, and watched.

Three files make one `Settings`: `ports_config.yaml`, `toolscore.yaml` and `mcp_servers.json`, which may be the file of
an MCP client, also one in YAML or TOML. A problem names the file, the line, and what was expected.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError

from toolscore.app.settings import ENV_PREFIX, Settings
from toolscore.app.source import SERVER_FILES, SettingsFile
from toolscore.core.models import UpstreamSpec
from toolscore.core.places import Stamp, stamp, user_config, user_state
from toolscore.core.redaction import redact_text

__all__ = ["FILES", "Loaded", "load_settings", "watch_files"]

log = structlog.get_logger(__name__)

FILES = ("ports_config.yaml", "toolscore.yaml", *SERVER_FILES)
PLAIN = re.compile(r"[A-Za-z_-]{0,20}")
"""A text that may be told where it is refused: it is as a name, and no secret."""
NOT_SETTINGS = frozenset({"TOOLSCORE_API_KEY", "TOOLSCORE_CONFIG_DIR", "TOOLSCORE_URL"})
"""Variables of the command line and the clients, which share the prefix."""

GUARDS = ("access", "policy", "rates", "pins")
"""Sections of settings that keep somebody from something."""
STORAGE = "storage"
"""The section that says where data lie."""
LOOK_SECONDS = 0.25
DEBOUNCE_SECONDS, MAX_BURST_SECONDS = 0.5, 5.0
"""Files that change count once they have rested for so long, or after so long all the same."""

Stamps = list[Stamp]
"""Of each file of settings what tells that it has changed."""


class Loaded:
    """What was read.

    Attributes:
        settings: valid settings; a refused key has its default.
        problems: a line each: where, what, and what was expected.
        broken_servers: server id → why its entry was refused.
        remarks: a line for each entry of which something has no effect here.
        stamps: how the files were just before.
        unguarded: those problems without which somebody would be kept out: with the default in their place, or without
            a rule, more is allowed than the operator says.
    """

    def __init__(
        self,
        settings: Settings,
        problems: list[str],
        broken_servers: dict[str, str],
        remarks: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        self.problems = problems
        self.broken_servers = broken_servers
        self.remarks = list(remarks)
        self.unguarded: list[str] = []
        self.misplaced: list[str] = []
        self.stamps: Stamps = []


def load_settings(config_dir: Path | None, environment: Mapping[str, str] = os.environ) -> Loaded:
    """Read the files that exist in `config_dir` (`None`: the embedded defaults) and the environment. Never raises."""
    stamps = _stamps(config_dir)
    files = [SettingsFile(config_dir / name) for name in FILES] if config_dir is not None else []
    problems = [file.problem for file in files if file.problem]
    remarks: list[str] = []
    data: dict[str, Any] = {}
    origin: dict[str, SettingsFile] = {}
    for file in files:
        if file.path.name in SERVER_FILES:
            file.keep_servers(problems)
            remarks += file.remarks()
        for key, value in file.data.items():
            if key == "mcpServers" and isinstance(value, dict):
                before = data.get(key, {})
                for server_id in value:
                    if server_id in before:
                        problems.append(f"{file.path}:{file.line((key, server_id))}: server {server_id!r} stands in "
                                        f"{origin[_of(key, server_id)].path} already")  # fmt: skip
                    else:
                        origin[_of(key, server_id)] = file
                data[key] = {**value, **before}
                origin.setdefault(key, file)
                continue
            if key in data:
                problems.append(f"{file.path}:{file.line((key,))}: {key!r} stands in {origin[key].path} already")
                continue
            data[key], origin[key] = value, file
    if config_dir is None or config_dir == user_config():
        _keep_state_with_user(data)
    unreadable = [file.problem for file in files if file.problem and file.path.name == "toolscore.yaml"]
    placed = [one for file in files for one in file.doubled] + _unknown_variables(environment)
    problems += [said for _, said in placed]
    broken: dict[str, str] = {}
    for _ in range(50):  # each round takes out what was refused; the rest is valid sooner or later
        try:
            loaded = Loaded(Settings(**data), problems, broken, remarks)
            loaded.stamps = stamps
            loaded.unguarded = unreadable + [said for path, said in placed if _guards(path)]
            loaded.misplaced = unreadable + [said for path, said in placed if _stores(path)]
            return loaded
        except ValidationError as exc:
            gone: set[tuple[str, ...]] = set()
            for error in exc.errors(include_url=False):
                path = tuple(str(part) for part in error["loc"])
                problem = _describe(error, path, origin, environment)
                if path[:1] == ("mcpServers",) and len(path) > 1:
                    broken.setdefault(path[1], problem)
                    path = path[:2]
                if problem not in problems:
                    problems.append(problem)
                    placed.append((path, problem))
                if not any(path[:length] in gone for length in range(1, len(path) + 1)):
                    gone.add(_remove(data, path))
        except Exception as exc:  # a variable that should hold JSON and does not
            problems.append(f"environment: {exc}")
            break
    with _without_variables():
        loaded = Loaded(Settings(), problems, broken, remarks)
        loaded.stamps = stamps
        loaded.unguarded = loaded.misplaced = problems
        return loaded


def _keep_state_with_user(data: dict[str, Any]) -> None:
    """Where no folder of settings says which project this is, data lie in the user's state folder.

    Those of an earlier start in the folder at hand are used on.
    """
    storage = data.setdefault("storage", {})
    if isinstance(storage, dict) and not (Path("data") / "toolscore.db").exists():
        storage.setdefault("data_dir", str(user_state()))


def _guards(path: tuple[str, ...]) -> bool:
    """Whether a mistake there may let somebody in, or let them do what they may not. So may one in such a name."""
    return bool(path) and (path[0] in GUARDS or bool(difflib.get_close_matches(path[0], GUARDS, n=1)))


def _stores(path: tuple[str, ...]) -> bool:
    """Whether a mistake there may have data lie elsewhere. So may one in a name like it, which is no other setting."""
    name = path[0] if path else ""
    return name == STORAGE or (name not in Settings.model_fields and bool(difflib.get_close_matches(name, [STORAGE])))


def _of(*path: str) -> str:
    """The key under which it is noted where a server's entry stands."""
    return "\0".join(path)


@contextlib.contextmanager
def _without_variables() -> Any:
    kept = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(ENV_PREFIX)}
    try:
        yield
    finally:
        os.environ.update(kept)


def _unknown_variables(environment: Mapping[str, str]) -> list[tuple[tuple[str, ...], str]]:
    """Variables that name no setting: the setting that each names, and what is to be said of it."""
    known = [name for name in Settings.model_fields if name != "upstreams"]
    problems: list[tuple[tuple[str, ...], str]] = []
    for variable in sorted(environment):
        if variable.startswith(ENV_PREFIX) and variable not in NOT_SETTINGS:
            name = variable.removeprefix(ENV_PREFIX).split("__")[0].lower()
            if name not in known:
                said = f"environment variable {variable}: there is no setting {name!r}{_nearest(name, known)}"
                problems.append(((name,), said))
    return problems


def _describe(
    error: Any, path: tuple[str, ...], origin: Mapping[str, SettingsFile], environment: Mapping[str, str]
) -> str:
    dotted = ".".join(path)
    variable = ENV_PREFIX + "__".join(path).upper()
    file = (origin.get(_of(*path[:2])) or origin.get(path[0])) if path else None
    if variable in environment:
        where = f"environment variable {variable}"
    elif file is not None:
        where = f"{file.path}:{file.line(path) or '?'}"
    else:
        where = "settings"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted!r}{_nearest(path[-1], _keys_beside(path))}"
    found = error.get("input")
    # Whoever hears that settings were refused hears this, too: no text that may have a secret in it.
    may_be_secret = isinstance(found, str) and (path[:1] == ("mcpServers",) or not PLAIN.fullmatch(found))
    shown = "" if isinstance(found, dict | list) or may_be_secret else f", found {found!r}"
    message = redact_text(error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list"))
    return f"{where}: {dotted}: {message[:1].lower()}{message[1:]}{shown}"


def _keys_beside(path: tuple[str, ...]) -> list[str]:
    """The keys that may stand where an unknown one was found."""
    if path[0] == "mcpServers":
        return list(UpstreamSpec.model_fields)
    model: type[BaseModel] = Settings
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": expected one of {', '.join(known)}" if known else ""


def _remove(data: dict[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """Take out the deepest part of a path that is there. Returns its path."""
    holder: Any = data
    for index, part in enumerate(path):
        below = holder.get(part) if isinstance(holder, dict) else None
        if index == len(path) - 1 or not isinstance(below, dict) or path[index + 1] not in below:
            if isinstance(holder, dict):
                holder.pop(part, None)
            return path[: index + 1]
        holder = below
    return path


@asynccontextmanager
async def watch_files(config_dir: Path, changed: Callable[[], Any], seen: Stamps) -> AsyncIterator[None]:
    """Call `changed` (a coroutine function, never twice at once) when a file of settings has changed.

    The files are looked at, four times a second: the kernel tells nothing of what lies on a network or is bound into a
    container, and of all else in the folder too much.

    Args:
        seen: how the files were when the settings in force were read (`Loaded.stamps`).
    """

    async def run() -> None:
        before = seen
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = await asyncio.to_thread(_stamps, config_dir)
            if now == before:
                continue
            began = time.monotonic()
            while now != before and time.monotonic() - began < MAX_BURST_SECONDS:
                before = now
                await asyncio.sleep(DEBOUNCE_SECONDS)
                now = await asyncio.to_thread(_stamps, config_dir)
            before = now
            try:
                await changed()
            except Exception:  # the watch outlives one failed reload
                log.exception("reloading the settings failed")

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _stamps(config_dir: Path | None) -> Stamps:
    return [stamp(config_dir / name) for name in FILES] if config_dir is not None else []
