"""Past calls made again: against the server as it is now, or another version of it, and where the results differ."""

from __future__ import annotations

import asyncio
import difflib
import json
from typing import Any

from msgspec import Raw

from toolscore.access.permissions import Permissions
from toolscore.calls.call import CallPipeline
from toolscore.calls.code_callers import Recorded, ReplayCaller
from toolscore.calls.code_run import RUN_CODE
from toolscore.calls.model import Call
from toolscore.core.errors import Conflict, InvalidRequest, ToolScoreError
from toolscore.core.jsonrpc import decode, encode
from toolscore.core.models import Principal
from toolscore.tools.library import UnifiedToolLibrary

__all__ = ["Replay", "difference"]

AT_ONCE = 4
MAX_DIFF_LINES = 200
MAX_DIFF_LINE = 1000
MAX_COMPARED_LINES = 2000
"""Of longer results the first difference is shown."""


REPLAY_OF = "replay-of-"
"""The request id of a replay begins so; the id of the call follows."""


class Replay:
    """Makes recorded calls again."""

    def __init__(self, pipeline: CallPipeline, library: UnifiedToolLibrary, permissions: Permissions) -> None:
        self._pipeline = pipeline
        self._library = library
        self._permissions = permissions

    async def one(
        self,
        recorded: dict[str, Any],
        principal: Principal,
        *,
        server_id: str | None = None,
        confirm: bool = False,
        inner: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Make a recorded call again, past the cache, and say where its result differs.

        Args:
            recorded: as the journal gives it, with its bodies.
            server_id: another server with a tool of the same name; `None`: the one that was called.
            confirm: also if it may do something a second time.
            inner: of a run of code, the calls that it made, the oldest first, with their bodies: their results are
                given again, and no tool is called; `None`: they are called.

        Raises:
            Conflict: its arguments are not whole, or it may do something a second time.
            InvalidRequest: it named no tool.
            ToolNotFound: the tool is gone, or not for this principal.
        """
        call_id = recorded["call_id"]
        if recorded["tool_id"] == "-":
            raise InvalidRequest(f"call {call_id} named no tool that existed: there is nothing to replay")
        if "arguments" in recorded["redacted"] or recorded["arguments"] is None:
            raise Conflict(f"the arguments of call {call_id} are not kept as they were: it cannot be made again")
        sees = self._permissions.sees(principal)
        tool = self._library.resolve(recorded["name"], None, server_id or recorded["server_id"], sees=sees)
        offline = inner is not None and tool.tool_id == RUN_CODE
        if not tool.safe_to_repeat and not confirm and not offline:
            raise Conflict(
                f"{tool.tool_id} does not say that it may be called twice: pass `confirm` if it may do its work again"
            )
        arguments, note = recorded["arguments"], None
        if offline and "session_id" in arguments:
            arguments = {name: value for name, value in arguments.items() if name != "session_id"}
            note = "it ran in a session, and is made again outside of it: it finds no variables"
        again = Call(
            tool.name,
            Raw(encode(arguments)),
            caller=ReplayCaller(principal, Recorded(inner) if offline and inner is not None else None),
            request_id=f"{REPLAY_OF}{call_id}",
            server_id=tool.server_id,
            replay=True,
        )
        now: dict[str, Any]
        try:
            result = await self._pipeline.call(again)
        except ToolScoreError as exc:
            now = {"call_id": None, "outcome": exc.code, "result": None, "error": exc.message, "duration_ms": None}
        else:
            now = {
                "call_id": result.call_id,
                "outcome": "tool_error" if result.is_error else "ok",
                "result": decode(result.raw),
                "error": None,
                "duration_ms": round(result.duration_ms, 3),
            }
        then = {name: recorded[name] for name in ("call_id", "outcome", "result", "error", "duration_ms")}
        differs = await asyncio.to_thread(difference, then["result"], now["result"])
        return {
            "tool_id": tool.tool_id,
            "same": then["outcome"] == now["outcome"] and not differs,
            "difference": differs,
            "note": note,
            "definition_changed": tool.definition_hash != recorded["definition_hash"]
            and tool.tool_id == recorded["tool_id"],
            "result_was_redacted": "result" in recorded["redacted"],
            "then": then,
            "now": now,
        }

    async def many(
        self,
        recorded: list[dict[str, Any]],
        principal: Principal,
        *,
        server_id: str | None = None,
        confirm: bool = False,
    ) -> dict[str, Any]:
        """Make recorded calls again, a few at a time, the oldest first; those that cannot be are named, and those that
        were replays themselves.
        """
        places = asyncio.Semaphore(AT_ONCE)

        async def one(call: dict[str, Any]) -> dict[str, Any]:
            if str(call["request_id"]).startswith(REPLAY_OF):
                return {"tool_id": call["tool_id"], "skipped": "it was a replay itself", "then": call}
            async with places:
                try:
                    return await self.one(call, principal, server_id=server_id, confirm=confirm)
                except ToolScoreError as exc:
                    return {"tool_id": call["tool_id"], "skipped": exc.message, "then": {"call_id": call["call_id"]}}

        ordered = sorted(recorded, key=lambda call: str(call["call_id"]))
        ended = await asyncio.gather(*map(one, ordered))
        skipped = [{"call_id": end["then"]["call_id"], "reason": end["skipped"]} for end in ended if "skipped" in end]
        made = [end for end in ended if "skipped" not in end]
        return {
            "replayed": len(made),
            "same": sum(1 for end in made if end["same"]),
            "different": [end for end in made if not end["same"]],
            "skipped": skipped,
        }


def difference(then: Any, now: Any) -> str:
    """Where two results differ, as a unified diff of their JSON; empty where they do not. `_meta` does not count."""
    before, after = _lines(then), _lines(now)
    if before == after:
        return ""
    if len(before) + len(after) > MAX_COMPARED_LINES:  # comparing all with all would take minutes
        at = next(
            (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
        )
        before, after = before[max(0, at - 2) : at + 50], after[max(0, at - 2) : at + 50]
    found = list(difflib.unified_diff(before, after, "recorded", "replayed", lineterm="", n=2))
    if len(found) > MAX_DIFF_LINES:
        found[MAX_DIFF_LINES:] = [f"… and {len(found) - MAX_DIFF_LINES} more lines"]
    return "\n".join(line[:MAX_DIFF_LINE] for line in found)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = {key: member for key, member in value.items() if key != "_meta"}
        structured = value.get("structuredContent")
        if (
            isinstance(structured, dict) and {"exit", "limits_hit"} <= structured.keys()
        ):  # the executor's: it took a time
            value["structuredContent"] = {key: one for key, one in structured.items() if key != "duration_ms"}
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True).splitlines() if value is not None else []
