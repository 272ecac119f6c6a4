"""Where a user's own files of ToolScore lie (XDG base directories), and whether a file has changed."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Stamp", "stamp", "user_config", "user_state"]

Stamp = tuple[int, ...] | None
"""Equal for a file that has not changed; `None`: there is none."""


def stamp(path: Path | str) -> Stamp:
    """What tells that a file has changed, also where its time or its length is kept."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_ctime_ns, about.st_mtime_ns, about.st_size


def user_config() -> Path:
    """The folder of the user's settings files; it need not exist."""
    return _folder("XDG_CONFIG_HOME", ".config")


def user_state() -> Path:
    """The data folder of a gateway that has no settings folder of its own; it need not exist."""
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, otherwise: str) -> Path:
    given = Path(os.environ.get(variable, ""))  # a relative one is to be ignored, says the standard
    try:
        base = given if given.is_absolute() else Path.home() / otherwise
    except RuntimeError:  # a user without a home
        base = Path.cwd() / ".toolscore"
    return base / "toolscore"
