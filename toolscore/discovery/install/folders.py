"""The folders of this machine that a server is given: which may be, and whom they make it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from toolscore.core.errors import InvalidArguments, NotAllowedByPolicy
from toolscore.upstreams.process.confine import CONFIGURATION, SYSTEM, folder_of

__all__ = ["OWN_TEMPORARY", "check_folders", "holds", "owner_of", "visible"]

STEERING = (*SYSTEM, "/etc", "/proc", "/sys", "/dev", "/run", "/boot", "/var/run", "/var/spool")
"""What lies there steers the machine. A confined server sees what it needs of the system as it is."""
CODE = (str(Path(__file__).parents[2]), sys.prefix, sys.base_prefix)
"""Whoever changes what lies there is the gateway."""
OWN_TEMPORARY = "/tmp"  # noqa: S108
UNSAFE = re.compile(r"[,:${}\x00-\x1f\x7f]")
"""What means something else where paths are written: in options, references and the catalog's values."""


def check_folders(given: Sequence[str], ours: Sequence[Path]) -> list[str]:
    """Check the folders that a server is to have.

    Args:
        given: absolute paths on this machine, `:ro` behind those that may only be read.
        ours: the gateway's own folders: its data and its settings.

    Returns:
        Each once, without links in its path, `:ro` behind it where it may only be read.

    Raises:
        InvalidArguments: one is no folder, or lies in another. NotAllowedByPolicy: one has what no server may see.
    """
    found = dict(_checked(one, ours) for one in given)
    for path in found:
        for other in found:
            if path != other and holds(other, path):
                raise InvalidArguments(f"{path} lies in {other}: give the outer one alone")
    return [path if writes else f"{path}:ro" for path, writes in found.items()]


def _checked(given: str, ours: Sequence[Path]) -> tuple[str, bool]:
    path, writes = folder_of(given)
    if UNSAFE.search(path):
        raise InvalidArguments(f"{path!r:.200} has one of , : $ {{ }} in it, which no folder of a server may have")
    if not os.path.isabs(path):
        raise InvalidArguments(f"{given!r:.200} is no absolute path")
    if not os.path.isdir(path):
        raise InvalidArguments(f"{path:.200} is no folder on the gateway's machine")
    real = os.path.realpath(path)
    if UNSAFE.search(real):
        raise InvalidArguments(f"{path:.200} is {real!r:.200}, which has one of , : $ {{ }} in it")
    for kept in (*STEERING, *CODE, *map(str, ours)):
        own = os.path.realpath(kept)
        if holds(real, own) or holds(own, real):
            raise NotAllowedByPolicy(
                f"no server may be given {real}: {own} is the gateway's or the machine's own",
                suggestion="give a folder that holds its work alone",
            )
    return real, writes


def holds(folder: str, path: str) -> bool:
    """Whether a path is a folder or lies in it; both absolute."""
    return os.path.commonpath((folder, path)) == folder


def visible(path: str, folders: Sequence[str], place: Path) -> bool:
    """Whether a confined server can see a path.

    Args:
        folders: that it is given. place: its own.
    """
    real = os.path.realpath(path)
    seen = (*(folder_of(one)[0] for one in folders), *SYSTEM, *CONFIGURATION, OWN_TEMPORARY, str(place))
    return any(holds(os.path.realpath(one), real) for one in seen)


def owner_of(folders: Sequence[str]) -> int:
    """The user that a server must be to use its folders where the gateway is root; 0: whoever it is, it can.

    Raises:
        InvalidArguments: no user but root can use all of them.
    """
    if os.geteuid() != 0:
        return 0
    owners = set()
    for path, writes in map(folder_of, folders):
        found = os.stat(path)
        wanted = 0o007 if writes else 0o005
        if found.st_mode & wanted != wanted:
            owners.add(found.st_uid)
            if found.st_uid == 0:
                raise InvalidArguments(
                    f"{path} belongs to root, and a server never runs as root",
                    suggestion=f"give it to another user (chown -R 1000 {path}), or let others "
                    f"{'write' if writes else 'read'} it",
                )
    if len(owners) > 1:
        users = ", ".join(map(str, sorted(owners)))
        raise InvalidArguments(f"its folders belong to several users ({users}), and a server is one")
    return owners.pop() if owners else 0
