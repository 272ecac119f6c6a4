"""Builds the sandbox's C helper when the package is installed.

Without a compiler the package still installs, and calls take the slow path.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["HelperHook"]

BUILD = Path(__file__).parent / "sandbox" / "build.py"


class HelperHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles `_forkserver.c` beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        if self.target_name != "wheel" or sys.platform != "linux":
            return
        spec = importlib.util.spec_from_file_location("sandbox_build", BUILD)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include")
        try:
            built = build.build_helper(include, suffix, BUILD.parent)
        except OSError as exc:
            self.app.display_warning(f"the sandbox's C helper was not built, its slow path will be used: {exc}")
            return
        build_data["artifacts"].append(str(built.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
