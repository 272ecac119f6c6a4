"""Builds what is no Python when the package is installed: the sandbox's C helper, and the dashboard's page.

Without a compiler, or without npm's registry, the package still installs: calls take the slow path, and `/` says how to
build the page.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["Hook"]

ROOT = Path(__file__).parent
HELPER = ROOT / "mcp_servers" / "python_executor" / "sandbox" / "build.py"
PAGE = ROOT / "toolscore" / "dashboard" / "build.py"


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles `_forkserver.c` beside its source, and makes `dashboard/dist`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        if self.target_name != "wheel":
            return
        self._build_page(build_data)
        if sys.platform == "linux":
            self._build_helper(build_data)

    def _build_page(self, build_data: dict[str, Any]) -> None:
        page = _loaded("page_build", PAGE)
        try:
            page.build(PAGE.parent)
        except page.NotBuilt as exc:
            self.app.display_warning(f"the dashboard's page was not built, `/` says how to build it: {exc}")
            return
        build_data["artifacts"].append("toolscore/dashboard/dist/**")

    def _build_helper(self, build_data: dict[str, Any]) -> None:
        build = _loaded("sandbox_build", HELPER)
        suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include")
        try:
            built = build.build_helper(include, suffix, HELPER.parent)
        except OSError as exc:
            self.app.display_warning(f"the sandbox's C helper was not built, its slow path will be used: {exc}")
            return
        build_data["artifacts"].append(str(built.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
