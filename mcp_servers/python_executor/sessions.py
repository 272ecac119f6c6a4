"""Sessions: a child that keeps its variables between the calls of one principal, confined as any other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mcp_servers.python_executor.child_process import ChildProcess
from mcp_servers.python_executor.engine import Job, Outcome, conclude, request_of
from mcp_servers.python_executor.pool import Pool
from mcp_servers.python_executor.sandbox.wire import Mode

__all__ = ["Session", "Sessions", "TooManySessions"]

SWEEP_SECONDS = 1.0
MAX_WAITING = 64
"""Calls that wait for one session."""


class TooManySessions(Exception):
    """No more sessions may be opened; the message says what to do."""


@dataclass(eq=False)
class Session:
    """One session.

    Attributes:
        folders: the package sets that its code may import, and where each is.
        opened: when (Unix seconds).
    """

    key: tuple[str, str]
    pool: Pool
    folders: dict[str, str] = field(default_factory=dict)
    child: ChildProcess | None = None
    dropped: bool = False
    opened: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Sessions:
    """The open sessions, by principal and id, so that nobody reaches the session of another.

    Between its calls a session is stopped: what it left running goes on with the next call.

    Args:
        max_sessions: in all; max_per_principal: of one caller.
        idle_seconds: a session that nobody used for so long is ended.
    """

    def __init__(self, *, max_sessions: int, max_per_principal: int, idle_seconds: float) -> None:
        self._max, self._max_each, self._idle_seconds = max_sessions, max_per_principal, idle_seconds
        self._sessions: dict[tuple[str, str], Session] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self.opened = self.expired = self.lost = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @asynccontextmanager
    async def hold(
        self, principal: str, session_id: str, pool: Pool, packages: Mapping[str, str]
    ) -> AsyncIterator[Session]:
        """Hold a session while the block runs: other calls wait. It is opened if there is none.

        Args:
            pool: for a new one; it has these packages.
            packages: the sets that the call asks for, and the folder of each.

        Raises:
            TooManySessions: it is not open and no more may be opened, or too many calls wait for it.
        """
        key = (principal, session_id)
        while True:
            session = self._sessions.get(key)
            if session is None:
                session = self._open(key, pool, packages)
            if session.waiting >= MAX_WAITING:
                raise TooManySessions(f"{MAX_WAITING} calls wait for session {session_id!r} already: use another")
            session.waiting += 1
            try:
                async with session.lock:
                    if session.dropped:  # reset while we waited for our turn
                        continue
                    session.last_used = time.monotonic()
                    try:
                        yield session
                        return
                    finally:
                        session.last_used = time.monotonic()
                        if session.child is None:
                            self._drop(session)
            finally:
                session.waiting -= 1

    def _open(self, key: tuple[str, str], pool: Pool, packages: Mapping[str, str]) -> Session:
        own = sum(1 for principal, _ in self._sessions if principal == key[0])
        if len(self._sessions) >= self._max or own >= self._max_each:
            raise TooManySessions(
                f"{own} sessions of yours and {len(self._sessions)} in all are open, "
                f"of {self._max_each} and {self._max}: "
                f"end one with python_session_reset, or wait until one has been idle for {self._idle_seconds:g} s"
            )
        session = self._sessions[key] = Session(key, pool, dict(packages))
        self.opened += 1
        if self._sweeper is None:
            self._sweeper = asyncio.ensure_future(self._sweep())
        return session

    async def run(self, session: Session, job: Job, packages: Mapping[str, str]) -> Outcome:
        """Run a job in a session that is held.

        Args:
            packages: the sets that it asks for, and the folder of each. One that the session does not have yet is put
                behind those that it has.
        """
        for name, folder in packages.items():
            if name not in session.folders:
                more = Job(f"__import__('sys').path.append({folder!r})", timeout_seconds=job.timeout_seconds)
                outcome = await self._run(session, more)
                if outcome.exit != "ok":
                    return outcome
                session.folders[name] = folder
        return await self._run(session, job)

    async def _run(self, session: Session, job: Job) -> Outcome:
        child = session.child
        if child is not None and (child.ended or child.spoiled):
            self.lost += 1
            self._drop(session)
            return _gone("the session ended between its calls")
        if child is None:
            child = await session.pool.take()
            if session.dropped:
                child.release(kill=True)
                return _gone("the session was reset meanwhile")
            session.child = child
        began = time.perf_counter()
        ending = None
        try:
            request = request_of(job, Mode.SESSION)
            ending = await child.call(request, job.timeout_seconds, job.max_output_bytes, job.asker)
            if session.dropped:
                return _gone("the session was reset meanwhile")
            outcome = conclude(ending, child, job, (time.perf_counter() - began) * 1000)
            if ending.answer is not None:
                child.forget_output()
                child.pause()
        finally:
            if ending is None or ending.answer is None:
                self.lost += 1
                self._drop(session)
        if ending.answer is None and outcome.error is not None:
            outcome.error["message"] += ". The session ended with it: its variables are gone"
        return outcome

    def reset(self, principal: str, session_id: str) -> bool:
        """End a session, and what runs in it. Returns whether there was one."""
        session = self._sessions.get((principal, session_id))
        if session is None:
            return False
        self._drop(session)
        return True

    def of(self, principal: str) -> list[dict[str, Any]]:
        """List the sessions of a principal, the one used last first: `session_id`, `state` (running, idle),
        `opened` (Unix seconds), `idle_seconds`, `ends_in_seconds`, `packages` (names of sets).
        """
        now = time.monotonic()
        own = [session for session in self._sessions.values() if session.key[0] == principal]
        listed = []
        for session in sorted(own, key=lambda one: one.last_used, reverse=True):
            idle = 0.0 if session.waiting else now - session.last_used
            listed.append({
                "session_id": session.key[1],
                "state": "running" if session.waiting else "idle",
                "opened": round(session.opened, 3),
                "idle_seconds": round(idle, 1),
                "ends_in_seconds": None if session.waiting else round(max(0.0, self._idle_seconds - idle), 1),
                "packages": [*session.folders],
            })  # fmt: skip
        return listed

    def _drop(self, session: Session) -> None:
        session.dropped = True
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        child, session.child = session.child, None
        if child is not None:
            child.release(kill=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._idle_seconds / 2))
            now = time.monotonic()
            for session in [*self._sessions.values()]:
                ended = session.child is not None and session.child.ended
                if not session.waiting and (ended or now - session.last_used > self._idle_seconds):
                    self.expired += not ended
                    self.lost += ended
                    self._drop(session)

    def figures(self) -> dict[str, Any]:
        return {"open": len(self._sessions), "opened": self.opened, "expired": self.expired, "lost": self.lost}

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for session in [*self._sessions.values()]:
            self._drop(session)


def _gone(what: str) -> Outcome:
    return Outcome("killed", error={"type": "Killed", "message": f"{what}: its variables are gone", "traceback": ""})
