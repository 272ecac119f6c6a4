"""Ids of tasks as they are shown: they say which server's task it is, and are good for nobody but who began it.

A server knows one client, the gateway, so that all tasks are the same client's to it. For a caller who shows a key, an
id is sealed for that caller; where no keys are asked for, it is the server's own.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from toolscore.core.errors import InvalidArguments
from toolscore.core.jsonrpc import decode, decode_object, encode
from toolscore.core.models import LOCAL, Principal
from toolscore.core.seal import BadSeal, KeyRing

__all__ = ["TaskIds"]

RELATED = "io.modelcontextprotocol/related-task"
"""The member of `_meta` that says which task a result is of (revision 2025-11-25)."""


class TaskIds:
    """The ids of one address.

    Args:
        server_id: whose address it is; `None`: that of all servers, where an id is `server/task`.
    """

    def __init__(self, ring: KeyRing, server_id: str | None) -> None:
        self._ring = ring
        self._server_id = server_id

    def shown(self, server_id: str, principal: Principal, result: Raw) -> Raw:
        """A result that is a task, or has one as its `task`, with the id to show; any other as it is."""
        members = decode_object(result)
        if "taskId" in members:
            return Raw(encode({**members, "taskId": self._shown(server_id, principal, decode(members["taskId"]))}))
        task: Any = decode(members["task"]) if "task" in members else None
        if isinstance(task, dict) and "taskId" in task:
            task["taskId"] = self._shown(server_id, principal, task["taskId"])
            return Raw(encode({**members, "task": task}))
        return result

    def told(self, result: Raw, task_id: str, shown: str) -> Raw:
        """A result about a task that the caller has named, with the id by which it did."""
        members = decode_object(result)
        changed: dict[str, Any] = {"taskId": shown} if "taskId" in members else {}
        meta = decode(members["_meta"]) if "_meta" in members else None
        related = meta.get(RELATED) if isinstance(meta, dict) else None
        if isinstance(related, dict) and related.get("taskId") == task_id:
            related["taskId"] = shown
            changed["_meta"] = meta
        return Raw(encode({**members, **changed})) if changed else result

    def meant(self, shown: str, principal: Principal) -> tuple[str, str]:
        """The server of a task, and the server's own id of it.

        Raises:
            InvalidArguments: this caller began no such task.
        """
        server_id, task_id = self._server_id or "", shown
        if self._server_id is None:
            server_id, _, task_id = shown.partition("/")
        if principal != LOCAL:
            try:
                task_id = self._ring.open(task_id, _purpose(server_id, principal)).decode()
            except BadSeal:
                raise InvalidArguments(f"you began no task {shown!r:.200} here") from None
        return server_id, task_id

    def _shown(self, server_id: str, principal: Principal, task_id: Any) -> str:
        shown = str(task_id)
        if principal != LOCAL:
            shown = self._ring.seal(shown.encode(), _purpose(server_id, principal))
        return shown if self._server_id is not None else f"{server_id}/{shown}"


def _purpose(server_id: str, principal: Principal) -> str:
    return f"task {server_id} {principal.name}"
