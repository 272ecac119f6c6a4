"""From a candidate to a running, tested, pinned server; or to nothing at all.

Everything of a server lies in one folder. Its row in `installs` is written when it has proved itself: a folder without
one, whatever the moment the gateway died, is removed at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import structlog

from toolscore.core.errors import (
    Conflict,
    InstallFailed,
    InvalidArguments,
    NotAllowedByPolicy,
    Overloaded,
    ServerNotFound,
    ToolScoreError,
)
from toolscore.core.jsonrpc import ConnectionLost, RemoteError, decode
from toolscore.core.models import Confinement, UpstreamSpec, timestamp
from toolscore.discovery.catalog.catalog import Entry
from toolscore.stores import Database
from toolscore.stores.database import StoreError
from toolscore.upstreams import UpstreamPool
from toolscore.upstreams.connection import Connection
from toolscore.upstreams.process.confine import user_of
from toolscore.upstreams.process.spawn import ChildProtocol, CommandNotFound, child_environment, spawn, stop
from toolscore.upstreams.references import resolved_text

__all__ = ["InstallRule", "InstallRules", "Installed", "Installer", "Plan", "Proof", "Wish"]

log = structlog.get_logger(__name__)

Kind = Literal["pypi", "npm", "oci", "remote"]
Progress = Callable[[str, str], None]

MARKER = ".toolscore-install"
"""Stands in each folder that an install made: no other is ever removed."""
AT_ONCE = 2
MAX_WAITING = 20
OTHER_ID = "give another with `server_id` (`--as` on the command line)"
UP_SECONDS = 60.0
PROBE_SECONDS = 20.0
OUTPUT_LINES = 30

PYPI_NAME = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$")
NPM_NAME = re.compile(r"^(?:@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*$")
OCI_NAME = re.compile(
    r"^[a-z0-9][a-z0-9._/-]*(?::[0-9]+/[a-z0-9._/-]+)?(?::[A-Za-z0-9._-]+)?(?:@sha256:[0-9a-f]{64})?$"
)
SCRIPT = re.compile(r"(?:\./)?[A-Za-z0-9_@][A-Za-z0-9._@/-]*")
VERSION = re.compile(r"^[0-9A-Za-z][0-9A-Za-z.!+_-]*$")
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
STEERING = re.compile(
    r"(?i)(PATH|HOME|SHELL|ENV|IFS|BASH_.*|LD_.*|DYLD_.*|GCONV_.*|PYTHON.*|NODE_(OPTIONS|PATH|V8.*)|PERL.*|RUBY.*|JAVA_.*|"
    r"_JAVA.*|DOCKER_.*|CONTAINER.*|PODMAN_.*|BUILDAH_.*|XDG_.*|GIT_.*|UV_.*|PIP_.*|NPM_.*|.*_PROXY)"
)
"""Variables that would change which program runs, or what it talks to."""

HARMLESS = frozenset({"-y", "--yes", "-i", "--interactive", "--rm", "-q", "--quiet", "--silent"})
"""Runtime arguments that are dropped; any other is refused: they can mount folders, fetch from elsewhere, run code."""

OLD_SDK = re.compile(r"(ImportError|ModuleNotFoundError|AttributeError|TypeError|NameError)\b")
"""How servers that were written for the SDK 1.x die on 2.x."""


NO_NETWORK = re.compile(
    r"ENETUNREACH|EAI_AGAIN|ENOTFOUND|getaddrinfo|Network is unreachable|Name or service not known|name resolution"
    r"|ConnectError|ConnectionError",
    re.IGNORECASE,
)
"""What servers say that die without a network."""


class InstallRule(msgspec.Struct, frozen=True):
    """Servers that may be installed without being approved one by one. All that is given must fit; globs.

    Attributes:
        registry: `pypi`, `npm`, `oci` or `remote`.
        package: the identifier in that registry, or the URL.
        version: exact.
        name, publisher: of the server in its catalog (`publisher/name`); a publisher counts where that checks it.
        network: whether the server may use the network.
    """

    registry: Kind | None = None
    package: str | None = None
    version: str | None = None
    name: str | None = None
    publisher: str | None = None
    network: bool = False


class InstallRules(msgspec.Struct, frozen=True):
    """What may be installed, and how it runs."""

    allow: tuple[InstallRule, ...] = ()
    confine: bool = True
    memory_mb: int = 2048
    processes: int = 256
    source_builds: bool = False
    private_addresses: bool = False
    fetch_timeout_seconds: float = 300.0
    start_timeout_seconds: float = 60.0


class Wish(msgspec.Struct, frozen=True):
    """What somebody wants installed.

    Attributes:
        entry: from a catalog.
        server_id: `None`: from its name.
        env: for the server; secrets by reference, `${env:NAME}` or `${file:/path}`.
        arguments: for its command line, by their names in the catalog.
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
    """What would be done.

    Attributes:
        commands: exactly what is run to fetch it. sets: variables or headers that its catalog entry sets.
        allowed_by: number of the rule that allows it, if one does.
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
        """Of all that somebody approves."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, allowed_by=None))).hexdigest()[:16]


class Proof(msgspec.Struct, frozen=True):
    """The call of one read-only tool that a new server was put to."""

    tool: str
    ok: bool
    duration_ms: float
    fits: bool | None


class Installed(msgspec.Struct, frozen=True):
    """A server that was installed."""

    server_id: str
    name: str
    kind: Kind
    identifier: str
    version: str
    tools: list[str]
    proof: Proof | None = None
    notes: list[str] = []
    seconds: float = 0.0


class _Made(msgspec.Struct):
    """What fetching left: how to start it, and which version it is."""

    spec: UpstreamSpec
    version: str
    notes: list[str]


class Installer:
    """Use as `async with Installer(…) as installer`; entering removes what an earlier end left half done.

    Args:
        folder: where servers are installed; absolute.
        attach, detach: add and remove an upstream for good.
        on_proved: `(server_id, proof)`: goes into the first score.
        publish: `(event_type, **data)`.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        upstreams: UpstreamPool,
        *,
        attach: Callable[[str, UpstreamSpec], Awaitable[None]],
        detach: Callable[[str], Awaitable[None]],
        tools_of: Callable[[str], list[str]],
        on_proved: Callable[[str, Proof], None] = lambda *_: None,
        publish: Callable[..., None] = lambda *_, **__: None,
        rules: InstallRules | None = None,
    ) -> None:
        self._folder = folder
        self._database = database
        self._upstreams = upstreams
        self._attach = attach
        self._detach = detach
        self._tools_of = tools_of
        self._on_proved = on_proved
        self._publish = publish
        self.rules = rules or InstallRules()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._running: dict[str, tuple[Wish, asyncio.Task[Installed]]] = {}
        self._leaving: set[str] = set()
        self.reserved: frozenset[str] = frozenset()
        """Ids that no server may be installed under."""
        self._installed: dict[str, Installed] = {}

    async def __aenter__(self) -> Installer:
        attached = {row["server_id"] for row in await self._database.load_servers()}
        for row in await self._database.load_installs():
            if row["server_id"] in attached:
                self._installed[row["server_id"]] = msgspec.json.decode(row["record"], type=Installed)
            else:
                await self._database.delete_install(row["server_id"])
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in self._installed and (path / MARKER).is_file():
                    log.warning("an install that was not finished is removed", server=path.name)
                    await _remove(path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __iter__(self) -> Any:
        return iter(list(self._installed.values()))

    def find(self, name: str) -> Installed | None:
        """What is installed under a catalog's name, or as this server."""
        return self._installed.get(name) or next((one for one in self if one.name == name), None)

    # Policy

    def plan(self, wish: Wish) -> Plan:
        """What installing would do; nothing is done.

        Raises:
            InvalidArguments: it cannot be installed as it stands in the catalog, or without more being given.
            NotAllowedByPolicy: its catalog entry asks for what nobody may approve.
        """
        entry = wish.entry
        package = self._package(wish)
        remote = _remote(entry) if package is None else None
        if package is not None:
            kind: Kind = package["registryType"]
            identifier, version = str(package["identifier"]), package.get("version")
            _refuse_risky(package)
        elif remote is not None:
            kind, identifier, version = "remote", str(remote["url"]), entry.version or None
            _check_url(identifier, self.rules.private_addresses)
        else:
            kinds = sorted({str(one.get("registryType")) for one in entry.packages}) or ["none"]
            raise InvalidArguments(
                f"{entry.name} has no package that can be installed here (it has: {', '.join(kinds)})",
                suggestion="pypi, npm, oci and remotes over streamable HTTP can be",
            )
        _check_names(kind, identifier, version)
        given = {name for name in wish.env if name}
        wanted = entry.needs(package)
        for name, value in wish.env.items():
            _check_variable(name, value, {one["name"] for one in wanted if one["secret"]})
        for value in (*wish.env.values(), *wish.arguments.values()):
            try:
                resolved_text(value)
            except CommandNotFound as exc:
                raise InvalidArguments(f"{value}: {exc}") from exc
        needs = [one["name"] for one in wanted if one["name"] not in given]
        arguments = _arguments(package or {}, wish.arguments)
        server_id = wish.server_id or _server_id(entry.name)
        if server_id in self.reserved:
            raise InvalidArguments(f"{server_id!r} is the id of a server of ours: give another with `server_id`")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", server_id):
            raise InvalidArguments(f"a server id has letters, digits and `._-`, found {server_id!r:.80}")
        fitting = (number for number, one in enumerate(self.rules.allow) if _fits(one, wish, kind, identifier, version))
        rule = next(fitting, None)
        network = wish.network or (rule is not None and self.rules.allow[rule].network) or kind == "remote"
        place = self._folder / server_id
        commands: list[list[str]] = []
        if kind == "pypi":
            commands = _pypi_commands(place, self.rules)
        elif kind == "npm":
            commands = _npm_commands(place)
        elif kind == "oci":
            commands = [[_engine() or "docker", "pull", _image(identifier, version)]]
        exact = (
            f"{identifier}{'==' if kind == 'pypi' else '@'}{version}" if version and kind != "remote" else identifier
        )
        return Plan(
            server_id=server_id,
            name=entry.name,
            kind=kind,
            identifier=identifier,
            version=version,
            commands=commands,
            run=" ".join((exact, *arguments)),
            confined=kind in ("pypi", "npm") and self.rules.confine,
            network=network,
            needs=needs,
            sets=_environment(package, {}, place / "home") if package is not None else _headers(remote or {}, {}),
            allowed_by=rule,
        )

    def _package(self, wish: Wish) -> dict[str, Any] | None:
        """The package to install: of the registry that was asked for, else the first that can be."""
        able = ("pypi", "npm", "oci")
        if wish.registry == "remote":
            return None
        found = [one for one in wish.entry.packages if one.get("registryType") in able and one.get("identifier")]
        found = [one for one in found if (one.get("transport") or {}).get("type", "stdio") == "stdio"]
        if wish.registry is not None:
            found = [one for one in found if one["registryType"] == wish.registry]
        found.sort(key=lambda one: able.index(one["registryType"]))
        return found[0] if found else None

    def _allow(self, wish: Wish, plan: Plan) -> None:
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

    # Installing

    async def install(self, wish: Wish, on_progress: Progress = lambda step, message: None) -> Installed:
        """Install a server. Two equal wishes at once are one; what fails leaves nothing.

        Raises:
            NotAllowedByPolicy, InvalidArguments. Conflict: the id is taken. Overloaded: too many wait.
            InstallFailed: with the step, the command and its last output.
        """
        plan = self.plan(wish)
        if (done := self.done(wish, plan)) is not None:
            return done
        self._allow(wish, plan)
        running = self._running.get(plan.server_id)
        if running is None:
            if len(self._running) >= MAX_WAITING:
                raise Overloaded(f"{MAX_WAITING} installs are under way: try again later", retry_after_seconds=60)
            task = asyncio.create_task(self._install(wish, plan, on_progress))
            running = self._running[plan.server_id] = (wish, task)
            task.add_done_callback(lambda _: self._running.pop(plan.server_id, None))
        try:
            return await asyncio.shield(running[1])
        except asyncio.CancelledError:
            if not running[1].cancelled():
                raise
            raise InstallFailed(f"the gateway is shutting down: the install of {plan.name} was undone") from None

    async def stop(self) -> None:
        """End what is under way and undo it; whoever waits is told."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def done(self, wish: Wish, plan: Plan) -> Installed | None:
        """What a wish asks for, if it is installed already.

        Raises:
            Conflict: its id is another's.
        """
        done, running = self._installed.get(plan.server_id), self._running.get(plan.server_id)
        taken = self._upstreams.find(plan.server_id) is not None or plan.server_id in self._leaving
        if running is not None:
            if msgspec.structs.replace(running[0], approved=True) != msgspec.structs.replace(wish, approved=True):
                raise Conflict(f"something else is being installed as {plan.server_id!r}: {OTHER_ID}")
        elif done is not None and taken:
            same = (done.name, done.kind, done.identifier) == (plan.name, plan.kind, plan.identifier)
            if same and plan.version in (None, done.version) and not (wish.env or wish.arguments or wish.network):
                return done
            raise Conflict(f"{done.name} {done.version} is installed as {plan.server_id!r}: uninstall it first")
        elif taken:
            raise Conflict(f"server id {plan.server_id!r} is taken: {OTHER_ID}")
        return None

    def holds(self, server_id: str) -> bool:
        """Whether an id is an installed server's, or will be."""
        return server_id in self._installed or server_id in self._running or server_id in self._leaving

    async def _install(self, wish: Wish, plan: Plan, on_progress: Progress) -> Installed:
        about = {"server_id": plan.server_id, "name": plan.name, "registry": plan.kind, "package": plan.identifier}
        place = self._folder / plan.server_id
        started = time.monotonic()
        step = "wait"
        attached: list[str] = []

        def tell(now: str, message: str) -> None:
            nonlocal step
            step = now
            log.info("installing", step=now, message=message, server=plan.server_id)
            self._publish("install_progress", **about, step=now, message=message)
            on_progress(now, message)

        async with self._places:
            self._publish("install_started", **about, version=plan.version)
            try:
                tell("fetch", f"fetching {plan.identifier}" + (f" {plan.version}" if plan.version else ""))
                made = await self._fetch(wish, plan, place)
                tell("prove", "starting it on trial")
                made, tools, proof = await self._prove(wish, plan, place, made, tell)
                tell("register", f"{len(tools)} tools")
                result = Installed(
                    server_id=plan.server_id, name=plan.name, kind=plan.kind, identifier=plan.identifier,
                    version=made.version, tools=tools, proof=proof, notes=made.notes,
                    seconds=round(time.monotonic() - started, 2),
                )  # fmt: skip
                result = await self._register(result, made.spec, attached)
            except BaseException as exc:
                await asyncio.shield(self._roll_back(plan.server_id, place, attached=bool(attached)))
                if not isinstance(exc, Exception):
                    self._publish("install_failed", **about, step=step, reason="the gateway was stopped")
                    raise
                failed = _as_failure(exc, step, plan)
                self._publish("install_failed", **about, step=step, reason=failed.message)
                log.error("an install failed", server=plan.server_id, step=step, error=failed.message)
                raise failed from exc
        if proof is not None:
            self._on_proved(plan.server_id, proof)
        log.info("installed", server=plan.server_id, version=result.version, tools=len(tools))
        return result

    async def _register(self, result: Installed, spec: UpstreamSpec, attached: list[str]) -> Installed:
        row = {
            "server_id": result.server_id,
            "name": result.name,
            "record": msgspec.json.encode(result).decode(),
            "installed_at": timestamp(),
        }
        try:
            await self._database.save_install(row)
        except StoreError as exc:
            raise _Failed(f"the database does not take it: {exc}") from exc
        await self._attach(result.server_id, spec)
        attached.append(result.server_id)
        try:
            async with asyncio.timeout(UP_SECONDS):
                await self._upstreams.get(result.server_id).wait_up()
        except TimeoutError:
            raise _Failed(f"it did not come up within {UP_SECONDS:g} s") from None
        named = msgspec.structs.replace(result, tools=self._tools_of(result.server_id))
        self._installed[result.server_id] = named
        with contextlib.suppress(StoreError):  # the row is there, with the server's own names of its tools
            await self._database.save_install({**row, "record": msgspec.json.encode(named).decode()})
        return named

    async def _roll_back(self, server_id: str, place: Path, *, attached: bool = True) -> None:
        """Leave nothing of it.

        Args:
            attached: whether the upstream of that id is ours.
        """
        self._installed.pop(server_id, None)
        if attached:
            with contextlib.suppress(ToolScoreError):
                await self._detach(server_id)
        with contextlib.suppress(StoreError):
            await self._database.delete_install(server_id)
            if attached:
                await self._database.delete_server(server_id)  # should the configuration hold its id by now
        await _remove(place)

    async def uninstall(self, name: str) -> Installed:
        """Remove a server that was installed, with all that belongs to it.

        Args:
            name: its id, or its name in the catalog.

        Raises:
            ServerNotFound: nothing of that name was installed.
        """
        same = [one for one in self if one.name == name]
        if name not in self._installed and len(same) > 1:
            ids = ", ".join(sorted(one.server_id for one in same))
            raise Conflict(f"{name} is installed several times: name one of {ids}")
        found = self.find(name)
        if found is None or found.server_id in self._leaving:
            known = ", ".join(sorted(self._installed)) or "none"
            raise ServerNotFound(f"no server {name!r} was installed", suggestion=f"installed: {known}")
        self._leaving.add(found.server_id)
        try:
            await self._roll_back(found.server_id, self._folder / found.server_id)
        finally:
            self._leaving.discard(found.server_id)
        if found.kind == "oci" and (engine := _engine()) is not None:
            with contextlib.suppress(_Failed, CommandNotFound):
                image = f"{found.identifier.partition('@')[0]}@{found.version}"
                await self._run([engine, "image", "rm", image], self._folder.parent)
        return found

    # Fetching

    async def _fetch(self, wish: Wish, plan: Plan, place: Path, *extra: str) -> _Made:
        """Get the server's files.

        Args:
            extra: further requirements of a Python server.
        """
        package = self._package(wish) or {}
        if plan.kind == "remote":
            return await self._look_at_remote(wish, plan)
        if place.exists() and not (place / MARKER).is_file():
            raise _Failed(f"{place} is there, and was not made by an install: move it away")
        await _remove(place)
        home = place / "home"
        await asyncio.to_thread(home.mkdir, parents=True)
        await asyncio.to_thread((place / MARKER).write_text, "made by an install; removed with it\n")
        if plan.kind == "pypi":
            command, version, notes = await self._from_pypi(plan, package, place, extra)
        elif plan.kind == "npm":
            command, version, notes = await self._from_npm(plan, package, place)
        else:
            return await self._from_oci(wish, plan, package)
        if any("${" in part for part in command):
            raise _Failed(f"its command refers to this machine: {' '.join(command)!r:.200}")
        args = tuple(command[1:]) + _arguments(package, wish.arguments)
        confine = None
        if self.rules.confine:
            user = user_of(str(home))
            if user:
                os.chown(home, user, user)
            home.chmod(0o700)
            confine = Confinement(
                home=str(home), read=(str(place), *_interpreters(plan.kind)), network=plan.network,
                memory_mb=self.rules.memory_mb, processes=self.rules.processes,
            )  # fmt: skip
        env = _environment(package, wish.env, home)
        spec = UpstreamSpec(
            command=command[0], args=args, env=env, cwd=None if confine else str(home), confine=confine,
            description=wish.entry.description[:500], tags=("installed",),
        )  # fmt: skip
        return _Made(spec, version, notes)

    async def _from_pypi(
        self, plan: Plan, package: Mapping[str, Any], place: Path, extra: tuple[str, ...]
    ) -> tuple[list[str], str, list[str]]:
        wanted = f"{plan.identifier}=={plan.version}" if plan.version else plan.identifier
        lines = "\n".join((wanted, *extra)) + "\n"
        await asyncio.to_thread((place / "requirements.in").write_text, lines)
        for command in _pypi_commands(place, self.rules):
            await self._run(command, place)
        lock = await asyncio.to_thread((place / "requirements.lock").read_text)
        given = package.get("fileSha256")
        if isinstance(given, str) and f"sha256:{given}" not in lock:
            raise _Failed(f"none of the files of {wanted} has the SHA-256 that the catalog gives ({given})")
        site = next((place / "env").glob("lib/python*/site-packages"))
        found = await asyncio.to_thread(_distribution, site, plan.identifier)
        if found is None:
            raise _Failed(f"{plan.identifier} was fetched, but is not among what was installed")
        return _python_command(found, plan.identifier, place / "env" / "bin"), found.version, []

    async def _from_npm(self, plan: Plan, package: Mapping[str, Any], place: Path) -> tuple[list[str], str, list[str]]:
        wanted = {"private": True, "dependencies": {plan.identifier: plan.version or "latest"}}
        await asyncio.to_thread((place / "package.json").write_text, json.dumps(wanted))
        lock_command, install_command = _npm_commands(place)
        await self._run(lock_command, place)
        lock = json.loads(await asyncio.to_thread((place / "package-lock.json").read_text))
        for name, locked in lock.get("packages", {}).items():
            if name and not locked.get("link") and "integrity" not in locked and not locked.get("inBundle"):
                raise _Failed(f"{name} comes without a hash (from {locked.get('resolved')})")
        if isinstance(package.get("fileSha256"), str):
            await self._check_npm_file(plan, str(package["fileSha256"]), place)
        await self._run(install_command, place)
        root = place / "node_modules" / plan.identifier
        about = json.loads(await asyncio.to_thread((root / "package.json").read_text))
        node = shutil.which("node", path=child_environment("npm", {})["PATH"])
        if node is None:
            raise _Failed("`node` was not found on PATH: install Node.js")
        return [os.path.realpath(node), str(root / _node_script(about, plan.identifier))], str(about["version"]), []

    async def _check_npm_file(self, plan: Plan, given: str, place: Path) -> None:
        exact = f"{plan.identifier}@{plan.version}" if plan.version else plan.identifier
        await self._run(["npm", "pack", exact, "--ignore-scripts", "--silent", "--pack-destination", str(place)], place)
        packed = next(place.glob("*.tgz"))
        found = hashlib.sha256(await asyncio.to_thread(packed.read_bytes)).hexdigest()
        packed.unlink()
        if found != given:
            raise _Failed(f"{exact} has the SHA-256 {found}; the catalog gives {given}")

    async def _from_oci(self, wish: Wish, plan: Plan, package: Mapping[str, Any]) -> _Made:
        engine = _engine()
        if engine is None:
            raise _Failed("images need a container engine, and neither docker nor podman was found on PATH")
        reference = _image(plan.identifier, plan.version)
        await self._run([engine, "pull", reference], self._folder.parent)
        if "@sha256:" not in reference:
            said = await self._run([engine, "image", "inspect", "--format", "{{index .RepoDigests 0}}", reference],
                                   self._folder.parent, keep_stdout=True)  # fmt: skip
            reference = said.strip()
            if "@sha256:" not in reference:
                raise _Failed(f"{plan.identifier} has no digest to be pinned to")
        environment = _environment(package, wish.env, Path("/tmp"))  # noqa: S108
        args = ["run", "--interactive", "--rm", "--init", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
                "--read-only", "--tmpfs", "/tmp:size=256m", "--memory", f"{self.rules.memory_mb}m",  # noqa: S108
                "--pids-limit", str(self.rules.processes)]  # fmt: skip
        if not plan.network:
            args += ["--network", "none"]
        for name in environment:
            args += ["--env", name]
        spec = UpstreamSpec(
            command=engine, args=(*args, reference, *_arguments(package, wish.arguments)), env=environment,
            description=wish.entry.description[:500], tags=("installed",),
        )  # fmt: skip
        return _Made(spec, reference.rpartition("@")[2], [])

    async def _look_at_remote(self, wish: Wish, plan: Plan) -> _Made:
        remote = _remote(wish.entry) or {}
        await _check_address(plan.identifier, self.rules.private_addresses)
        headers = _headers(remote, wish.env)
        http = self._upstreams.http if self.rules.private_addresses else self._upstreams.http_public
        async with http.get(plan.identifier, allow_redirects=False) as response:
            if 300 <= response.status < 400:
                raise _Failed(f"it redirects to {response.headers.get('location')}: nobody has approved that address")
        spec = UpstreamSpec(
            url=plan.identifier, headers=headers, public_only=not self.rules.private_addresses,
            description=wish.entry.description[:500], tags=("installed",),
        )  # fmt: skip
        return _Made(spec, plan.version or "", [])

    async def _run(self, command: list[str], folder: Path, *, keep_stdout: bool = False) -> str:
        """Run a program to its end, below a reaper; what it prints is kept for the error.

        Raises:
            _Failed: it ended with another code than 0, or did not end in time.
        """
        output = _Output()
        env = _fetch_environment(command[0])
        await spawn(output, command[0], tuple(command[1:]), env=env, cwd=str(folder), pipes=True)
        try:
            async with asyncio.timeout(self.rules.fetch_timeout_seconds):
                await asyncio.shield(output.exited)
        except TimeoutError:
            said = f"it did not end within {self.rules.fetch_timeout_seconds:g} s"
            raise _Failed(said, command, output.lines()) from None
        finally:
            await stop(output)
        if (code := output.transport.get_returncode() if output.transport is not None else 1) != 0:
            raise _Failed(f"it ended with code {code}", command, output.lines())
        return output.stdout.decode(errors="replace") if keep_stdout else ""

    # Proving

    async def _prove(
        self, wish: Wish, plan: Plan, place: Path, made: _Made, tell: Progress
    ) -> tuple[_Made, list[str], Proof | None]:
        """Start it on trial; a Python server that dies as old ones do on the SDK 2.x gets the SDK 1.x, once."""
        try:
            tools, proof = await self._try(made.spec, tell)
        except _Failed as exc:
            if plan.kind != "pypi" or not OLD_SDK.search("\n".join(exc.output)) or "mcp" not in "\n".join(exc.output):
                raise
            tell("fetch", "it was written for an older SDK: fetching it with mcp<2")
            made = await self._fetch(wish, plan, place, "mcp<2")
            made.notes.append("runs with mcp<2")
            tell("prove", "starting it on trial again")
            tools, proof = await self._try(made.spec, tell)
        return made, tools, proof

    async def _try(self, spec: UpstreamSpec, tell: Progress) -> tuple[list[str], Proof | None]:
        stderr: list[Any] = []
        spec = spec.model_copy(update={"start_timeout_seconds": self.rules.start_timeout_seconds})
        try:
            async with self._upstreams.trial(spec, stderr.append) as (connection, listed):
                names = [str(tool["name"]) for tool in listed if isinstance(tool.get("name"), str)]
                if not names:
                    raise _Failed("it has no tools")
                proof = await self._call_one(connection, listed, tell)
                return names, proof
        except (ToolScoreError, ConnectionLost, RemoteError, CommandNotFound, OSError) as exc:
            lines = [str(line) for line in stderr[0]] if stderr else []
            said = str(exc)
            if isinstance(exc, TimeoutError):
                said = f"no answer within {self.rules.start_timeout_seconds:g} s"
            if spec.confine is not None and not spec.confine.network and NO_NETWORK.search("\n".join(lines)):
                said += "; it seems to want the network, and has none: install it with `network`"
            if lines and lines[-1].startswith("bwrap:"):
                said = f"it cannot be confined here ({lines[-1]}): see `discovery.confine` in toolscore.yaml"
            raise _Failed(f"it does not start: {said}", [spec.command or spec.url or "", *spec.args], lines) from exc

    async def _call_one(self, connection: Connection, tools: list[dict[str, Any]], tell: Progress) -> Proof | None:
        """Call one read-only tool, if there is one whose arguments can be inferred."""
        for tool in tools:
            annotations = tool.get("annotations")
            if not isinstance(annotations, dict) or annotations.get("readOnlyHint") is not True:
                continue
            arguments = _inferred(tool.get("inputSchema"))
            if arguments is None:
                continue
            tell("prove", f"calling {tool['name']}")
            began = time.perf_counter()
            fits: bool | None = None
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    raw = await connection.request("tools/call", {"name": tool["name"], "arguments": arguments})
                result = decode(raw)
                ok = isinstance(result, dict) and not result.get("isError")
                if ok and isinstance(tool.get("outputSchema"), dict):
                    fits = isinstance(result.get("structuredContent"), dict)
            except (RemoteError, TimeoutError, ValueError):
                ok = False
            return Proof(str(tool["name"]), ok, round((time.perf_counter() - began) * 1000, 3), fits)
        return None


class _Failed(Exception):
    """A step failed, with its command and the last lines of its output."""

    def __init__(self, message: str, command: list[str] | None = None, output: list[str] | None = None) -> None:
        super().__init__(message)
        self.command = command or []
        self.output = (output or [])[-OUTPUT_LINES:]


def _as_failure(exc: Exception, step: str, plan: Plan) -> ToolScoreError:
    if isinstance(exc, _Failed):
        said = f"; its last line: {exc.output[-1].strip()}" if exc.output else ""
        return InstallFailed(
            f"{plan.name} could not be installed (step `{step}`): {exc}{said}. Nothing of it is left",
            data={"step": step, "command": exc.command, "output": exc.output},
        )
    if isinstance(exc, Conflict | NotAllowedByPolicy | InvalidArguments):
        return exc
    return InstallFailed(
        f"{plan.name} could not be installed (step `{step}`): {str(exc) or type(exc).__name__}. Nothing of it is left",
        data={"step": step, "command": [], "output": []},
    )


class _Output(ChildProtocol):
    """What a program prints: the end of it, and all of a short stdout."""

    def __init__(self) -> None:
        super().__init__()
        self.stdout = b""

    def stdout_received(self, data: bytes) -> None:
        self.stdout = (self.stdout + data)[-64 * 1024 :]

    def lines(self) -> list[str]:
        said = [line for line in self.stdout.decode(errors="replace").splitlines() if line.strip()]
        self.exit_reason()  # takes in an unfinished line
        return (said + list(self.stderr))[-OUTPUT_LINES:]


# Commands


def _pypi_commands(place: Path, rules: InstallRules) -> list[list[str]]:
    python = str(place / "env" / "bin" / "python")
    wheels = [] if rules.source_builds else ["--only-binary", ":all:"]
    lock = str(place / "requirements.lock")
    return [
        ["uv", "venv", "--quiet", "--no-project", "--python", os.path.realpath(sys.executable), str(place / "env")],
        ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--generate-hashes",
         *wheels, "--python", python, str(place / "requirements.in"), "--output-file", lock],
        ["uv", "pip", "sync", "--quiet", "--require-hashes", *wheels, "--python", python, lock],
    ]  # fmt: skip


def _npm_commands(place: Path) -> list[list[str]]:
    common = ["--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev", "--git=false", "--prefix", str(place)]
    return [["npm", "install", "--package-lock-only", *common], ["npm", "ci", *common]]


def _engine() -> str | None:
    return next((found for name in ("docker", "podman") if (found := shutil.which(name)) is not None), None)


def _fetch_environment(command: str) -> dict[str, str]:
    """Fetchers get the user's own registry configuration, and nothing that points into our environment."""
    return {"VIRTUAL_ENV": "", "UV_NO_PROGRESS": "1"} if command == "uv" else {"CI": "1"}


def _interpreters(kind: Kind) -> tuple[str, ...]:
    """The program that runs the server."""
    if kind != "npm":
        return ()
    node = shutil.which("node", path=child_environment("npm", {})["PATH"])
    return (os.path.realpath(node),) if node is not None else ()


def _distribution(site: Path, identifier: str) -> Distribution | None:
    wanted = re.sub(r"[-_.]+", "-", identifier).lower()
    for one in distributions(path=[str(site)]):
        if re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower() == wanted:
            return one
    return None


def _python_command(found: Distribution, identifier: str, folder: Path) -> list[str]:
    """The console script of a package that is its server."""
    points = [point.name for point in found.entry_points if point.group == "console_scripts"]
    scripts = sorted(name for name in points if PYPI_NAME.fullmatch(name))
    same = [name for name in scripts if name.replace("_", "-").lower() == identifier.replace("_", "-").lower()]
    chosen = same or (scripts if len(scripts) == 1 else [name for name in scripts if "mcp" in name.lower()])
    if chosen:
        return [str(folder / chosen[0])]
    module = identifier.replace("-", "_")
    names = {str(path) for path in found.files or []}
    if f"{module}/__main__.py" in names:
        return [str(folder / "python"), "-m", module]
    raise _Failed(f"{identifier} has no command to start it with" + (f": {', '.join(scripts)}" if scripts else ""))


def _node_script(about: Mapping[str, Any], identifier: str) -> str:
    """The file that a package's `bin` names."""
    scripts = about.get("bin")
    base = identifier.rpartition("/")[2]
    if isinstance(scripts, dict) and scripts:
        scripts = scripts.get(base) or next(iter(scripts.values()))
    if not isinstance(scripts, str):
        raise _Failed(f"{identifier} has no command to start it with")
    if not SCRIPT.fullmatch(scripts) or ".." in scripts.split("/"):
        raise _Failed(f"{identifier} names {scripts!r:.80} as its command, which is no file of its own")
    return scripts


# Checks


def _check_names(kind: Kind, identifier: str, version: str | None) -> None:
    pattern = {"pypi": PYPI_NAME, "npm": NPM_NAME, "oci": OCI_NAME}.get(kind)
    if pattern is not None and not pattern.fullmatch(identifier):
        raise InvalidArguments(f"{identifier!r:.120} is no name of a package ({kind})")
    if version is not None and (not isinstance(version, str) or not VERSION.fullmatch(version)):
        raise InvalidArguments(f"{version!r:.80} is no exact version")


def _refuse_risky(package: Mapping[str, Any]) -> None:
    for argument in package.get("runtimeArguments") or []:
        said = str(argument.get("name") or argument.get("value") or "") if isinstance(argument, dict) else str(argument)
        if said not in HARMLESS:
            raise NotAllowedByPolicy(
                f"its catalog entry passes {said!r:.80} to the program that runs it: such arguments are refused, since "
                "they can mount folders, fetch from elsewhere or run a shell",
                suggestion="attach the server by hand, with the command you trust: POST /api/v1/servers",
            )


def _check_variable(name: str, value: str, secrets: Collection[str]) -> None:
    if not VARIABLE.fullmatch(name.replace("-", "_")) or STEERING.fullmatch(name):
        raise InvalidArguments(f"{name!r:.80} is no variable that a server may be given")
    secret = name in secrets or re.search(r"(?i)(key|token|secret|passw|passphrase|credential|authorization)", name)
    if secret and "${env:" not in value and "${file:" not in value:
        raise InvalidArguments(
            f"{name} is a secret: give a reference, not the value", suggestion=f"${{env:{name}}} or ${{file:/path}}"
        )


def _remote(entry: Entry) -> dict[str, Any] | None:
    return next((one for one in entry.remotes if one.get("type") == "streamable-http" and one.get("url")), None)


def _check_url(url: str, private: bool) -> None:
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


async def _check_address(url: str, private: bool) -> None:
    """Every address of the host is a public one.

    Raises:
        _Failed: it is not, or has none.
    """
    parts = urlsplit(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise _Failed(f"{parts.hostname} cannot be found: {exc}") from exc
    for *_, address in found:
        if not private and not ipaddress.ip_address(address[0]).is_global:
            raise _Failed(f"{parts.hostname} is {address[0]}, a private address, and these are not allowed")


def _fits(rule: InstallRule, wish: Wish, kind: Kind, identifier: str, version: str | None) -> bool:
    entry = wish.entry
    if rule.publisher is not None and not (entry.vouched and fnmatch.fnmatchcase(entry.publisher, rule.publisher)):
        return False
    asked = [value for value in (rule.registry, rule.package, rule.name, rule.publisher) if value is not None]
    if not asked or (wish.network and not rule.network):
        return False
    return (
        rule.registry in (None, kind)
        and (rule.package is None or fnmatch.fnmatchcase(identifier, rule.package))
        and (rule.name is None or fnmatch.fnmatchcase(entry.name, rule.name))
        and rule.version in (None, version)
    )


def _arguments(package: Mapping[str, Any], given: Mapping[str, str]) -> tuple[str, ...]:
    """The server's own command line, as its catalog entry has it.

    Raises:
        InvalidArguments: a required one is not given.
    """
    line: list[str] = []
    for argument in package.get("packageArguments") or []:
        if not isinstance(argument, dict):
            continue
        name = _plain(argument.get("name") or argument.get("valueHint")) or ""
        fixed, default = argument.get("value"), argument.get("default")
        value = _plain(fixed) if fixed is not None else given.get(name) or _plain(default)
        if value is None and argument.get("isRequired"):
            raise InvalidArguments(f"it needs the argument {name}: {argument.get('description') or ''}".rstrip(": "))
        if argument.get("type") == "named":
            if value is not None:
                line += [name, value] if value else [name]
        elif value is not None:
            line.append(value)
    return tuple(line)


def _plain(value: Any) -> str | None:
    """A value of a catalog's: it may not refer to what is ours.

    Raises:
        NotAllowedByPolicy: it does.
    """
    if value is None:
        return None
    if "${" in str(value):
        raise NotAllowedByPolicy(f"its catalog entry refers to a variable of this machine: {value!r:.80}")
    return str(value)


def _headers(remote: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """The headers that its catalog entry sets, and those that were given."""
    headers = {}
    for header in remote.get("headers") or []:
        value = given.get(header["name"]) or _plain(header.get("value")) or _plain(header.get("default"))
        if value:
            headers[header["name"]] = value
    return headers


def _image(identifier: str, version: str | None) -> str:
    """What is pulled."""
    tagged = "@" in identifier or ":" in identifier.rpartition("/")[2]
    return identifier if tagged or not version else f"{identifier}:{version}"


def _environment(package: Mapping[str, Any], given: Mapping[str, str], home: Path) -> dict[str, str]:
    """The variables that its catalog entry sets, and those that were given; `{home}` is the server's own folder."""
    environment = {}
    for variable in package.get("environmentVariables") or []:
        name, value = variable["name"], _plain(variable.get("value", variable.get("default")))
        if value is None or name in given:
            continue
        if not VARIABLE.fullmatch(name) or STEERING.fullmatch(name):
            raise NotAllowedByPolicy(f"its catalog entry sets {name!r:.80}, which steers more than a server")
        environment[name] = value.replace("{home}", str(home))
    return {**environment, **given}


def _inferred(schema: Any) -> dict[str, Any] | None:
    """Arguments that fit a schema without anybody's thinking; `None` where they need it."""
    if not isinstance(schema, dict):
        return {}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    arguments = {}
    for name in schema.get("required") or []:
        about = properties.get(name)
        if not isinstance(about, dict):
            return None
        if "default" in about:
            arguments[name] = about["default"]
        elif "const" in about:
            arguments[name] = about["const"]
        elif isinstance(about.get("enum"), list) and about["enum"]:
            arguments[name] = about["enum"][0]
        elif isinstance(about.get("examples"), list) and about["examples"]:
            arguments[name] = about["examples"][0]
        else:
            return None
    return arguments


def _server_id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2]).strip("-._")[:64] or "server"


async def _remove(place: Path) -> None:
    """Remove the folder of an install; no other."""
    if (place / MARKER).is_file():
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
