"""Servers in the official format (server.json): a registry's word for a server, bounded and cleaned into an `Entry`.

Nothing that a registry says is trusted: each member is checked, and what is not as the format has it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

__all__ = ["OFFICIAL", "PUBLISHER", "UNSAID", "WELL_KNOWN", "Entry", "entries_of", "is_template"]

OFFICIAL = "io.modelcontextprotocol.registry/official"
"""What a registry says of a server."""
PUBLISHER = "io.modelcontextprotocol.registry/publisher-provided"
"""What a publisher adds to its server.json."""
UNSAID = "0.0.0"
"""The version of a server whose catalog says none: the official format must have one."""
WELL_KNOWN = "well-known"
"""The source of the servers that most people mean by a name."""
NAME = re.compile(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+")
PLACE = re.compile(r"\{[^{}\s\"']{1,100}\}")
MAX_NAME = 200
MAX_ENTRY_BYTES = 64 * 1024
"""Of one server.json object, and of what the registry says of it. A larger entry is left out."""


class Entry(msgspec.Struct, frozen=True):
    """A server in a catalog.

    Attributes:
        server: a server.json object, cleaned.
        meta: what the registry says of it.
        source: the catalog's name.
        vouched: whether the source checks that the name belongs to its publisher.
    """

    server: dict[str, Any]
    meta: dict[str, Any]
    source: str
    vouched: bool = False

    @property
    def name(self) -> str:
        """Publisher and server, such as `io.github.somebody/weather`."""
        return str(self.server["name"])

    @property
    def version(self) -> str:
        """Empty where the catalog says none."""
        said = str(self.server.get("version") or "")
        return said if said != UNSAID else ""

    @property
    def publisher(self) -> str:
        """The namespace, such as `io.github.somebody`."""
        return self.name.partition("/")[0]

    @property
    def packages(self) -> list[dict[str, Any]]:
        return _dicts(self.server.get("packages"))

    @property
    def remotes(self) -> list[dict[str, Any]]:
        return _dicts(self.server.get("remotes"))

    @property
    def extra(self) -> dict[str, Any]:
        """What the publisher adds, such as a longer description, tags, tools or a licence."""
        meta = self.server.get("_meta")
        given = meta.get(PUBLISHER) if isinstance(meta, dict) else None
        return given if isinstance(given, dict) else {}

    @property
    def description(self) -> str:
        return str(self.extra.get("description") or self.server.get("description") or "")

    @property
    def tools(self) -> list[dict[str, Any]]:
        return _dicts(self.extra.get("tools"))

    @property
    def known_as(self) -> list[str]:
        """What people call it, the usual name first; only of the well-known."""
        return list(self.extra.get("known_as") or ()) if self.source == WELL_KNOWN else []

    def official(self) -> dict[str, Any]:
        """What the registry says of this version: its status, its dates, whether it is the latest."""
        found = self.meta.get(OFFICIAL)
        return found if isinstance(found, dict) else {}

    def needs(
        self, package: dict[str, Any] | None = None, remote: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """List the environment variables or headers that somebody must set.

        Args:
            package: one of its packages. remote: one of its remote servers. Neither: its first package, or remote.

        Returns:
            For each its `name`, whether it is a `secret`, and its `description`.
        """
        if package is None and remote is None:
            package, remote = next(iter(self.packages), None), next(iter(self.remotes), None)
        inputs: list[Any] = []
        if package is not None:
            inputs = package.get("environmentVariables") or []
        elif remote is not None:
            inputs = remote.get("headers") or []
        return [
            {"name": one["name"], "secret": bool(one.get("isSecret")), "description": _described(one)}
            for one in inputs
            if isinstance(one, dict)
            and one.get("isRequired")
            and "name" in one
            and all(value is None or is_template(value) for value in (one.get("value"), one.get("default")))
        ]


def is_template(value: Any) -> bool:
    """Whether a value has a place in it that somebody must fill (registry, inputs: variables)."""
    return any(found != "{home}" for found in PLACE.findall(str(value)))


def _described(given: dict[str, Any]) -> str | None:
    """What is said of an input, and the form that its value has, if the catalog gives one."""
    form = given.get("value") or given.get("default")
    parts = [given.get("description"), form and f"as {form}"]
    return "; ".join(str(part) for part in parts if part) or None


def entries_of(
    page: Mapping[str, Any], source: str, *, vouched: bool = False, every_version: bool = False
) -> Iterable[Entry]:
    """Read the servers of a page of a registry; those that cannot be used are left out. Never raises.

    Args:
        page: `{"servers": […]}`, with server.json objects or the registry's wrappers of them.
        source: the catalog's name.
        vouched: whether the source checks that names belong to their publishers.
        every_version: keep each version of a server; else the latest.
    """
    found: dict[str, Entry] = {}
    listed = page.get("servers")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict):
            continue
        inner, about = one.get("server"), one.get("_meta")
        server: dict[str, Any] = inner if isinstance(inner, dict) else one
        name = server.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > MAX_NAME:
            continue
        try:  # JSON cannot carry lone surrogates or any depth; NaN becomes null
            packed = msgspec.json.encode(server)
            about = msgspec.json.decode(msgspec.json.encode(about))
        except (ValueError, RecursionError):
            continue
        if len(packed) > MAX_ENTRY_BYTES or len(str(about)) > MAX_ENTRY_BYTES:
            continue
        entry = Entry(
            _cleaned(msgspec.json.decode(packed)),
            about if server is inner and isinstance(about, dict) else {},
            source,
            vouched,
        )
        if entry.official().get("status") == "deleted":
            continue
        key = f"{name}\0{entry.version}" if every_version else name
        if key not in found or entry.official().get("isLatest"):
            found[key] = entry
    return found.values()


def _cleaned(server: dict[str, Any]) -> dict[str, Any]:
    """Copy a server.json object without the members that have a wrong type."""
    cleaned = {key: value for key, value in server.items() if key not in ("packages", "remotes", "_meta", "repository")}
    for key in ("description", "title", "version", "websiteUrl"):
        if key in cleaned and not isinstance(cleaned[key], str):
            del cleaned[key]
    cleaned.setdefault("description", str(server["name"]).partition("/")[2])
    cleaned.setdefault("version", UNSAID)
    cleaned["packages"] = [
        {
            **package,
            "transport": package["transport"] if isinstance(package.get("transport"), dict) else {"type": "stdio"},
            **{key: _named(package[key]) for key in ("runtimeArguments", "packageArguments") if package.get(key)},
            **{key: _named(package[key], "name") for key in ("environmentVariables",) if package.get(key) is not None},
        }
        for package in _dicts(server.get("packages"))
        if isinstance(package.get("registryType"), str)
        and isinstance(package.get("identifier"), str)
        and isinstance(package.get("version", ""), str)
    ]
    cleaned["remotes"] = [
        {**remote, **({"headers": _named(remote["headers"], "name")} if "headers" in remote else {})}
        for remote in _dicts(server.get("remotes"))
        if isinstance(remote.get("type"), str) and isinstance(remote.get("url"), str)
    ]
    if isinstance(server.get("repository"), dict):
        cleaned["repository"] = server["repository"]
    meta = server.get("_meta")
    given = meta.get(PUBLISHER) if isinstance(meta, dict) else None
    if isinstance(meta, dict):
        cleaned["_meta"] = {key: value for key, value in meta.items() if key != PUBLISHER}
    if isinstance(given, dict):
        extra = dict(given)
        for key in ("categories", "tags"):
            found = extra.get(key)
            extra[key] = [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
        extra["tools"] = [
            {**tool, "description": str(tool.get("description") or "")}
            for tool in _dicts(extra.get("tools"))
            if isinstance(tool.get("name"), str)
        ]
        cleaned["_meta"][PUBLISHER] = extra
    return cleaned


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _named(found: Any, name: str | None = None) -> list[dict[str, Any]]:
    """Copy a list of inputs. An input that is no object, or has no name, becomes one that every check refuses."""
    listed = found if isinstance(found, list) else [found]
    return [
        one if isinstance(one, dict) and (name is None or isinstance(one.get(name), str)) else {name or "value": "?"}
        for one in listed
    ]
