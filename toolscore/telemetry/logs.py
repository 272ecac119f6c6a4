"""One way to log: a sentence with its facts as fields, to stderr; for people or as JSON.

Whoever started the gateway may not read what it says: then lines are dropped and counted, and nothing waits for them.
"""

from __future__ import annotations

import atexit
import logging
import queue
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any, TextIO

from toolscore.core.plain import plain

__all__ = ["configure_logging"]


def _lean_structlog() -> Any:
    """structlog without the optional `rich`, which it would import for tracebacks we print plainly: saves 4 MB."""
    hidden = [name for name in ("rich", "rich.pretty") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import structlog

        return structlog
    finally:
        for name in hidden:
            del sys.modules[name]


structlog = _lean_structlog()

MAX_LINES = 10_000
FLUSH_SECONDS = 1.0


class _Behind:
    """A text file that a thread of its own writes to; `write` never waits."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: queue.Queue[str] = queue.Queue(MAX_LINES)
        self._dropped = 0
        self._busy = False
        threading.Thread(target=self._run, name="log", daemon=True).start()
        atexit.register(self._finish)

    def write(self, text: str) -> None:
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """The thread does, when it has written what there is."""

    def _run(self) -> None:
        while True:
            text = self._lines.get()
            self._busy = True
            texts = [text]
            while len(texts) < 100 and not self._lines.empty():
                texts.append(self._lines.get_nowait())
            dropped, self._dropped = self._dropped, 0
            if dropped:
                texts.append(f"({dropped} lines of the log were dropped: nobody read them)\n")
            try:
                self._file.write("".join(texts))
                self._file.flush()
            except (OSError, ValueError):
                pass  # nobody is there to read
            self._busy = False

    def _finish(self) -> None:
        deadline = time.monotonic() + FLUSH_SECONDS
        while (self._busy or not self._lines.empty()) and time.monotonic() < deadline:
            time.sleep(0.005)


def configure_logging(level: str, form: str, worker: int | None = None) -> Any:
    """Set up structlog, and let the standard library's loggers speak through stderr too.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `console` or `json`.
        worker: which of several processes this is: each line says so.

    Returns:
        What has a `write` for whole lines that are made elsewhere.
    """
    number = getattr(logging, level.upper())
    behind: Any = _Behind(sys.stderr)
    logging.basicConfig(level=max(number, logging.WARNING), stream=behind, format="%(message)s", force=True)
    renderer = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *([_of_worker(worker)] if worker is not None else []),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if form == "json" else []),
            *([_shown] if form != "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(behind),
        cache_logger_on_first_use=True,
    )
    return behind


def _of_worker(number: int) -> Any:
    def add(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        line["worker"] = number
        return line

    return add


def _shown(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A line whose texts cannot steer a terminal, whoever wrote them."""
    return {key: plain(value) if isinstance(value, str) else value for key, value in line.items()}
