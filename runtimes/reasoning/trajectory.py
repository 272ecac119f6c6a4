"""A run as a file: JSON lines, written as it goes, so that a run that was killed goes on from its last whole step."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Trajectory", "TrajectoryError", "Writer", "as_chat", "compared", "outcome", "read_trajectory", "redacted"]

MAX_LINE_BYTES = 16 * 1024 * 1024
SECRETS = (
    re.compile(r"\b(sk|pk|rk|ghp|gho|xox[abp]|glpat|AKIA)[-_A-Za-z0-9]{12,}"),
    re.compile(r"\bts_[0-9a-z]{4,}_[0-9A-Za-z_-]{12,}"),
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{12,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"),
    re.compile(r"(?i)(?<=[\"'])?\b(password|passwd|secret|token|api[_-]?key)\b([\"']?\s*[:=]\s*[\"']?)[^\s\"',;]{6,}"),
    re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,20000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


class TrajectoryError(ValueError):
    """A file is no trajectory, or cannot be read."""


@dataclass
class Trajectory:
    """A run as its file tells it.

    Attributes:
        messages: what the model was told and said, up to the last whole step.
        steps: the `code_run` events.
        untold: the last step, as long as the model was not told of it; `None`: it was.
        pending: code that was written and has no result: `{step, code, request_id}`; `None`: there is none.
        end: the `ended` event; `None`: it did not end.
        read, written, money, seconds: so far.
    """

    run_id: str = ""
    task: str = ""
    model: str = ""
    endpoint: str = ""
    key: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    approved: set[str] = field(default_factory=set)
    untold: dict[str, Any] | None = None
    pending: dict[str, Any] | None = None
    answer: str | None = None
    end: dict[str, Any] | None = None
    read: int = 0
    written: int = 0
    money: float = 0.0
    seconds: float = 0.0


class Writer:
    """Writes a trajectory. Each line is the kernel's before the run goes on: a kill loses nothing that was told.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end_the_line()
        self._file: TextIO = open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8")  # noqa: SIM115

    def _end_the_line(self) -> None:
        """Take back a last line that a kill cut off."""
        if not self.path.exists():
            return
        with open(self.path, "rb+") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_trajectory(path: Path) -> Trajectory:
    """Read a run.

    Raises:
        TrajectoryError
    """
    found = Trajectory()
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                if not line.endswith(b"\n"):
                    break  # cut off by a kill
                try:
                    _take(found, json.loads(line))
                except (ValueError, KeyError, TypeError) as exc:
                    raise TrajectoryError(f"{path}, line {number}: {exc}") from exc
    except OSError as exc:
        raise TrajectoryError(f"{path} cannot be read: {exc.strerror}") from exc
    _tell(found)
    if not found.run_id:
        raise TrajectoryError(f"{path} has no run in it")
    return found


def _take(found: Trajectory, line: dict[str, Any]) -> None:
    kind = line["type"]
    if kind == "started":
        found.run_id, found.task, found.model = line["run_id"], line["task"], line["model"]
        found.endpoint, found.key = line["endpoint"], line["key"]
        found.end = None
    elif kind == "messages":  # what the model is told from now on
        found.messages, found.untold = list(line["messages"]), None
    elif kind == "message":
        message = {"role": line["role"], "content": line["content"]}
        if found.untold is not None and message != _told_of(found.untold):
            _tell(found)
        found.untold = None
        found.messages.append(message)
    elif kind == "usage":
        found.read, found.written = found.read + line["read"], found.written + line["written"]
        found.money, found.seconds = found.money + line["money"], line["seconds"]
    elif kind == "code_written":
        found.pending = line
    elif kind == "approved":
        found.approved.update(line["tools"])
    elif kind == "code_run":
        if found.pending is not None:
            found.codes.append(found.pending["code"])
        found.pending = None
        found.steps.append(line)
        found.untold = line
    elif kind == "answered":
        found.answer = line["text"]
    elif kind == "ended":
        found.end = line


def _tell(found: Trajectory) -> None:
    """Have the model know of a step that a kill kept from it: else it would have the code run again."""
    if found.untold is not None:
        found.messages.append(_told_of(found.untold))
        found.untold = None


def _told_of(step: dict[str, Any]) -> dict[str, str]:
    return {"role": "user", "content": outcome(step["ok"], step["text"])}


def outcome(ok: bool, text: str) -> str:
    """What the model is told of code that ran."""
    return f"{'It ran.' if ok else 'It failed.'}\n{text}"


def as_chat(found: Trajectory) -> list[dict[str, str]]:
    """The run as chat messages for training, without secrets."""
    return [{"role": one["role"], "content": redacted(one["content"])} for one in found.messages]


def redacted(text: str) -> str:
    """A text with `[redacted]` where keys, tokens and passwords stand."""
    for pattern in SECRETS:
        text = pattern.sub(
            lambda found: f"{found[1]}{found[2]}[redacted]" if (found.re.groups == 2) else "[redacted]", text
        )
    return text


def _hidden(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}[redacted]" if found.re.groups == 2 else "[redacted]"


def compared(one: Trajectory, other: Trajectory) -> list[tuple[str, str, str]]:
    """Two runs beside one another: rows of what, the one, the other."""

    def figures(run: Trajectory) -> dict[str, str]:
        return {
            "task": run.task,
            "model": run.model,
            "ended": run.end["reason"] if run.end is not None else "did not end",
            "steps": str(len(run.steps)),
            "failed steps": str(sum(not step["ok"] for step in run.steps)),
            "calls of tools": str(sum(step["calls"] for step in run.steps)),
            "tokens read": f"{run.read:,}",
            "tokens written": f"{run.written:,}",
            "seconds": f"{run.seconds:.1f}",
            "answer": run.answer or "",
        }

    left, right = figures(one), figures(other)
    rows = [(name, left[name], right[name]) for name in left]
    for number in range(max(len(one.codes), len(other.codes))):
        codes = [run.codes[number] if number < len(run.codes) else "" for run in (one, other)]
        rows.append((f"code {number + 1}", codes[0], codes[1] if codes[0] != codes[1] else "(the same)"))
    return rows
