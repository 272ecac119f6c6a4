"""Installing as a transaction: a server is fetched, proves itself and is registered, or nothing of it is left.

A server's files are in one folder. Its row in the table `installs` is written after it has proved itself. A folder
without a row was left by a gateway that died, whatever the moment, and is removed at the next start.

One module: installing and uninstalling hold the same locks, and undo one another's steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from toolscore.core.clock import timestamp
from toolscore.core.errors import (
    Conflict,
    InstallFailed,
    Overloaded,
    ServerNotFound,
    ToolScoreError,
)
from toolscore.core.models import UpstreamSpec
from toolscore.discovery.install.failure import StepFailed, as_error
from toolscore.discovery.install.fetch import ContainerEngine, fetcher_of, remove_image
from toolscore.discovery.install.place import held, is_marked, remove
from toolscore.discovery.install.plan import Plan, check_allowed, plan_for
from toolscore.discovery.install.policy import InstallRules, Kind
from toolscore.discovery.install.prove import Proof, Proved, Tell, prove
from toolscore.discovery.install.wish import Wish, wish_for
from toolscore.stores.database import Database, caught_up, or_overloaded
from toolscore.stores.errors import StoreError
from toolscore.upstreams import UpstreamPool

__all__ = ["Installed", "Installer"]

log = structlog.get_logger(__name__)

AT_ONCE = 2
"""Installs at the same time: each may use a core and the network."""
MAX_WAITING = 20
UP_SECONDS = 60.0
"""How long a server that has proved itself may take to come up again."""
OTHER_ID = "give another with `server_id` (`--as` on the command line)"


class Installed(msgspec.Struct, frozen=True):
    """A server that was installed.

    Attributes:
        version: of an image its digest.
        tools: their full names.
        proof: `None`: no tool could be called on trial.
        seconds: that the install took.
    """

    server_id: str
    name: str
    kind: Kind
    identifier: str
    version: str
    tools: list[str]
    proof: Proof | None = None
    notes: list[str] = []
    seconds: float = 0.0


class Installer:
    """Use as `async with Installer(…) as installer`. Entering removes what an unfinished install left.

    Args:
        folder: where servers are installed; absolute.
        attach, detach: add and remove an upstream for good.
        tools_of: the full names of a server's tools.
        on_proved: is told `(server_id, proof)`, for the first score.
        publish: `(event_type, **data)`.
        reserved: ids that no server may be installed under.
        ours: the gateway's own folders beside that around `folder`; no server is given one.
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
        reserved: Collection[str] = (),
        ours: Sequence[Path] = (),
        rules: InstallRules | None = None,
        is_off: Callable[[str], bool] = lambda server_id: False,
    ) -> None:
        self._folder = folder
        self._database = database
        self._upstreams = upstreams
        self._attach = attach
        self._detach = detach
        self._tools_of = tools_of
        self._on_proved = on_proved
        self._publish = publish
        self._reserved = frozenset(reserved)
        self._ours = tuple(ours)
        self._rules = rules or InstallRules()
        self._is_off = is_off
        self._places = asyncio.Semaphore(AT_ONCE)
        self._running: dict[str, tuple[Wish, asyncio.Task[Installed]]] = {}
        self._leaving: set[str] = set()
        self._installed: dict[str, Installed] = {}
        self._engine = ContainerEngine()

    async def __aenter__(self) -> Installer:
        installs = await self._database.load_installs()  # first: one that is finished meanwhile is no loose end
        attached = {row["server_id"] for row in await self._database.load_servers()}
        for row in installs:
            if row["server_id"] in attached:
                self._installed[row["server_id"]] = msgspec.json.decode(row["record"], type=Installed)
            else:
                await self._database.delete_install(row["server_id"])
        if self._folder.is_dir():
            for place in self._folder.iterdir():
                if place.name not in self._installed and is_marked(place):
                    with held(place) as ours:
                        if ours and not await self._is_there(place.name):
                            log.warning("an install that was not finished is removed", server=place.name)
                            await remove(place)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def read_again(self) -> None:
        """Take what another gateway on the same database installed and uninstalled.

        Raises:
            StoreError.
        """
        rows = {row["server_id"]: row for row in await self._database.load_installs()}
        for server_id in self._installed.keys() - rows.keys() - self._leaving:
            del self._installed[server_id]
            place = self._folder / server_id
            with held(place) as ours:
                if ours:  # else somebody installs it anew
                    await remove(place)
        for server_id, row in rows.items():
            if server_id not in self._running and server_id not in self._leaving:
                self._installed[server_id] = msgspec.json.decode(row["record"], type=Installed)

    def use(self, rules: InstallRules) -> None:
        """Put other rules in force. An install that runs keeps the rules that its plan was made with."""
        self._rules = rules

    # What is installed

    def __iter__(self) -> Iterator[Installed]:
        return iter(list(self._installed.values()))

    def find(self, name: str) -> Installed | None:
        """Look up an installed server by its id, or by its name in the catalog."""
        return self._installed.get(name) or next((one for one in self if one.name == name), None)

    def holds(self, server_id: str) -> bool:
        """Whether an id belongs to an installed server, or to one that is being installed or uninstalled."""
        return server_id in self._installed or server_id in self._running or server_id in self._leaving

    def done(self, wish: Wish, plan: Plan) -> Installed | None:
        """Say whether a wish is fulfilled already.

        Returns:
            The installed server; `None`: it is not installed.

        Raises:
            Conflict: its id belongs to another server.
        """
        done, running = self._installed.get(plan.server_id), self._running.get(plan.server_id)
        off = self._is_off(plan.server_id)
        taken = off or self._upstreams.find(plan.server_id) is not None or plan.server_id in self._leaving
        if running is not None:
            if msgspec.structs.replace(running[0], approved=True) != msgspec.structs.replace(wish, approved=True):
                raise Conflict(f"something else is being installed as {plan.server_id!r}: {OTHER_ID}")
        elif done is not None and off:
            raise Conflict(
                f"{done.name} is installed as {plan.server_id!r} and disabled: enable it, or uninstall it first"
            )
        elif done is not None and taken:
            same = (done.name, done.kind, done.identifier) == (plan.name, plan.kind, plan.identifier)
            if (
                same
                and plan.version in (None, done.version)
                and not (wish.env or wish.arguments or wish.folders or wish.network)
            ):
                return done
            raise Conflict(f"{done.name} {done.version} is installed as {plan.server_id!r}: uninstall it first")
        elif taken:
            raise Conflict(f"server id {plan.server_id!r} is taken: {OTHER_ID}")
        return None

    # Installing

    async def plan(self, wish: Wish) -> tuple[Wish, Plan]:
        """Say what installing a server would do; nothing is done.

        Returns:
            The wish as this machine can fulfil it, and its plan.

        Raises:
            InvalidArguments, NotAllowedByPolicy: as `plan_for`.
        """
        images = any(one.get("registryType") == "oci" for one in wish.entry.packages)
        error = await self._engine.error() if images else None
        there = next((one for one in self if one.name == wish.entry.name and one.kind == "oci"), None)
        wish = wish_for(wish, containers=error is None or there is not None)
        plan = plan_for(wish, self._rules, self._folder, self._reserved, ours=self._ours, engine_error=error)
        return wish, plan

    async def install(
        self, wish: Wish, on_progress: Tell = lambda step, message: None, *, digest: str | None = None
    ) -> Installed:
        """Install a server. Equal wishes at the same time are one install; one that fails leaves nothing.

        Args:
            on_progress: is told each step, in words.
            digest: of the plan that somebody saw; `None`: nobody did.

        Raises:
            NotAllowedByPolicy: no rule allows it, and it is not approved. InvalidArguments: it needs more.
            Conflict: its id is taken, or the plan is another by now. Overloaded: too many installs wait.
            InstallFailed: with the step, the command and its last output.
        """
        wish, plan = await self.plan(wish)
        if digest not in (None, plan.digest):
            raise Conflict(f"the plan for {plan.name} is another by now: look at it again", data={"plan": plan.digest})
        await caught_up(self._database, self.read_again)
        if (done := self.done(wish, plan)) is not None:
            return done
        check_allowed(wish, plan)
        running = self._running.get(plan.server_id)
        if running is None:
            if len(self._running) >= MAX_WAITING:
                raise Overloaded(f"{MAX_WAITING} installs are under way: try again later", retry_after_seconds=60)
            task = asyncio.create_task(self._install(wish, plan, self._rules, on_progress))
            running = self._running[plan.server_id] = (wish, task)
            task.add_done_callback(lambda _: self._running.pop(plan.server_id, None))
        try:
            return await asyncio.shield(running[1])
        except asyncio.CancelledError:
            if not running[1].cancelled():
                raise
            raise InstallFailed(f"the gateway is shutting down: the install of {plan.name} was undone") from None

    async def stop(self) -> None:
        """End and undo the installs that run; their callers get an error."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _install(self, wish: Wish, plan: Plan, rules: InstallRules, on_progress: Tell) -> Installed:
        place = self._folder / plan.server_id
        async with self._places:
            with held(place) as ours:
                if not ours or await self._is_there(plan.server_id):
                    raise Conflict(f"{plan.server_id!r} was installed by another worker of this gateway just now")
                return await self._install_at(place, wish, plan, rules, on_progress)

    async def _is_there(self, server_id: str) -> bool:
        """Whether another process of this machine, with the same folder, has installed it."""
        if not self._database.shared or not is_marked(self._folder / server_id):
            return False
        with contextlib.suppress(StoreError):
            return any(row["server_id"] == server_id for row in await self._database.load_installs())
        return False

    async def _install_at(
        self, place: Path, wish: Wish, plan: Plan, rules: InstallRules, on_progress: Tell
    ) -> Installed:
        about = {"server_id": plan.server_id, "name": plan.name, "registry": plan.kind, "package": plan.identifier}
        started = time.monotonic()
        step = "fetch"
        attached: list[str] = []

        def tell(now: str, message: str) -> None:
            nonlocal step
            step = now
            log.info("installing", step=now, message=message, server=plan.server_id)
            self._publish("install_progress", **about, step=now, message=message)
            on_progress(now, message)

        self._publish("install_started", **about, version=plan.version)
        try:
            proved = await self._fetch_and_prove(wish, plan, rules, place, tell)
            tell("register", f"{len(proved.tools)} tools")
            result = Installed(
                server_id=plan.server_id, name=plan.name, kind=plan.kind, identifier=plan.identifier,
                version=proved.fetched.version, tools=proved.tools, proof=proved.proof,
                notes=list(proved.fetched.notes), seconds=round(time.monotonic() - started, 2),
            )  # fmt: skip
            result = await self._register(result, proved.fetched.spec, attached)
        except BaseException as exc:
            await asyncio.shield(self._roll_back(plan.server_id, place, attached=bool(attached)))
            if not isinstance(exc, Exception):
                self._publish("install_failed", **about, step=step, reason="the gateway was stopped")
                raise
            failed = as_error(exc, step, plan)
            self._publish("install_failed", **about, step=step, reason=failed.message)
            log.error("an install failed", server=plan.server_id, step=step, error=failed.message)
            raise failed from exc
        if proved.proof is not None:
            self._on_proved(plan.server_id, proved.proof)
        log.info("installed", server=plan.server_id, version=result.version, tools=len(proved.tools))
        return result

    async def _fetch_and_prove(self, wish: Wish, plan: Plan, rules: InstallRules, place: Path, tell: Tell) -> Proved:
        fetcher = fetcher_of(plan.kind, rules, self._upstreams.http, self._upstreams.http_public)
        tell("fetch", f"fetching {plan.identifier}" + (f" {plan.version}" if plan.version else ""))
        fetched = await fetcher.fetch(wish, plan, place)
        tell("prove", "starting it on trial")
        old_sdk = (lambda: fetcher.fetch(wish, plan, place, ("mcp<2",))) if plan.kind == "pypi" else None
        return await prove(fetched, self._upstreams.trial, rules.start_timeout_seconds, tell, old_sdk)

    async def _register(self, result: Installed, spec: UpstreamSpec, attached: list[str]) -> Installed:
        """Store it and attach it.

        Args:
            attached: gets the id as soon as the upstream is ours.
        """
        row = {
            "server_id": result.server_id,
            "name": result.name,
            "record": msgspec.json.encode(result).decode(),
            "installed_at": timestamp(),
        }
        try:
            await self._database.save_install(row)
        except StoreError as exc:
            raise StepFailed(f"the database does not take it: {exc}") from exc
        await self._attach(result.server_id, spec)
        attached.append(result.server_id)
        try:
            async with asyncio.timeout(UP_SECONDS):
                await self._upstreams.get(result.server_id).wait_up()
        except TimeoutError:
            raise StepFailed(f"it did not come up within {UP_SECONDS:g} s") from None
        named = msgspec.structs.replace(result, tools=self._tools_of(result.server_id))
        self._installed[result.server_id] = named
        with contextlib.suppress(StoreError):  # the row is there, with the server's own names of its tools
            await self._database.save_install({**row, "record": msgspec.json.encode(named).decode()})
        return named

    # Uninstalling

    async def uninstall(self, name: str) -> Installed:
        """Remove an installed server and everything that belongs to it.

        Args:
            name: its id, or its name in the catalog.

        Returns:
            What was installed.

        Raises:
            ServerNotFound: no such server was installed. Conflict: the name is that of several. Overloaded: the
                database refuses; then all of it is there as before, or without its upstream.
        """
        await caught_up(self._database, self.read_again)
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
            place = self._folder / found.server_id
            with held(place) as ours:
                if not ours:
                    raise Conflict(f"{found.server_id!r} is being installed by another worker of this gateway")
                await self._remove(found.server_id, place)
        finally:
            self._leaving.discard(found.server_id)
        if found.kind == "oci":
            seconds = self._rules.fetch_timeout_seconds
            await remove_image(found.identifier, found.version, self._folder.parent, seconds)
        return found

    async def _remove(self, server_id: str, place: Path) -> None:
        """Remove a server; its files last, once nobody will look for them any more."""
        with contextlib.suppress(ServerNotFound):
            await self._detach(server_id)
        with or_overloaded(f"{server_id!r} was not uninstalled, since the database refuses the change"):
            await self._database.delete_install(server_id)
            await self._database.delete_server(server_id)
        self._installed.pop(server_id, None)
        await remove(place)

    async def _roll_back(self, server_id: str, place: Path, *, attached: bool = True) -> None:
        """Remove what an install that failed has left; as much as can be.

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
                await self._database.delete_server(server_id)  # the configuration may have an entry of that id by now
        await remove(place)
