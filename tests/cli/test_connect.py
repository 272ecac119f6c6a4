"""`toolscore connect`: what becomes of the files of MCP clients."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support import GatewayProcess, odd, running_gateway, toolscore

from toolscore.cli.clients import clients
from toolscore.cli.edits import EditError, parsed, with_member, without_member

SERVERS = '"time": {"command": "uvx", "args": ["mcp-server-time"]}'
FILES = {
    "claude-desktop": '{\n  "globalShortcut": "Ctrl+Space",\n  "mcpServers": {\n    SERVERS\n  }\n}',
    "claude-code": '{"numStartups": 3, "mcpServers": {SERVERS}, "projects": {"/a": {"history": []}}}',
    "vscode": '{\n\t"inputs": [\n\t\t{"type": "promptString", "id": "key", "password": true},\n\t],\n'
    '\t// those of this machine\n\t"servers": {\n\t\t"github": {\n\t\t\t"type": "http",\n'
    '\t\t\t"url": "https://api.githubcopilot.com/mcp/", // with a login\n\t\t},\n\t},\n}\n',
    "cursor": '\ufeff{\r\n  "mcpServers": {\r\n    SERVERS\r\n  }\r\n}\r\n',
    "windsurf": '{\n    "mcpServers": {}\n}\n',
    "cline": '{\n  "mcpServers": {\n    "weather": {\n      "command": "node",\n      "args": ["/w.js"],\n'
    '      "disabled": false,\n      "autoApprove": []\n    }\n  }\n}\n',
    "zed": '// Zed settings\n//\n{\n  "theme": "One Dark", // dark\n  "context_servers": {\n    // none yet\n  },\n}\n',
    "gemini": '{\n  "theme": "Default",\n  "selectedAuthType": "oauth-personal"\n}\n',
    "codex": 'model = "o3"\n\n[mcp_servers.docs] # ours\ncommand = "docs"\nargs = ["--x"]\n\n[tools]\nweb = true\n',
    "goose": "GOOSE_PROVIDER: openai # mine\nextensions:\n  developer:\n    bundled: true\n    enabled: true\n"
    "    name: developer\n    type: builtin\nGOOSE_MODE: auto\n",
    "kiro": '{\n  "mcpServers": {\n    SERVERS,\n  }\n}\n',
    "lm-studio": '{\n  "mcpServers": {\n    "hf": {\n      "url": "https://huggingface.co/mcp"\n    }\n  }\n}',
}


def at_home(home: Path, *arguments: str, gateway: GatewayProcess | None = None) -> subprocess.CompletedProcess[str]:
    variables = {"HOME": str(home), "XDG_CONFIG_HOME": "", "APPDATA": "", "CODEX_HOME": ""}
    return toolscore(*arguments, variables=variables, gateway=gateway, cwd=home)


@pytest.mark.fast
@pytest.mark.parametrize("name", FILES)
@pytest.mark.long
def test_each_clients_file_gets_us_twice_the_same_and_is_as_before_in_the_end(name: str, tmp_path: Path) -> None:
    client = clients(tmp_path, "linux")[name]
    assert client.file is not None
    client.file.parent.mkdir(parents=True, exist_ok=True)
    before = FILES[name].replace("SERVERS", SERVERS).encode()
    client.file.write_bytes(before)
    client.file.chmod(0o600)
    first = at_home(tmp_path, "connect", name, "--yes")
    assert first.returncode == 0, first.stderr
    assert "+" in first.stdout
    after = client.file.read_bytes()
    assert client.file.stat().st_mode & 0o777 == 0o600
    data = parsed(after.decode("utf-8-sig"), client.kind)
    for key in client.root:
        data = data[key]
    command = data["toolscore"].get("command") or data["toolscore"]["cmd"]
    assert command.endswith(("toolscore", "python", "python3"))
    assert data["toolscore"]["args"][-1] == "stdio"
    del data["toolscore"]
    again = at_home(tmp_path, "connect", name, "--yes")
    assert "connected already" in again.stderr
    assert client.file.read_bytes() == after
    back = at_home(tmp_path, "disconnect", name, "--yes")
    assert back.returncode == 0, back.stderr
    assert client.file.read_bytes() == before
    assert [path.name for path in client.file.parent.iterdir() if path.is_file()] == [client.file.name]
    assert "is not connected" in at_home(tmp_path, "disconnect", name, "--yes").stderr


@pytest.mark.parametrize("name", ["codex", "goose", "zed"])
@pytest.mark.long
def test_a_file_that_was_not_there_is_gone_again(name: str, tmp_path: Path) -> None:
    client = clients(tmp_path, "linux")[name]
    assert client.file is not None
    assert at_home(tmp_path, "connect", name, "--yes").returncode == 2  # the client is not here
    client.file.parent.mkdir(parents=True, exist_ok=True)
    assert at_home(tmp_path, "connect", name, "--yes").returncode == 0
    assert client.file.exists()
    assert at_home(tmp_path, "disconnect", name, "--yes").returncode == 0
    assert not client.file.exists()


def test_what_changed_since_is_kept(tmp_path: Path) -> None:
    client = clients(tmp_path, "linux")["zed"]
    assert client.file is not None
    client.file.parent.mkdir(parents=True)
    client.file.write_text(FILES["zed"])
    assert at_home(tmp_path, "connect", "zed", "--yes").returncode == 0
    client.file.write_text(client.file.read_text().replace("One Dark", "Light"))
    assert at_home(tmp_path, "disconnect", "zed", "--yes").returncode == 0
    assert client.file.read_text() == FILES["zed"].replace("One Dark", "Light")


@pytest.mark.long
def test_nothing_is_written_that_nobody_agreed_to(tmp_path: Path) -> None:
    (tmp_path / ".cursor").mkdir()
    file = tmp_path / ".cursor" / "mcp.json"
    file.write_text(FILES["windsurf"])
    asked = at_home(tmp_path, "connect", "cursor")
    assert (asked.returncode, "pass --yes" in asked.stderr) == (2, True)
    assert '+    "toolscore"' in asked.stdout.replace("        ", "    ")
    assert file.read_text() == FILES["windsurf"]
    printed = at_home(tmp_path, "connect", "vscode", "--print")
    assert json.loads(printed.stdout)["servers"]["toolscore"]["type"] == "stdio"
    assert "did you mean cursor?" in at_home(tmp_path, "connect", "cursr").stderr
    file.write_text("{ broken")
    broken = at_home(tmp_path, "connect", "cursor", "--yes")
    assert (broken.returncode, file.read_text()) == (1, "{ broken")
    assert "by hand" in broken.stderr
    rows = {line.split()[0]: line for line in at_home(tmp_path, "connect").stdout.splitlines()}
    assert "here, not connected" in rows["cursor"]
    assert "not found" in rows["kiro"]


@pytest.mark.long
def test_the_servers_of_a_client_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".cursor").mkdir()
    file = tmp_path / ".cursor" / "mcp.json"
    before = {"mcpServers": {"mine": odd("echo"), "broken": {"command": ["no", 1], "args": "x"}}}
    file.write_text(json.dumps(before, indent=2))
    with running_gateway() as gateway:
        done = at_home(tmp_path, "connect", "cursor", "--import", "--yes", gateway=gateway)
        assert done.returncode == 0, done.stderr
        gateway.wait_for_state("mine", "up")
        assert gateway.text("mine__echo", {"text": "hi"}) == "hi"
    assert "broken stays where it is" in done.stderr
    servers = json.loads(file.read_text())["mcpServers"]
    assert set(servers) == {"broken", "toolscore"}
    assert at_home(tmp_path, "disconnect", "cursor", "--yes").returncode == 0
    assert json.loads(file.read_text()) == before


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"mcpServers": {"a": {"b": "},"}, "toolscore": {"command": "old"}, "c": {}}}', "json"),
        ('{"x": [1, {"mcpServers": 2}], "mcpServers": {"toolscore": {"command": "old"}}}', "json"),
        ("", "json"),
        ("  // nothing\n", "json"),
        ('[mcpServers.toolscore]\ncommand = "old"\n[mcpServers.toolscore.env]\nA = "1"\n[z]\na = 1', "toml"),
        ("", "toml"),
        ("mcpServers: {}\nz: 1\n", "yaml"),
        (
            "mcpServers:\n    a:\n        b: c\n    toolscore:\n        command: old\n        list:\n        - x\nz: 1",
            "yaml",
        ),
        ("", "yaml"),
    ],
)
def test_a_member_is_put_in_and_taken_out(text: str, kind: str) -> None:
    path, value = ("mcpServers", "toolscore"), {"command": '/a b/"x"', "args": ["é", "\\"], "on": True}
    rest = parsed(without_member(text, kind, path), kind)
    after = with_member(text, kind, path, value)
    assert parsed(after, kind)["mcpServers"]["toolscore"] == value
    left = parsed(without_member(after, kind, path), kind)
    assert {key: value for key, value in left.items() if value} == {key: value for key, value in rest.items() if value}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "kind"),
    [("[]", "json"), ('{"mcpServers": 3}', "json"), ("mcpServers = {a = {}}\n", "toml"), ("mcpServers: {a: 1}", "yaml"),
     ("- a", "yaml"), ("{", "json"), ("a: [", "yaml")],
)  # fmt: skip
def test_what_cannot_be_changed_is_left_alone(text: str, kind: str) -> None:
    with pytest.raises(EditError):
        with_member(text, kind, ("mcpServers", "toolscore"), {"command": "x"})


def test_comments_behind_what_goes_belong_to_what_comes_next() -> None:
    ours = '[mcp_servers.toolscore]\ncommand = "x"\n# its own\nargs = []\n'
    text = f'a = 1\n\n{ours}\n# my notes\n# keep = "me"\n[new]\nb = 2\n'
    left = without_member(text, "toml", ("mcp_servers", "toolscore"))
    assert left == 'a = 1\n\n# my notes\n# keep = "me"\n[new]\nb = 2\n'
    last = without_member(text.partition("[new]")[0], "toml", ("mcp_servers", "toolscore"))
    assert last == 'a = 1\n\n# my notes\n# keep = "me"\n'


def test_a_file_that_is_no_object_is_told_so() -> None:
    for text in ("null", "[]", "1"):
        with pytest.raises(EditError):
            with_member(text, "json", ("mcpServers", "toolscore"), {"command": "x"})


@pytest.mark.long
def test_servers_that_moved_come_back_though_the_file_was_edited_since(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    good = odd("echo")
    file.write_text(json.dumps({"mcpServers": {"tim": good, "stays": {"note": 1}}}))
    with running_gateway() as gateway:
        at = ("cursor", "--file", str(file), "--yes")
        done = at_home(tmp_path, "connect", "cursor", "--import", *at[1:], gateway=gateway)
        assert done.returncode == 0, done.stderr
        data = json.loads(file.read_text())
        assert set(data["mcpServers"]) == {"toolscore", "stays"}
        file.write_text(json.dumps({**data, "z": 1}))
        done = at_home(tmp_path, "disconnect", *at, gateway=gateway)
        assert done.returncode == 0, done.stderr
        assert json.loads(file.read_text()) == {"mcpServers": {"stays": {"note": 1}, "tim": good}, "z": 1}
        assert "tim stood there before, and is back" in done.stderr
        assert [path.name for path in tmp_path.glob("mcp.json*")] == ["mcp.json"]
