"""What somebody wants installed, what they give the server, and what of its catalog entry that fills in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from toolscore.core.errors import InvalidArguments
from toolscore.discovery.catalog.server_json import Entry
from toolscore.discovery.install.folders import visible
from toolscore.discovery.install.policy import (
    Kind,
    check_declared,
    check_reference,
    check_set_variable,
    check_variable,
    home_of,
    is_at_home,
    is_secret,
    literal,
)
from toolscore.upstreams.process.confine import folder_of
from toolscore.upstreams.process.spawn import CommandNotFound
from toolscore.upstreams.references import resolved_text

__all__ = [
    "Wish",
    "arguments_of",
    "check_given",
    "check_paths",
    "command_line",
    "environment_of",
    "headers_of",
    "identifier_of",
    "image_of",
    "name_of",
    "package_of",
    "remote_of",
    "takes_folder",
    "wants_network",
    "wish_for",
]

PACKAGE_KINDS: tuple[Kind, ...] = ("pypi", "npm", "oci")
"""The preferred kind first."""
PATH = "filepath"
"""The format of an argument that is a path (server.json)."""
FOLDER = re.compile(r"(?i)dir|folder|repo|root|vault|workspace|allowed")
"""Names of such arguments that are folders; others are files."""
ADDRESS = re.compile(r"(?i)url|uri|host|endpoint|domain|connection|token|key|secret|passw")
"""Names of what a server needs to reach something elsewhere."""


class Wish(msgspec.Struct, frozen=True):
    """What somebody wants installed.

    Attributes:
        entry: from a catalog.
        server_id: the id that it will have; `None`: made from its name.
        registry: install this kind of package; `None`: the preferred one that it has.
        env: its variables; secrets by reference, `${env:NAME}` or `${file:/path}`.
        arguments: of its command line, by their names in the catalog, with or without the dashes before them.
        folders: that it may use beside its own: absolute paths, `:ro` behind those that it may only read.
        network: whether it may use the network.
        approved: by somebody with the scope `admin`, who saw the plan.
    """

    entry: Entry
    server_id: str | None = None
    registry: Kind | None = None
    env: dict[str, str] = {}
    arguments: dict[str, str] = {}
    folders: list[str] = []
    network: bool = False
    approved: bool = False


# What is given


def check_given(wish: Wish, package: Mapping[str, Any] | None, remote: Mapping[str, Any] | None) -> None:
    """Check what is given with a wish: names, secrets by reference, references that can be resolved."""
    variables = package.get("environmentVariables") if package is not None else (remote or {}).get("headers") or []
    arguments = (package or {}).get("packageArguments")
    given = _given_arguments(wish)
    for argument in arguments or ():
        name = name_of(argument)
        if name in given and (argument.get("isSecret") or is_secret(name)):
            check_reference(name, given[name])
    secrets = [one["name"] for one in variables or () if one.get("isSecret")]
    for name, value in wish.env.items():
        check_variable(name, value, secrets)
    for value in (*wish.env.values(), *wish.arguments.values()):
        try:
            resolved_text(value)
        except CommandNotFound as exc:
            raise InvalidArguments(f"{value}: {exc}") from exc
    check_declared("variable", wish.env, None if variables is None else [one["name"] for one in variables])
    free = None if arguments is None else [name_of(one) for one in arguments if one.get("value") is None]
    check_declared("argument", given, free)


def check_paths(package: Mapping[str, Any], wish: Wish, folders: Sequence[str], place: Path) -> None:
    """Check that a confined server can see the files that it is given the paths of."""
    given = _given_arguments(wish)
    for argument in package.get("packageArguments") or []:
        path = given.get(name_of(argument), "").replace("{home}", str(place / "home"))
        if argument.get("format") == PATH and os.path.isabs(path) and not visible(path, folders, place):
            raise InvalidArguments(
                f"{path:.200} lies in no folder that it may use",
                suggestion=f"give the folder, too: --folder {os.path.dirname(path)} (`folders` over REST)",
            )


# What a catalog entry has


def wish_for(wish: Wish, *, containers: bool) -> Wish:
    """The same wish, for the server elsewhere where its only packages are images and no container runs here. Who gives
    something that the image knows means the image.
    """
    package = package_of(wish)
    if containers or package is None or wish.registry is not None or package["registryType"] != "oci":
        return wish
    known = {one["name"] for one in package.get("environmentVariables") or ()}
    if remote_of(wish.entry) is None or not known.isdisjoint(wish.env) or wish.arguments or wish.folders:
        return wish
    return msgspec.structs.replace(wish, registry="remote")


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
    found.sort(key=lambda one: PACKAGE_KINDS.index(one["registryType"]))
    return next((one for one in found if is_at_home(one)), found[0] if found else None)


def remote_of(entry: Entry) -> dict[str, Any] | None:
    """Choose the remote server to attach: the first over streamable HTTP."""
    return next((one for one in entry.remotes if one.get("type") == "streamable-http" and one.get("url")), None)


def arguments_of(package: Mapping[str, Any], wish: Wish, folders: Sequence[str], home: str) -> tuple[str, ...]:
    """Make the server's own command line, as its catalog entry describes it.

    Args:
        folders: that it is given, which stand in its arguments for paths.
        home: the server's own folder, which `{home}` in a value of the catalog stands for.

    Raises:
        NotAllowedByPolicy: a value refers to this machine.
    """
    return tuple(command_line(package, wish, folders, home)[0])


def command_line(
    package: Mapping[str, Any], wish: Wish, folders: Sequence[str], home: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """The command line, and the arguments that must still be given."""
    line: list[str] = []
    lacking: list[dict[str, Any]] = []
    paths = [folder_of(one)[0] for one in folders]
    given = _given_arguments(wish)
    for argument in package.get("packageArguments") or []:
        fixed, default = literal(argument.get("value")), literal(argument.get("default"))
        values = [given[name_of(argument)]] if name_of(argument) in given else []
        if fixed is not None:
            values = [fixed]
        elif not values and takes_folder(argument) and paths:
            values, paths = (paths, []) if argument.get("isRepeated") else (paths[:1], paths[1:])
        if not values and default is not None:
            values = [default]
        if not values and argument.get("isRequired"):
            lacking.append(argument)
        for value in values:
            if argument.get("type") == "named":
                line.append(str(literal(argument.get("name")) or ""))
            if value or argument.get("type") != "named":
                line.append(value.replace("{home}", home))
    return line, lacking


def name_of(argument: Mapping[str, Any]) -> str:
    """What an argument is called by whoever gives it."""
    return (literal(argument.get("name") or argument.get("valueHint")) or "argument").lstrip("-")


def _given_arguments(wish: Wish) -> dict[str, str]:
    return {name.lstrip("-"): value for name, value in wish.arguments.items()}


def takes_folder(argument: Mapping[str, Any]) -> bool:
    """Whether an argument is the path of a folder to work on."""
    return argument.get("format") == PATH and FOLDER.search(name_of(argument)) is not None


def wants_network(entry: Entry, package: Mapping[str, Any] | None) -> bool:
    """Whether a package plainly needs a network."""
    if package is None or entry.extra.get("network") is True:
        return True
    inputs = [*(package.get("environmentVariables") or []), *(package.get("packageArguments") or [])]
    names = [str(one.get("name") or one.get("valueHint") or "") for one in inputs if one.get("isRequired")]
    return any(ADDRESS.search(name) for name in names) or any(one.get("isSecret") for one in inputs)


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


def identifier_of(package: Mapping[str, Any]) -> str:
    """The name that a package is fetched by; an image with its registry, which some catalogs say apart."""
    identifier, home = str(package["identifier"]), home_of(package)
    if package["registryType"] != "oci" or home is None or identifier.startswith(f"{home}/"):
        return identifier
    return f"{home}/{identifier}"


def image_of(identifier: str, version: str | None) -> str:
    """Name a container image with its tag; a tag or a digest in the identifier counts first."""
    tagged = "@" in identifier or ":" in identifier.rpartition("/")[2]
    return identifier if tagged or not version else f"{identifier}:{version}"
