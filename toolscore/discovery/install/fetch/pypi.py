"""Python servers: locked with hashes and installed into an environment of their own, by uv."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from toolscore.discovery.install.failure import StepFailed
from toolscore.discovery.install.fetch.commands import run_command
from toolscore.discovery.install.fetch.fetcher import Fetched, program_spec
from toolscore.discovery.install.place import prepare
from toolscore.discovery.install.plan import Plan
from toolscore.discovery.install.policy import InstallRules, is_package_name
from toolscore.discovery.install.wish import Wish, package_of

__all__ = ["PypiFetcher", "server_command"]


class PypiFetcher:
    """A `Fetcher` of Python packages."""

    def __init__(self, rules: InstallRules) -> None:
        self._rules = rules

    async def fetch(self, wish: Wish, plan: Plan, place: Path, extra: Sequence[str] = ()) -> Fetched:
        """As `Fetcher`."""
        package = package_of(wish) or {}
        await prepare(place)
        wanted = f"{plan.identifier}=={plan.version}" if plan.version else plan.identifier
        await asyncio.to_thread((place / "requirements.in").write_text, "\n".join((wanted, *extra)) + "\n")
        for command in plan.commands:
            await run_command(command, place, self._rules.fetch_timeout_seconds)
        lock = await asyncio.to_thread((place / "requirements.lock").read_text)
        given = package.get("fileSha256")
        if isinstance(given, str) and f"sha256:{given}" not in lock:
            raise StepFailed(f"none of the files of {wanted} has the SHA-256 that the catalog gives ({given})")
        site = next((place / "env").glob("lib/python*/site-packages"))
        found = await asyncio.to_thread(_distribution, site, plan.identifier)
        if found is None:
            raise StepFailed(f"{plan.identifier} was fetched, but is not among what was installed")
        command = server_command(found, plan.identifier, place / "env" / "bin")
        return Fetched(program_spec(command, wish, plan, package, place, self._rules), found.version)


def _distribution(site: Path, identifier: str) -> Distribution | None:
    wanted = _normal(identifier)
    return next((one for one in distributions(path=[str(site)]) if _normal(one.metadata["Name"] or "") == wanted), None)


def _normal(name: str) -> str:
    """A package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def server_command(package: Distribution, identifier: str, folder: Path) -> list[str]:
    """Find the command of a Python package that is its server.

    Args:
        folder: where its console scripts are.

    Returns:
        Its only script, the script of its own name, or the one with `mcp` in its name; else `python -m`.

    Raises:
        StepFailed: it has none of these.
    """
    points = [point.name for point in package.entry_points if point.group == "console_scripts"]
    scripts = sorted(name for name in points if is_package_name("pypi", name))
    same = [name for name in scripts if name.replace("_", "-").lower() == identifier.replace("_", "-").lower()]
    chosen = same or (scripts if len(scripts) == 1 else [name for name in scripts if "mcp" in name.lower()])
    if chosen:
        return [str(folder / chosen[0])]
    module = identifier.replace("-", "_")
    if f"{module}/__main__.py" in {str(path) for path in package.files or []}:
        return [str(folder / "python"), "-m", module]
    listed = f": {', '.join(scripts)}" if scripts else ""
    raise StepFailed(f"{identifier} has no command to start it with{listed}")
