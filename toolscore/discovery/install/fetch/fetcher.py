"""What all fetchers have in common: their interface, what they return, and how a program is started confined."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from toolscore.core.models import Confinement, UpstreamSpec
from toolscore.discovery.install.failure import StepFailed
from toolscore.discovery.install.folders import owner_of
from toolscore.discovery.install.plan import Plan
from toolscore.discovery.install.policy import InstallRules
from toolscore.discovery.install.wish import Wish, arguments_of, environment_of
from toolscore.upstreams.process.confine import user_of

__all__ = ["MAX_DESCRIPTION", "TAGS", "Fetched", "Fetcher", "program_spec"]

MAX_DESCRIPTION = 500
TAGS = ("installed",)


class Fetched(msgspec.Struct, frozen=True):
    """What a fetcher got.

    Attributes:
        spec: how to start (or reach) the server.
        version: that was fetched; of an image its digest.
        notes: for whoever asked for the install.
    """

    spec: UpstreamSpec
    version: str
    notes: tuple[str, ...] = ()


class Fetcher(Protocol):
    """Gets the files of a server. What fails may leave files in its folder; the caller removes that."""

    async def fetch(self, wish: Wish, plan: Plan, place: Path, extra: Sequence[str] = ()) -> Fetched:
        """Get a server as planned; what an earlier try left is removed first.

        Args:
            place: the server's folder.
            extra: further requirements, of Python packages only.

        Raises:
            StepFailed: it cannot be fetched, or is not what its catalog says it is.
        """
        ...


def program_spec(
    command: Sequence[str], wish: Wish, plan: Plan, package: Mapping[str, Any], place: Path, rules: InstallRules,
    interpreters: tuple[str, ...] = (),
) -> UpstreamSpec:  # fmt: skip
    """Say how to start a fetched program, confined if the rules say so.

    Args:
        command: the program and its first arguments; the server's own arguments are added.
        package: of the catalog's entry.
        interpreters: programs outside `place` that it must see.

    Raises:
        StepFailed: its command refers to this machine. InvalidArguments: no user but root can use its folders.
    """
    if any("${" in part for part in command):
        raise StepFailed(f"its command refers to this machine: {' '.join(command)!r:.200}")
    home = place / "home"
    args = (*command[1:], *arguments_of(package, wish, plan.folders, str(home)))
    confine = None
    if rules.confine:
        user = owner_of(plan.folders) or user_of(str(home))
        if user:
            os.chown(home, user, user)
        home.chmod(0o700)
        confine = Confinement(
            home=str(home), read=(str(place), *interpreters), folders=tuple(plan.folders), network=plan.network,
            memory_mb=rules.memory_mb, processes=rules.processes, user=user,
        )  # fmt: skip
    return UpstreamSpec(
        command=command[0], args=args, env=environment_of(package, wish.env, home),
        cwd=None if confine else str(home), confine=confine,
        description=wish.entry.description[:MAX_DESCRIPTION], tags=TAGS,
    )  # fmt: skip
