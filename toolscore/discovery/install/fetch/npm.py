"""Node servers: locked with hashes and installed by npm, without running any script of a package."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolscore.discovery.install.failure import StepFailed
from toolscore.discovery.install.fetch.commands import run_command
from toolscore.discovery.install.fetch.fetcher import Fetched, program_spec
from toolscore.discovery.install.place import prepare
from toolscore.discovery.install.plan import Plan
from toolscore.discovery.install.policy import InstallRules
from toolscore.discovery.install.wish import Wish, package_of
from toolscore.upstreams.process.spawn import child_environment

__all__ = ["NpmFetcher", "server_script"]

SCRIPT = re.compile(r"(?:\./)?[A-Za-z0-9_@][A-Za-z0-9._@/-]*")


class NpmFetcher:
    """A `Fetcher` of npm packages."""

    def __init__(self, rules: InstallRules) -> None:
        self._rules = rules

    async def fetch(self, wish: Wish, plan: Plan, place: Path, extra: Sequence[str] = ()) -> Fetched:
        """As `Fetcher`."""
        package = package_of(wish) or {}
        await prepare(place)
        wanted = {"private": True, "dependencies": {plan.identifier: plan.version or "latest"}}
        await asyncio.to_thread((place / "package.json").write_text, json.dumps(wanted))
        lock_command, install_command = plan.commands
        await self._run(lock_command, place)
        lock = json.loads(await asyncio.to_thread((place / "package-lock.json").read_text))
        for name, locked in lock.get("packages", {}).items():
            if name and not locked.get("link") and "integrity" not in locked and not locked.get("inBundle"):
                raise StepFailed(f"{name} comes without a hash (from {locked.get('resolved')})")
        if isinstance(package.get("fileSha256"), str):
            await self._check_file(plan, str(package["fileSha256"]), place)
        await self._run(install_command, place)
        root = place / "node_modules" / plan.identifier
        about = json.loads(await asyncio.to_thread((root / "package.json").read_text))
        found = shutil.which("node", path=child_environment("npm", {})["PATH"])
        if found is None:
            raise StepFailed("`node` was not found on PATH: install Node.js")
        node = os.path.realpath(found)
        command = [node, str(root / server_script(about, plan.identifier))]
        spec = program_spec(command, wish, plan, package, place, self._rules, interpreters=(node,))
        return Fetched(spec, str(about["version"]))

    async def _check_file(self, plan: Plan, given: str, place: Path) -> None:
        """Check the hash of the package's file against the catalog's."""
        exact = f"{plan.identifier}@{plan.version}" if plan.version else plan.identifier
        await self._run(["npm", "pack", exact, "--ignore-scripts", "--silent", "--pack-destination", str(place)], place)
        packed = next(place.glob("*.tgz"))
        found = hashlib.sha256(await asyncio.to_thread(packed.read_bytes)).hexdigest()
        packed.unlink()
        if found != given:
            raise StepFailed(f"{exact} has the SHA-256 {found}; the catalog gives {given}")

    async def _run(self, command: Sequence[str], place: Path) -> None:
        await run_command(command, place, self._rules.fetch_timeout_seconds)


def server_script(about: Mapping[str, Any], identifier: str) -> str:
    """Find the script of an npm package that is its server.

    Args:
        about: its `package.json`.

    Returns:
        The path that `bin` gives, below the package's folder.

    Raises:
        StepFailed: `bin` gives none, or a path elsewhere.
    """
    scripts = about.get("bin")
    base = identifier.rpartition("/")[2]
    if isinstance(scripts, dict) and scripts:
        scripts = scripts.get(base) or next(iter(scripts.values()))
    if not isinstance(scripts, str):
        raise StepFailed(f"{identifier} has no command to start it with")
    if not SCRIPT.fullmatch(scripts) or ".." in scripts.split("/"):
        raise StepFailed(f"{identifier} names {scripts!r:.80} as its command, which is no file of its own")
    return scripts
