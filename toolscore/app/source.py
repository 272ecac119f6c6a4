"""One settings file as it is read: its data, and the line of each key, for messages that name it."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from toolscore.core.entries import plain_json, servers_in, without_effect
from toolscore.core.names import MAX_SERVER_ID, is_server_id

__all__ = ["SERVER_FILES", "SettingsFile"]

SERVER_FILES = ("mcp_servers.json", "mcp_servers.yaml", "mcp_servers.toml")
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_PARTS = 200_000
"""Of a file, with its aliases written out."""
MAX_DEPTH = 50
TOML_TABLE = re.compile(r"\s*\[([^\[\]]+)\]")
TOML_KEY = re.compile(r"""\s*([\w-]+|"[^"]*"|'[^']*')\s*=""")
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SettingsFile:
    """One settings file: its data, and the line of each key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self.data: dict[str, Any] = {}
        self._lines: dict[tuple[str, ...], int] = {}
        self.doubled: list[tuple[tuple[str, ...], str]] = []
        """Keys that stand twice beside one another, and what is to be said of it."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                self.problem = f"{path}: has over {MAX_FILE_BYTES // 2**20} MiB"
                return
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as exc:
            self.problem = f"{path}: cannot be read: {exc}"
            return
        try:
            if path.suffix == ".toml":
                data = tomllib.loads(text)
                self._note_toml(text)
            elif path.suffix == ".json":
                text = plain_json(text)
                data = json.loads(text)
                # JSON is read as YAML for its line numbers; tabs, which YAML refuses, only cost these.
                with contextlib.suppress(yaml.YAMLError, _Unfolds):
                    self._compose(text)
            else:
                data = self._compose(text)
        except _Unfolds as exc:
            self.problem = f"{path}: {exc}"
            return
        except RecursionError:
            self.problem = f"{path}: its parts stand too deep in one another"
            return
        except tomllib.TOMLDecodeError as exc:
            self.problem = f"{path}: not TOML: {exc}"
            return
        except json.JSONDecodeError as exc:
            self.problem = f"{path}:{exc.lineno}: not JSON: {exc.msg}"
            return
        except yaml.YAMLError as exc:
            mark = getattr(exc, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            self.problem = f"{path}{line}: not YAML: {getattr(exc, 'problem', None) or exc}"
            return
        if data is None:
            return
        if not isinstance(data, dict):
            self.problem = f"{path}:1: expected keys and values, found {type(data).__name__}"
            return
        self.data = data

    def keep_servers(self, problems: list[str]) -> None:
        """Of a file that MCP clients share keep the servers: under `mcpServers`, or `servers` as VS Code has it."""
        found = list(servers_in(self.data))
        if not found:
            if self.data:
                keys = ", ".join(map(repr, self.data))
                problems.append(f"{self.path}:1: expected the key 'mcpServers', found {keys}")
            self.data = {}
            return
        servers: Any = {}
        lines: dict[tuple[str, ...], int] = {}
        for root, given in found:
            if not isinstance(given, dict):
                servers = given  # which the check says what is wrong with
                continue
            for server_id in [one for one in given if not is_server_id(one)]:
                problems.append(
                    f"{self.path}:{self.line((*root, str(server_id)))}: {server_id!r:.160} is no id for a server: "
                    f"a text of 1 to {MAX_SERVER_ID} characters, without a slash"
                )
                del given[server_id]
            for server_id in servers.keys() & given.keys() if isinstance(servers, dict) else ():
                problems.append(
                    f"{self.path}:{self.line((*root, server_id))}: server {server_id!r} stands in the file twice"
                )
            if isinstance(servers, dict):
                servers = {**given, **servers}
            for path, line in self._lines.items():
                if path[: len(root)] == root:
                    lines.setdefault(("mcpServers", *path[len(root) :]), line)
        self.data, self._lines = {"mcpServers": servers}, lines

    def remarks(self) -> list[str]:
        """What stands in the entries and changes nothing here."""
        servers = self.data.get("mcpServers")
        return [
            f"{self.path}:{self.line(('mcpServers', server_id))}: {', '.join(f'`{key}`' for key in ignored)} of "
            f"{server_id!r} {'have' if len(ignored) > 1 else 'has'} no effect here"
            for server_id, entry in (servers.items() if isinstance(servers, dict) else ())
            if (ignored := without_effect(entry))
        ]

    def _note_toml(self, text: str) -> None:
        """The lines of a file's tables and keys, as far as they stand plainly."""
        table: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := TOML_TABLE.match(line):
                table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
                self._lines[table] = number
            elif key := TOML_KEY.match(line):
                self._lines[*table, key[1].strip("\"'")] = number

    def _compose(self, text: str) -> Any:
        """The data of a text, with the line of each key.

        Raises:
            yaml.YAMLError. _Unfolds: it contains itself, or far more than is written.
        """
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node)
            self._note(node, ())
            return loader.construct_document(node)
        finally:
            loader.dispose()

    def _note(self, node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                below = (*path, name)
                if name in first and name != "<<":
                    said = f"{self.path}:{line}: {'.'.join(below)!r} stands in line {first[name]} already"
                    self.doubled.append((below, said))
                first.setdefault(name, line)
                self._lines[below] = line
                self._note(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                below = (*path, str(index))
                self._lines[below] = value.start_mark.line + 1
                self._note(value, below)

    def line(self, path: tuple[str, ...]) -> int | None:
        """The line of a key, or of the nearest key around it."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return None


class _Unfolds(Exception):
    """A file stands for more than is written in it."""


def _check_size(root: Any) -> None:
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: Any, depth: int) -> int:
        known = sizes.get(id(node))
        if known is not None:
            return known
        if id(node) in open_:
            raise _Unfolds("it contains itself (an alias inside what it stands for)")
        if depth > MAX_DEPTH:
            raise _Unfolds(f"its parts stand more than {MAX_DEPTH} deep in one another")
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        open_.add(id(node))
        found = 1 + sum(size(part, depth + 1) for part in parts)
        open_.discard(id(node))
        if found > MAX_PARTS:
            raise _Unfolds(f"it has over {MAX_PARTS:,} parts, its aliases written out")
        sizes[id(node)] = found
        return found

    size(root, 0)
