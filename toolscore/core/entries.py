"""Entries of servers as MCP clients write them, in our own spelling. Pure.

The files of Claude, VS Code, Cursor, Windsurf, Cline, Zed, Gemini, Codex, Goose, Kiro, Cherry Studio, LM Studio and
opencode say the same things in different words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["SPELLED", "WITHOUT_EFFECT", "plain_json", "servers_in", "translated", "without_effect"]

ROOTS = ("mcpServers", "servers", "mcp_servers", "context_servers", "extensions")
"""Under which key files have their servers: most; VS Code; Codex; Zed; Goose."""
NESTED_ROOTS = (("mcp", "servers"), ("mcp",))
"""VS Code's settings; opencode."""

WITHOUT_EFFECT = frozenset(
    {
        "alwaysAllow", "autoApprove", "autoApproveAll", "autoStart", "available_tools", "bundled", "chat_instructions",
        "dev", "display_name", "enable_instructions", "gallery", "icon", "iconUrl", "id", "installSource", "logoUrl",
        "name", "note", "oauth", "provider", "providerUrl", "registryUrl", "source", "timeout", "trust", "version",
        "sandbox", "sandboxEnabled", "inputs", "isTrusted", "longRunning", "searchKey", "reference", "settings",
        "required", "scopes", "oauth_resource", "supports_parallel_tool_calls", "default_tools_approval_mode",
    }
)  # fmt: skip
"""Keys that clients keep for their own use: accepted, and said once that they change nothing here."""

SPELLED = {
    "httpUrl": "url", "serverUrl": "url", "baseUrl": "url", "uri": "url", "cmd": "command", "envs": "env",
    "environment": "env", "http_headers": "headers", "envFile": "env_file", "workingDirectory": "cwd",
    "startup_timeout_sec": "start_timeout_seconds", "tool_timeout_sec": "call_timeout_seconds",
    "includeTools": "include_tools", "allowedTools": "include_tools", "enabled_tools": "include_tools",
    "excludeTools": "exclude_tools", "disabledTools": "exclude_tools", "disabled_tools": "exclude_tools",
}  # fmt: skip
"""Theirs → ours."""

TYPES = {
    "local": "stdio", "remote": None, "streamable_http": "streamable-http", "streamableHttp": "streamable-http",
    "ws": "websocket", "builtin": "inprocess",
}  # fmt: skip
TEXTS = ("env", "headers")


def translated(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry in our spelling. What is wrong with it stays, for whoever checks it.

    Raises:
        ValueError: it says two things at once.
    """
    ours: dict[str, Any] = {}
    for key, value in entry.items():
        name = SPELLED.get(key, key)
        if key in WITHOUT_EFFECT:
            continue
        if name in ours and ours[name] != value:
            raise ValueError(f"`{key}` and another key say {name!r}: keep one of them")
        ours[name] = value
    _switches(ours)
    _way(ours)
    _tools(ours)
    for name in TEXTS:
        if isinstance(ours.get(name), dict):
            ours[name] = {key: _text(value) for key, value in ours[name].items() if value is not None}
    if isinstance(ours.get("args"), list | tuple):
        ours["args"] = [_text(value) for value in ours["args"]]
    return ours


def _switches(ours: dict[str, Any]) -> None:
    for key in ("enabled", "isActive"):
        if isinstance(ours.get(key), bool):
            ours["disabled"] = bool(ours.get("disabled")) or not ours.pop(key)


def _way(ours: dict[str, Any]) -> None:
    command = ours.get("command")
    if isinstance(command, dict) and "path" in command:  # Zed
        ours |= {"command": command["path"], **{key: command[key] for key in ("args", "env") if key in command}}
    elif isinstance(command, list) and command and "args" not in ours:  # opencode
        ours |= {"command": command[0], "args": command[1:]}
    if ours.get("env_vars"):  # Codex: names of variables that the server gets
        names = [name for name in ours.pop("env_vars") if isinstance(name, str)]
        ours["env"] = {**{name: f"${{{name}:-}}" for name in names}, **(ours.get("env") or {})}
    headers = dict(ours.get("headers") or {}) if isinstance(ours.get("headers"), dict | None) else None
    if headers is not None and isinstance(ours.get("env_http_headers"), dict):
        headers |= {name: f"${{env:{variable}}}" for name, variable in ours.pop("env_http_headers").items()}
    if headers is not None and isinstance(ours.get("bearer_token_env_var"), str):
        headers["Authorization"] = f"Bearer ${{env:{ours.pop('bearer_token_env_var')}}}"
    if headers:
        ours["headers"] = headers
    for key in ("transport", "transportType"):
        if isinstance(ours.get(key), str):
            ours.setdefault("type", ours.pop(key))
    if isinstance(ours.get("type"), str) and ours["type"] in TYPES:
        ours["type"] = TYPES[ours["type"]]


def _tools(ours: dict[str, Any]) -> None:
    tools = ours.pop("tools", None)
    if isinstance(tools, dict):  # name → whether it is on
        on = [name for name, given in tools.items() if given is True]
        off = [name for name, given in tools.items() if given is False]
        if on and "*" not in on:
            ours.setdefault("include_tools", on)
        ours["exclude_tools"] = [*(ours.get("exclude_tools") or ()), *off]
    elif tools is not None:
        ours.setdefault("include_tools", tools)


def _text(value: Any) -> Any:
    """A number or a truth value as the file spells it."""
    return json.dumps(value) if isinstance(value, bool | int | float) else value


def without_effect(entry: Any) -> list[str]:
    """The keys of an entry that are accepted and change nothing here."""
    return sorted(entry.keys() & WITHOUT_EFFECT) if isinstance(entry, dict) else []


def servers_in(data: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Where a file has servers: the path of each such member, and what stands there."""
    for root in ROOTS:
        if root in data:
            yield (root,), data[root]
    for path in NESTED_ROOTS:
        at: Any = data
        for step in path:
            at = at.get(step) if isinstance(at, dict) else None
        if isinstance(at, dict) and not (path == ("mcp",) and "servers" in at):
            yield path, at


_TOKEN = re.compile(r'"|//|/\*')
_STRING_END = re.compile(r'[^"\\\n]*(?:\\.[^"\\\n]*)*"?')
_TRAILING = re.compile(r"(^|[^\s{\[,:])(\s*),(?=\s*[}\]])")


def plain_json(text: str) -> str:
    """JSON out of what editors allow: comments and commas before a closing bracket become blanks, so that each line
    and column stays where it was. What stands in texts stays.
    """
    parts: list[str] = []
    at = 0
    while (token := _TOKEN.search(text, at)) is not None:
        parts.append(text[at : token.start()])
        if token[0] == '"':
            end = _STRING_END.match(text, token.end())
            at = end.end() if end is not None else len(text)
            parts.append(text[token.start() : at])
            continue
        close = text.find("\n" if token[0] == "//" else "*/", token.end())
        at = len(text) if close < 0 else close + (0 if token[0] == "//" else 2)
        parts.append(re.sub(r"[^\n]", " ", text[token.start() : at]))
    text = "".join((*parts, text[at:]))
    parts, at = [], 0
    while (quote := text.find('"', at)) >= 0:
        parts.append(_TRAILING.sub(r"\1\2 ", text[at:quote]))
        end = _STRING_END.match(text, quote + 1)
        stop = end.end() if end is not None else len(text)
        parts.append(text[quote:stop])
        at = stop
    parts.append(_TRAILING.sub(r"\1\2 ", text[at:]))
    return "".join(parts)
