"""Where traces and logs go.

A module of its own: whoever only logs spares pydantic's memory.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from toolscore.core.rules import HttpUrl, Rules

__all__ = ["LogRules", "TracingRules"]


class TracingRules(Rules):
    """Where spans go; takes `pip install toolscore[tracing]`."""

    needs_restart = True

    endpoint: HttpUrl | None = Field(None, description="OpenTelemetry, OTLP over HTTP: http://127.0.0.1:4318/v1/traces")


class LogRules(Rules):
    """How it logs."""

    needs_restart = True

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning, error")
    format: Literal["console", "json"] = Field("console", description="or json")
