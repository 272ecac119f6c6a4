"""One way to log: a sentence with its facts as fields, to stderr; for people or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Any

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


def configure_logging(level: str, form: str) -> None:
    """Set up structlog, and let the standard library's loggers speak through stderr too.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `console` or `json`.
    """
    number = getattr(logging, level.upper())
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, format="%(message)s", force=True)
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
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if form == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
