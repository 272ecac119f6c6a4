"""The clients of the session era over HTTP: those that are open here, and those that are made of their ids."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Any
from weakref import WeakValueDictionary

from toolscore.app.compose import Gateway
from toolscore.core.errors import Overloaded
from toolscore.core.jsonrpc import decode
from toolscore.core.models import Principal
from toolscore.endpoints.mcp.params import Members
from toolscore.endpoints.mcp.server import McpServer
from toolscore.endpoints.mcp.session import Session
from toolscore.endpoints.mcp.session_ids import new_opened, sealed_id, unsealed_id
from toolscore.endpoints.mcp.shared_sessions import SharedSessions
from toolscore.upstreams.caller import client_named

__all__ = ["Sessions"]

SWEEP_SECONDS = 60


class Sessions:
    """The open sessions, the idlest first."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._named: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._shared = SharedSessions(gateway.shared, gateway.replicas, gateway.identity, self._told, self._missed)
        self._of: Counter[str] = Counter()
        self._swept = time.monotonic()

    async def open(
        self, server: McpServer, server_id: str | None, params: Members, version: str, principal: Principal
    ) -> str:
        """Open a session. Returns its id, of which any gateway with the same keys can make it again.

        Raises:
            Overloaded: too many are open, and all are busy.
        """
        self._make_room(principal)
        declared = decode(params["capabilities"]) if "capabilities" in params else None
        capabilities = declared if isinstance(declared, dict) else {}
        opened = new_opened(principal.name, server_id, version, capabilities)
        session_id = sealed_id(self._gateway.ring, opened)
        session = Session(self._gateway, server, opened, principal, self._shared)
        self._add(session_id, session)
        if opened.capabilities != capabilities:
            session.capabilities = capabilities
            await self._shared.keep(opened.name, capabilities=capabilities)
        return session_id

    def _add(self, session_id: str, session: Session) -> None:
        self._sessions[session_id] = session
        self._named[session.name] = session
        self._of[session.principal.name] += 1

    async def find(
        self, session_id: str, server: McpServer, server_id: str | None, principal: Principal
    ) -> Session | None:
        """The session of that id, if it is this principal's, at this address; made anew where it is not in memory.

        Raises:
            Overloaded: too many are open, and all are busy.
        """
        session = self._sessions.get(session_id)
        if session is None:
            session = await self._make_again(session_id, server, server_id, principal)
        if session is None or session.server_id != server_id or session.principal.name != principal.name:
            return None
        session.used = time.monotonic()
        self._sessions.move_to_end(session_id)
        if session.is_stale:
            if await self._shared.has_ended(session.name):  # elsewhere, and we did not hear of it
                if session_id in self._sessions:
                    self._drop(session_id)
                return None
            kept = await self._shared.kept(session.name)
            if kept is not None:
                session.is_stale = False
                await session.take(kept)
        session.principal = principal  # with the scopes of the key that is shown now
        return session

    async def _make_again(
        self, session_id: str, server: McpServer, server_id: str | None, principal: Principal
    ) -> Session | None:
        opened = unsealed_id(self._gateway.ring, session_id)
        if opened is None or opened.server_id != server_id or opened.principal != principal.name:
            return None
        if await self._shared.has_ended(opened.name):
            return None
        if session_id not in self._sessions:  # another of its requests may have been quicker
            self._make_room(principal)
            session = Session(self._gateway, server, opened, principal, self._shared)
            session.is_stale = self._gateway.shared is not None
            self._add(session_id, session)
        return self._sessions[session_id]

    def tell(self, kind: str, **members: Any) -> None:
        """Tell other gateways something of a session."""
        self._shared.tell(kind, **members)

    def named(self, name: str) -> Session | None:
        """The session of a name, if this gateway has it in memory."""
        return self._named.get(name)

    def _missed(self) -> None:
        """What another gateway told was not heard: what clients set there is read again."""
        for session in self._sessions.values():
            session.is_stale = True

    def _told(self, kind: str, told: dict[str, Any]) -> None:
        """Another gateway tells something of a session."""
        name = str(told["name"])
        session = self._named.get(name)
        if kind == "session/roots":
            self._gateway.upstreams.roots_changed(client_named(name))
        elif kind == "session/ended":
            self._shared.note_ended(name)
            self._gateway.upstreams.client_gone(client_named(name))
            for session_id in [key for key, one in self._sessions.items() if one is session]:
                self._drop(session_id)
        elif session is None:
            return
        elif kind == "session/set":
            session.is_stale = True
        elif kind == "session/cancelled":
            session.cancel(told["target"], pass_on=False)
        elif kind == "session/taken":
            taken = session.taken.get(str(told["number"]))
            if taken is not None and not taken.done():
                taken.set_result(None)
        elif kind == "session/own" and session.own.readers:
            session.own.put_once(str(told["message"]).encode())
            if told["ack"] is not None:
                self._shared.tell("session/taken", name=name, number=told["ack"])

    async def end(self, session_id: str) -> None:
        """End a session that is open, everywhere."""
        name = self._sessions[session_id].name
        self._drop(session_id)
        await self._shared.end(name)

    def _drop(self, session_id: str) -> None:
        """Keep a session no longer; its client may come back to it."""
        session = self._sessions.pop(session_id)
        self._of[session.principal.name] -= 1
        if not self._of[session.principal.name]:
            del self._of[session.principal.name]
        session.end()
        self._gateway.upstreams.client_gone(session.client)

    def _make_room(self, principal: Principal) -> None:
        limits = self._gateway.settings.current.limits
        if self._of[principal.name] >= limits.max_sessions_per_principal:
            own = (key for key, one in self._sessions.items() if one.principal.name == principal.name and not one.busy)
            idlest = next(own, None)
            if idlest is None:
                raise Overloaded(
                    f"{limits.max_sessions_per_principal} sessions of yours are open and in use: end one with DELETE",
                    retry_after_seconds=60,
                )
            self._drop(idlest)
        bound, oldest_use = limits.max_sessions, time.monotonic() - limits.session_idle_seconds
        if len(self._sessions) >= bound or time.monotonic() > self._swept + SWEEP_SECONDS:
            self._swept = time.monotonic()
            quiet = [key for key, session in self._sessions.items() if not session.busy]
            for key in quiet:
                if self._sessions[key].used < oldest_use:
                    self._drop(key)
            if len(self._sessions) >= bound and quiet and quiet[0] in self._sessions:
                self._drop(quiet[0])  # the idlest makes room; its client opens another
        if len(self._sessions) >= bound:
            raise Overloaded(f"{bound} sessions are open: end one with DELETE, or wait", retry_after_seconds=60)
