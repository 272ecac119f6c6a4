"""`toolscore bench fixes`: how often what the error firewall suggests is what helps, on a journal that is replayed.

Each call is shown to the firewall in its order. A suggestion is right if the next call of the same caller to the same
tool that succeeds within `firewall.window_seconds` differs from the failed one in just what was suggested.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Raw

from toolscore.calls.result import text_of
from toolscore.core.jsonrpc import encode
from toolscore.embedding import LightEmbedder
from toolscore.history.firewall import ErrorFirewall
from toolscore.history.fixes import Fix, changes_between
from toolscore.stores.database import open_database

__all__ = ["Replayed", "read_export", "run_fixes_bench", "simulated"]


class Replayed(NamedTuple):
    """A call of a journal. `error`: what was said of it, if it failed; `at`: seconds."""

    at: float
    caller: str
    tool_id: str
    arguments: dict[str, Any]
    error: str | None


Journal = tuple[list[Replayed], dict[str, Any]]
"""Calls in their order, and the schema of each tool."""


async def run_fixes_bench(journal: Journal) -> dict[str, Any]:
    """Replay a journal. Returns `failures`, `mended`, `shown`, `right` and `precision` (`None`: nothing was shown)."""
    calls, schemas = journal
    now = 0.0
    failures = mended = 0
    waiting: dict[tuple[str, str], list[tuple[Replayed, Fix | None, list[str]]]] = {}
    ended: list[bool] = []
    async with open_database("sqlite+aiosqlite://") as database:
        async with ErrorFirewall(database, LightEmbedder(), clock=lambda: now) as firewall:
            window = firewall.rules.window_seconds
            for call in calls:
                now, key, schema = call.at, (call.caller, call.tool_id), schemas.get(call.tool_id)
                raw = Raw(encode(call.arguments))
                open_ = waiting.setdefault(key, [])
                if call.error is not None:
                    failures += 1
                    match = firewall.failed(call.caller, call.tool_id, call.error, raw, schema)
                    fix = firewall.find_fix(match.fix_id) if match is not None and match.fix_id else None
                    open_.append((call, fix, []))
                    continue
                firewall.succeeded(call.caller, call.tool_id, raw, schema)
                for failed, fix, steps in open_:
                    in_time = call.at - failed.at <= window
                    mended += in_time
                    if fix is not None:
                        changes = changes_between(failed.arguments, call.arguments, schema)
                        ended.append(
                            in_time and changes == fix.changes and (not fix.steps or set(fix.steps) <= {*steps})
                        )
                open_.clear()
                for (caller, tool_id), others in waiting.items():
                    if caller == call.caller and tool_id != call.tool_id:
                        for _, _, steps in others:
                            steps.append(call.tool_id)
    ended += [False for left in waiting.values() for _, fix, _ in left if fix is not None]
    right = sum(ended)
    return {
        "calls": len(calls),
        "failures": failures,
        "mended": mended,
        "shown": len(ended),
        "right": right,
        "precision": round(right / len(ended), 3) if ended else None,
    }


def read_export(file: Path) -> Journal:
    """The calls of a file that `toolscore calls export` wrote.

    Raises:
        ValueError: it is none. OSError.
    """
    found = json.loads(file.read_text())
    try:
        tools = {tool["name"]: tool.get("inputSchema") for tool in found["tools"]}
        calls = [
            Replayed(
                datetime.fromisoformat(call["at"]).timestamp(),
                str(call.get("caller", 0)),
                call["name"],
                call["arguments"] if isinstance(call["arguments"], dict) else {},
                _error(call["result"]),
            )
            for call in found["calls"]
        ]
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"no file of `toolscore calls export`: {exc!r}") from exc
    return sorted(calls), tools


def _error(result: Any) -> str | None:
    """What a tool said that failed."""
    if not isinstance(result, dict) or not result.get("isError"):
        return None
    return text_of(Raw(encode(result.get("content", [])))) or "it failed"


def simulated(seed: int = 0, rounds: int = 400) -> Journal:
    """A journal of callers as one meets them: some mend their call at once, some fumble, some give up.

    Half of the errors have one mend that helps (an argument of another kind, a missing one, a step before); the others
    are mended by chance, by other code, or by themselves.
    """
    return sorted(_simulated(random.Random(seed), rounds)), SCHEMAS


SCHEMAS: dict[str, Any] = {
    name: {"type": "object", "properties": properties}
    for name, properties in {
        "weather": {"place": {"type": "string"}, "unit": {"enum": ["metric", "imperial"]}},
        "orders": {"id": {}, "limit": {"type": "integer"}},
        "mail": {"to": {"type": "string"}, "draft": {"type": "boolean"}},
        "login": {},
        "run": {"code": {"type": "string"}},
        "fetch": {"address": {"type": "string"}, "retries": {"type": "integer"}},
    }.items()
}


def _simulated(dice: random.Random, rounds: int) -> Iterator[Replayed]:
    at = 0.0
    for _ in range(rounds):
        at += dice.expovariate(1 / 40)
        caller, kind, skill = f"agent {dice.randrange(6)}", dice.randrange(6), dice.random()
        place = dice.choice(["Rome", "Oslo", "Lima", "Pune"])

        def call(tool: str, error: str | None, caller: str = caller, **arguments: Any) -> Replayed:
            nonlocal at
            at += dice.uniform(0.5, 8)
            return Replayed(at, caller, tool, arguments, error)

        fumbles = 0 if skill < 0.2 else dice.randrange(1, 4)
        match kind:
            case 0:  # the same argument each time, and the schema lists its value
                said = "the station reports in another system"
                for _ in range(1 + fumbles):
                    yield call("weather", said, place=place)
                if skill < 0.9:
                    yield call("weather", None, place=place, unit="metric")
            case 1:  # an argument of another type
                number = dice.randrange(1000)
                for _ in range(1 + fumbles):
                    yield call("orders", "lookup broke: unhashable reference", id=str(number))
                if skill < 0.9:
                    yield call("orders", None, id=number)
            case 2:  # a step before
                to = f"{dice.randrange(99)}@example.org"
                for _ in range(1 + fumbles):
                    yield call("mail", "no session", to=to)
                yield call("login", None)
                yield call("mail", None, to=to)
            case 3:  # other code: nothing to learn
                yield call("run", f"NameError: name 'x{dice.randrange(9)}' is not defined", code=f"print(x{at})")
                yield call("run", None, code=f"x = {at}\nprint(x)")
            case 4:  # by chance: something was changed, and it was not that
                address = f"host{dice.randrange(50)}"
                yield call("fetch", "connection reset by peer", address=address)
                for _ in range(dice.randrange(3)):
                    yield call("fetch", "connection reset by peer", address=address, retries=dice.randrange(5))
                if dice.random() < 0.6:
                    yield call("fetch", None, address=dice.choice([address, "mirror"]))
            case _:  # the error says it all, and everybody mends it at once
                yield call("orders", "`limit` must be at most 100", id=1, limit=1000)
                yield call("orders", None, id=1, limit=dice.randrange(1, 100))
