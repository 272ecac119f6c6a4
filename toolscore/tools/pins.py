"""Pins: each tool is held to the definition that was seen first, and a change is judged before anybody reads it.

What a tool says of itself goes into a model's context. A server that changes it later (a "rug pull") can break its
callers, or talk to the model behind the user's back. What a change means is judged in `changes`; the
pins are remembered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from typing import Any, Literal

import msgspec
import structlog
from pydantic import Field

from toolscore.core.clock import timestamp
from toolscore.core.errors import Conflict
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Change, Held, definition_hash
from toolscore.core.rules import Rules
from toolscore.stores.behind import WriteBehind
from toolscore.stores.database import Database
from toolscore.tools.changes import classify, find_renamed, first_sight, in_reasons, readable_diff
from toolscore.tools.schemas import problem_of

__all__ = ["Pin", "PinRules", "Pins", "Verdict"]

log = structlog.get_logger(__name__)

Action = Literal["accept", "report", "quarantine"]

SEEN_DIGITS = 12
FEW = 10
"""Changes that are judged at once; more are judged by a thread."""
FEW_BYTES = 32 * 1024
MAX_PINS = 5000
"""Of one server; those that it lists count first."""


class PinRules(Rules):
    """Tools are held to what they said of themselves first: accept, report or quarantine a change."""

    compatible: Action = Field("accept", description="a change that breaks no caller")
    breaking: Action = Field("report", description="one that does")
    suspicious: Action = Field(
        "quarantine",
        description="one that talks to the model, hides characters, names secrets or other servers' tools",
    )
    first: Action = Field("report", description="a new tool that does")


class Pin(msgspec.Struct, kw_only=True):
    """The definition that a tool is held to, and the one that waits for approval."""

    server_id: str
    name: str
    definition: dict[str, Any]
    definition_hash: str
    pinned_at: str
    pinned_by: str
    held: Held | None = None
    version: int = 0
    """How often it was written: a gateway that knows an older one writes nothing over it."""


class Verdict(msgspec.Struct, frozen=True):
    """What to show of a tool, and why it is not what its server says."""

    definition: dict[str, Any]
    definition_hash: str
    held: Held | None = None
    change: Change | None = None
    """Accepted, and worth telling."""
    newly_held: bool = False


class Pins:
    """The pins of all tools. Use as `async with Pins(database) as pins`."""

    def __init__(self, database: Database, rules: PinRules | None = None) -> None:
        self._database = database
        self.rules = rules or PinRules()
        self._pins: dict[str, dict[str, Pin]] = {}
        self.writes = WriteBehind("pins")
        self._to_read = False
        self._taking = False
        """What others pinned is being taken: nothing is written, or two whose servers differ would answer for ever."""
        self._judged: dict[str, dict[tuple[str, str | None, str], Change | None]] = {}

    def use(self, rules: PinRules) -> None:
        """Judge changes by other rules from now on."""
        self.rules = rules

    async def __aenter__(self) -> Pins:
        self._pins = await self._load()
        await self.writes.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.writes.__aexit__(*exc)

    async def _load(self) -> dict[str, dict[str, Pin]]:
        pins: dict[str, dict[str, Pin]] = {}
        for row in await self._database.load_pins():
            pin = Pin(
                server_id=row["server_id"],
                name=row["name"],
                definition=decode(row["definition"].encode()),
                definition_hash=row["definition_hash"],
                pinned_at=row["pinned_at"],
                pinned_by=row["pinned_by"],
                held=msgspec.json.decode(row["held"], type=Held) if row["held"] else None,
                version=row["version"],
            )
            pins.setdefault(pin.server_id, {})[pin.name] = pin
        return pins

    def read_again(self, changed: Callable[[str], None]) -> None:
        """Take what another gateway on the same database pinned, once our own writes are made.

        Args:
            changed: told each server whose tools are held to something else now.
        """

        async def read() -> None:
            self._to_read = False
            before, now = self._pins, await self._load()
            if not self.writes.empty:  # pinned while we read: these come first
                self.read_again(changed)
                return
            self._pins = now
            self._taking = True
            try:
                for server_id in before.keys() | now.keys():
                    if _held_to(before.get(server_id, {})) != _held_to(now.get(server_id, {})):
                        changed(server_id)
            finally:
                self._taking = False

        if not self._to_read:
            self._to_read = True
            self.writes.put(read)

    def find(self, server_id: str, name: str) -> Pin | None:
        """The pin of a tool."""
        return self._pins.get(server_id, {}).get(name)

    async def prepare(
        self, server_id: str, definitions: Iterable[dict[str, Any]], others: Callable[[], Collection[str]]
    ) -> None:
        """Judge what has changed beside the loop, where that is much: comparing texts takes time."""
        of_server = self._pins.get(server_id, {})
        listed = {definition["name"]: definition for definition in definitions}
        changed = [
            (definition, pin)
            for name, definition in listed.items()
            for pin in (of_server.get(name),)
            if pin is None or pin.definition != definition
        ]
        if len(changed) <= FEW and sum(len(encode(definition)) for definition, _ in changed) <= FEW_BYTES:
            return
        gone = [pin.definition for name, pin in of_server.items() if name not in listed]
        joins, names = bool(of_server), others()

        def judge() -> dict[tuple[str, str | None, str], Change | None]:
            return {
                _key(pin, definition, definition_hash(definition)): _change(pin, definition, gone, names, joins)
                for definition, pin in changed
                if problem_of(definition) is None
            }

        self._judged[server_id] = await asyncio.to_thread(judge)

    def review(
        self,
        server_id: str,
        definitions: Iterable[dict[str, Any]],
        others: Callable[[], Collection[str]],
        *,
        trusted: bool = False,
    ) -> dict[str, Verdict]:
        """Judge what a server lists now, and pin what is new. The verdict on each tool, by its name.

        Args:
            others: names of other servers' tools; asked for when something has changed.
            trusted: the server is ours, and says what it likes.
        """
        of_server = self._pins.setdefault(server_id, {})
        listed = {definition["name"]: definition for definition in definitions}
        verdicts: dict[str, Verdict] = {}
        told: list[tuple[str, Verdict]] = []
        written: list[Pin] = []
        fresh: dict[str, Pin] = {}
        gone = [pin for name, pin in of_server.items() if name not in listed]
        before, judged = [pin.definition for pin in gone], self._judged.pop(server_id, {})
        names = cache(others)  # of thousands of tools: made once, and only if anything has changed
        for name, definition in listed.items():
            digest = definition_hash(definition)
            pin = of_server.get(name)
            if pin is not None and pin.definition_hash == digest:
                if pin.held is not None:  # it went back to what it was
                    pin.held = None
                    written.append(pin)
                verdicts[name] = Verdict(pin.definition, digest)
                continue
            if pin is not None and pin.held is not None and pin.held.definition_hash == digest:
                verdicts[name] = Verdict(pin.definition, pin.definition_hash, pin.held)
                continue
            if trusted:
                version = pin.version if pin is not None else 0
                verdict, pin = Verdict(definition, digest), _pin(server_id, definition, digest, version=version)
            else:
                key = _key(pin, definition, digest)
                change = judged[key] if key in judged else _change(pin, definition, before, names(), bool(of_server))
                verdict, pin = self._judge(server_id, pin, definition, digest, change)
            verdicts[name] = verdict
            fresh[name] = pin
            if verdict.change is not None or verdict.newly_held:
                told.append((name, verdict))
            written.append(pin)
        of_server |= fresh
        _log(server_id, told)
        if len(of_server) > max(MAX_PINS, 2 * len(listed)):  # names that come and go
            evicted = [pin.name for pin in sorted(gone, key=lambda one: one.pinned_at)[: len(of_server) - MAX_PINS]]
            for name in evicted:
                del of_server[name]
            if not self._taking:
                self.writes.put(lambda: self._database.delete_pins(server_id, evicted))
        self._save(written)
        return verdicts

    def approve(self, server_id: str, name: str, by: str, seen: str) -> Pin:
        """Hold the tool to the definition that waited from now on.

        Args:
            seen: hash of the definition that was looked at; its first 12 digits will do.

        Raises:
            Conflict: none waits, or another one by now.
        """
        pin = self.find(server_id, name)
        if pin is None or pin.held is None:
            raise Conflict(f"{name!r} of {server_id!r} is not quarantined: there is nothing to approve")
        held = pin.held
        if len(seen) < SEEN_DIGITS or not held.definition_hash.startswith(seen):
            raise Conflict(
                f"the server says something else of {name!r} by now, or another definition was meant: look at it again "
                f"(`toolscore pins diff`), and approve {held.definition_hash[:SEEN_DIGITS]}"
            )
        pin.definition, pin.definition_hash = held.definition, held.definition_hash
        pin.pinned_at, pin.pinned_by, pin.held = timestamp(), by, None
        self._save([pin])
        return pin

    def forget(self, server_id: str) -> None:
        """A server is gone for good: one that comes under its name is another."""
        if self._pins.pop(server_id, None):
            self.writes.put(lambda: self._database.save_pins([], server_id))

    def _judge(
        self, server_id: str, pin: Pin | None, definition: dict[str, Any], digest: str, change: Change | None
    ) -> tuple[Verdict, Pin]:
        name = definition["name"]
        if change is None:
            action: Action = "accept"
        elif pin is None and not self._pins.get(server_id):
            action = self.rules.first
        else:
            action = getattr(self.rules, change.kind)
        if change is not None and action == "quarantine":
            held = Held(definition=definition, definition_hash=digest, change=change, since=timestamp())
            if pin is None:
                stub = {
                    "name": name,
                    "description": "Quarantined: what it says of itself has to be approved first.",
                    "inputSchema": {"type": "object"},
                }
                pin = _pin(server_id, stub, definition_hash(stub), held)
            else:
                pin.held = held
            return Verdict(pin.definition, pin.definition_hash, held, None, newly_held=True), pin
        version = pin.version if pin is not None else 0
        return Verdict(definition, digest, None, change), _pin(server_id, definition, digest, version=version)

    def _save(self, pins: list[Pin]) -> None:
        if not pins or self._taking:
            return
        for pin in pins:
            pin.version += 1
        rows = [
            {
                "version": pin.version,
                "server_id": pin.server_id,
                "name": pin.name,
                "definition": encode(pin.definition).decode(),
                "definition_hash": pin.definition_hash,
                "pinned_at": pin.pinned_at,
                "pinned_by": pin.pinned_by,
                "held": encode(pin.held).decode() if pin.held is not None else None,
            }
            for pin in pins
        ]
        self.writes.put(lambda: self._database.save_pins(rows))


def _held_to(pins: dict[str, Pin]) -> dict[str, tuple[str, str | None]]:
    return {
        name: (pin.definition_hash, pin.held.definition_hash if pin.held is not None else None)
        for name, pin in pins.items()
    }


def _log(server_id: str, told: list[tuple[str, Verdict]]) -> None:
    """Say which definitions changed; of many the first."""
    for name, verdict in told[:FEW]:
        change = verdict.held.change if verdict.held is not None else verdict.change
        if change is None or (verdict.held is None and change.kind == "compatible"):
            continue
        log.warning(
            f"a tool's definition has a {change.kind} change",
            server=server_id, tool=name, quarantined=verdict.held is not None, reasons=list(change.reasons),
        )  # fmt: skip
    if len(told) > FEW:
        log.warning("and more tools of the same server", server=server_id, tools=len(told) - FEW)


def _change(
    pin: Pin | None, definition: dict[str, Any], gone: Sequence[dict[str, Any]], others: Collection[str], joins: bool
) -> Change | None:
    """What a definition means beside the one that is pinned, or beside those that went; pure, and takes time.

    Args:
        joins: the server had tools before.
    """
    if pin is not None:
        return classify(pin.definition, definition, others)
    change = first_sight(definition, others, joins=joins)
    place = find_renamed(definition, gone)
    if place is None:
        return change
    (reason,) = in_reasons([f"it is {gone[place]['name']!r} under another name"])
    found = change.reasons if change is not None else ()
    diff = readable_diff(gone[place], definition)
    return Change(kind="suspicious", reasons=(reason, *found), changed=("name",), diff=diff)


def _key(pin: Pin | None, definition: dict[str, Any], digest: str) -> tuple[str, str | None, str]:
    return definition["name"], pin.definition_hash if pin is not None else None, digest


def _pin(server_id: str, definition: dict[str, Any], digest: str, held: Held | None = None, version: int = 0) -> Pin:
    """A new pin; in the place of one that is kept it goes on from that one's version, or it would not be written."""
    return Pin(
        version=version,
        server_id=server_id,
        name=definition["name"],
        definition=definition,
        definition_hash=digest,
        pinned_at=timestamp(),
        pinned_by="first seen",
        held=held,
    )
