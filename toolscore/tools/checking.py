"""Holding values against schemas, in bounded time: both come from strangers.

Most checks take microseconds. How much one may take is estimated from the schema's size and the value's parts. A check
that may take long is made by a process of its own, which is ended when it has not answered in time; and what does not
fit is explained only where that is little work.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from toolscore.core.errors import Overloaded
from toolscore.core.jsonrpc import encode

__all__ = ["Compiled", "Judge", "branches_of"]

DIRECT_WORK = 1_000_000.0
"""Steps that are taken at once: some 20 ms."""
EXPLAINED_WORK = 20_000.0
EXPLAINED_BYTES = 100_000_000.0
"""Steps, and steps times bytes, up to which it is said what does not fit: each step may become an error with a copy."""
MAX_EXPLAINED_DEPTH = 100
MAX_PARTS = 100_000
"""Parts of a value that are counted."""
MAX_WAITING = 8
MAX_PROBLEMS = 5

WORKER = """
import json, resource, sys
import jsonschema_rs
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
validator = None
for line in sys.stdin.buffer:
    schema, value = json.loads(line)
    if schema is not None:
        options = jsonschema_rs.RegexOptions(size_limit=1 << 20)
        validator = jsonschema_rs.validator_for(schema, offline=True, pattern_options=options)
    sys.stdout.write("1" if validator.is_valid(value) else "0")
    sys.stdout.flush()
"""


class Compiled(NamedTuple):
    """A schema that is ready to be held against values.

    Attributes:
        size: its parts, once its references are written out.
        branches: in how many ways it contains itself; 0: it does not.
    """

    validator: Any
    schema: dict[str, Any]
    size: float
    branches: int

    def is_quick(self, value: Any, size: int) -> bool:
        """Whether a check takes a moment.

        Args:
            size: bytes of the value.
        """
        if size * self.size <= DIRECT_WORK:
            return True
        parts = _measured(value)[0]
        return parts <= MAX_PARTS and parts * self.size <= DIRECT_WORK

    def is_explained(self, value: Any, size: int) -> bool:
        """Whether it takes a moment to say what does not fit."""
        parts, depth = _measured(value)
        if parts > EXPLAINED_WORK or depth > MAX_EXPLAINED_DEPTH:
            return False
        work = parts * self.size * max(1, self.branches) ** depth  # each way is tried, and tells of its own failure
        return bool(work <= EXPLAINED_WORK and work * size <= EXPLAINED_BYTES)

    def problems(self, value: Any) -> list[Any]:
        """What does not fit; the first few."""
        return list(itertools.islice(self.validator.iter_errors(value), MAX_PROBLEMS))


class Judge:
    """Says whether values fit. Use as `async with Judge() as judge`.

    Args:
        seconds: for a check.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._process: asyncio.subprocess.Process | None = None
        self._knows: Compiled | None = None

    async def __aenter__(self) -> Judge:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def fits(self, compiled: Compiled, value: Any) -> bool | None:
        """Whether a value fits, found out by a process of its own; `None`: not in time.

        Raises:
            Overloaded: too many wait for that.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many calls with large arguments are being checked: call again")
        self._waiting += 1
        try:
            async with self._turn:
                try:
                    async with asyncio.timeout(self._seconds):
                        return await self._ask(compiled, value)
                except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError):
                    await self._end()
                    return None
                except BaseException:
                    await self._end()  # its answer would be taken for that to another question
                    raise
        finally:
            self._waiting -= 1

    async def _ask(self, compiled: Compiled, value: Any) -> bool:
        if self._process is None:
            self._knows = None
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-c", WORKER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL, env={}, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        schema = compiled.schema if self._knows is not compiled else None
        question = await asyncio.to_thread(lambda: encode([schema, value]) + b"\n")
        self._process.stdin.write(question)
        await self._process.stdin.drain()
        self._knows = compiled
        return await self._process.stdout.readexactly(1) == b"1"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def branches_of(schema: dict[str, Any]) -> int:
    """In how many ways a schema may contain itself: its references that lead back to where they stand."""
    references: dict[str, set[str]] = {}

    def collect(part: Any, place: str, depth: int) -> None:
        if depth > 100:
            return
        if isinstance(part, list):
            for member in part:
                collect(member, place, depth + 1)
        elif isinstance(part, dict):
            for key, member in part.items():
                if key in ("$defs", "definitions") and isinstance(member, dict):
                    for name, one in member.items():
                        collect(one, f"#/{key}/{name}", depth + 1)
                elif key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(member, str):
                    references.setdefault(place, set())
                    counted[place] = counted.get(place, 0) + 1
                    references[place].add("#/" + "/".join(member.split("/")[1:3]) if "/" in member else "#")
                else:
                    collect(member, place, depth + 1)

    counted: dict[str, int] = {}
    collect(schema, "#", 0)

    again = _on_circles(references)
    return sum(count for place, count in counted.items() if place in again)


def _on_circles(leads: dict[str, set[str]]) -> set[str]:
    """The places from which one comes back, in linear time (Tarjan's strongly connected components)."""
    found: set[str] = set()
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_: dict[str, None] = {}
    for start in leads:
        if start in numbers:
            continue
        path: list[tuple[str, Iterator[str]]] = []
        here: str | None = start
        while here is not None or path:
            if here is not None:
                numbers[here] = lowest[here] = len(numbers)
                open_[here] = None
                path.append((here, iter(leads.get(here, ()))))
            place, rest = path[-1]
            here = None
            for one in rest:
                if one not in numbers:
                    here = one
                    break
                if one in open_:
                    lowest[place] = min(lowest[place], numbers[one])
            if here is not None:
                continue
            path.pop()
            if path:
                above = path[-1][0]
                lowest[above] = min(lowest[above], lowest[place])
            if lowest[place] == numbers[place]:
                circle = []
                while place in open_:
                    circle.append(open_.popitem()[0])
                if len(circle) > 1 or place in leads.get(place, ()):
                    found.update(circle)
    return found


def _measured(value: Any) -> tuple[int, int]:
    """How many parts a value has, and how deep they stand; no more are counted than is of use."""
    parts, depth, level = 1, 0, [value]
    while level and parts <= MAX_PARTS:
        level = [
            member
            for one in level
            if isinstance(one, dict | list)
            for member in itertools.islice(one.values() if isinstance(one, dict) else one, MAX_PARTS)
        ]
        parts += len(level)
        depth += 1
    return parts, depth
