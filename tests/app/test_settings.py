"""Settings: strict, with file, line and what was expected; overridden by variables; told when they change."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import bearer, eventually, running_gateway, toolscore, wait_for

from toolscore.access.auth import AccessRules
from toolscore.app.files import DEBOUNCE_SECONDS, LOOK_SECONDS, Loaded, load_settings, watch_files
from toolscore.app.in_force import in_force
from toolscore.app.settings import Settings, SettingsHub


def load(folder: Path, environment: dict[str, str] | None = None, **files: str) -> Loaded:
    names = {"ports": "ports_config.yaml", "main": "toolscore.yaml", "servers": "mcp_servers.json"}
    for key, text in files.items():
        (folder / names[key]).write_text(text)
    return load_settings(folder, environment or {})


def test_no_files_are_the_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.problems == []
    assert loaded.settings == Settings()
    assert load_settings(None, {}).settings.core_services.toolscore_http.port == 8082


def test_the_files_make_one_settings(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        ports="use_inprocess_python_executor: false\ncore_services: {toolscore_http: {port: 9000}}\n",
        main="limits:\n  call_timeout_seconds: 5\n",
        servers='{"mcpServers": {"time": {"command": "uvx", "args": ["mcp-server-time"]}}}',
    )
    assert loaded.problems == []
    assert loaded.settings.core_services.toolscore_http.port == 9000
    assert loaded.settings.core_services.toolscore_mcp.port == 8081
    assert loaded.settings.limits.call_timeout_seconds == 5
    assert loaded.settings.upstreams["time"].args == ("mcp-server-time",)


@pytest.mark.parametrize("root", ["mcpServers", "servers"])
def test_a_clients_own_file_works_as_it_is(tmp_path: Path, root: str) -> None:
    """VS Code names the servers `servers`; other clients keep more beside them."""
    text = '{"theme": "dark", "inputs": [], "ROOT": {"a": {"command": "uvx", "args": ["x"], "gallery": true}}}'
    loaded = load(tmp_path, servers=text.replace("ROOT", root))
    assert loaded.problems == []
    assert loaded.settings.upstreams["a"].command == "uvx"


def test_an_entry_copied_from_a_clients_file_works_as_it_is(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        servers="""{"mcpServers": {
            "a": {"type": "stdio", "command": "npx", "args": ["-y", "x"], "env": {"K": "v"}, "disabled": false,
                  "autoApprove": [], "alwaysAllow": ["t"]},
            "b": {"type": "http", "url": "https://example.com/mcp", "headers": {"Authorization": "Bearer x"}}
        }}""",
    )
    assert loaded.problems == []
    assert loaded.settings.upstreams["b"].kind == "streamable_http"


@pytest.mark.parametrize(
    ("files", "line", "said"),
    [
        ({"main": "limits:\n  call_timeout_second: 5\n"}, 2, "did you mean 'call_timeout_seconds'"),
        ({"main": "limitz: {}\n"}, 1, "did you mean 'limits'"),
        ({"main": "# a comment\nlimits:\n  max_body_bytes: lots\n"}, 3, "valid integer"),
        ({"main": "limits:\n  call_timeout_seconds: -1\n"}, 2, "greater than 0"),
        ({"main": "limits: [1]\n"}, 1, "limits"),
        ({"main": "limits: {\n"}, 2, "not YAML"),
        ({"main": "- a\n"}, 1, "expected keys and values"),
        ({"ports": "core_services:\n  toolscore_http:\n    port: 99999\n"}, 3, "65535"),
        ({"ports": "use_inprocess_python_executor: maybe\n"}, 1, "boolean"),
        ({"servers": '{"mcpServers": {\n "a": {"comand": "uvx"}}}'}, 2, "did you mean 'command'"),
        ({"servers": '{"mcpServers": {\n "a": {\n  "args": []}}}'}, 2, "exactly one of `command`"),
        ({"servers": '{"mcpServers": {\n "a": {"command": "x", "env": {"A": [1]}}}}'}, 2, "valid string"),
        ({"servers": '{"mcpServers": {,}}'}, 1, "not JSON"),
        ({"servers": '{"mcpServer": {}}'}, 1, "expected the key 'mcpServers', found 'mcpServer'"),
        ({"servers": '{"servers": {\n "a": {"comand": "uvx"}}}'}, 2, "did you mean 'command'"),
    ],
)
def test_a_mistake_is_one_line_with_the_place(tmp_path: Path, files: dict[str, str], line: int, said: str) -> None:
    loaded = load(tmp_path, **files)
    assert len(loaded.problems) == 1, loaded.problems
    name = {"ports": "ports_config.yaml", "main": "toolscore.yaml", "servers": "mcp_servers.json"}[next(iter(files))]
    assert f"{tmp_path / name}:{line}: " in loaded.problems[0]
    assert said in loaded.problems[0]
    assert "\n" not in loaded.problems[0]


def test_no_secret_is_told_where_it_is_refused(tmp_path: Path) -> None:
    servers = {
        "a": {"url": "mcp.example.com/mcp?api_key=hunter22"},
        "b": {"command": "x", "args": "--token hunter22"},
        "c": {"url": "https://a.example/mcp", "headers": "Authorization: Bearer hunter22-hunter22"},
    }
    loaded = load(
        tmp_path,
        main="storage: {redis_url: 'rediss+srv://:hunter22@h/0'}\n",
        servers=json.dumps({"mcpServers": servers}),
    )
    assert len(loaded.problems) >= 4
    assert "hunter22" not in " ".join([*loaded.problems, *loaded.broken_servers.values()])


def test_the_rest_holds_beside_a_mistake(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        main="limits:\n  call_timeout_seconds: 7\n  oops: 1\nevents: {keep: few}\n",
        servers='{"mcpServers": {"good": {"command": "uvx"}, "bad": {"comand": "uvx"}}}',
    )
    assert len(loaded.problems) == 3
    assert loaded.settings.limits.call_timeout_seconds == 7
    assert loaded.settings.events.keep == 100_000
    assert list(loaded.settings.upstreams) == ["good"]
    assert "comand" in loaded.broken_servers["bad"]


def test_several_mistakes_in_one_entry_take_nothing_else_down(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        servers="""{"mcpServers": {
            "good": {"command": "uvx", "args": ["x"]},
            "bad": {"command": 5, "args": "x", "env": ["y"], "nonsense": 1, "call_timeout_seconds": -1},
            "also": {"url": "https://example.com/mcp"}
        }}""",
        main="rates: {per_minute: many, burst: [], tools: 5}\nlimits: {call_timeout_seconds: 7, max_body_bytes: x}\n",
    )
    assert set(loaded.settings.upstreams) == {"good", "also"}
    assert set(loaded.broken_servers) == {"bad"}
    assert sum("mcp_servers.json:3" in problem for problem in loaded.problems) >= 4, "each mistake, with its line"
    assert loaded.settings.limits.call_timeout_seconds == 7


LAUGHS = "a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "aliases written out"),
        ("a: &a [*a]\n", "contains itself"),
        ("a: &a {b: {c: *a}}\n", "contains itself"),
        ("a: " + "[" * 2000 + "]" * 2000 + "\n", "deep in one another"),
        ("# " + "x" * 5_000_000 + "\n", "over 4 MiB"),
    ],
)
def test_a_file_that_stands_for_more_than_is_written_is_refused(tmp_path: Path, text: str, said: str) -> None:
    loaded = load(tmp_path, main=text)
    assert said in str(loaded.problems)
    assert loaded.settings == Settings()


def test_aliases_are_of_use_all_the_same(tmp_path: Path) -> None:
    loaded = load(tmp_path, main="rates: &r {per_minute: 7}\nlimits: {call_timeout_seconds: 5}\n")
    assert loaded.problems == []
    assert loaded.settings.rates.per_minute == 7


def test_a_key_in_two_files_is_a_mistake(tmp_path: Path) -> None:
    loaded = load(tmp_path, ports="limits: {}\n", main="limits: {}\n")
    assert "stands in" in loaded.problems[0]


def test_variables_override_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT", "9100")
    monkeypatch.setenv("TOOLSCORE_USE_INPROCESS_PYTHON_EXECUTOR", "false")
    (tmp_path / "ports_config.yaml").write_text("core_services: {toolscore_http: {port: 9000, host: localhost}}\n")
    settings = load_settings(tmp_path).settings
    assert settings.core_services.toolscore_http.port == 9100
    assert settings.core_services.toolscore_http.host == "localhost"
    assert settings.use_inprocess_python_executor is False


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLSCORE_LIMITS__MAX_BODY_BYTES", "lots")
    monkeypatch.setenv("TOOLSCORE_LIMTIS__MAX_BODY_BYTES", "5")
    problems = load_settings(tmp_path).problems
    assert any("TOOLSCORE_LIMTIS__MAX_BODY_BYTES" in problem and "'limits'" in problem for problem in problems)
    assert any("TOOLSCORE_LIMITS__MAX_BODY_BYTES" in problem and "integer" in problem for problem in problems)


def test_callbacks_get_the_old_and_the_new_value() -> None:
    hub = SettingsHub(Settings())
    seen: list[Any] = []
    hub.on_change("limits.call_timeout_seconds", lambda old, new: seen.append((old, new)))

    @hub.on_change("limits")
    def section(old: Any, new: Any) -> None:
        seen.append((old.max_sessions, new.max_sessions))

    hub.on_change("events.keep", lambda old, new: seen.append("never"))
    hub.on_change("limits.max_sessions", lambda old, new: 1 / 0)
    changed = hub.swap(Settings(limits={"call_timeout_seconds": 5, "max_sessions": 20}))  # type: ignore[arg-type]
    assert changed == ["limits.call_timeout_seconds", "limits.max_sessions"]
    assert seen == [(60, 5), (10_000, 20)]


def test_what_is_in_force_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "toolscore.yaml").write_text(
        "limits:\n  call_timeout_seconds: 33\nstorage:\n  redis_url: redis://ada:hunter2@cache:6379/0\n"
    )
    environment = {"TOOLSCORE_CACHE__MAX_ENTRIES": "7"}
    settings = load_settings(tmp_path, environment).settings
    found = {one["key"]: one for one in in_force(settings, tmp_path, environment)}
    limit = found["limits.call_timeout_seconds"]
    assert (limit["value"], limit["default"], limit["source"]) == (33.0, 60, "file")
    assert limit["where"] == f"{tmp_path / 'toolscore.yaml'}:2"
    assert found["cache.max_entries"]["where"] == "TOOLSCORE_CACHE__MAX_ENTRIES"
    assert found["cache.max_entries"]["source"] == "variable"
    assert found["journal.enabled"]["source"] == "default"
    assert found["core_services.toolscore_http.port"]["needs_restart"]
    assert not limit["needs_restart"]
    assert "hunter2" not in json.dumps(found)
    given = settings.model_copy(update={"access": AccessRules(given_keys={"boss": {"key": "hunter2-" + "x" * 40}})})
    assert "hunter2" not in json.dumps(in_force(given, tmp_path, environment))
    assert not any(key.startswith("upstreams") for key in found)
    assert all(one["description"] is not None for one in found.values())


@pytest.mark.long
def test_the_settings_are_there_over_rest_for_admins_and_for_nobody_else() -> None:
    with running_gateway(settings="limits: {input_seconds: 7}\naccess: {local_without_key: false}\n") as process:
        made = [toolscore("keys", "create", *who, "--config", str(process.config)).stdout.strip()
                for who in (("root", "--scope", "admin"), ("ada",))]  # fmt: skip
        with httpx.Client(base_url=process.url, headers=bearer(made[0])) as root:
            wait_for(lambda: root.get("/api/v1/settings").status_code == 200)
            data = root.get("/api/v1/settings").json()["data"]
        found = {one["key"]: one for one in data["settings"]}
        assert found["limits.input_seconds"]["value"] == 7
        assert found["limits.input_seconds"]["where"].endswith("toolscore.yaml:2")
        assert (data["folder"], data["problems"]) == (str(process.config), [])
        with httpx.Client(base_url=process.url, headers=bearer(made[1])) as ada:
            assert ada.get("/api/v1/settings").status_code == 403


def test_a_key_that_stands_twice_in_a_file_is_a_mistake(tmp_path: Path) -> None:
    loaded = load(tmp_path, main="policy: {default: deny}\nlimits: {}\npolicy:\n  default: allow\nlimits: {}\n")
    assert [one.partition("toolscore.yaml")[2] for one in loaded.problems] == [
        ":3: 'policy' stands in line 1 already",
        ":5: 'limits' stands in line 2 already",
    ]
    assert loaded.unguarded == loaded.problems[:1]


def test_ids_that_can_be_none_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "mcp_servers.json").write_text(
        '{"mcpServers": {"": {"command": "a"}, "a/b": {"command": "a"}, "c": {"command": "a"}}}'
    )
    loaded = load_settings(tmp_path)
    assert list(loaded.settings.upstreams) == ["c"]
    assert len(loaded.problems) == 2
    assert all("is no id for a server" in one for one in loaded.problems)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mcp_servers.yaml", "mcpServers: {1: {command: a}, c: {command: a}}"),
        ("mcp_servers.json", '{"mcpServers": ["a"], "servers": {"a/b": {"command": "a"}}}'),
    ],
)
def test_servers_under_what_is_no_id_at_all_are_mistakes_too(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    loaded = load_settings(tmp_path)
    assert "is no id for a server" in loaded.problems[0]
    assert set(loaded.settings.upstreams) <= {"c"}


def test_a_mistake_after_which_data_may_lie_elsewhere_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(tmp_path, main="limits: {max_body_bytes: lots}\n").misplaced == []
    assert len(load(tmp_path, main="storage: {data_dri: x}\n").misplaced) == 1
    assert len(load(tmp_path, main="storge: {data_dir: x}\n").misplaced) == 1
    assert len(load(tmp_path, main="storage: {data_dir: x}\nstorage: {}\n").misplaced) == 1
    assert len(load(tmp_path, main="storage: {data_dir: [\n").misplaced) == 1, "nobody can say what stands there"
    named = tmp_path / "storage"
    named.mkdir()
    assert load(named, main="limits: {max_body_bytes: lots}\n").misplaced == [], "it is the folder's name alone"
    monkeypatch.setenv("TOOLSCORE_STORAGE__REDIS_URL", "http://redis:6379")
    assert load(tmp_path, main="").misplaced


def test_changes_of_the_files_are_seen_also_from_before_the_first_look_and_in_a_folder_that_comes_later(
    tmp_path: Path,
) -> None:
    read: list[str] = []
    folder = tmp_path / "config"

    async def main() -> None:
        loaded = load_settings(folder)

        async def changed() -> None:
            nonlocal loaded
            loaded = load_settings(folder)
            read.append(loaded.settings.logging.level)
            if len(read) == 1:
                raise RuntimeError("one reload that fails")

        folder.mkdir()
        settings = folder / "toolscore.yaml"
        settings.write_text("logging: {level: debug}")  # between the reading and the first look
        async with watch_files(folder, changed, loaded.stamps):
            await eventually(lambda: read == ["debug"])
            for level in ("info", "warning"):  # a burst
                settings.write_text(f"logging: {{level: {level}}}")
            await eventually(lambda: read == ["debug", "warning"])
            (folder / "gateway.log").write_text("a file that is none of them")
            before = settings.stat()
            os.replace(settings, folder / "kept")  # as a volume's files change: another file of the same time and size
            (folder / "toolscore.yaml").write_text("logging: {level: error  }")
            os.utime(settings, ns=(before.st_atime_ns, before.st_mtime_ns))
            await eventually(lambda: len(read) == 3)
            settings.unlink()
            await eventually(lambda: read[3:] == ["info"])
            (folder / "another.log").write_text("nothing of ours")
            await asyncio.sleep(2 * (LOOK_SECONDS + DEBOUNCE_SECONDS))  # for what must not happen
        assert len(read) == 4

    asyncio.run(main())
