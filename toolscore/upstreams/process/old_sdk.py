"""Servers that were written for MCP's Python SDK 1.x, and die on 2.x: of those on PyPI, one in three."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from toolscore.core.models import UpstreamSpec

__all__ = ["needs_old_sdk", "with_old_sdk"]

DEATHS = re.compile(r"(ImportError|ModuleNotFoundError|AttributeError|TypeError|NameError)\b")
OLD_SDK = ("--with", "mcp<2")


def needs_old_sdk(output: Iterable[str]) -> bool:
    """Whether these last lines are those of a server that does not find what the SDK 1.x had."""
    said = "\n".join(output)
    return DEATHS.search(said) is not None and "mcp" in said


def with_old_sdk(spec: UpstreamSpec) -> UpstreamSpec | None:
    """The entry of a server that `uvx` runs, with the old SDK beside it; `None`: it is run otherwise, or has it."""
    if OLD_SDK[1] in spec.args or spec.command is None:
        return None
    runner = os.path.basename(spec.command)
    if runner == "uvx":
        return spec.model_copy(update={"args": (*OLD_SDK, *spec.args)})
    if runner == "uv" and spec.args[:2] == ("tool", "run"):
        return spec.model_copy(update={"args": ("tool", "run", *OLD_SDK, *spec.args[2:])})
    return None
