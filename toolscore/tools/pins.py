"""Pins: each tool is held to the definition that was seen first, and a change is judged before anybody reads it.

What a tool says of itself goes into a model's context. A server that changes it later (a "rug pull") can break its
callers, or talk to the model behind the user's back. `classify` is pure; `Pins` remembers.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from operator import gt, lt
from typing import Any, Literal

import msgspec
import structlog
from pydantic import Field

from toolscore.core.errors import Conflict
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Change, Held, definition_hash, timestamp
from toolscore.core.rules import Rules
from toolscore.stores import Database, WriteBehind

__all__ = ["Pin", "PinRules", "Pins", "Verdict", "classify", "first_sight", "readable_diff"]

log = structlog.get_logger(__name__)

Action = Literal["accept", "report", "quarantine"]

MAX_DIFF_LINES = 2000
DIFF_WIDTH = 120
"""Longer lines are broken, so that no change hides behind the end of one."""
MAX_COMPARED_LINES = 3000
MAX_REASONS = 8
MAX_REASON = 300
SEEN_DIGITS = 12
MAX_PINS = 5000
"""Of one server; those that it lists count first."""
MAX_DEPTH = 100
MAX_COMPARED_TEXT = 500

HIDDEN = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2800\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
"""Characters that a reader does not see, or that turn the order of what he sees."""

INSTRUCTIONS = re.compile(
    r"""
    \b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:previous|prior|above|earlier|all|any|other|system|user)\b
    | \b(?:do\s+not|don't|never|without)\s+(?:\w+\s+){0,3}?
      (?:tell|telling|mention|mentioning|inform|informing|notify|notifying|reveal|revealing|ask|asking|show|showing)\b
      [^.\n]{0,30}\b(?:user|human|them|anyone|operator|this)\b
    | </?\s*(?:important|system|instructions?|secret|assistant|user|admin|hidden|critical)\s*>
    | \[/?(?:INST|SYSTEM|IMPORTANT)\] | <\|[a-z_]+\|>
    | \bsystem\s+prompt\b | \byou\s+are\s+(?:now\s+)?(?:an?|the)\b
    | \bas\s+an?\s+(?:ai|llm|language\s+model|assistant)\b
    | (?<!if\ )(?<!when\ )\b(?:you|the\s+(?:model|assistant|agent|llm|ai))\s+(?:must|should|shall|need\s+to|have\s+to)\b
    | \b(?:before|after|whenever|every\s+time)\b[^.\n]{0,40}\b(?:tool|tools|call|calling|function)\b[^.\n]{0,60}
      \b(?:read|call|use|invoke|send|run|execute|pass|include)\b
    | \balways\s+(?:call|use|invoke|prefer|send|include|pass|read|run)\b
    | \b(?:secretly|covertly)\b
    | \bsend\b[^.\n]{0,60}(?:https?://|\b[\w.+-]{1,64}@[\w-]{1,64}\.\w)
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Words that talk to the model instead of describing the tool."""

SECRETS = re.compile(
    r"(?:~|/root|/home/\w+)?/?\.(?:ssh|aws|gnupg|kube|netrc|npmrc|pypirc|docker/config)\b|\bid_(?:rsa|ed25519|ecdsa)\b"
    r"|/etc/(?:passwd|shadow)|(?<![\w/])\.env\b|\bmcp(?:_servers)?\.json\b"
    r"|\b(?:private|api|access|secret|ssh)[ _-]?(?:key|token)s?\b|\bpasswords?\b|\bcredentials?\b|\bpassphrases?\b"
    r"|\benv(?:ironment)?\s+variables?\b|\bcookies?\b|\bseed\s+phrase\b|/proc/self/environ"
    r"|\b[A-Z0-9_]*_(?:SECRET|TOKEN|KEY|PASSWORD|CREDENTIALS)(?:_[A-Z0-9_]*)?\b|\brun\s+`?env\b",
    re.IGNORECASE,
)


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


class Verdict(msgspec.Struct, frozen=True):
    """What to show of a tool, and why it is not what its server says."""

    definition: dict[str, Any]
    definition_hash: str
    held: Held | None = None
    change: Change | None = None
    """Accepted, and worth telling."""
    newly_held: bool = False


def classify(old: Mapping[str, Any], new: Mapping[str, Any], others: Collection[str] = ()) -> Change | None:
    """What kind of change it is; `None`: there is none.

    Args:
        old, new: definitions of a tool (MCP `Tool`).
        others: names of other servers' tools.
    """
    if old == new:
        return None
    suspicious = _suspicious(old, new, others)
    breaking = _breaking(old, new)
    kind: Literal["compatible", "breaking", "suspicious"] = (
        "suspicious" if suspicious else "breaking" if breaking else "compatible"
    )
    reasons = _readable([*suspicious, *breaking])
    changed = tuple(sorted(str(key) for key in {*old, *new} if old.get(key) != new.get(key)))
    return Change(kind=kind, reasons=reasons, changed=changed, diff=readable_diff(old, new))


def first_sight(definition: Mapping[str, Any], others: Collection[str] = (), *, joins: bool = False) -> Change | None:
    """What is suspicious about a tool that was not there before; `None`: nothing.

    Args:
        joins: its server has been here for a while: then it is held to more.
    """
    reasons = _suspicious({}, definition, others, secrets=joins)
    if not reasons:
        return None
    diff = readable_diff({}, definition)
    return Change(kind="suspicious", reasons=_readable(reasons), changed=(), diff=diff)


def _readable(reasons: list[str]) -> tuple[str, ...]:
    """Reasons for people: not too many, not too long, with nothing hidden in them."""
    return tuple(_shown(reason)[:MAX_REASON] for reason in reasons[:MAX_REASONS])


def readable_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A unified diff of two JSON objects, with what a reader would not see written out (`\\u202e`)."""
    before, after = _lines(old), _lines(new)
    if len(before) + len(after) > MAX_COMPARED_LINES:
        before, after = _differing_middle(before, after)
    kept = list(difflib.unified_diff(before, after, "pinned", "now", lineterm="", n=2))
    if len(kept) > MAX_DIFF_LINES:
        kept[MAX_DIFF_LINES:] = [f"… and {len(kept) - MAX_DIFF_LINES} more lines: do not approve what you cannot read"]
    return "\n".join(kept)


def _differing_middle(before: list[str], after: list[str]) -> tuple[list[str], list[str]]:
    """What is left without the lines that both begin and end with: comparing all with all would take too long."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    middle = before[start : len(before) - end], after[start : len(after) - end]
    return middle[0][:MAX_COMPARED_LINES], middle[1][:MAX_COMPARED_LINES]


def _lines(value: Mapping[str, Any]) -> list[str]:
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    lines = [_shown(line) for line in text.splitlines()] if value else []
    return [line[at : at + DIFF_WIDTH] for line in lines for at in range(0, max(1, len(line)), DIFF_WIDTH)]


def _shown(text: str) -> str:
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """All text of a definition that a model may read, keys too."""
    if isinstance(value, str):
        yield value
    elif depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            for key, member in value.items():
                yield str(key)
                yield from _texts(member, depth + 1)
        elif isinstance(value, list | tuple):
            for member in value:
                yield from _texts(member, depth + 1)


def _suspicious(
    old: Mapping[str, Any], new: Mapping[str, Any], others: Collection[str], *, secrets: bool = True
) -> list[str]:
    """What the new definition says and the old one did not."""
    known = set(_texts(old))
    before = "\n".join(known)
    fresh = [text for text in dict.fromkeys(_texts(new)) if text not in known]
    reasons: list[str] = []
    hidden = {found for text in fresh for found in HIDDEN.findall(text)} - set(HIDDEN.findall(before))
    if hidden:
        shown = ", ".join(sorted(f"U+{ord(character):04X}" for character in hidden)[:5])
        reasons.append(f"hidden or bidirectional characters: {shown}")
    said_before = {sentence for text in known for sentence in _sentences(text)}
    said = [one for text in fresh for one in _sentences(text) if one not in said_before]
    for what, pattern in (("talks to the model", INSTRUCTIONS), ("mentions secrets", SECRETS)):
        found = next((match[0] for one in said if (match := pattern.search(one))), None)
        if found is not None and (secrets or pattern is not SECRETS):
            reasons.append(f"{what} ({_quoted(found)})")
    mixed = next((match[0] for one in said if (match := MIXED.search(one))), None)
    if mixed is not None:
        reasons.append(f"letters of several alphabets in one word ({_quoted(mixed)})")
    words = {word.strip(".-") for one in said for word in re.findall(r"[\w.-]+", one)}
    named = sorted(word for word in words & set(others) if len(word) > 5 and not word.isalpha())
    if named:
        reasons.append(f"names a tool of another server: {', '.join(named[:3])}")
    return reasons


def _sentences(text: str) -> list[str]:
    """A text's sentences as a model reads them: without markup and what cannot be seen, each on one line."""
    plain = HIDDEN.sub("", unicodedata.normalize("NFKC", text))
    return [" ".join(_MARKUP.sub(" ", one).split()) for one in _SENTENCE.split(plain) if one.strip()]


_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_MARKUP = re.compile(r"[*`|\\]+|(?<!\w)_+|_+(?!\w)")
MIXED = re.compile(r"[A-Za-z]+[\u0370-\u03ff\u0400-\u052f]+\w*|[\u0370-\u03ff\u0400-\u052f]+[A-Za-z]+\w*")
"""Greek or Cyrillic letters that pass for Latin ones."""


def _quoted(text: str) -> str:
    flat = " ".join(text.split())
    return f"“{flat[:80]}…”" if len(flat) > 80 else f"“{flat}”"


def _breaking(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    reasons = _narrower(old.get("inputSchema"), new.get("inputSchema"), "argument")
    reasons += _poorer(old.get("outputSchema"), new.get("outputSchema"))
    before, after = _object(old.get("annotations")), _object(new.get("annotations"))
    for hint, safe in (("readOnlyHint", True), ("idempotentHint", True), ("destructiveHint", False)):
        if before.get(hint) is safe and after.get(hint) is not safe:
            reasons.append(f"no longer says {hint}: {str(safe).lower()}")
        elif after.get(hint) is safe and before.get(hint) is not safe:  # rules, retries and the cache go by it
            reasons.append(f"says {hint}: {str(safe).lower()} now, and is treated as safer")
    return reasons


def _narrower(old: Any, new: Any, what: str, path: str = "", depth: int = 0) -> list[str]:
    """Where a schema takes less than it did."""
    before, after = _object(old), _object(new)
    if before == after or depth > MAX_DEPTH:
        return []
    reasons = []
    properties, now = _object(before.get("properties")), _object(after.get("properties"))
    for name in properties:
        if name not in now:
            reasons.append(f"{what} {path}{name} is gone")
        else:
            reasons += _narrower(properties[name], now[name], what, f"{path}{name}.", depth + 1)
    for name in _names(after.get("required")) - _names(before.get("required")):
        reasons.append(f"{what} {path}{name} is required now")
    here = path.rstrip(".") or "object"
    lost = _types(before) - _types(after)
    if lost and _types(after):
        reasons.append(f"{what} {here} is no longer {' or '.join(sorted(lost))}")
    if isinstance(after.get("enum"), list) and (
        not isinstance(before.get("enum"), list) or any(value not in after["enum"] for value in before["enum"])
    ):
        reasons.append(f"{what} {here} takes fewer values")
    for bound, stricter in STRICTER.items():
        was, is_ = before.get(bound), after.get(bound)
        if isinstance(is_, int | float) and (not isinstance(was, int | float) or stricter(is_, was)):
            reasons.append(f"{what} {here} has a stricter {bound}")
    if after.get("pattern") not in (None, before.get("pattern")):
        reasons.append(f"{what} {here} has another pattern")
    if after.get("additionalProperties") is False and before.get("additionalProperties") is not False:
        reasons.append(f"{what} {here} takes no further members")
    if isinstance(before.get("items"), Mapping) or isinstance(after.get("items"), Mapping):
        reasons += _narrower(before.get("items"), after.get("items"), what, f"{path}[].", depth + 1)
    if any(before.get(key) != after.get(key) for key in ("anyOf", "oneOf", "allOf", "not", "if", "$ref", "const")):
        reasons.append(f"{what} {here} has another form")
    return reasons


STRICTER: dict[str, Callable[[float, float], bool]] = {
    "minimum": gt, "exclusiveMinimum": gt, "minLength": gt, "minItems": gt,
    "maximum": lt, "exclusiveMaximum": lt, "maxLength": lt, "maxItems": lt,
}  # fmt: skip


def _poorer(old: Any, new: Any) -> list[str]:
    """Where a result has less than it had."""
    if not isinstance(old, Mapping) or old == new:
        return []
    if not isinstance(new, Mapping):
        return ["its results have no schema any more"]
    before, after = _object(old.get("properties")), _object(new.get("properties"))
    reasons = [f"result {name} is gone" for name in before if name not in after]
    reasons += [
        f"result {name} is another type"
        for name in before.keys() & after.keys()
        if _types(_object(before[name])) != _types(_object(after[name]))
    ]
    reasons += [
        f"result {name} may be missing"
        for name in _names(old.get("required")) - _names(new.get("required"))
        if name in after
    ]
    return reasons


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(value: Any) -> set[str]:
    return {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()


def _types(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else _names(kind)
    return found | {"integer"} if "number" in found else found  # a number takes integers, too


class Pins:
    """The pins of all tools. Use as `async with Pins(database) as pins`."""

    def __init__(self, database: Database, rules: PinRules | None = None) -> None:
        self._database = database
        self.rules = rules or PinRules()
        self._pins: dict[str, dict[str, Pin]] = {}
        self.writes = WriteBehind("pins")

    def use(self, rules: PinRules) -> None:
        """Judge changes by other rules from now on."""
        self.rules = rules

    async def __aenter__(self) -> Pins:
        for row in await self._database.load_pins():
            held = msgspec.json.decode(row["held"], type=Held) if row["held"] else None
            pin = Pin(
                server_id=row["server_id"],
                name=row["name"],
                definition=decode(row["definition"].encode()),
                definition_hash=row["definition_hash"],
                pinned_at=row["pinned_at"],
                pinned_by=row["pinned_by"],
                held=held,
            )
            self._pins.setdefault(pin.server_id, {})[pin.name] = pin
        await self.writes.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.writes.__aexit__(*exc)

    def find(self, server_id: str, name: str) -> Pin | None:
        """The pin of a tool."""
        return self._pins.get(server_id, {}).get(name)

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
        written: list[Pin] = []
        fresh: dict[str, Pin] = {}
        gone = [pin for name, pin in of_server.items() if name not in listed]
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
                verdict, pin = Verdict(definition, digest), _pin(server_id, definition, digest)
            else:
                verdict, pin = self._judge(server_id, pin, definition, digest, gone, names())
            verdicts[name] = verdict
            fresh[name] = pin
            written.append(pin)
        of_server |= fresh
        if len(of_server) > max(MAX_PINS, 2 * len(listed)):  # names that come and go
            for pin in sorted(gone, key=lambda one: one.pinned_at)[: len(of_server) - MAX_PINS]:
                if pin.held is None:
                    del of_server[pin.name]
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
        self,
        server_id: str,
        pin: Pin | None,
        definition: dict[str, Any],
        digest: str,
        gone: list[Pin],
        others: Collection[str],
    ) -> tuple[Verdict, Pin]:
        name = definition["name"]
        if pin is None:
            renamed = next((old for old in gone if _same_text(old.definition, definition)), None)
            joins = bool(self._pins.get(server_id))
            change = first_sight(definition, others, joins=joins)
            action = "accept" if change is None else self.rules.suspicious if joins else self.rules.first
            if renamed is not None:
                (reason,) = _readable([f"it is {renamed.name!r} under another name"])
                found = change.reasons if change is not None else ()
                diff = readable_diff(renamed.definition, definition)
                change = Change(kind="suspicious", reasons=(reason, *found), changed=("name",), diff=diff)
                action = self.rules.suspicious
        else:
            change = classify(pin.definition, definition, others)
            action = getattr(self.rules, change.kind) if change is not None else "accept"
        if change is not None and action != "accept":
            what = "is suspicious" if pin is None else f"has a {change.kind} change"
            log.warning(
                f"a tool's definition {what}",
                server=server_id,
                tool=name,
                action=action,
                reasons=list(change.reasons),
            )
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
        return Verdict(definition, digest, None, change), _pin(server_id, definition, digest)

    def _save(self, pins: list[Pin]) -> None:
        if not pins:
            return
        rows = [
            {
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


def _pin(server_id: str, definition: dict[str, Any], digest: str, held: Held | None = None) -> Pin:
    return Pin(
        server_id=server_id,
        name=definition["name"],
        definition=definition,
        definition_hash=digest,
        pinned_at=timestamp(),
        pinned_by="first seen",
        held=held,
    )


def _same_text(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two definitions say much the same but for the name, and say enough for that to mean something."""
    text, now = old.get("description"), new.get("description")
    if not (isinstance(text, str) and isinstance(now, str)) or len(text) < 20:
        return False
    if text == now and old.get("inputSchema") == new.get("inputSchema"):
        return True
    text, now = text[:MAX_COMPARED_TEXT], now[:MAX_COMPARED_TEXT]
    return now.startswith(text) or difflib.SequenceMatcher(None, text, now).ratio() > 0.85
