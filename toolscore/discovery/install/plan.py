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
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from toolscore.core.errors import InvalidArguments, NotAllowedByPolicy
from toolscore.discovery.catalog.server_json import Entry
from toolscore.discovery.install.policy import (
    InstallRules,
    Kind,
    allowing_rule,
    check_identifier,
    check_runtime_arguments,
    check_server_id,
    check_set_variable,
    check_url,
    check_variable,
    literal,
)
from toolscore.upstreams.process.spawn import CommandNotFound
from toolscore.upstreams.references import resolved_text

__all__ = [
    "Plan",
    "Wish",
    "arguments_of",
    "check_allowed",
    "container_engine",
    "environment_of",
    "headers_of",
    "image_of",
    "package_of",
    "plan_for",
    "remote_of",
]

PACKAGE_KINDS: tuple[Kind, ...] = ("pypi", "npm", "oci")
"""The preferred kind first."""


class Wish(msgspec.Struct, frozen=True):
    """What somebody wants installed.

    Attributes:
        entry: from a catalog.
        server_id: the id that it will have; `None`: made from its name.
        registry: install this kind of package; `None`: the preferred one that it has.
        env: its variables; secrets by reference, `${env:NAME}` or `${file:/path}`.
        arguments: of its command line, by their names in the catalog.
        network: whether it may use the network.
        approved: by somebody with the scope `admin`, who saw the plan.
    """

    entry: Entry
    server_id: str | None = None
    registry: Kind | None = None
    env: dict[str, str] = {}
    arguments: dict[str, str] = {}
    network: bool = False
    approved: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What an install would do.

    Attributes:
        identifier: of the package, or the URL.
        version: exact; `None`: the newest.
        commands: exactly the commands that fetch it.
        run: the package and the arguments of its command line, as people read them.
        needs: variables that must still be given.
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
    needs: list[str]
    sets: dict[str, str]
    allowed_by: int | None

    @property
    def digest(self) -> str:
        """A hash of everything that somebody approves."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, allowed_by=None))).hexdigest()[:16]


def plan_for(wish: Wish, rules: InstallRules, folder: Path, reserved: Collection[str] = ()) -> Plan:
    """Say what installing a server would do.

    Args:
        folder: where servers are installed, each in a folder named by its id; absolute.
        reserved: ids that no server may be installed under.

    Raises:
        InvalidArguments: it cannot be installed as its catalog describes it, or without more being given.
        NotAllowedByPolicy: its catalog entry asks for what nobody may approve.
    """
    entry = wish.entry
    package = package_of(wish)
    remote = remote_of(entry) if package is None else None
    if package is not None:
        kind: Kind = package["registryType"]
        identifier, version = str(package["identifier"]), package.get("version")
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
    wanted = entry.needs(package)
    _check_given(wish, {one["name"] for one in wanted if one["secret"]})
    arguments = arguments_of(package or {}, wish.arguments)
    server_id = wish.server_id or _server_id(entry.name)
    check_server_id(server_id, reserved)
    rule = allowing_rule(rules, entry, kind, identifier, version, network=wish.network)
    place = folder / server_id
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
        needs=[one["name"] for one in wanted if one["name"] not in wish.env],
        sets=environment_of(package, {}, place / "home") if package is not None else headers_of(remote or {}, {}),
        allowed_by=rule,
    )


def check_allowed(wish: Wish, plan: Plan) -> None:
    """Check that a plan may be carried out.

    Raises:
        NotAllowedByPolicy: no rule allows it, and it is not approved. InvalidArguments: it needs variables.
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
            suggestion=f'by reference: {{"{plan.needs[0]}": "${{env:{plan.needs[0]}}}"}}',
        )


def _check_given(wish: Wish, secrets: Collection[str]) -> None:
    """Check what is given with a wish: names, secrets by reference, references that can be resolved."""
    for name, value in wish.env.items():
        check_variable(name, value, secrets)
    for value in (*wish.env.values(), *wish.arguments.values()):
        try:
            resolved_text(value)
        except CommandNotFound as exc:
            raise InvalidArguments(f"{value}: {exc}") from exc


# What a catalog entry has


def package_of(wish: Wish) -> dict[str, Any] | None:
    """Choose the package to install: of the kind that was asked for, else of the preferred kind.

    Returns:
        A member of `packages` in server.json; `None`: there is none, or a remote server was asked for.
    """
    if wish.registry == "remote":
        return None
    found = [
        one
        for one in wish.entry.packages
        if one.get("registryType") in PACKAGE_KINDS
        and one.get("identifier")
        and (one.get("transport") or {}).get("type", "stdio") == "stdio"
        and wish.registry in (None, one["registryType"])
    ]
    return min(found, key=lambda one: PACKAGE_KINDS.index(one["registryType"]), default=None)


def remote_of(entry: Entry) -> dict[str, Any] | None:
    """Choose the remote server to attach: the first over streamable HTTP."""
    return next((one for one in entry.remotes if one.get("type") == "streamable-http" and one.get("url")), None)


def arguments_of(package: Mapping[str, Any], given: Mapping[str, str]) -> tuple[str, ...]:
    """Make the server's own command line, as its catalog entry describes it.

    Args:
        given: values by the names of the arguments.

    Raises:
        InvalidArguments: a required argument is not given. NotAllowedByPolicy: a value refers to this machine.
    """
    line: list[str] = []
    for argument in package.get("packageArguments") or []:
        if not isinstance(argument, dict):
            continue
        name = literal(argument.get("name") or argument.get("valueHint")) or ""
        fixed, default = argument.get("value"), argument.get("default")
        value = literal(fixed) if fixed is not None else given.get(name) or literal(default)
        if value is None and argument.get("isRequired"):
            raise InvalidArguments(f"it needs the argument {name}: {argument.get('description') or ''}".rstrip(": "))
        if argument.get("type") == "named":
            if value is not None:
                line += [name, value] if value else [name]
        elif value is not None:
            line.append(value)
    return tuple(line)


def environment_of(package: Mapping[str, Any], given: Mapping[str, str], home: Path) -> dict[str, str]:
    """Make the server's variables: those that its catalog entry sets, and those that are given.

    Args:
        home: the server's own folder, which `{home}` in a value stands for.

    Raises:
        NotAllowedByPolicy: the entry sets a variable that steers other programs, or refers to this machine.
    """
    environment = {}
    for variable in package.get("environmentVariables") or []:
        name, value = variable["name"], literal(variable.get("value", variable.get("default")))
        if value is None or name in given:
            continue
        check_set_variable(name)
        environment[name] = value.replace("{home}", str(home))
    return {**environment, **given}


def headers_of(remote: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Make a remote server's headers: those that its catalog entry sets, and those of them that are given.

    Raises:
        NotAllowedByPolicy: a value refers to this machine.
    """
    headers = {}
    for header in remote.get("headers") or []:
        value = given.get(header["name"]) or literal(header.get("value")) or literal(header.get("default"))
        if value:
            headers[header["name"]] = value
    return headers


def image_of(identifier: str, version: str | None) -> str:
    """Name a container image with its tag; a tag or a digest in the identifier counts first."""
    tagged = "@" in identifier or ":" in identifier.rpartition("/")[2]
    return identifier if tagged or not version else f"{identifier}:{version}"


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
