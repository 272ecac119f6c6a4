"""Servers in container images: pulled by docker or podman, pinned to their digest, run with few rights."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from toolscore.core.models import UpstreamSpec
from toolscore.discovery.install.failure import StepFailed
from toolscore.discovery.install.fetch.commands import run_command
from toolscore.discovery.install.fetch.fetcher import MAX_DESCRIPTION, TAGS, Fetched
from toolscore.discovery.install.place import prepare
from toolscore.discovery.install.plan import Plan, container_engine
from toolscore.discovery.install.policy import InstallRules
from toolscore.discovery.install.wish import Wish, arguments_of, environment_of, image_of, package_of
from toolscore.upstreams.process.last_words import cause_of
from toolscore.upstreams.process.spawn import CommandNotFound

__all__ = ["ContainerEngine", "OciFetcher", "remove_image"]

ENGINE_SECONDS, REMEMBERED_SECONDS = 10.0, 60.0

TMP_IN_CONTAINER = "/tmp"  # noqa: S108


class OciFetcher:
    """A `Fetcher` of container images."""

    def __init__(self, rules: InstallRules) -> None:
        self._rules = rules

    async def fetch(self, wish: Wish, plan: Plan, place: Path, extra: Sequence[str] = ()) -> Fetched:
        """As `Fetcher`."""
        package = package_of(wish) or {}
        await prepare(place)
        engine = container_engine() or "docker"
        for command in plan.commands:
            await run_command(command, place, self._rules.fetch_timeout_seconds)
        reference = await self._pinned(engine, image_of(plan.identifier, plan.version), place)
        environment = environment_of(package, wish.env, Path(TMP_IN_CONTAINER))
        spec = UpstreamSpec(
            command=engine,
            args=(
                *self._options(plan, environment),
                reference,
                *arguments_of(package, wish, plan.folders, TMP_IN_CONTAINER),
            ),
            env=environment,
            description=wish.entry.description[:MAX_DESCRIPTION],
            tags=TAGS,
        )
        return Fetched(spec, reference.rpartition("@")[2])

    async def _pinned(self, engine: str, reference: str, place: Path) -> str:
        """The image's name with its digest."""
        if "@sha256:" in reference:
            return reference
        inspect = [engine, "image", "inspect", "--format", "{{index .RepoDigests 0}}", reference]
        said = await run_command(inspect, place, self._rules.fetch_timeout_seconds)
        if "@sha256:" not in said:
            raise StepFailed(f"{reference} has no digest to be pinned to")
        return said.strip()

    def _options(self, plan: Plan, environment: dict[str, str]) -> list[str]:
        """How the engine runs it; values of variables stay out of the command line."""
        options = ["run", "--interactive", "--rm", "--init", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
                   "--read-only", "--tmpfs", f"{TMP_IN_CONTAINER}:size=256m", "--memory", f"{self._rules.memory_mb}m",
                   "--pids-limit", str(self._rules.processes)]  # fmt: skip
        if not plan.network:
            options += ["--network", "none"]
        for name in environment:
            options += ["--env", name]
        return options


async def remove_image(identifier: str, digest: str, folder: Path, timeout_seconds: float) -> None:
    """Remove a pulled image, if there is an engine. Never raises: an image that is in use stays.

    Args:
        folder: where the command runs.
    """
    engine = container_engine()
    if engine is not None:
        with contextlib.suppress(StepFailed, CommandNotFound):
            image = f"{identifier.partition('@')[0]}@{digest}"
            await run_command([engine, "image", "rm", image], folder, timeout_seconds)


class ContainerEngine:
    """Whether containers can run on this machine; what was found is remembered for a minute."""

    def __init__(self) -> None:
        self._error: str | None = None
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def error(self) -> str | None:
        """Why containers cannot run; `None`: they can."""
        async with self._asking:
            if time.monotonic() > self._asked_at + REMEMBERED_SECONDS:
                self._error = await _engine_error()
                self._asked_at = time.monotonic()
        return self._error


async def _engine_error() -> str | None:
    engine = container_engine()
    if engine is None:
        return "images need a container engine, and neither docker nor podman is on PATH"
    try:
        await run_command([engine, "version"], Path("/"), ENGINE_SECONDS)
    except (StepFailed, CommandNotFound) as exc:
        said = cause_of(exc.output) if isinstance(exc, StepFailed) else None
        return f"images need a container engine, and {Path(engine).name} does not run: {said or exc}"
    return None
