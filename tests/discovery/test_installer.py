"""Installing: from a candidate to a running, tested, confined server, or to nothing at all. Real uv, npm, packages.

What a plan says, and what is refused before anything is fetched, is in `test_plan.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers.registries import Registries, server_source
from support import EXECUTOR, SCRIPTS, GatewayProcess, bearer, command_of, running_gateway, toolscore, wait_for

from toolscore.core.errors import InstallFailed, ServerNotFound
from toolscore.core.models import UpstreamSpec
from toolscore.discovery import Installer, InstallRules, Wish
from toolscore.discovery.catalog.server_json import entries_of
from toolscore.stores.database import Database, open_database
from toolscore.upstreams import UpstreamPool

STDIO = {"type": "stdio"}
TIME = {"registryType": "pypi", "identifier": "mcp-server-time", "version": "2026.10.19", "transport": STDIO}
MEMORY = {  # the last version with few dependencies: npm takes seconds for the hundred packages of later ones
    "registryType": "npm", "identifier": "@modelcontextprotocol/server-memory", "version": "2025.4.25",
    "transport": STDIO, "environmentVariables": [{"name": "MEMORY_FILE_PATH", "value": "{home}/memory.jsonl"}],
}  # fmt: skip
SQLITE = {
    "registryType": "pypi", "identifier": "mcp-server-sqlite", "version": "2025.4.25", "transport": STDIO,
    "packageArguments": [{"type": "named", "name": "--db-path", "value": "notes.db"}],
}  # fmt: skip

SETTINGS = """
discovery:
  catalog: {{registries: ["{url}"], snapshot: false}}
  install:
    allow:
      - {{registry: pypi, package: mcp-server-time, version: 2026.10.19}}
      - {{publisher: org.trusted}}
    start_timeout_seconds: 20
"""


@contextlib.contextmanager
def gateway_with(registries: Registries, settings: str = SETTINGS, *, own: bool = False) -> Iterator[GatewayProcess]:
    """A gateway whose catalog is `registries`.

    Args:
        own: packages come from there, too, and not from where this machine has them.
    """
    with running_gateway(settings=settings.format(url=registries.url), start=False, python=True) as process:
        process.environment = registries.environment if own else {}
        process.start()
        yield process


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[GatewayProcess, Registries]]:
    """Packages from the real registries."""
    with Registries() as registries:
        registries.publish("io.github.modelcontextprotocol/time", "2026.10.19", packages=[TIME],
                           description="Current time in any time zone, and conversion between time zones")  # fmt: skip
        registries.publish("io.github.modelcontextprotocol/memory", "2025.4.25", packages=[MEMORY],
                           description="Knowledge graph memory")  # fmt: skip
        registries.publish("io.github.modelcontextprotocol/sqlite", "2025.4.25", packages=[SQLITE],
                           description="Query a SQLite database")  # fmt: skip
        with gateway_with(registries) as process:
            yield process, registries


@pytest.fixture(scope="module")
def local() -> Iterator[tuple[GatewayProcess, Registries]]:
    """Packages from the test's own registries."""
    with Registries() as registries, gateway_with(registries, own=True) as process:
        yield process, registries


def install(process: GatewayProcess, name: str, **more: Any) -> dict[str, Any]:
    """The whole answer."""
    body = {"name": name, "approve": True, **more}
    return dict(process.http.post("/api/v1/catalog/install", json=body, timeout=180).json())


def refreshed(process: GatewayProcess) -> None:
    assert all(not source["error"] for source in process.http.post("/api/v1/catalog/refresh").json()["data"]["sources"])


def nothing_left(process: GatewayProcess, server_id: str) -> None:
    """No files, no process, no server, no row, no tools."""
    assert not (process.folder / "data" / "servers" / server_id).exists()
    assert process.http.get(f"/api/v1/servers/{server_id}").status_code == 404
    assert server_id not in [one["server_id"] for one in process.get("/api/v1/catalog/installed")["servers"]]
    assert not [tool for tool in process.get("/api/v1/tools", limit=1000)["tools"] if tool["server_id"] == server_id]
    mark = str(process.folder / "data" / "servers" / server_id)
    assert not [command for command in process.commands() if any(mark in part for part in command)]


@pytest.mark.long
def test_the_loop_as_an_agent_sees_it(real: tuple[GatewayProcess, Registries]) -> None:
    """Gap, request, event, call, answer."""
    process, _ = real
    task = {"task_description": "what time is it in Tokyo right now?"}
    analysis = process.http.post("/api/v1/tools/analyze-gap", json=task).json()["data"]
    assert analysis["verdict"] == "gap"
    assert analysis["recommended_action"] == "request-capability"
    assert analysis["missing"][0]["keywords"] == ["time"], "words to search a catalog with"
    told = wait_for(lambda: process.event_seen("gap_detected", principal="local"))
    assert told["missing"] == analysis["missing"]

    woken: list[dict[str, Any]] = []

    def wait_for_the_capability() -> None:
        with process.http.stream("GET", "/api/v1/events/stream?events=tool_installed", timeout=120) as stream:
            for line in stream.iter_lines():
                event = json.loads(line[6:]) if line.startswith("data: ") else {}
                if event.get("server_id") not in (None, EXECUTOR):  # which may come up late
                    woken.append(event)
                    return

    waiter = threading.Thread(target=wait_for_the_capability, daemon=True)
    waiter.start()
    answer = process.http.post(
        "/mcp",
        json={
            "jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {
                "name": "toolscore__request_capability", "arguments": task,
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientInfo": {"name": "agent", "version": "1"},
                    "io.modelcontextprotocol/clientCapabilities": {},
                },
            },
        },
        headers={
            "accept": "application/json, text/event-stream", "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/call", "mcp-name": "toolscore__request_capability",
        },
        timeout=120,
    )  # fmt: skip
    result = answer.json()["result"]["structuredContent"]
    assert result["status"] == "installed", result
    assert result["installed"][0]["version"] == "2026.10.19"
    waiter.join(10)
    assert woken[0]["server_id"] == "time"
    tool = next(tool["tool_id"] for tool in result["tools"] if "current" in tool["tool_id"])
    assert "+09:00" in process.text(tool, {"timezone": "Asia/Tokyo"})
    wait_for(lambda: process.event_seen("install_progress", step="register"))
    steps = [event["step"] for event in process.events() if event["type"] == "install_progress"]
    assert steps == ["fetch", "prove", "register"]

    again = process.http.post("/api/v1/tools/request-capability", json=task).json()["data"]
    assert again["installed"] == []
    assert again["status"] in ("sufficient", "unsure")


@pytest.mark.long
def test_a_server_from_npm_is_locked_and_keeps_its_files_at_home(real: tuple[GatewayProcess, Registries]) -> None:
    process, _ = real
    done = install(process, "memory")["data"]
    assert (done["kind"], done["version"]) == ("npm", "2025.4.25")
    assert done["proof"] is None, "it does not say which tools are read-only"
    assert len(done["tools"]) == 9
    place = process.folder / "data" / "servers" / "memory"
    lock = json.loads((place / "package-lock.json").read_text())
    assert len(lock["packages"]) > 10, "its dependencies, too"
    assert all("integrity" in locked for name, locked in lock["packages"].items() if name)
    entity = {"entities": [{"name": "Ada", "entityType": "person", "observations": ["wrote programs"]}]}
    process.text("memory__create_entities", entity)
    assert "Ada" in (place / "home" / "memory.jsonl").read_text()
    assert "Ada" in process.text("memory__read_graph")


@pytest.mark.long
def test_one_that_needs_the_old_sdk_gets_it(real: tuple[GatewayProcess, Registries]) -> None:
    process, _ = real
    done = install(process, "sqlite")
    assert done["success"], done
    assert done["data"]["notes"] == ["runs with mcp<2"]
    process.text("sqlite__create_table", {"query": "CREATE TABLE notes (text TEXT)"})
    assert "notes" in process.text("sqlite__list_tables")
    assert (process.folder / "data" / "servers" / "sqlite" / "home" / "notes.db").is_file(), "its own home"
    gone = process.http.delete("/api/v1/catalog/installed/sqlite").json()
    assert gone["success"], gone
    nothing_left(process, "sqlite")


@pytest.mark.long
def test_policy_denies_by_default_and_says_how_to_go_on(
    local: tuple[GatewayProcess, Registries], new_key: Callable[[GatewayProcess, str], str]
) -> None:
    process, registries = local
    registries.publish("org.nobody/plain", packages=[registries.add_wheel("plain-server", server_source("plain"))])
    registries.publish("org.trusted/fine", packages=[registries.add_wheel("fine-server", server_source("fine"))])
    refreshed(process)
    refused = process.http.post("/api/v1/catalog/install", json={"name": "org.nobody/plain"})
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert error["code"] == "not_allowed_by_policy"
    assert error["suggestion"] == "whoever may can do so with: toolscore install org.nobody/plain"
    assert error["details"]["plan"]["commands"][0][:2] == ["uv", "venv"]
    nothing_left(process, "plain")
    allowed = process.http.post("/api/v1/catalog/install", json={"name": "org.trusted/fine"}, timeout=180).json()
    assert allowed["success"], allowed
    assert allowed["data"]["proof"]["tool"] == "look"
    assert allowed["data"]["proof"]["ok"]
    score = process.get("/api/v1/tools/fine__look")["score"]
    assert score["calls"] == 1, "the call on trial is the first of its score"
    assert process.text("fine__look") == "fine"
    key = new_key(process, "agent")
    for body in ({"approve": True}, {"env": {"A": "b"}}, {"network": True}, {"arguments": {"a": "b"}}):
        answer = process.http.post(
            "/api/v1/catalog/install", json={"name": "org.nobody/plain", **body}, headers=bearer(key)
        )  # fmt: skip
        assert answer.json()["error"]["code"] == "forbidden", body
    assert process.http.delete("/api/v1/catalog/installed/fine", headers=bearer(key)).status_code == 403
    assert process.http.delete("/api/v1/catalog/installed/fine").json()["success"]


# Without a gateway: the installer with a real database and real servers


class Workshop:
    """An installer, and what it told."""

    def __init__(self, installer: Installer, database: Database, pool: UpstreamPool, folder: Path) -> None:
        self.installer = installer
        self.database = database
        self.pool = pool
        self.folder = folder
        self.published: list[tuple[str, dict[str, Any]]] = []

    async def failure(self, package: dict[str, Any], server_id: str) -> InstallFailed:
        """The error of an install that must fail; nothing of the server is left."""
        with pytest.raises(InstallFailed) as caught:
            await self.installer.install(wish(package, server_id))
        await self.nothing_left(server_id)
        assert caught.value.data is not None
        kind, about = self.published[-1]
        assert (kind, about["server_id"], about["step"]) == ("install_failed", server_id, caught.value.data["step"])
        return caught.value

    async def nothing_left(self, server_id: str) -> None:
        """No files, no process, no server, no row."""
        assert not (self.folder / server_id).exists()
        with pytest.raises(ServerNotFound):
            self.pool.get(server_id)
        assert not self.installer.holds(server_id)
        assert await self.database.load_installs() == []
        assert await self.database.load_servers() == []
        mark = str(self.folder / server_id)
        for child in psutil.Process().children(recursive=True):
            assert not any(mark in part for part in command_of(child))


def wish(package: dict[str, Any], server_id: str) -> Wish:
    """Somebody who may approves it."""
    page = {"servers": [{"name": f"org.nobody/{server_id}", "packages": [package]}]}
    (entry,) = entries_of(page, "registry", vouched=True)
    return Wish(entry, approved=True)


@asynccontextmanager
async def workshop(folder: Path, rules: InstallRules | None = None) -> AsyncIterator[Workshop]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(f"sqlite+aiosqlite:///{folder / 'toolscore.db'}"))
        pool = await stack.enter_async_context(UpstreamPool())

        async def attach(server_id: str, spec: UpstreamSpec) -> None:
            pool.add(server_id, spec)

        installer = Installer(
            folder / "servers", database, pool, attach=attach, detach=pool.remove, tools_of=lambda _: [],
            publish=lambda kind, **data: opened.published.append((kind, data)), rules=rules,
        )  # fmt: skip
        opened = Workshop(installer, database, pool, folder / "servers")
        await stack.enter_async_context(installer)
        yield opened


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registries]:
    """Packages from the test's own registries, for this process."""
    with Registries() as registries:
        for name, value in registries.environment.items():
            monkeypatch.setenv(name, value)
        yield registries


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("crashing", {"start": "raise SystemExit('no configuration found')"}, "no configuration found"),
        ("deaf", {"start": "import time; time.sleep(100)"}, "no answer within 1 s"),
        ("calling", {"start": "import socket; socket.create_connection(('192.0.2.1', 80), 5)"}, "with `network`"),
    ],
)  # fmt: skip
@pytest.mark.long
def test_what_does_not_start_leaves_nothing(
    packages: Registries, tmp_path: Path, name: str, source: dict[str, str], expected: str
) -> None:
    package = packages.add_wheel(f"{name}-server", server_source(name, **source))
    rules = InstallRules(start_timeout_seconds=1 if name == "deaf" else 20)

    async def fail() -> str:
        async with workshop(tmp_path, rules) as opened:
            return (await opened.failure(package, name)).message

    message = asyncio.run(fail())
    assert "step `prove`" in message
    assert expected in message


@pytest.mark.long
def test_files_that_are_not_what_they_should_be_are_refused(packages: Registries, tmp_path: Path) -> None:
    tampered = packages.add_wheel("tampered-server", server_source("tampered"), digest="0" * 64)
    other = packages.add_wheel("swapped-server", server_source("swapped"))
    npm = packages.add_tarball("bent-server", "process.exit(3)", integrity="sha512-" + "A" * 86 + "==")

    async def fail() -> None:
        async with workshop(tmp_path) as opened:
            for server_id, package, expected in (
                ("tampered", tampered, "mismatch"),
                ("swapped", {**other, "fileSha256": "1" * 64}, "none of the files"),
                ("bent", npm, "integrity"),
                ("missing", {**other, "identifier": "no-such-server"}, "no-such-server"),
            ):
                failed = await opened.failure(package, server_id)
                assert "step `fetch`" in failed.message
                said = json.dumps(failed.body()).lower()
                assert expected in said, said
        assert failed.data is not None
        assert failed.data["command"][:3] == ["uv", "pip", "compile"]
        assert failed.data["output"], "what the command said"

    asyncio.run(fail())


def test_folders_that_no_install_made_stay(packages: Registries, tmp_path: Path) -> None:
    own = tmp_path / "servers" / "precious"
    own.mkdir(parents=True)
    (own / "work.txt").write_text("mine")
    package = packages.add_wheel("precious-server", server_source("p"))

    async def fail() -> None:
        async with workshop(tmp_path) as opened:
            assert (own / "work.txt").read_text() == "mine", "nothing is removed at the start"
            with pytest.raises(InstallFailed, match="was not made by an install"):
                await opened.installer.install(wish(package, "precious"))
        assert (own / "work.txt").read_text() == "mine"

    asyncio.run(fail())


# In the gateway


@pytest.mark.long
def test_npm_packages_run_no_scripts_of_theirs(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    script = (SCRIPTS / "plain.js").read_text()
    registries.publish("org.nobody/noded", packages=[registries.add_tarball("@nobody/noded", script)])
    refreshed(process)
    ran = Path("/tmp/npm-script-ran")
    ran.unlink(missing_ok=True)
    assert install(process, "noded")["success"]
    assert not ran.exists()
    environment = json.loads(process.text("noded__hi"))
    assert "SECRET_OF_THE_GATEWAY" not in environment
    assert not [name for name in environment if name.lower().startswith("npm_")]
    process.http.delete("/api/v1/catalog/installed/noded")


LOOKS = """
def looks(what):
    import os, socket
    if what == 'files':
        return [os.path.exists(path) for path in {paths!r}]
    if what == 'environment':
        return sorted(os.environ)
    if what == 'write':
        done = []
        for path in ('/usr/x', os.path.expanduser('~/x'), '/tmp/x', {own!r} + '/x'):
            try:
                open(path, 'w').close()
                done.append(path)
            except OSError:
                pass
        return done
    if what == 'network':
        try:
            socket.create_connection(('127.0.0.1', {port}), 2).close()
            return 'reached'
        except OSError as exc:
            return str(exc)
    if what == 'processes':
        import signal
        children = []
        try:
            while len(children) < 2000:
                pid = os.fork()
                if pid == 0:
                    signal.pause()
                children.append(pid)
        except OSError:
            pass
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return len(children)
    if what == 'memory':
        try:
            return len(bytearray(4 << 30))
        except MemoryError:
            return 'MemoryError'
    if what == 'others':
        return [pid for pid in os.listdir('/proc') if pid.isdigit()]
    return os.getuid()
"""


@pytest.mark.long
def test_an_installed_server_is_confined(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    paths = [str(process.config), str(process.folder / "data" / "toolscore.db"), "/root/.ssh", "/home"]
    own = str(process.folder / "data" / "servers" / "spy")
    source = server_source("spy", answer="looks(message['params']['arguments'].get('what'))")
    source = LOOKS.format(paths=paths, own=own, port=process.http_port) + source
    registries.publish("org.nobody/spy", packages=[registries.add_wheel("spy-server", source)])
    refreshed(process)
    answer = install(process, "spy", env={"ITS_SECRET": "${env:SECRET_OF_THE_GATEWAY}"})
    assert answer["success"], answer

    def look(what: str) -> str:
        return process.text("spy__look", {"what": what})

    assert look("files") == str([False] * 4)
    environment = eval(look("environment"))
    assert set(environment) <= {
        "HOME", "ITS_SECRET", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "PWD", "TMPDIR", "TZ",
        "USER",
    }  # fmt: skip
    assert eval(look("write")) == [f"{own}/home/x", "/tmp/x"]
    assert "unreachable" in look("network") or "refused" in look("network")
    assert len(eval(look("others"))) < 12, "it sees no processes but its own"
    assert int(look("processes")) < 256
    assert look("memory") == "MemoryError"
    assert int(look("user")) != 0
    spec = json.dumps(process.get("/api/v1/servers/spy"))
    assert "do not pass on" not in spec
    assert process.http.delete("/api/v1/catalog/installed/spy").json()["success"]
    nothing_left(process, "spy")


FILES = """
def tried(folders):
    import os
    found = [os.getuid()]
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError as exc:
            names = exc.strerror
        try:
            open(folder + '/written', 'w').write('by the server')
            found.append([names, 'written'])
        except OSError as exc:
            found.append([names, exc.strerror])
    return found
"""
A_FOLDER = {
    "type": "positional",
    "valueHint": "directory",
    "format": "filepath",
    "isRequired": True,
    "isRepeated": True,
}


@pytest.mark.long
def test_a_server_uses_the_folders_that_it_is_given_and_no_others(
    local: tuple[GatewayProcess, Registries], tmp_path: Path
) -> None:
    process, registries = local
    folders = [tmp_path / name for name in ("work", "library", "private")]
    for folder in folders:
        folder.mkdir()
        (folder / "note.txt").write_text("x")
        folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folders[0], 4321, 4321)
    answer = "[sys.argv[1:], *tried(" + repr([str(folder) for folder in folders]) + ")]"
    package = registries.add_wheel("files-server", FILES + server_source("files", answer=answer, start="import sys"))
    registries.publish("org.nobody/files", packages=[{**package, "packageArguments": [A_FOLDER]}])
    refreshed(process)
    bare = toolscore("install", "files", "--yes", gateway=process)
    assert bare.returncode == 2
    assert "it needs a folder to work on: give --folder PATH" in bare.stderr
    given = ["--folder", "work", "--folder", f"{folders[1]}:ro"]
    done = toolscore("install", "org.nobody/files", "--yes", *given, gateway=process, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"may read and write {folders[0]}" in done.stdout
    assert f"may read {folders[1]}" in done.stdout
    arguments, user, work, library, private = eval(process.text("files__look"))
    assert arguments == [str(folders[0]), str(folders[1])]
    assert work == [["note.txt", "written"], "written"], "the call on trial wrote it first"
    assert library == [["note.txt"], "Read-only file system"]
    assert private == ["No such file or directory", "No such file or directory"]
    if os.geteuid() == 0:
        assert user == 4321, "whose folder it is"
        assert (folders[0] / "written").stat().st_uid == 4321
    folders[0].rename(tmp_path / "moved")
    folders[0].symlink_to("/etc")
    process.http.post("/api/v1/servers/files/restart")
    wait_for(lambda: "gone or leads elsewhere by now" in str(process.server("files")["last_error"]), 60)
    folders[0].unlink()
    (tmp_path / "moved").rename(folders[0])
    assert process.http.delete("/api/v1/catalog/installed/files").json()["success"]
    assert (folders[0] / "note.txt").is_file(), "what it was given is not its own"
    nothing_left(process, "files")


@pytest.mark.skipif(os.geteuid() != 0, reason="only where the gateway is root does a server become another user")
@pytest.mark.long
def test_a_folder_of_roots_is_not_written_to_by_root(local: tuple[GatewayProcess, Registries], tmp_path: Path) -> None:
    process, registries = local
    package = registries.add_wheel("rooted-server", server_source("rooted"))
    registries.publish("org.nobody/rooted", packages=[{**package, "packageArguments": [A_FOLDER]}])
    refreshed(process)
    tmp_path.chmod(0o755)
    refused = install(process, "rooted", folders=[str(tmp_path)])["error"]
    assert refused["code"] == "invalid_arguments", "before anything is fetched"
    assert "belongs to root, and a server never runs as root" in refused["message"]
    assert install(process, "rooted", folders=[f"{tmp_path}:ro"])["success"]
    process.http.delete("/api/v1/catalog/installed/rooted")


@pytest.mark.long
def test_a_server_that_needs_an_account_says_so(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    refuses = server_source("locked", answer="'status code 401: Bad credentials: ' + os.environ['LOCKED_KEY']")
    refuses = refuses.replace('"content": [', '"isError": True, "content": [')
    dies = server_source("shut", start="raise RuntimeError('SHUT_API_KEY is required')")
    for name, source in (("locked", refuses), ("shut", dies)):
        registries.publish(f"org.nobody/{name}", packages=[registries.add_wheel(f"{name}-server", source)])
    refreshed(process)
    key = "LOCKED_KEY=${env:SECRET_OF_THE_GATEWAY}"
    done = toolscore("install", "locked", "--yes", "--env", key, gateway=process)
    assert done.returncode == 0, done.stderr
    assert "tried look: needs your account" in done.stdout
    assert "401: Bad credentials: ${env:SECRET_OF_THE_GATEWAY}" in done.stdout, "its secret is not told"
    assert "do not pass on" not in json.dumps(process.get("/api/v1/catalog/installed"))
    process.http.delete("/api/v1/catalog/installed/locked")
    failed = toolscore("install", "shut", "--yes", gateway=process)
    assert failed.returncode == 1
    assert "it may need your account, or another than it was given" in failed.stderr
    assert "RuntimeError: SHUT_API_KEY is required" in failed.stderr


@pytest.mark.parametrize(
    ("entry", "code", "expected"),
    [
        ({"packages": [{"registryType": "npm", "identifier": "x", "version": "1.0.0",
                        "runtimeArguments": [{"type": "named", "name": "--registry", "value": "http://evil"}]}]},
         "not_allowed_by_policy", "--registry"),
        ({"packages": [{"registryType": "pypi", "identifier": "--index-url=http://evil", "version": "1.0.0"}]},
         "invalid_arguments", "no name of a package"),
        ({"packages": [], "remotes": [{"type": "streamable-http", "url": "https://127.0.0.1:1/mcp"}]},
         "install_failed", "private address"),
    ],
)  # fmt: skip
@pytest.mark.long
def test_what_a_catalog_may_not_ask_for(
    local: tuple[GatewayProcess, Registries], entry: dict[str, Any], code: str, expected: str
) -> None:
    """One for each way to refuse; all of them are in `test_plan.py`."""
    process, registries = local
    registries.servers.pop("org.nobody/asks", None)
    registries.publish("org.nobody/asks", **entry)
    refreshed(process)
    answer = install(process, "org.nobody/asks")
    assert answer["error"]["code"] == code, answer
    assert expected in json.dumps(answer["error"]), answer
    nothing_left(process, "asks")
    if code == "install_failed":
        wait_for(lambda: process.event_seen("install_failed", server_id="asks"))
    else:
        assert not process.event_seen("install_started", seconds=1, server_id="asks"), "its plan is refused already"


@pytest.mark.long
def test_secrets_are_given_by_reference_only(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    package = registries.add_wheel("keyed-server", server_source("keyed", answer="os.environ['API_KEY'][:3]"))
    package["environmentVariables"] = [{"name": "API_KEY", "isRequired": True, "isSecret": True}]
    registries.publish("org.nobody/keyed", packages=[package])
    refreshed(process)
    answer = install(process, "keyed", env={"API_KEY": "abc"})
    assert "give a reference, not the value" in answer["error"]["message"]
    for name in ("LD_PRELOAD", "PYTHONPATH", "NODE_OPTIONS"):
        assert (
            "no variable that a server may be given" in install(process, "keyed", env={name: "x"})["error"]["message"]
        )
    assert install(process, "keyed", env={"API_KEY": "${env:SECRET_OF_THE_GATEWAY}"})["success"]
    assert process.text("keyed__look") == "do "
    process.http.delete("/api/v1/catalog/installed/keyed")


@pytest.mark.long
def test_two_equal_requests_at_once_install_once(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    registries.publish("org.nobody/twice", packages=[registries.add_wheel("twice-server", server_source("twice"))])
    refreshed(process)

    async def both() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(install, process, "twice") for _ in range(4)))

    answers = asyncio.run(both())
    assert all(answer["success"] for answer in answers), answers
    wait_for(lambda: process.event_seen("install_started", server_id="twice"))
    started = [
        event for event in process.events() if event["type"] == "install_started" and event["server_id"] == "twice"
    ]
    assert len(started) == 1
    assert len({json.dumps(answer["data"]) for answer in answers}) == 1
    assert install(process, "twice")["data"]["seconds"] == answers[0]["data"]["seconds"], "it is there already"
    taken = install(process, "org.trusted/fine", server_id="twice")
    assert taken["error"]["code"] == "conflict"
    process.http.delete("/api/v1/catalog/installed/twice")


@pytest.mark.long
def test_the_command_line_installs_and_uninstalls(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    registries.publish("org.nobody/lined", packages=[registries.add_wheel("lined-server", server_source("lined"))],
                       description="Draws lines on paper")  # fmt: skip
    refreshed(process)
    found = toolscore("catalog", "search", "draw a line on paper", gateway=process)
    assert "org.nobody/lined" in found.stdout
    assert "toolscore install org.nobody/lined" in found.stdout
    asked = toolscore("install", "lined", gateway=process)
    assert asked.returncode == 1
    assert "$ uv pip sync" in asked.stdout, "the exact command is shown before"
    assert "approve it with --yes" in asked.stderr
    done = toolscore("install", "lined", "--yes", gateway=process)
    assert done.returncode == 0, done.stderr
    assert "runs as `lined`" in done.stdout
    assert "lined__look" in done.stdout
    assert [line.split()[0] for line in done.stderr.splitlines() if line.startswith("  ")] == [
        "fetch", "prove", "prove", "register",
    ]  # fmt: skip
    assert "lined-server" in toolscore("catalog", "installed", gateway=process).stdout
    assert process.text("lined__look") == "fine"
    assert toolscore("uninstall", "org.nobody/lined", gateway=process).returncode == 0
    nothing_left(process, "lined")
    again = toolscore("uninstall", "lined", gateway=process)
    assert again.returncode == 1
    assert "no server 'lined' was installed" in again.stderr
    failing = toolscore("install", "nothing-like-it", "--yes", gateway=process)
    assert failing.returncode == 1
    assert "no catalog has a server 'nothing-like-it'" in failing.stderr


@pytest.mark.long
def test_variables_of_a_server_steer_nothing_but_the_server(
    local: tuple[GatewayProcess, Registries], tmp_path: Path
) -> None:
    process, registries = local
    package = registries.add_wheel("plain2-server", server_source("plain2", answer="os.environ.get('MODE')"))
    package["environmentVariables"] = [{"name": "MODE", "value": "fast"}]
    registries.publish("org.nobody/plain2", packages=[package])
    refreshed(process)
    plan = process.http.post("/api/v1/catalog/install", json={"name": "plain2", "dry_run": True}).json()["data"]["plan"]
    assert plan["sets"] == {"MODE": "fast"}, "who approves sees it"
    assert install(process, "plain2", env={"LD_DEBUG": "all"})["error"]["code"] == "invalid_arguments"
    assert install(process, "plain2")["success"]
    assert process.text("plain2__look") == "fast"
    command = next(command for command in process.commands() if "bwrap" in command[0])
    assert "fast" not in " ".join(command), "values stay out of command lines"
    process.http.delete("/api/v1/catalog/installed/plain2")


@pytest.mark.long
def test_with_a_network_it_is_still_kept_off_the_gateway(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    source = LOOKS.format(paths=[], own="/x", port=process.http_port)
    source += server_source("netted", answer="looks(message['params']['arguments'].get('what'))")
    registries.publish("org.nobody/netted", packages=[registries.add_wheel("netted-server", source)])
    refreshed(process)
    assert install(process, "netted", network=True)["success"]
    version = ctypes.CDLL(None).syscall(444, None, 0, 1)
    said = process.text("netted__look", {"what": "network"})
    assert said == "[Errno 13] Permission denied" if version >= 4 else said == "reached"
    process.http.delete("/api/v1/catalog/installed/netted")


def test_what_was_approved_is_what_is_installed(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    registries.publish(
        "org.nobody/moving", "1.0.0", packages=[registries.add_wheel("calm-server", server_source("calm"))]
    )
    refreshed(process)
    body = {"name": "org.nobody/moving", "dry_run": True}
    plan = process.http.post("/api/v1/catalog/install", json=body).json()["data"]["plan"]
    registries.publish(
        "org.nobody/moving", "1.0.1", packages=[registries.add_wheel("wild-server", server_source("wild"))]
    )
    refreshed(process)
    answer = install(process, "org.nobody/moving", digest=plan["digest"])
    assert answer["error"]["code"] == "conflict"
    assert "look at it again" in answer["error"]["message"]
    nothing_left(process, "moving")


def let_go(registries: Registries) -> None:
    """Send the files that are held back."""
    registries.slow = 0
    registries._gate.set()
    registries._gate.clear()


@pytest.mark.long
def test_an_id_belongs_to_one_at_a_time(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    for name in ("first", "second"):
        registries.publish(f"org.nobody/{name}", packages=[registries.add_wheel(f"{name}-server", server_source(name))])
    refreshed(process)
    registries.slow = 60
    done: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: done.append(install(process, "first", server_id="mine")))
    thread.start()
    wait_for(lambda: any("/files/first-server" in path for path in registries.asked), 120)
    assert install(process, "second", server_id="mine")["error"]["code"] == "conflict"
    attached = process.http.post("/api/v1/servers", json={"server_id": "mine", "command": "/bin/cat"})
    assert attached.json()["error"]["code"] == "conflict"
    let_go(registries)
    thread.join(60)
    assert done[0]["success"], done
    again = install(process, "first", server_id="mine", env={"A": "b"})
    assert again["error"]["code"] == "conflict", "it is not told that it has what it has not"
    assert process.http.delete("/api/v1/servers/mine").json()["success"], "detaching uninstalls"
    nothing_left(process, "mine")
    for reserved in ("toolscore", "python-executor-mcp-server"):
        assert install(process, "first", server_id=reserved)["error"]["code"] == "invalid_arguments"


@pytest.mark.long
def test_installing_twice_does_nothing_and_says_so(local: tuple[GatewayProcess, Registries]) -> None:
    process, registries = local
    registries.publish("org.nobody/again", packages=[registries.add_wheel("again-server", server_source("again"))])
    refreshed(process)
    assert install(process, "again")["success"]
    second = toolscore("install", "again", "--yes", gateway=process)
    assert second.stdout == "org.nobody/again 1.0.0 is installed already: nothing done\n"
    assert toolscore("install", "again", "--as", "other", "--yes", gateway=process).returncode == 0
    (place,) = process.folder.rglob("servers/other")
    (place / "home" / "notes").write_text("its own")
    assert process.http.post("/api/v1/servers/other/disable").json()["success"]
    disabled = toolscore("install", "again", "--as", "other", "--yes", gateway=process)
    assert (disabled.returncode, "disabled: enable it, or uninstall it first" in disabled.stderr) == (1, True)
    assert (place / "home" / "notes").read_text() == "its own"
    assert process.http.post("/api/v1/servers/other/enable").json()["success"]
    process.wait_for_state("other", "up")
    several = toolscore("uninstall", "org.nobody/again", gateway=process)
    assert several.returncode == 1
    assert "name one of again, other" in several.stderr
    for server_id in ("again", "other"):
        assert process.http.delete(f"/api/v1/catalog/installed/{server_id}").json()["success"]
    unset = install(process, "again", env={"A_KEY": "${env:NOT_SET_ANYWHERE}"})
    assert unset["error"]["code"] == "invalid_arguments", "before anything is fetched"


@pytest.mark.long
def test_what_is_unlikely_to_do_is_not_installed(local: tuple[GatewayProcess, Registries]) -> None:
    """However broad the rules are."""
    process, registries = local
    registries.publish("org.trusted/knitting", packages=[registries.add_wheel("knit-server", server_source("knit"))],
                       description="Knitting patterns for socks and scarfs")  # fmt: skip
    refreshed(process)
    task = {"task_description": "book a flight from Oslo to Rome for two people"}
    answer = process.http.post("/api/v1/tools/request-capability", json=task, timeout=180).json()["data"]
    assert answer["status"] == "not_found", answer["status"]
    assert answer["installed"] == []
    assert all(one["confidence"] < 0.5 for one in answer["candidates"])
    nothing_left(process, "knitting")
    task = {"task_description": "find a knitting pattern for warm socks"}
    answer = process.http.post("/api/v1/tools/request-capability", json=task, timeout=180).json()["data"]
    assert answer["status"] == "installed", answer
    process.http.delete("/api/v1/catalog/installed/knitting")


# The last: these stop the gateway


def _ignore(function: Any, *arguments: Any) -> None:
    with contextlib.suppress(Exception):
        function(*arguments)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.long
def test_kill_9_in_the_middle_leaves_a_clean_start(local: tuple[GatewayProcess, Registries]) -> None:
    """And servers that were installed before it are there again, with their files."""
    process, registries = local
    source = server_source("noted", answer="open(os.path.expanduser('~/notes'), 'a+').seek(0, 2)")
    registries.publish("org.nobody/noted", packages=[registries.add_wheel("noted-server", source)])
    registries.publish("org.nobody/slow", packages=[registries.add_wheel("slow-server", server_source("slow"))])
    refreshed(process)
    assert install(process, "noted")["success"]
    (process.folder / "data" / "servers" / "noted" / "home" / "notes").write_text("twelve chars")
    registries.slow = 60
    threading.Thread(target=_ignore, args=(install, process, "slow"), daemon=True).start()
    place = process.folder / "data" / "servers" / "slow"
    wait_for(lambda: (place / "requirements.in").exists(), 120)
    wait_for(lambda: any("/files/slow-server" in path for path in registries.asked), 120)
    children = process.family()
    process.kill()
    wait_for(lambda: not any(_runs(child) for child in children), 60, "for the fetcher to end")
    assert place.exists()
    let_go(registries)
    process.start()
    process.wait_for_output("an install that was not finished is removed")
    nothing_left(process, "slow")
    process.wait_for_state("noted", "up")
    assert process.text("noted__look") == "12"
    assert install(process, "slow")["success"]
    assert process.text("slow__look") == "fine"
    assert process.http.delete("/api/v1/catalog/installed/slow").json()["success"]


@pytest.mark.long
def test_stopping_the_gateway_undoes_an_install_and_tells_whoever_waits(
    local: tuple[GatewayProcess, Registries],
) -> None:
    process, registries = local
    registries.publish("org.nobody/late", packages=[registries.add_wheel("late-server", server_source("late"))])
    refreshed(process)
    registries.slow = 60
    done: list[dict[str, Any]] = []
    waiter = threading.Thread(target=lambda: done.append(install(process, "late")))
    waiter.start()
    wait_for(lambda: any("/files/late-server" in path for path in registries.asked), 120)
    process.stop()
    let_go(registries)
    waiter.join(10)
    assert done[0]["error"]["code"] == "install_failed"
    assert "shutting down" in done[0]["error"]["message"]
    assert not (process.folder / "data" / "servers" / "late").exists()
    assert "Traceback" not in process.output()
    process.start()
    wait_for(lambda: process.event_seen("install_failed", server_id="late"))
