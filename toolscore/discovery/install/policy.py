"""What may be installed: the operator's rules, and the checks of names, versions, arguments, variables and addresses.

Pure: every function decides from its arguments. What an install would do is in `plan.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from toolscore.core.errors import InvalidArguments, NotAllowedByPolicy
from toolscore.core.names import reference_for
from toolscore.core.rules import Count, Rules, Seconds
from toolscore.discovery.catalog.server_json import Entry, is_template

__all__ = [
    "HOMES",
    "InstallRule",
    "InstallRules",
    "Kind",
    "allowing_rule",
    "check_declared",
    "check_home",
    "check_identifier",
    "check_reference",
    "check_runtime_arguments",
    "check_server_id",
    "check_set_variable",
    "check_url",
    "check_variable",
    "home_of",
    "is_at_home",
    "is_package_name",
    "is_secret",
    "literal",
]

Kind = Literal["pypi", "npm", "oci", "remote"]

PYPI_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
NPM_NAME = re.compile(r"(?:@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*")
OCI_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]*(?::[0-9]+/[a-z0-9._/-]+)?(?::[A-Za-z0-9._-]+)?(?:@sha256:[0-9a-f]{64})?")
NAMES: dict[Kind, re.Pattern[str]] = {"pypi": PYPI_NAME, "npm": NPM_NAME, "oci": OCI_NAME}
HOMES = {"pypi": (("pypi", "org"),), "npm": (("registry", "npmjs", "org"), ("registry", "npmjs", "com"))}
"""The registries that the catalogs mean where they name none, by the labels of their hosts."""
IMAGES_HOME = (("docker", "io"), ("index", "docker", "io"), ("hub", "docker", "com"), ("registry-1", "docker", "io"))
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.!+_-]*")
SERVER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
STEERING = re.compile(
    r"(?i)(PATH|HOME|SHELL|ENV|IFS|BASH_.*|LD_.*|DYLD_.*|GCONV_.*|PYTHON.*|NODE_(OPTIONS|PATH|V8.*)|PERL.*|RUBY.*|JAVA_.*|"
    r"_JAVA.*|DOCKER_.*|CONTAINER.*|PODMAN_.*|BUILDAH_.*|XDG_.*|GIT_.*|UV_.*|PIP_.*|NPM_.*|.*_PROXY)"
)
"""Variables that change which program runs, or which hosts it talks to."""
SECRET = re.compile(r"(?i)(key|token|secret|passw|passphrase|credential|authorization)")
"""Names of variables whose values are secrets, whatever the catalog says."""

HARMLESS = frozenset({"-y", "--yes", "-i", "--interactive", "--rm", "-q", "--quiet", "--silent"})
"""Runtime arguments that are dropped. Any other is refused: it may mount folders, fetch from elsewhere or run code."""


class InstallRule(Rules):
    """Servers that may be installed without approval: everything that is given must fit."""

    registry: Kind | None = Field(None, description="pypi, npm, oci or remote")
    package: str | None = Field(None, description="the identifier in that registry, or the URL; a glob pattern")
    version: str | None = Field(None, description="exact; of an image the tag or digest that is fetched")
    name: str | None = Field(None, description="of the server in its catalog, publisher/name; a glob pattern")
    publisher: str | None = Field(
        None, description="of the server in its catalog, where the catalog checks publishers; a glob pattern"
    )
    network: bool = Field(False, description="whether the server may use the network")

    @model_validator(mode="after")
    def _says_something(self) -> InstallRule:
        if not (self.registry or self.package or self.name or self.publisher):
            raise ValueError("an entry names at least one of registry, package, name and publisher")
        return self


class InstallRules(Rules):
    """What may be installed, and how it runs."""

    allow: tuple[InstallRule, ...] = Field(
        (),
        description="servers that may be installed without approval: {registry: pypi, package: mcp-server-*, "
        'version: 1.0.0, name: "io.github.owner/*", publisher: io.github.owner, network: false}; all given must fit',
    )
    confine: bool = Field(
        True, description="installed servers see only their own files, and no network (bubblewrap, Linux)"
    )
    memory_mb: Annotated[int, Field(ge=64)] = Field(2048, description="of data, for each process of such a server")
    processes: Count = Field(256, description="of such a server, its threads included")
    source_builds: bool = Field(False, description="whether Python packages may run their own code to be built")
    private_addresses: bool = Field(False, description="whether remote servers may be on this network")
    fetch_timeout_seconds: Seconds = Field(300, description="of each command that fetches")
    start_timeout_seconds: Seconds = Field(60, description="of a new server on trial")


def allowing_rule(
    rules: InstallRules, entry: Entry, kind: Kind, identifier: str, version: str | None, *, network: bool
) -> int | None:
    """Find the first rule that allows a server to be installed.

    Args:
        identifier: of the package, or the URL.
        network: whether somebody asks for a network: then the rule must grant one.

    Returns:
        The number of the rule; `None`: no rule allows it.
    """
    for number, rule in enumerate(rules.allow):
        if _fits(rule, entry, kind, identifier, version, network=network):
            return number
    return None


def _fits(rule: InstallRule, entry: Entry, kind: Kind, identifier: str, version: str | None, *, network: bool) -> bool:
    if rule.publisher is not None and not (entry.vouched and fnmatchcase(entry.publisher, rule.publisher)):
        return False
    names = [identifier]
    if kind == "oci":
        bare, version = _image_parts(identifier, version)
        names.append(bare)
    fits = _is_address_within if kind == "remote" else fnmatchcase
    return (
        (rule.network or not network)
        and rule.registry in (None, kind)
        and (rule.package is None or any(fits(name, rule.package) for name in names))
        and (rule.name is None or fnmatchcase(entry.name, rule.name))
        and rule.version in (None, version)
    )


def _image_parts(identifier: str, version: str | None) -> tuple[str, str | None]:
    """An image's name, and the tag or digest that is fetched: its own counts before the catalog's version."""
    bare, _, digest = identifier.partition("@")
    folder, slash, last = bare.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{folder}{slash}{name}", digest or tag or version


def _is_address_within(url: str, pattern: str) -> bool:
    """Whether a pattern means an address. Of the host a `*` stands for all of it, or for names in front of it: one
    anywhere else would let in whoever has a longer name.
    """
    if pattern == "*":
        return True
    try:
        wanted, given = urlsplit(pattern), urlsplit(url)
        if wanted.scheme != given.scheme or "@" in given.netloc or given.hostname is None:
            return False
        host, suffix = wanted.netloc.lower(), given.netloc.lower()
    except ValueError:
        return False
    leading = host.startswith("*.") and "*" not in host[1:]
    within = suffix.endswith(host[1:]) if leading else host in ("*", suffix)
    rest, expected = url.partition(given.netloc)[2], pattern.partition(wanted.netloc)[2]
    return within and fnmatchcase(rest, expected)


def is_package_name(kind: Kind, name: str) -> bool:
    """Whether a text is a package's name and nothing else, such as an option; any text names a remote server."""
    pattern = NAMES.get(kind)
    return pattern is None or pattern.fullmatch(name) is not None


def check_identifier(kind: Kind, identifier: str, version: Any) -> None:
    """Check the name and the version of a package.

    Args:
        version: exact; `None`: the newest.

    Raises:
        InvalidArguments: one of them is something else, such as an option or a range.
    """
    if not is_package_name(kind, identifier):
        raise InvalidArguments(f"{identifier!r:.120} is no name of a package ({kind})")
    if version is not None and (not isinstance(version, str) or not VERSION.fullmatch(version)):
        raise InvalidArguments(f"{version!r:.80} is no exact version")


def home_of(package: Mapping[str, Any]) -> str | None:
    """The host of the registry that a catalog says a package is in (`registryBaseUrl`); `None`: the usual one.

    What is no address is given as it is: no registry is called so.
    """
    base = package.get("registryBaseUrl")
    if base is None or base == "":
        return None
    try:
        host = urlsplit(str(base)).netloc.lower() or str(base)
    except ValueError:
        host = str(base)
    usual = IMAGES_HOME if package["registryType"] == "oci" else HOMES.get(package["registryType"], ())
    return None if tuple(host.split(".")) in usual else host


def is_at_home(package: Mapping[str, Any]) -> bool:
    """Whether a package can be fetched from where its catalog says that it is: an image from anywhere, others from
    their kind's usual registry alone.
    """
    return package["registryType"] == "oci" or home_of(package) is None


def check_home(package: Mapping[str, Any]) -> None:
    """Check that a package is where it will be fetched from: another registry's may be somebody else's of that name.

    Raises:
        InvalidArguments: its catalog says that it is elsewhere.
    """
    if not is_at_home(package):
        raise InvalidArguments(
            f"{package['identifier']!r:.120} is in the registry {home_of(package)!r:.120}, by its catalog entry; "
            f"packages of {package['registryType']} are fetched from the usual registry alone, and one of that name "
            "there may be another",
            suggestion="attach the server by hand, with the command that you trust: POST /api/v1/servers",
        )


def check_server_id(server_id: str, reserved: Collection[str]) -> None:
    """Check the id that a server will have.

    Raises:
        InvalidArguments: it is reserved, or has other characters than an id may have.
    """
    if server_id in reserved:
        raise InvalidArguments(f"{server_id!r} is the id of a server of ours: give another with `server_id`")
    if not SERVER_ID.fullmatch(server_id):
        raise InvalidArguments(f"a server id has letters, digits and `._-`, found {server_id!r:.80}")


def check_declared(what: str, given: Collection[str], declared: Collection[str] | None) -> None:
    """Check that a server knows what it is given.

    Args:
        what: is given, in the plural.
        declared: by its catalog entry; `None`: the entry says nothing of such.

    Raises:
        InvalidArguments: with what is declared.
    """
    unknown = sorted(set(given) - set(declared)) if declared is not None else []
    if unknown:
        known = ", ".join(sorted(declared or ())) or "none"
        raise InvalidArguments(f"its catalog entry knows no {what} {', '.join(unknown)}", suggestion=f"it has: {known}")


def check_runtime_arguments(package: Mapping[str, Any]) -> None:
    """Check what a catalog passes to the program that runs a server.

    Raises:
        NotAllowedByPolicy: an argument is not harmless.
    """
    for argument in package.get("runtimeArguments") or []:
        said = str(argument.get("name") or argument.get("value") or "") if isinstance(argument, dict) else str(argument)
        if said not in HARMLESS:
            raise NotAllowedByPolicy(
                f"its catalog entry passes {said!r:.80} to the program that runs it: such arguments are refused, since "
                "they can mount folders, fetch from elsewhere or run a shell",
                suggestion="attach the server by hand, with the command you trust: POST /api/v1/servers",
            )


def check_variable(name: str, value: str, secrets: Collection[str]) -> None:
    """Check a variable (or header) that somebody gives a server.

    Args:
        secrets: names that the catalog marks as secret.

    Raises:
        InvalidArguments: it steers other programs, or is a secret that is given by value.
    """
    if not VARIABLE.fullmatch(name.replace("-", "_")) or STEERING.fullmatch(name):
        raise InvalidArguments(f"{name!r:.80} is no variable that a server may be given")
    if name in secrets or is_secret(name):
        check_reference(name, value)


def is_secret(name: str) -> bool:
    """Whether a name says that its value is a secret, whatever the catalog says."""
    return SECRET.search(name) is not None


def check_reference(name: str, value: str) -> None:
    """Check that a secret is given by reference.

    Raises:
        InvalidArguments: it is given by value.
    """
    if "${env:" not in value and "${file:" not in value:
        raise InvalidArguments(
            f"{name} is a secret: give a reference, not the value",
            suggestion=f"{reference_for(name)}, or ${{file:/path}}",
        )


def check_set_variable(name: str) -> None:
    """Check the name of a variable that a catalog sets.

    Raises:
        NotAllowedByPolicy: it steers other programs.
    """
    if not VARIABLE.fullmatch(name) or STEERING.fullmatch(name):
        raise NotAllowedByPolicy(f"its catalog entry sets {name!r:.80}, which steers more than a server")


def check_url(url: str, *, private: bool) -> None:
    """Check the form of a remote server's address.

    Args:
        private: whether remote servers may be on this network, where plain http will do.

    Raises:
        InvalidArguments: it is no complete address. NotAllowedByPolicy: it is not https.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidArguments(f"{url!r:.200} is no address") from None
    if "{" in url:
        raise InvalidArguments(f"{url} has parts that must be filled in: attach it by hand with POST /api/v1/servers")
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise NotAllowedByPolicy(f"{url} is no https address")
    if parts.username or parts.password or not parts.hostname:
        raise InvalidArguments(f"{url} is no address of a server")


def literal(value: Any) -> str | None:
    """Read a value that a catalog sets.

    Returns:
        Its text; `None`: it sets none, or has a place in it that somebody must fill, such as `Bearer {api_key}`.

    Raises:
        NotAllowedByPolicy: it refers to a variable or a file of this machine.
    """
    if value is None:
        return None
    if "${" in str(value):
        raise NotAllowedByPolicy(f"its catalog entry refers to a variable of this machine: {value!r:.80}")
    return None if is_template(value) else str(value)
