"""Programs that an entry names: which is run, where, and what is left of it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support import odd, running_gateway, wait_for

from toolscore.core.models import UpstreamSpec
from toolscore.upstreams.process.old_sdk import with_old_sdk
from toolscore.upstreams.process.programs import find_program, without_questions
from toolscore.upstreams.process.spawn import CommandNotFound, child_environment, in_container, resolve_command


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_python_is_the_one_of_the_entrys_path(tmp_path: Path) -> None:
    own = program(tmp_path / "bin" / "python", "#!/bin/sh\n")
    env = child_environment("python", {"PATH": f"{own.parent}:{os.environ['PATH']}"})
    assert resolve_command("python", env) == str(own)
    assert resolve_command("python", child_environment("python", {})) == sys.executable
    assert resolve_command("uvx", child_environment("uvx", {"PATH": "/nowhere"})), "what only our PATH has is found"


def test_a_program_is_found_in_the_folder_of_its_entry(tmp_path: Path) -> None:
    own = program(tmp_path / "bin" / "serve", "#!/bin/sh\n")
    env = child_environment("x", {})
    for command in ("./bin/serve", "bin/serve", str(own)):
        assert Path(resolve_command(command, env, str(tmp_path))).samefile(own)
    with pytest.raises(CommandNotFound):
        resolve_command("./bin/none", env, str(tmp_path))


@pytest.mark.parametrize(
    ("command", "args"), [("docker", ("run", "-i", "x")), ("/usr/bin/podman", ("--log-level", "error", "run", "x"))]
)
def test_a_container_gets_a_label_and_a_file_for_its_id(command: str, args: tuple[str, ...]) -> None:
    given, file = in_container(command, args)
    at = given.index("run")
    assert given[at + 1 : at + 3] == (f"--cidfile={file}", "--label=toolscore")
    assert given[:at] + given[at + 3 :] == args[:at] + ("run", *args[at + 1 :])[1:]


@pytest.mark.parametrize(
    ("command", "args"), [("uvx", ("run",)), ("docker", ("ps",)), ("docker", ("run", "--cidfile", "x", "y"))]
)
def test_others_do_not(command: str, args: tuple[str, ...]) -> None:
    assert in_container(command, args) == (args, "")


ENGINE = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
run) echo 5eed > "${{2#--cidfile=}}"; shift 4; exec {python} -I -S "$@" ;;
esac
"""


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.long
def test_no_container_outlives_its_server(tmp_path: Path, end: str) -> None:
    log = tmp_path / "log"
    docker = program(tmp_path / "docker", ENGINE.format(log=log, python=sys.executable))
    server = odd("echo")
    with running_gateway({"box": {"command": str(docker), "args": ["run", "-i", *server["args"][-2:]]}}) as process:
        process.wait_for_state("box", "up")
        getattr(process, end)()
    wait_for(lambda: "rm --force 5eed" in log.read_text(), 60, "for the container to be removed")


UVX = """#!/bin/sh
if [ "$1 $2" != "--with mcp<2" ]; then
  echo "  File \\"/x/mcp_server_old/server.py\\", line 3" >&2
  echo "AttributeError: 'Server' object has no attribute 'list_tools'" >&2
  exit 1
fi
shift 3
exec {python} "$@"
"""


@pytest.mark.long
def test_a_server_of_the_older_sdk_is_started_with_it_and_says_so(tmp_path: Path) -> None:
    uvx = program(tmp_path / "uvx", UVX.format(python=sys.executable))
    entry = {"command": str(uvx), "args": ["mcp-server-old", *odd("echo")["args"]]}
    with running_gateway({"old": entry}) as process:
        assert process.wait_for_state("old", "up")["runs_with"] == "mcp<2"
        assert process.text("old__echo", {"text": "hi"}) == "hi"


@pytest.mark.long
def test_of_a_runner_only_its_program_stays(tmp_path: Path) -> None:
    entries = {
        "time": {"command": "uvx", "args": ["mcp-server-time==2026.10.19", "--local-timezone", "Europe/Berlin"]},
        "memory": {
            "command": "npx",
            "args": ["@modelcontextprotocol/server-memory@2026.8.31"],
            "env": {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")},
        },
        "none": {"command": "uvx", "args": ["toolscore-has-no-such-package"]},
    }
    with running_gateway(entries, settings="servers: {start_timeout_seconds: 120}\n") as gateway:
        for name in ("time", "memory"):
            gateway.wait_for_state(name, "up", seconds=120)
        assert "Europe/Berlin" in gateway.text("time__get_current_time", {"timezone": "Europe/Berlin"})
        assert gateway.execute("memory__read_graph")["success"]
        gateway.wait_for_state("none", "down", "failed")
        wait_for(lambda: "toolscore-has-no-such-package was not found" in (gateway.server("none")["last_error"] or ""))
        below = [words for words in gateway.commands() if not any("reaper.py" in word for word in words)]
        assert len([words for words in below if "mcp-server-memory" in " ".join(words)]) == 1
        programs = {Path(words[0]).name for words in below if words and "no-such" not in " ".join(words)}
        assert not programs & {"uv", "uvx", "npm", "npx", "npm exec", "sh"}, below


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("uvx", ("--isolated", "x")),
        ("uvx", ("git+https://example.com/x",)),
        ("uvx", ("--from", "x")),
        ("uvx", ()),
        ("uvx", ("python", "-m", "x")),
        ("npx", ("-c", "x")),
        ("npx", ("./local",)),
        ("npx", ("github:a/b",)),
        ("npx", ("-p", "a", "-p", "b", "x")),
        ("python", ("-m", "x")),
        ("uv", ("run", "x")),
    ],
)
def test_what_is_not_understood_is_left_to_the_runner(command: str, args: tuple[str, ...]) -> None:
    assert asyncio.run(find_program(command, args, {}, None)) is None


def test_npx_never_waits_for_a_yes() -> None:
    assert without_questions("/usr/bin/npx", ("-q", "x")) == ("--yes", "-q", "x")
    for command, args in (("npx", ("-y", "x")), ("npx", ("--no-install", "x")), ("uvx", ("x",))):
        assert without_questions(command, args) == args


def test_only_what_uvx_runs_gets_another_sdk() -> None:
    def args(**entry: object) -> tuple[str, ...] | None:
        older = with_old_sdk(UpstreamSpec.model_validate(entry))
        return older.args if older is not None else None

    assert args(command="uvx", args=["x"]) == ("--with", "mcp<2", "x")
    assert args(command="uv", args=["tool", "run", "x"]) == ("tool", "run", "--with", "mcp<2", "x")
    assert args(command="uvx", args=["--with", "mcp<2", "x"]) is None
    assert args(command="npx", args=["x"]) is None


@pytest.mark.long
def test_one_that_is_tried_again_is_not_well_meanwhile(tmp_path: Path) -> None:
    hold = tmp_path / "held"
    wait = f"while [ -e {hold} ]; do sleep 0.05; done\ntouch {hold}"  # the next start waits again
    sick = program(tmp_path / "sick", f"#!/bin/sh\n{wait}\necho it has no disk >&2\nexit 3\n")
    hold.touch()
    with running_gateway({"sick": {"command": str(sick)}}) as process:

        def check() -> dict[str, Any]:
            return dict(process.get("/health")["checks"]["servers"]["sick"])

        assert check() == {"status": "healthy", "state": "starting"}, "nothing is known of it yet"
        # Its first end may mean that it was asked for the era that it has not: then it is started at once.
        wait_for(lambda: check()["state"] == "down" or hold.unlink(missing_ok=True), 60)
        again = wait_for(lambda: (one := check())["state"] == "starting" and one, 60, "for the next start")
        assert again["status"] == "degraded"
        assert "it has no disk" in again["reason"]


@pytest.mark.long
def test_doors_open_before_servers_start(tmp_path: Path) -> None:
    slow = program(tmp_path / "slow", "#!/bin/sh\nsleep 30\n")
    with running_gateway({f"s{number}": {"command": str(slow)} for number in range(12)}) as process:
        assert process.get("/health")["checks"]["servers"]["s0"]["state"] == "starting"
