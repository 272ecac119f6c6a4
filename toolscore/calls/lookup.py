"""The steps around the cache: a kept result before a call, and keeping its result after it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from msgspec import Raw

from toolscore.calls.cache import Cached, Made, ResultCache, Slot
from toolscore.calls.model import Call
from toolscore.calls.result import marked_kept, parsed, seconds_said
from toolscore.core.errors import Overloaded, ToolScoreError, UpstreamTimeout, UpstreamUnavailable
from toolscore.core.jsonrpc import meta_of
from toolscore.telemetry.tracing import CARRIED
from toolscore.upstreams import UpstreamPool
from toolscore.upstreams.protocol import META

__all__ = ["KeptResults"]

OF_CLIENT = ("protocolVersion", "clientInfo", "clientCapabilities", "logLevel")
PROTOCOLS_OWN = frozenset({*CARRIED, "progressToken", "toolscore/cache", *(f"{META}{name}" for name in OF_CLIENT)})
"""The members of a request's `_meta` that no result depends on."""
STAND_IN = (UpstreamUnavailable, UpstreamTimeout, Overloaded)
"""For these a result that is past its time may stand in."""


class KeptResults:
    """Answers calls from the cache, and fills it."""

    def __init__(self, cache: ResultCache, upstreams: UpstreamPool) -> None:
        self._cache = cache
        self._upstreams = upstreams

    def may_answer(self, call: Call) -> bool:
        """Whether it is worth to `look_up` a call's result."""
        return call.use_cache and not call.replay and self._cache.reads(call.target)

    async def look_up(self, call: Call) -> None:
        """Answer a call with a result that is kept and fresh, if there is one."""
        call.slot = self._slot(call)
        if call.slot is None:
            return
        found = await self._cache.look(call.slot)
        if found is not None and found.is_fresh:
            self._cache.count(found)
            call.answer = marked_kept(found)
        call.kept = found

    def fill(self, call: Call, reach: Callable[[Call], Awaitable[Raw]]) -> Awaitable[None]:
        """Answer a call by asking its server, when it is awaited. What it reads is asked once for equal calls at the
        same time, and may be kept; what may change something ends what is kept.

        A result that is past its time stands in where the server cannot be asked.

        Args:
            reach: asks the server.

        Raises:
            ToolScoreError (awaiting it): what `reach` raises.
        """
        kept, call.kept = call.kept, None
        return self._read(call, reach, kept) if self._cache.reads(call.target) else self._change(call, reach)

    async def _read(self, call: Call, reach: Callable[[Call], Awaitable[Raw]], kept: Cached | None) -> None:
        """Ask a server for what changes nothing.

        Args:
            kept: a result that is past its time.
        """
        if call.slot is None:
            call.answer = await reach(call)
        else:
            try:
                call.answer = await self._cache.once(call.slot, lambda: self._make(call, reach), call.patience)
            except STAND_IN:
                if kept is not None:  # what may change something may have ended it meanwhile
                    kept = await self._cache.look(call.slot)
                if kept is None or kept.stale_until <= time.time():
                    raise
                self._cache.count(kept, stale=True)
                call.kept, call.answer, call.is_stale = kept, marked_kept(kept, stale=True), True

    def _slot(self, call: Call) -> Slot | None:
        """Where the result is kept; `None`: it depends on more than the call, or is not kept."""
        extra = call.extra
        if extra is not None and (extra.keys() - {"_meta"} or not PROTOCOLS_OWN.issuperset(meta_of(extra))):
            return None  # the answer may depend on what else the server is told
        upstream = self._upstreams.find(call.target.server_id)
        if upstream is None or upstream.habits.asks:  # each client may get an answer of its own
            return None
        spec = upstream.spec
        if spec.forward_headers and call.caller.headers:
            return None
        return self._cache.slot(call.target, call.arguments, call.principal, spec.digest, own=bool(spec.credentials))

    async def _change(self, call: Call, reach: Callable[[Call], Awaitable[Raw]]) -> None:
        """Ask a server for what may change something, so that nothing of before is given after."""
        server_id, settled = call.target.server_id, False
        before = self._cache.changing(server_id, call.patience)
        try:
            if before is not None:
                await before
            call.answer = await reach(call)
            settled = True
        except ToolScoreError as exc:
            settled = exc.upstream_error is not None
            raise
        finally:
            over = settled or call.attempt.over or not call.attempt.asked
            after = self._cache.changed(server_id, call.patience, over)
            if after is not None:
                await after

    async def _make(self, call: Call, reach: Callable[[Call], Awaitable[Raw]]) -> Made:
        """Ask the server. Returns the result, with what may become of it."""
        raw = await reach(call)
        found = parsed(call.target, raw)
        upstream = self._upstreams.find(call.target.server_id)
        asked = upstream is None or upstream.habits.asks  # just now, maybe
        if asked or found.result_type != "complete":
            return Made(raw, own=True)
        assert call.slot is not None
        if found.is_error:
            return Made(raw)
        if call.slot.ttl is not None:
            return Made(raw, call.slot.ttl)
        return Made(raw, min(seconds_said(found), self._cache.rules.max_server_ttl_seconds))
