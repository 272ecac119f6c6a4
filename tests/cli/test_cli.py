"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import PYTHON, Fickle, GatewayProcess, free_port, odd, running_gateway, toolscore, wait_for

from toolscore.app.files import load_settings
from toolscore.cli.saving import save_result
from toolscore.cli.terminal import gateway_url


@pytest.mark.long
def test_tools_are_a_table_or_json(gateway: GatewayProcess) -> None:
    table = toolscore("tools", "alpha", gateway=gateway)
    assert table.returncode == 0
    assert "alpha__echo" in table.stdout
    assert "text, times?" in table.stdout
    found = json.loads(toolscore("tools", "--server", "many", "--json", gateway=gateway).stdout)
    assert len(found) == 500
    assert toolscore("tools", "nothing-like-it", gateway=gateway).stdout == "no tools match\n"


@pytest.mark.long
def test_servers_show_their_state(gateway: GatewayProcess) -> None:
    for server in json.loads(toolscore("servers", "--json", gateway=gateway).stdout):
        gateway.wait_for_state(server["server_id"], "up")
    table = toolscore("servers", gateway=gateway).stdout
    assert "inprocess" in table
    assert "500" in table
    assert {server["state"] for server in json.loads(toolscore("servers", "--json", gateway=gateway).stdout)} == {"up"}


@pytest.mark.long
def test_servers_that_are_disabled_are_listed() -> None:
    with running_gateway(servers={"off": {"command": "uvx", "args": ["no-such-server"], "disabled": True}}) as process:
        (line,) = [line for line in toolscore("servers", gateway=process).stdout.splitlines() if line.startswith("off")]
        assert line.split()[:3] == ["off", "stdio", "disabled"]
        one = process.http.get("/api/v1/servers/off").json()["data"]
        assert (one["state"], one["disabled"], one["kind"]) == ("stopped", True, "stdio")


@pytest.mark.long
def test_a_server_is_added_looked_at_restarted_and_removed(tmp_path: Path) -> None:
    with running_gateway() as process:
        entry = odd("echo")
        command = [entry["command"], *entry["args"]]
        asked = toolscore("servers", "add", "mine", *command, gateway=process)
        assert (asked.returncode, "pass --yes" in asked.stderr) == (2, True)
        assert "mine runs: " in asked.stdout
        added = toolscore("servers", "add", "--yes", "--env", "A=b", "mine", *command, gateway=process)
        assert added.returncode == 0, added.stderr
        process.wait_for_state("mine", "up")
        assert toolscore("call", "mine__echo", "text=hi", gateway=process).stdout == "hi\n"
        shown = toolscore("servers", "show", "mine", gateway=process).stdout
        assert "state             up" in shown
        assert 'env_keys          ["A"]' in shown
        assert toolscore("servers", "restart", "mine", gateway=process).returncode == 0
        assert "written nothing" in toolscore("servers", "logs", "mine", gateway=process).stderr
        assert toolscore("servers", "remove", "mine", gateway=process).returncode == 0
        assert toolscore("servers", "show", "mine", gateway=process).returncode == 1
        for wrong in (["add", "x"], ["add", "--at", "http://h/mcp", "x", "cmd"], ["add", "--env", "A", "x", "y"]):
            assert toolscore("servers", *wrong, gateway=process).returncode == 2


@pytest.mark.long
def test_a_server_is_disabled_until_it_is_enabled() -> None:
    with running_gateway({"mine": odd("echo")}) as process:
        process.wait_for_state("mine", "up")
        assert toolscore("servers", "disable", "mine", gateway=process).returncode == 0
        for _ in range(2):  # also after a restart
            assert process.execute("mine__echo", {"text": "a"})["error"]["code"] == "tool_not_found"
            (line,) = [line for line in toolscore("servers", gateway=process).stdout.splitlines() if "mine" in line]
            assert "disabled" in line
            assert not [command for command in process.commands() if "odd.py" in " ".join(command)]
            process.stop()
            process.servers({"mine": odd("echo"), "off": odd("echo", disabled=True)})
            process.start()
        attached = process.http.post("/api/v1/servers", json={"server_id": "mine", **odd("echo")})
        assert attached.status_code == 409
        refused = toolscore("servers", "enable", "off", gateway=process)
        assert "mcp_servers.json" in refused.stderr
        process.servers({"mine": odd("junk")})  # what it is meanwhile is what is started
        wait_for(lambda: not process.http.get("/api/v1/servers/off").json()["success"], message="for the reload")
        assert toolscore("servers", "enable", "mine", gateway=process).returncode == 0
        process.wait_for_state("mine", "up")
        assert "junk" in " ".join(next(command for command in process.commands() if "odd.py" in " ".join(command)))
        assert process.text("mine__echo", {"text": "a"}) == "a"
        assert toolscore("servers", "disable", "nobody", gateway=process).returncode == 1


@pytest.mark.long
def test_call_takes_pairs_or_json(gateway: GatewayProcess) -> None:
    done = toolscore("call", "alpha__echo", "text=hi there", "times=2", gateway=gateway)
    assert (done.returncode, done.stdout) == (0, "hi there\n")
    done = toolscore("call", "alpha", "--action", "echo", "--json", '{"text": "from json"}', gateway=gateway)
    assert (done.returncode, done.stdout) == (0, "from json\n")
    raw = json.loads(toolscore("call", "alpha__echo", "text=hi", "--raw", gateway=gateway).stdout)
    assert raw["data"]["tool_id"] == "alpha__echo"


@pytest.mark.long
def test_texts_are_texts_also_while_their_server_is_starting(tmp_path: Path) -> None:
    go, program = tmp_path / "go", odd("echo")
    command = shlex.join([program["command"], *program["args"]])
    script = f"until [ -e {shlex.quote(str(go))} ]; do sleep 0.05; done; exec {command}"
    with (
        running_gateway({"late": {"command": "sh", "args": ["-c", script]}}, start=False) as process,
        ThreadPoolExecutor() as others,
    ):
        process.start()
        calling = others.submit(toolscore, "call", "late__echo", "text=5", gateway=process)
        wait_for(lambda: process.get("/api/v1/stats")["calls_in_flight"] == 1)
        go.touch()
        done = calling.result()
        assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["call", "alpha__ecko"], 1, "alpha__echo"),
        (["call", "alpha__echo"], 1, "required property"),
        (["call", "alpha__echo", "text"], 2, "KEY=VALUE"),
        (["call", "alpha__echo", "--json", "{"], 2, "JSON"),
        (["call", PYTHON, "code=1/0"], 1, ""),
    ],
)
def test_failures_have_a_message_and_a_code(
    gateway: GatewayProcess, arguments: list[str], code: int, said: str
) -> None:
    done = toolscore(*arguments, gateway=gateway)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_an_argument_may_stand_in_a_file(gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("from a file\n")
    for argument, echoed in ((f"text=@{tmp_path / 'text'}", "from a file\n"), ("text=@@ada", "@ada")):
        done = toolscore("call", "alpha__echo", argument, gateway=gateway)
        assert (done.returncode, done.stdout) == (0, f"{echoed}\n")
    done = toolscore("call", "alpha__echo", "text=@ada", gateway=gateway)
    assert done.returncode == 2
    assert "text=@@ada" in done.stderr


@pytest.mark.long
def test_files_and_pictures_are_saved_and_nothing_is_replaced(gateway: GatewayProcess, tmp_path: Path) -> None:
    code = "class P:\n    def _repr_png_(self): return b'png'\nopen('a.txt', 'w').write('a')\nP()"
    folder = tmp_path / "out"
    done = toolscore("call", PYTHON, f"code={code}", "--save", str(folder), gateway=gateway)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.txt": b"a", "image-1.png": b"png"}
    (folder / "a.txt").write_text("mine")
    done = toolscore("call", PYTHON, f"code={code}", "--save", str(folder), gateway=gateway)
    assert "'a.txt' was not saved: File exists" in done.stderr
    assert (folder / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../out", "/tmp/toolscore-out", "inside/../../out", "link/out", "a\0b"])
def test_a_server_cannot_name_a_file_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    save_result({"structured_content": {"files": [{"path": name, "content": "x"}]}}, tmp_path / "in")
    assert not (tmp_path / "out").exists()
    assert not Path("/tmp/toolscore-out").exists()


@pytest.mark.long
def test_python_sessions_are_listed_and_ended(gateway: GatewayProcess) -> None:
    gateway.wait_for_state(PYTHON.partition("__")[0], "up")
    assert toolscore("call", "python__python_execute", 'code="quoted"', gateway=gateway).stdout == "'quoted'\n"
    assert toolscore("call", PYTHON, "code=12", "session_id=1", gateway=gateway).stdout == "12\n"
    assert toolscore("python", "end", "1", gateway=gateway).returncode == 0
    toolscore("call", PYTHON, "code=a = 1", "session_id=mine", gateway=gateway)
    assert "mine     idle" in toolscore("python", "sessions", gateway=gateway).stdout
    assert toolscore("python", "end", "mine", gateway=gateway).returncode == 0
    assert toolscore("python", "end", "mine", gateway=gateway).returncode == 1
    assert toolscore("python", "sessions", gateway=gateway).stdout == "no sessions\n"


@pytest.mark.long
def test_a_narrow_terminal_gets_whole_words(gateway: GatewayProcess) -> None:
    for command in (("tools",), ("servers",), ("search", "echo a text"), ("calls", "list"), ("pins", "list")):
        wide = toolscore(*command, gateway=gateway).stdout
        narrow = toolscore(*command, gateway=gateway, variables={"COLUMNS": "80"}).stdout
        assert max(map(len, narrow.splitlines())) <= 80
        if command[0] in ("tools", "servers", "pins"):  # which say the same the second time
            assert set(wide.split()) <= set(narrow.replace(":", "").split()) | set(narrow.split()), command


@pytest.mark.parametrize(
    ("ports", "variables", "found"),
    [
        (None, {}, ("http://127.0.0.1:8082", "the default")),
        ("core_services: {toolscore_http: {port: 9001}}", {}, ("http://127.0.0.1:9001", "ports_config.yaml")),
        ("core_services: {toolscore_http: {host: 0.0.0.0}}", {}, ("http://127.0.0.1:8082", "ports_config.yaml")),
        ("core_services: {toolscore_http: {host: '::1'}}", {}, ("http://[::1]:8082", "ports_config.yaml")),
        ("core_services: [", {}, ("http://127.0.0.1:8082", "the default")),
        (
            "core_services: {toolscore_http: {port: 9001}}",
            {"TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT": "9002"},
            ("http://127.0.0.1:9002", "TOOLSCORE_CORE_SERVICES__TOOLSCORE_HTTP__PORT"),
        ),
        (
            None,
            {"TOOLSCORE_CORE_SERVICES": '{"toolscore_http": {"port": 9003}}'},
            ("http://127.0.0.1:9003", "TOOLSCORE_CORE_SERVICES"),
        ),
        (
            "core_services: {toolscore_http: {port: 9001}}",
            {"TOOLSCORE_URL": "http://far"},
            ("http://far", "TOOLSCORE_URL"),
        ),
    ],
)
def test_a_command_finds_the_gateway_of_the_settings(
    tmp_path: Path, ports: str | None, variables: dict[str, str], found: tuple[str, str]
) -> None:
    if ports is not None:
        (tmp_path / "ports_config.yaml").write_text(ports)
    url, source = gateway_url({"TOOLSCORE_CONFIG_DIR": str(tmp_path), **variables})
    assert (url, Path(source).name) == found
    if "TOOLSCORE_URL" not in variables:  # and so does the gateway itself
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert url.endswith(f":{load_settings(tmp_path).settings.core_services.toolscore_http.port}")


@pytest.mark.long
def test_a_command_says_which_gateway_it_talks_to(tmp_path: Path) -> None:
    (tmp_path / "ports_config.yaml").write_text(f"core_services: {{toolscore_http: {{port: {free_port()}}}}}")
    done = toolscore("servers", variables={"TOOLSCORE_CONFIG_DIR": str(tmp_path)})
    assert f"({tmp_path / 'ports_config.yaml'})" in done.stderr
    (tmp_path / "ports_config.yaml").write_text("core_services: {toolscore_http: {port: 0}}")
    done = toolscore("servers", variables={"TOOLSCORE_CONFIG_DIR": str(tmp_path)})
    assert (done.returncode, "give its address" in done.stderr) == (2, True)


@pytest.mark.long
@pytest.mark.parametrize("group", ["calls", "pins", "errors", "catalog", "python"])
def test_a_group_of_commands_shows_its_list(gateway: GatewayProcess, group: str) -> None:
    named = {"catalog": "installed", "python": "sessions"}.get(group, "list")
    assert toolscore(group, gateway=gateway).stdout == toolscore(group, named, gateway=gateway).stdout != ""


def test_an_address_may_lack_its_scheme(gateway: GatewayProcess) -> None:
    done = toolscore("tools", "--url", gateway.url.removeprefix("http://"))
    assert (done.returncode, "alpha__echo" in done.stdout) == (0, True)


@pytest.mark.parametrize("given", [("z", "--at", "http://127.0.0.1:1/mcp"), ("z", "http://127.0.0.1:1/mcp")])
def test_an_address_in_the_place_of_a_command_is_told_where_it_belongs(given: tuple[str, ...]) -> None:
    done = toolscore("servers", "add", "--yes", *given)
    assert done.returncode == 2
    assert "toolscore servers add --at http://127.0.0.1:1/mcp z" in done.stderr


@pytest.mark.long
def test_no_gateway_is_said_plainly() -> None:
    for command in (["tools"], ["servers"], ["call", "x"], ["events"]):
        done = toolscore(*command, "--url", f"http://127.0.0.1:{free_port()}")
        assert done.returncode == 3
        assert "toolscore serve" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_type_that_no_event_has_is_refused(gateway: GatewayProcess) -> None:
    done = toolscore("events", "server_up", "tool_instaled", gateway=gateway)
    assert done.returncode == 1
    assert "no event has the type 'tool_instaled'; nearest: tool_installed" in done.stderr
    assert "settings_rejected" in done.stderr
    assert gateway.http.get("/api/v1/events", params={"events": "tool_instaled"}).status_code == 400


def test_what_a_group_shows_by_default_takes_the_options_of_its_list(gateway: GatewayProcess, tmp_path: Path) -> None:
    for group in ("calls", "pins", "errors", "catalog", "python"):
        assert isinstance(json.loads(toolscore(group, "--json", gateway=gateway).stdout), list), group
    (tmp_path / "toolscore.yaml").write_text(f"storage: {{data_dir: {tmp_path / 'here'}}}\n")
    done = toolscore("keys", variables={"TOOLSCORE_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path / "home")})
    assert str(tmp_path / "here") in done.stderr
    assert not (tmp_path / "home").exists()
    assert "toolscore keys [OPTIONS] COMMAND" in toolscore("keys", "--help").stdout
    assert toolscore("keys", "lst").returncode == 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("192.0.2.2:8082", "must begin with https://"),
        ("ws://127.0.0.1:8082", "must begin with https://"),
        ("::1:8082", "must begin with https://"),
        ("127.0.0.1:8082x", "is no address"),
    ],
)
def test_an_address_that_is_none_is_told_so_and_no_key_is_sent_in_clear_text(url: str, said: str) -> None:
    done = toolscore("tools", "--url", url, variables={"TOOLSCORE_API_KEY": "ts_x"})
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.long
def test_events_follow(gateway: GatewayProcess) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "toolscore", "events", "server_up", "--since", "0", "--url", gateway.url],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "server_id=many" not in lines[-1]:  # servers come up in any order
            assert len(lines) < 10
            lines.append(process.stdout.readline())
        assert all("server_up" in line for line in lines)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_doctor_finds_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    servers = {"good": odd("echo"), "crashes": odd("crashes"), "missing": {"command": "no-such-program"}}
    with (
        running_gateway(servers, settings="limitz: {}\n", start=False, python=True) as process,
        socket.socket() as holder,
    ):
        holder.bind(("127.0.0.1", process.http_port))
        holder.listen()
        holder.settimeout(0)
        done = toolscore("doctor", "--config", str(process.config), "--json")
        findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
        assert done.returncode == 1
        assert findings["server good"]["ok"] is True
        assert "frobnicator" in findings["server crashes"]["found"]
        assert "no-such-program" in findings["server missing"]["found"]
        assert "did you mean 'limits'" in findings["settings"]["found"]
        assert findings[f"port {process.http_port}"]["ok"] is False
        assert all(finding["mend"] for finding in findings.values() if not finding["ok"])
    with running_gateway({"good": odd("echo")}, start=False, python=True) as process:
        done = toolscore("doctor", "--config", str(process.config))
        assert done.returncode == 0, done.stdout
        assert "odd-echo 1 answers, MCP 2025-06-18" in done.stdout
        assert f"none answers at {process.url}" in done.stdout
        assert not (process.folder / "data").exists(), "it looks, and makes nothing"


@pytest.mark.long
def test_doctor_asks_a_gateway_that_runs() -> None:
    with running_gateway({"good": odd("echo"), "crashes": odd("crashes")}, settings="", python=True) as process:
        process.wait_for_state("good", "up")
        process.wait_for_state("crashes", "failed")
        done = toolscore("doctor", "--config", str(process.config), "--json")
        findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
        assert findings["gateway"]["ok"] is True
        assert findings["server good"]["ok"] is True
        assert "frobnicator" in findings["server crashes"]["found"]
        assert "toolscore servers restart crashes" in findings["server crashes"]["mend"]
        assert done.returncode == 1


@pytest.mark.long
def test_doctor_that_is_not_let_in_says_so() -> None:
    with running_gateway(
        {"good": odd("echo")}, settings="access: {local_without_key: false}\n", start=False
    ) as process:
        made = toolscore("keys", "create", "me", "--scope", "admin", "--config", str(process.config))
        process.http.headers["authorization"] = f"Bearer {made.stdout.strip()}"
        process.start()
        process.wait_for_state("good", "up")
        process.wait_for_output("authorization: Bearer $TOOLSCORE_API_KEY")  # in the call that it shows
        done = toolscore("doctor", "--config", str(process.config))
        assert "does not let us look" in done.stdout
        assert "server good" not in done.stdout, "none is started beside a gateway that runs"
        done = toolscore(
            "doctor", "--config", str(process.config), variables={"TOOLSCORE_API_KEY": made.stdout.strip()}
        )
        assert "server good" in done.stdout


@pytest.mark.long
def test_text_stays_text_where_the_schema_wants_text(gateway: GatewayProcess) -> None:
    assert toolscore("call", "alpha__echo", "text=42", "times=2", gateway=gateway).stdout == "42\n"
    assert toolscore("call", "alpha", "text=true", "--action", "echo", gateway=gateway).stdout == "true\n"
    assert toolscore("call", PYTHON, "code=42", gateway=gateway).stdout == "42\n"


@pytest.mark.long
def test_help_and_version() -> None:
    assert "serve" in toolscore("--help").stdout
    assert toolscore("--version").stdout.strip().count(".") == 2
    assert toolscore().returncode == 2
    assert toolscore("serve", "--config", "/no/such/folder").returncode == 2


@pytest.mark.long
def test_what_servers_wrote_cannot_steer_the_terminal(tmp_path: Path) -> None:
    steers = "\x1b]0;owned\x07 \x9b2J \u202eevil\u2069"
    fickle = Fickle(tmp_path / "fickle")
    fickle.order(tools={"look": {"description": steers}}, fail=f"no {steers}", mark=steers)
    with running_gateway({"city": fickle.entry}) as process:
        process.wait_for_state("city", "up")
        process.execute("city__look", {"city": steers})
        for command in (
            ("tools",), ("tools", "--json"), ("search", "look a city up"), ("call", "city__look", f"city={steers}"),
            ("call", "city__look", "city=x", "--raw"), ("servers",), ("errors", "list"), ("errors", "list", "--json"),
        ):  # fmt: skip
            done = toolscore(*command, gateway=process)
            assert not set(done.stdout + done.stderr) & set("\x1b\x07\x9b\u202e\u2069"), command
        assert not set(process.output()) & set("\x1b\x07\x9b\u202e\u2069")
        for more in ((), ("--json",)):
            command = [sys.executable, "-m", "toolscore", "events", "--since", "0", "--url", process.url, *more]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follows:
                assert follows.stdout is not None
                seen = ""
                while "city__measure" not in seen:
                    seen = follows.stdout.readline()
                    assert not set(seen) & set("\x1b\x07\x9b\u202e\u2069")
                follows.kill()


@pytest.mark.long
def test_the_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    with running_gateway(start=False) as process:
        umask = os.umask(0)
        try:
            process.start()
        finally:
            os.umask(umask)
        assert (process.folder / "data").stat().st_mode & 0o777 == 0o700


def test_nothing_is_migrated_where_a_mistake_may_have_data_lie_elsewhere(tmp_path: Path) -> None:
    wrong = {"TOOLSCORE_STORAGE__REDIS_URL": "http://redis:6379"}
    for command in (["migrate"], ["keys", "list"]):
        done = toolscore(*command, variables=wrong, cwd=tmp_path)
        assert (done.returncode, "nothing was done" in done.stderr) == (78, True), done
    assert list(tmp_path.iterdir()) == []
