"""One call on its way through the gateway."""

from __future__ import annotations

import time
from typing import Any

from msgspec import Raw

from toolscore.calls.cache import Cached, Slot
from toolscore.core.errors import InvalidArguments, InvalidRequest
from toolscore.core.jsonrpc import decode, twice
from toolscore.core.models import Tool
from toolscore.history.recording import CallRecord, new_call_id
from toolscore.history.starts import Start
from toolscore.upstreams import Attempt, Caller

__all__ = ["Call"]

NO_OBJECT = b"{}"
NO_ARGUMENTS = Raw(NO_OBJECT)
NULL = b"null"
_UNREAD: Any = object()


class Call:
    """What a caller wants, and what the steps have found out and done about it so far.

    A door makes it from its wire; `CallPipeline.call` carries it out, once.

    Args:
        tool_id: full name; or a server's id, with the tool's own name in `action`; or, with `server_id`, the own name.
        arguments: the JSON object's bytes, relayed as they came.
        caller: who calls, and how it is reached while the tool works.
        request_id: of the request that it came with, for logs and the journal.
        action: the tool's own name, where `tool_id` is a server's id.
        server_id: only this server's tools count.
        timeout_seconds: `None`: the upstream's or the gateway's default.
        extra: the other members of an MCP request's params (`_meta`, and those we do not know), for the upstream.
        use_cache: a result that is kept may be the answer.
        replay: made to see what comes out today: past the cache, and nothing is learned from it.
        parent: the id of the call whose code makes it; `None`: somebody else does.

    Attributes:
        call_id: of its record in the journal.
        at_ms: when it began, in ms since 1970.
        principal: on whose behalf it is made.
        tool: what it calls, from the step `resolve` on; `target`: the same, and not there before.
        patience: seconds that it waits for a server that starts, for a place, or for an equal call; from `resolve` on.
        slot: where its result may be kept; `None`: nowhere.
        kept: a result that was kept; it is the answer if `answer` is set too.
        answer: the upstream's result (MCP `CallToolResult`), as it was sent.
        is_stale: the answer stands in for one that could not be had.
        outcome: how it ended, for figures: `ok`, `tool_error`, an error's code, or `cancelled`.
        error: what went wrong, in words.
        attempt: whether the last try was handed to the server.
        arguments_bytes: how many the arguments have.
        record: of the call for the journal, as far as it is known; `None`: not begun.
        start: what the journal noted before it was sent; `None`: nothing.
        queued: seconds that it waited for a place at the server; `None`: it went to no server.
        served: seconds at the server, all tries together; `None`: it went to none.
    """

    # What most calls never change stands here, and costs none of them a line below.
    tool: Tool | None = None
    slot: Slot | None = None
    kept: Cached | None = None
    answer: Raw | None = None
    is_stale = False
    outcome = "cancelled"
    error: str | None = None
    attempt = Attempt()
    record: CallRecord | None = None
    start: Start | None = None
    queued: float | None = None
    served: float | None = None
    _values: Any = _UNREAD

    def __init__(
        self,
        tool_id: str,
        arguments: Raw = NO_ARGUMENTS,
        *,
        caller: Caller,
        request_id: str,
        action: str | None = None,
        server_id: str | None = None,
        timeout_seconds: float | None = None,
        extra: dict[str, Any] | None = None,
        use_cache: bool = True,
        replay: bool = False,
        parent: str | None = None,
    ) -> None:
        self.tool_id = tool_id
        size = memoryview(arguments).nbytes
        if size == len(NULL) and bytes(arguments) == NULL:  # as serializers of some languages write none
            arguments, size = NO_ARGUMENTS, len(NO_OBJECT)
        self.arguments = arguments
        self.arguments_bytes = size
        self.caller = caller
        self.principal = caller.principal
        self.request_id = request_id
        self.action = action
        self.server_id = server_id
        self.timeout_seconds = timeout_seconds
        self.extra = extra
        self.use_cache = use_cache
        self.replay = replay
        self.parent = parent
        moment = time.time()
        self.call_id = new_call_id(moment)
        self.at_ms = int(moment * 1000)
        self.started = time.perf_counter()
        self.target: Tool
        self.patience = timeout_seconds or 0.0

    @property
    def values(self) -> Any:
        """The arguments as a Python value; decoded once. An empty body is `None`.

        Raises:
            InvalidArguments: they are not JSON.
        """
        if self._values is _UNREAD:
            name = self.tool.tool_id if self.tool is not None else self.tool_id
            try:
                self._values = decode(self.arguments) if self.arguments_bytes else None
            except InvalidRequest as exc:
                raise InvalidArguments(f"the arguments of {name} are {exc}") from exc
            member = twice(self.arguments, self._values)
            if member is not None:
                raise InvalidArguments(f"the arguments of {name} have {member!r:.80} twice: which is meant?")
        return self._values

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.started
