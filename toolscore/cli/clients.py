"""The MCP clients that `toolscore connect` knows: where each keeps its servers, and how it spells one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CLIENTS", "ENTRY", "Client", "clients"]

ENTRY = "toolscore"
"""What we are called among a client's servers."""
Entry = Callable[[list[str]], dict[str, Any]]


def _program(command: list[str]) -> dict[str, Any]:
    return {"command": command[0], "args": command[1:]}


def _typed(command: list[str]) -> dict[str, Any]:
    return {"type": "stdio", **_program(command)}


def _goose(command: list[str]) -> dict[str, Any]:
    return {
        "enabled": True, "type": "stdio", "name": ENTRY, "cmd": command[0], "args": command[1:], "envs": {},
        "timeout": 300,
    }  # fmt: skip


@dataclass(frozen=True)
class Client:
    """A program that uses MCP servers.

    Attributes:
        name: as people call it.
        file: where its servers stand; `None`: in a store of its own, they are entered on a page of it.
        root: the keys above the servers.
        entry: how it writes one that is started by a command.
        again: what makes it read the file.
    """

    name: str
    file: Path | None
    root: tuple[str, ...] = ("mcpServers",)
    entry: Entry = _program
    again: str = "restart it"

    @property
    def kind(self) -> str:
        """How its file is written: `json`, `toml` or `yaml`."""
        suffix = self.file.suffix if self.file is not None else ""
        return {".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}.get(suffix, "json")


def clients(home: Path, platform: str = sys.platform) -> dict[str, Client]:
    """Those that are known, by the name that is given to the command.

    Args:
        home: the user's own folder.
        platform: as `sys.platform`.
    """
    if platform == "darwin":
        apps = home / "Library" / "Application Support"
    elif platform == "win32":
        apps = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    else:
        apps = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    dot_config = apps if platform == "win32" else Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    codex = Path(os.environ.get("CODEX_HOME") or home / ".codex")
    cline = ("Code", "User", "globalStorage", "saoudrizwan.claude-dev", "settings", "cline_mcp_settings.json")
    goose = apps / "Block" / "goose" / "config" if platform == "win32" else dot_config / "goose"
    return {
        "claude-desktop": Client("Claude Desktop", apps / "Claude" / "claude_desktop_config.json"),
        "claude-code": Client("Claude Code", home / ".claude.json", entry=_typed),
        "vscode": Client(
            "VS Code", apps / "Code" / "User" / "mcp.json", ("servers",), _typed, "start it on its MCP list"
        ),
        "cursor": Client("Cursor", home / ".cursor" / "mcp.json"),
        "windsurf": Client("Windsurf", home / ".codeium" / "windsurf" / "mcp_config.json", again="press Refresh there"),
        "cline": Client("Cline", apps.joinpath(*cline), again="it reads the file at once"),
        "zed": Client(
            "Zed", dot_config / "zed" / "settings.json", ("context_servers",), again="it reads the file at once"
        ),
        "gemini": Client("Gemini CLI", home / ".gemini" / "settings.json"),
        "codex": Client("Codex", codex / "config.toml", ("mcp_servers",)),
        "goose": Client("Goose", goose / "config.yaml", ("extensions",), _goose),
        "kiro": Client("Kiro", home / ".kiro" / "settings" / "mcp.json", again="it reads the file at once"),
        "lm-studio": Client("LM Studio", home / ".lmstudio" / "mcp.json", again="it reads the file at once"),
        "cherry-studio": Client("Cherry Studio", None),
    }


CLIENTS = tuple(clients(Path()))
"""Their names."""
