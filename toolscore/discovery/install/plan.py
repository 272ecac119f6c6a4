"""What an install would do: the commands that fetch a server, its command line, its variables, what it still needs.

Pure: it fetches and starts nothing, and needs no database, pool or gateway. It reads this machine's environment, to
find the container engine and to see that references can be resolved.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from toolscore.core.errors import InstallFailed, InvalidArguments, NotAllowedByPolicy
from toolscore.core.names import reference_for
from toolscore.discovery.install.folders import check_folders, owner_of
from toolscore.discovery.install.policy import (
    InstallRules,
    Kind,
    allowing_rule,
    check_home,
    check_identifier,
    check_runtime_arguments,
    check_server_id,
    check_url,
)
from toolscore.discovery.install.wish import (
    Wish,
    check_given,
    check_paths,
    command_line,
    environment_of,
    headers_of,
    identifier_of,
    image_of,
    name_of,
    package_of,
    remote_of,
    takes_folder,
    wants_network,
)

__all__ = ["Plan", "check_allowed", "container_engine", "plan_for"]


class Plan(msgspec.Struct, frozen=True):
    """What an install would do.

    Attributes:
        identifier: of the package, or the URL.
        version: exact; `None`: the newest.
        commands: exactly the commands that fetch it.
        run: the package and the arguments of its command line, as people read them.
        folders: that it may use beside its own, as of `Wish`.
        wants_network: whether it plainly needs one: it has an account or an address to give it, or says so.
        needs: variables that must still be given.
        needs_arguments: arguments of its command line that must still be given.
        asks: what the catalog says of what must still be given, by name.
        needs_folder: whether a folder must still be given: without one it has nothing to work on.
        note: what else whoever approves should know; `None`: nothing.
        obstacle: why it cannot run on this machine as it is; `None`: nothing is known to be in the way.
        sets: variables or headers that its catalog entry sets.
        allowed_by: number of the rule that allows it; `None`: no rule does.
    """

    server_id: str
    name: str
    kind: Kind
    identifier: str
    version: str | None
    commands: list[list[str]]
    run: str
    confined: bool
    network: bool
    folders: list[str]
    wants_network: bool
    needs: list[str]
    needs_arguments: list[str]
    asks: dict[str, str]
    needs_folder: bool
    note: str | None
    obstacle: str | None
    sets: dict[str, str]
    allowed_by: int | None

    @property
    def digest(self) -> str:
        """A hash of everything that somebody approves."""
        done = msgspec.structs.replace(self, allowed_by=None, note=None, obstacle=None, asks={})
        return hashlib.sha256(msgspec.json.encode(done)).hexdigest()[:16]


def plan_for(
    wish: Wish,
    rules: InstallRules,
    folder: Path,
    reserved: Collection[str] = (),
    *,
    ours: Sequence[Path] = (),
    engine_error: str | None = None,
) -> Plan:
    """Say what installing a server would do.

    Args:
        folder: where servers are installed, each in a folder named by its id; absolute.
        reserved: ids that no server may be installed under.
        ours: the gateway's own folders beside that around `folder`; no server is given one.
        engine_error: why containers cannot run here; `None`: they can.

    Raises:
        InvalidArguments: it cannot be installed as its catalog describes it, or without more being given.
        NotAllowedByPolicy: its catalog entry asks for what nobody may approve.
    """
    entry = wish.entry
    package = package_of(wish)
    remote = remote_of(entry) if package is None else None
    if package is not None:
        kind: Kind = package["registryType"]
        identifier, version = identifier_of(package), package.get("version")
        check_home(package)
        check_runtime_arguments(package)
    elif remote is not None:
        kind, identifier, version = "remote", str(remote["url"]), entry.version or None
        check_url(identifier, private=rules.private_addresses)
    else:
        kinds = sorted({str(one.get("registryType")) for one in entry.packages}) or ["none"]
        raise InvalidArguments(
            f"{entry.name} has no package that can be installed here (it has: {', '.join(kinds)})",
            suggestion="pypi, npm, oci and remotes over streamable HTTP can be",
        )
    check_identifier(kind, identifier, version)
    wanted = entry.needs(package, remote)
    check_given(wish, package, remote)
    if wish.folders and kind in ("remote", "oci"):
        where = "runs elsewhere" if kind == "remote" else "is an image"
        raise InvalidArguments(f"{entry.name} {where}: folders are for packages of pypi and npm")
    folders = check_folders(wish.folders, (folder.parent, *ours))
    server_id = wish.server_id or next(iter(entry.known_as), None) or _server_id(entry.name)
    check_server_id(server_id, reserved)
    rule = allowing_rule(rules, entry, kind, identifier, version, network=wish.network) if not folders else None
    place = folder / server_id
    arguments, lacking = command_line(package or {}, wish, folders, str(place / "home"))
    if kind in ("pypi", "npm") and rules.confine:
        check_paths(package or {}, wish, folders, place)
        owner_of(folders)
    exact = f"{identifier}{'==' if kind == 'pypi' else '@'}{version}" if version and kind != "remote" else identifier
    return Plan(
        server_id=server_id,
        name=entry.name,
        kind=kind,
        identifier=identifier,
        version=version,
        commands=_commands(kind, identifier, version, place, source_builds=rules.source_builds),
        run=" ".join((exact, *arguments)),
        confined=kind in ("pypi", "npm") and rules.confine,
        network=wish.network or (rule is not None and rules.allow[rule].network) or kind == "remote",
        folders=folders,
        wants_network=wants_network(entry, package),
        needs_arguments=[name_of(one) for one in lacking if not takes_folder(one)],
        asks={
            **{one["name"]: str(one["description"]) for one in wanted if one["description"]},
            **{name_of(one): str(one["description"]) for one in lacking if one.get("description")},
        },
        needs_folder=any(map(takes_folder, lacking)),
        note=f"the server elsewhere: {engine_error}" if kind == "remote" and engine_error else None,
        obstacle=engine_error if kind == "oci" else None,
        needs=[one["name"] for one in wanted if one["name"] not in wish.env],
        sets=environment_of(package, {}, place / "home") if package is not None else headers_of(remote or {}, {}),
        allowed_by=rule,
    )


def check_allowed(wish: Wish, plan: Plan) -> None:
    """Check that a plan may be carried out.

    Raises:
        NotAllowedByPolicy: no rule allows it, and it is not approved. InvalidArguments: it needs more.
        InstallFailed: something is in the way on this machine.
    """
    if plan.allowed_by is None and not wish.approved:
        raise NotAllowedByPolicy(
            f"no rule under `discovery.install` allows {plan.name} ({plan.kind} {plan.identifier}), and nobody "
            "has approved it",
            suggestion=f"whoever may can do so with: toolscore install {plan.name}",
            data={"plan": msgspec.to_builtins(plan)},
        )
    if plan.needs:
        raise InvalidArguments(
            f"{plan.name} needs {', '.join(plan.needs)} in `env`",
            suggestion=f'by reference: {{"{plan.needs[0]}": "{reference_for(plan.needs[0])}"}}',
        )
    if plan.needs_arguments:
        raise InvalidArguments(f"{plan.name} needs {', '.join(plan.needs_arguments)} in `arguments`")
    if plan.needs_folder:
        raise InvalidArguments(f"{plan.name} needs a folder to work on, in `folders`")
    if plan.obstacle is not None:
        raise InstallFailed(f"{plan.name} cannot run here: {plan.obstacle}")


def _server_id(name: str) -> str:
    """Make an id from a server's name in its catalog."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2]).strip("-._")[:64] or "server"


# Commands


def _commands(kind: Kind, identifier: str, version: str | None, place: Path, *, source_builds: bool) -> list[list[str]]:
    if kind == "pypi":
        return _pypi_commands(place, source_builds=source_builds)
    if kind == "npm":
        return _npm_commands(place)
    if kind == "oci":
        return [[container_engine() or "docker", "pull", image_of(identifier, version)]]
    return []


def _pypi_commands(place: Path, *, source_builds: bool) -> list[list[str]]:
    """Make an environment, lock the packages with their hashes, install what was locked."""
    python = str(place / "env" / "bin" / "python")
    wheels = [] if source_builds else ["--only-binary", ":all:"]
    lock = str(place / "requirements.lock")
    return [
        ["uv", "venv", "--quiet", "--no-project", "--python", os.path.realpath(sys.executable), str(place / "env")],
        ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--generate-hashes",
         *wheels, "--python", python, str(place / "requirements.in"), "--output-file", lock],
        ["uv", "pip", "sync", "--quiet", "--require-hashes", *wheels, "--python", python, lock],
    ]  # fmt: skip


def _npm_commands(place: Path) -> list[list[str]]:
    """Lock the packages with their hashes, install what was locked."""
    common = ["--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev", "--git=false", "--prefix", str(place)]
    return [["npm", "install", "--package-lock-only", *common], ["npm", "ci", *common]]


def container_engine() -> str | None:
    """Find docker or podman on PATH."""
    return next((found for name in ("docker", "podman") if (found := shutil.which(name)) is not None), None)
